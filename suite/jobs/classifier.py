"""The classifier that judges the labels of class-conditional samples."""

import argparse

import numpy as np

from diffusion.data.store import PARTS, load_split
from diffusion.runtime.device import default_device
from evaluation.measure.classifier import ClassifierSettings, classify, save_classifier
from evaluation.measure.classifier import train_classifier as fit_classifier
from suite.delivery import asked, result_folder
from suite.provenance import RECORD, write_provenance
from suite.stages.inputs import checked_data
from suite.stages.training import training_run


def train_classifier(arguments: argparse.Namespace) -> None:
    """Trains the classifier on the training part and counts its right answers on the test part."""
    settings = ClassifierSettings.model_validate_json(arguments.settings)
    inputs = checked_data(arguments.data, *PARTS)
    train, test = load_split(arguments.data, "train"), load_split(arguments.data, "test")
    with training_run(arguments, "classifier", 0, inputs, __name__) as run:
        network, cost = fit_classifier(settings, train, run)
        found = classify(network, np.asarray(test.images), arguments.batch_size)
        accuracy = float(np.mean(found == test.labels))
        with result_folder(arguments) as folder:
            save_classifier(folder, network, train.class_names, accuracy, len(test.labels))
            write_provenance(
                folder / RECORD,
                inputs,
                asked(arguments),
                settings=settings.model_dump(mode="json"),
                device=str(default_device()),
                arithmetic=run.arithmetic,
                cost=cost,
            )
        run.deliver(arguments.output)
