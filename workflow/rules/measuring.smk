"""Samples, features, quality, speed, pictures."""

UNIT = "{variant}/train-{train_seed}/nfe-{nfe}"
SEEDS = EVALUATION.seeds
TEACHER_UNIT = PLAN.teacher_unit()
TEACHER_NAME = f"teacher-{TEACHER_UNIT.nfe}"


def trained_folder(wildcards):
    """What a unit depends on: its students, or the teacher where nothing is trained."""
    folder = PLAN.sampled_folder(wildcards.variant, int(wildcards.train_seed), int(wildcards.nfe))
    return folder.parent if folder.name.startswith("nfe-") else folder


def sampled_folder(wildcards):
    return PLAN.sampled_folder(wildcards.variant, int(wildcards.train_seed), int(wildcards.nfe))


def extractor_options(wildcards):
    options = ["--extractor", EVALUATION.features, "--batch-size", str(EVALUATION.batch_size)]
    if EVALUATION.inception_weights:
        options += ["--inception-weights", EVALUATION.inception_weights]
    if EVALUATION.cleanfid_inception_weights:
        options += ["--cleanfid-inception-weights", EVALUATION.cleanfid_inception_weights]
    return options


rule sample:
    output:
        samples=expand(ROOT / "samples" / UNIT / "seed-{seed}.npz", seed=SEEDS, allow_missing=True),
        provenance=ROOT / "samples" / UNIT / "provenance.json",
    input:
        student=trained_folder,
        code=core_code("noise.py", "images.py", "solvers.py"),
        method=method_code,
    params:
        settings=method_settings,
        student=sampled_folder,
        seeds=SEEDS,
        num_samples=EVALUATION.num_samples,
        batch_size=EVALUATION.batch_size,
        folder=lambda wildcards, output: Path(output.provenance).parent,
    log:
        ROOT / "logs/sample" / f"{UNIT}.log",
    benchmark:
        ROOT / "benchmarks/sample" / f"{UNIT}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=1,
    shell:
        "{COMMAND} sample --settings {params.settings:q} --student {params.student:q} --nfe {wildcards.nfe} "
        "--seeds {params.seeds} --num-samples {params.num_samples} --batch-size {params.batch_size} "
        "--output {params.folder:q} > {log:q} 2>&1"


rule features:
    output:
        ROOT / "features" / UNIT / "features.npz",
        ROOT / "features" / UNIT / "features.json",
    input:
        samples=rules.sample.output.samples,
        code=code("evaluation/features.py"),
    params:
        options=extractor_options,
    log:
        ROOT / "logs/features" / f"{UNIT}.log",
    benchmark:
        ROOT / "benchmarks/features" / f"{UNIT}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=1,
    shell:
        "{COMMAND} features {params.options:q} --samples {input.samples:q} --output {output[0]:q} > {log:q} 2>&1"


# Samples that the user brings: one row a file.
use rule features as features_external with:
    output:
        ROOT / "features/external/{name}/features.npz",
        ROOT / "features/external/{name}/features.json",
    input:
        samples=lambda wildcards: EVALUATION.external[wildcards.name],
        code=code("evaluation/features.py"),
    wildcard_constraints:
        name=one_of(EVALUATION.external),
    log:
        ROOT / "logs/features_external/{name}.log",
    benchmark:
        ROOT / "benchmarks/features_external/{name}.tsv"


rule features_real:
    output:
        ROOT / "features/real/features.npz",
        ROOT / "features/real/features.json",
    input:
        data=ROOT / "data",
        code=code("evaluation/features.py"),
    params:
        options=extractor_options,
    log:
        ROOT / "logs/features_real.log",
    benchmark:
        ROOT / "benchmarks/features_real/features.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=1,
    shell:
        "{COMMAND} real-features {params.options:q} --data {input.data:q} --output {output[0]:q} > {log:q} 2>&1"


def teacher_samples(wildcards):
    """The teacher's samples from the same noise, for methods that are to follow it."""
    follows = EXPERIMENT.methods[wildcards.variant].follows_teacher
    return list(PLAN.samples(TEACHER_UNIT).values()) if follows else []


