"""Files of data sets from the network: resumed where a download broke off, tried again, checked against their hash."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from diffusion.runtime.errors import UserError

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
        md5, sha256: as published; one of them.
        size: in bytes, where it is known; for estimates.
    """

    name: str
    url: str
    md5: str | None = None
    sha256: str | None = None
    size: int | None = None


def fetch(download: Download, path: Path, pause_s: float = 5.0) -> None:
    """Fetches a file to ``path``, which appears whole and verified or not at all.

    What has arrived is kept beside it (``.<name>.part``) when the connection breaks or the process is killed, and the
    next attempt asks the server for the rest.

    Args:
        pause_s: before the second attempt; doubled each time.

    Raises:
        UserError: no connection after all attempts, a refusal by the server, which is not asked again, or another
            content than the published one; says what to do.
    """
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            _continue(download.url, part)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            problem = f"the download failed {attempt + 1} times ({error})"
            if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in _PASSING:
                problem = f"the server refuses it ({error})"
                break
            continue
        found = _hash(part, download)
        if found == (download.sha256 or download.md5):
            os.replace(part, path)
            return
        part.unlink()
        problem = f"its hash is {found}, expected {download.sha256 or download.md5}"
    kept = " What has arrived is kept, and a new run goes on from there." if part.exists() else ""
    raise UserError(
        f"{download.url}: {problem}. Fetch it in another way and put it at {path}, or name the folder where you have "
        f"it in the YAML under data.path.{kept}"
    )


def _continue(url: str, part: Path) -> None:
    """Appends what is missing of ``url`` to ``part``."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
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


def _hash(path: Path, download: Download) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256" if download.sha256 else "md5").hexdigest()
