"""What the converter takes, and what it promises of the file: its bytes, its sizes, its notes."""

import base64
import io
import json
import pickle
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from support import run_python

import keras_norms as kn
from keras_norms.tflite import ConversionError, metadata, vectors
from keras_norms.tflite.graph import File

layers = keras.layers
FORMATS = (None, "float16", "dynamic", "int8", "int16x8")


def randomized(model, seed=3):
    draw = np.random.default_rng(seed)
    for weight in model.weights:
        if "norm" in weight.path:
            weight.assign(draw.uniform(0.5, 1.5, weight.shape))
    return model


def network(sizes=(9, 7, 3)):
    keras.utils.set_random_seed(1)
    return randomized(
        keras.Sequential(
            [
                keras.Input(sizes, name="image"),
                layers.Conv2D(6, 3),
                kn.GroupNormalization(2),
                layers.ReLU(),
                layers.GlobalAveragePooling2D(),
                kn.LayerNormalization(),
            ]
        )
    )


@pytest.fixture
def images(rng):
    return rng.normal(size=(16, 9, 7, 3)).astype("float32")


def agree(model, path, x, tolerance=1e-5):
    want = keras.ops.convert_to_numpy(model(x, training=False))
    got = kn.tflite.run(path, x)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def refuses(model, folder, kind=ConversionError, **options):
    """One line that says why; whatever was in the folder is as it was."""
    path = folder / "m.tflite"
    path.write_bytes(b"an older file")
    before = {found: found.is_dir() or found.read_bytes() for found in folder.rglob("*")}
    with pytest.raises(kind) as caught:
        kn.tflite.convert(model, path, **options)
    assert {found: found.is_dir() or found.read_bytes() for found in folder.rglob("*")} == before
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 1000
    return message


# ---- Saved models -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.hdf5"])
def test_a_saved_model(name, tmp_path, images):
    """As the live one, up to the names of layers."""
    model = network()
    if name.endswith("keras"):
        model.save(tmp_path / name)
    else:
        keras.src.legacy.saving.legacy_h5_format.save_model_to_hdf5(model, str(tmp_path / name))
    saved = kn.tflite.convert(tmp_path / name, tmp_path / "saved.tflite", verify=False)
    kn.tflite.convert(str(tmp_path / name), tmp_path / "string.tflite", verify=False)
    live = kn.tflite.convert(model, tmp_path / "live.tflite", verify=False)
    content = (tmp_path / "saved.tflite").read_bytes()
    assert (tmp_path / "string.tflite").read_bytes() == content
    assert saved.ops == live.ops
    assert [norm.form for norm in saved.norms] == [norm.form for norm in live.norms]
    agree(model, tmp_path / "saved.tflite", images)


def exported(model, folder):
    with kn.portable():
        model.export(folder, verbose=False)
    return folder


@pytest.mark.parametrize("quantize", FORMATS)
def test_a_saved_model_folder(quantize, tmp_path, images):
    model, path = network(), tmp_path / "m.tflite"
    samples = images if quantize in ("int8", "int16x8") else None
    report = kn.tflite.convert(
        exported(model, tmp_path / "saved"), path, quantize=quantize, representative_data=samples
    )
    assert report.norms == ()
    (note,) = [note for note in report.notes if "SavedModel" in note]
    assert "no norm was lowered or folded" in note
    tolerance = {None: 1e-5, "float16": 1e-2, "dynamic": 5e-2, "int8": 0.3, "int16x8": 5e-2}
    agree(model, path, images, tolerance[quantize])


def test_the_batch_of_a_saved_model_folder(tmp_path, images):
    model, path = network(), tmp_path / "m.tflite"
    folder = exported(model, tmp_path / "saved")
    for size in (1, 4, None):
        report = kn.tflite.convert(folder, path, batch_size=size)
        assert kn.tflite.inspect(path).inputs[0].shape == (size, 9, 7, 3)
        assert any("Sizes are left open" in note for note in report.notes) == (size is None)
        agree(model, path, images)


