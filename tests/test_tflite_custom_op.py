"""The custom op for TFLite in the interpreters it is for: LiteRT's and TensorFlow's.

tests/tflite/op_test.cc has its C++ in a host of its own, and under the sanitizers.
"""

import os
import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from flatbuffers import flexbuffers

import keras_norms as kn
from keras_norms import library
from keras_norms.geometry import geometry
from keras_norms.tflite import custom_op

litert = pytest.importorskip("ai_edge_litert.interpreter")
ROOT = Path(__file__).resolve().parent.parent
CODE = "KerasNorms>Normalize"


@pytest.fixture(scope="module", autouse=True)
def built():
    if reason := library.tflite_refusal(library.tflite_destination()):
        if os.environ.get("KERAS_NORMS_REQUIRE_TFLITE_OP", "0") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)


# Files with nodes of the custom op ------------------------------------------------------------


def options_of(view, *, epsilon=1e-3, subtract_mean=True, gamma=True, beta=True, activation="none"):
    """A node's options, in the order in which the op's definition has them."""
    return {
        "samples": view.samples,
        "before": view.before,
        "channels": view.channels,
        "after": view.after,
        "groups": view.groups,
        "epsilon": epsilon,
        "subtract_mean": subtract_mean,
        "has_gamma": gamma is not None and gamma is not False,
        "has_beta": beta is not None and beta is not False,
        "activation": activation,
    }


def signature(options):
    """What TensorFlow's converter makes a node of the custom op of."""
    kinds = {bool: "b", int: "i", float: "f", str: "s"}
    texts = {bool: lambda v: str(v).lower(), int: str, float: repr, str: lambda v: f'"{v}"'}
    attributes = "".join(
        f' attr {{ key: "{key}" value {{ {kinds[type(v)]}: {texts[type(v)](v)} }} }}'
        for key, v in options.items()
    )
    return f'name: "{CODE}" attr {{ key: "tfl_fusable_op" value {{ b: true }} }}{attributes}'


def file_of(shape, options, parameters, *, around=False):
    """A `.tflite` file with one node.

    Args:
        shape: of x; None where it is free.
        options: of the node.
        parameters: gamma and beta, those that are there.
        around: other operations before and after it, which XNNPACK takes.
    """

    @tf.function(experimental_implements=signature(options))
    def norm(x, *parameters):
        return x + sum(tf.reduce_sum(p) for p in parameters)  # never run: the node replaces it

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
        def call(self, x):
            y = norm(2.0 * x if around else x, *map(tf.constant, parameters))
            return y - 3.0 if around else y

    module = Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.call.get_concrete_function()], module
    )
    return converter.convert()


def tf_interpreter(**arguments):
    with warnings.catch_warnings():  # of its removal
        warnings.simplefilter("ignore", UserWarning)
        return tf.lite.Interpreter(**arguments)


def registered_interpreter(**arguments):
    from tensorflow.lite.python.interpreter import InterpreterWithCustomOps

    arguments.pop("experimental_delegates")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return InterpreterWithCustomOps(custom_op_registerers=[custom_op.registerer()], **arguments)


INTERPRETERS = {
    "LiteRT": lambda **a: litert.Interpreter(**a),
    "TensorFlow": tf_interpreter,
    "registered": registered_interpreter,
}


@pytest.fixture(params=INTERPRETERS)
def interpreter(request):
    return INTERPRETERS[request.param]


def open_file(content, interpreter=INTERPRETERS["LiteRT"], **arguments):
    return interpreter(
        model_content=content, experimental_delegates=[custom_op.delegate()], **arguments
    )


def run(opened, x):
    (given,), (made,) = opened.get_input_details(), opened.get_output_details()
    if tuple(given["shape"]) != x.shape:
        opened.resize_tensor_input(given["index"], x.shape)
    opened.allocate_tensors()
    opened.set_tensor(given["index"], x)
    opened.invoke()
    return opened.get_tensor(made["index"])


# Results --------------------------------------------------------------------------------------

