"""onnxruntime-web for the web page, which `ppfr web-assets` fetches from npm."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

from filelock import FileLock

from ppfr.util.errors import DataError
from ppfr.util.fetch import cache_folder, cached

RUNTIME_VERSION = "1.30.0"
RUNTIME_URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{RUNTIME_VERSION}.tgz"
# of the archive whose integrity npm gives as
# sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==
RUNTIME_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def runtime_folder() -> Path:
    """The folder of the runtime's files in the cache folder, whether they are fetched or not."""
    return cache_folder() / f"onnxruntime-web-{RUNTIME_VERSION}-{RUNTIME_SHA256[:12]}"


def has_runtime(folder: Path) -> bool:
    """Whether all files are there."""
    return all((folder / name).is_file() for name in RUNTIME_FILES)


def fetch_runtime(folder: Path | None = None, url: str = RUNTIME_URL, sha256: str = RUNTIME_SHA256) -> Path:
    """Fetch the archive, check its SHA-256 and keep the two files that the page loads; returns their folder.

    The folder appears complete or not at all. Raises DataError as `ppfr.util.fetch.fetch` does, and for an archive
    without those files.
    """
    folder = folder or runtime_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if has_runtime(folder):
            return folder
        archive = cached(url, sha256, folder.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _extract(archive, temporary)
            temporary.chmod(0o755)
            # the existing folder lacks a file
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        archive.unlink()
    return folder


def _extract(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as opened:
            for name in RUNTIME_FILES:
                stream = opened.extractfile(f"package/dist/{name}")
                if stream is None:
                    raise KeyError(name)
                with stream, open(folder / name, "wb") as target:
                    shutil.copyfileobj(stream, target)
                    target.flush()
                    os.fsync(target.fileno())
    except (KeyError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{archive} is no archive of onnxruntime-web: {error}") from error
