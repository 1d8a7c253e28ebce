"""Samples, and features of images."""

# What cuts texts into tokens: of a teacher that is trained here, before it is there.
TOKENIZER = EXPERIMENT.teacher.text if EXPERIMENT.trains_teacher else None


# Lists of prompts, without an image. Before the teacher is trained, so that what is wrong with them is seen by then.
rule texts:
    input:
        **({} if TOKENIZER else {"teacher": ROOT / "teacher"}),
        asked=job(
            ROOT / "texts" / RECORD,
            "prompts.Collect",
            files=[*EXPERIMENT.prompts.paths().values()],
            settings=settings(EXPERIMENT.prompts, leave_out={"cache"}),
            several={"max_tokens": TOKENIZER.max_tokens} if TOKENIZER else {},
        ),
    output:
        directory(ROOT / "texts"),
    log:
        ROOT / "logs/texts.log",
    benchmark:
        ROOT / "benchmarks/texts/texts.tsv"
    priority: 4
    conda:
        "../../environment.yml"
    resources:
        **asks(8_000, 60),
    params:
        job=told(tokenizer=lambda wildcards: TOKENIZER and TOKENIZER.folder()),
    shell:
        ALONE


# Texts that samples are drawn of, read by the teacher's encoder: captions of the test part, or a list. No student is
# trained with them.
rule prompts:
    input:
        **LISTS,
        **({"data": ROOT / "data"} if EXPERIMENT.prompts.evaluates_captions else CAPTIONS),
        teacher=ROOT / "teacher",
        asked=job(ROOT / "prompts" / RECORD, "prompts.Encode", **ENLARGED),
    output:
        directory(ROOT / "prompts"),
    log:
        ROOT / "logs/prompts.log",
    benchmark:
        ROOT / "benchmarks/prompts/prompts.tsv"
    priority: 1
    conda:
        "../../environment.yml"
    resources:
        **asks(16_000, 60, gpu=GPU),
    params:
        job=told(low_resolution=LOW.path if LOW else None),
    shell:
        ALONE


# Those that students are trained with.
use rule prompts as training_prompts with:
    input:
        **LISTS,
        **CAPTIONS,
        teacher=ROOT / "teacher",
        asked=job(
            ROOT / "training_prompts" / RECORD,
            "prompts.Encode",
            part="train",
            cache=EXPERIMENT.prompts.cache,
            **ENLARGED,
        ),
    output:
        directory(ROOT / "training_prompts"),
    log:
        ROOT / "logs/training_prompts.log",
    benchmark:
        ROOT / "benchmarks/training_prompts/training_prompts.tsv"
    # Students wait for it.
    priority: 3


# One job a variant, for all its numbers of evaluations: starting a process costs more than sampling a small student.
rule sample:
    input:
        **PROMPTS,
        source=source,
        asked=sampled(ROOT / "samples" / TRAINED / RECORD, seeds=EVALUATION.seeds, nfe=chosen_nfe),
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
    resources:
        **shared(8_000, RESUMED),
    params:
        job=told(state=STATE),
    shell:
        TOGETHER


# The same samples made uint8 in another way, for protocols that ask for it.
use rule sample as sample_quantised with:
    input:
        **PROMPTS,
        source=source,
        asked=sampled(
            ROOT / "quantised/{quantiser}" / TRAINED / RECORD,
            seeds=[PLAN.first_seed],
            nfe=lambda wildcards: PLAN.quantised_evaluations(wildcards.variant),
            quantiser=wildcard("quantiser"),
        ),
    output:
        directory(ROOT / "quantised/{quantiser}" / TRAINED),
    log:
        ROOT / "logs/sample_quantised/{quantiser}" / f"{TRAINED}.log",
    benchmark:
        ROOT / "benchmarks/sample_quantised/{quantiser}" / f"{TRAINED}.tsv"
    wildcard_constraints:
        quantiser="truncate",


# Of the sets of samples their names decide, and the samples, which are inputs.
rule features:
    input:
        ROOT / "samples" / TRAINED,
        asked=job(
            ROOT / "features" / TRAINED / RECORD,
            "extraction.Extract",
            files=WEIGHTS_OF_MAIN,
            several=under(MAIN_EXTRACTION),
            sets=lambda wildcards: [*variant_sets(wildcards)],
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
    resources:
        **shared(8_000, 2 * 60),
    params:
        job=told(sets=variant_sets),
    shell:
        TOGETHER


# Samples that the user brings.
use rule features as features_external with:
    input:
        lambda wildcards: ancient([*brought(wildcards).values()]),
        asked=job(
            ROOT / "features/external/{name}" / RECORD,
            "extraction.Extract",
            files=lambda wildcards: [*brought(wildcards).values(), *WEIGHTS_OF_MAIN],
            several=under(MAIN_EXTRACTION),
            sets=brought,
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
        job=told(sets=lambda wildcards: {f"seed-{seed}": file for seed, file in brought(wildcards).items()}),


# Features that only further protocols need; what is equal to the main one's is shared.
use rule features as further_features with:
    input:
        lambda wildcards: sorted({result_with(path) for path in further_sets(wildcards).values()}),
        asked=job(
            ROOT / "further_features/{extraction}/{quantiser}" / RECORD,
            "extraction.Extract",
            files=lambda wildcards: [
                *weights_of_extraction(wildcards),
                *(path for path in further_sets(wildcards).values() if path in BROUGHT),
            ],
            several=lambda wildcards: under(extraction(wildcards.extraction)),
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
        job=told(sets=further_sets),


# The real pictures as one way from pictures to features sees them: once for all protocols that share it.
rule reference:
    input:
        data=ROOT / "data",
        asked=job(
            ROOT / "references/{extraction}" / RECORD,
            "references.Extract",
            files=weights_of_extraction,
            several=lambda wildcards: under(extraction(wildcards.extraction)),
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
    resources:
        **shared(32_000, 4 * 60),
    params:
        job=told(),
    shell:
        TOGETHER
