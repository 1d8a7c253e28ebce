"""What measuring costs: the feature stage against the bare network, and the suite against PNG files and two tools.

    python benchmarks/measuring.py [--features efficientnet-lite0-64] [--count 1024] [--threads 1] [--rounds 5]

First: seconds of the extractor's bare forward passes over a set of pictures, in batches that lie ready, and of the
suite's extraction of the same set (torch-fidelity's loop, with its loading and checks).

Second: one set of samples measured with torch-fidelity (Fréchet distance, KID, precision and recall) and with clean-fid
(Fréchet distance), by the suite, with the real pictures' features at hand as they are for every row but the first;
against writing the samples as PNG files and having the two tools measure the folder, one after the other, against a
folder of the real pictures: once as the tools are called, and once with their references cached (torch-fidelity's
cache, clean-fid's statistics). Neither side starts a process; that would add some seconds to each.

Medians over interleaved rounds, one warm-up round before them; compare ratios of one run only.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from harness import medians

from diffusion.runtime.device import default_device
from evaluation.measure import metrics, quality
from evaluation.measure.clean_fid import cleanfid_frechet_distance
from evaluation.measure.features import load_extractor
from evaluation.measure.moments import moments
from evaluation.measure.reference import Reference

# isort: split
import cleanfid.fid
from PIL import Image
from torch_fidelity import calculate_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="efficientnet-lite0-64")
    parser.add_argument("--inception-weights", type=Path)
    parser.add_argument("--count", type=int, default=1024, help="samples, and real pictures")
    parser.add_argument("--resolution", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    device = default_device()
    weights = {"inception": arguments.inception_weights} if arguments.inception_weights else {}
    extractor = load_extractor(arguments.features, device, weights)
    shape = (arguments.count, arguments.resolution, arguments.resolution, 3)
    samples, real = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    print(
        f"{extractor.name} on {device}, {arguments.count} pictures of {arguments.resolution} px, "
        f"{torch.get_num_threads()} threads, medians of {arguments.rounds} rounds"
    )

    batches = torch.from_numpy(samples).permute(0, 3, 1, 2).contiguous().split(arguments.batch_size)

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                extractor._network(batch.to(device))

    found = medians(
        {"bare": bare, "stage": lambda: extractor.extract(samples, arguments.batch_size)}, arguments.rounds, device
    )
    print(f"bare forward passes    {found['bare']:8.2f} s")
    print(f"the suite's extraction {found['stage']:8.2f} s, {found['stage'] / found['bare']:.3f} times")

    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in ("samples", "real")}
        for place in places.values():
            place.mkdir()

        def write(images: np.ndarray, place: Path) -> None:
            for index, image in enumerate(images):
                Image.fromarray(image).save(place / f"{index:06d}.png")

        write(real, places["real"])
        features = {"torch-fidelity": extractor.extract(real), "clean-fid": extractor.extract_cleanfid(real)}
        known = {
            library: Reference("real", found, stored_moments=moments(found)) for library, found in features.items()
        }

        def ours() -> None:
            features = extractor.extract(samples, arguments.batch_size)
            quality.measure_under("torch-fidelity", features, known["torch-fidelity"])
            metrics.precision_recall(features, known["torch-fidelity"].features)
            cleanfid_frechet_distance(extractor.extract_cleanfid(samples), known["clean-fid"].moments)

        def theirs(cached: bool) -> None:
            write(samples, places["samples"])
            calculate_metrics(
                input1=str(places["samples"]),
                input2=str(places["real"]),
                feature_extractor=extractor.name,
                batch_size=arguments.batch_size,
                cuda=device.type == "cuda",
                cache=cached,
                cache_root=folder,
                input2_cache_name="real" if cached else None,
                verbose=False,
                fid=True,
                kid=True,
                prc=True,
                kid_subsets=metrics.KID_SUBSETS,
                kid_subset_size=min(metrics.KID_SUBSET_SIZE, arguments.count),
            )
            # Its own default of 12 is for larger machines; torch-fidelity has workers of its own.
            workers = arguments.threads if arguments.threads > 1 else 0
            options = {"mode": "clean", "num_workers": workers, "device": device, "verbose": False}
            model = extractor._cleanfid_model("clean")
            if cached:
                found = cleanfid.fid.get_folder_features(str(places["samples"]), model, **options)
                cleanfid_frechet_distance(found, known["clean-fid"].moments)
            else:
                real_folder = str(places["real"])
                cleanfid.fid.compute_fid(str(places["samples"]), real_folder, custom_feat_extractor=model, **options)

        calls = {"ours": ours, "theirs": lambda: theirs(False), "cached": lambda: theirs(True)}
        found = medians(calls, max(2, arguments.rounds // 2), device)
    print(f"the suite, all measures                {found['ours']:8.2f} s")
    for name, text in (("theirs", "PNG files, both tools"), ("cached", "the same, references cached")):
        print(f"{text:38s} {found[name]:8.2f} s, {found[name] / found['ours']:.2f} times")


if __name__ == "__main__":
    main()
