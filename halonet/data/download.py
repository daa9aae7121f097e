"""Files at URLs, downloaded once."""

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from halonet.files import write_atomically

CHUNK_BYTES = 2**20
TIMEOUT_SECONDS = 60


class _Failure(Exception):
    """The download failed, which isn't a failure to write the file."""


def is_url(location: str) -> bool:
    """Whether a location is to be downloaded."""
    return location.startswith(("http://", "https://"))


def local_copy(url: str, folder: str) -> Path:
    """Where the file at `url` lies in `folder` once it is downloaded: HOST/PATH.

    A query is part of the name, as a hash: files at URLs that differ in it are different files.

    Raises:
        ValueError: the path has a `..`, by which it could lie outside `folder`.
    """
    parts = urlsplit(url)
    if ".." in unquote(parts.path).split("/"):
        raise ValueError(f"a URL must have no .. in its path, got {url}")
    # Still escaped: a%2Fb is not a/b.
    path = Path(folder, parts.netloc.replace(":", "_"), parts.path.strip("/"))
    if not parts.query:
        return path
    digest = hashlib.sha256(parts.query.encode()).hexdigest()[:16]
    return path.with_name(f"{path.stem}-{digest}{path.suffix}")


def download(url: str, path: Path, show_progress: bool = True) -> Path:
    """Download a file that isn't there yet, whole or not at all, with a progress bar on a terminal.

    Raises:
        FileNotFoundError: it can't be downloaded. OSError: it can't be written.
    """
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for chunk in _read_chunks(url, path.name, show_progress):
                file.write(chunk)

    try:
        write_atomically(path, write)
    except _Failure as failure:
        raise FileNotFoundError(f"can't download {url}: {failure}") from None
    return path


def _read_chunks(url: str, name: str, show_progress: bool) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            expected = int(response.headers.get("Content-Length", -1))
            received = 0
            with tqdm(
                desc=f"downloading {name}",
                total=expected if expected >= 0 else None,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=None if show_progress else True,  # None: off where it is no terminal
            ) as bar:
                while chunk := response.read(CHUNK_BYTES):
                    received += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):  # it is the server's answer, too
            error.close()
        raise _Failure(error) from None
    if expected not in (-1, received):
        raise _Failure(f"the connection ended after {received} of {expected} bytes")
