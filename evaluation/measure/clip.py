"""A CLIP of `transformers` (Radford et al. 2021, arXiv 2103.00020) that compares images with captions.

Imported only where a score is asked for: `transformers` takes seconds to import.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import sha256_file
from diffusion.runtime.memory import in_portions
from evaluation.measure.captions import Match
from evaluation.measure.extractor import reproducible_arithmetic
from evaluation.measure.pretrained import WEIGHTS, read_model
from evaluation.measure.text_scores import PUBLISHED, TextScore, TextScoreName


class Clip:
    """The CLIP of one score, with the captions that it has read.

    Images and texts go through the model's own processor: of a wide or a high image it takes the middle square. Longer
    texts than the model reads are cut.

    Args:
        name: of the score.
        texts: the P captions.
        device: where the network runs, in float32.
        batch_size: images, or captions, at a time.

    Attributes:
        num_cut: how many of the captions were cut.

    Raises:
        UserError: weights, tokenizer or processor are missing or of another kind.
        DeviceMemoryError: a batch does not fit the device's memory.
    """

    def __init__(
        self, name: TextScoreName, settings: TextScore, texts: Sequence[str], device: torch.device, batch_size: int
    ) -> None:
        self._folder = settings.folder(name)
        key = f"evaluation.text_scores.{name}"
        model = read_model(transformers.CLIPModel, self._folder, key, f"as {PUBLISHED[name]} has them")
        self._model = model.to(device).eval().requires_grad_(False)
        try:
            self._processor: Any = transformers.CLIPProcessor.from_pretrained(self._folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self._folder} ({key}): tokenizer or processor cannot be read ({error}); expected those of a CLIP."
            ) from error
        self._device, self._batch_size = device, batch_size
        self._sha256 = sha256_file(self._folder / WEIGHTS)
        self._most_tokens = int(model.config.text_config.max_position_embeddings)
        lengths = [len(tokens) for tokens in self._processor.tokenizer(list(texts))["input_ids"]]
        self.num_cut = sum(length > self._most_tokens for length in lengths)
        self._texts = self._embedded(lambda rows: self._of_texts([texts[row] for row in rows]), len(texts))

    def match(self, images: np.ndarray, captions: np.ndarray) -> Match:
        """How well images go with their captions.

        Args:
            images: uint8, (N, H, W, C); of one channel repeated to three.
            captions: of each image its row among the texts, (N,).
        """
        embedded = self._embedded(lambda rows: self._of_images(images[rows.start : rows.stop]), len(images))
        cosines = (embedded * self._texts[torch.from_numpy(captions)]).sum(dim=1)
        return Match(cosines.numpy(), float(self._model.logit_scale.double().exp()))

    def describe(self) -> dict[str, Any]:
        """The model in words and hashes, for provenance."""
        return {
            "model": str(self._folder),
            "weights_sha256": self._sha256,
            "network_library": f"transformers {transformers.__version__}",
            "processor": self._processor.image_processor.to_dict(),
            "max_tokens": self._most_tokens,
            "captions_cut": self.num_cut,
            "arithmetic": "float32, TF32 off",
        }

    def _embedded(self, embed: Callable[[range], torch.Tensor], count: int) -> torch.Tensor:
        """Embeddings of unit length, float64 (count, D), on the CPU."""
        with torch.inference_mode(), reproducible_arithmetic(self._device):
            found = in_portions("evaluation.batch_size", embed, count, self._batch_size, self._device)
            return torch.nn.functional.normalize(torch.cat([part.double().cpu() for part in found]), dim=1)

    def _of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self._processor.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._most_tokens, return_tensors="pt"
        ).to(self._device)
        return self._model.text_projection(self._model.text_model(**tokens).pooler_output)

    def _of_images(self, images: np.ndarray) -> torch.Tensor:
        coloured = np.repeat(images, 3 // images.shape[3], axis=3)
        pixels = self._processor.image_processor([*coloured], input_data_format="channels_last", return_tensors="pt")
        seen = self._model.vision_model(pixels["pixel_values"].to(self._device)).pooler_output
        return self._model.visual_projection(seen)
