"""Files that are either whole or absent: atomic writing, and content hashes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: Path | str, *, mode: int | None = None, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` when the block ends well and vanishes when it raises.

    `mode` sets the file's permission bits before it gets its name (0o600 for secrets). The data is flushed to disk
    first, so a crash or a full disk leaves the previous file as it was. Without `sync` that is left to the system, a
    hundred times faster for thousands of small files, and a power failure may leave an empty one. Raises OSError as the
    file system does.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp gives 0600; an ordinary file gets what the user's umask allows
        os.chmod(temporary, mode if mode is not None else 0o666 & ~_umask())
        if sync:
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def atomic_write(path: Path | str, data: bytes | str, *, mode: int | None = None, sync: bool = True) -> None:
    """Write bytes, or text as UTF-8, so that `path` holds the old content or all of the new; see `atomic_path`."""
    with atomic_path(path, mode=mode, sync=sync) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def in_repository(folder: Path) -> bool:
    """Whether a folder lies in a Git working tree, where pictures of people could be committed by mistake."""
    return any((above / ".git").exists() for above in (folder, *folder.absolute().parents))
