"""A SavedModel that serves without us: of built-in operations only, checked before it is kept."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_norms import files, normalize

# What TensorFlow writes. A folder with anything else in it is not ours to replace.
ENTRIES = {
    "assets",
    "assets.extra",
    "fingerprint.pb",
    "keras_metadata.pb",
    "saved_model.pb",
    "variables",
}


def export(model: Any, path: str | os.PathLike) -> Path:
    """Writes a model's inference as a SavedModel of built-in operations.

    Plain `model.export(path)` does the same, except that a concrete function which was traced
    earlier, with the fused operation in it, goes into the SavedModel as it is. Here that is found
    and refused. The SavedModel is put at `path` when it is whole: before, or if anything fails,
    `path` is as it was.

    Args:
        model: a built `keras.Model`, a `keras.export.ExportArchive` or a `tf.Module`.
        path: folder to write; an older SavedModel there is replaced.

    Returns: the path.
    Raises:
        TypeError: if it is no such model.
        ValueError: if the fused operation is inside, if the model is not built, or if `path` is
            something other than a SavedModel.
    """
    path = files.destination(path)
    write = _writer(model)
    entries = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if entries - ENTRIES or (path.exists() and not path.is_dir()):
        what = f"a folder with {', '.join(sorted(entries - ENTRIES)[:5])}" if entries else "a file"
        raise ValueError(
            "`path` must be free, empty or an older SavedModel, which is replaced. "
            f"Received: path={str(path)!r}, {what}"
        )
    with files.replacing(path) as temporary:
        with normalize.portable():
            write(temporary)
        found = sorted(set(_fused(temporary)))
        if found:
            raise ValueError(
                "A SavedModel must hold built-in operations only, but the fused one came in with "
                f"{', '.join(found)}, which was traced before the export. Hand over the layer or "
                "the tf.function, which is traced anew, or trace within `keras_norms.portable()`."
            )
    return path


def _writer(model: Any):
    if isinstance(model, keras.Model):
        return lambda path: model.export(path, verbose=False)
    if hasattr(model, "write_out"):  # an ExportArchive, which is a class of its own in each backend
        return lambda path: model.write_out(path, verbose=False)
    import tensorflow as tf

    if isinstance(model, tf.Module):
        return lambda path: tf.saved_model.save(model, path)
    raise TypeError(
        "`model` must be a keras.Model, a keras.export.ExportArchive or a tf.Module. "
        f"Received: {model!r}"
    )


def _fused(path: Path) -> Iterator[str]:
    """Names of the functions in a SavedModel that hold an operation of ours."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    saved = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    for graph in (meta.graph_def for meta in saved.meta_graphs):
        functions = [(f.signature.name, f.node_def) for f in graph.library.function]
        for name, nodes in [("the graph itself", graph.node), *functions]:
            if any(node.op.startswith("KerasNorms>") for node in nodes):
                yield name.removeprefix("__inference_").rstrip("0123456789").rstrip("_")
