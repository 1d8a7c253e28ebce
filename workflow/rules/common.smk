"""What rules share: how a job is described, started, and what it asks of a machine."""

# Jobs end when this process has gone. `python` in the rules is the interpreter that runs Snakemake, also where its
# environment has not been activated.
PREFIX = f"export {WORKFLOW}={os.getpid()}; "
if shutil.which("python") != sys.executable:
    PREFIX += f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
# Snakemake reads {name} in it.
shell.prefix(PREFIX.replace("{", "{{").replace("}", "}}"))

# A job is told all in one JSON (suite/job.py). It is one process, or several that share their batches.
ALONE = "python -m suite.launch 1 suite {params.job:q} > {log:q} 2>&1"
TOGETHER = "python -m suite.launch {resources.processes} suite {params.job:q} > {log:q} 2>&1"

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
RESUMED = 24 * 60


def asks(mem_mb, minutes, **others):
    """A rule's resources."""
    return {"mem_mb": growing(mem_mb), "runtime": minutes if minutes == RESUMED else growing(minutes), **others}


def shared(mem_mb, minutes):
    """Of a job that shares its batches over all processes, each with a card."""
    return asks(mem_mb, minutes, gpu=GPU * PROCESSES, processes=PROCESSES)


def table(*path):
    """A result of two files: a table, and its record."""
    return multiext(str(ROOT.joinpath(*path)), ".csv", ".json")


def of(value, wildcards):
    return value(wildcards) if callable(value) else value


def wildcard(name):
    return lambda wildcards: wildcards[name]


def job(record, stage, *modules, files=(), shallow=(), others=(), several=(), **settings):
    """What the job of a rule is asked for, as the rule's input `asked` (suite/reruns.py).

    All that decides the result is named here, beside the results among the rule's inputs; what is not, as an interval of
    logging, can change without making anything again. Each may be a function of the wildcards.

    Args:
        record: of the result, with wildcards.
        stage: "module.Class" in suite/jobs; all that the module imports counts.
        modules: what it imports by a name in a variable (the method's).
        files: that the user brings.
        shallow: modules whose imports do not count.
        others: files of the checkout beside modules.
        settings: fields of the job, by name.
        several: more of them at once.
    """

    def asked(wildcards):
        named = [f"suite.jobs.{stage.partition('.')[0]}", *(of(module, wildcards) for module in modules)]
        path = Path(str(record).format(**dict(wildcards.items())))
        fields = {name: of(value, wildcards) for name, value in settings.items()}
        try:
            code = closure(*named, shallow=shallow)
            code |= closure(FAMILY) if families.__name__ in code else set()
            return RERUNS.ask(
                path,
                {"stage": stage, **fields, **dict(of(several, wildcards))},
                [*source_files(code), *others],
                [str(file) for file in of(files, wildcards)],
            )
        except UserError as error:
            sys.exit(f"error: {error}")  # of an exception Snakemake prints the traceback

    return asked


def told(**rest):
    """The one JSON of a rule's command: `asked`, and where the files of the rule's named inputs and its output lie.

    Args:
        rest: further fields that do not decide the result, or those of `job` with the paths that they lack there; each
            may be a function of the wildcards. None is left out.
    """

    def text(wildcards, input, output):
        fields = {name: files if isinstance(files, str) else [*files] for name, files in input.items()}
        fields |= {"output": output[0]} if output else {}
        fields |= {name: found for name, value in rest.items() if (found := of(value, wildcards)) is not None}
        return json.dumps(fields, default=str)  # not sorted: the order of variants is that of the report

    return text


def settings(model, leave_out=None):
    """A block of the configuration."""
    return model.model_dump(mode="json", exclude=leave_out)


def method_settings(wildcards):
    return settings(EXPERIMENT.methods[wildcards.variant].settings)


def of_trained(wildcards):
    return EXPERIMENT.methods[wildcards.variant].trains


def guidance_scale(wildcards):
    """Of the teacher, as the variant's method evaluates it or has learnt it."""
    return EXPERIMENT.methods[wildcards.variant].guidance.scale


def evaluated_scale(wildcards):
    """The same as a number: a student that is told the scale is evaluated at the teacher's."""
    method = EXPERIMENT.methods[wildcards.variant]
    return method.sampled_at if method.guidance.drawn else method.guidance.scale


def sampled_scale(wildcards):
    """What a sampler is told of it: of other students nothing, for they have learnt it."""
    learnt = of_trained(wildcards) and not EXPERIMENT.methods[wildcards.variant].guidance.drawn
    return 1.0 if learnt else evaluated_scale(wildcards)


def method_module(wildcards):
    """The module of a variant's method, which the job imports by its name."""
    return method_modules()[EXPERIMENT.methods[wildcards.variant].name]


