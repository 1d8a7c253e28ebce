"""The report."""


rule report:
    input:
        PLAN.per_training("measures/{variant}/train-{train_seed}.csv"),
        PLAN.per_training("samples/{variant}/train-{train_seed}"),
        expand(ROOT / "measures/external/{name}.csv", name=EVALUATION.external),
        rules.measure_floor.output[0],
        rules.speed.output[0],
        rules.neighbours.output.pictures,
        ROOT / "teacher",
        ROOT / "data",
        expand(STUDENT, variant=PLAN.trained_variants(), train_seed=EXPERIMENT.train_seeds),
        expand(rules.pictures.output.pictures, variant=PLAN.pictured_variants(), train_seed=EXPERIMENT.train_seeds[0]),
        expand(rules.trajectory.output[0], variant=PLAN.boot_variants(), train_seed=EXPERIMENT.train_seeds[0]),
        expand(rules.learning_curve.output[0], variant=PLAN.curve_variants(), train_seed=EXPERIMENT.train_seeds),
        [PLAN.protocol(name) for name in EVALUATION.all_protocols],
        [*LISTS.values(), *PROMPTS.values()] if LISTS else [],
        asked=job(
            ROOT / "report" / RECORD,
            "report.Write",
            # What the configuration is checked with decides whether there is a report, not what stands in it.
            shallow=("suite.configuration.experiment", "suite.plan"),
            others=["evaluation/results/published.yaml", "evaluation/report/templates/report.html.j2"],
            files=BROUGHT,
            # With the order of the report's rows, and without where they lie.
            config=EXPERIMENT.raw | {"results": None, "methods in order": [*EXPERIMENT.methods]},
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
    resources:
        **asks(8_000, 60),
    params:
        job=told(output=ROOT / "report", config=EXPERIMENT.raw),
    shell:
        ALONE


# Quality alone, for a search of settings: no speed, no pictures, no page.
rule measures:
    input:
        PLAN.per_training("measures/{variant}/train-{train_seed}.csv"),
        rules.measure_floor.output[0],


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
        **asks(8_000, 60, gpu=GPU),
    params:
        job=told(stage="estimating.Estimate", config=EXPERIMENT.raw),
    shell:
        "python -m suite.launch 1 suite {params.job:q} 2> {log:q}"
