"""The model of a conversion, from wherever it is."""

import os
from pathlib import Path
from typing import Any

import keras

from keras_norms.tflite.errors import ConversionError


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
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise ConversionError(f"A folder must be a SavedModel. Received: {str(path)!r}")
        return path
    if not path.is_file():
        raise ConversionError(f"There is no such file. Received: {str(path)!r}")
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise ConversionError(
            f"A saved model must end in .keras or .h5, or be a SavedModel. Received: {str(path)!r}"
        )
    try:
        loaded = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a hostile file can make the loader fail in any way
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConversionError(
            f"{str(path)!r} cannot be loaded as a Keras model: {reason[0][:300]}"
        ) from error
    if not isinstance(loaded, keras.Model):
        raise ConversionError(
            f"The file must hold a model. Received: {str(path)!r}, which holds a "
            f"{type(loaded).__name__}"
        )
    return loaded
