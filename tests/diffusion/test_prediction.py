"""What a network's output means, against the definitions."""

from typing import get_args

import pytest
import torch

from diffusion.prediction import PredictionType, Sample, prediction_of
from diffusion.schedule import CosineSchedule, EdmSchedule, FlowSchedule

X, NOISE = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.tensor([0.001, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)


OWN = {"edm": EdmSchedule, "flow": FlowSchedule}


def case(kind):
    schedule = OWN.get(kind, CosineSchedule)()
    at = schedule.at(T)
    return prediction_of(kind, schedule), at, at.noised(X, NOISE)


@pytest.mark.parametrize("kind", get_args(PredictionType))
def test_the_image_is_read_from_the_output_that_training_asks_for(kind):
    prediction, at, x_t = case(kind)
    torch.testing.assert_close(prediction.read(prediction.target(X, NOISE, at), x_t, at), X, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sample", lambda _alpha, _sigma: X),
        ("epsilon", lambda _alpha, _sigma: NOISE),
        ("v_prediction", lambda alpha, sigma: alpha * NOISE - sigma * X),
        ("flow", lambda _alpha, _sigma: NOISE - X),
        # Karras et al. 2022, eq. 8: (x − c_skip x_t) / c_out.
        (
            "edm",
            lambda _alpha, sigma: (
                (X - 0.25 / (sigma**2 + 0.25) * (X + sigma * NOISE)) / (sigma * 0.5 / (sigma**2 + 0.25).sqrt())
            ),
        ),
    ],
)
def test_the_target_is_the_definition(kind, expected):
    prediction, at, _ = case(kind)
    alpha, sigma = at.alpha.like(X), at.sigma.like(X)
    torch.testing.assert_close(prediction.target(X, NOISE, at), expected(alpha, sigma), rtol=1e-7, atol=1e-7)


def test_edm_feeds_images_of_unit_variance():
    prediction, at, _ = case("edm")
    x_t = 0.5 * X + at.sigma * NOISE
    expected = x_t / (at.sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(prediction.fed(x_t, at), expected)
    for kind in ("sample", "epsilon", "v_prediction", "flow"):
        assert case(kind)[0].fed(x_t, at) is x_t


@pytest.mark.parametrize("kind", get_args(PredictionType))
def test_at_pure_noise_only_epsilon_is_read_in_another_way(kind):
    schedule = OWN.get(kind, CosineSchedule)()
    at = schedule.at(schedule.t_max)
    prediction, start, output = prediction_of(kind, schedule), schedule.start(NOISE), X
    found = prediction.read_from_noise(output, start, NOISE, at)
    expected = NOISE - at.sigma * output if kind == "epsilon" else prediction.read(output, start, at)
    torch.testing.assert_close(found, expected)


def test_wrong_predictions_are_refused():
    with pytest.raises(ValueError, match="belongs to the edm schedule"):
        prediction_of("edm", CosineSchedule())
    with pytest.raises(ValueError, match="belongs to the flow schedule"):
        prediction_of("flow", EdmSchedule())
    with pytest.raises(ValueError, match=r"found 'score', expected one of: epsilon, v_prediction, sample, edm, flow"):
        prediction_of("score", CosineSchedule())
    assert isinstance(prediction_of("sample", EdmSchedule()), Sample)
