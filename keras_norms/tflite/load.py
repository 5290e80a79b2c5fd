"""The model of a conversion, from wherever it is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras

from keras_norms.messages import one_line
from keras_norms.tflite.errors import ConversionError

CHILD = Path(__file__).with_name("hdf5_child.py")
TIMEOUT = 600  # seconds


def load(model: Any) -> keras.Model | Path:
    """A live model as it is, a saved one loaded; of a SavedModel its folder.

    Nothing in a file is run: a `.keras` file that holds Python code (a Lambda layer) is refused.

    Raises:
        TypeError: if it is neither a model nor a path.
        ConversionError: if the file is not one of Keras', or cannot be loaded safely.
    """
    if isinstance(model, keras.Model):
        return model
    if not isinstance(model, str | os.PathLike) or isinstance(os.fspath(model), bytes):
        raise TypeError(
            "`model` must be a keras.Model, or the path of a .keras file, an .h5 file or a "
            f"SavedModel. Received: {model!r}"
        )
    path = Path(model)
    if not os.path.exists(path):  # and not pathlib's, which raises for a name that is too long
        raise ConversionError(f"There is no such file. Received: {_shown(path)}")
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise ConversionError(f"A folder must be a SavedModel. Received: {_shown(path)}")
        return path
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise ConversionError(
            f"A saved model must end in .keras or .h5, or be a SavedModel. Received: {_shown(path)}"
        )
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise ConversionError(
            "A .keras file must be a whole zip archive: this one is empty, cut off or something "
            f"else. Received: {_shown(path)}, {path.stat().st_size} bytes"
        )
    _check_hdf5(path)
    try:
        loaded = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a hostile file can make the loader fail in any way
        raise ConversionError(
            f"{_shown(path)} cannot be loaded as a Keras model: {_reason(error)}"
        ) from error
    if not isinstance(loaded, keras.Model):
        raise ConversionError(
            f"The file must hold a model. Received: {_shown(path)}, which holds a "
            f"{type(loaded).__name__}"
        )
    return loaded


def _shown(path: Path) -> str:
    text = repr(str(path))
    return text if len(text) <= 300 else f"{text[:300]}..."


def _check_hdf5(path: Path) -> None:
    """Reads the weights in a process of its own first, which a damaged file may end.

    Raises: ConversionError, if it does, or they cannot be read.
    """
    command = [sys.executable, "-P", str(CHILD), str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise ConversionError(f"{_shown(path)} cannot be read in {TIMEOUT} s.") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1][:300]
        ended = f"the reader ended by signal {-done.returncode}" if done.returncode < 0 else said
        raise ConversionError(f"{_shown(path)} cannot be loaded as a Keras model: {ended}")


def _reason(error: Exception) -> str:
    """Keras' advice on unsafe files is for who loads them."""
    said, _, advice = one_line(error, 1000).partition(" If you trust the source")
    if advice:
        return (
            f"{said} If you trust the file, load it by `keras.models.load_model(path, "
            "safe_mode=False)` and convert the model."
        )
    return said[:300]
