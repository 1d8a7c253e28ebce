"""A teacher that is exact: the posterior mean of Gaussian data, whose trajectories have a closed form."""

import torch

from diffusion.denoiser import Denoiser
from diffusion.schedule import Schedule
from diffusion.thresholding import NO_THRESHOLD


class GaussianTeacher(Denoiser):
    """f(x_t, t) = E[x | x_t] for x ~ N(mean, scale²) in every pixel, independently.

    Along the probability-flow ODE, (x_t − α_t mean) / √(α_t² scale² + σ_t²) is constant.
    """

    def __init__(self, schedule: Schedule, mean: float = 0.3, scale: float = 0.5) -> None:
        super().__init__(torch.nn.Identity(), schedule, "sample", NO_THRESHOLD)
        self.mean, self.scale = mean, scale

    def estimate(self, x_t, t, condition=None):
        at = self.schedule.at(t)
        alpha, sigma = at.alpha.like(x_t), at.sigma.like(x_t)
        gain = alpha * self.scale**2 / (alpha**2 * self.scale**2 + sigma**2)
        return self.mean + gain * (x_t - alpha * self.mean)

    def state(self, start, t_start, t):
        """x_t of the trajectory through ``start`` at ``t_start``, exactly."""

        def spread(time):
            at = self.schedule.at(time)
            alpha = at.alpha.like(start)
            return alpha, (alpha**2 * self.scale**2 + at.sigma.like(start) ** 2).sqrt()

        (alpha_start, spread_start), (alpha, spread_t) = spread(t_start), spread(t)
        return alpha * self.mean + (start - alpha_start * self.mean) * spread_t / spread_start

    def signal(self, noise, t_start, t):
        """y_t = (x_t − σ_t ε) / α_t of the trajectory through x = α y(t_start) + σ ε, y(t_start) = f(x_M, t_start)."""
        start = self.schedule.at(t_start).noised(self(self.schedule.start(noise), t_start), noise)
        return self.schedule.at(t).signal(self.state(start, t_start, t), noise)


class MixtureTeacher(Denoiser):
    """f(x_t, t) = E[x | x_t] for pixels that are ±0.6 with a deviation of 0.2, each sign with one half."""

    def __init__(self, schedule: Schedule, mean: float = 0.6, scale: float = 0.2) -> None:
        super().__init__(torch.nn.Identity(), schedule, "sample", NO_THRESHOLD)
        self.mean, self.scale = mean, scale

    def estimate(self, x_t, t, condition=None):
        at = self.schedule.at(t)
        alpha, sigma = at.alpha.like(x_t), at.sigma.like(x_t)
        variance = alpha**2 * self.scale**2 + sigma**2
        gain = alpha * self.scale**2 / variance
        means = torch.stack([torch.full_like(x_t, self.mean), torch.full_like(x_t, -self.mean)])
        share = torch.softmax(-((x_t - alpha * means).square()) / (2 * variance), dim=0)
        return (share * (means + gain * (x_t - alpha * means))).sum(dim=0)


class Reads(torch.nn.Module):
    """A network whose output, read as ``kind``, is an exact teacher's estimate: it undoes the reading."""

    def __init__(self, exact: Denoiser, kind: str) -> None:
        super().__init__()
        self.exact, self.kind = exact, kind

    def forward(self, fed, told, return_dict=False):
        schedule = self.exact.schedule
        if self.kind == "edm":
            t = schedule.time_of(4 * told.double())
            sigma, data = schedule.at(t).sigma.like(fed), schedule.sigma_data
            x_t = fed.double() * (sigma.double() ** 2 + data**2).sqrt()
            estimate = self.exact(x_t, t)
            skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
            return ((estimate - skip * x_t) / out,)
        x_t = fed.double()
        if self.kind == "flow":
            sigma = told.double() / schedule.num_timesteps
            t = sigma / (schedule.shift - (schedule.shift - 1) * sigma)
            sigma = sigma.reshape(-1, 1, 1, 1)
            return ((x_t - self.exact(x_t, t)) / sigma,)
        t = schedule.time(told)
        at, estimate = schedule.at(t), self.exact(x_t, t)
        noise = (x_t - at.alpha * estimate) / at.sigma
        velocity = at.alpha * noise - at.sigma * estimate
        return ({"sample": estimate, "epsilon": noise, "v_prediction": velocity}[self.kind],)