def test_a_saved_model_folder_written_for_a_batch(tmp_path, images):
    model = network()
    with kn.portable():
        model.export(
            tmp_path / "saved",
            verbose=False,
            input_signature=[keras.InputSpec(shape=(4, 9, 7, 3), dtype="float32", name="image")],
        )
    message = refuses(tmp_path / "saved", tmp_path, ValueError)
    assert "`batch_size` must agree with the SavedModel" in message
    kn.tflite.convert(tmp_path / "saved", tmp_path / "m.tflite", batch_size=4)
    agree(model, tmp_path / "m.tflite", images)


def test_what_a_saved_model_folder_cannot_change(tmp_path):
    folder = exported(network((None, None, 3)), tmp_path / "saved")
    message = refuses(folder, tmp_path, ValueError, input_shapes=(9, 7, 3))
    assert message.startswith("`input_shapes` cannot change a SavedModel")


def test_several_inputs_and_outputs_of_a_saved_model(tmp_path, rng):
    image, vector = keras.Input((7, 5, 4), name="image"), keras.Input((4,), name="vector")
    y = kn.GroupNormalization(2)(image) + layers.Dense(4)(vector)[:, None, None]
    model = randomized(keras.Model({"image": image, "vector": vector}, {"y": y, "z": vector * 2}))
    model.save(tmp_path / "m.keras")
    data = {"image": rng.normal(size=(4, 7, 5, 4)), "vector": rng.normal(size=(4, 4))}
    data = {name: array.astype("float32") for name, array in data.items()}
    for source in (tmp_path / "m.keras", exported(model, tmp_path / "saved")):
        kn.tflite.convert(source, tmp_path / "m.tflite", data=data)
        got, want = kn.tflite.run(tmp_path / "m.tflite", data), model(data)
        assert sorted(got) == ["y", "z"]
        for name in got:
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5)


@keras.saving.register_keras_serializable("test_tflite_inputs")
class Tower(keras.Model):
    """Subclassed, with one norm that is called twice."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(6)
        self.norm = kn.LayerNormalization()

    def call(self, x):
        return self.norm(self.dense(self.norm(x)))


def test_a_saved_subclassed_model(tmp_path, rng):
    x = rng.normal(size=(3, 6)).astype("float32")
    model = Tower()
    model(x)
    randomized(model).save(tmp_path / "m.keras")
    report = kn.tflite.convert(tmp_path / "m.keras", tmp_path / "m.tflite")
    assert [norm.layer for norm in report.norms] == ["LayerNormalization"] * 2
    agree(model, tmp_path / "m.tflite", x)


def test_a_saved_nested_model_with_a_shared_layer(tmp_path, rng):
    inner = keras.Sequential([keras.Input((6,)), kn.RMSNormalization(), layers.Dense(6)])
    x = keras.Input((6,))
    model = randomized(keras.Model(x, inner(inner(x))))
    model.save(tmp_path / "m.keras")
    report = kn.tflite.convert(tmp_path / "m.keras", tmp_path / "m.tflite")
    assert len(report.norms) == 2
    agree(model, tmp_path / "m.tflite", rng.normal(size=(3, 6)).astype("float32"))


# ---- Saved models that are refused ------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_python_code_in_a_file_is_not_run(suffix, tmp_path):
    marker = tmp_path / "executed"

    def touch(x, path=str(marker)):
        open(path, "w").close()
        return x

    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: touch(x))])
    model.save(tmp_path / f"m{suffix}")
    marker.unlink()  # the model ran it when it was made
    message = refuses(tmp_path / f"m{suffix}", tmp_path)
    assert "Lambda" in message
    assert message.endswith("safe_mode=False)` and convert the model.")
    assert not marker.exists()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def rewritten(path, change):
    """A `.keras` file whose members are what `change(name, bytes)` makes of them."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as made:
        for name in source.namelist():
            made.writestr(name, change(name, source.read(name)))
    path.write_bytes(out.getvalue())


