"""Where the compiled libraries are, and what they were built for. Reads files; opens none.

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
import platform
import re
import sys
from pathlib import Path
from typing import NamedTuple

VERSION = "0.1.0"  # of keras-norms; packaging reads it here, without importing the package
NAME = "libkeras_norms.so"
MARKER = b"KERAS_NORMS_RECORD{"
CURE = "Run `keras-norms build`."

TFLITE_NAME = "libkeras_norms_tflite.so"
TFLITE_CURE = "Run `keras-norms build --tflite`."

# What each library is made of: folders of custom_ops, and the modules that hold how it is compiled.
_OP = (("core", "cuda", "tf"), ("build.py", "compiling.py", "cuda.py"))
_TFLITE = (("core", "tflite"), ("build_tflite.py", "compiling.py"))

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


def digest() -> str:
    """16 hex digits that change with the op's C++ sources or with how they are compiled."""
    return _digest(*_OP)


def tflite_digest() -> str:
    """The same of the custom op for TFLite."""
    return _digest(*_TFLITE)


@functools.cache
def _digest(folders: tuple[str, ...], modules: tuple[str, ...]) -> str:
    root = sources_dir()
    files = [file for folder in folders for file in (root / folder).rglob("*")]
    files = [file for file in files if file.suffix in {".cc", ".cu", ".h", ".inc", ".lds"}]
    total = hashlib.sha256()
    for name in modules:
        total.update((_PACKAGE / name).read_bytes())
    for file in sorted(files, key=lambda f: f.relative_to(root).as_posix()):
        total.update(f"\0{file.relative_to(root).as_posix()}\0".encode())
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


def tflite_destination(machine: str | None = None) -> Path:
    """Where the custom op for TFLite is, or will be.

    Args:
        machine: the processor it is for, as `platform.machine()` names it; default: this one.
    """
    if machine is None or machine == platform.machine():
        if override := os.environ.get("KERAS_NORMS_TFLITE_LIBRARY"):
            return Path(override)
        place = Path(TFLITE_NAME)
    else:
        place = Path(machine, TFLITE_NAME)
    folder = _PACKAGE / "_native"
    writable = os.access(folder if folder.is_dir() else _PACKAGE, os.W_OK)
    if writable or (folder / place).is_file():
        return folder / place
    return cache_dir() / "tflite" / place


def tflite_refusal(path: str | os.PathLike, machine: str | None = None) -> str | None:
    """Why the custom op for TFLite at `path` is not to be used; None if it may be.

    It serves every TensorFlow Lite and LiteRT of its processor, since their C interface is stable.
    """
    machine = machine or platform.machine()
    if not Path(path).is_file():
        return f"The custom op for TFLite is missing ({path}). {TFLITE_CURE}"
    record = read_record(path)
    if record is None:
        return f"{path} is no keras-norms library: it carries no record. {TFLITE_CURE}"
    if record.get("machine") != machine:
        return f"{path} was built for {record.get('machine')}, and this is {machine}. {TFLITE_CURE}"
    if record.get("keras_norms") != VERSION or record.get("sources") != tflite_digest():
        return (
            f"{path} was built from other sources (keras-norms {record.get('keras_norms')}, "
            f"{record.get('sources')}) than those installed ({VERSION}, {tflite_digest()}). "
            f"{TFLITE_CURE}"
        )
    return None


def _in_cache() -> Path:
    """The library's place in the cache, a folder for each TensorFlow."""
    installed = tensorflow()
    return cache_dir() / (_normal(installed.version) if installed else "none") / NAME


def _normal(version: str) -> str:
    """`2.21.0-rc1` (the module's word) and `2.21.0rc1` (the wheel's) are the same."""
    return re.sub(r"-(?=rc|dev)", "", version)