CASES = {  # shape, axis, what is kept apart, groups, options
    "batch": ((4, 3, 5, 17), -1, "nothing", -1, {}),
    "batch, channels first": ((4, 17, 3, 5), 1, "nothing", -1, {}),
    "batch of vectors": ((13, 7), -1, "nothing", -1, {}),
    "instance": ((3, 7, 5, 11), -1, "samples", -1, {}),
    "instance, channels first": ((3, 11, 7, 5), 1, "samples", -1, {}),
    "group": ((2, 5, 7, 22), -1, "samples", 2, {}),
    "group, channels first": ((2, 22, 7, 5), 1, "samples", 11, {}),
    "group of sequences": ((3, 13, 10), -1, "samples", 5, {}),
    "group of volumes": ((2, 3, 5, 2, 6), -1, "samples", 3, {}),
    "group of volumes, channels first": ((2, 6, 3, 5, 2), 1, "samples", 2, {}),
    "group of vectors": ((5, 21), -1, "samples", 3, {}),
    "layer": ((3, 7, 61), -1, "positions", 1, {}),
    "layer of images": ((2, 3, 5, 13), -1, "positions", 1, {}),
    "layer over three axes": ((3, 5, 4, 7), (1, 2, 3), "positions", 1, {}),
    "layer of volumes": ((2, 3, 2, 5, 7), -1, "positions", 1, {}),
    "RMS": ((5, 67), -1, "positions", 1, {"subtract_mean": False, "beta": False}),
    "filter response": ((3, 5, 7, 6), -1, "samples", -1, {"subtract_mean": False, "epsilon": 1e-6}),
    "no gamma": ((2, 37, 8), -1, "samples", 4, {"gamma": False}),
    "no beta": ((2, 37, 8), -1, "samples", 4, {"beta": False}),
    "neither": ((2, 37, 8), -1, "samples", 4, {"gamma": False, "beta": False}),
    "relu": ((3, 5, 31), -1, "positions", 1, {"activation": "relu"}),
    "silu": ((3, 5, 31), -1, "positions", 1, {"activation": "silu"}),
    "gelu": ((2, 9, 12), -1, "samples", 3, {"activation": "gelu"}),
}


def activate(name, z):
    erf = np.vectorize(__import__("math").erf)
    return {
        "none": lambda: z,
        "relu": lambda: np.maximum(z, 0),
        "silu": lambda: z / (1 + np.exp(-z)),
        "gelu": lambda: z * (1 + erf(z / np.sqrt(2))) / 2,
    }[name]()


class Case:
    """A norm's data, its file and its result in float64."""

    def __init__(self, shape, axis, apart, groups, changes, mean=0.0, around=False):
        self.rng = np.random.default_rng(20180322)
        self.view = geometry(shape, axis, apart=apart, groups=groups)
        self.shape, self.mean, self.around = shape, mean, around
        self.options = options_of(self.view, **changes)
        channels = [shape[a] for a in self.view.channel_axes]
        self.gamma, self.beta = (
            self.rng.normal(1, 1, channels).astype("f") if self.options[f"has_{name}"] else None
            for name in ("gamma", "beta")
        )

    def data(self, batch=None):
        shape = self.shape if batch is None else (batch, *self.shape[1:])
        return self.rng.normal(self.mean, 1, shape).astype("float32")

    def file(self, shape=None):
        parameters = [p for p in (self.gamma, self.beta) if p is not None]
        return file_of(shape or self.shape, self.options, parameters, around=self.around)

    def want(self, x):
        """Of the view, whose axes are split by the reference's means."""
        x = x.astype("float64") * (2 if self.around else 1)
        n, s, g, d, t = self.view.view(x.shape)
        parameters = [None if p is None else p.reshape(g, d) for p in (self.gamma, self.beta)]
        z = reference.forward(
            x.reshape(n, s, g, d, t),
            *parameters,
            (1, 3, 4),
            (2, 3),
            self.options["epsilon"],
            self.options["subtract_mean"],
        ).y
        y = activate(self.options["activation"], z.reshape(x.shape))
        return y - 3 if self.around else y

    def check(self, got, x):
        want = self.want(x)
        assert got.dtype == np.float32
        # The bound of the fused forward pass; roundings of the result itself, and of what is
        # around it, are at most one of float32 each.
        bound = 4e-6 * (1 if self.gamma is None else max(1, abs(self.gamma).max()))
        assert (abs(got - want) <= bound + (3e-7 if self.around else 1.2e-7) * abs(want)).all(), (
            abs(got - want).max() / bound
        )


