"""How well images go with their captions: which CLIP says so, where it lies, and what it gives.

The CLIP score (Hessel et al. 2021, arXiv 2104.08718) and PickScore (Kirstain et al. 2023, arXiv 2305.01569) are both
made of the cosine between a CLIP's embeddings of image and caption (:mod:`evaluation.measure.clip`). They are taken
where ``evaluation.text_scores`` asks for them: no weights come with this suite, and none are fetched.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import read_json
from diffusion.runtime.settings import Settings, UserPath

TextScoreName = Literal["clip_score", "pick_score"]
# What the name of a score promises, on the Hub.
PUBLISHED: dict[TextScoreName, str] = {
    "clip_score": "openai/clip-vit-large-patch14",
    "pick_score": "yuvalkirstain/PickScore_v1",
}
_WEIGHTS = "model.safetensors"
# Either of each has to be there; the tokenizer's and the processor's files changed their names once.
_NEEDED = (
    ("config.json",),
    (_WEIGHTS,),
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json", "vocab.json"),
)


class TextScore(Settings):
    """The CLIP of a score. In place of a block its ``model`` alone can be given.

    Attributes:
        model: a folder of `transformers` with config.json, model.safetensors, the tokenizer and the processor; or with
            ``revision`` a name on the Hub, of which the files are in the usual cache.
        revision: a commit on the Hub.
    """

    model: UserPath
    revision: str | None = Field(None, pattern="^[0-9a-f]{40}$")

    @model_validator(mode="before")
    @classmethod
    def _model_alone(cls, given: Any) -> Any:
        return given if isinstance(given, Mapping) else {"model": given}

    def folder(self, name: TextScoreName) -> Path:
        """Where the files of the CLIP lie.

        Args:
            name: of the score, for messages.

        Raises:
            UserError: there is no such folder, it lacks a file, or the Hub's model is not in the cache.
        """
        key = f"evaluation.text_scores.{name}"
        folder = self._of_the_hub(key) if self.revision else Path(self.model)
        if not folder.is_dir():
            raise UserError(
                f"{key}: found {self.model!r}, expected an existing folder, or a name on the Hub with its `revision` "
                f"(a commit): {{model: {PUBLISHED[name]}, revision: …}}."
            )
        for names in _NEEDED:
            if not any((folder / one).is_file() for one in names):
                raise UserError(
                    f"{key}: {folder} lacks {' or '.join(names)}; expected a CLIP of `transformers` with its tokenizer "
                    f"and processor, as https://huggingface.co/{PUBLISHED[name]} has them."
                )
        return folder

    def files(self, name: TextScoreName) -> list[Path]:
        """All files of the CLIP that decide a score; errors as :meth:`folder`."""
        folder = self.folder(name)
        return [*sorted(folder.glob("*.json")), *sorted(folder.glob("*.txt")), folder / _WEIGHTS]

    def _of_the_hub(self, key: str) -> Path:
        import huggingface_hub  # a second, for those who want it

        try:
            return Path(huggingface_hub.snapshot_download(self.model, revision=self.revision, local_files_only=True))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{key}: {self.model} of revision {self.revision} is not in the Hub's cache, and nothing is fetched "
                f"while the suite runs. Fetch it once (hf download {self.model} --revision {self.revision}), or name a "
                f"folder with its files."
            ) from error


def load_texts(prompts: Path) -> dict[int, str]:
    """The texts that samples are drawn of, by the index that is stored with a sample.

    Args:
        prompts: a folder of :mod:`diffusion.teachers.prompts`, of which the embeddings are left alone.

    Raises:
        UserError: its file is missing or damaged.
    """
    about = read_json(prompts / "prompts.json")
    return dict(zip(about["indices"], about["texts"], strict=True))
