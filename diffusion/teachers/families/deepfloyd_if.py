"""DeepFloyd IF, the first stage (Saharia et al. 2022, arXiv 2205.11487): pixels, and T5's tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion.teachers.stock import TextFamily

_TOKENS = 77  # which the pipeline's code says, and none of its files


class DeepFloydIF(TextFamily):
    pipelines = ("IFPipeline",)
    networks = ("UNet2DConditionModel",)

    def token_limit(self, folder: Path) -> tuple[Path, int]:
        return folder / "tokenizer", _TOKENS

    def encoded(self, pipeline: Any, texts: list[str], size: Sequence[int]) -> dict[str, torch.Tensor]:
        text, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
        return {"text": text}

    def told_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"text": (_TOKENS, config["encoder_hid_dim"])}

    def arguments(self, network: Any, told: torch.Tensor, condition: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        # Padding is attended to, as in its training: no mask.
        return {"timestep": told, "encoder_hidden_states": condition["text"]}


FAMILY = DeepFloydIF()