rule measure:
    output:
        ROOT / "measures" / f"{UNIT}.csv",
        ROOT / "measures" / f"{UNIT}.json",
    input:
        features=rules.features.output[0],
        samples=rules.sample.output.samples,
        real=rules.features_real.output[0],
        teacher=PLAN.features(TEACHER_UNIT),
        teacher_samples=teacher_samples,
        code=code("evaluation/quality.py"),
    params:
        experiment=EXPERIMENT.name,
        method=lambda wildcards: EXPERIMENT.methods[wildcards.variant].name,
        teacher=TEACHER_NAME,
    log:
        ROOT / "logs/measure" / f"{UNIT}.log",
    benchmark:
        ROOT / "benchmarks/measure" / f"{UNIT}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    shell:
        "{COMMAND} measure --experiment {params.experiment:q} --method {params.method:q} "
        "--variant {wildcards.variant:q} --nfe {wildcards.nfe} --train-seed {wildcards.train_seed} "
        "--features {input.features:q} --real {input.real:q} --teacher {input.teacher:q} "
        "--teacher-name {params.teacher:q} --samples {input.samples:q} --teacher-samples {input.teacher_samples:q} --output {output[0]:q} > {log:q} 2>&1"


rule measure_external:
    output:
        ROOT / "measures/external/{name}.csv",
        ROOT / "measures/external/{name}.json",
    input:
        features=rules.features_external.output[0],
        samples=rules.features_external.input.samples,
        real=rules.features_real.output[0],
        teacher=PLAN.features(TEACHER_UNIT),
        code=code("evaluation/quality.py"),
    params:
        experiment=EXPERIMENT.name,
        teacher=TEACHER_NAME,
    wildcard_constraints:
        name=one_of(EVALUATION.external),
    log:
        ROOT / "logs/measure_external/{name}.log",
    benchmark:
        ROOT / "benchmarks/measure_external/{name}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    shell:
        "{COMMAND} measure --experiment {params.experiment:q} --method external --variant {wildcards.name:q} "
        "--features {input.features:q} --real {input.real:q} --teacher {input.teacher:q} "
        "--teacher-name {params.teacher:q} --samples {input.samples:q} --output {output[0]:q} > {log:q} 2>&1"


# What "perfect" looks like at the test part's size.
rule measure_floor:
    output:
        ROOT / "measures/real.csv",
        ROOT / "measures/real.json",
    input:
        real=rules.features_real.output[0],
        code=code("evaluation/quality.py"),
    params:
        experiment=EXPERIMENT.name,
    log:
        ROOT / "logs/measure_floor.log",
    benchmark:
        ROOT / "benchmarks/measure_floor/real.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    shell:
        "{COMMAND} measure-floor --experiment {params.experiment:q} --real {input.real:q} "
        "--output {output[0]:q} > {log:q} 2>&1"


# Alone on the machine: everything else is a claim on the same cores.
rule speed:
    output:
        ROOT / "speed/speed.csv",
        ROOT / "speed/speed.json",
    input:
        students=sorted({str(trained_folder(unit)) for unit in PLAN.timed_units()}),
        code=core_code("solvers.py") + code("evaluation/speed.py"),
    params:
        units=canonical_json(
            [
                [unit.variant, unit.nfe, str(sampled_folder(unit)), json.loads(method_settings(unit))]
                for unit in PLAN.timed_units()
            ]
        ),
        settings=settings(EXPERIMENT.speed),
        experiment=EXPERIMENT.name,
        teacher=f"{TEACHER_UNIT.variant}:{TEACHER_UNIT.nfe}",
    log:
        ROOT / "logs/speed.log",
    benchmark:
        ROOT / "benchmarks/speed/speed.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        gpu=1,
    shell:
        "{COMMAND} speed --experiment {params.experiment:q} --units {params.units:q} --settings {params.settings:q} "
        "--teacher {params.teacher:q} --output {output[0]:q} > {log:q} 2>&1"


# The student read at all times at once, and between two noises.
rule pictures:
    output:
        ROOT / "pictures/{variant}/train-{train_seed}.npz",
    input:
        student=ROOT / "students/{variant}/train-{train_seed}",
        teacher=ROOT / "teacher",
        code=core_code("noise.py") + code("boot/trajectory.py"),
    params:
        seed=SEEDS[0],
    log:
        ROOT / "logs/pictures/{variant}/train-{train_seed}.log",
    benchmark:
        ROOT / "benchmarks/pictures/{variant}/train-{train_seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=1,
    shell:
        "{COMMAND} pictures --student {input.student:q} --teacher {input.teacher:q} --seed {params.seed} "
        "--output {output:q} > {log:q} 2>&1"