@pytest.mark.parametrize(
    "layer",
    [
        {"module": "os", "class_name": "system", "config": "touch {marker}"},
        {"module": "builtins", "class_name": "eval", "config": {"source": "open('{marker}','w')"}},
        {
            "module": "keras.layers",
            "class_name": "TorchModuleWrapper",
            "config": {"module": "{pickle}", "name": "w"},
        },
        {
            "module": "keras.layers",
            "class_name": "Dense",
            "config": {"units": {"class_name": "__lambda__", "config": {"value": "{pickle}"}}},
        },
    ],
    ids=["os.system", "eval", "pickle", "__lambda__"],
)
def test_names_of_code_in_a_file_are_not_called(layer, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "m.keras"
    network().save(path)
    pickled = base64.b64encode(pickle.dumps(Touch(marker))).decode()
    text = json.dumps(layer).replace("{marker}", str(marker)).replace("{pickle}", pickled)

    def change(name, content):
        if name != "config.json":
            return content
        config = json.loads(content)
        config["config"]["layers"][1] = json.loads(text)
        return json.dumps(config).encode()

    rewritten(path, change)
    refuses(path, tmp_path)
    assert not marker.exists()


def test_weights_of_other_files_are_not_read(tmp_path):
    """An HDF5 file can name another one as the place of a dataset."""
    path, secret = tmp_path / "m.keras", tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    network().save(path)

    def change(name, content):
        if not name.endswith(".h5"):
            return content
        (tmp_path / "w.h5").write_bytes(content)
        with h5py.File(tmp_path / "w.h5", "r+") as file:
            found = []
            file.visititems(lambda n, o: found.append(n) if isinstance(o, h5py.Dataset) else None)
            shape = file[found[0]].shape
            del file[found[0]]
            external = [(str(secret), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset(found[0], shape, "float32", external=external)
        return (tmp_path / "w.h5").read_bytes()

    rewritten(path, change)
    assert "external" in refuses(path, tmp_path)


def test_files_that_are_no_models(tmp_path):
    network().save(tmp_path / "m.keras")
    content = (tmp_path / "m.keras").read_bytes()
    keras.models.load_model(tmp_path / "m.keras").save_weights(tmp_path / "w.weights.h5")
    cases = {
        "empty.keras": (b"", "must be a whole zip archive"),
        "empty.h5": (b"", "cannot be loaded as a Keras model"),
        "cut.keras": (content[: len(content) // 2], "must be a whole zip archive"),
        "text.keras": (b"not a model", "must be a whole zip archive"),
        "text.h5": (b"not a model", "cannot be loaded as a Keras model"),
        "zip.h5": (content, "cannot be loaded as a Keras model"),
        "weights.h5": ((tmp_path / "w.weights.h5").read_bytes(), "No model config found"),
        "model.onnx": (content, "must end in .keras or .h5"),
        "model": (content, "must end in .keras or .h5"),
    }
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("a.txt", "no model")
    assert "config.json" in refuses(tmp_path / "other.keras", tmp_path)
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        message = refuses(tmp_path / name, tmp_path)
        assert words in message
        assert name in message
    assert "no such file" in refuses(tmp_path / "none.keras", tmp_path)
    assert "no such file" in refuses("x" * 5000 + ".keras", tmp_path)
    assert "no such file" in refuses("nul\0.keras", tmp_path)
    (tmp_path / "folder.keras").mkdir()
    assert "must be a SavedModel" in refuses(tmp_path / "folder.keras", tmp_path)
    (tmp_path / "folder.keras" / "saved_model.pb").write_bytes(b"damaged" * 100)
    assert "cannot be loaded as a SavedModel" in refuses(tmp_path / "folder.keras", tmp_path)


def test_damaged_weights(tmp_path):
    """A file that ends libhdf5's process: the length of an attribute's name is past its end."""
    path = tmp_path / "m.h5"
    keras.src.legacy.saving.legacy_h5_format.save_model_to_hdf5(network(), str(path))
    content = path.read_bytes()
    for k in range(0, len(content), max(1, len(content) // 8)):
        path.write_bytes(content[:k] + b"\xff" * 64 + content[k + 64 :])
        try:
            kn.tflite.convert(path, tmp_path / "m.tflite", verify=False)
        except ConversionError as error:
            assert "\n" not in str(error)


def test_layers_that_fail_in_a_saved_model(tmp_path):
    path = tmp_path / "m.keras"
    network().save(path)
    rewritten(path, lambda name, c: c.replace(b'"strides": [1, 1]', b'"strides": [2147483648, 1]'))
    message = refuses(path, tmp_path)
    assert "\x1b" not in message


@pytest.mark.parametrize("model", [None, 3, b"m.keras", ["m.keras"], layers.Dense(3), np.ones(3)])
def test_what_is_no_model(model, tmp_path):
    assert refuses(model, tmp_path, TypeError).startswith("`model` must be a keras.Model, or the")


# ---- The same bytes ---------------------------------------------------------------------------

TWICE = """
    import hashlib, pathlib, sys
    import numpy as np
    import keras_norms as kn
    folder = pathlib.Path(sys.argv[1])
    samples = np.load(folder / "samples.npy")
    for name in sys.argv[3:]:
        quantize = None if name == "None" else name
        data = samples if quantize in ("int8", "int16x8") else None
        for _ in range(2):
            path = folder / f"{sys.argv[2]}.tflite"
            kn.tflite.convert(
                folder / "m.keras", path, quantize=quantize, representative_data=data, verify=False
            )
            print(quantize, hashlib.sha256(path.read_bytes()).hexdigest())
"""


@pytest.mark.parametrize(
    "formats",
    [("None", "int8"), pytest.param(("float16", "dynamic", "int16x8"), marks=pytest.mark.slow)],
)
def test_the_same_bytes_in_every_process(formats, tmp_path, images):
    network().save(tmp_path / "m.keras")
    np.save(tmp_path / "samples.npy", images)
    first, second = (
        run_python(TWICE, tmp_path, seed, *formats, env={"PYTHONHASHSEED": seed})
        for seed in ("1", "20")
    )
    first, second = first.stdout.splitlines(), second.stdout.splitlines()
    assert [line.split()[0] for line in first[::2]] == list(formats)
    assert first[::2] == first[1::2]
    assert first == second


# ---- A conversion that is killed --------------------------------------------------------------

KILLED = """
    import os, pathlib, random, signal, sys, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork: nothing has run yet
    import keras_norms as kn
    import keras_norms.tflite
    folder, old = pathlib.Path(sys.argv[1]), b"an older file"
    path = folder / "out" / "m.tflite"
    random.seed(int(sys.argv[2]))

    def convert():
        kn.tflite.convert(folder / "m.keras", path, verify=False)

    def converted(prepare, delay=None):
        path.write_bytes(old)
        child = os.fork()
        if child == 0:
            prepare()
            convert()
            os._exit(0)
        if delay is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        found = path.read_bytes()
        rest = sorted(p.name for p in path.parent.iterdir() if p != path)
        for name in rest:
            (path.parent / name).unlink()
        return status, found, rest

    def killed_at(event):
        "At the n-th time that Python does something in the folder."
        count = 0
        def hook(name, arguments):
            nonlocal count
            paths = (a for a in arguments if isinstance(a, (str, os.PathLike)))
            if any(str(path.parent) in str(a) for a in paths):
                count += 1
                if count > event:
                    os.kill(os.getpid(), signal.SIGKILL)
        return lambda: sys.addaudithook(hook)

    start = time.monotonic()
    status, new, rest = converted(lambda: None)
    took = time.monotonic() - start
    assert (status, rest) == (0, []) and new != old, (status, rest)
    leftovers, states = set(), []
    for event in range(100):
        status, found, rest = converted(killed_at(event))
        assert found in (old, new), found[:100]
        leftovers |= set(rest)
        states.append(found == new)
        if status == 0:
            break
    assert status == 0 and event >= 4, event
    for _ in range(int(sys.argv[3])):
        status, found, rest = converted(lambda: None, random.uniform(0, took))
        assert found in (old, new), found[:100]
        leftovers |= set(rest)
        states.append(found == new)
    print(*leftovers)
    print(states.count(False), states.count(True))
"""


@pytest.mark.parametrize("times", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_a_killed_conversion(times, tmp_path):
    """By the system, at every point where the folder is touched and at random ones between."""
    network().save(tmp_path / "m.keras")
    (tmp_path / "out").mkdir()
    leftovers, states = run_python(KILLED, tmp_path, 4, times).stdout.splitlines()
    assert leftovers  # what may remain is what the documentation says
    for name in leftovers.split():
        assert re.fullmatch(r"\.m\.tflite\.[0-9a-f]{8}\.tmp", name)
    assert "`.NAME.XXXXXXXX.tmp`" in kn.tflite.convert.__doc__
    before, after = map(int, states.split())
    assert before > 0 < after


# ---- A data set as for `fit` --------------------------------------------------------------------


def test_a_data_set_as_for_fit(tmp_path, images):
    """Anything of it that is not x has no effect."""
    model, path, other = network(), tmp_path / "m.tflite", tmp_path / "other.tflite"
    labels = np.arange(16)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(5)
    options = {"quantize": "int8", "norms": "float", "batch_size": 2}
    report = kn.tflite.convert(model, path, representative_data=data, data=data, **options)
    again = kn.tflite.convert(model, other, representative_data=images, data=images, **options)
    assert (report.samples, report.agreements) == (16, again.agreements)
    assert path.read_bytes() == other.read_bytes()
    shuffled = data.unbatch().shuffle(16, seed=1).batch(3)  # in another order each time
    np.testing.assert_array_equal(kn.tflite.run(path, data), kn.tflite.run(path, images))
    found = kn.tflite.compare(path, path, shuffled)
    assert (found.samples, found.outputs["output_0"].max_error) == (16, 0)
    assert len(kn.tflite.bench([path, other], runs=1, data=shuffled)) == 2


def test_a_data_set_of_several_inputs(tmp_path, rng):
    """By place they are the model's; a file has its inputs in an order of its own."""
    z, b = keras.Input((3,), name="z"), keras.Input((None,), name="b")
    x = [rng.normal(size=(4, n)).astype("float32") for n in (3, 5)]
    model, path = (
        keras.Model([z, b], kn.UnitNormalization()(z) + layers.ReLU()(b)[:, :1]),
        tmp_path / "m.tflite",
    )
    for element in (tuple(x), (tuple(x), x[0]), ({"b": x[1], "z": x[0]}, x[0], x[1])):
        data = tf.data.Dataset.from_tensor_slices(element)
        kn.tflite.convert(model, path, input_shapes=[(3,), (None,)], data=data)
        calls = (
            lambda data: kn.tflite.run(path, data),
            lambda data: kn.tflite.compare(path, path, data),
            lambda data: kn.tflite.bench([path], data=data, runs=1),
        )
        for call in calls:
            if isinstance(element[0], dict):
                call(data)
                continue
            for given in (data, x):
                with pytest.raises(ValueError, match="does not keep the order of the model's inp"):
                    call(given)
    np.testing.assert_allclose(kn.tflite.run(path, data), model(x), rtol=0, atol=1e-5)
    sizes = tf.data.Dataset.from_generator(
        lambda: ((x[0][k], x[1][k, : k + 1]) for k in range(4)),
        output_signature=(tf.TensorSpec((3,)), tf.TensorSpec((None,))),
    )
    with pytest.raises(ValueError, match=r"of one shape. Received: \(1,\) and \(2,\) for .* 'b'"):
        kn.tflite.convert(model, path, input_shapes=[(3,), (None,)], data=sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.repeat(), "`data` must have an end, as `data.take(100)` has. Received: <_Rep"),
        (lambda d: d.take(0), "`data` must hold the same number of samples for every input, a mul"),
        (lambda d: d.take(3), "`data` must hold the same number of samples for every input, a mul"),
        (lambda d: d.map(lambda x, y: (y, x)), "`data` must hold samples of shape (9, 7, 3) for "),
        (lambda d: d.map(lambda x, y: (x, x, y, y)), "`data` must be arrays of samples, one for e"),
        (lambda d: d.map(lambda x, y: {"other": x}), "`data` must be arrays of samples, one for e"),
    ],
    ids=["endless", "empty", "odd", "y and x", "four", "other"],
)
def test_data_sets_that_do_not_fit(change, message, tmp_path, images):
    path = tmp_path / "m.tflite"
    data = change(tf.data.Dataset.from_tensor_slices((images, np.arange(16))))
    kn.tflite.convert(network(), path, batch_size=2, verify=False)
    for call in (
        lambda: kn.tflite.convert(network(), tmp_path / "n.tflite", batch_size=2, data=data),
        lambda: kn.tflite.run(path, data),
        lambda: kn.tflite.compare(path, path, data),
        lambda: kn.tflite.bench([path], data=data),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value).startswith(message)
    assert not (tmp_path / "n.tflite").exists()


# ---- What the file says of itself -------------------------------------------------------------


def notes(path):
    return metadata.read(File(path.read_bytes()))


@pytest.mark.parametrize("batch", [1, 4])
def test_the_test_vectors_replay(batch, tmp_path, images):
    path = tmp_path / "m.tflite"
    report = kn.tflite.convert(network(), path, batch_size=batch, data=images, target="cpu")
    assert notes(path)["keras_norms.conversion"] == {
        "keras_norms": kn.__version__,
        "target": "cpu",
        "quantize": None,
        "norms": {norm.path: norm.form for norm in report.norms},
    }
    sample = kn.tflite.test_vectors(path)
    np.testing.assert_array_equal(sample.inputs["image"], images[:batch])
    got = Interpreter(model_path=str(path)).get_signature_runner()(**sample.inputs)
    assert sorted(got) == sorted(sample.outputs)
    for name, want in sample.outputs.items():
        np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_test_vectors_stand_as_apps_read_them(tmp_path):
    """Decoded by hand: reader and writer could be wrong in the same way."""
    index, vector = keras.Input((3,), dtype="int32", name="index"), keras.Input((5,), name="vector")
    outputs = {
        "y": layers.Embedding(4, 5)(index) + vector[:, None],
        "z": kn.UnitNormalization()(vector),
    }
    kn.tflite.convert(keras.Model([index, vector], outputs), tmp_path / "m.tflite", batch_size=2)
    sample = kn.tflite.test_vectors(tmp_path / "m.tflite")
    stored = notes(tmp_path / "m.tflite")["keras_norms.test_vectors"]
    for kind, shapes in (
        ("inputs", {"index": ("int32", (2, 3)), "vector": ("float32", (2, 5))}),
        ("outputs", {"y": ("float32", (2, 3, 5)), "z": ("float32", (2, 5))}),
    ):
        got = getattr(sample, kind)
        assert {name: (a.dtype.name, a.shape) for name, a in got.items()} == shapes
        assert stored[kind].keys() == shapes.keys()
        for name, array in stored[kind].items():
            flat = np.frombuffer(base64.b64decode(array["data"]), array["dtype"])
            np.testing.assert_array_equal(got[name], flat.reshape(array["shape"]))
            got[name] += 1  # an array of its own


def array_of(**changes):
    zeros = {"shape": [2, 2], "dtype": "int8", "data": base64.b64encode(bytes(4)).decode()}
    return {"inputs": {"x": {**zeros, **changes}}, "outputs": {"y": zeros}}


DAMAGED = {
    "empty": ("", "Expecting value"),
    "no JSON": ("{", "Expecting property name"),
    "deep": ("[" * 100000, "recursion"),
    "long number": ("9" * 5000, "limit"),
    "not text": (b"\xff\xfe\xff", "can't decode"),
    "number": ("3", "they must be an object of inputs and outputs, not 3"),
    "no outputs": ('{"inputs": {}}', "they must be an object of inputs and outputs, not {'inputs'"),
    "none": ({"inputs": {}, "outputs": {}}, "the inputs must be an object of arrays, not {}"),
    "list": ({"inputs": [1], "outputs": []}, "the inputs must be an object of arrays, not [1]"),
    "no array": ({"inputs": {"x": 3}, "outputs": {}}, "the outputs must be an object of arrays"),
    "no dtype": (
        {"inputs": {"x": {"shape": [1], "data": ""}}, "outputs": {"y": 3}},
        "'x' must have a shape, a dtype and data, not {'shape': [1], 'data': ''}",
    ),
    "negative": (array_of(shape=[-2, -2]), "the shape of 'x' must be a list of sizes, not [-2"),
    "half": (array_of(shape=[2.0, 2]), "the shape of 'x' must be a list of sizes, not [2.0, 2]"),
    "true": (array_of(shape=[4, True]), "the shape of 'x' must be a list of sizes, not [4, True]"),
    "scalar": (array_of(shape=4), "the shape of 'x' must be a list of sizes, not 4"),
    "rank": (array_of(shape=[4, *[1] * 99]), "the shape of 'x' must be a list of sizes, not [4"),
    "ranks": (array_of(shape=[2**31 - 1] * 10**5), "the shape of 'x' must be a list of sizes"),
    "huge": (array_of(shape=[4, 2**80, 0]), "the shape of 'x' must be a list of sizes, not [4"),
    "large": (array_of(shape=[2**31 - 1] * 32), "'x' must have 4185580434451"),
    "empty and large": (array_of(shape=[0] + [2**31 - 1] * 9, data=""), "array is too big"),
    "other shape": (
        array_of(shape=[2, 3]),
        "'x' must have 6 bytes for int8 of shape [2, 3], not 4",
    ),
    "other dtype": (array_of(dtype="int16"), "'x' must have 8 bytes for int16 of shape [2, 2]"),
    "object": (array_of(dtype="object"), "the dtype of 'x' must be one of numbers, not 'object'"),
    "structure": (array_of(dtype="i1,i1"), "the dtype of 'x' must be one of numbers, not 'i1,i1'"),
    "byte order": (array_of(dtype=">i1"), "the dtype of 'x' must be one of numbers, not '>i1'"),
    "no name": (array_of(dtype=["i1"]), "the dtype of 'x' must be one of numbers, not ['i1']"),
    "not base64": (array_of(data="AAAA\nA=="), "the data of 'x' are not base64: "),
    "cut": (array_of(data="AAAAA"), "the data of 'x' are not base64: "),
    "beyond ASCII": (array_of(data="\u00e4AAAA"), "the data of 'x' are not base64: "),
    "no data": (array_of(data=None), "the data of 'x' must be text, not None"),
}


@pytest.fixture(scope="module")
def without_notes(tmp_path_factory):
    path = tmp_path_factory.mktemp("notes") / "m.tflite"
    kn.tflite.convert(network(), path, metadata=False, verify=False)
    return path.read_bytes()


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_test_vectors(case, without_notes, tmp_path):
    stored, message = DAMAGED[case]
    text = json.dumps(stored) if isinstance(stored, dict) else stored
    text = text if isinstance(text, bytes) else text.encode()
    file = File(metadata.written(without_notes, {metadata.TEST_VECTORS: None}))
    file.raw.buffers[file.raw.metadata[-1].buffer].data = np.frombuffer(text, "uint8")
    path = tmp_path / "m.tflite"
    path.write_bytes(file.dump())
    with pytest.raises(ConversionError) as caught:
        kn.tflite.test_vectors(path)
    assert str(caught.value).startswith("The test vectors are damaged: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f". Received: {str(path)!r}")
    assert len(str(caught.value)) < 1000


def test_large_samples_are_left_out(tmp_path):
    norm = keras.Sequential([keras.Input((None,)), kn.UnitNormalization()])
    most = vectors.LARGEST // 8  # of float32, in and out
    for size, kept in ((most, True), (most + 1, False)):
        norm = keras.Sequential([keras.Input((size,)), kn.ScaleNormalization()])
        kn.tflite.convert(norm, tmp_path / "m.tflite", verify=False)
        assert ("keras_norms.test_vectors" in notes(tmp_path / "m.tflite")) == kept
        assert "keras_norms.conversion" in notes(tmp_path / "m.tflite")
        assert kn.tflite.inspect(tmp_path / "m.tflite").test_vectors == kept
        assert (kn.tflite.test_vectors(tmp_path / "m.tflite") is not None) == kept


def test_a_file_without_notes(tmp_path, images):
    model = network()
    kn.tflite.convert(model, tmp_path / "m.tflite", metadata=False)
    assert notes(tmp_path / "m.tflite") == {}
    assert kn.tflite.test_vectors(tmp_path / "m.tflite") is None
    agree(model, tmp_path / "m.tflite", images)


# ---- Open sizes -------------------------------------------------------------------------------

NORMS = (
    kn.BatchNormalization,
    kn.FilterResponseNormalization,
    kn.GroupNormalization,
    kn.InstanceNormalization,
    kn.LayerNormalization,
    kn.RMSNormalization,
    kn.SwitchableNormalization,
)
SIZES = ((1, 9, 7), (4, 9, 7), (1, 40, 33), (3, 1, 1), (2, 64, 5))


@pytest.mark.parametrize("target", ["any", pytest.param("cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.__name__)
@pytest.mark.parametrize(
    ("space", "batch"),
    [
        pytest.param((9, 7), None, id="open batch"),
        pytest.param((None, None), 1, id="open space", marks=pytest.mark.slow),
        pytest.param((None, None), None, id="all open"),
    ],
)
def test_open_sizes(space, batch, norm, target, tmp_path, rng):
    """The file runs at several sizes, and agrees with Keras at each."""
    layer = norm(2) if norm is kn.GroupNormalization else norm()
    model = randomized(keras.Sequential([keras.Input((None, None, 6)), layer]))
    path = tmp_path / "m.tflite"
    report = kn.tflite.convert(
        model, path, batch_size=batch, input_shapes=(*space, 6), target=target
    )
    assert report.verified
    (note,) = report.notes
    assert note.startswith("Sizes are left open: the file computes shapes while it runs")
    assert kn.tflite.inspect(path).inputs[0].shape == (batch, *space, 6)
    for samples, height, width in SIZES:
        if space in ((None, None), (height, width)):
            agree(model, path, rng.normal(1, 2, (samples, height, width, 6)).astype("float32"))


@pytest.mark.parametrize("quantize", ["float16", "dynamic"])
def test_open_sizes_in_formats_of_weights(quantize, tmp_path, rng):
    model, path = network((None, None, 3)), tmp_path / "m.tflite"
    options = {"batch_size": None, "input_shapes": (None, None, 3), "quantize": quantize}
    kn.tflite.convert(model, path, **options)
    for shape in ((3, 9, 7, 3), (1, 40, 33, 3)):
        agree(model, path, rng.normal(size=shape).astype("float32"), 5e-2)


@pytest.mark.parametrize("quantize", ["int8", "int16x8"])
@pytest.mark.parametrize(
    "options", [{"batch_size": None, "input_shapes": (9, 7, 3)}, {"input_shapes": (None, 7, 3)}]
)
def test_open_sizes_are_refused_for_integers(quantize, options, tmp_path, images):
    options = {"quantize": quantize, "representative_data": images, **options}
    message = refuses(network((None, None, 3)), tmp_path, **options)
    assert message.startswith(f"quantize='{quantize}' needs fixed sizes: ")


def test_open_sizes_of_the_custom_op(tmp_path, rng):
    from keras_norms.tflite import custom_op

    try:
        custom_op.library()
    except RuntimeError as error:
        pytest.skip(f"no kernel: {error}")
    model, path = network((None, None, 3)), tmp_path / "m.tflite"
    options = {"batch_size": None, "input_shapes": (None, None, 3), "custom_op": True}
    kn.tflite.convert(model, path, **options)
    for shape in ((3, 9, 7, 3), (1, 40, 33, 3)):
        x = rng.normal(size=shape).astype("float32")
        want = model(x).numpy()
        got = kn.tflite.run(path, x)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    found = kn.tflite.compare(path, path)
    assert found.outputs["output_0"].max_error == 0
    assert len(kn.tflite.bench([path], runs=2)) == 1
