"""Data, teacher and students."""

STUDENT = ROOT / "students/{variant}/train-{train_seed}"
WANTED = downloads(EXPERIMENT.data)
DOWNLOADS = ROOT.parent / "downloads" / EXPERIMENT.data.kind

# Flips are drawn by the jobs that train on the data set and are told of them there: the stored images are the same, so
# that a change of `data.flip` neither prepares nor measures them again.
STORED = settings(EXPERIMENT.data, leave_out={"flip"})
FLIP = "--flip" if getattr(EXPERIMENT.data, "flip", False) else ""

# The user's images: their names, sizes and times stand for them. Where they lie may change. `name` may be a folder, too.
PLACES = {key: fingerprint(getattr(EXPERIMENT.data, key, None)) for key in ("path", "name")}
PICTURES = PLACES["path"] or PLACES["name"]
STORED_ELSEWHERE = settings(EXPERIMENT.data, leave_out={"flip"} | {key for key, found in PLACES.items() if found})

# A stored teacher's classes must be the data set's. BOOT's students never see the data: it is said where they are prepared.
TEACHER_CLASSES = []
if isinstance(EXPERIMENT.teacher, StoredTeacher) and EXPERIMENT.teacher.num_known_classes:
    TEACHER_CLASSES = ["--teacher-classes", EXPERIMENT.teacher.num_known_classes]


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
    threads: 1
    resources:
        mem_mb=growing(2_000),
        runtime=growing(4 * 60),
    params:
        settings=STORED,
    shell:
        "python -m suite.launch 1 suite.cli fetch --settings {params.settings:q} --output {output:q} > {log:q} 2>&1"


