"""BOOT reproduction: data → teacher → students → samples → measures → report.

snakemake --cores all                                                the default experiment
snakemake --cores all --configfile config/images-example.yaml        another one
"""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from snakemake.utils import min_version

from diffusion.data.kinds import downloads
from diffusion.distillation.registry import method_modules
from diffusion.runtime.device import wanted_device
from diffusion.runtime.errors import UserError
from diffusion.runtime.files import fingerprint
from diffusion.runtime.settings import user_path
from diffusion.teachers import families
from diffusion.teachers.folder import deciding_files
from diffusion.teachers.settings import StoredTeacher
from diffusion.training.delivered import discard_delivered
from evaluation.measure.protocols import MAIN
from suite.configuration.file import ConfigurationFiles
from suite.launch import WORKFLOW, print_anything
from suite.plan import Plan
from suite.provenance import RECORD
from suite.reruns import CHECKOUT, Reruns, RunLock
from suite.sources import closure
from suite.sources import files as source_files
from suite.trackers import wanted_trackers

min_version("9.5")
print_anything(*(getattr(handler, "stream", None) for handler in logger.handlers))

# The default file is not there where another workflow takes this one as a module and brings its own configuration.
FILES = workflow.overwrite_configfiles or [file for file in ["config/digits.yaml"] if Path(file).exists()]
try:
    CONFIGURATION = ConfigurationFiles(FILES, workflow.config_settings.config)
except UserError as error:
    raise WorkflowError(f"The configuration cannot be used:\n{error}")
# Snakemake would merge the default file with the one on the command line.
if not workflow.overwrite_configfiles:

    configfile: "config/digits.yaml"


try:
    user_path(str(CHECKOUT))
except ValueError as error:
    raise WorkflowError(f"The folder of the suite itself: {error}.")
try:
    # What an experiment will cost can be asked before its data are there.
    EXPERIMENT, NOTICES = CONFIGURATION.parse(config, look_at_files="estimate" not in sys.argv)
    DEVICE = wanted_device()
except UserError as error:
    raise WorkflowError(f"The configuration cannot be used:\n{error}")
if workflow.is_main_process:
    for notice in NOTICES:
        logger.info(notice)

PLAN = Plan(EXPERIMENT)
ROOT = PLAN.root
EVALUATION = EXPERIMENT.evaluation
# One run a results folder, whoever started it and from which checkout. Jobs on other machines parse this file too.
RUN = RunLock(ROOT, workflow.is_main_process)
RERUNS = Reruns(ROOT, CHECKOUT, RUN.is_held, logger.info)


wildcard_constraints:
    # Whose samples the user brings are below external/, also one that is called train-0.
    variant="(?!external/)[^/]+",
    train_seed=r"\d+",


rule all:
    default_target: True
    input:
        local(ROOT / "report" / "index.html"),


include: "workflow/rules/common.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/sampling.smk"
include: "workflow/rules/measuring.smk"
include: "workflow/rules/report.smk"


onstart:
    try:
        RUN.require()
    except UserError as error:
        raise WorkflowError(str(error))


# By now Snakemake has taken note of every result that was stored.
onsuccess:
    discard_delivered(ROOT / "state")


onerror:
    discard_delivered(ROOT / "state")
