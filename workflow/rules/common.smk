"""Helpers of the rules."""

# Jobs end when this process has gone. `python` in the rules is the interpreter that runs Snakemake, also where its
# environment has not been activated.
PREFIX = f"export {WORKFLOW}={os.getpid()}; "
if shutil.which("python") != sys.executable:
    PREFIX += f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
# Snakemake reads {name} in it.
shell.prefix(PREFIX.replace("{", "{{").replace("}", "}}"))

# A job that runs a network claims the accelerator; without one, the cores alone decide what runs side by side.
GPU = int(DEVICE.type == "cuda")

# Jobs can share their batches over several processes, one a card (docs/scale.md). The number is no part of what a
# result is: it is a resource, whose change makes nothing again.
PROCESSES = os.environ.get("BOOT_PROCESSES", "1")
if not PROCESSES.isdecimal() or int(PROCESSES) < 1:
    raise WorkflowError(f"BOOT_PROCESSES: found {PROCESSES!r}, expected a number of processes, 1 or more.")
PROCESSES = int(PROCESSES)

# Who else is told of losses (suite/trackers.py); no part of what a result is, either.
try:
    wanted_trackers()
except UserError as error:
    raise WorkflowError(str(error)) from error


def processes(wildcards):
    return PLAN.processes(wildcards.variant, PROCESSES)


# What jobs ask of a cluster: memory in MB, time in minutes. One machine counts neither, unless told to by --resources.
# A job that was killed for want of either gets as much again, twice. Not for ever: why it was killed nobody says, and a
# trainer whose time ends again and again would come to ask for more memory than a node has.
def growing(amount):
    return lambda wildcards, attempt: amount * min(attempt, 3)


# Not so the time of jobs that go on where they were stopped: the next attempt has less to do.
RESUMED_MINUTES = 24 * 60

# How the teacher is guided wherever it is evaluated.
GUIDANCE = "" if EXPERIMENT.teacher.guidance_scale == 1 else f"--guidance-scale {EXPERIMENT.teacher.guidance_scale}"


def settings(model, leave_out=None):
    """A block of the configuration as one canonical text: params are compared as text."""
    return canonical_json(model.model_dump(mode="json", exclude=leave_out))


def method_settings(wildcards):
    return settings(EXPERIMENT.methods[wildcards.variant].settings)


def method_module(wildcards):
    """The module of a variant's method, which the stage imports by its name."""
    return method_modules()[EXPERIMENT.methods[wildcards.variant].name]


def job(record, *modules, files=(), shallow=(), others=(), **settings):
    """What the job of a rule is asked for, as the rule's input (suite/reruns.py).

    All that decides the result is named here, beside the results among the rule's inputs; what is not, as an interval of
    logging, can change without making anything again. Each may be a function of the wildcards.

    Args:
        record: of the result, with wildcards.
        modules: the stage's, under suite/stages, and what it imports by a name in a variable (the method's); all that
            they import counts.
        files: that the user brings.
        shallow: modules whose imports do not count.
        others: files of the checkout beside modules.
        settings: the rest, under names.
    """

    def asked(wildcards):
        def value(of):
            of = of(wildcards) if callable(of) else of
            # Blocks of the configuration come as JSON; a difference is told by the key.
            return json.loads(of) if isinstance(of, str) and of.startswith("{") else of

        named = [part(wildcards) if callable(part) else part for part in modules]
        code = source_files(closure(*(n if "." in n else f"suite.stages.{n}" for n in named), shallow=shallow))
        path = Path(str(record).format(**dict(wildcards.items())))
        try:
            return RERUNS.ask(
                path,
                {name: value(of) for name, of in settings.items()},
                [*code, *others],
                [str(file) for file in value(files)],
            )
        except UserError as error:
            sys.exit(f"error: {error}")  # of an exception Snakemake prints the traceback

    return asked


def rows_of(wildcards):
    """The rows that a protocol is measured of, without the paths of their files."""
    return [row.identity for row in PLAN.shown(wildcards.protocol)]


BROUGHT = [file for samples in EVALUATION.external.values() for file in samples.files.values()]


def result_with(samples):
    """What has a file of samples: a whole folder, which rules make; the user's are as they are."""
    return ancient(str(samples)) if samples in BROUGHT else str(samples.parents[1])


def one_of(names):
    """A wildcard constraint that matches these names only, and nothing if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def source(wildcards):
    return PLAN.source(wildcards.variant, int(wildcards.train_seed))


def own_weights(protocol):
    """Where the user's weights of a protocol's extractor lie."""
    return {
        name: path for name, path in EVALUATION.weights.items() if name.removesuffix("-clean-fid") == protocol.features
    }


def weights_of(protocol):
    return [*own_weights(protocol).values()]


def protocol_options(protocol):
    """A protocol and what its extractor needs."""
    options = ["--protocol", settings(protocol), "--batch-size", str(EVALUATION.batch_size)]
    own = own_weights(protocol)
    return [*options, "--weights", canonical_json(own)] if own else options


def extraction_options(extraction):
    """The same for features alone, in which the rest of a protocol has no part."""
    rest = {"quantiser": "round", "reference": "train", "reference_sha256": None, "num_samples": None}
    return protocol_options(PLAN.extractions()[extraction].model_copy(update=rest))


MAIN_EXTRACTION = extraction_options(EVALUATION.all_protocols[MAIN].extraction)
WEIGHTS_OF_MAIN = weights_of(EVALUATION.all_protocols[MAIN])


def sets(named):
    """Samples by the names of their features."""
    return canonical_json({name: str(path) for name, path in named.items()})


def brought(wildcards):
    """The user's samples of a row: sampling seed to file."""
    return EVALUATION.external[wildcards.name].files


def further_sets(wildcards):
    return PLAN.further_extractions()[wildcards.extraction, wildcards.quantiser]


def protocol_features(wildcards):
    """The folders of the features that a protocol measures."""
    return sorted({str(PLAN.features_folder(row, wildcards.protocol)) for row in PLAN.shown(wildcards.protocol)})


def given_reference(wildcards):
    """The file that a protocol measures against, where it does."""
    protocol = EVALUATION.all_protocols[wildcards.protocol]
    return [protocol.reference] if protocol.reference_is_file else []


def chosen_nfe(wildcards):
    """The numbers of evaluations to sample with, where they are not all that the method has."""
    if wildcards.variant not in EVALUATION.nfe:
        return ""
    return ["--nfe", *EVALUATION.sampled(wildcards.variant, EXPERIMENT.methods[wildcards.variant])]


SAMPLED = {
    "settings": method_settings,
    # A student has learnt it.
    "guidance": lambda wildcards: "" if EXPERIMENT.methods[wildcards.variant].trains else GUIDANCE,
    "num_samples": EVALUATION.num_samples,
    "batch_size": EVALUATION.batch_size,
}


def quantised(wildcards):
    return ["--quantiser", wildcards.quantiser, "--nfe", *PLAN.quantised_evaluations(wildcards.variant)]
