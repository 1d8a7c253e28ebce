"""Data, teacher and students."""

WANTED = downloads(EXPERIMENT.data)
DOWNLOADS = ROOT.parent / "downloads" / EXPERIMENT.data.kind

# Flips are drawn by the jobs that train on the data set and are told of them there: the stored images are the same, so
# that a change of `data.flip` neither prepares nor measures them again.
STORED = settings(EXPERIMENT.data, leave_out={"flip"})
# Of latents the mirrored images' are stored beside the others'.
FLIPPED = getattr(EXPERIMENT.data, "flip", False)
FLIP = FLIPPED and not EXPERIMENT.is_latent

# The user's images: their names, sizes and times stand for them. Where they lie may change. `name` may be a folder, too.
PLACES = {key: fingerprint(getattr(EXPERIMENT.data, key, None)) for key in ("path", "name")}

# A stored teacher's classes must be the data set's. BOOT's students never see the data: it is said where they are prepared.
STORED_TEACHER = EXPERIMENT.teacher if isinstance(EXPERIMENT.teacher, StoredTeacher) else None
TEACHER_CLASSES = (STORED_TEACHER and STORED_TEACHER.num_known_classes) or None


# What a data set has that may be downloaded and is not at hand; kept for all experiments that use it.
rule fetch:
    output:
        DOWNLOADS / "{file}",
    log:
        ROOT / "logs/fetch/{file}.log",
    wildcard_constraints:
        file=one_of([download.name for download in WANTED]),
    # Where Snakemake runs: compute nodes of a cluster often have no way to the network.
    localrule: True
    conda:
        "../../environment.yml"
    resources:
        **asks(2_000, 4 * 60),
    params:
        job=told(stage="data.Fetch", settings=STORED),
    shell:
        ALONE


rule data:
    input:
        # Where they are is no matter; what is in them is the data set's to check.
        ancient([DOWNLOADS / download.name for download in WANTED]),
        asked=job(
            ROOT / "data" / RECORD,
            "data.Prepare",
            f"diffusion.data.kinds.{EXPERIMENT.data.kind}",
            settings=STORED | {key: found for key, found in PLACES.items() if found},
            teacher_classes=TEACHER_CLASSES,
        ),
    output:
        directory(ROOT / "data"),
    log:
        ROOT / "logs/data.log",
    benchmark:
        ROOT / "benchmarks/data/data.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        **asks(8_000, RESUMED),
    params:
        job=told(settings=STORED, downloads=DOWNLOADS if WANTED else None, state=STATE),
    shell:
        ALONE


if STORED_TEACHER:
    TEACHER_FOLDER = Path(STORED_TEACHER.path)

    rule teacher:
        input:
            asked=job(
                ROOT / "teacher" / RECORD,
                "teacher.Import",
                files=deciding_files(TEACHER_FOLDER) if TEACHER_FOLDER.is_dir() else [],
                # Of a model of the Hub; a folder's files stand for it.
                stored=None if TEACHER_FOLDER.is_dir() else STORED_TEACHER.path,
                revision=STORED_TEACHER.revision,
                num_classes=STORED_TEACHER.num_classes,
                several={} if STORED_TEACHER.start_level is None else {"start_level": STORED_TEACHER.start_level},
            ),
        output:
            directory(ROOT / "teacher"),
        log:
            ROOT / "logs/teacher.log",
        benchmark:
            ROOT / "benchmarks/teacher/teacher.tsv"
        # As `fetch`: it may come from the Hub.
        localrule: True
        conda:
            "../../environment.yml"
        resources:
            **asks(8_000, 60),
        params:
            job=told(stored=STORED_TEACHER.path),
        shell:
            ALONE

else:

    rule teacher:
        input:
            **AUTOENCODER,
            **LATENTS,
            data=ROOT / "data",
            asked=job(
                ROOT / "teacher" / RECORD,
                "teacher.Train",
                settings=settings(EXPERIMENT.teacher, leave_out={"guidance_scale", "autoencoder"}),
                flip=FLIP,
            ),
        output:
            directory(ROOT / "teacher"),
        log:
            ROOT / "logs/teacher.log",
        benchmark:
            ROOT / "benchmarks/teacher/teacher.tsv"
        # All else waits for it.
        priority: 4
        conda:
            "../../environment.yml"
        # The result depends on the number of threads in its last bits, and more than a few do not help.
        threads: min(workflow.cores, 8)
        resources:
            **asks(
                16_000, RESUMED, gpu=GPU * PLAN.processes(None, PROCESSES), processes=PLAN.processes(None, PROCESSES)
            ),
        params:
            job=told(state=STATE),
        shell:
            TOGETHER


