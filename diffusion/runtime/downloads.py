"""Published weights: found in the usual cache, downloaded where the network allows, verified, never unpickled."""

import hashlib
import io
import pickle
import socket
from pathlib import Path
from urllib.error import URLError

import torch

from diffusion.runtime.errors import UserError, first_line

_TIMEOUT_S = 30.0


def hub_checkpoints() -> Path:
    """The folder in which torch's own libraries keep what they download."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def read_or_download(path: Path, url: str, sha256: str, *, key: str, download: bool, otherwise: str) -> bytes:
    """The verified content of a weights file.

    Args:
        path: where it should be.
        url: where it comes from.
        sha256: a prefix of the expected hash, or all of it.
        key: the key of the YAML that names the file's place.
        download: whether to fetch a missing file.
        otherwise: what the user may do instead, for the error.

    Raises:
        UserError: no such file and no download, or another content; says what to fetch and where to put it.
    """
    advice = (
        f"Download {url}, put it at {hub_checkpoints() / Path(url).name} or name its place in the YAML under {key}; "
        f"or {otherwise}."
    )
    if not path.is_file():
        if not download:
            raise UserError(f"{path} ({key}): no such file. {advice}")
        _download(path, url, sha256, advice)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(sha256):
        raise UserError(
            f"{path}: sha256 {found}, expected {sha256}{'…' if len(sha256) < 64 else ''}: "
            f"truncated, or not the published weights. {advice}"
        )
    return content


def _download(path: Path, url: str, sha256: str, advice: str) -> None:
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)  # urllib would wait for ever behind a silent firewall
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # It writes a temporary file in the same folder and renames it once the hash is right.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(f"{path}: not found, and the download failed ({error}). {advice}") from error
    finally:
        socket.setdefaulttimeout(previous)


def tensors_of(content: bytes, path: Path, url: str) -> dict[str, torch.Tensor]:
    """A state dict, read without executing its pickle.

    Raises:
        UserError: it holds anything but tensors.
    """
    expected = "expected a plain state dict of tensors"
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: refused, {expected}: {first_line(error)}. Nothing of it was executed. Download {url} again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: refused, {expected}. Download {url} again.")
    return dict(state)
