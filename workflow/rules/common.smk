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

# What every network passes through. A stage names the modules that decide its result, so that an edit reruns that stage
# and what follows, and nothing else.
CORE = [
    "denoiser.py",
    "schedule.py",
    "teachers/folder.py",
    "teachers/weights.py",
    "conditions.py",
    "thresholding.py",
    "guidance.py",
    "runtime/memory.py",
    "runtime/processes.py",
]

# The loop that all training stages run in.
LOOP = [
    "training/loop.py",
    "training/settings.py",
    "training/average.py",
    "training/randomness.py",
    "runtime/precision.py",
    "training/sharding.py",
]

# How students of one evaluation are read.
ONE_STEP = ["student.py", "distillation/one_step.py", "distillation/sampler.py"]

# A stored teacher's network may be one of this suite's own; those that the workflow trains are `diffusers`'.
if isinstance(EXPERIMENT.teacher, StoredTeacher):
    CORE += filter(None, [own_network_file(EXPERIMENT.teacher.folder)])

# How the teacher is guided wherever it is evaluated.
GUIDANCE = "" if EXPERIMENT.teacher.guidance_scale == 1 else f"--guidance-scale {EXPERIMENT.teacher.guidance_scale}"


def core_code(*files):
    return [f"diffusion/{file}" for file in [*CORE, *files]]


def stage_code(name):
    """What runs the stage itself."""
    return [f"suite/stages/{name}.py", "suite/stages/common.py"]


def settings(model, leave_out=None):
    """A block of the configuration as one canonical text: params are compared as text."""
    return canonical_json(model.model_dump(mode="json", exclude=leave_out))


def method_settings(wildcards):
    return settings(EXPERIMENT.methods[wildcards.variant].settings)


def method_code(wildcards):
    """The method's own file and, of boot/ and baselines/, what it imports; of BOOT the whole package."""
    return [os.path.relpath(file, CHECKOUT) for file in method_files(EXPERIMENT.methods[wildcards.variant].name)]


def job(record, code, files=(), **settings):
    """What the job of a rule is asked for, as the rule's input (suite/reruns.py).

    All that decides the result is named here, beside the results among the rule's inputs; what is not, as an interval of
    logging, can change without making anything again. Each may be a function of the wildcards.

    Args:
        record: of the result, with wildcards.
        code: source files, relative to the checkout.
        files: that the user brings.
        settings: the rest, under names.
    """

    def asked(wildcards):
        def value(of):
            of = of(wildcards) if callable(of) else of
            # Blocks of the configuration come as JSON; a difference is told by the key.
            return json.loads(of) if isinstance(of, str) and of.startswith("{") else of

        modules = [file for part in code for file in (value(part) if callable(part) else [part])]
        path = Path(str(record).format(**dict(wildcards.items())))
        try:
            return RERUNS.ask(
                path, {name: value(of) for name, of in settings.items()}, modules, [str(file) for file in value(files)]
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


def measuring_code():
    modules = [
        "measure/quality.py",
        "measure/moments.py",
        "measure/reference.py",
        "measure/classifier.py",
        "measure/neighbours.py",
    ]
    shared = ["data/samples.py", "runtime/memory.py", "runtime/packages.py"]
    return (
        [f"evaluation/{file}" for file in modules] + [f"diffusion/{file}" for file in shared] + stage_code("measuring")
    )


def extraction_code(stage):
    """What decides features."""
    files = [
        "measure/features.py",
        "measure/extractor.py",
        "measure/vision_transformers.py",
        "measure/reference.py",
        "measure/moments.py",
    ]
    pictures = [
        "runtime/efficientnet.py",
        "runtime/memory.py",
        "runtime/precision.py",
        "runtime/downloads.py",
        "runtime/packages.py",
        "data/samples.py",
        "runtime/processes.py",
    ]
    return (
        [f"evaluation/{file}" for file in files]
        + [f"diffusion/{file}" for file in [*pictures, "data/store.py"]]
        + stage_code(stage)
        + ["suite/stages/references.py"]
    )


def protocol_code():
    files = [
        "measure/features.py",
        "measure/quality.py",
        "measure/moments.py",
        "measure/reference.py",
        "columns.py",
    ]
    return [f"evaluation/{file}" for file in files] + stage_code("protocols")


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
SAMPLING_CODE = (
    core_code("noise.py", "data/samples.py", "solvers.py", *ONE_STEP) + stage_code("sampling") + [method_code]
)


def quantised(wildcards):
    return ["--quantiser", wildcards.quantiser, "--nfe", *PLAN.quantised_evaluations(wildcards.variant)]