@pytest.mark.parametrize("name", CASES)
def test_result(name, interpreter):
    case = Case(*CASES[name])
    x = case.data()
    case.check(run(open_file(case.file(), interpreter), x), x)


@pytest.mark.parametrize("name", ["group", "layer", "instance, channels first"])
def test_result_of_a_large_mean(name):
    case = Case(*CASES[name], mean=1e4)
    x = case.data()
    case.check(run(open_file(case.file()), x), x)


def test_other_operations_around_it(interpreter):
    case = Case(*CASES["group"], around=True)
    x = case.data()
    case.check(run(open_file(case.file(), interpreter), x), x)


def test_two_that_follow_each_other():
    """They are claimed one by one: no tensor between them is the delegate's."""
    case = Case(*CASES["layer"])
    options, parameters = signature(case.options), (case.gamma, case.beta)

    @tf.function(experimental_implements=options)
    def norm(x, gamma, beta):
        return x + tf.reduce_sum(gamma) + tf.reduce_sum(beta)

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(case.shape, tf.float32)])
        def call(self, x):
            return norm(norm(x, *map(tf.constant, parameters)), *map(tf.constant, parameters))

    module = Module()
    content = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.call.get_concrete_function()], module
    ).convert()
    x = case.data()
    once = run(open_file(case.file()), x)
    np.testing.assert_array_equal(run(open_file(content), x), run(open_file(case.file()), once))


@pytest.mark.parametrize(
    ("shape", "axis", "apart", "groups"),
    [
        ((67, 771), -1, "positions", 1),
        ((1, 41, 99, 24), -1, "samples", 8),
        ((1, 24, 41, 99), 1, "samples", 24),
        ((2, 64, 64, 32), -1, "nothing", -1),
    ],
)
def test_threads_do_not_show(shape, axis, apart, groups):
    case = Case(shape, axis, apart, groups, {})
    x, content = case.data(), case.file()
    one = run(open_file(content, num_threads=1), x)
    case.check(one, x)
    for threads in (None, 2, 4):
        for _ in range(3):
            got = run(open_file(content, num_threads=threads), x)
            np.testing.assert_array_equal(got, one)


@pytest.mark.parametrize("name", ["batch", "instance", "group, channels first", "layer"])
def test_resize(name, interpreter):
    """Sizes are those of the tensors, not of the file."""
    case = Case(*CASES[name])
    opened = open_file(case.file((None, *case.shape[1:])), interpreter)
    for batch in (1, 7, 3, 7):
        x = case.data(batch)
        got = run(opened, x)
        assert got.shape == x.shape
        case.check(got, x)


def test_sizes_of_space_may_change():
    case = Case(*CASES["instance"])
    opened = open_file(case.file((None, None, None, 11)))
    for shape in ((1, 2, 3, 11), (2, 31, 17, 11)):
        x = case.rng.normal(size=shape).astype("f")
        case.check(run(opened, x), x)


def test_sizes_known_only_while_running(interpreter):
    """x comes from an operation whose output's shape is another one's result."""
    case = Case((6, 5, 8), -1, "samples", 2, {})

    @tf.function(experimental_implements=signature(case.options))
    def norm(x, gamma, beta):
        return x + tf.reduce_sum(gamma) + tf.reduce_sum(beta)

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((6, 5, 8)), tf.TensorSpec((), tf.int32)])
        def call(self, x, samples):
            some = tf.reshape(x[:samples], tf.stack([samples, 5, 8]))
            return norm(some, tf.constant(case.gamma), tf.constant(case.beta)) * 1.0

    module = Module()
    content = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.call.get_concrete_function()], module
    ).convert()
    opened, x = open_file(content, interpreter), case.data()
    opened.allocate_tensors()
    for samples in (2, 6, 1):
        for given in opened.get_input_details():
            whole = len(given["shape"]) == 3
            opened.set_tensor(given["index"], x if whole else np.int32(samples))
        opened.invoke()
        got = opened.get_tensor(opened.get_output_details()[0]["index"])
        assert got.shape == (samples, 5, 8)
        case.check(got, x[:samples])


