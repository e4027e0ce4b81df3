"""Model files from their official places: fetched once, checked against a pinned hash, kept in a cache folder."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from ppfr.util.errors import DataError
from ppfr.util.files import sha256_file
from ppfr.util.progress import bar

_CHUNK = 1 << 16
_TIMEOUT = 30.0


def cache_folder() -> Path:
    """Where fetched files are kept: `$PPFR_CACHE`, else `ppfr` in `$XDG_CACHE_HOME`, else `~/.cache/ppfr`."""
    if own := os.environ.get("PPFR_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ppfr"


def cached(url: str, sha256: str, folder: Path | None = None) -> Path:
    """The file of a URL with this SHA-256 (hexadecimal), from the cache folder or fetched into it; see `fetch`."""
    path = cached_path(url, sha256, folder)
    if not path.exists():
        fetch(url, sha256, path)
    return path


def cached_path(url: str, sha256: str, folder: Path | None = None) -> Path:
    """Where `cached` keeps a file, whether it is there or not."""
    return (folder or cache_folder()) / f"{sha256[:12]}-{unquote(Path(urlsplit(url).path).name)}"


def fetch(url: str, sha256: str, path: Path) -> None:
    """Download `url` to `path`, which gets its name when all has come and its SHA-256 (hexadecimal) is right.

    What came before a break stays beside it, as `.NAME.part`, and the next call asks for the rest. Two processes that
    want the same file wait for each other. Raises DataError naming URL and file when there is no connection, the server
    refuses, or the content is another than the pinned one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists() and sha256_file(path) == sha256:
            return
        try:
            _download(url, part)
        except (OSError, http.client.HTTPException) as error:
            raise DataError(
                f"{url}: cannot be fetched ({_reason(error)}); call again to continue where it broke, or fetch the "
                "file yourself and give its path"
            ) from error
        found = sha256_file(part)
        if found != sha256:
            part.unlink()
            raise DataError(
                f"{url}: its SHA-256 is {found}; expected {sha256}. The file has changed at its place, or was changed "
                "on the way: it was not kept"
            )
        os.replace(part, path)


def _download(url: str, part: Path) -> None:
    """Append to `part` what it lacks; all of it when the server cannot give a part."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is missing
            raise
        error.close()
        return
    with answer, bar() as progress:
        partial = answer.status == 206
        left = answer.headers.get("Content-Length")
        task = progress.add_task(part.name[1:-5], total=None if left is None else int(left), note="")
        with open(part, "ab" if partial else "wb") as stream:
            while chunk := answer.read(_CHUNK):
                stream.write(chunk)
                progress.advance(task, len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
    if left is not None and part.stat().st_size != int(left) + (have if partial else 0):
        raise OSError("the connection broke before the end")


def _reason(error: Exception) -> str:
    return str(error.reason if isinstance(error, urllib.error.URLError) else error) or type(error).__name__
