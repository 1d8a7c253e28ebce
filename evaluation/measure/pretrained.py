"""Models of `transformers` from a folder: tensors only, and every one that the network has.

Imported only where one is asked for: `transformers` takes seconds to import.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from diffusion.runtime.errors import UserError

WEIGHTS = "model.safetensors"


def read_model(kind: type[transformers.PreTrainedModel], folder: Path, key: str, as_published: str) -> Any:
    """A model in float32, on the CPU.

    Args:
        kind: its class; tensors that it has no place for are passed over.
        key: of the configuration, that names the folder.
        as_published: how the message that refuses a folder ends.

    Raises:
        UserError: a file is missing or truncated, or the tensors are another network's.
    """
    where = f"{folder} ({key})"
    expected = f"expected a folder of `transformers` with config.json and {WEIGHTS}, {as_published}"
    if not (folder / "config.json").is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{where}: {expected}.")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it lists a whole CLIP's text half as unexpected
    try:
        # Tensors only: neither a pickle nor code of the folder is executed.
        model, info = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{where}: cannot be loaded ({error}); {expected}.") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise UserError(f"{where}: lacks {wrong[0]} and {len(wrong) - 1} more of the network's tensors; {expected}.")
    return model