def test_empty_batch(interpreter):
    case = Case(*CASES["group"])
    opened = open_file(case.file((None, *case.shape[1:])), interpreter)
    x = np.zeros((0, *case.shape[1:]), "f")
    assert run(opened, x).shape == x.shape
    x = case.data(2)
    case.check(run(opened, x), x)


def test_int8_calibration():
    """Full int8 quantization runs the op to calibrate and leaves its node in float32."""
    case = Case((1, 7, 6), -1, "positions", 1, {}, around=True)

    @tf.function(experimental_implements=signature(case.options))
    def norm(x, gamma, beta):
        return x + tf.reduce_sum(gamma) + tf.reduce_sum(beta)

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(case.shape, tf.float32)])
        def call(self, x):
            return norm(2.0 * x, tf.constant(case.gamma), tf.constant(case.beta)) - 3.0

    module = Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.call.get_concrete_function()], module
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([case.data()] for _ in range(50))
    converter.target_spec._experimental_custom_op_registerers = [custom_op.registerer()]
    opened = open_file(converter.convert())
    x = np.clip(case.data(), -2, 2)
    got, want = run(opened, x), case.want(x)
    noise = np.square(got - want).mean() / np.square(want).mean()
    assert noise < 1e-3, f"{-10 * np.log10(noise):.0f} dB"  # 8 bits of x: about 40 dB


# Files that are wrong -------------------------------------------------------------------------


def with_options(content, change):
    """The file with the node's options replaced."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    (code,) = (i for i, c in enumerate(model.operatorCodes) if c.customCode == CODE.encode())
    for operator in model.subgraphs[0].operators:
        if operator.opcodeIndex == code:
            operator.customOptions = list(change(bytes(operator.customOptions)))
            operator.customOptionsFormat = schema.CustomOptionsFormat.FLEXBUFFERS
    return flatbuffer_utils.convert_object_to_bytearray(model)


def changed(**changes):
    def change(content):
        options = {**flexbuffers.Loads(content), **changes}
        return flexbuffers.Dumps({k: v for k, v in options.items() if v is not None})

    return change


def test_options_of_another_writer():
    """FlatBuffers' own, which chooses other widths than TensorFlow's converter."""
    case = Case(*CASES["group"])
    x = case.data()
    want = run(open_file(case.file()), x)
    for change in (changed(), changed(subtract_mean=1, has_gamma=1), changed(far=2**60)):
        np.testing.assert_array_equal(run(open_file(with_options(case.file(), change)), x), want)


WRONG = {
    "groups that do not divide": (
        changed(groups=3),
        "`groups` must divide the number of channels. Received: groups=3, channels=22, "
        "x.shape=(2, 5, 7, 22).",
    ),
    "huge numbers": (
        changed(before=2**62, after=2**62),
        "`samples`, `before`, `channels` and `after` must add up to the rank of `x`. Received: "
        f"samples=1, before={2**62}, channels=1, after={2**62}, x.shape=(2, 5, 7, 22).",
    ),
    "negative numbers": (changed(samples=-1), "`samples` must be at least 0. Received: -1."),
    "wrong types": (changed(groups="2"), "the options must have an integer `groups`."),
    "an option less": (changed(epsilon=None), "the options must have a float `epsilon`."),
    "epsilon below 0": (
        changed(epsilon=-1.0),
        "`epsilon` must be finite and at least 0. Received: -1.000000.",
    ),
    "an unknown activation": (
        changed(activation="mish"),
        "`activation` must be one of none, relu, silu, gelu. Received: mish.",
    ),
    "an input too many": (
        changed(has_beta=False),
        "a node of these options must have 2 inputs and 1 output. Received: 3 and 1.",
    ),
    "the channels elsewhere": (
        changed(before=1, after=1),
        "`gamma` must have shape (7) for this `x` and these options. Received: gamma.shape=(22).",
    ),
    "nothing": (lambda content: b"", "the options must be a flexbuffer map. Received: 0 bytes."),
    "half of it": (
        lambda content: content[: len(content) // 2],
        "the options must be a flexbuffer map. Received: ",
    ),
    "a list": (
        lambda content: flexbuffers.Dumps([1, 2, 3]),
        "the options must be a flexbuffer map. Received: ",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_an_error_with_its_reason(name, interpreter):
    change, message = WRONG[name]
    if name == "the channels elsewhere":
        change = changed(before=1, after=1, groups=1)
    case = Case(*CASES["group"])
    content = with_options(case.file(), change)
    with pytest.raises(RuntimeError, match=re.escape(f"{CODE}: {message}")):
        run(open_file(content, interpreter), case.data())


def test_hostile_options_end_no_process():
    """A process of its own opens files whose options are cut, changed or random."""
    done = subprocess.run(
        [sys.executable, "-c", "import test_tflite_custom_op as t; t.offer_hostile_options()"],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    refused, taken = map(int, re.search(r"REFUSED (\d+) TAKEN (\d+)", done.stdout).groups())
    assert refused > 300
    assert taken > 20  # a changed byte may leave the options right


def offer_hostile_options():
    """Runs in the process of `test_hostile_options_end_no_process`."""
    case = Case(*CASES["group"])
    content, x = case.file(), case.data()
    whole, rng = [], np.random.default_rng(0)
    with_options(content, lambda options: whole.append(options) or options)
    (whole,) = whole
    hostile = [whole[:size] for size in range(0, len(whole), 3)]
    for i in range(len(whole)):
        for value in (0, 0xFF, rng.integers(256)):
            hostile.append(whole[:i] + bytes([value]) + whole[i + 1 :])
    hostile += [rng.bytes(rng.integers(64)) for _ in range(50)]
    hostile += [rng.bytes(40) + bytes([9 << 2 | i % 4, 1 << i % 4]) for i in range(50)]
    refused = taken = 0
    for options in hostile:
        try:
            run(open_file(with_options(content, lambda _, given=options: given)), x)
            taken += 1
        except RuntimeError as error:
            assert CODE in str(error), error
            refused += 1
    print(f"REFUSED {refused} TAKEN {taken}")


# Resources ------------------------------------------------------------------------------------


def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_a_thousand_runs_do_not_grow():
    case = Case((4, 31, 29, 24), -1, "samples", 8, {})
    opened, x = open_file(case.file(), num_threads=2), case.data()
    run(opened, x)
    for _ in range(50):
        opened.invoke()
    before = resident()
    for _ in range(1000):
        opened.invoke()
    assert resident() - before < 1 << 20
    case.check(opened.get_tensor(opened.get_output_details()[0]["index"]), x)


def test_threads_end_with_the_last_interpreter():
    """So that the library may be unloaded."""
    code = """