if AUTOENCODER:

    rule autoencoder:
        input:
            data=ROOT / "data",
            asked=job(
                ROOT / "autoencoder" / RECORD,
                "autoencoder.Train",
                settings=settings(EXPERIMENT.teacher.autoencoder),
                flip=FLIPPED,
            ),
        output:
            directory(ROOT / "autoencoder"),
        log:
            ROOT / "logs/autoencoder.log",
        benchmark:
            ROOT / "benchmarks/autoencoder/autoencoder.tsv"
        conda:
            "../../environment.yml"
        threads: min(workflow.cores, 8)
        resources:
            **asks(16_000, RESUMED, gpu=GPU),
        params:
            job=told(state=STATE),
        shell:
            ALONE


# Training images as latents, once for the teacher and all methods that train on them.
rule latents:
    input:
        autoencoder=AUTOENCODER.get("autoencoder", ROOT / "teacher"),
        data=ROOT / "data",
        asked=job(ROOT / "latents" / RECORD, "autoencoder.Encode", flip=FLIPPED, batch_size=EVALUATION.batch_size),
    output:
        directory(ROOT / "latents"),
    log:
        ROOT / "logs/latents.log",
    benchmark:
        ROOT / "benchmarks/latents/latents.tsv"
    conda:
        "../../environment.yml"
    resources:
        **asks(16_000, RESUMED, gpu=GPU),
    params:
        job=told(state=STATE),
    shell:
        ALONE


# BOOT and every other data-free method: the teacher is the only input, and texts where they are not in its folder.
rule distil:
    input:
        **TRAINING_PROMPTS,
        teacher=ROOT / "teacher",
        asked=distilled(),
    output:
        directory(STUDENT),
    log:
        ROOT / "logs/distil/{variant}/train-{train_seed}.log",
    benchmark:
        ROOT / "benchmarks/distil/{variant}/train-{train_seed}.tsv"
    wildcard_constraints:
        variant=one_of(PLAN.trained("nothing")),
    # The longest jobs of the default experiment: first, so that the others fill the time beside them.
    priority: 2
    conda:
        "../../environment.yml"
    # Small networks gain little from a second thread and much from a second job beside them.
    threads: 1
    resources:
        **asks(16_000, RESUMED, gpu=lambda wildcards: GPU * processes(wildcards), processes=processes),
    params:
        job=told(state=STATE),
    shell:
        TOGETHER


# Methods that train on real pictures too, and with their captions.
use rule distil as distil_with_data with:
    input:
        **LATENTS,
        **(TRAINING_PROMPTS if CAPTIONS or EXPERIMENT.prompts.negative else {}),
        teacher=ROOT / "teacher",
        data=ROOT / "data",
        asked=distilled(flip=FLIP),
    wildcard_constraints:
        variant=one_of(PLAN.trained("data")),


# Methods that train on an offline set.
use rule distil as distil_with_pairs with:
    input:
        **TRAINING_PROMPTS,
        teacher=ROOT / "teacher",
        pairs=lambda wildcards: str(PLAN.pairs_of(wildcards.variant)),
        asked=distilled(),
    wildcard_constraints:
        variant=one_of(PLAN.trained("pairs")),


# Noises and the teacher's samples from them, made once for all students that train on the same set.
rule pairs:
    input:
        **TRAINING_PROMPTS,
        teacher=ROOT / "teacher",
        asked=job(
            ROOT / "pairs/{name}" / RECORD,
            "pairs.Make",
            settings=lambda wildcards: settings(PLAN.pairs()[wildcards.name]),
            guidance_scale=GUIDANCE,
            batch_size=EVALUATION.batch_size,
        ),
    output:
        directory(ROOT / "pairs/{name}"),
    log:
        ROOT / "logs/pairs/{name}.log",
    benchmark:
        ROOT / "benchmarks/pairs/{name}.tsv"
    wildcard_constraints:
        name=one_of(PLAN.pairs()),
    # Students wait for it.
    priority: 3
    conda:
        "../../environment.yml"
    resources:
        **shared(8_000, RESUMED),
    params:
        job=told(state=STATE),
    shell:
        TOGETHER