rule data:
    input:
        # Where they are is no matter; what is in them is the data set's to check.
        downloads=ancient([DOWNLOADS / download.name for download in WANTED]),
        job=job(
            ROOT / "data" / RECORD,
            "data",
            f"diffusion.data.kinds.{EXPERIMENT.data.kind}",
            settings=STORED_ELSEWHERE,
            pictures=PICTURES,
            classes=TEACHER_CLASSES,
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
        mem_mb=growing(8_000),
        runtime=RESUMED_MINUTES,
    params:
        settings=STORED,
        downloads=["--downloads", DOWNLOADS] if WANTED else [],
        classes=TEACHER_CLASSES,
        state=ROOT / "state",
    shell:
        "python -m suite.launch 1 suite.cli data --job {input.job:q} --settings {params.settings:q} {params.downloads:q} {params.classes} --state {params.state:q} "
        "--output {output:q} > {log:q} 2>&1"


if isinstance(EXPERIMENT.teacher, StoredTeacher):
    TEACHER_FOLDER = Path(EXPERIMENT.teacher.path)

    rule teacher:
        input:
            job=job(
                ROOT / "teacher" / RECORD,
                "teacher",
                files=deciding_files(TEACHER_FOLDER) if TEACHER_FOLDER.is_dir() else [],
                # Of a model of the Hub; a folder's files stand for it.
                path=None if TEACHER_FOLDER.is_dir() else EXPERIMENT.teacher.path,
                revision=EXPERIMENT.teacher.revision,
                num_classes=EXPERIMENT.teacher.num_classes,
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
        threads: 1
        resources:
            mem_mb=growing(8_000),
            runtime=growing(60),
        params:
            path=EXPERIMENT.teacher.path,
            revision=[] if EXPERIMENT.teacher.revision is None else ["--revision", EXPERIMENT.teacher.revision],
            classes=(
                "" if EXPERIMENT.teacher.num_classes is None else f"--num-classes {EXPERIMENT.teacher.num_classes}"
            ),
        shell:
            "python -m suite.launch 1 suite.cli import-teacher --job {input.job:q} --path {params.path:q} {params.revision:q} {params.classes} --output {output:q} > {log:q} 2>&1"

else:

    rule teacher:
        input:
            data=ROOT / "data",
            job=job(
                ROOT / "teacher" / RECORD,
                "teacher",
                settings=settings(EXPERIMENT.teacher, leave_out={"guidance_scale"}),
                flip=FLIP,
            ),
        output:
            directory(ROOT / "teacher"),
        log:
            ROOT / "logs/teacher.log",
        benchmark:
            ROOT / "benchmarks/teacher/teacher.tsv"
        conda:
            "../../environment.yml"
        # The result depends on the number of threads in its last bits, and more than a few do not help.
        threads: min(workflow.cores, 8)
        resources:
            gpu=GPU * PLAN.processes(None, PROCESSES),
            processes=PLAN.processes(None, PROCESSES),
            mem_mb=growing(16_000),
            runtime=RESUMED_MINUTES,
        params:
            settings=settings(EXPERIMENT.teacher, leave_out={"guidance_scale"}),
            flip=FLIP,
            state=ROOT / "state",
        shell:
            "python -m suite.launch {resources.processes} suite.cli teacher --job {input.job:q} --settings {params.settings:q} --data {input.data:q} {params.flip} --state {params.state:q} "
            "--output {output:q} > {log:q} 2>&1"


# BOOT and every other data-free method: the teacher is the only input.
rule distil:
    input:
        teacher=ROOT / "teacher",
        job=job(
            STUDENT / RECORD,
            "distillation",
            method_module,
            settings=method_settings,
            guidance=GUIDANCE,
        ),
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
        gpu=lambda wildcards: GPU * processes(wildcards),
        processes=processes,
        mem_mb=growing(16_000),
        runtime=RESUMED_MINUTES,
    params:
        settings=method_settings,
        guidance=GUIDANCE,
        state=ROOT / "state",
    shell:
        "python -m suite.launch {resources.processes} suite.cli distil --job {input.job:q} --variant {wildcards.variant:q} --settings {params.settings:q} --teacher {input.teacher:q} "
        "{params.guidance} "
        "--seed {wildcards.train_seed} --state {params.state:q} --output {output:q} > {log:q} 2>&1"


# Methods that train on real pictures too.
rule distil_with_data:
    input:
        teacher=ROOT / "teacher",
        data=ROOT / "data",
        job=job(
            STUDENT / RECORD,
            "distillation",
            method_module,
            settings=method_settings,
            guidance=GUIDANCE,
            flip=FLIP,
        ),
    output:
        directory(STUDENT),
    log:
        ROOT / "logs/distil_with_data/{variant}/train-{train_seed}.log",
    benchmark:
        ROOT / "benchmarks/distil_with_data/{variant}/train-{train_seed}.tsv"
    wildcard_constraints:
        variant=one_of(PLAN.trained("data")),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=lambda wildcards: GPU * processes(wildcards),
        processes=processes,
        mem_mb=growing(16_000),
        runtime=RESUMED_MINUTES,
    params:
        settings=method_settings,
        guidance=GUIDANCE,
        flip=FLIP,
        state=ROOT / "state",
    shell:
        "python -m suite.launch {resources.processes} suite.cli distil --job {input.job:q} --variant {wildcards.variant:q} --settings {params.settings:q} --teacher {input.teacher:q} "
        "{params.guidance} "
        "--data {input.data:q} {params.flip} --seed {wildcards.train_seed} --state {params.state:q} "
        "--output {output:q} > {log:q} 2>&1"


# Noises and the teacher's samples from them, made once for all students that train on the same set.
rule pairs:
    input:
        teacher=ROOT / "teacher",
        job=job(
            ROOT / "pairs/{name}" / RECORD,
            "pairs",
            settings=lambda wildcards: settings(PLAN.pairs()[wildcards.name]),
            guidance=GUIDANCE,
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
    threads: 1
    resources:
        gpu=GPU * PROCESSES,
        processes=PROCESSES,
        mem_mb=growing(8_000),
        runtime=RESUMED_MINUTES,
    params:
        settings=lambda wildcards: settings(PLAN.pairs()[wildcards.name]),
        guidance=GUIDANCE,
        state=ROOT / "state",
        batch_size=EVALUATION.batch_size,
    shell:
        "python -m suite.launch {resources.processes} suite.cli pairs --job {input.job:q} --settings {params.settings:q} --teacher {input.teacher:q} {params.guidance} "
        "--batch-size {params.batch_size} --state {params.state:q} --output {output:q} > {log:q} 2>&1"


# Methods that train on such a set.
rule distil_with_pairs:
    input:
        teacher=ROOT / "teacher",
        pairs=lambda wildcards: PLAN.pairs_of(wildcards.variant),
        job=job(
            STUDENT / RECORD,
            "distillation",
            method_module,
            settings=method_settings,
            guidance=GUIDANCE,
        ),
    output:
        directory(STUDENT),
    log:
        ROOT / "logs/distil_with_pairs/{variant}/train-{train_seed}.log",
    benchmark:
        ROOT / "benchmarks/distil_with_pairs/{variant}/train-{train_seed}.tsv"
    wildcard_constraints:
        variant=one_of(PLAN.trained("pairs")),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=lambda wildcards: GPU * processes(wildcards),
        processes=processes,
        mem_mb=growing(16_000),
        runtime=RESUMED_MINUTES,
    params:
        settings=method_settings,
        guidance=GUIDANCE,
        state=ROOT / "state",
    shell:
        "python -m suite.launch {resources.processes} suite.cli distil --job {input.job:q} --variant {wildcards.variant:q} --settings {params.settings:q} --teacher {input.teacher:q} "
        "{params.guidance} "
        "--pairs {input.pairs:q} --seed {wildcards.train_seed} --state {params.state:q} "
        "--output {output:q} > {log:q} 2>&1"