import os, test_tflite_custom_op as t
case = t.Case((67, 771), -1, "positions", 1, {})
content, x = case.file(), case.data()
def threads():
    return len(os.listdir("/proc/self/task"))
# Of an interpreter without the custom op, XNNPACK's threads aside, none remain.
for _ in range(2):
    before = threads()
    opened = [t.open_file(content, num_threads=4) for _ in range(2)]
    for one in opened:
        t.run(one, x)
    during = threads()
    del one, opened
    print(before, during, threads())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[-2:]:
        before, during, after = map(int, line.split())
        assert during >= before + 3
        assert after == before, "threads remain"


# The library ----------------------------------------------------------------------------------


def test_without_the_library(tmp_path, monkeypatch):
    missing = tmp_path / "none.so"
    monkeypatch.setenv("KERAS_NORMS_TFLITE_LIBRARY", str(missing))
    for function in (custom_op.library, custom_op.delegate):
        with pytest.raises(RuntimeError) as caught:
            function()
        assert str(caught.value) == (
            f"The custom op for TFLite is missing ({missing}). Run `keras-norms build --tflite`."
        )


# Without a word of it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of the converter's with the custom op, samples and Keras' results."""
    keras.utils.set_random_seed(7)
    norm = kn.GroupNormalization(3, beta_initializer="random_normal")
    convolution = keras.layers.Conv2D(6, 3)
    model = keras.Sequential([keras.Input((9, 7, 2)), convolution, norm, keras.layers.ReLU()])
    path = tmp_path_factory.mktemp("written") / "m.tflite"
    kn.tflite.convert(model, path, custom_op=True)
    assert kn.tflite.inspect(path).custom == (CODE,)
    x = np.random.default_rng(0).normal(size=(4, 9, 7, 2)).astype("float32")
    return path, x, model(x).numpy()


