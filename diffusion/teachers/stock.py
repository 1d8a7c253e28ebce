"""Families of `diffusers`' own pipelines, whose networks are called and whose texts are read as those pipelines do."""

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion.conditions import Condition, Conditions, Unconditional
from diffusion.family import of_its_kind
from diffusion.runtime.errors import UserError, brief
from diffusion.runtime.files import read_json_object
from diffusion.teachers.families import TeacherFamily

# Parts of a pipeline that encode no text. Safety checkers are never read; a student's scheduler may be code of its own.
_NOT_OF_TEXT = (
    *("unet", "transformer", "vae", "safety_checker", "feature_extractor", "image_encoder", "watermarker"),
    *("scheduler", "image_noising_scheduler"),
)


class StockFamily(TeacherFamily):
    """Networks of pipelines of `diffusers`.

    Attributes:
        scales_noise: whether the pipeline multiplies the noise that it begins with by its scheduler's scale.
    """

    scales_noise: ClassVar[bool] = False

    def network_class(self, name: str) -> Any:
        import diffusers  # 3 seconds: not at import

        return getattr(diffusers, name)

    @abstractmethod
    def arguments(self, network: Any, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What the network is told beside the state, by the names of its forward call.

        Args:
            condition: its numbers are of the network's own type.
        """

    def call(self, network: nn.Module, x: torch.Tensor, told: torch.Tensor, condition: Condition) -> torch.Tensor:
        """As the base class. Channels beyond the state's are a learnt variance, which is not read."""
        x, given = of_its_kind(network, x, condition)
        output: torch.Tensor = network(x, return_dict=False, **self.arguments(network, told, given))[0]
        return output[:, : x.shape[1]].float()

    def channels(self, config: Any) -> int:
        found: int = config["in_channels"]  # a learnt variance comes out beside them
        return found

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        return []


class TextFamily(StockFamily):
    """Those that are told texts."""

    scales_noise = True

    def conditions(self, config: Mapping[str, Any], num_classes: int | None = None) -> Conditions:
        raise ValueError("the network is told texts, and the folder holds none")

    def token_limit(self, folder: Path) -> tuple[Path, int]:
        """The tokenizer that reads the longest texts, and how many tokens its pipeline gives to the network."""
        import diffusers

        tokenizer = sorted(folder.glob("tokenizer*"))[-1]
        pipeline = getattr(diffusers, read_json_object(folder / "model_index.json")["_class_name"])
        given = inspect.signature(pipeline.encode_prompt).parameters.get("max_sequence_length")
        if given is not None:
            return tokenizer, int(given.default)
        return tokenizer, int(read_json_object(tokenizer / "tokenizer_config.json")["model_max_length"])

    @abstractmethod
    def encoded(self, pipeline: Any, texts: list[str], size: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the pipeline's encoders make of P texts: tensors of shape (P, …), by this suite's names.

        Args:
            pipeline: without network and autoencoder.
            size: (height, width) of the images in pixels.
        """

    @abstractmethod
    def told_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """What a network of this configuration is told of one text, by :meth:`encoded`'s names, for costs."""

    def negative(self, pipeline: Any, text: str, size: Sequence[int]) -> dict[str, torch.Tensor]:
        """What stands in the place of a text in the unconditional input: the embedding of another, tensors (1, …)."""
        return self.encoded(pipeline, [text], size)


class TextsToCome(Unconditional):
    """Of a teacher that is told texts, and whose folder holds none: they are given beside it.

    Args:
        source: the pipeline's folder, with its text encoders.
    """

    told, can_be_guided, knows_empty = "text", True, True
    texts: tuple[str, ...] = ()
    max_tokens = None

    def __init__(self, source: Path) -> None:
        self.source = source

    def draw(self, count: int, generator: torch.Generator) -> Condition:
        raise UserError(f"{self.source}: the teacher is told texts, and there are none; name some by prompts.train.")

    def of_samples(self, indices: Iterable[int], device: torch.device | str) -> Condition:
        raise UserError(
            f"{self.source}: the teacher is told texts, and there are none; name some by prompts.evaluation."
        )


def encoding_pipeline(folder: Path, device: torch.device) -> Any:
    """A stock pipeline with what it encodes texts by, and nothing else.

    Raises:
        UserError: a part is not there, or cannot be read.
    """
    from diffusers import DiffusionPipeline

    index = read_json_object(folder / "model_index.json")
    left_out = {name: None for name in _NOT_OF_TEXT if name in index}
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True, **left_out)
    except Exception as error:  # of classes that are not ours, at what a user's folder holds
        raise UserError(
            f"{folder}: its text encoders cannot be read ({brief(error)}); expected tokenizers, and weights in "
            f"safetensors."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
