"""The report."""


rule report:
    input:
        measures=PLAN.per_training("measures/{variant}/train-{train_seed}.csv"),
        external=expand(ROOT / "measures/external/{name}.csv", name=EVALUATION.external),
        floor=rules.measure_floor.output.table,
        speed=rules.speed.output.table,
        teacher=ROOT / "teacher",
        students=expand(
            ROOT / "students/{variant}/train-{train_seed}",
            variant=PLAN.trained_variants(),
            train_seed=EXPERIMENT.train_seeds,
        ),
        samples=PLAN.per_training("samples/{variant}/train-{train_seed}"),
        pictures=expand(
            ROOT / "pictures/{variant}/train-{train_seed}.npz",
            variant=PLAN.pictured_variants(),
            train_seed=EXPERIMENT.train_seeds[0],
        ),
        trajectory=expand(
            ROOT / "trajectory/{variant}/train-{train_seed}.csv",
            variant=PLAN.boot_variants(),
            train_seed=EXPERIMENT.train_seeds[0],
        ),
        curves=expand(
            ROOT / "learning_curves/{variant}/train-{train_seed}.csv",
            variant=PLAN.curve_variants(),
            train_seed=EXPERIMENT.train_seeds,
        ),
        neighbours=rules.neighbours.output.pictures,
        protocols=[PLAN.protocol(name) for name in EVALUATION.all_protocols],
        data=ROOT / "data",
        job=job(
            ROOT / "report" / RECORD,
            "report",
            # What the configuration is checked with decides whether there is a report, not what stands in it.
            shallow=("suite.configuration.experiment", "suite.plan"),
            others=["evaluation/results/published.yaml", "evaluation/report/templates/report.html.j2"],
            files=BROUGHT,
            config={name: part for name, part in EXPERIMENT.raw.items() if name != "results"},
            # Of the report's rows.
            order=[*EXPERIMENT.methods],
        ),
    # Without a shared file system (profiles/kubernetes), `local` makes Snakemake render the report where it runs itself.
    output:
        page=local(report(ROOT / "report/index.html", caption="../captions/page.rst", category="Report")),
        metrics=local(report(ROOT / "report/metrics.csv", caption="../captions/metrics.rst", category="Tables")),
        speed=local(report(ROOT / "report/speed.csv", caption="../captions/speed.rst", category="Tables")),
        cost=local(report(ROOT / "report/cost.csv", caption="../captions/cost.rst", category="Tables")),
        facts=local(ROOT / "report" / RECORD),
        tables=local(directory(ROOT / "report/tables")),
        figures=local(
            report(
                directory(ROOT / "report/figures"),
                patterns=["{name}.svg"],
                caption="../captions/figure.rst",
                category="Figures",
            )
        ),
    log:
        ROOT / "logs/report.log",
    benchmark:
        ROOT / "benchmarks/report/report.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=growing(8_000),
        runtime=growing(60),
    params:
        # Not sorted: the file's order is the order of the report's rows.
        config=json.dumps(EXPERIMENT.raw),
    shell:
        "python -m suite.launch 1 suite.cli report --job {input.job:q} --config {params.config:q} > {log:q} 2>&1"


# Quality alone, for a search of settings: no speed, no pictures, no page.
rule measures:
    input:
        PLAN.per_training("measures/{variant}/train-{train_seed}.csv"),
        rules.measure_floor.output.table,


# `snakemake estimate --configfile …`: what the experiment will cost, before anything runs. It makes no file.
rule estimate:
    log:
        ROOT / "logs/estimate.log",
    # It prints.
    localrule: True
    conda:
        "../../environment.yml"
    threads: workflow.cores
    resources:
        gpu=GPU,
        mem_mb=growing(8_000),
        runtime=growing(60),
    params:
        config=canonical_json(EXPERIMENT.raw),
    shell:
        "python -m suite.launch 1 suite.cli estimate --config {params.config:q} 2> {log:q}"
