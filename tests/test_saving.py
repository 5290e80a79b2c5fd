"""Models on their way to disk and back: trained states, Keras' own layers, and plain exports."""

import json
import zipfile

import conftest
import keras
import numpy as np
import pytest
import support
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import keras_norms as kn
from keras_norms.tflite.contents import contents

SHAPE = (13, 11, 6)


def network(axis=(-1, 1)):
    """All five norms, and layers of other kinds between them."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(10, 3, use_bias=False)(inputs)
    x = kn.GroupNormalization(5, epsilon=1e-5)(x)
    x = keras.layers.Activation("gelu")(x)
    x = keras.layers.Conv2D(7, 3, strides=2, use_bias=False)(x)
    x = kn.BatchNormalization(momentum=0.8)(x)
    x = keras.layers.Activation("gelu")(x)
    x = kn.InstanceNormalization(axis=2)(x)
    x = keras.layers.Reshape((-1, 7))(x)
    x = kn.LayerNormalization(axis)(x)
    x = keras.layers.Dense(17)(x)
    x = kn.RMSNormalization()(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.compile(keras.optimizers.Adam(0.01), keras.losses.MeanSquaredError())
    return model


def samples():
    rng = np.random.default_rng(3)
    x = rng.normal(1, 2, (8, *SHAPE)).astype("float32")
    return x, np.tanh(x.mean((1, 2))[:, :3] * 3)


def trained(**arguments):
    """A model with three steps of training behind it."""
    model = network(**arguments)
    for _ in range(3):
        model.train_on_batch(*samples())
    return model


def write_and_read(model, path):
    """The model again, by the format that the path's name says."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
        again = network()
        again.train_on_batch(*samples())  # the optimizer has its variables; and to be overwritten
        again.load_weights(path)
        return again
    model.save(path)
    return keras.saving.load_model(path)


@pytest.mark.parametrize(
    "name",
    [
        "model.keras",
        *(pytest.param(f"model{end}", marks=pytest.mark.slow) for end in (".h5", ".weights.h5")),
    ],
)
def test_training_goes_on_where_it_was(name, kernel, tmp_path):
    """Predictions, the next losses and weights are bitwise those of the model that went on."""
    # Keras' legacy format drops a list of several axes, its own layer's too.
    axis = -1 if name == "model.h5" else (-1, 1)
    model, (x, y) = trained(axis=axis), samples()
    want = model.predict(x, verbose=0)
    again = write_and_read(model, tmp_path / name)
    np.testing.assert_array_equal(again.predict(x, verbose=0), want)
    # A model that Keras 3.15 reads from its legacy format cannot be trained on, with any layers:
    # the optimizer takes its variables for unknown ones.
    for _ in range(0 if name == "model.h5" else 2):
        assert again.train_on_batch(x, y) == model.train_on_batch(x, y)
    assert len(again.weights) == len(model.weights) == 2 * 4 + 2 + 1 + 2 + 4
    for got, weight in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(got, weight, err_msg=weight.path)
        assert got.dtype == weight.dtype
    if name != "model.h5":  # the steps did something
        assert not np.array_equal(again.predict(x, verbose=0), want)


def test_names_in_the_file(tmp_path):
    """What the file says of each layer: registered names, and where to import them from."""
    model = trained()
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        written = json.loads(file.read("config.json"))
    found = {
        layer["class_name"]: (layer["registered_name"], layer["module"].partition(".")[0])
        for layer in written["config"]["layers"]
        if layer["class_name"].endswith("Normalization")
    }
    names = ("Group", "Batch", "Instance", "Layer", "RMS")
    assert found == {
        f"{name}Normalization": (f"keras_norms>{name}Normalization", "keras_norms")
        for name in names
    }
    for name in names:
        cls = getattr(kn, f"{name}Normalization")
        assert keras.saving.get_registered_object(f"keras_norms>{name}Normalization") is cls


# Keras' own layers -----------------------------------------------------------------------------

BOTH = {
    "BatchNormalization": {"momentum": 0.8},
    "GroupNormalization": {"groups": 3},
    "LayerNormalization": {"axis": [1, 3]},  # ascending: of others Keras mixes up the elements
    "RMSNormalization": {},
}


