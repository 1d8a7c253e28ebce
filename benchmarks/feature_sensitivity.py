"""How fast, and how sensitive, is EfficientNet-Lite0 at 32, 64 and 128 pixels on the scikit-learn digits?

Prints two Markdown tables, the ones in docs/features.md:

    python benchmarks/feature_sensitivity.py --sizes 32 64 128

The digits are cut into two halves. The first is the reference. The second is damaged in a known way, and the
Fréchet distance (torch-fidelity's) of 400 of its pictures to the reference is taken for three choices of the
400. "none" is the floor: undamaged pictures at the same count. A damage is as visible as its distance lies
above the floor, in units of the floor; "sd" is the spread over the three choices, in the same units.
"""

import argparse
import statistics
import time
from collections.abc import Callable

# Before torch_fidelity: it makes torchvision importable beside a build of torch that it does not fit.
from evaluation.measure.features import EfficientNetExtractor, EfficientNetLite0
from evaluation.measure.metrics import frechet_distance
from evaluation.measure.moments import moments

# isort: split
import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

COUNT = 400


def damaged(images: np.ndarray, labels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The damages: name to pictures (uint8 N, H, W, C) and the indices that the 400 are drawn from."""
    rng = np.random.default_rng(0)
    everything = np.arange(len(images))

    def to_uint8(values: np.ndarray) -> np.ndarray:
        return values.round().clip(0, 255).astype(np.uint8)

    noise = rng.standard_normal(images.shape)
    sets = {"none": (images, everything)}
    for deviation in (0.05, 0.1, 0.2, 0.4):
        sets[f"noise, sd {deviation} of [-1, 1]"] = (to_uint8(images + 127.5 * deviation * noise), everything)
    for deviation in (0.4, 0.6, 0.9):
        blurred = gaussian_filter(images.astype(np.float64), sigma=(0, deviation, deviation, 0))
        sets[f"blur, sd {deviation} px"] = (to_uint8(blurred), everything)
    for missing in (1, 3, 5):
        sets[f"{missing} of 10 classes missing"] = (images, np.flatnonzero(labels >= missing))
    for share in (0.1, 0.3):
        mixed = (1 - share) * images + share * images[rng.permutation(len(images))]
        sets[f"{share:.0%} of another digit mixed in"] = (to_uint8(mixed), everything)
    sets["only 50 different pictures"] = (images, np.repeat(rng.permutation(len(images))[:50], 8))
    return sets


def extractor_at(size: int) -> EfficientNetExtractor:
    """The embedded extractor at any resolution."""
    name = f"efficientnet-lite0-{size}"
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(name, type(f"EfficientNetLite0At{size}", (EfficientNetLite0,), {"input_size": size}))
    return EfficientNetExtractor(name, torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    digits = load_digits()
    order = np.random.default_rng(1).permutation(len(digits.images))
    images = (digits.images[order] * 255 / 16).round().astype(np.uint8)[..., None]
    labels = digits.target[order]
    half = len(images) // 2
    sets = damaged(images[half:], labels[half:])

    columns: dict[str, dict[str, str]] = {}
    speed: dict[str, dict[str, str]] = {}

    def add_column(name: str, extract: Callable[[np.ndarray], np.ndarray]) -> None:
        reference_features = extract(images[:half])
        reference = moments(reference_features, warn=False)
        column: dict[str, str] = {}
        floor = 0.0
        for damage, (pictures, candidates) in sets.items():
            features = extract(pictures)
            values = []
            for repeat in range(3):
                chosen = np.random.default_rng(repeat).permutation(candidates)[:COUNT]
                values.append(frechet_distance(moments(features[chosen], warn=False), reference))
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            if damage == "none":
                floor = mean
                nearest = KNeighborsClassifier(1).fit(reference_features, labels[:half])
                accuracy = nearest.score(features, labels[half:])
                column[damage] = f"{floor:.3g} (floor; sd {deviation / floor:.2f})"
            else:
                column[damage] = f"+{mean / floor - 1:.2f} (sd {deviation / floor:.2f})"
        columns[name] = column
        times = []
        for _ in range(3):
            start, cpu = time.perf_counter(), time.process_time()
            extract(images[:256])
            times.append((256 / (time.perf_counter() - start), 256 / (time.process_time() - cpu)))
        wall, processor = (f"{statistics.median(values):.0f}" for values in zip(*times, strict=True))
        seen = {"pictures/s, wall clock": wall, "pictures/s of CPU time": processor} if name != "raw pixels" else {}
        speed[name] = seen | {"nearest-neighbour accuracy": f"{accuracy:.1%}"}

    add_column("raw pixels", lambda pictures: pictures.reshape(len(pictures), -1).astype(np.float32) / 127.5)
    for size in options.sizes:
        extractor = extractor_at(size)
        add_column(f"{size} px", lambda pictures, extractor=extractor: extractor.extract(pictures, 32))

    for first, table in (("features", pd.DataFrame(speed).T), ("damage", pd.DataFrame(columns))):
        print(f"\n{table.fillna('').rename_axis(first).to_markdown()}")


if __name__ == "__main__":
    main()
