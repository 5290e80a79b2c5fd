"""SavedModels and plain exports: of built-in operations, and served where we are not installed."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import run_python
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from test_tflite import network

import keras_norms as kn

# A process for which keras_norms is not installed: it serves both artefacts.
ALIEN = """
    import sys
    import numpy as np

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "keras_norms":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Absent())
    kind, path, data, result = sys.argv[1:]
    x = np.load(data)
    if kind == "tflite":
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(model_path=path).get_signature_runner()
        (name,) = runner.get_input_details()
        y = np.concatenate([runner(**{name: x[k : k + 1]})["output_0"] for k in range(len(x))])
    else:
        import tensorflow as tf

        model = tf.saved_model.load(path)
        y = model.signatures["serving_default"](tf.constant(x))["output_0"].numpy()
    assert "keras_norms" not in sys.modules
    np.save(result, y)
"""


@pytest.fixture
def images(rng):
    return rng.normal(size=(4, 13, 11, 3)).astype("float32")


@pytest.fixture
def trained(images, rng):
    """A network that has seen a step of training on the kernel in use, and its outputs."""
    model = network()
    model.compile("sgd", "mse")
    model.fit(images, rng.normal(size=(4, 5)), epochs=1, verbose=0)
    return model, model.predict(images, verbose=0)


def alien(kind, path, images, folder):
    np.save(folder / "x.npy", images)
    run_python(ALIEN, kind, path, folder / "x.npy", folder / "y.npy")
    return np.load(folder / "y.npy")


def ops_in(path):
    saved = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {node.op for node in nodes}


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


# ---- Ours -------------------------------------------------------------------------------------


def test_a_saved_model(kernel, trained, images, tmp_path):
    model, want = trained
    assert kn.export(model, tmp_path / "saved") == tmp_path / "saved"
    assert not [op for op in ops_in(tmp_path / "saved") if op.startswith("KerasNorms")]
    loaded = tf.saved_model.load(tmp_path / "saved")
    close(loaded.serve(images), want)
    close(loaded.serve(images[:1]), want[:1])  # the batch is open


def test_an_older_saved_model_is_replaced(trained, images, tmp_path):
    model, _ = trained
    (tmp_path / "saved").mkdir()
    for _ in range(2):
        kn.export(model, tmp_path / "saved")
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    kn.export(other, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(tmp_path / "saved")
    close(loaded.serve(images[0, 0, :2]), other(images[0, 0, :2]))
    assert os.listdir(tmp_path) == ["saved"]


def test_modules_and_archives(images, tmp_path):
    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.norm = kn.GroupNormalization(3)
            self.norm.build((None, None, 3))

        @tf.function
        def serve(self, x: tf.TensorSpec((None, None, 3), tf.float32)):
            return self.norm(x)

    module, x = Module(), images[:, 0]
    want = module.serve(x)
    kn.export(module, tmp_path / "module")
    archive = keras.export.ExportArchive()
    archive.track(module.norm)
    with kn.portable():
        archive.add_endpoint("serve", module.norm.__call__, [tf.TensorSpec((None, None, 3))])
    kn.export(archive, tmp_path / "archive")
    for name in ("module", "archive"):
        loaded = tf.saved_model.load(tmp_path / name)
        close(loaded.serve(x), want.numpy())


def test_a_function_traced_before_is_refused(fused, tmp_path):
    module = tf.Module()
    module.norm = kn.GroupNormalization(2)
    module.norm.build((1, 5, 4))

    def normalized(x):
        return module.norm(x)

    module.serve = tf.function(normalized).get_concrete_function(tf.TensorSpec((1, 5, 4)))
    kn.set_kernel("auto")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"older")
    with pytest.raises(ValueError) as caught:
        kn.export(module, tmp_path / "saved")
    assert str(caught.value) == (
        "A SavedModel must hold built-in operations only, but the fused one came in with "
        "normalized, which was traced before the export. Hand over the layer or the tf.function, "
        "which is traced anew, or trace within `keras_norms.portable()`."
    )
    assert os.listdir(tmp_path) == ["saved"]
    assert (tmp_path / "saved" / "saved_model.pb").read_bytes() == b"older"
    # The cure that the message names.
    with kn.portable():
        module.serve = tf.function(normalized).get_concrete_function(tf.TensorSpec((1, 5, 4)))
    kn.export(module, tmp_path / "saved")


def test_a_failure_leaves_the_older_saved_model(trained, images, tmp_path, monkeypatch):
    model, want = trained
    path = tmp_path / "saved"
    kn.export(model, path)
    rename, calls = os.rename, []

    def fail_second(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_second)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(OSError, match="disk full"):
        kn.export(other, path)
    assert len(calls) == 3  # aside, the new one that failed, and back
    assert os.listdir(tmp_path) == ["saved"]
    loaded = tf.saved_model.load(path)
    close(loaded.serve(images), want)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("file", "a file"),
        ("notes.txt", "a folder with notes.txt"),
    ],
)
def test_what_is_no_saved_model_is_not_replaced(content, what, tmp_path):
    path = tmp_path / "saved"
    if content == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / content).write_text("mine")
        (path / "variables").mkdir()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError) as caught:
        kn.export(model, path)
    assert str(caught.value) == (
        "`path` must be free, empty or an older SavedModel, which is replaced. "
        f"Received: path='{path}', {what}"
    )
    assert (path if content == "file" else path / content).read_text() == "mine"
    assert os.listdir(tmp_path) == ["saved"]


def test_wrong_arguments(tmp_path):
    with pytest.raises(TypeError) as caught:
        kn.export(3, tmp_path / "saved")
    assert str(caught.value) == (
        "`model` must be a keras.Model, a keras.export.ExportArchive or a tf.Module. Received: 3"
    )
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="built"):
        kn.export(unbuilt, tmp_path / "saved")
    with pytest.raises(ValueError) as caught:
        kn.export(unbuilt, tmp_path / "missing" / "saved")
    assert str(caught.value) == (
        f"The folder of `path` must exist. Received: path='{tmp_path / 'missing' / 'saved'}'"
    )
    assert os.listdir(tmp_path) == []


# ---- Plain Keras and TensorFlow, after training on the fused op ---------------------------------


def by_keras(model, path):
    model.export(path, verbose=False)


def by_tensorflow(model, path):
    serve = tf.function(
        lambda x: {"output_0": model(x, training=False)},
        input_signature=[tf.TensorSpec((None, 13, 11, 3), name="image")],
    )
    tf.saved_model.save(model, path, signatures={"serving_default": serve})


@pytest.mark.parametrize(
    "write",
    [kn.export, *(pytest.param(one, marks=pytest.mark.slow) for one in (by_keras, by_tensorflow))],
)
def test_a_saved_model_serves_without_us(write, fused, trained, images, tmp_path):
    model, want = trained
    kn.set_kernel("auto")
    write(model, tmp_path / "saved")
    assert not [op for op in ops_in(tmp_path / "saved") if op.startswith("KerasNorms")]
    close(alien("saved_model", tmp_path / "saved", images, tmp_path), want)


def by_converter(model, path):
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def by_litert_export(model, path):
    model.export(path, format="litert", verbose=False)


@pytest.mark.parametrize("write", [by_converter, by_litert_export, kn.tflite.convert])
def test_a_tflite_file_runs_without_us(write, fused, trained, images, tmp_path):
    model, want = trained
    kn.set_kernel("auto")
    write(model, tmp_path / "m.tflite")
    close(alien("tflite", tmp_path / "m.tflite", images, tmp_path), want)
