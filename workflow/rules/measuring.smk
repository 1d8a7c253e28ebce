"""Samples, features, quality, speed, pictures."""

TRAINED = "{variant}/train-{train_seed}"
# The classifier where samples have labels to be judged.
CLASSIFIER = [ROOT / "classifier"] if EXPERIMENT.conditional else []
TEACHER_UNIT = PLAN.teacher_unit()
CLASSIFIER_OPTION = [option for folder in CLASSIFIER for option in ("--classifier", str(folder))]
# Batches of samples, for the classifier that judges them.
JUDGE_OPTIONS = [*CLASSIFIER_OPTION, "--batch-size", EVALUATION.batch_size] if CLASSIFIER else []
TEACHER = f"{TEACHER_UNIT.variant}/train-{TEACHER_UNIT.train_seed}"
# Neighbours of tens of thousands of samples in a million pictures want all processors. Small sets are measured side by
# side.
MEASURING_THREADS = workflow.cores if EVALUATION.num_samples > 10_000 else 1


# One job a variant, for all its numbers of evaluations: starting a process costs more than sampling a small student.
rule sample:
    input:
        source=source,
        job=job(
            ROOT / "samples" / TRAINED / RECORD,
            "sampling",
            method_module,
            **SAMPLED,
            seeds=EVALUATION.seeds,
            nfe=chosen_nfe,
        ),
    output:
        directory(ROOT / "samples" / TRAINED),
    log:
        ROOT / "logs/sample" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/sample" / f"{TRAINED}.tsv"
    # What can be measured goes before what can still be trained: the teacher's own chain is the longest.
    priority: 1
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU * PROCESSES,
        processes=PROCESSES,
        mem_mb=growing(8_000),
        runtime=RESUMED_MINUTES,
    params:
        **SAMPLED,
        seeds=EVALUATION.seeds,
        state=ROOT / "state",
        quantiser=chosen_nfe,
    shell:
        "python -m suite.launch {resources.processes} suite.cli sample --job {input.job:q} --settings {params.settings:q} {params.guidance} --source {input.source:q} --seeds {params.seeds} {params.quantiser} "
        "--num-samples {params.num_samples} --batch-size {params.batch_size} --state {params.state:q} --output {output:q} > {log:q} 2>&1"


# The same samples made uint8 in another way, for protocols that ask for it.
use rule sample as sample_quantised with:
    input:
        source=source,
        job=job(
            ROOT / "quantised/{quantiser}" / TRAINED / RECORD,
            "sampling",
            method_module,
            **SAMPLED,
            seeds=PLAN.first_seed,
            quantised=quantised,
        ),
    output:
        directory(ROOT / "quantised/{quantiser}" / TRAINED),
    log:
        ROOT / "logs/sample_quantised/{quantiser}" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/sample_quantised/{quantiser}" / f"{TRAINED}.tsv"
    wildcard_constraints:
        quantiser="truncate",
    params:
        **SAMPLED,
        seeds=PLAN.first_seed,
        state=ROOT / "state",
        quantiser=quantised,


rule features:
    input:
        samples=ROOT / "samples" / TRAINED,
        job=job(
            ROOT / "features" / TRAINED / RECORD,
            "extraction",
            files=WEIGHTS_OF_MAIN,
            options=MAIN_EXTRACTION,
            sets=lambda wildcards: [*PLAN.sets(wildcards.variant, int(wildcards.train_seed))],
        ),
    output:
        directory(ROOT / "features" / TRAINED),
    log:
        ROOT / "logs/features" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/features" / f"{TRAINED}.tsv"
    priority: 1
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU * PROCESSES,
        processes=PROCESSES,
        mem_mb=growing(8_000),
        runtime=growing(2 * 60),
    params:
        options=MAIN_EXTRACTION,
        sets=lambda wildcards: sets(PLAN.sets(wildcards.variant, int(wildcards.train_seed))),
    shell:
        "python -m suite.launch {resources.processes} suite.cli features --job {input.job:q} {params.options:q} --sets {params.sets:q} --output {output:q} > {log:q} 2>&1"


# Samples that the user brings.
use rule features as features_external with:
    input:
        samples=lambda wildcards: ancient([str(file) for file in brought(wildcards).values()]),
        job=job(
            ROOT / "features/external/{name}" / RECORD,
            "extraction",
            files=lambda wildcards: [*brought(wildcards).values(), *WEIGHTS_OF_MAIN],
            options=MAIN_EXTRACTION,
            sets=lambda wildcards: {seed: str(file) for seed, file in brought(wildcards).items()},
        ),
    output:
        directory(ROOT / "features/external/{name}"),
    log:
        ROOT / "logs/features_external/{name}.log",
    benchmark:
        ROOT / "benchmarks/features_external/{name}.tsv"
    wildcard_constraints:
        name=one_of(EVALUATION.external),
    params:
        options=MAIN_EXTRACTION,
        sets=lambda wildcards: sets({f"seed-{seed}": file for seed, file in brought(wildcards).items()}),


