"""How a network is trained: the block `training` of the YAML."""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from diffusion.runtime.errors import UserError
from diffusion.runtime.packages import require
from diffusion.runtime.precision import has_short_products
from diffusion.runtime.settings import GrownSettings


class TrainingSettings(GrownSettings):
    """How a network is optimised.

    Attributes:
        steps: optimiser steps (of one stage, where a method has several); null leaves them to ``minutes``.
        minutes: wall-clock time of the whole training, all stages of a method together, compilation included. How many
            steps fit is fixed once, from the rate of the first ones, and stored: a resumed run keeps the number, and
            ``steps`` with that number trains the same weights. Where both are given, whichever ends first.
        batch_size: images or noises a step, however many GPUs share it.
        gradient_accumulation_steps: in how many micro-batches of equal size a step's batch is computed; processes share
            them. Each has its own random draws, so that a run gives the same weights, up to the order of float32 sums,
            whatever the number of processes.
        learning_rate: the peak value, after ``warmup_steps`` of linear warm-up.
        decay: how the rate falls to zero over ``steps`` ("constant": it does not).
        ema_decay: decay of the moving average of the weights that is kept as the result; null keeps the last weights.
        gradient_clip: largest L2 norm of the gradient.
        optimiser: "adamw"; "radam" (Liu et al. 2020), which consistency models were published with; or "adamw_8bit",
            AdamW whose moments take a byte a weight (Dettmers et al. 2022, arXiv 2110.02861), by `bitsandbytes`.
        betas: decay of the two moments of the gradient.
        weight_decay: the optimiser's decoupled decay.
        snapshots: how many times the result so far is kept aside, for learning curves: after 1/2 of the steps, 1/4, ….
        compile: "default" compiles the loss and its gradient with torch.compile; "cudagraphs" captures them as CUDA
            graphs too, which spares a small network the time of launching its kernels. The draws and the optimiser stay
            outside; the losses are the same up to the order of float32 sums.
        shard: spreads the weights, their gradients, moments and average over the processes (FSDP), for networks that do
            not fit one GPU otherwise. The same training up to the order of sums.
        precision: "fp32" computes in float32 throughout; "tf32" lets a GPU shorten the factors of matrix products and
            convolutions to TF32 (10 bits of mantissa); "bf16" runs the networks under bfloat16 autocast (7 bits).
            "auto" is "bf16" for a teacher and "tf32" for all else on a GPU that has them in hardware, and "fp32"
            elsewhere: the targets of distillation are differences of estimates, which their weights amplify.
        activation_checkpointing: the backward pass computes the activations within the network's blocks again instead
            of keeping them: the same gradients for less memory and about a third more time.
        channels_last: whether the channels of weights and activations lie beside each other in memory, as tensor cores
            want them; "auto": under bfloat16 on a GPU. The same values up to the order of sums.
    """

    later: ClassVar[tuple[str, ...]] = ("minutes",)

    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(128, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "constant"
    ema_decay: float | None = Field(None, gt=0, lt=1)
    gradient_clip: float = Field(1.0, gt=0)
    optimiser: Literal["adamw", "radam", "adamw_8bit"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    snapshots: int = Field(0, ge=0)
    compile: Literal["off", "default", "cudagraphs"] = "off"
    shard: bool = False
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    activation_checkpointing: bool = False
    channels_last: bool | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _ends(self) -> "TrainingSettings":
        if self.steps is None and self.minutes is None:
            raise ValueError("found neither steps nor minutes, expected one of them")
        return self

    @model_validator(mode="after")
    def _has_room_in_its_steps(self) -> "TrainingSettings":
        # Of several stages each has as many steps at least, see of_stage.
        for key, (fewest, otherwise) in self.fewest_steps().items():
            if self.steps is not None and self.steps < fewest:
                raise ValueError(
                    f"{key}: found {getattr(self, key)} with steps {self.steps}, expected {fewest} steps or more with "
                    f"it: {otherwise}"
                )
        return self

    def fewest_steps(self) -> dict[str, tuple[int, str]]:
        """The keys that a training can be too short for: the fewest steps that each needs, and what were otherwise."""
        return {
            "warmup_steps": (self.warmup_steps + 1, "the learning rate would not reach its peak"),
            "snapshots": (2**self.snapshots, "the earliest would come before the first step"),
            # The average starts as the weights after the first step, and each further step leaves ema_decay of them.
            "ema_decay": (
                1 + (math.ceil(math.log(0.5) / math.log(self.ema_decay)) if self.ema_decay else 0),
                "more than half of the kept average would be the weights after the first step",
            ),
        }

    def defaults_for(self, steps: int) -> dict[str, Any]:
        """A method's default settings as they stand in for the keys that a block of so many steps leaves out.

        A warm-up or an average that such a training is too short for is shortened in proportion: the one keeps its
        share of the steps, the other the share of its first weights, ``ema_decay`` to the power of the steps.
        """
        kept, fewest = self.model_dump(), self.fewest_steps()
        if self.steps is not None and steps < fewest["warmup_steps"][0]:
            kept["warmup_steps"] = self.warmup_steps * steps // self.steps
        if self.steps is not None and self.ema_decay is not None and steps < fewest["ema_decay"][0]:
            # After a single step the average is the weights themselves.
            kept["ema_decay"] = None if steps == 1 else round(self.ema_decay ** (self.steps / steps), 6) or None
        return kept

    @model_validator(mode="after")
    def _slices(self) -> "TrainingSettings":
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps: found {self.gradient_accumulation_steps}, expected a divisor of "
                f"batch_size ({self.batch_size})"
            )
        return self

    @model_validator(mode="after")
    def _sharded(self) -> "TrainingSettings":
        if self.shard and self.compile != "off":
            raise ValueError(f"shard: found true with compile {self.compile!r}, expected 'off'")
        if self.shard and self.channels_last is True:
            raise ValueError("shard: found true with channels_last true, expected 'auto' or false")
        if self.shard and self.optimiser == "adamw_8bit":
            raise ValueError(
                "shard: found true with optimiser 'adamw_8bit', expected 'adamw': spread moments are whole"
            )
        if self.optimiser == "adamw_8bit" and self.channels_last is True:
            raise ValueError(
                "channels_last: found true with optimiser 'adamw_8bit', expected 'auto' or false: it takes weights as "
                "they lie"
            )
        return self

    @property
    def slice_size(self) -> int:
        """Pictures or noises of one slice: what a loss is called for."""
        return self.batch_size // self.gradient_accumulation_steps

    @field_validator("compile", mode="before")
    @classmethod
    def _off_in_yaml(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML 1.1 makes of the word without quotes

    @field_validator("betas")
    @classmethod
    def _decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"found {list(value)}, expected two numbers ≥ 0 and < 1")
        return value

    @property
    def num_steps(self) -> int:
        """The steps, once they are known.

        Raises:
            ValueError: they depend on how fast the device is.
        """
        if self.steps is None:
            raise ValueError("how many steps fit into training.minutes is known when the first ones have been timed")
        return self.steps

    def of_stage(self, weight: int, total: int) -> "TrainingSettings":
        """The settings of one of several stages: ``weight`` times the steps, or its share of the minutes.

        Args:
            total: the sum of the weights of all stages.
        """
        steps = None if self.steps is None else weight * self.steps
        minutes = None if self.minutes is None else self.minutes * weight / total
        return self.model_copy(update={"steps": steps, "minutes": minutes})

    def snapshot_steps(self) -> list[int]:
        """The numbers of steps after which a snapshot is taken, increasing."""
        halved = (self.num_steps >> power for power in range(self.snapshots, 0, -1))
        return sorted({steps for steps in halved if steps > 0})

    def resolved(self, device: torch.device, bf16: bool = False) -> "TrainingSettings":
        """The same with what "auto" comes to on a device.

        Args:
            bf16: whether precision "auto" means bfloat16 on a card that has it.

        Raises:
            UserError: TF32 without a card that has it.
        """
        able = has_short_products(device)
        if self.precision == "tf32" and not able:
            raise UserError(
                f"training.precision: found 'tf32' on the device {device}, expected 'auto', 'fp32' or 'bf16': TF32 "
                f"needs a card of compute capability 8.0 or later."
            )
        precision = self.precision_where(able, bf16)
        channels_last = self.channels_last
        if channels_last == "auto":
            apart = self.shard or self.optimiser == "adamw_8bit"
            channels_last = precision == "bf16" and device.type == "cuda" and not apart
        return self.model_copy(update={"precision": precision, "channels_last": channels_last})

    def precision_where(self, able: bool, bf16: bool = False) -> Literal["fp32", "tf32", "bf16"]:
        """What precision "auto" comes to.

        Args:
            able: whether the device has short products (:func:`diffusion.runtime.precision.has_short_products`).
            bf16: whether "auto" means bfloat16 there.
        """
        if self.precision != "auto":
            return self.precision
        return ("bf16" if bf16 else "tf32") if able else "fp32"

    @property
    def arithmetic(self) -> str:
        """How resolved settings compute the networks, in words."""
        words = [{"fp32": "float32", "tf32": "float32 (TF32)", "bf16": "bfloat16 autocast"}[self.precision]]
        words += ["channels last"] if self.channels_last else []
        words += ["activations recomputed"] if self.activation_checkpointing else []
        words += [f"compiled ({self.compile})"] if self.compile != "off" else []
        return ", ".join(words)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision of resolved settings, around what computes a loss."""
        # Uncached: some versions of torch lose the gradient of weights that were first cast where there was none.
        bf16 = self.precision == "bf16"
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16, cache_enabled=False)

    def optimiser_of(self, network: nn.Module) -> torch.optim.Optimizer:
        """A new optimiser of the network's trainable weights.

        Raises:
            UserError: its package is not installed.
        """
        weights = [p for p in network.parameters() if p.requires_grad]
        common: dict[str, Any] = {"lr": self.learning_rate, "betas": self.betas, "weight_decay": self.weight_decay}
        if self.optimiser == "radam":
            return torch.optim.RAdam(weights, decoupled_weight_decay=True, **common)
        if self.optimiser == "adamw_8bit":
            require("bitsandbytes", "training.optimiser: 'adamw_8bit'")
            from bitsandbytes.optim import AdamW8bit

            optimiser: torch.optim.Optimizer = AdamW8bit(weights, **common)
            return optimiser
        return torch.optim.AdamW(weights, fused=True, **common)

    def rate(self, step: int) -> float:
        """The learning rate of ``step`` (0-based)."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.learning_rate * warmup * self.decayed(step / self.num_steps)

    def decayed(self, progress: float) -> float:
        """What the decay has left of a rate after that share of the steps."""
        if self.decay == "linear":
            return 1 - progress
        return 0.5 * (1 + math.cos(math.pi * progress)) if self.decay == "cosine" else 1.0
