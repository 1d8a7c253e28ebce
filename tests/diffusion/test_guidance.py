"""Class conditions, classifier-free guidance and thresholding."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import NETWORK, stored_data, tiny_conditional, tiny_splits

from baselines.samplers import Ddim, DdimSettings
from boot.losses import boot_losses
from boot.trajectory import ddim_signal, sample_between, trajectory_errors
from diffusion.conditions import ClassLabels, MixedClasses, Unconditional, first_of, join
from diffusion.data.kinds import parse_settings
from diffusion.data.samples import load_labels
from diffusion.data.store import load_split, write_dataset
from diffusion.denoiser import Denoiser
from diffusion.guidance import Guidance, guided
from diffusion.runtime.errors import UserError
from diffusion.schedule import CosineSchedule, EdmSchedule
from diffusion.solvers import ddim_sample
from diffusion.student import NoiseStudent
from diffusion.teachers.folder import load_conditions, load_denoiser, save_denoiser
from diffusion.teachers.networks.unet import NetworkSettings, build_network
from diffusion.teachers.settings import StoredTeacher, TeacherSettings
from diffusion.teachers.train import train_teacher
from diffusion.thresholding import NO_THRESHOLD, STATIC, Thresholding
from diffusion.training.loop import TrainingRun
from evaluation.measure.neighbours import closeness, nearest
from suite.jobs.data import Prepare
from suite.jobs.inputs import check_classes
from suite.jobs.measuring import check_labels
from suite.jobs.neighbours import Find

SCHEDULE = CosineSchedule(num_timesteps=200)
NOISE = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.full((6,), 0.5, dtype=torch.float64)
LABELS = {"class_labels": torch.tensor([0, 1, 2, 0, 1, 2])}


class Counts:
    """Evaluations of a network, by a hook."""

    def __init__(self, network):
        self.calls = self.pictures = 0
        network.register_forward_pre_hook(self)

    def __call__(self, _module, arguments):
        self.calls += 1
        self.pictures += len(arguments[0])


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "epsilon"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_is_the_formula_on_the_networks_own_output(prediction_type, scale):
    """Guiding F and guiding x̂ are the same, from one batch of twice the size."""
    denoiser = tiny_conditional(prediction_type=prediction_type)
    null = {"class_labels": torch.full((6,), 3)}
    conditional, unconditional = denoiser.raw(NOISE, T, LABELS), denoiser.raw(NOISE, T, null)

    class Says(torch.nn.Module):
        def forward(self, *_arguments, **_keywords):
            return (unconditional + scale * (conditional - unconditional),)

    expected = Denoiser(Says(), SCHEDULE, prediction_type, NO_THRESHOLD)(NOISE, T)
    teacher, counts = guided(denoiser, Guidance(scale)), Counts(denoiser.network)
    torch.testing.assert_close(teacher(NOISE, T, LABELS), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(teacher(NOISE, torch.tensor(0.5), LABELS), expected, rtol=1e-5, atol=1e-5)
    assert (counts.calls, counts.pictures) == (2, 24)
    assert not torch.allclose(expected, denoiser(NOISE, T, LABELS))


def test_no_guidance_costs_nothing():
    denoiser = tiny_conditional()
    assert guided(denoiser, Guidance(1.0)) is denoiser
    assert (Guidance(1.0).evaluations, Guidance(2.0).evaluations) == (1, 2)


def test_guidance_is_bounded_afterwards():
    unbounded = guided(tiny_conditional(), Guidance(40.0))(NOISE, T, LABELS)
    bounded = guided(tiny_conditional(thresholding=STATIC), Guidance(40.0))(NOISE, T, LABELS)
    assert unbounded.abs().max() > 1
    assert torch.equal(bounded, unbounded.clamp(-1, 1))


@pytest.mark.parametrize("denoiser", [tiny_conditional(has_null=False), None])
def test_guidance_without_an_unconditional_input_is_refused(denoiser):
    if denoiser is None:
        denoiser = Denoiser(torch.nn.Identity(), SCHEDULE, "sample")
    with pytest.raises(ValueError, match="unconditional input"):
        guided(denoiser, Guidance(2.0))


def test_dynamic_thresholding_by_hand():
    """Saharia et al. 2022: the quantile of |x̂|, at least 1, clips and divides each picture by itself."""
    calm, wild = torch.linspace(-0.9, 0.9, 101), torch.linspace(-5, 5, 101)
    x = torch.stack([calm, wild]).reshape(2, 1, 1, 101)
    result = Thresholding(kind="dynamic", ratio=0.8)(x)
    assert torch.equal(result[0].flatten(), calm)
    torch.testing.assert_close(result[1].flatten(), (wild / 4).clamp(-1, 1), rtol=1e-5, atol=1e-6)
    limited = Thresholding(kind="dynamic", ratio=0.8, maximum=1.5)(x)
    torch.testing.assert_close(limited[1].flatten(), (wild / 1.5).clamp(-1, 1))


@pytest.mark.parametrize("maximum", [None, 1.5])
def test_dynamic_thresholding_is_diffusers_own(tmp_path, maximum):
    denoiser = tiny_conditional(thresholding=Thresholding(kind="dynamic", ratio=0.9, maximum=maximum))
    save_denoiser(tmp_path, denoiser)
    assert load_denoiser(tmp_path).thresholding == denoiser.thresholding
    (tmp_path / "schedule.json").unlink()
    assert load_denoiser(tmp_path).thresholding == denoiser.thresholding
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    x = 3 * NOISE
    torch.testing.assert_close(scheduler._threshold_sample(x.clone()), denoiser.thresholding(x))


def test_thresholding_numbers_belong_to_dynamic():
    with pytest.raises(ValueError, match="expected 'dynamic'"):
        Thresholding(kind="static", ratio=0.9)


@pytest.mark.parametrize("has_null", [True, False])
def test_conditional_round_trip_and_pipeline(tmp_path, has_null):
    from diffusion.teachers.local_pipeline import LocalPipeline

    denoiser = tiny_conditional(has_null=has_null, thresholding=STATIC)
    save_denoiser(tmp_path, denoiser)
    again = load_denoiser(tmp_path)
    assert again.conditions == denoiser.conditions
    scale = 2.0 if has_null else 1.0
    with torch.no_grad():
        expected = ddim_sample(guided(again, Guidance(scale)), NOISE, 4, LABELS)
    pipeline = LocalPipeline.from_pretrained(tmp_path)
    images = pipeline(
        class_labels=LABELS["class_labels"],
        num_inference_steps=4,
        guidance_scale=scale,
        latents=NOISE,
        output_type="pt",
    ).images
    assert torch.equal(images, expected)
    assert len(pipeline(class_labels=[0, 1], num_inference_steps=2).images) == 2


def test_a_foreign_folder_is_told_its_number_of_classes(tmp_path):
    save_denoiser(tmp_path, tiny_conditional())
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["num_classes"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert load_conditions(tmp_path) == ClassLabels(4, has_null=False)
    assert load_conditions(tmp_path, 3) == ClassLabels(3, has_null=True)
    with pytest.raises(UserError, match="4 labels"):
        load_conditions(tmp_path, 2)
    with pytest.raises(UserError, match=r"teacher\.guidance_scale: found 2.0.*num_classes"):
        StoredTeacher(path=str(tmp_path), guidance_scale=2.0).facts((1, 8, 8))
    assert StoredTeacher(path=str(tmp_path), guidance_scale=2.0, num_classes=3).facts((1, 8, 8)).conditional


def test_guided_ddim_counts_two_evaluations_a_step(tmp_path):
    save_denoiser(tmp_path, tiny_conditional())
    method = Ddim(DdimSettings(num_inference_steps=(1, 4)), Guidance(2.0))
    assert method.evaluations() == (2, 8)
    sampler, network = method.sampler(tmp_path, 8, torch.device("cpu"))
    counts = Counts(network)
    with torch.no_grad():
        sampler(NOISE, LABELS)
    assert counts.pictures == 8 * len(NOISE)


def test_labels_of_samples_are_even_and_do_not_depend_on_the_batch():
    conditions = ClassLabels(3, has_null=True)
    whole = conditions.of_samples(range(9), "cpu")["class_labels"]
    parts = [conditions.of_samples(r, "cpu")["class_labels"] for r in (range(4), range(4, 9))]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.bincount().tolist() == [3, 3, 3]
    drawn = conditions.draw(3000, torch.Generator().manual_seed(0))["class_labels"]
    assert drawn.bincount().min() > 900
    assert len(drawn.bincount()) == 3
    assert Unconditional().of_samples(range(9), "cpu") is None


def test_dropped_labels_are_the_null_class():
    conditions = ClassLabels(3, has_null=True)
    labels = torch.arange(3000) % 3
    generator = torch.Generator().manual_seed(0)
    told = conditions.dropped({"class_labels": labels}, 0.25, generator)["class_labels"]
    dropped = told == conditions.null
    assert 650 < int(dropped.sum()) < 850
    assert torch.equal(told[~dropped], labels[~dropped])
    assert torch.equal(conditions.dropped({"class_labels": labels}, 0.0, generator)["class_labels"], labels)


def test_what_guidance_leaves_alone_stays_in_the_unconditional_condition():
    told = {"class_labels": torch.tensor([0, 2]), "noise_level": torch.tensor([0.25, 0.5])}
    conditions = ClassLabels(3, has_null=True)
    assert conditions.without(told)["class_labels"].tolist() == [3, 3]
    assert torch.equal(conditions.without(told)["noise_level"], told["noise_level"])
    kept = conditions.dropped(told, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(kept["noise_level"], told["noise_level"])
    with pytest.raises(ValueError, match="no label for no class"):
        ClassLabels(3, has_null=False).without(told)


def test_a_conditional_teacher_is_trained_with_its_null_class(tmp_path):
    data = stored_data(tmp_path / "data")
    settings = TeacherSettings.model_validate(
        {"network": NETWORK, "labels": True, "label_dropout": 0.5, "training": {"steps": 3, "batch_size": 8}}
    )
    with TrainingRun(tmp_path / "state", "key", 0, torch.device("cpu")) as run:
        run.seed_initialisation("initialisation")
        before = build_network(settings.network, (1, 8, 8), 3)
        denoiser, _ = train_teacher(settings, data, run)
    assert denoiser.conditions == ClassLabels(2, has_null=True)
    moved = (denoiser.network.class_embedding.weight - before.class_embedding.weight).abs().amax(dim=1)
    assert (moved > 0).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"guidance_scale": 2.0}, "labels false"),
        ({"guidance_scale": 2.0, "labels": True, "label_dropout": 0.0}, "label_dropout 0"),
    ],
)
def test_guidance_that_makes_no_sense_is_refused_in_the_yaml(change, expected):
    with pytest.raises(ValueError, match=expected):
        TeacherSettings.model_validate({"training": {"steps": 1}} | change)


@pytest.mark.parametrize("solver", ["euler", "heun", "etd2", "midpoint"])
def test_boot_losses_follow_the_guided_teacher(solver):
    """All evaluations carry their pictures' labels: a batch's losses are the mean of those of its labels alone."""
    teacher = guided(tiny_conditional(thresholding=STATIC), Guidance(2.0))
    student = NoiseStudent(tiny_conditional().network, SCHEDULE, "v_prediction")
    s, t = torch.linspace(0.1, 0.8, 6, dtype=torch.float64), torch.linspace(0.2, 0.9, 6, dtype=torch.float64)

    def losses(rows, condition):
        with torch.no_grad():
            return torch.stack(
                boot_losses(student, teacher, NOISE[rows], s[rows], t[rows], len(rows), solver, condition=condition)
            )

    rows = list(range(6))
    apart = [losses([row], {"class_labels": LABELS["class_labels"][[row]]}) for row in rows]
    torch.testing.assert_close(losses(rows, LABELS), torch.stack(apart).mean(dim=0), rtol=1e-4, atol=1e-6)
    other = {"class_labels": LABELS["class_labels"].roll(1)}
    assert not torch.allclose(losses(rows, LABELS), losses(rows, other))


def test_trajectories_follow_the_guided_teacher():
    teacher = guided(tiny_conditional(thresholding=STATIC), Guidance(2.0))
    t = torch.tensor(SCHEDULE.t_min, dtype=torch.float64)
    with torch.no_grad():
        start = ddim_signal(teacher, NOISE, torch.tensor(SCHEDULE.t_max), 1, LABELS)
        torch.testing.assert_close(start, teacher(NOISE, torch.tensor(SCHEDULE.t_max), LABELS))
        student = NoiseStudent(tiny_conditional().network, SCHEDULE, "v_prediction")
        times = torch.linspace(SCHEDULE.t_max, float(t), 3, dtype=torch.float64)
        errors = trajectory_errors(student, teacher, NOISE, times, (1, 2), 2, LABELS)
    assert set(errors.ddim) == {2, 4}


def test_conditions_join_and_split():
    joined = join(LABELS, first_of(LABELS, 2))
    assert joined["class_labels"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert join(None, None) is None


def test_mixed_classes_are_the_classes_at_the_ends():
    network = tiny_conditional().network
    mixed = MixedClasses(network.class_embedding)
    weights = torch.eye(4)[[1, 3]]
    assert torch.equal(mixed(weights), network.class_embedding(torch.tensor([1, 3])))


def test_the_classifier_learns_and_is_stored(tmp_path):
    from diffusion.data.kinds import prepare
    from evaluation.measure.classifier import (
        ClassifierSettings,
        classify,
        load_classifier,
        save_classifier,
        train_classifier,
    )

    settings = parse_settings({"kind": "digits"})
    write_dataset(tmp_path / "data", prepare(settings), settings)
    train, test = load_split(tmp_path / "data", "train"), load_split(tmp_path / "data", "test")
    chosen = ClassifierSettings.model_validate({"training": {"steps": 25, "batch_size": 32, "learning_rate": 1e-3}})
    with TrainingRun(tmp_path / "state", "key", 0, torch.device("cpu")) as run:
        network, cost = train_classifier(chosen, train, run)
    assert cost["real_images_seen"] == 800
    found = classify(network, np.asarray(test.images))
    assert np.mean(found == test.labels) > 0.5
    (tmp_path / "classifier").mkdir()
    save_classifier(tmp_path / "classifier", network, train.class_names, 0.9, 360)
    again = load_classifier(tmp_path / "classifier")
    assert np.array_equal(classify(again, np.asarray(test.images), batch_size=7), found)
    (tmp_path / "classifier" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="truncated"):
        load_classifier(tmp_path / "classifier")


def test_the_way_between_classes_ends_in_the_classes():
    student = NoiseStudent(tiny_conditional().network, SCHEDULE, "v_prediction")
    embedding, conditions = student.network.class_embedding, ClassLabels(3, has_null=True)
    ends = [{"class_labels": torch.tensor(labels)} for labels in ([0, 1, 2], [1, 2, 0])]
    with torch.no_grad():
        for share, end in enumerate(ends):
            images = sample_between(student, conditions, NOISE[:3], *ends, torch.full((3,), float(share)))
            torch.testing.assert_close(images, student.sample(NOISE[:3], end), rtol=1e-4, atol=1e-5)
        halfway = sample_between(student, conditions, NOISE[:3], *ends, torch.full((3,), 0.5))
    assert not any(torch.allclose(halfway, student.sample(NOISE[:3], end), atol=1e-4) for end in ends)
    assert student.network.class_embedding is embedding


def test_what_lies_between_classes_are_weights_over_the_labels():
    for has_null in (True, False):
        ends = [{"class_labels": torch.tensor(labels)} for labels in ([0, 1], [2, 1])]
        between = ClassLabels(3, has_null).between(*ends, torch.tensor([0.25, 0.5]))
        expected = torch.tensor([[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]])
        assert torch.equal(between["class_labels"][:, :3], expected)
        assert between["class_labels"].shape == (2, 3 + has_null)


def test_nearest_training_pictures_by_hand():
    training = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    found = nearest(np.array([[9.0, 0.0], [0.0, 6.0]]), training)
    assert found.index.tolist() == [1, 2]
    assert found.distance.tolist() == [1.0, 4.0]
    held_out = nearest(np.arange(1.0, 201.0)[:, None] * [[0.0, -1.0]], training)
    facts = closeness({"copies": nearest(training, training), "far": found}, held_out)
    assert facts["copies"] == {"median_distance": 0.0, "relative": 0.0, "suspicious": 1.0}
    assert facts["far"]["relative"] == pytest.approx(2.5 / 100.5)
    assert facts["far"]["suspicious"] == 0.5


def test_the_stage_keeps_samples_labels_and_neighbours_together(tmp_path):
    """In the order of the rows, which is not that of their names."""
    train, test = stored_data(tmp_path / "data"), load_split(tmp_path / "data", "test")
    real, parts = tmp_path / "real", {}
    real.mkdir()
    for name, part in (("train", train), ("test", test)):
        features = np.asarray(part.images).reshape(len(part.images), -1).astype(np.float32)
        np.save(real / f"{name}.npy", features)
        np.savez(real / f"{name}.npz", mu=features.mean(axis=0), sigma=np.cov(features, rowvar=False))
        parts[name] = {"count": len(features)}
    (real / "facts.json").write_text(json.dumps({"parts": parts}))
    rows = []
    for label, pictures in (("z", train.images[::-1]), ("a", test.images)):
        np.savez(tmp_path / f"{label}.npz", arr_0=pictures)
        np.save(tmp_path / f"{label}.npy", np.asarray(pictures).reshape(len(pictures), -1).astype(np.float32))
        rows.append([label, tmp_path / f"{label}.npz", tmp_path / f"{label}.npy"])
    output = tmp_path / "neighbours.npz"
    Find(rows=rows, real=real, data=tmp_path / "data", output=output).run()
    facts = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert [row["label"] for row in facts] == ["z", "a"]
    assert [row["relative"] for row in facts] == [0.0, 1.0]
    with np.load(output) as archive:
        assert np.array_equal(archive["samples-0"], train.images[::-1])
        assert np.array_equal(archive["nearest-0"], train.images[::-1])
        assert np.array_equal(archive["samples-1"], test.images)


def test_labels_that_the_classifier_does_not_know_are_refused(tmp_path):
    (tmp_path / "classifier.json").write_text(json.dumps({"class_names": ["a", "b"], "channels": 1}))
    files = {seed: tmp_path / f"seed-{seed}.npz" for seed in (0, 1)}
    grey, colour = np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 3))
    check_labels(tmp_path, files, {0: grey, 1: colour}, {0: np.array([0, 1])})
    with pytest.raises(UserError, match="classes 0 to 2, but the data set has 2"):
        check_labels(tmp_path, files, {0: grey}, {0: np.array([0, 2])})
    with pytest.raises(UserError, match="3 channels; expected the data set's 1"):
        check_labels(tmp_path, files, {0: colour}, {0: np.array([0, 1])})


def test_too_few_held_out_pictures_are_refused_before_anything_is_trained(tmp_path):
    """Measures are taken at their count too."""
    (tmp_path / "pictures").mkdir()
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    data = {"kind": "images", "path": str(tmp_path / "pictures"), "resolution": 8}
    with pytest.raises(UserError, match=r"3 pictures held out, expected 4 or more"):
        Prepare(settings=data | {"test_fraction": 0.075}, output=tmp_path / "data").run()
    Prepare(settings=data | {"test_fraction": 0.1}, output=tmp_path / "data").run()


def test_data_of_other_classes_than_a_stored_teachers_are_refused_before_they_are_prepared(tmp_path):
    told = {"settings": {"kind": "digits"}, "output": tmp_path / "data"}
    with pytest.raises(UserError, match=r"digits.*: 10 classes, but the teacher is told one of 7"):
        Prepare(**told, teacher_classes=7).run()
    assert not (tmp_path / "data").exists()
    Prepare(**told, teacher_classes=10).run()
    assert (tmp_path / "data" / "manifest.json").exists()


def test_a_teacher_of_other_classes_than_the_data_sets_is_refused(tmp_path):
    check_classes(tiny_conditional(num_classes=3).conditions, tmp_path, 3)
    check_classes(Denoiser(torch.nn.Identity(), SCHEDULE, "sample").conditions, tmp_path, 7)
    for found in (1, 2, 4):
        with pytest.raises(UserError, match=f"{found} classes, but the teacher is told one of 3"):
            check_classes(tiny_conditional(num_classes=3).conditions, tmp_path, found)


def test_broken_labels_are_refused(tmp_path):
    for labels in (np.array([{}, {}]), np.array([0.5, 1.0]), np.array([0])):
        np.savez(tmp_path / "x.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8), arr_1=labels)
        with pytest.raises(UserError, match="arr_1"):
            load_labels(tmp_path / "x.npz")


def test_a_broken_schedule_file_is_refused(tmp_path):
    save_denoiser(tmp_path, tiny_conditional())
    for change in ({"clip": True}, {"thresholding": {"kind": "soft"}}):
        stored = json.loads((tmp_path / "schedule.json").read_text())
        (tmp_path / "schedule.json").write_text(json.dumps(stored | change))
        with pytest.raises(UserError, match=r"schedule\.json: cannot be read"):
            load_denoiser(tmp_path)


def test_an_edm_pipeline_with_classes_keeps_its_thresholding(tmp_path):
    from diffusion.teachers.local_pipeline import LocalPipeline

    torch.manual_seed(0)
    network = build_network(NetworkSettings.model_validate(NETWORK), (1, 8, 8), 4)
    denoiser = Denoiser(network, EdmSchedule(num_timesteps=200), "edm", STATIC, ClassLabels(3, has_null=True))
    save_denoiser(tmp_path, denoiser)
    with torch.no_grad():
        expected = ddim_sample(guided(load_denoiser(tmp_path), Guidance(3.0)), NOISE, 3, LABELS)
    pipeline = LocalPipeline.from_pretrained(tmp_path)
    images = pipeline(
        class_labels=LABELS["class_labels"], num_inference_steps=3, guidance_scale=3.0, latents=NOISE, output_type="pt"
    ).images
    assert torch.equal(images, expected)
    assert float(images.abs().max()) <= 1


def test_labels_of_a_data_set_of_one_class_are_refused(tmp_path):
    splits = dataclasses.replace(tiny_splits(), class_names=("only",), train_labels=np.zeros(12, dtype=np.int64))
    splits = dataclasses.replace(splits, test_labels=np.zeros(12, dtype=np.int64))
    data = stored_data(tmp_path / "data", splits)
    settings = TeacherSettings.model_validate({"network": NETWORK, "labels": True, "training": {"steps": 1}})
    expected = r"teacher\.labels: found true.*one class, 'only'"
    with (
        TrainingRun(tmp_path / "state", "key", 0, torch.device("cpu")) as run,
        pytest.raises(UserError, match=expected),
    ):
        train_teacher(settings, data, run)