@pytest.fixture
def loaded(monkeypatch):
    """Every delegate that is made."""
    made, make = [], custom_op.delegate
    monkeypatch.setattr(custom_op, "delegate", lambda: made.append(make()) or made[-1])
    return made


@pytest.mark.parametrize(
    "runtime", [None, kn.tflite.Runtime("tf.lite"), kn.tflite.Runtime(xnnpack=False)]
)
def test_run_finds_the_custom_op(runtime, written, loaded):
    path, x, want = written
    got = kn.tflite.run(path, x, runtime=runtime)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert len(loaded) == 1


def test_run_takes_the_delegate_that_is_given(written, loaded):
    path, x, want = written
    given = custom_op.delegate()
    got = kn.tflite.run(path, x, delegates=[given])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert loaded == [given]


def test_run_beside_another_delegate(written, loaded):
    """Which none of ours is: loaded by hand."""
    path, x, want = written
    got = kn.tflite.run(path, x, delegates=[litert.load_delegate(str(custom_op.library()))])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert len(loaded) == 1


def test_run_of_a_file_without_it_loads_nothing(tmp_path, loaded):
    """That a name in a file is ours does not make it need the op."""
    layer = keras.layers.ReLU()
    x = keras.Input((3,), name="KerasNorms_Normalize")
    path = tmp_path / "m.tflite"
    kn.tflite.convert(keras.Model(x, layer(x)), path)
    content = path.read_bytes()
    assert content.count(b"KerasNorms_Normalize")
    path.write_bytes(content.replace(b"KerasNorms_Normalize", CODE.encode()))
    assert not custom_op.needed(path.read_bytes())
    got = kn.tflite.run(path, np.array([[-1, 0, 2]], "float32"))
    assert (got.tolist(), loaded) == ([[0, 0, 2]], [])


def test_run_says_how_the_custom_op_is_built(written, tmp_path, monkeypatch):
    path, x, want = written
    by_hand = litert.load_delegate(str(custom_op.library()))
    missing = tmp_path / "none.so"
    monkeypatch.setenv("KERAS_NORMS_TFLITE_LIBRARY", str(missing))
    message = f"The custom op for TFLite is missing ({missing}). Run `keras-norms build --tflite`."
    for call in (
        lambda: kn.tflite.run(path, x),
        lambda: kn.tflite.compare(path, path),
        lambda: kn.tflite.bench([path]),
    ):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            call()
    got = kn.tflite.run(path, x, delegates=[by_hand])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_run_of_a_damaged_file_with_the_custom_op(written, tmp_path):
    """LiteRT refuses it, in words."""
    content = bytearray(written[0].read_bytes())
    content[:4] = b"\xff" * 4
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(ValueError, match=r"\S"):
        kn.tflite.run(tmp_path / "m.tflite", written[1])


def test_without_litert(monkeypatch):
    """TensorFlow's loader serves, and what it loads is the same."""
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    case = Case(*CASES["group"])
    x = case.data()
    delegate = custom_op.delegate()
    assert type(delegate).__module__.startswith("tensorflow.")
    for make in (tf_interpreter, litert.Interpreter):
        opened = make(model_content=case.file(), experimental_delegates=[delegate])
        case.check(run(opened, x), x)


def test_the_library_stands_alone():
    """It needs the C library and exports what its header declares, and its record."""
    listed = subprocess.run(
        ["nm", "-D", custom_op.library()], capture_output=True, text=True, check=True
    ).stdout
    exported = {line.split()[2] for line in listed.splitlines() if re.match(r"\S+ [A-TV-Z] ", line)}
    header = (ROOT / "custom_ops" / "tflite" / "keras_norms_tflite.h").read_text()
    declared = set(re.findall(r"^\S.*?\b(\w+)\(", header.split('extern "C"')[1], re.MULTILINE))
    assert exported == declared | {"keras_norms_tflite_record"}
    undefined = re.findall(r" U (\S+)", listed)
    assert [s for s in undefined if "@GLIBC_" not in s and not s.startswith("__tls")] == []


def test_the_delegate_has_no_options():
    with pytest.raises(ValueError, match="the delegate has no options"):
        litert.load_delegate(str(custom_op.library()), {"threads": 2})
