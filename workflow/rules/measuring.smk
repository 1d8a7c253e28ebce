"""Quality, speed, and what the report shows of students."""

TEACHER_UNIT = PLAN.teacher_unit()
TEACHER = f"{TEACHER_UNIT.variant}/train-{TEACHER_UNIT.train_seed}"
# The classifier where samples have labels to be judged, in batches.
CLASSIFIER = {"classifier": ROOT / "classifier"} if EXPERIMENT.has_classifier else {}
# The CLIPs that compare samples with their captions.
CLIPS = EVALUATION.text_scores
CLIP_FILES = [str(file) for name, clip in CLIPS.items() for file in clip.files(name)]
SCORED = {"text_scores": {name: settings(clip) for name, clip in CLIPS.items()}} if CLIPS else {}
SCORED |= {"batch_size": EVALUATION.batch_size} if CLIPS else {}
JUDGED = SCORED | ({"batch_size": EVALUATION.batch_size} if CLASSIFIER else {})
# The real images with their captions.
CAPTIONED = {"data": ROOT / "data"} if EXPERIMENT.has_captions else {}
# Neighbours of tens of thousands of samples in a million pictures want all processors. Small sets are measured side by
# side.
MEASURING_THREADS = workflow.cores if EVALUATION.num_samples > 10_000 else 1


# Judges the labels of class-conditional samples; other experiments do without.
rule classifier:
    input:
        data=ROOT / "data",
        asked=job(
            ROOT / "classifier" / RECORD,
            "classifier.Train",
            settings=settings(EVALUATION.classifier),
            batch_size=EVALUATION.batch_size,
        ),
    output:
        directory(ROOT / "classifier"),
    log:
        ROOT / "logs/classifier.log",
    benchmark:
        ROOT / "benchmarks/classifier/classifier.tsv"
    conda:
        "../../environment.yml"
    resources:
        **asks(16_000, RESUMED, gpu=GPU),
    params:
        job=told(state=STATE),
    shell:
        ALONE


rule measure:
    input:
        **CLASSIFIER,
        **PROMPTS,
        features=ROOT / "features" / TRAINED,
        samples=ROOT / "samples" / TRAINED,
        real=PLAN.real(),
        teacher_features=ROOT / "features" / TEACHER,
        teacher_samples=ROOT / "samples" / TEACHER,
        asked=job(
            ROOT / "measures" / f"{TRAINED}.json",
            "measuring.Measure",
            files=CLIP_FILES,
            experiment=EXPERIMENT.name,
            method=lambda wildcards: EXPERIMENT.methods[wildcards.variant].name,
            variant=wildcard("variant"),
            train_seed=wildcard("train_seed"),
            follows_teacher=lambda wildcards: EXPERIMENT.methods[wildcards.variant].following(),
            teacher=TEACHER,
            teacher_nfe=TEACHER_UNIT.nfe,
            several=JUDGED,
        ),
    output:
        table("measures", TRAINED),
    log:
        ROOT / "logs/measure" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/measure" / f"{TRAINED}.tsv"
    priority: 1
    conda:
        "../../environment.yml"
    threads: MEASURING_THREADS
    resources:
        **asks(16_000, 4 * 60, gpu=GPU if CLASSIFIER or CLIPS else 0),
    params:
        job=told(),
    shell:
        ALONE


# Samples that the user brings.
use rule measure as measure_external with:
    input:
        **CLASSIFIER,
        **PROMPTS,
        features=ROOT / "features/external/{name}",
        samples=lambda wildcards: ancient([*brought(wildcards).values()]),
        real=PLAN.real(),
        teacher_features=ROOT / "features" / TEACHER,
        teacher_samples=ROOT / "samples" / TEACHER,
        asked=job(
            ROOT / "measures/external/{name}.json",
            "measuring.MeasureExternal",
            files=lambda wildcards: [*brought(wildcards).values(), *CLIP_FILES],
            experiment=EXPERIMENT.name,
            variant=wildcard("name"),
            seeds=brought,
            nfe=lambda wildcards: EVALUATION.external[wildcards.name].nfe,
            num_samples=EVALUATION.num_samples,
            teacher=TEACHER,
            teacher_nfe=TEACHER_UNIT.nfe,
            several=JUDGED,
        ),
    output:
        table("measures/external/{name}"),
    log:
        ROOT / "logs/measure_external/{name}.log",
    benchmark:
        ROOT / "benchmarks/measure_external/{name}.tsv"
    wildcard_constraints:
        name=one_of(EVALUATION.external),
    params:
        job=told(seeds=lambda wildcards: [*brought(wildcards)]),


# What "perfect" looks like at the test part's size.
use rule measure as measure_floor with:
    input:
        **CLASSIFIER,
        **CAPTIONED,
        real=PLAN.real(),
        asked=job(
            ROOT / "measures/real.json",
            "measuring.MeasureFloor",
            files=CLIP_FILES,
            experiment=EXPERIMENT.name,
            num_samples=EVALUATION.num_samples,
            several=SCORED,
        ),
    output:
        table("measures/real"),
    log:
        ROOT / "logs/measure_floor.log",
    benchmark:
        ROOT / "benchmarks/measure_floor/real.tsv"