# Features that only further protocols need; what is equal to the main one's is shared.
use rule features as further_features with:
    input:
        samples=lambda wildcards: sorted({result_with(path) for path in further_sets(wildcards).values()}),
        job=job(
            ROOT / "further_features/{extraction}/{quantiser}" / RECORD,
            "extraction",
            files=lambda wildcards: [
                *weights_of(PLAN.extractions()[wildcards.extraction]),
                *(path for path in further_sets(wildcards).values() if path in BROUGHT),
            ],
            options=lambda wildcards: extraction_options(wildcards.extraction),
            sets=lambda wildcards: [*further_sets(wildcards)],
        ),
    output:
        directory(ROOT / "further_features/{extraction}/{quantiser}"),
    log:
        ROOT / "logs/further_features/{extraction}/{quantiser}.log",
    benchmark:
        ROOT / "benchmarks/further_features/{extraction}/{quantiser}.tsv"
    wildcard_constraints:
        extraction=one_of(PLAN.extractions()),
    params:
        options=lambda wildcards: extraction_options(wildcards.extraction),
        sets=lambda wildcards: sets(further_sets(wildcards)),


# Judges the labels of class-conditional samples; other experiments do without.
rule classifier:
    input:
        data=ROOT / "data",
        job=job(
            ROOT / "classifier" / RECORD,
            "classifier",
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
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=growing(16_000),
        runtime=RESUMED_MINUTES,
    params:
        settings=settings(EVALUATION.classifier),
        state=ROOT / "state",
        batch_size=EVALUATION.batch_size,
    shell:
        "python -m suite.launch 1 suite.cli classifier --job {input.job:q} --settings {params.settings:q} --data {input.data:q} --state {params.state:q} "
        "--batch-size {params.batch_size} "
        "--output {output:q} > {log:q} 2>&1"


# The real pictures as one way from pictures to features sees them: once for all protocols that share it.
rule reference:
    input:
        data=ROOT / "data",
        job=job(
            ROOT / "references/{extraction}" / RECORD,
            "references",
            files=lambda wildcards: weights_of(PLAN.extractions()[wildcards.extraction]),
            options=lambda wildcards: extraction_options(wildcards.extraction),
        ),
    output:
        directory(ROOT / "references/{extraction}"),
    log:
        ROOT / "logs/reference/{extraction}.log",
    benchmark:
        ROOT / "benchmarks/reference/{extraction}.tsv"
    wildcard_constraints:
        extraction=one_of(PLAN.extractions()),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU * PROCESSES,
        processes=PROCESSES,
        mem_mb=growing(32_000),
        runtime=growing(4 * 60),
    params:
        options=lambda wildcards: extraction_options(wildcards.extraction),
    shell:
        "python -m suite.launch {resources.processes} suite.cli reference --job {input.job:q} {params.options:q} --data {input.data:q} --output {output:q} > {log:q} 2>&1"


rule measure:
    input:
        features=ROOT / "features" / TRAINED,
        samples=ROOT / "samples" / TRAINED,
        real=PLAN.real(),
        teacher_features=ROOT / "features" / TEACHER,
        teacher_samples=ROOT / "samples" / TEACHER,
        classifier=CLASSIFIER,
        job=job(
            ROOT / "measures" / f"{TRAINED}.json",
            "measuring",
            experiment=EXPERIMENT.name,
            method=lambda wildcards: EXPERIMENT.methods[wildcards.variant].name,
            follows=lambda wildcards: EXPERIMENT.methods[wildcards.variant].following(),
            teacher=[TEACHER, TEACHER_UNIT.nfe],
            judge=JUDGE_OPTIONS[2:],
        ),
    output:
        table=ROOT / "measures" / f"{TRAINED}.csv",
        facts=ROOT / "measures" / f"{TRAINED}.json",
    log:
        ROOT / "logs/measure" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/measure" / f"{TRAINED}.tsv"
    priority: 1
    conda:
        "../../environment.yml"
    threads: MEASURING_THREADS
    resources:
        gpu=GPU if CLASSIFIER else 0,
        mem_mb=growing(16_000),
        runtime=growing(4 * 60),
    params:
        experiment=EXPERIMENT.name,
        method=lambda wildcards: EXPERIMENT.methods[wildcards.variant].name,
        follows=lambda wildcards: ["--follows-teacher", *EXPERIMENT.methods[wildcards.variant].following()],
        teacher=f"nfe-{TEACHER_UNIT.nfe}",
        classifier=JUDGE_OPTIONS,
    shell:
        "python -m suite.launch 1 suite.cli measure --job {input.job:q} --experiment {params.experiment:q} --method {params.method:q} {params.follows} "
        "--variant {wildcards.variant:q} --train-seed {wildcards.train_seed} "
        "--features {input.features:q} --samples {input.samples:q} --real {input.real:q} "
        "--teacher-features {input.teacher_features:q}/{params.teacher} --teacher-samples {input.teacher_samples:q}/{params.teacher} {params.classifier:q} "
        "--output {output.table:q} > {log:q} 2>&1"


rule measure_external:
    input:
        features=rules.features_external.output,
        samples=lambda wildcards: ancient([str(file) for file in brought(wildcards).values()]),
        real=PLAN.real(),
        teacher_features=ROOT / "features" / TEACHER,
        teacher_samples=ROOT / "samples" / TEACHER,
        classifier=CLASSIFIER,
        job=job(
            ROOT / "measures/external/{name}.json",
            "measuring",
            files=lambda wildcards: [*brought(wildcards).values()],
            seeds=lambda wildcards: {seed: str(file) for seed, file in brought(wildcards).items()},
            nfe=lambda wildcards: EVALUATION.external[wildcards.name].nfe,
            num_samples=EVALUATION.num_samples,
            experiment=EXPERIMENT.name,
            teacher=[TEACHER, TEACHER_UNIT.nfe],
            judge=JUDGE_OPTIONS[2:],
        ),
    output:
        table=ROOT / "measures/external/{name}.csv",
        facts=ROOT / "measures/external/{name}.json",
    log:
        ROOT / "logs/measure_external/{name}.log",
    benchmark:
        ROOT / "benchmarks/measure_external/{name}.tsv"
    wildcard_constraints:
        name=one_of(EVALUATION.external),
    conda:
        "../../environment.yml"
    threads: MEASURING_THREADS
    resources:
        gpu=GPU if CLASSIFIER else 0,
        mem_mb=growing(16_000),
        runtime=growing(4 * 60),
    params:
        experiment=EXPERIMENT.name,
        seeds=lambda wildcards: [*brought(wildcards)],
        nfe=lambda wildcards: ["--nfe", nfe] if (nfe := EVALUATION.external[wildcards.name].nfe) else "",
        num_samples=EVALUATION.num_samples,
        teacher=f"nfe-{TEACHER_UNIT.nfe}",
        classifier=JUDGE_OPTIONS,
    shell:
        "python -m suite.launch 1 suite.cli measure --job {input.job:q} --experiment {params.experiment:q} --method external --variant {wildcards.name:q} "
        "--features {input.features:q} --samples {input.samples:q} --seeds {params.seeds} {params.nfe} --num-samples {params.num_samples} --real {input.real:q} "
        "--teacher-features {input.teacher_features:q}/{params.teacher} --teacher-samples {input.teacher_samples:q}/{params.teacher} {params.classifier:q} "
        "--output {output.table:q} > {log:q} 2>&1"


# What "perfect" looks like at the test part's size.
rule measure_floor:
    input:
        real=PLAN.real(),
        classifier=CLASSIFIER,
        job=job(
            ROOT / "measures/real.json",
            "measuring",
            experiment=EXPERIMENT.name,
            num_samples=EVALUATION.num_samples,
            labels=bool(CLASSIFIER),
        ),
    output:
        table=ROOT / "measures/real.csv",
        facts=ROOT / "measures/real.json",
    log:
        ROOT / "logs/measure_floor.log",
    benchmark:
        ROOT / "benchmarks/measure_floor/real.tsv"
    conda:
        "../../environment.yml"
    threads: MEASURING_THREADS
    resources:
        mem_mb=growing(16_000),
        runtime=growing(4 * 60),
    params:
        experiment=EXPERIMENT.name,
        num_samples=EVALUATION.num_samples,
        classifier=CLASSIFIER_OPTION,
    shell:
        "python -m suite.launch 1 suite.cli measure-floor --job {input.job:q} --experiment {params.experiment:q} --num-samples {params.num_samples} --real {input.real:q} "
        "{params.classifier:q} "
        "--output {output.table:q} > {log:q} 2>&1"


# One and the same samples under one protocol.
rule protocol:
    input:
        features=lambda wildcards: protocol_features(wildcards),
        reference=lambda wildcards: PLAN.real(wildcards.protocol),
        given=lambda wildcards: ancient(given_reference(wildcards)),
        job=job(
            ROOT / "protocols/{protocol}.json",
            "protocols",
            files=lambda wildcards: [
                *given_reference(wildcards),
                *weights_of(EVALUATION.all_protocols[wildcards.protocol]),
            ],
            experiment=EXPERIMENT.name,
            options=lambda wildcards: protocol_options(EVALUATION.all_protocols[wildcards.protocol]),
            rows=rows_of,
            seed=PLAN.first_seed,
        ),
    output:
        table=ROOT / "protocols/{protocol}.csv",
        facts=ROOT / "protocols/{protocol}.json",
    log:
        ROOT / "logs/protocol/{protocol}.log",
    benchmark:
        ROOT / "benchmarks/protocol/{protocol}.tsv"
    wildcard_constraints:
        protocol=one_of(EVALUATION.all_protocols),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=growing(16_000),
        runtime=growing(4 * 60),
    params:
        experiment=EXPERIMENT.name,
        options=lambda wildcards: protocol_options(EVALUATION.all_protocols[wildcards.protocol]),
        rows=lambda wildcards: json.dumps(
            [
                [*row.identity, row.seed, str(PLAN.features_under(row, wildcards.protocol))]
                for row in PLAN.shown(wildcards.protocol)
            ]
        ),
        seed=PLAN.first_seed,
    shell:
        "python -m suite.launch 1 suite.cli protocol --job {input.job:q} --experiment {params.experiment:q} --name {wildcards.protocol:q} {params.options:q} "
        "--rows {params.rows:q} --seed {params.seed} --reference {input.reference:q} --output {output.table:q} > {log:q} 2>&1"


# Quality against what training cost: the last student at its snapshots and at the end.
rule learning_curve:
    input:
        students=ROOT / "students/{variant}/train-{train_seed}",
        real=PLAN.real(),
        teacher_samples=ROOT / "samples" / TEACHER,
        job=job(
            ROOT / "learning_curves/{variant}/train-{train_seed}.json",
            "learning_curve",
            method_module,
            files=WEIGHTS_OF_MAIN,
            options=MAIN_EXTRACTION,
            settings=method_settings,
            teacher=[TEACHER, TEACHER_UNIT.nfe],
            seed=PLAN.first_seed,
            num_samples=EVALUATION.num_samples,
        ),
    output:
        table=ROOT / "learning_curves/{variant}/train-{train_seed}.csv",
        facts=ROOT / "learning_curves/{variant}/train-{train_seed}.json",
    log:
        ROOT / "logs/learning_curve/{variant}/train-{train_seed}.log",
    benchmark:
        ROOT / "benchmarks/learning_curve/{variant}/train-{train_seed}.tsv"
    wildcard_constraints:
        variant=one_of(PLAN.curve_variants()),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=growing(16_000),
        runtime=growing(8 * 60),
    params:
        options=MAIN_EXTRACTION,
        settings=method_settings,
        teacher=f"nfe-{TEACHER_UNIT.nfe}",
        seed=PLAN.first_seed,
        num_samples=EVALUATION.num_samples,
    shell:
        "python -m suite.launch 1 suite.cli learning-curve --job {input.job:q} {params.options:q} --settings {params.settings:q} --variant {wildcards.variant:q} "
        "--train-seed {wildcards.train_seed} --students {input.students:q} --real {input.real:q} "
        "--teacher-samples {input.teacher_samples:q}/{params.teacher} --seed {params.seed} "
        "--num-samples {params.num_samples} --output {output.table:q} > {log:q} 2>&1"


# Alone on the machine: everything else is a claim on the same cores.
rule speed:
    input:
        sources=sorted({str(source(unit)) for unit in PLAN.timed_units()}),
        job=job(
            ROOT / "speed/speed.json",
            "speed",
            *sorted({method_module(unit) for unit in PLAN.timed_units()}),
            units=[
                [unit.variant, unit.nfe, unit.train_seed, json.loads(method_settings(unit))]
                for unit in PLAN.timed_units()
            ],
            settings=settings(EXPERIMENT.speed),
            experiment=EXPERIMENT.name,
            guidance=GUIDANCE,
        ),
    output:
        table=ROOT / "speed/speed.csv",
        facts=ROOT / "speed/speed.json",
    log:
        ROOT / "logs/speed.log",
    benchmark:
        ROOT / "benchmarks/speed/speed.tsv"
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        gpu=GPU,
        mem_mb=growing(16_000),
        runtime=growing(4 * 60),
    params:
        units=canonical_json(
            [
                [unit.variant, unit.nfe, str(source(unit)), json.loads(method_settings(unit))]
                for unit in PLAN.timed_units()
            ]
        ),
        settings=settings(EXPERIMENT.speed),
        experiment=EXPERIMENT.name,
        guidance=GUIDANCE,
    shell:
        "python -m suite.launch 1 suite.cli speed --job {input.job:q} --experiment {params.experiment:q} --units {params.units:q} --settings {params.settings:q} "
        "{params.guidance} --output {output.table:q} > {log:q} 2>&1"


# The student read at all times at once, and between two noises.
rule pictures:
    input:
        student=ROOT / "students/{variant}/train-{train_seed}",
        teacher=ROOT / "teacher",
        job=job(
            ROOT / "pictures/{variant}/train-{train_seed}.json",
            "pictures",
            seed=PLAN.first_seed,
            batch_size=EVALUATION.batch_size,
            guidance=GUIDANCE,
        ),
    output:
        pictures=ROOT / "pictures/{variant}/train-{train_seed}.npz",
        facts=ROOT / "pictures/{variant}/train-{train_seed}.json",
    log:
        ROOT / "logs/pictures/{variant}/train-{train_seed}.log",
    benchmark:
        ROOT / "benchmarks/pictures/{variant}/train-{train_seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=growing(8_000),
        runtime=growing(60),
    params:
        seed=PLAN.first_seed,
        guidance=GUIDANCE,
        batch_size=EVALUATION.batch_size,
    shell:
        "python -m suite.launch 1 suite.cli pictures --job {input.job:q} --student {input.student:q} --teacher {input.teacher:q} {params.guidance} "
        "--seed {params.seed} --batch-size {params.batch_size} --output {output.pictures:q} > {log:q} 2>&1"


# Does the student learn the trajectory? Its error at every time, beside the teacher's own DDIM.
rule trajectory:
    input:
        student=ROOT / "students/{variant}/train-{train_seed}",
        teacher=ROOT / "teacher",
        job=job(
            ROOT / "trajectory/{variant}/train-{train_seed}.json",
            "trajectory",
            seed=PLAN.first_seed,
            noises=EVALUATION.trajectory_noises,
            batch_size=EVALUATION.batch_size,
            guidance=GUIDANCE,
            target=lambda wildcards: EXPERIMENT.methods[wildcards.variant].settings.target,
        ),
    output:
        table=ROOT / "trajectory/{variant}/train-{train_seed}.csv",
        facts=ROOT / "trajectory/{variant}/train-{train_seed}.json",
    log:
        ROOT / "logs/trajectory/{variant}/train-{train_seed}.log",
    benchmark:
        ROOT / "benchmarks/trajectory/{variant}/train-{train_seed}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=growing(8_000),
        runtime=growing(60),
    params:
        seed=PLAN.first_seed,
        guidance=GUIDANCE,
        target=lambda wildcards: EXPERIMENT.methods[wildcards.variant].settings.target,
        noises=EVALUATION.trajectory_noises,
        batch_size=EVALUATION.batch_size,
    shell:
        "python -m suite.launch 1 suite.cli trajectory --job {input.job:q} --student {input.student:q} --teacher {input.teacher:q} {params.guidance} --target {params.target} --seed {params.seed} "
        "--noises {params.noises} --batch-size {params.batch_size} "
        "--output {output.table:q} > {log:q} 2>&1"


# Would a student that repeats its training pictures be seen?
rule neighbours:
    input:
        samples=[result_with(row.samples) for row in PLAN.shown()],
        features=[PLAN.features_folder(row) for row in PLAN.shown()],
        real=PLAN.real(),
        data=ROOT / "data",
        job=job(
            ROOT / "neighbours/neighbours.json",
            "neighbours",
            files=[row.samples for row in PLAN.shown() if row.own is None],
            rows=[row.identity for row in PLAN.shown()],
            labels=EXPERIMENT.labels,
            seed=PLAN.first_seed,
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
        mem_mb=growing(16_000),
        runtime=growing(2 * 60),
    params:
        rows=json.dumps([[row.label, str(row.samples), str(PLAN.features_under(row))] for row in PLAN.shown()]),
    shell:
        "python -m suite.launch 1 suite.cli neighbours --job {input.job:q} --rows {params.rows:q} --real {input.real:q} --data {input.data:q} "
        "--output {output.pictures:q} > {log:q} 2>&1"
