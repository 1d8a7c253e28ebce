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

from diffusion.data import downloads
from diffusion.device import wanted_device
from diffusion.errors import UserError
from diffusion.files import canonical_json, fingerprint
from diffusion.pipelines import deciding_files, own_network_file
from diffusion.teacher import StoredTeacher
from diffusion.training import discard_delivered
from evaluation.protocols import MAIN
from suite.configuration import parse_experiment
from suite.launch import WORKFLOW
from suite.plan import Plan
from suite.provenance import RECORD
from suite.registry import method_file
from suite.reruns import Reruns, RunLock
from suite.trackers import wanted_trackers

min_version("9.5")

# Snakemake merges the default file with the one on the command line; an experiment must be one file.
if not workflow.overwrite_configfiles:

    configfile: "config/digits.yaml"


try:
    EXPERIMENT = parse_experiment(config)
    DEVICE = wanted_device()
except UserError as error:
    raise WorkflowError(f"The configuration cannot be used:\n{error}")

PLAN = Plan(EXPERIMENT)
ROOT = PLAN.root
EVALUATION = EXPERIMENT.evaluation
# One run a results folder, whoever started it and from which checkout. Jobs on other machines parse this file too.
RUN = RunLock(ROOT, workflow.is_main_process)
RERUNS = Reruns(ROOT, Path(workflow.basedir), RUN.is_held, logger.info)


wildcard_constraints:
    variant="[^/]+",
    train_seed=r"\d+",


rule all:
    default_target: True
    input:
        local(ROOT / "report" / "index.html"),


# On a cluster these run where Snakemake runs: what downloads, for compute nodes often have no way to the network, and
# what prints.
localrules:
    fetch,
    estimate,


# So does what takes a teacher from the Hub.
if isinstance(EXPERIMENT.teacher, StoredTeacher):

    localrules:
        teacher,


include: "workflow/rules/common.smk"
include: "workflow/rules/training.smk"
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