def single(cls, arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Dense(6), cls(**arguments)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.MeanSquaredError())
    return model


@pytest.mark.parametrize("name", BOTH)
def test_weights_of_keras_layers_load_and_go_back(name, kernel, tmp_path):
    """From Keras' layer into ours, a step, and back; with the optimizer's state."""
    x = samples()[0]
    theirs = single(getattr(keras.layers, name), BOTH[name])
    for _ in range(3):
        theirs.train_on_batch(x, np.tanh(x))
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours = single(getattr(kn, name), BOTH[name])
    ours.train_on_batch(x, x)
    ours.load_weights(tmp_path / "theirs.weights.h5")
    for got, weight in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(got, weight, err_msg=weight.path)
        assert (got.name, got.dtype) == (weight.name, weight.dtype)
    # Data of a deviation of about 2 and values of about 1: some roundings of two computations.
    want = theirs.predict(x, verbose=0)
    support.close(ours.predict(x, verbose=0), want, atol=32 * support.EPS32 * np.abs(want).max())
    losses = [model.train_on_batch(x, np.tanh(x)) for model in (ours, theirs)]
    np.testing.assert_allclose(*losses, rtol=32 * support.EPS32)

    ours.save_weights(tmp_path / "ours.weights.h5")
    again = single(getattr(keras.layers, name), BOTH[name])
    again.train_on_batch(x, x)
    again.load_weights(tmp_path / "ours.weights.h5")
    for got, weight in zip(again.weights, ours.weights, strict=True):
        np.testing.assert_array_equal(got, weight, err_msg=weight.path)
    assert int(again.optimizer.iterations) == 4


# Exports ---------------------------------------------------------------------------------------


def nodes(path):
    """Types of all operations in a SavedModel, those in functions too."""
    saved = SavedModel.FromString((path / "saved_model.pb").read_bytes())
    graphs = [meta.graph_def for meta in saved.meta_graphs]
    return {
        node.op
        for graph in graphs
        for part in (graph.node, *(f.node_def for f in graph.library.function))
        for node in part
    }


class Trainer(tf.Module):
    """A training step that goes into a SavedModel: forward, backward, update."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.rate = tf.Variable(0.05)

    @tf.function(
        input_signature=[tf.TensorSpec((None, *SHAPE)), tf.TensorSpec((None, 3))], autograph=False
    )
    def step(self, x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.model(x, training=True) - y))
        variables = [v.value for v in self.model.trainable_variables]
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(self.rate * gradient)
        return loss


def by_export(model, folder):
    model.export(folder / "by_export", verbose=False)


def by_archive(model, folder):
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.__call__, [tf.TensorSpec((None, *SHAPE))])
    archive.write_out(folder / "by_archive", verbose=False)


def by_tensorflow(model, folder):
    serve = tf.function(
        lambda x: model(x, training=False), input_signature=[tf.TensorSpec((None, *SHAPE))]
    )
    tf.saved_model.save(model, folder / "by_tensorflow", signatures=serve)


def by_converter(model, folder):
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (folder / "by_converter.tflite").write_bytes(content)


def from_saved_model(model, folder):
    content = tf.lite.TFLiteConverter.from_saved_model(str(folder / "by_export")).convert()
    (folder / "from_saved_model.tflite").write_bytes(content)


def by_litert(model, folder):
    model.export(folder / "by_litert.tflite", format="litert", verbose=False)


SAVED_MODELS = (by_export, by_archive, by_tensorflow)
TFLITES = (by_converter, from_saved_model, by_litert)

# A process in which keras_norms cannot be imported.
ELSEWHERE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "keras_norms":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import numpy as np, tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
folder, *names = sys.argv[1:]
data = np.load(f"{folder}/data.npz")
x, y = data["x"], data["y"]
results = {}
for name in names:
    path = f"{folder}/{name}"
    if name == "trainer":
        loaded = tf.saved_model.load(path)
        results[name] = np.array([loaded.step(x, y) for _ in range(5)])
    elif name.endswith(".tflite"):
        runner = Interpreter(model_path=path).get_signature_runner()
        (argument,) = runner.get_input_details()
        outputs = [runner(**{argument: x[i : i + 1]}) for i in range(len(x))]
        results[name] = np.concatenate([value for o in outputs for value in o.values()])
    else:
        loaded = tf.saved_model.load(path)
        serve = loaded.signatures.get("serving_default") or loaded.serve
        parts = [serve(tf.constant(part)) for part in (x[:5], x[5:])]
        parts = [next(iter(p.values())) if isinstance(p, dict) else p for p in parts]
        results[name] = np.concatenate(parts)
assert "keras_norms" not in sys.modules
np.savez(f"{folder}/results.npz", **results)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model trained on the fused op, its exports, and what they give where we are not."""
    conftest.need_fused()
    before = kn.get_kernel()
    kn.set_kernel("fused")  # in an export that means nothing: it is portable in any case
    folder = tmp_path_factory.mktemp("exported")
    model = trained()
    x, y = samples()
    want = model.predict(x, verbose=0)
    for write in (*SAVED_MODELS, *TFLITES):
        write(model, folder)
    tf.saved_model.save(Trainer(model), folder / "trainer")
    names = sorted(path.name for path in folder.iterdir())
    np.savez(folder / "data.npz", x=x, y=y)
    support.run_python(ELSEWHERE, folder, *names)
    with np.load(folder / "results.npz") as found:
        results = dict(found)
    trainer = Trainer(model)
    losses = np.array([trainer.step(tf.constant(x), tf.constant(y)) for _ in range(5)])
    kn.set_kernel(before)
    return folder, results, want, losses