# The module of the teacher's family, which jobs find by the name of its network.
FAMILY = type(EXPERIMENT.teacher.family).__module__
# How the teacher is guided wherever it is evaluated.
GUIDANCE = EXPERIMENT.teacher.guidance_scale
EMBEDDED = {"guidance_embedded": True} if EXPERIMENT.teacher.guidance.embedded else {}
# Where the user's images are: of them the content counts.
BROUGHT = [file for samples in EVALUATION.external.values() for file in samples.files.values()]
TRAINED = "{variant}/train-{train_seed}"
# The texts that samples are drawn of, of a teacher that is told texts.
PROMPTS = {"prompts": ROOT / "prompts"} if EXPERIMENT.told == "text" else {}
# What an autoencoder made of the training images, of a teacher whose states are latents, for those that train on them.
LATENTS = {"latents": ROOT / "latents"} if EXPERIMENT.is_latent else {}
# The autoencoder that is trained here; a stored teacher has its own.
AUTOENCODER = {"autoencoder": ROOT / "autoencoder"} if EXPERIMENT.is_latent and EXPERIMENT.trains_teacher else {}
# Where texts are not the data set's captions alone: their lists; and those that students are trained with, under the
# unconditional input of guidance, where they are not in the teacher's folder: of a stock pipeline the captions, too.
LISTS = {} if EXPERIMENT.prompts.only_captions else {"texts": ROOT / "texts"}
CAPTIONS = {"data": ROOT / "data"} if EXPERIMENT.encodes_captions else {}
OWN_PROMPTS = CAPTIONS or EXPERIMENT.prompts.negative or not EXPERIMENT.prompts.trains_on_captions
TRAINING_PROMPTS = {"prompts": ROOT / "training_prompts"} if OWN_PROMPTS else {}
# A student of the stage before, whose images a teacher of a cascade enlarges: its files, and where they lie.
LOW = None if EXPERIMENT.trains_teacher else EXPERIMENT.teacher.low_resolution
ENLARGED = {"files": deciding_files(Path(LOW.path)), "noise_level": LOW.noise_level} if LOW else {}
STUDENT = ROOT / "students" / TRAINED
# Where jobs leave what an interrupted one goes on with.
STATE = ROOT / "state"


def one_of(names):
    """A wildcard constraint that matches these names only, and nothing if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def source(wildcards):
    return PLAN.source(wildcards.variant, int(wildcards.train_seed))


def result_with(samples):
    """What has a file of samples: a whole folder, which rules make; the user's are as they are."""
    return ancient(str(samples)) if samples in BROUGHT else str(samples.parents[1])


def brought(wildcards):
    """The user's samples of a row: sampling seed to file."""
    return {seed: str(file) for seed, file in EVALUATION.external[wildcards.name].files.items()}


def own_weights(protocol):
    """Where the user's weights of a protocol's extractor lie."""
    return {
        name: path for name, path in EVALUATION.weights.items() if name.removesuffix("-clean-fid") == protocol.features
    }


def under(protocol):
    """The fields of a job that sees images as a protocol has it."""
    return {
        "protocol": settings(protocol),
        "batch_size": EVALUATION.batch_size,
        "weights": own_weights(protocol),
    }


def extraction(name):
    """A protocol for features alone, in which the rest of it has no part."""
    rest = {"preset": None, "quantiser": "round", "reference": "train", "reference_sha256": None, "num_samples": None}
    return PLAN.extractions()[name].model_copy(update=rest)


def files_of_weights(protocol):
    """The files that count of those weights, some of which are folders."""
    places = map(Path, own_weights(protocol).values())
    return [
        str(file)
        for place in places
        for file in ([place / name for name in ("config.json", "model.safetensors")] if place.is_dir() else [place])
    ]


MAIN_EXTRACTION = extraction(EVALUATION.all_protocols[MAIN].extraction)
WEIGHTS_OF_MAIN = files_of_weights(MAIN_EXTRACTION)


def distilled(**further):
    """What a student's job is asked for."""
    return job(
        STUDENT / RECORD,
        "distillation.Distil",
        method_module,
        variant=wildcard("variant"),
        train_seed=wildcard("train_seed"),
        settings=method_settings,
        guidance_scale=guidance_scale,
        **further,
    )


def sampled(record, **chosen):
    """What a job that draws samples is asked for."""
    return job(
        record,
        "sampling.Sample",
        method_module,
        variant=wildcard("variant"),
        settings=method_settings,
        guidance_scale=sampled_scale,
        **EMBEDDED,
        num_samples=EVALUATION.num_samples,
        batch_size=EVALUATION.batch_size,
        **chosen,
    )


def chosen_nfe(wildcards):
    """The numbers of evaluations to sample with, where they are not all that the method has."""
    chosen = wildcards.variant in EVALUATION.nfe
    return EVALUATION.sampled(wildcards.variant, EXPERIMENT.methods[wildcards.variant]) if chosen else ()


def variant_sets(wildcards):
    return PLAN.sets(wildcards.variant, int(wildcards.train_seed))


def further_sets(wildcards):
    return PLAN.further_extractions()[wildcards.extraction, wildcards.quantiser]


def weights_of_extraction(wildcards):
    return files_of_weights(extraction(wildcards.extraction))


def protocol_of(wildcards):
    return EVALUATION.all_protocols[wildcards.protocol]


def given_reference(wildcards):
    """The file that a protocol measures against, where it does."""
    protocol = protocol_of(wildcards)
    return [protocol.reference] if protocol.reference_is_file else []


def of_student(record, stage, **further):
    """What a job that reads a BOOT student beside its teacher is asked for."""
    return job(
        record,
        stage,
        seed=PLAN.first_seed,
        batch_size=EVALUATION.batch_size,
        guidance_scale=evaluated_scale,
        **further,
    )
