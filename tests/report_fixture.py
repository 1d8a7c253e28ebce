"""Fabricates a complete results folder with tiny pictures, as the workflow would leave it before the report."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffusion.runtime.files import write_json
from evaluation.columns import COST_COLUMNS, CURVE_COLUMNS, FURTHER_SPEED, METRICS_COLUMNS, SPEED_COLUMNS
from evaluation.report.ablation import Ablation
from evaluation.report.comparison import Comparison
from evaluation.report.page import ReportInputs
from evaluation.results.results import Results
from evaluation.results.stored import CostFile

NASTY = "<b>&_%"
FULL, PART = 1437, 360
STEPS = (1, 2, 4, 8, 16, 50)
# Fréchet distances from a feasibility run, so that the page looks as it will.
DDIM = dict(zip(STEPS, (1800.0, 554.0, 166.0, 88.0, 66.0, 59.0), strict=True))
MSE = dict(zip(STEPS, (0.265, 0.063, 0.018, 0.006, 0.0015, 0.0), strict=True))


def fabricate(
    folder: Path,
    *,
    features: str = "efficientnet-lite0@64px",
    dataset: str = "digits",
    boot: Mapping[str, float] | None = None,
    sd: float = 1.5,
    external: bool = True,
    external_nfe: int | None = None,
    train_seeds: int = 3,
    dimensions: int | None = None,
    captions: Sequence[str] = (),
) -> ReportInputs:
    """Writes the files into ``folder`` and names them.

    Args:
        folder: an empty or missing folder.
        features: name of the extractor; "inception" makes the distances FIDs.
        dataset: name of the data set.
        boot: variant of a BOOT student to its Fréchet distance; default: one Heun student between DDIM's 4 and 8
            evaluations and one with a name that needs escaping.
        sd: deviation of the Fréchet distance between sampling seeds, and between training seeds, exactly.
        external: whether the user brought samples.
        external_nfe: their evaluations; they are then as many as the others, and better.
        train_seeds: of every student.
        dimensions: of the features.
        captions: of a teacher that is told texts, 8 or more; samples are of every second one.
    """
    if boot is None:
        boot = {"boot-heun": 124.0, NASTY: 131.0}
    rng = np.random.default_rng(0)
    inception = features == "inception"
    name, score_name = ("fid", "inception_score") if inception else ("frechet_distance", "classifier_score")

    def place(path: str) -> Path:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        return folder / path

    def table(path: str, rows: Any, columns: Iterable[str] | None = None) -> Path:
        pd.DataFrame(rows, columns=columns and list(columns)).to_csv(place(path), index=False)
        return folder / path

    def images(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, size=(*shape, 8, 8, 1), dtype=np.uint8)

    rows: list[dict[str, Any]] = []

    def measure(method: str, variant: str, nfe: int | None, distance: float, mse: float | None, count: int) -> None:
        trainings = 1 if method in ("external", "ddim", "real") else train_seeds
        identity = {"experiment": "digits", "method": method, "variant": variant, "nfe": nfe, "protocol": "main"}
        identity |= {"features": features, "library": "torch-fidelity 0.4.0"}
        for train_seed, shift in enumerate(np.linspace(-1, 1, trainings) if trainings > 1 else [0.0]):

            def add(metric: str, seed: int, value: float, num_samples: int, train_seed=train_seed, **more: str) -> None:
                seeds = {"seed": seed, "train_seed": None if method == "external" else train_seed}
                if method == "real":
                    seeds = {"seed": None, "train_seed": None}
                line = {"metric": metric, "value": value, "num_samples": num_samples, "reference": "train"}
                rows.append({**identity, **line, **seeds, **more})

            # Offsets with mean 0 and deviation 1, so that tests know mean and spread exactly; BOOT's go the other way
            # than the others', so that their differences have a spread too.
            for seed, sampling in enumerate((1.0, 0.0, -1.0) if method == "boot" else (-1.0, 0.0, 1.0)):
                offset = sampling + float(shift)
                if count != PART:
                    add(name, seed, distance + sd * offset, count)
                if method != "real":
                    add(name, seed, 1.15 * distance + 90 + sd * offset, PART)
                if mse is not None:
                    value = mse * (1 + 0.02 * offset)
                    add("mse_to_teacher", seed, value, count, reference="teacher-50", features="", library="")
            add("kid", 0, 2e-5 * distance, count)
            add("precision", 0, 1 / (1 + distance / 400), count)
            add("recall", 0, 0.9 / (1 + distance / 300), count)
            further = {"kid_subset_sd": 1e-6, "density": 0.8, "coverage": 0.7, score_name: 1.5}
            for metric, value in further.items() if method != "external" else ():
                add(metric, 0, value * (1 + distance / 1e4), PART)
            if method == "real":
                add(name, 0, distance, count)
            else:
                add("frechet_distance_to_teacher", 0, 0.4 * distance, count, reference="teacher-50")

    for steps in STEPS:
        measure("ddim", "ddim", steps, DDIM[steps], MSE[steps], FULL)
    for variant, distance in boot.items():
        measure("boot", variant, 1, distance, 0.016, FULL)
    for steps, distance in zip((1, 2, 4, 8), (140.0, 101.0, 80.0, 70.0), strict=True):
        measure("progressive_distillation", "progressive", steps, distance, 0.02 / steps, FULL)
    if external and external_nfe is None:
        measure("external", "my-samples", None, 210.0, None, 1000)
    elif external:
        measure("external", "my-samples", external_nfe, 30.0, None, FULL)
    measure("real", "test", None, 130.0, None, PART)
    frame = pd.DataFrame(rows)
    frame["nfe"] = frame["nfe"].astype("Int64")
    parts = frame.groupby(["variant", "nfe"], sort=False, dropna=False)
    measures = [table(f"measures/{number}.csv", part, METRICS_COLUMNS) for number, (_, part) in enumerate(parts)]

    speed_rows = []
    networks = [("ddim", "ddim", n) for n in STEPS] + [("boot", v, 1) for v in boot]
    networks += [("progressive_distillation", "progressive", n) for n in (1, 2, 4, 8)]
    for method, variant, nfe in networks:
        for batch, per_step in ((128, 22.0), (1, 4.0)):
            median = nfe * per_step * (1.02 if method == "boot" else 1.0)
            identity = ("digits", method, variant, nfe, "cpu", "float32", batch)
            speed_rows.append((*identity, 1000 * batch / median, median, 1.1 * median, None, 9, 0.013, 0.97, None))

    costs = []

    def cost(method: str, variant: str, students: list[tuple[int, int, int, float]]) -> None:
        listed = [
            {"nfe": n, "steps": e // 320, "network_evaluations": e, "real_images_seen": r, "wall_clock_s": s}
            | {"cpu_s": 1.9 * s, "gpu_s": 0, "parameters": 1_094_433}
            for n, e, r, s in students
        ]
        path = folder / "students" / str(len(costs)) / "cost.json"
        write_json(path, {"method": method, "variant": variant, "students": listed})
        costs.append(CostFile(path, method, variant))

    cost("teacher", "teacher", [(50, 320_000, 320_000, 162.5)])
    for variant in boot:
        cost("boot", variant, [(1, 640_000, 0, 210.0)])
    doubled = [(n, 230_400 * k, 76_800 * k, 41.0 * k) for k, n in enumerate((8, 4, 2, 1), start=1)]
    cost("progressive_distillation", "progressive", doubled)

    labels = {"ddim": "DDIM", "boot-heun": "BOOT (Heun)", "progressive": "Progressive distillation"}
    labels["teacher"] = "Teacher"
    samples = {}
    for label in ("DDIM, 50", "DDIM, 1", *(f"{labels.get(v, v)}, 1" for v in boot), "my-samples"):
        samples[label] = place(f"samples/{len(samples)}.npz")
        told = {"arr_1": 2 * np.arange(20) % len(captions)} if captions and label != "my-samples" else {}
        np.savez(samples[label], arr_0=images(20), **told)

    shown, trajectory = {}, {}
    for number, variant in enumerate(boot):
        parts = {"all_times": images(4, 9), "trajectory": images(4, 9), "interpolation": images(4, 8)}
        if captions:
            parts |= {"between": images(4, 8), "by_text": images(4, 8), "texts": np.array(captions[:5])}
        elif number == 0:
            parts |= {"classes": images(4, 8), "class_pairs": np.array([[0, 1], [1, 2], [2, 0], [0, 1]])}
        shown[variant] = place(f"pictures/{number}.npz")
        np.savez(shown[variant], times=np.linspace(0.999, 0.001, 9), **parts)
        errors = [
            {"quantity": quantity, "nfe": nfe, "t": t, "value": 0.01 / nfe * (1.1 - t)}
            for quantity, nfe, first in (("student", 1, 0), ("one_step", 1, 1), ("near_zero", 1, 0), ("ddim", 4, 0))
            for t in np.linspace(0.999, 0.001, 5)[first:]
        ]
        trajectory[variant] = table(f"errors/{number}.csv", errors)

    relative = {"DDIM, NFE 50": 0.97, "BOOT (Heun), NFE 1": 1.2}
    np.savez(
        place("neighbours.npz"),
        **{f"{kind}-{number}": images(20) for number in range(len(relative)) for kind in ("samples", "nearest")},
    )
    facts = [{"label": k, "median_distance": 3.0, "relative": r, "suspicious": 0.02} for k, r in relative.items()]
    write_json(folder / "neighbours.json", {"rows": facts})

    curve_rows = [
        {"variant": variant, "nfe": 1, "train_seed": train_seed, "step": step, "network_evaluations": 100 * step}
        | {"real_images_seen": 0, "wall_clock_s": step / 4}
        | {"metric": name, "value": worth * (400 / step) * 50 + train_seed}
        for variant, worth in (*((v, 2.0) for v in boot), ("progressive", 3.0))
        for train_seed in (0, 1)
        for step in (100, 200, 400)
    ]

    training = {}
    for number, label in enumerate(("Teacher", *(labels.get(v, v) for v in boot), "Progressive distillation")):
        steps = np.arange(0, 400, 10)
        losses = [
            {"stage": stage, "step": steps, "loss": np.exp(-steps / 150) + 0.05 * rng.random(len(steps)) + 0.01}
            | {"learning_rate": 5e-4, "gradient_norm": 1.0, "wall_clock_s": steps * 0.06}
            for stage in (("8", "4", "2", "1") if label.startswith("Progressive") else ("main",))
        ]
        training[label] = table(f"training/{number}.csv", pd.concat([pd.DataFrame(part) for part in losses]))

    benchmarks = []
    for job, seconds in (
        *(("train_teacher/teacher", 171.2), ("train_student/boot-heun", 212.9), ("train_student/progressive", 170.0)),
        *(("sample/ddim-50", 18.4), ("measure/ddim-50", 41.9), ("speed/speed", 65.0), ("prepare_data/data", 1.2)),
    ):
        benchmarks.append(place(f"benchmarks/{job}.tsv"))
        memory = "NA" if seconds < 5 else "812.4"
        benchmarks[-1].write_text(
            "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
            f"{seconds}\t0:01:00\t{memory}\t1\t1\t1\t0\t0\t99.0\t{2 * seconds}\n"
        )

    protocols = {}
    for protocol, factor in (("main", 1.0), ("clean-fid", 1.5), ("test", 0.9)):
        settings = {"library": "clean-fid"} if protocol == "clean-fid" else {}
        settings |= {"reference": "test"} if protocol == "test" else {}
        measured = [("ddim", "ddim", 50, DDIM[50]), *(("boot", v, 1, d) for v, d in boot.items())]
        measured.append(("real", "test", None, 130.0))
        lines = [
            {"experiment": "digits", "method": method, "variant": variant, "nfe": nfe, "train_seed": 0, "seed": 0}
            | {"metric": metric, "value": value * factor, "num_samples": FULL if nfe else PART, "protocol": protocol}
            | {"features": features, "reference": settings.get("reference", "train"), "library": "x 1"}
            for method, variant, nfe, value in measured
            for metric, value in ((name, value), ("kid", 2e-5 * value))
        ]
        protocols[protocol] = table(f"protocols/{protocol}.csv", lines, METRICS_COLUMNS)
        extractor = {"name": features, "layer": "7", "resize": "64x64", "library_version": "1.2"}
        extractor["weights_sha256"] = "57" * 32
        facts = {"protocol": settings, "extractor": extractor, "reference": {"count": FULL, "sha256": "5f" * 32}}
        write_json(protocols[protocol].with_suffix(".json"), facts | {"seed": 0})

    budget = {**{v: labels.get(v, v) for v in boot}, "progressive": "Progressive distillation"}
    return ReportInputs(
        experiment="digits",
        dataset=dataset,
        metrics=measures,
        # As earlier versions wrote it.
        speed=table("speed/speed.csv", speed_rows, [name for name in SPEED_COLUMNS if name not in FURTHER_SPEED]),
        costs=costs,
        samples=samples,
        pictures=shown,
        neighbours=folder / "neighbours.npz",
        trajectory=trajectory,
        ablation=Ablation(next(iter(boot)), {"steps": ["progressive"]}, {"progressive": "steps by halves"})
        if boot
        else None,
        comparison=Comparison({"evaluations": budget}, FULL) if boot else None,
        learning_curves=[table("curves.csv", curve_rows, CURVE_COLUMNS)],
        protocols=protocols,
        training=training,
        benchmarks=benchmarks,
        provenance={
            "data": {"name": dataset, "train": FULL, "test": PART, "resolution": 8, "train_sha256": "5f" * 32},
            "teacher": {"network": "UNet2DModel", "parameters": 1_094_433, "prediction_type": "v_prediction"},
            "hardware": {"cpu": "2 cores", "gpu": None, "memory_gb": 23.4},
            "versions": {"torch": "2.13.0+cpu", "diffusers": "0.42.1", "torch-fidelity": "0.4.0"},
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "seeds": {"training": [0], "sampling": [0, 1, 2]},
            "features": {"name": features, "sha256": "57" * 32, "broken": float("nan")},
            "protocols": {
                "main": "Pictures are resized to 64 pixels, then read by the extractor.",
                "clean-fid": "how clean-fid measures.",
            },
            "definitions": {
                "mse_to_teacher": "Mean over pictures and pixels of the squared difference, pixels in [−1, 1]."
            },
            "configuration": {"students": [{"variant": NASTY, "steps": 1000}], "batch_size": 128},
        },
        labels={**labels, **{variant: labels.get(variant, variant) for variant in boot}},
        teacher=("ddim", 50),
        untrained=frozenset({"ddim"}),
        dimensions=dimensions,
        reference_count=FULL,
        captions=captions,
    )


def results_of(values: Mapping[tuple[str, str, int], Any], costs: Mapping[str, Mapping[str, Any]]) -> Results:
    """Results of a Fréchet distance alone.

    Args:
        values: (method, variant, nfe) to distances, one a training seed, or a list of one a sampling seed for each.
        costs: variant to what is not the default.
    """
    rows = [
        {**dict.fromkeys(METRICS_COLUMNS, ""), "experiment": "x", "method": method, "variant": variant, "nfe": nfe}
        | {"metric": "frechet_distance", "train_seed": train_seed, "seed": seed, "value": value, "num_samples": 100}
        for (method, variant, nfe), by_training in values.items()
        for train_seed, by_seed in enumerate(by_training)
        for seed, value in enumerate(np.atleast_1d(by_seed).tolist())
    ]
    cost = [
        {"experiment": "x", "method": v, "variant": v, "base_variant": v, "nfe": 1, "network_evaluations": 1000}
        | {"real_images_seen": 0, "wall_clock_s": 1.0, "parameters": 1, "steps": 5, **own}
        for v, own in costs.items()
    ]
    priced = pd.DataFrame(cost, columns=[*COST_COLUMNS, "nfe", "base_variant"]).astype({"nfe": "Int64"})
    frame, speed = pd.DataFrame(rows, columns=list(METRICS_COLUMNS)), pd.DataFrame(columns=list(SPEED_COLUMNS))
    labels = {variant: variant for _, variant, _ in values}
    return Results(frame, speed, priced, pd.DataFrame(), "digits", labels, ("ddim", 50), frozenset({"ddim"}))
