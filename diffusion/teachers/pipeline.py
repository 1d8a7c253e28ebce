"""Images from a student or a teacher: ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``.

This file travels with the weights, as ``pipeline.py``, so that a folder needs no more than torch, numpy and
`diffusers`. It imports nothing else, and samples bit for bit as the suite that trained the network (on a CPU; tested).

Notation: x_t = α_t x + σ_t ε; the network's output F is read as the estimate x̂ of the clean image x.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.utils.torch_utils import randn_tensor

# What a condition is called here, and what the networks of `diffusers` call it.
_NETWORK_NAMES = {
    "class_labels": "class_labels",
    "text": "encoder_hidden_states",
    "text_mask": "encoder_attention_mask",
}


class StudentPipeline(DiffusionPipeline):
    """Draws images from standard normal noise, in one of three ways.

    One step (``told_timestep`` is set): the network is fed pure noise and answers with an image. Consistency
    (``levels``; Song et al. 2023, algorithm 1): one or more evaluations, with fresh noise between them. Else DDIM steps
    (Song et al. 2021, eq. 12, η = 0), spread as `diffusers`' "trailing".

    Args:
        unet: a ``UNet2DModel``, or a network that is called as one.
        scheduler: ``EDMEulerScheduler`` of an EDM network, ``FlowMatchEulerDiscreteScheduler`` of flow matching, else
            one with betas; for noise levels and prediction type.
        told_timestep: the timestep that the network of one step is told.
        read_timestep: the whole timestep at whose noise level it is fed and read; None is the last one.
        signal_scale: what its image is multiplied by.
        raw: whether its output is the image itself, whatever the prediction type.
        epsilon_reading: of epsilon there, at the last one, "noise", ε − σ F, or "exact", that divided by α.
        levels: {"timesteps": increasing, "sampling": indices of the levels at which further steps start, None spreads
            them evenly, "clip": whether images are clipped between steps; left out where they are not}.
        num_classes: labels that are classes; one more label is no class, which guidance needs.
        guidance_range: [low, high] of the guidance scales that the network is told; None where it is told none.
        max_tokens: tokens that a prompt is padded to; set of a network that is told texts.
        text_encoder, tokenizer: of `transformers`, of such a network, which is told the last hidden states.
        vae: of `diffusers`, where the network's states are its latents.
        thresholding: how x̂ is bounded by DDIM steps, {"kind": "none", "static" or "dynamic", "ratio", "maximum"}.
        cosine: {"t_min", "t_max"} of α_t = cos(πt/2), of which the scheduler's betas are a rounded form.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["text_encoder", "tokenizer", "vae"]

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        told_timestep: Any = None,
        read_timestep: Any = None,
        signal_scale: Any = 1.0,
        raw: Any = False,
        epsilon_reading: Any = "noise",
        levels: Any = None,
        num_classes: Any = None,
        thresholding: Any = None,
        cosine: Any = None,
        max_tokens: Any = None,
        guidance_range: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vae: Any = None,
    ) -> None:
        given = dict(locals())
        parts = {name: given[name] for name in ("unet", "scheduler", "text_encoder", "tokenizer", "vae")}
        super().__init__()
        self.register_modules(**parts)
        self.register_to_config(**{name: given[name] for name in sorted(given.keys() - {"self", "__class__", *parts})})

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """As of every pipeline, and the code with it."""
        super().save_pretrained(save_directory, *arguments, **options)
        self.carry_code(Path(save_directory))

    def carry_code(self, folder: Path) -> None:
        """Puts this file into a stored pipeline's folder, and the network's where `diffusers` has it not; both are
        named in model_index.json."""
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        index["_class_name"] = ["pipeline", "StudentPipeline"]
        shutil.copyfile(__file__, folder / "pipeline.py")
        network = type(self.unet)
        source = sys.modules[network.__module__].__file__
        if source is not None and not network.__module__.startswith("diffusers."):
            shutil.copyfile(source, folder / "unet" / Path(source).name)
            index["unet"] = [Path(source).stem, network.__name__]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        batch_size: int = 1,
        class_labels: int | list[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        timestep: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Samples.

        Args:
            prompt: of a network that is told texts, one an image, or one for all.
            batch_size: number of images; that of prompts, ``class_labels`` or ``latents`` counts where one is given.
            class_labels: of a class-conditional network, one an image, or one for all.
            num_inference_steps: evaluations of the network an image (two under guidance). One for students of one step,
                one unless given for consistency; DDIM steps must be told.
            guidance_scale: w of f(∅) + w (f(c) − f(∅)) (Ho & Salimans 2022), of teachers, and of students that are
                told it, within their ``guidance_range``; all others have learnt theirs.
            generator: source of the noise. The further noise of a consistency student follows from that noise.
            latents: the noise itself, standard normal, shape (N, C, H, W).
            timestep: of a BOOT student, where its trajectory is read: 0 (the sample) to num_train_timesteps − 1 (the
                blurred start).
            output_type: "pil", "np" (float in [0, 1], N×H×W×C), "pt" (float in [−1, 1], N×C×H×W, not clipped), or
                "latent" (what the network itself draws).

        Returns:
            ``ImagePipelineOutput`` with ``images``, or a tuple when ``return_dict`` is false.

        Raises:
            ValueError: arguments that do not fit each other or the network, or images that are not finite.
        """
        one_step = self.config.told_timestep is not None
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type: found {output_type!r}, expected 'pil', 'np', 'pt' or 'latent'")
        if guidance_scale != 1 and (one_step or self.config.levels) and self.config.guidance_range is None:
            raise ValueError(f"guidance_scale: found {guidance_scale}, expected 1: the student has learnt its guidance")
        if timestep is not None and not one_step:
            raise ValueError("timestep: given, but only the network of one step is told a time of one's choice")
        count = batch_size if latents is None else len(latents)
        if self.config.max_tokens is not None:
            condition = self._told(prompt, class_labels, count)
        elif prompt is not None:
            raise ValueError(f"prompt: found {prompt!r}, expected none: the network is told no text")
        else:
            condition = self._labels(class_labels, count, guidance_scale)
        for value in condition.values():
            count = len(value)
        noise = self._noise(count, generator, latents)
        images = self.drawn(noise, num_inference_steps, condition, guidance_scale, timestep)
        images = images if output_type == "latent" else self.decoded(images)
        self.maybe_free_model_hooks()
        drawn = images if output_type in ("pt", "latent") else self._shown(images, output_type)
        return ImagePipelineOutput(images=drawn) if return_dict else (drawn,)

    def drawn(
        self,
        noise: torch.Tensor,
        num_inference_steps: int | None = None,
        condition: Mapping[str, torch.Tensor] | None = None,
        guidance_scale: float = 1.0,
        timestep: float | None = None,
    ) -> torch.Tensor:
        """Images in [−1, 1], not clipped, or latents, from ``noise``, both of shape (N, C, H, W).

        Args:
            condition: ``class_labels``, shape (N,), or ``text``, (N, L, D), and ``text_mask``, (N, L).

        Raises:
            ValueError: a number of steps that the network cannot take, or a scale that it has not learnt.
        """
        if (span := self.config.guidance_range) is not None:
            if not span[0] <= guidance_scale <= span[1]:
                raise ValueError(f"guidance_scale: found {guidance_scale}, expected {span[0]} to {span[1]}, as learnt")
            scales = torch.full((len(noise),), float(guidance_scale), device=noise.device)
            condition, guidance_scale = {**(condition or {}), "guidance": scales}, 1.0
        told = self.config.told_timestep if timestep is None else timestep
        if told is not None:
            if num_inference_steps not in (None, 1):
                raise ValueError(f"num_inference_steps: found {num_inference_steps}, expected 1")
            return self._in_one_step(noise, told, condition or {})
        if self.config.levels:
            return self._by_consistency(noise, num_inference_steps or 1, condition or {})
        return self._by_ddim(noise, num_inference_steps, condition or {}, guidance_scale)

    def decoded(self, states: torch.Tensor) -> torch.Tensor:
        """Images in [−1, 1], not clipped, of what the network draws: of its latents, where there is an autoencoder."""
        if self.vae is None:
            return states
        config = self.vae.config
        shift, scale = torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(float(config.scaling_factor))
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            shift, scale = torch.tensor(config.latents_mean), scale / torch.tensor(config.latents_std)
        given = states / scale.to(states).reshape(-1, 1, 1) + shift.to(states).reshape(-1, 1, 1)
        return self.vae.decode(given.to(next(self.vae.parameters()).dtype), return_dict=False)[0].float()

    def _shown(self, images: torch.Tensor, output_type: str) -> Any:
        """Images as numbers in [0, 1], N×H×W×C, or as PIL has them: round(127.5 x + 127.5)."""
        if not torch.isfinite(images).all():
            raise ValueError("the images contain NaN or infinity: the network is broken, or overflowed")
        images = images.permute(0, 2, 3, 1).cpu()
        if output_type == "np":
            return (images / 2 + 0.5).clamp(0, 1).numpy()
        return self.numpy_to_pil((images * 127.5 + 127.5).clamp(0, 255).round().numpy() / np.float32(255))

    # -- what a call is given ------------------------------------------------------------------------------------------

    def _told(self, prompt: Any, labels: Any, count: int) -> dict[str, torch.Tensor]:
        """What the network is told of a prompt an image, ``count`` times where one is given for all."""
        if labels is not None:
            raise ValueError("class_labels: given, but the network is told texts: prompt")
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one.strip() for one in texts):
            raise ValueError(f"prompt: found {prompt!r}, expected a text, or a list of them, one an image")
        if count not in (1, len(texts)) and len(texts) > 1:
            raise ValueError(f"prompt: found {len(texts)}, expected {count}, one an image")
        return self.encoded(texts * count if len(texts) == 1 else texts)

    def encoded(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """The text encoder's last hidden states, rounded to float16 as stored ones are, and where its tokens are.

        Raises:
            ValueError: a text has more tokens than the network has seen.
        """
        most = self.config.max_tokens
        given = self.tokenizer(texts, padding="max_length", max_length=most, truncation=False, return_tensors=None)
        for text, tokens in zip(texts, given["input_ids"], strict=True):
            if len(tokens) > most:
                raise ValueError(f"prompt: found {len(tokens)} tokens, expected {most} at most: {text!r}")
        tokens = {name: torch.tensor(rows, device=self._execution_device) for name, rows in given.items()}
        text = self.text_encoder(**tokens).last_hidden_state.half().float()
        return {"text": text, "text_mask": tokens["attention_mask"].bool()}

    def _without(self, condition: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """No class, or the empty text, in the place of the condition."""
        if "class_labels" in condition:
            return {"class_labels": torch.full_like(condition["class_labels"], self.config.num_classes)}
        return {name: value.expand_as(condition[name]) for name, value in self.encoded([""]).items()}

    def _labels(self, given: Any, count: int, guidance_scale: float) -> dict[str, torch.Tensor]:
        """One label an image, shape (N,), ``count`` times where one is given for all; nothing without classes."""
        known = self.unet.config.get("num_class_embeds")
        if known is None:
            if given is not None or guidance_scale != 1:
                raise ValueError("class_labels, guidance_scale: given, but the network is not class-conditional")
            return {}
        classes = self.config.num_classes or known
        if guidance_scale != 1 and known == classes:
            raise ValueError(
                f"guidance_scale: found {guidance_scale}, expected 1: the network has no label for no class"
            )
        if given is None:
            raise ValueError(f"class_labels: found none, expected one an image, each from 0 to {classes - 1}")
        labels = torch.as_tensor(given, device=self._execution_device).long()
        labels = labels.expand(count) if labels.ndim == 0 else labels
        if labels.ndim != 1 or count not in (1, len(labels)):
            raise ValueError(f"class_labels: found shape {tuple(labels.shape)}, expected ({count},), one an image")
        if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= known:
            raise ValueError(f"class_labels: found {labels.tolist()}, expected labels from 0 to {classes - 1}")
        return {"class_labels": labels}

    def _noise(self, count: int, generator: Any, latents: torch.Tensor | None) -> torch.Tensor:
        """``latents`` where they are given, else ``count`` fresh ones; float32, shape (N, C, H, W)."""
        size = self.unet.config["sample_size"]
        shape = (count, self.unet.config["out_channels"], *((size, size) if isinstance(size, int) else size))
        if latents is None:
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents: found shape {tuple(latents.shape)}, expected {shape}")
        return latents.to(self._execution_device, torch.float32)

    # -- noise levels and the network ----------------------------------------------------------------------------------

    @property
    def _deviation(self) -> float:
        """Of images in [−1, 1], or of latents."""
        return 0.5 if self.vae is None else 1.0

    @property
    def _is_edm(self) -> bool:
        return "sigma_data" in self.scheduler.config

    @property
    def _is_flow(self) -> bool:
        return "shift" in self.scheduler.config

    def _levels(self, timestep: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """α and σ at a timestep, whole unless it is EDM's or a flow's; float64, shape of ``timestep``."""
        config, timestep = self.scheduler.config, torch.as_tensor(timestep, dtype=torch.float64)
        last = config.num_train_timesteps - 1
        if self._is_edm:  # Karras et al. 2022, eq. 5; α = 1
            low, high = config.sigma_min ** (1 / config.rho), config.sigma_max ** (1 / config.rho)
            return torch.ones_like(timestep), (low + timestep * (1 / last) * (high - low)) ** config.rho
        if self._is_flow:  # Esser et al. 2024, sec. 5.3.2; α + σ = 1
            time = (timestep + 1) / config.num_train_timesteps
            scale = 1 + (config.shift - 1) * time
            return (1 - time) / scale, config.shift * time / scale
        if (cosine := self.config.cosine) is not None:
            time = cosine["t_min"] + timestep * ((cosine["t_max"] - cosine["t_min"]) / last)
            return torch.cos(time * (np.pi / 2)), torch.sin(time * (np.pi / 2))
        # In float64: the scheduler's own product is in float32.
        squares = self.scheduler.alphas_cumprod.double()
        if config.trained_betas is not None and not config.get("rescale_betas_zero_snr"):
            squares = torch.from_numpy(np.cumprod(1 - np.asarray(config.trained_betas, dtype=np.float64)))
        square = squares[timestep.round().long()]
        return square.sqrt(), (1 - square).sqrt()

    def _start(self, noise: torch.Tensor) -> torch.Tensor:
        """The state at the last timestep: noise alone."""
        return self.scheduler.config.sigma_max * noise if self._is_edm else noise

    def _network_time(self, timestep: Any) -> float:
        """What the network is told at a timestep."""
        if self._is_edm:
            return float(torch.log(self._levels(timestep)[1]) / 4)  # c_noise
        if self._is_flow:
            return float(self.scheduler.config.num_train_timesteps * self._levels(timestep)[1])
        return float(timestep)

    def _output(
        self, x: torch.Tensor, sigma: torch.Tensor, timestep: Any, condition: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """F for the state x of noise level σ, in float32."""
        if self._is_edm:
            x = x / (sigma.square() + self.scheduler.config.sigma_data**2).sqrt().to(x.dtype)
        # As a tensor: networks of `diffusers` truncate Python's floats.
        told = torch.full((len(x),), self._network_time(timestep), device=x.device)
        return self._called(x.to(next(self.unet.parameters()).dtype), told, condition)

    def _called(self, fed: torch.Tensor, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """F in float32, from what the network is fed."""
        named = {_NETWORK_NAMES[name]: value for name, value in condition.items() if name in _NETWORK_NAMES}
        if "encoder_hidden_states" in named:
            named["encoder_hidden_states"] = named["encoder_hidden_states"].to(fed.dtype)
        if "guidance" in condition:
            angles, size = 1000 * (condition["guidance"] - 1), self.unet.config["time_cond_proj_dim"]
            named["timestep_cond"] = get_timestep_embedding(angles, size, downscale_freq_shift=1).to(fed.dtype)
        return self.unet(fed, told, return_dict=False, **named)[0].float()

    def _read(self, output: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """x̂ from F at the state x, unbounded."""
        if self._is_edm:  # Karras et al. 2022, table 1
            data = self.scheduler.config.sigma_data
            total = sigma.square() + data**2
            return (data**2 / total).to(x.dtype) * x + (sigma * data / total.sqrt()).to(x.dtype) * output
        if self._is_flow:  # F = ε − x
            return x - sigma.to(x.dtype) * output
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return output
        if kind == "v_prediction":
            return alpha.to(x.dtype) * x - sigma.to(x.dtype) * output
        return (x - sigma.to(x.dtype) * output) / alpha.to(x.dtype)

    # -- the three ways ------------------------------------------------------------------------------------------------

    def _in_one_step(self, noise: torch.Tensor, told: float, condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The image from pure noise, fed and read at one noise level, whatever time the network is told."""
        at_end = self.config.read_timestep is None
        timestep = self.scheduler.config.num_train_timesteps - 1 if at_end else self.config.read_timestep
        alpha, sigma = self._levels(timestep)
        x = self._start(noise) if at_end else sigma.to(noise.dtype) * noise
        output = self._output(x, sigma, told, condition)
        undivided = at_end and self.config.epsilon_reading == "noise" and not self._is_edm
        if self.config.raw:
            images = output
        elif undivided and self.scheduler.config.get("prediction_type") == "epsilon":
            images = noise - sigma.to(noise.dtype) * output  # α is next to nothing: not divided by
        else:
            images = self._read(output, x, alpha, sigma)
        return self.config.signal_scale * images

    def _by_consistency(self, noise: torch.Tensor, steps: int, condition: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Multi-step consistency sampling: z = f + √(τ² − τ_1²) ε' with τ = σ/α between two evaluations."""
        least_alpha, least_sigma = self._levels(self.config.levels["timesteps"][0])
        lcm = self.config.levels.get("boundary") == "lcm"  # whose further noise is that of the level, whole
        least = 0 * least_sigma if lcm else least_sigma / least_alpha
        images, fresh = torch.zeros_like(noise), self._further_noise(noise)
        for number, timestep in enumerate(consistency_timesteps(self.config.levels, steps)):
            alpha, sigma = self._levels(timestep)
            if number == 0:
                x = self._start(noise) if lcm else sigma.to(noise.dtype) * noise
            else:
                added = (sigma.square() - (alpha * least).square()).clamp(min=0).sqrt()
                images = images.clamp(-1, 1) if self.config.levels.get("clip") else images
                x = alpha.to(noise.dtype) * images + added.to(noise.dtype) * next(fresh)
            estimate = self._read(self._output(x, sigma, timestep, condition), x, alpha, sigma)
            skip, out = self._by_timestep(timestep) if lcm else self._boundary(alpha, sigma, least)
            images = skip.to(x.dtype) * x + out.to(x.dtype) * estimate
        return images

    def _further_noise(self, noise: torch.Tensor) -> Iterator[torch.Tensor]:
        """Fresh noise again and again, of each image its own: the same whatever the batch."""
        seeds = [int.from_bytes(hashlib.sha256(one.tobytes()).digest()[:8], "big") >> 1 for one in noise.cpu().numpy()]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        while True:
            yield torch.stack([torch.randn(noise.shape[1:], generator=one) for one in generators]).to(noise)

    def _boundary(
        self, alpha: torch.Tensor, sigma: torch.Tensor, least: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients of x and x̂ in the consistency function, which is x/α at τ_1 (Song et al. 2023, appendix C)."""
        tau, rest = sigma / alpha, sigma / alpha - least
        variance = (self.scheduler.config.sigma_data if self._is_edm else self._deviation) ** 2
        both = (rest.square() + variance) * (tau.square() + variance)
        skip = variance * least * (tau.square() + tau * rest + rest.square() + variance) / (tau * both)
        return skip / alpha, rest / tau

    def _by_timestep(self, timestep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients of x and x̂ in that of latent consistency models (Luo et al. 2023), which is x at τ_1."""
        first = self.config.levels["timesteps"][0]
        scaled = torch.tensor(10 * (self._network_time(timestep) - self._network_time(first)), dtype=torch.float64)
        total = scaled.square() + 0.5**2
        return 0.5**2 / total, scaled / total.sqrt()

    def _by_ddim(
        self, noise: torch.Tensor, steps: int | None, condition: Mapping[str, torch.Tensor], scale: float
    ) -> torch.Tensor:
        """DDIM steps from the last timestep to the clean image."""
        most = self.scheduler.config.num_train_timesteps
        if steps is None or not 1 <= steps <= most:
            found = "none" if steps is None else steps
            raise ValueError(
                f"num_inference_steps: found {found}, expected 1 to {most}; a student's own number is part of its "
                f"folder's name and of its model card"
            )
        grid = np.round(np.arange(most, 0, -most / steps)).astype(np.int64)[:steps] - 1
        alphas, sigmas = self._levels(torch.from_numpy(grid))
        alphas, sigmas = torch.cat([alphas, torch.ones(1)]), torch.cat([sigmas, torch.zeros(1)])
        x = self._start(noise)
        none = {} if scale == 1 else self._without(condition)
        joint = {name: torch.cat([condition[name], value]) for name, value in none.items()}
        for i, timestep in enumerate(grid):
            if scale == 1:
                estimate = self._read(self._output(x, sigmas[i], timestep, condition), x, alphas[i], sigmas[i])
            else:
                both = torch.cat([x, x])
                output = self._output(both, sigmas[i], timestep, joint)
                told, untold = self._read(output, both, alphas[i], sigmas[i]).chunk(2)
                estimate = untold + scale * (told - untold)
            ratio = sigmas[i + 1] / sigmas[i]
            rest = alphas[i + 1] - alphas[i] * ratio
            x = ratio.to(x.dtype) * x + rest.to(x.dtype) * self._bounded(estimate)
        return x

    def _bounded(self, x: torch.Tensor) -> torch.Tensor:
        """x̂ as ``thresholding`` says; "dynamic" is that of Saharia et al. 2022, sec. 2.3."""
        thresholding = self.config.thresholding or {"kind": "none"}
        if thresholding["kind"] == "none":
            return x
        if thresholding["kind"] == "static":
            return x.clamp(-1, 1)
        bound = torch.quantile(x.abs().flatten(1), thresholding["ratio"], dim=1).clamp(1, thresholding["maximum"])
        bound = bound.reshape(-1, 1, 1, 1)
        return x.clamp(-bound, bound) / bound


def consistency_timesteps(levels: dict[str, Any], steps: int) -> list[int]:
    """The whole timesteps at which multi-step consistency sampling evaluates its network, decreasing.

    From the last level on, and then at those of ``levels["sampling"]``, or equally spaced in the level's index, towards
    the first, where no step starts. Whole, because there a scheduler knows the schedule exactly.

    Raises:
        ValueError: no step, as many as levels, or more than levels were chosen for.
    """
    timesteps, chosen = levels["timesteps"], levels["sampling"]
    last = len(timesteps) - 1
    most = last if chosen is None else len(chosen) + 1
    if not 1 <= steps <= most:
        raise ValueError(f"num_inference_steps: found {steps}, expected 1 to {most}")
    evenly = [round(last * (1 - step / steps)) for step in range(steps)]
    index = evenly if chosen is None else [last, *chosen[: steps - 1]]
    return [max(1, round(timesteps[i])) for i in index]
