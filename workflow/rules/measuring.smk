"""Samples, features, quality, speed, pictures."""

TRAINED = "{variant}/train-{train_seed}"
TEACHER_UNIT = PLAN.teacher_unit()
TEACHER = f"{TEACHER_UNIT.variant}/train-{TEACHER_UNIT.train_seed}"


def source(wildcards):
    return PLAN.source(wildcards.variant, int(wildcards.train_seed))


def extractor_options(wildcards):
    options = ["--extractor", EVALUATION.features, "--batch-size", str(EVALUATION.batch_size)]
    if EVALUATION.inception_weights:
        options += ["--inception-weights", EVALUATION.inception_weights]
    if EVALUATION.cleanfid_inception_weights:
        options += ["--cleanfid-inception-weights", EVALUATION.cleanfid_inception_weights]
    return options


# One job a variant, for all its numbers of evaluations: starting a process costs more than sampling a small student.
rule sample:
    output:
        directory(ROOT / "samples" / TRAINED),
    input:
        source=source,
        code=core_code("noise.py", "images.py", "solvers.py"),
        method=method_code,
    params:
        settings=method_settings,
        seeds=EVALUATION.seeds,
        num_samples=EVALUATION.num_samples,
        batch_size=EVALUATION.batch_size,
    log:
        ROOT / "logs/sample" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/sample" / f"{TRAINED}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU,
    shell:
        "{COMMAND} sample --settings {params.settings:q} --source {input.source:q} --seeds {params.seeds} "
        "--num-samples {params.num_samples} --batch-size {params.batch_size} --output {output:q} > {log:q} 2>&1"


rule features:
    output:
        ROOT / "features" / f"{TRAINED}.npz",
        ROOT / "features" / f"{TRAINED}.json",
    input:
        samples=ROOT / "samples" / TRAINED,
        code=code("evaluation/features.py"),
    params:
        options=extractor_options,
    log:
        ROOT / "logs/features" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/features" / f"{TRAINED}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU,
    shell:
        "{COMMAND} features {params.options:q} --samples {input.samples:q} --output {output[0]:q} > {log:q} 2>&1"


# Samples that the user brings: one row a file.
use rule features as features_external with:
    output:
        ROOT / "features/external/{name}.npz",
        ROOT / "features/external/{name}.json",
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
        ROOT / "features/real.npz",
        ROOT / "features/real.json",
    input:
        data=ROOT / "data",
        code=code("evaluation/features.py"),
    params:
        options=extractor_options,
    log:
        ROOT / "logs/features_real.log",
    benchmark:
        ROOT / "benchmarks/features_real/real.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU,
    shell:
        "{COMMAND} real-features {params.options:q} --data {input.data:q} --output {output[0]:q} > {log:q} 2>&1"


rule measure:
    output:
        ROOT / "measures" / f"{TRAINED}.csv",
        ROOT / "measures" / f"{TRAINED}.json",
    input:
        features=ROOT / "features" / f"{TRAINED}.npz",
        samples=ROOT / "samples" / TRAINED,
        real=rules.features_real.output[0],
        teacher_features=ROOT / "features" / f"{TEACHER}.npz",
        teacher_samples=ROOT / "samples" / TEACHER,
        code=code("evaluation/quality.py"),
    params:
        experiment=EXPERIMENT.name,
        method=lambda wildcards: EXPERIMENT.methods[wildcards.variant].name,
        follows=lambda wildcards: (
            "--follows-teacher" if EXPERIMENT.methods[wildcards.variant].follows_teacher else ""
        ),
        teacher=f"nfe-{TEACHER_UNIT.nfe}",
    log:
        ROOT / "logs/measure" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/measure" / f"{TRAINED}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    shell:
        "{COMMAND} measure --experiment {params.experiment:q} --method {params.method:q} {params.follows} "
        "--variant {wildcards.variant:q} --train-seed {wildcards.train_seed} "
        "--features {input.features:q} --samples {input.samples:q} --real {input.real:q} "
        "--teacher-features {input.teacher_features:q} --teacher-samples {input.teacher_samples:q}/{params.teacher} "
        "--output {output[0]:q} > {log:q} 2>&1"


rule measure_external:
    output:
        ROOT / "measures/external/{name}.csv",
        ROOT / "measures/external/{name}.json",
    input:
        features=rules.features_external.output[0],
        samples=rules.features_external.input.samples,
        real=rules.features_real.output[0],
        teacher_features=ROOT / "features" / f"{TEACHER}.npz",
        teacher_samples=ROOT / "samples" / TEACHER,
        code=code("evaluation/quality.py"),
    params:
        experiment=EXPERIMENT.name,
        teacher=f"nfe-{TEACHER_UNIT.nfe}",
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
        "--features {input.features:q} --samples {input.samples:q} --real {input.real:q} "
        "--teacher-features {input.teacher_features:q} --teacher-samples {input.teacher_samples:q}/{params.teacher} "
        "--output {output[0]:q} > {log:q} 2>&1"


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
        sources=sorted({str(source(unit)) for unit in PLAN.timed_units()}),
        code=core_code("solvers.py") + code("evaluation/speed.py"),
    params:
        units=canonical_json(
            [
                [unit.variant, unit.nfe, str(source(unit)), json.loads(method_settings(unit))]
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
        gpu=GPU,
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
        seed=EVALUATION.seeds[0],
    log:
        ROOT / "logs/pictures/{variant}/train-{train_seed}.log",
    benchmark:
        ROOT / "benchmarks/pictures/{variant}/train-{train_seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU,
    shell:
        "{COMMAND} pictures --student {input.student:q} --teacher {input.teacher:q} --seed {params.seed} "
        "--output {output:q} > {log:q} 2>&1"
