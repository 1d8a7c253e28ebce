"""The classifier that tells whether conditional samples show what was asked for."""

from pathlib import Path
from typing import Annotated

import numpy as np

from diffusion.data.store import PARTS, load_split
from diffusion.runtime.device import default_device
from evaluation.measure.captions import Attributes
from evaluation.measure.classifier import ClassifierSettings, classify, save_classifier, train_classifier
from suite.job import BatchSize, Key
from suite.jobs.inputs import checked_data
from suite.jobs.training import TrainingJob


class Train(TrainingJob):
    """Trains the classifier on the training part and counts its right answers on the test part."""

    settings: Annotated[ClassifierSettings, Key("evaluation.classifier")]
    data: Path
    batch_size: BatchSize = 256

    def run(self) -> None:
        inputs = checked_data(self.data, *PARTS)
        train, test = load_split(self.data, "train"), load_split(self.data, "test")
        with self.training_run("classifier", 0, inputs) as run:
            network, cost = train_classifier(self.settings, train, run)
            attributes, images = Attributes.of(train), np.asarray(test.images)
            found = classify(network, images, self.batch_size, attributes.num_values if attributes else ())
            captions = attributes.captions(test.labels, found) if attributes else None
            right = captions.right if captions else found == test.labels
            accuracy = float(np.mean(right)), len(right)
            with self.result_folder() as folder:
                save_classifier(folder, network, train.class_names, *accuracy, attributes, captions)
                facts = {"device": str(default_device()), "arithmetic": run.arithmetic, "cost": cost}
                self.write_record(folder, inputs, **facts)
            run.deliver(self.output)
