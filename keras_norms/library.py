"""Where the compiled op is, and what it was built for. Reads files; opens no library.

The C++ interface of TensorFlow changes with every release, so a library serves one release only.
It carries a record of what it was built from, a JSON text behind `MARKER`, which is read from the
file's bytes: a library for another TensorFlow is refused before the dynamic loader sees it.
"""

import functools
import hashlib
import importlib.util
import json
import mmap
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

VERSION = "0.1.0"  # of keras-norms; packaging reads it here, without importing the package
NAME = "libkeras_norms.so"
MARKER = b"KERAS_NORMS_RECORD{"
CURE = "Run `keras-norms build`."

_PACKAGE = Path(__file__).resolve().parent


class TensorFlow(NamedTuple):
    """The installed TensorFlow, found without importing it."""

    version: str
    directory: Path


def tensorflow() -> TensorFlow | None:
    """The TensorFlow that `import tensorflow` would give, or None."""
    loaded = sys.modules.get("tensorflow")
    if loaded is not None and hasattr(loaded, "__version__") and loaded.__file__:
        return TensorFlow(loaded.__version__, Path(loaded.__file__).parent)
    try:
        spec = importlib.util.find_spec("tensorflow")
    except (ImportError, ValueError):  # ValueError: sys.modules["tensorflow"] is None
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return tensorflow_in(Path(next(iter(spec.submodule_search_locations))).parent)


def tensorflow_in(site: Path) -> TensorFlow | None:
    """The TensorFlow installed in a `site-packages` directory, or None."""
    wheels = r"(?:tensorflow|tf_nightly)(?:_cpu|_gpu|_intel|_rocm|_aarch64|_cpu_aws)?"
    if (site / "tensorflow" / "__init__.py").is_file():
        for metadata in sorted(site.glob("t*.dist-info")):
            found = re.fullmatch(rf"{wheels}-(\d[^-]*)\.dist-info", metadata.name)
            if found:
                return TensorFlow(found[1], site / "tensorflow")
    return None


def sources_dir() -> Path:
    """The folder `custom_ops`: inside an installed package, beside it in a checkout."""
    inside = _PACKAGE / "custom_ops"
    return inside if inside.is_dir() else _PACKAGE.parent / "custom_ops"


@functools.cache
def digest() -> str:
    """16 hex digits that change with the C++ sources or with how they are compiled."""
    folder = sources_dir()
    files = [f for f in folder.rglob("*") if f.suffix in {".cc", ".cu", ".h", ".inc"}]
    total = hashlib.sha256()
    for name in ("build.py", "cuda.py"):  # hold the flags
        total.update((_PACKAGE / name).read_bytes())
    for file in sorted(files, key=lambda f: f.relative_to(folder).as_posix()):
        total.update(f"\0{file.relative_to(folder).as_posix()}\0".encode())
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


def cache_dir() -> Path:
    """Where files go that cannot lie inside the package."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras_norms"


def destination() -> Path:
    """Where a new library is put: inside the package if it may be written to, else in the cache."""
    if override := os.environ.get("KERAS_NORMS_LIBRARY"):
        return Path(override)
    folder = _PACKAGE / "_native"
    if os.access(folder if folder.is_dir() else _PACKAGE, os.W_OK):
        return folder / NAME
    return _in_cache()


def library_path() -> Path:
    """The library to use: the first that fits, else the first there is, else `destination()`.

    `KERAS_NORMS_LIBRARY` names a file of your own; it must fit like any other.
    """
    if override := os.environ.get("KERAS_NORMS_LIBRARY"):
        return Path(override)
    found = [path for path in (_PACKAGE / "_native" / NAME, _in_cache()) if path.is_file()]
    fitting = (path for path in found if refusal(path) is None)
    return next(fitting, found[0] if found else destination())


def read_record(path: str | os.PathLike) -> dict | None:
    """The record inside a library, read from its bytes; None if there is no record to read."""
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            start = content.find(MARKER)
            end = content.find(b"\0", start) if start >= 0 else -1
            if end < 0:
                return None
            record = json.loads(content[start + len(MARKER) - 1 : end])
    except (OSError, ValueError):  # no file, an empty one, or bytes that are not JSON
        return None
    return record if isinstance(record, dict) else None


def refusal(path: str | os.PathLike, tensorflow_version: str | None = None) -> str | None:
    """Why the library at `path` must not be opened, in one line; None if it may be.

    Args:
        path: of the library.
        tensorflow_version: the TensorFlow to serve; default: the installed one.
    """
    if tensorflow_version is None:
        installed = tensorflow()
        if installed is None:
            return "TensorFlow is not installed. Run `pip install keras-norms[tensorflow]`."
        tensorflow_version = installed.version
    if not Path(path).is_file():
        return f"The compiled op is missing ({path}). {CURE}"
    record = read_record(path)
    if record is None:
        return f"{path} is no keras-norms library: it carries no record. {CURE}"
    built_for = str(record.get("tensorflow"))
    if _normal(built_for) != _normal(tensorflow_version):
        return (
            f"{path} was built for TensorFlow {built_for}, and {tensorflow_version} is installed. "
            f"{CURE}"
        )
    if record.get("keras_norms") != VERSION or record.get("sources") != digest():
        return (
            f"{path} was built from other sources (keras-norms {record.get('keras_norms')}, "
            f"{record.get('sources')}) than those installed ({VERSION}, {digest()}). {CURE}"
        )
    return None


def _in_cache() -> Path:
    """The library's place in the cache, a folder for each TensorFlow."""
    installed = tensorflow()
    return cache_dir() / (_normal(installed.version) if installed else "none") / NAME


def _normal(version: str) -> str:
    """`2.21.0-rc1` (the module's word) and `2.21.0rc1` (the wheel's) are the same."""
    return re.sub(r"-(?=rc|dev)", "", version)
