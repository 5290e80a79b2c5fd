"""The custom op `KerasNorms>Normalize` for TFLite's interpreters: a norm as one fused node.

`keras-norms build --tflite` compiles it. `keras_norms.tflite.run` finds it by itself; any other
interpreter is given it as a delegate:

    from ai_edge_litert.interpreter import Interpreter

    Interpreter("model.tflite", experimental_delegates=[custom_op.delegate()])
"""

import ctypes
import functools
import weakref
from pathlib import Path
from typing import Any

from keras_norms import library as _library
from keras_norms.tflite.contents import contents
from keras_norms.tflite.extent import check_extent

_OURS = "KerasNorms>"
_DELEGATES: weakref.WeakSet = weakref.WeakSet()  # that were made here


def library() -> Path:
    """The compiled custom op, which C, C++ and Java programs load as well.

    `KERAS_NORMS_TFLITE_LIBRARY` names a file of your own; it must fit like any other.

    Raises: RuntimeError, with the command that builds it, where it is missing or does not fit.
    """
    path = _library.tflite_destination()
    if reason := _library.tflite_refusal(path):
        raise RuntimeError(reason)
    return path


def delegate() -> Any:
    """The custom op for one interpreter of LiteRT, or of `tf.lite` where LiteRT is not installed.

    Either takes the other's. It claims the nodes of the custom op and no others.

    Returns: an item of the interpreter's `experimental_delegates`.
    Raises: RuntimeError, as `library`.
    """
    path = str(library())
    try:
        from ai_edge_litert.interpreter import load_delegate
    except ImportError:
        from tensorflow import lite

        load_delegate = lite.experimental.load_delegate
    made = load_delegate(path)
    _DELEGATES.add(made)
    return made


def is_delegate(given: Any) -> bool:
    """Whether it comes from `delegate`."""
    return given in _DELEGATES


def needed(content: bytes) -> bool:
    """Whether a file has nodes of the custom op; one that is damaged is LiteRT's to refuse."""
    if _OURS.encode() not in content:  # which spares large files a reading
        return False
    try:
        check_extent(content)
        return any(name.startswith(_OURS) for name in contents(content).custom)
    except Exception:  # damaged bytes can make the reader fail in any way
        return False


@functools.cache
def registerer() -> str:
    """The name of the function that registers the custom op with TensorFlow's interpreters.

    It is an item of `custom_op_registerers` of `tf.lite.InterpreterWithCustomOps`, and of a
    converter's `target_spec._experimental_custom_op_registerers`, with which it calibrates.
    LiteRT's own interpreters cannot be reached this way: they take the delegate.

    Raises: RuntimeError, as `library`.
    """
    ctypes.CDLL(str(library()), ctypes.RTLD_GLOBAL)  # where they look for the name
    return "kn_register"