# One and the same samples under one protocol.
rule protocol:
    input:
        lambda wildcards: sorted(
            {str(PLAN.features_folder(row, wildcards.protocol)) for row in PLAN.shown(wildcards.protocol)}
        ),
        lambda wildcards: ancient(given_reference(wildcards)),
        reference=lambda wildcards: str(PLAN.real(wildcards.protocol)),
        asked=job(
            ROOT / "protocols/{protocol}.json",
            "protocols.Measure",
            files=lambda wildcards: [*given_reference(wildcards), *files_of_weights(protocol_of(wildcards))],
            experiment=EXPERIMENT.name,
            name=wildcard("protocol"),
            several=lambda wildcards: under(protocol_of(wildcards)),
            rows=lambda wildcards: [row.identity for row in PLAN.shown(wildcards.protocol)],
            seed=PLAN.first_seed,
        ),
    output:
        table("protocols/{protocol}"),
    log:
        ROOT / "logs/protocol/{protocol}.log",
    benchmark:
        ROOT / "benchmarks/protocol/{protocol}.tsv"
    wildcard_constraints:
        protocol=one_of(EVALUATION.all_protocols),
    conda:
        "../../environment.yml"
    resources:
        **asks(16_000, 4 * 60, gpu=GPU),
    params:
        job=told(
            rows=lambda wildcards: [
                [*row.identity, row.seed, PLAN.features_under(row, wildcards.protocol)]
                for row in PLAN.shown(wildcards.protocol)
            ]
        ),
    shell:
        ALONE


# Quality against what training cost: the last student at its snapshots and at the end.
rule learning_curve:
    input:
        **PROMPTS,
        students=STUDENT,
        real=PLAN.real(),
        teacher_samples=ROOT / "samples" / TEACHER,
        asked=job(
            ROOT / "learning_curves" / f"{TRAINED}.json",
            "learning_curve.Measure",
            method_module,
            files=WEIGHTS_OF_MAIN,
            several=under(MAIN_EXTRACTION),
            variant=wildcard("variant"),
            train_seed=wildcard("train_seed"),
            settings=method_settings,
            guidance_scale=sampled_scale,
            teacher_nfe=TEACHER_UNIT.nfe,
            seed=PLAN.first_seed,
            num_samples=EVALUATION.num_samples,
        ),
    output:
        table("learning_curves", TRAINED),
    log:
        ROOT / "logs/learning_curve" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/learning_curve" / f"{TRAINED}.tsv"
    wildcard_constraints:
        variant=one_of(PLAN.curve_variants()),
    conda:
        "../../environment.yml"
    resources:
        **asks(16_000, 8 * 60, gpu=GPU),
    params:
        job=told(),
    shell:
        ALONE


# Alone on the machine: everything else is a claim on the same cores.
rule speed:
    input:
        sorted({str(source(unit)) for unit in PLAN.timed_units()}),
        **PROMPTS,
        asked=job(
            ROOT / "speed/speed.json",
            "speed.Time",
            *sorted({method_module(unit) for unit in PLAN.timed_units()}),
            experiment=EXPERIMENT.name,
            units=[
                {"variant": u.variant, "nfe": u.nfe, "train_seed": u.train_seed, "settings": method_settings(u)}
                for u in PLAN.timed_units()
            ],
            settings=settings(EXPERIMENT.speed),
            guidance_scale=GUIDANCE,
            **EMBEDDED,
        ),
    output:
        table("speed/speed"),
    log:
        ROOT / "logs/speed.log",
    benchmark:
        ROOT / "benchmarks/speed/speed.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        **asks(16_000, 4 * 60, gpu=GPU),
    params:
        job=told(sources={unit.variant: source(unit) for unit in PLAN.timed_units()}),
    shell:
        ALONE


# The student read at all times at once, between two noises, and between two conditions.
rule pictures:
    input:
        **PROMPTS,
        student=STUDENT,
        teacher=ROOT / "teacher",
        asked=of_student(ROOT / "pictures" / f"{TRAINED}.json", "pictures.Draw"),
    output:
        pictures=ROOT / "pictures" / f"{TRAINED}.npz",
        facts=ROOT / "pictures" / f"{TRAINED}.json",
    log:
        ROOT / "logs/pictures" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/pictures" / f"{TRAINED}.tsv"
    conda:
        "../../environment.yml"
    resources:
        **asks(8_000, 60, gpu=GPU),
    params:
        job=told(),
    shell:
        ALONE


# Does the student learn the trajectory? Its error at every time, beside the teacher's own DDIM.
use rule pictures as trajectory with:
    input:
        **TRAINING_PROMPTS,
        student=STUDENT,
        teacher=ROOT / "teacher",
        asked=of_student(
            ROOT / "trajectory" / f"{TRAINED}.json",
            "trajectory.Measure",
            noises=EVALUATION.trajectory_noises,
            target=lambda wildcards: EXPERIMENT.methods[wildcards.variant].settings.target,
        ),
    output:
        table("trajectory", TRAINED),
    log:
        ROOT / "logs/trajectory" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/trajectory" / f"{TRAINED}.tsv"


# Would a student that repeats its training pictures be seen?
rule neighbours:
    input:
        [result_with(row.samples) for row in PLAN.shown()],
        [PLAN.features_folder(row) for row in PLAN.shown()],
        real=PLAN.real(),
        data=ROOT / "data",
        asked=job(
            ROOT / "neighbours/neighbours.json",
            "neighbours.Find",
            files=[row.samples for row in PLAN.shown() if row.own is None],
            rows=[[*row.identity, row.label, row.seed] for row in PLAN.shown()],
        ),
    output:
        pictures=ROOT / "neighbours/neighbours.npz",
        facts=ROOT / "neighbours/neighbours.json",
    log:
        ROOT / "logs/neighbours.log",
    benchmark:
        ROOT / "benchmarks/neighbours/neighbours.tsv"
    conda:
        "../../environment.yml"
    threads: MEASURING_THREADS
    resources:
        **asks(16_000, 2 * 60),
    params:
        job=told(rows=[[row.label, row.samples, PLAN.features_under(row)] for row in PLAN.shown()]),
    shell:
        ALONE
