"""Files from the network: resumed where a download broke off, tried again, checked against their hash.

Published weights are looked for in the usual cache first, and never unpickled.
"""

import hashlib
import http.client
import io
import os
import pickle
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion.runtime.errors import UserError, first_line

ATTEMPTS = 5
_TIMEOUT_S = 60.0
_PORTION = 2**20
# Refusals that a server takes back: timeout, too many requests.
_PASSING = (408, 429)


@dataclass(frozen=True)
class Download:
    """A file to fetch.

    Attributes:
        name: of the file on disk.
        url: where it comes from.
        md5, sha256: as published, or the beginning of it; one of them.
        size: in bytes, where it is known; for estimates.
    """

    name: str
    url: str
    md5: str | None = None
    sha256: str | None = None
    size: int | None = None


def fetch(
    download: Download, path: Path, pause_s: float = 5.0, attempts: int = ATTEMPTS, advice: str | None = None
) -> None:
    """Fetches a file to ``path``, which appears whole and verified or not at all.

    What has arrived is kept beside it (``.<name>.part``) when the connection breaks or the process is killed, and the
    next attempt asks the server for the rest.

    Args:
        pause_s: before the second attempt; doubled each time.
        advice: what the user may do instead, for the error; by default, what helps with a data set.

    Raises:
        UserError: no connection after all attempts, a refusal by the server, which is not asked again, or another
            content than the published one; says what to do.
    """
    part = path.with_name(f".{path.name}.part")
    expected, problem = download.sha256 or download.md5 or "", ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            _continue(download.url, part)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            problem = f"the download failed{f' {attempt + 1} times' if attempts > 1 else ''} ({error})"
            if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in _PASSING:
                problem = f"the server refuses it ({error})"
                break
            continue
        with part.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256" if download.sha256 else "md5").hexdigest()
        if found.startswith(expected):
            os.replace(part, path)
            return
        part.unlink()
        problem = f"its hash is {found}, expected {expected}"
    kept = " What has arrived is kept, and a new run goes on from there." if part.exists() else ""
    advice = advice or (
        f"Fetch it in another way and put it at {path}, or name the folder where you have it in the YAML under "
        f"data.path."
    )
    raise UserError(f"{download.url}: {problem}. {advice}{kept}")


def _continue(url: str, part: Path) -> None:
    """Appends what is missing of ``url`` to ``part``."""
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    request.add_header("User-Agent", "boot-reproduction")  # some servers refuse urllib's own
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing
            return
        raise
    with response:
        if have and response.status != 206:  # the server cannot resume: anew
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as handle,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.name, mininterval=5) as progress,
        ):
            while content := response.read(_PORTION):
                handle.write(content)
                progress.update(len(content))
    if total is not None and part.stat().st_size < total:
        raise OSError(f"{part.stat().st_size} of {total} bytes arrived")


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
        fetch(Download(path.name, url, sha256=sha256), path, attempts=1, advice=advice)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(sha256):
        raise UserError(
            f"{path}: sha256 {found}, expected {sha256}{'…' if len(sha256) < 64 else ''}: "
            f"truncated, or not the published weights. {advice}"
        )
    return content


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
