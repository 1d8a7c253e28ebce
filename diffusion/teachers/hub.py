"""Stored teachers by the name of a folder or of a model of the Hugging Face Hub."""

import re
from pathlib import Path

from diffusion.runtime.errors import UserError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SMALL = ["*.json", "unet/*.json", "transformer/*.json", "vae/*.json", "scheduler/*.json"]
_NETWORKS = ("", "unet/", "transformer/")
# Tensors only: of a model that has pickles alone, nothing is fetched.
_WEIGHTS = [f"{part}diffusion_pytorch_model.safetensors" for part in _NETWORKS]
# Several files, or a variant, where there is no single one.
_OTHER_WEIGHTS = [f"{part}diffusion_pytorch_model*.safetensors" for part in _NETWORKS]
# What a network of latents and texts needs beside itself, in float32 or bfloat16; no safety checker.
_FURTHER = ["vae/*.safetensors", "text_encoder*/*.json", "text_encoder*/*.safetensors"]
_FURTHER += [f"tokenizer*/*.{kind}" for kind in ("json", "txt", "model")]
_VARIANTS = [f"*.{kind}{end}*" for kind in ("fp16", "bf16", "non_ema") for end in (".", "-")]  # shards have a number


def model_folder(name: str, revision: str | None = None, weights: bool = False) -> Path:
    """The folder of a `diffusers` pipeline: ``name`` itself where it is one, else the Hub's usual cache.

    Args:
        name: a folder, or a model of the Hub such as "google/ddpm-cifar10-32".
        revision: commit, tag or branch of the Hub's model.
        weights: whether its weights are wanted too, or the small files only, which say what kind of teacher it is.

    Raises:
        UserError: neither a folder nor a name; no such model; no network and nothing in the cache.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(
            f"teacher.path: {name!r} is a file, expected a folder. A published checkpoint (.pkl, .pt) becomes one by "
            f"`python -m suite.cli convert --checkpoint {name} --output FOLDER` (docs/teachers.md)."
        )
    if not _NAME.fullmatch(name):
        raise UserError(
            f"teacher.path: {name!r} is no folder (looked for it in {Path.cwd()}) and no name of a model of the Hub "
            f"(owner/name); expected one of them."
        )
    import huggingface_hub  # a second, for those who want it
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"teacher.path: {name!r}" + (f", revision {revision!r}" if revision else "")
    try:
        wanted = _SMALL + (_WEIGHTS + _FURTHER if weights else [])
        folder = Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=wanted, ignore_patterns=_VARIANTS if weights else None
            )
        )
        if weights and not any((folder / file).exists() for file in _WEIGHTS):
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_SMALL + _OTHER_WEIGHTS)
        return folder
    except GatedRepoError as error:  # one of the next, which it derives from
        raise UserError(
            f"{where}: the model is gated. Accept its licence at https://huggingface.co/{name}, log in "
            f"(hf auth login), and run again."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"{where}: no folder of that name, and the Hub has no such public model or revision "
            f"({type(error).__name__}). Correct the name, or log in (hf auth login) where it is private."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where}: no folder of that name, not in the Hub's cache, and the download failed "
            f"({type(error).__name__}). Check the network, or fetch it elsewhere (hf download {name}) and name its "
            f"folder."
        ) from error
