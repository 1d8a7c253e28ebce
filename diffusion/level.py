"""Noise levels, whose formulas with images read as papers write them: x_t = α_t x + σ_t ε."""

from dataclasses import dataclass
from typing import Any

import torch

_torch: Any = torch  # whose stubs know nothing of ``__torch_function__``


class Coefficient:
    """A number of every image of a batch, shape (N,), or one for all, shape (), in float64.

    Among themselves coefficients stay in float64, which ratios of noise levels need. With images, shape (N, C, H, W),
    they take the images' type, shape and device: here alone.
    """

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value

    def like(self, images: torch.Tensor) -> torch.Tensor:
        """The numbers as they multiply ``images``."""
        if self.value.ndim == 0:
            # Stays on the CPU: a scalar travels with the kernel, a copy would make the host wait for the device.
            return self.value.to(images.dtype)
        return self.value.to(device=images.device, dtype=images.dtype).reshape(-1, *[1] * (images.ndim - 1))

    @classmethod
    def __torch_function__(cls, function: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        """Any function of torch that is given coefficients: of images where one is among its arguments."""
        images = next((one for one in arguments if isinstance(one, torch.Tensor)), None)
        if images is None:
            return cls(function(*(one.value if isinstance(one, cls) else one for one in arguments), **(options or {})))
        return function(*(one.like(images) if isinstance(one, cls) else one for one in arguments), **(options or {}))

    def __mul__(self, other: Any) -> Any:
        return _torch.mul(self, other)

    def __rmul__(self, other: Any) -> Any:
        return _torch.mul(self, other)

    def __truediv__(self, other: Any) -> Any:
        return _torch.div(self, other)

    def __rtruediv__(self, other: float) -> "Coefficient":
        return Coefficient(other / self.value)

    def __add__(self, other: Any) -> Any:
        return _torch.add(self, other)

    def __sub__(self, other: Any) -> Any:
        return _torch.sub(self, other)

    def __pow__(self, exponent: float) -> "Coefficient":
        return _torch.pow(self, exponent)

    def sqrt(self) -> "Coefficient":
        return _torch.sqrt(self)

    def at_least(self, least: float) -> "Coefficient":
        return _torch.clamp(self, min=least)


@dataclass(frozen=True)
class Level:
    """The noise level of a time, or of one time an image.

    Attributes:
        time: float64, shape () or (N,).
        alpha, sigma: α and σ there.
    """

    time: torch.Tensor
    alpha: Coefficient
    sigma: Coefficient

    @property
    def log_noise_to_signal(self) -> torch.Tensor:
        """λ = log(σ/α), float64, shape of the time."""
        return torch.log(self.sigma.value) - torch.log(self.alpha.value)

    @property
    def truncated_snr(self) -> Coefficient:
        """max(α²/σ², 1), the weight of ‖x − x̂‖² of Salimans & Ho 2022, eq. 9."""
        return ((self.alpha / self.sigma) ** 2).at_least(1)

    def noised(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x_t = α x + σ ε, shape (N, C, H, W)."""
        return self.alpha * x + self.sigma * noise

    def signal(self, x_t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x = (x_t − σ ε) / α, the inverse of :meth:`noised`."""
        return (x_t - self.sigma * noise) / self.alpha


Times = torch.Tensor | float | Level  # times, shape (N,) or (), a number, or what is known of them already


def decay(s: Level, t: Level) -> Coefficient:
    """k = e^{λ_s − λ_t}, in (0, 1) for s < t."""
    return Coefficient(torch.exp(s.log_noise_to_signal - t.log_noise_to_signal))


def gain(s: Level, t: Level) -> Coefficient:
    """1 − k, without the cancellation that small steps would have."""
    return Coefficient(-torch.expm1(s.log_noise_to_signal - t.log_noise_to_signal))