def test_fused_trained_what_is_exported(fused):
    model = network()
    graph = (
        tf.function(lambda x: model(x), autograph=False)
        .get_concrete_function(tf.TensorSpec((4, *SHAPE)))
        .graph
    )
    ops = [op.type for op in graph.get_operations() if op.type.startswith("KerasNorms>")]
    assert sorted(ops) == ["KerasNorms>Normalize"] * 4 + ["KerasNorms>ScaleShift"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(write.__name__ for write in SAVED_MODELS), "trainer"])
def test_saved_model_holds_built_in_ops_only(name, exported):
    ops = nodes(exported[0] / name)
    assert "Conv2D" in ops
    assert not [op for op in ops if op.startswith("KerasNorms")]


@pytest.mark.parametrize("name", [f"{write.__name__}.tflite" for write in TFLITES])
def test_tflite_holds_built_in_ops_only(name, exported):
    found = contents((exported[0] / name).read_bytes())
    assert found.custom == ()
    assert found.stateful == ()
    assert "CONV_2D" in found.ops
    assert found.rank_above_4 == 0


# Two paths through the network, each within its bound of every norm; the layers between them do
# not enlarge that much: in units of the largest output.
PATHS = 1e-5


@pytest.mark.parametrize(
    "name",
    [
        *(write.__name__ for write in SAVED_MODELS),
        *(f"{write.__name__}.tflite" for write in TFLITES),
    ],
)
def test_export_predicts_the_same_where_we_are_not_installed(name, exported):
    _, results, want, _ = exported
    support.close(results[name], want, atol=PATHS * np.abs(want).max())


def test_exported_training_step_trains(exported):
    """Five steps there are five steps here: gradients of the portable path are in the file."""
    _, results, _, losses = exported
    assert losses[4] < losses[0]
    np.testing.assert_allclose(results["trainer"], losses, rtol=1e-4)  # the promise of two paths


@pytest.mark.parametrize("write", SAVED_MODELS)
def test_saved_model_is_bitwise_the_portable_model(write, tmp_path):
    """On the same path the file computes what the model did."""
    model, x = trained(), samples()[0]
    write(model, tmp_path)
    loaded = tf.saved_model.load(tmp_path / write.__name__)
    serve = loaded.signatures["serving_default"]
    got = next(iter(serve(tf.constant(x)).values()))
    with kn.portable():
        signature = [tf.TensorSpec((None, *SHAPE))]
        want = tf.function(lambda x: model(x, training=False), input_signature=signature)(x)
    np.testing.assert_array_equal(got, want)
