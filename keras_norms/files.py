"""Writing a file or a folder: a reader sees the old one or the new one, never half of one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def destination(path: str | os.PathLike) -> Path:
    """Checks that something can be written at `path`.

    Raises: TypeError, if it is not a path. ValueError, if its folder does not exist.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"`path` must be a string or a path. Received: {path!r}")
    if not os.fspath(path):
        raise ValueError("`path` must not be empty. Received: ''")
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"The folder of `path` must exist. Received: path={str(path)!r}")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write a file or a folder under.

    What was written there takes the place of `path` when the block ends well, and is removed when
    it does not; what was at `path` before then stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        for written in [*temporary.rglob("*"), temporary, path.parent]:
            _flush(written)
        _rename(temporary, path)
        _flush(path.parent)
    finally:
        _remove(temporary)


def _rename(source: Path, path: Path) -> None:
    if not (source.is_dir() and path.is_dir()):
        os.replace(source, path)
        return
    old = source.with_suffix(".old")  # a folder cannot take the place of one that has entries
    os.rename(path, old)
    try:
        os.rename(source, path)
    except BaseException:
        os.rename(old, path)
        raise
    _remove(old)


def _flush(path: Path) -> None:
    """Waits until the disk has it: else the rename may outlive a power cut, and the data not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
