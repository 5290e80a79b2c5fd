"""The converter: every file it writes is run in LiteRT and compared, every failure leaves none."""

import dataclasses
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import rows
import support
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from support import run_python

import keras_norms as kn
from keras_norms.catalog import CATALOG
from keras_norms.tflite import ConversionError, verify
from keras_norms.tflite.norms import Norm
from keras_norms.tflite.runtimes import RUNTIMES

layers = keras.layers

# A norm needs nothing else: no operation on shapes, no copy, nothing dynamic, no square.
NORM_OPS = {"ADD", "MEAN", "MUL", "RESHAPE", "RSQRT", "SUB"}
SCALED_OPS = NORM_OPS | {"ABS", "DIV", "MAXIMUM", "REDUCE_MAX"}


def randomized(model, seed=3):
    """The model with norm weights that are neither 1 nor 0, as after training."""
    draw = np.random.default_rng(seed)
    for weight in model.weights:
        if "norm" in weight.path:
            weight.assign(draw.uniform(0.5, 1.5, weight.shape))
    return model


def network(shape=(13, 11, 3)):
    return randomized(
        keras.Sequential(
            [
                keras.Input(shape, name="image"),
                layers.Conv2D(6, 3, use_bias=False),
                kn.GroupNormalization(3),
                layers.ReLU(),
                layers.Conv2D(7, 3, use_bias=False),
                kn.BatchNormalization(),
                layers.ReLU(),
                layers.GlobalAveragePooling2D(),
                kn.LayerNormalization(),
                layers.Dense(5),
            ]
        )
    )


def agree(model, path, data, batch=1, atol=1e-5):
    """Runs the file by LiteRT's own interface and compares every output with the model's."""
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    several = isinstance(data, list)
    for k in range(0, len(data[0] if several else data), batch):
        x = [part[k : k + batch] for part in data] if several else data[k : k + batch]
        names = sorted(runner.get_input_details())
        got = runner(**dict(zip(names, x if several else [x], strict=True)))["output_0"]
        want = keras.ops.convert_to_numpy(model(x, training=False))
        np.testing.assert_allclose(got, want, rtol=0, atol=atol * np.abs(want).max())


def ops_of(path):
    """The operations by LiteRT's own list, counted."""
    interpreter = Interpreter(
        model_path=str(path),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    names = [op["op_name"] for op in interpreter._get_ops_details()]
    return {name: names.count(name) for name in names}


# ---- What it writes ---------------------------------------------------------------------------


@pytest.mark.supports("TFLite float")
@pytest.mark.parametrize("target", ["cpu", "any"])
@rows.each
def test_every_layer(row, target, tmp_path, rng):
    """With the compiled op loaded, which no file may hold; one path writes, so one kernel is run.

    Batches of one are what every other test here converts.
    """
    layer = rows.make(row)
    if row.form == "cell":
        layer.unroll = True  # else it is a WHILE
    model = randomized(rows.model_of(row, layer))
    data = [rng.normal(0.5, 2, (6, *row.shape[1:])).astype("float32") for _ in range(row.inputs)]
    path = tmp_path / "m.tflite"
    given = data if row.inputs > 1 else data[0]
    report = kn.tflite.convert(model, path, batch_size=3, data=given, target=target)
    agree(model, path, data if row.inputs > 1 else data[0], 3)
    assert report.ops == ops_of(path)
    if row.name in support.REFERENCE:
        assert set(report.ops) <= (SCALED_OPS if target == "any" else NORM_OPS)
    # Nothing on shapes, nothing dynamic.
    assert not set(report.ops) & {"SHAPE", "BROADCAST_ARGS", "FILL", "RANGE", "WHILE", "IF"}
    assert report.rank_above_4 == 0
    if row.form == "layer":
        (norm,) = report.norms
        assert norm.path == rows.own(row, layer).path
        assert norm.layer == row.name
        assert norm.form != "folded"  # there is nothing around it
    assert report.max_error <= 5e-6 * report.max_output  # float32 rounding of two paths


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (kn.BatchNormalization(axis=1), (6, 7, 5)),
        (kn.BatchNormalization(), (5,)),
        (kn.LayerNormalization(axis=(1, 2, 3)), (7, 5, 3)),
        (kn.LayerNormalization(axis=1), (7, 5)),
        (kn.LayerNormalization(), (7, 5, 11)),
        (kn.InstanceNormalization(axis=1), (6, 7, 5)),
        (kn.InstanceNormalization(), (37, 41, 2)),
        (kn.GroupNormalization(2, axis=1), (6, 7, 5)),
        (kn.GroupNormalization(2), (37, 41, 6)),
        (kn.GroupNormalization(2), (7, 6)),
        (kn.GroupNormalization(2), (6,)),
        (kn.RMSNormalization(), (7, 5, 11)),
    ],
    ids=lambda value: str(value) if isinstance(value, tuple) else f"{value.name}-{value.axis}",
)
def test_ranks_and_layouts(layer, shape, tmp_path, rng):
    model = randomized(keras.Sequential([keras.Input(shape), layer]))
    data = rng.normal(1, 2, (3, *shape)).astype("float32")
    report = kn.tflite.convert(model, tmp_path / "m.tflite", data=data)
    agree(model, tmp_path / "m.tflite", data)
    assert set(report.ops) <= SCALED_OPS | {"TRANSPOSE"}
    assert report.rank_above_4 == 0


def test_a_network(kernel, tmp_path, rng):
    model = network()
    data = rng.normal(size=(5, 13, 11, 3)).astype("float32")
    report = kn.tflite.convert(model, tmp_path / "m.tflite", data=data)
    agree(model, tmp_path / "m.tflite", data)
    assert report.ops == ops_of(tmp_path / "m.tflite")
    assert report.ops["CONV_2D"] == 2
    assert not set(report.ops) & {"SHAPE", "STRIDED_SLICE", "PACK", "GATHER"}
    assert [norm.form for norm in report.norms] == ["scaled", "folded", "centred"]


@pytest.mark.parametrize("before", [layers.Conv2D(6, 3), layers.DepthwiseConv2D(3)], ids=str)
def test_batch_normalization_goes_into_the_convolution(before, tmp_path):
    model = keras.Sequential([keras.Input((7, 5, 6)), before, kn.BatchNormalization()])
    report = kn.tflite.convert(randomized(model), tmp_path / "m.tflite")
    assert sum(report.ops.values()) == 1


def test_after_training_on_the_fused_op(fused, tmp_path, rng):
    model = network()
    model.compile("sgd", "mse")
    x = rng.normal(size=(8, 13, 11, 3)).astype("float32")
    model.fit(x, rng.normal(size=(8, 5)), epochs=1, verbose=0)
    kn.tflite.convert(model, tmp_path / "m.tflite", data=x)
    agree(model, tmp_path / "m.tflite", x)


def test_unknown_sizes(tmp_path, rng):
    model = network((None, None, 3))
    report = kn.tflite.convert(model, tmp_path / "m.tflite", input_shapes=(13, 11, 3))
    agree(model, tmp_path / "m.tflite", rng.normal(size=(3, 13, 11, 3)).astype("float32"))
    assert not set(report.ops) & {"SHAPE", "STRIDED_SLICE"}


def test_several_inputs_and_outputs(tmp_path, rng):
    image, vector = keras.Input((7, 5, 4), name="image"), keras.Input((6,), name="2nd vector")
    hidden = kn.LayerNormalization()(layers.Dense(4)(vector))
    outputs = {"picture": kn.GroupNormalization(2)(image) + hidden[:, None, None], "h": hidden}
    model = randomized(keras.Model({"image": image, "2nd vector": vector}, outputs))
    path = tmp_path / "m.tflite"
    data = {
        "image": rng.normal(size=(4, 7, 5, 4)).astype("float32"),
        "2nd vector": rng.normal(size=(4, 6)).astype("float32"),
    }
    flat = dict(zip(("2nd_vector", "image"), (data["2nd vector"], data["image"]), strict=True))
    kn.tflite.convert(model, path, batch_size=2)
    kn.tflite.convert(model, path, batch_size=2, data=[flat["2nd_vector"], flat["image"]])
    kn.tflite.convert(model, path, batch_size=2, data=flat)
    got, want = kn.tflite.run(path, flat), model(data)
    assert set(got) == {"picture", "h"}
    for name in got:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(6)
        self.norms = [kn.GroupNormalization(2), kn.LayerNormalization()]

    def call(self, inputs, training=None):
        x = self.dense(inputs["a"]) * inputs["b"]
        return self.norms[0](x), (self.norms[1](x), x)


def test_a_subclassed_model(tmp_path):
    model = Subclassed()
    model({"a": np.ones((2, 3), "float32"), "b": np.ones((2, 6), "float32")})
    report = kn.tflite.convert(randomized(model), tmp_path / "m.tflite")
    assert sorted(norm.path for norm in report.norms) == [norm.path for norm in model.norms]
    got = kn.tflite.run(
        tmp_path / "m.tflite", {n: np.ones((1, k)) for n, k in (("a", 3), ("b", 6))}
    )
    assert {name: value.shape for name, value in got.items()} == {
        f"output_{k}": (1, 6) for k in range(3)
    }
    kn.tflite.convert(model, tmp_path / "m.tflite", input_shapes={"a": (3,), "b": (6,)})


def test_a_subclassed_model_of_other_sizes(tmp_path, rng):
    class Blur(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = kn.InstanceNormalization()

        def call(self, x):
            return self.norm(x)

    model = Blur()
    model(np.ones((2, 4, 4, 3), "float32"))
    kn.tflite.convert(model, tmp_path / "m.tflite", input_shapes=(7, 5, 3))
    agree(model, tmp_path / "m.tflite", rng.normal(size=(2, 7, 5, 3)).astype("float32"))


def test_nested_and_shared_models(tmp_path):
    inner = keras.Sequential([keras.Input((6,)), kn.LayerNormalization(), layers.Dense(6)])
    x = keras.Input((6,))
    model = keras.Model(x, [inner(inner(x)), kn.RMSNormalization()(x)])
    report = kn.tflite.convert(randomized(model), tmp_path / "m.tflite")
    paths = [norm.path for norm in report.norms]
    own = inner.layers[0].path
    assert sorted(paths) == sorted([own, f"{own}#2", model.layers[-1].path])  # each call
    assert report.ops["FULLY_CONNECTED"] == 2


def test_recurrent_and_integer_inputs(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(11, 6, mask_zero=True),
            kn.LayerNormalization(),
            layers.LSTM(4),
        ]
    )
    data = np.arange(20, dtype="int32").reshape(4, 5) % 11
    report = kn.tflite.convert(randomized(model), tmp_path / "m.tflite", data=data)
    assert report.samples == 4
    assert "WHILE" in report.ops
    # An embedding has no row -1; the samples that are made up are in the range of any table.
    kn.tflite.convert(model, tmp_path / "m.tflite")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_of_mixed_precision_is_written_in_float32(policy, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy(before)
    report = kn.tflite.convert(model, tmp_path / "m.tflite")
    assert {layer.dtype_policy.name for layer in model.layers} == {policy}
    details = Interpreter(model_path=report.path).get_tensor_details()
    assert {d["dtype"] for d in details} <= {np.float32, np.int32}


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = network()
    kn.tflite.convert(model, tmp_path / "a.tflite", verify=False)
    kn.tflite.convert(model, tmp_path / "b.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


def test_branches_have_the_same_names_every_time(tmp_path):
    norm = kn.LayerNormalization()
    norm.build((None, 3))

    def function(x):
        return keras.ops.cond(keras.ops.sum(x) > 0, lambda: norm(x), lambda: x)

    model, paths = applying(function), [tmp_path / "1.tflite", tmp_path / "2.tflite"]
    for path in paths:
        kn.tflite.convert(model, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_two_threads_convert_the_same_model(tmp_path):
    model = randomized(keras.Sequential([keras.Input((3,)), kn.LayerNormalization()]))

    def write(k):
        kn.tflite.convert(model, tmp_path / f"{k}.tflite", verify=False)
        return (tmp_path / f"{k}.tflite").read_bytes()

    with ThreadPoolExecutor(2) as threads:
        assert len(set(threads.map(write, range(4)))) == 1
    assert "call" not in vars(model.layers[0])


class Traced(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = kn.LayerNormalization()
        self.dense = layers.Dense(2)
        self.norm.build((None, 3))
        self.dense.build((None, 3))

    @tf.function
    def call(self, x):
        return self.dense(self.norm(x))


@pytest.mark.parametrize("own", ["of the class", "of the object"])
def test_tf_functions_are_traced_for_the_file_alone(own, tmp_path, rng):
    """Else the model would go on by a trace with marks in it, and a file by one of before."""
    model, x = randomized(Traced()), rng.normal(size=(4, 3)).astype("float32")
    if own == "of the object":
        model.call = tf.function(model.call.python_function)
    model(x)  # of another batch
    want = model.dense(model.norm(x[:1]))
    for _ in range(2):
        report = kn.tflite.convert(model, tmp_path / "m.tflite", input_shapes=(3,))
        assert report.norms[0].form == "centred"
    np.testing.assert_allclose(model(x[:1]), want, atol=1e-6)


def test_a_tf_function_of_no_layer_stays_right(tmp_path, rng):
    made = [kn.LayerNormalization(), kn.BatchNormalization()]
    for norm in made:
        norm.build((None, 3))

    @tf.function
    def function(x):
        return made[1](made[0](x))

    class Calling(keras.Model):
        def __init__(self):
            super().__init__()
            self.norms = made

        def call(self, x):
            return function(x)

    model, x = randomized(Calling()), rng.normal(size=(4, 3)).astype("float32")
    model(x)
    want = made[1](made[0](x[:1]))
    kn.tflite.convert(model, tmp_path / "m.tflite", input_shapes=(3,))  # which compares
    np.testing.assert_allclose(model(x[:1]), want, atol=1e-6)
    with pytest.raises(ConversionError, match="that is no layer's own"):
        kn.tflite.convert(model, tmp_path / "m.tflite", input_shapes=(3,))


def test_norms_without_weights_have_a_name(tmp_path):
    stack = [kn.PixelNormalization(), layers.UnitNormalization(), kn.LayerNormalization()]
    model = keras.Sequential([keras.Input((3,)), *stack])
    report = kn.tflite.convert(model, tmp_path / "m.tflite")
    assert [norm.path.split("/")[-1] for norm in report.norms] == [layer.name for layer in stack]


def largest_of_all(x):
    return x * keras.ops.max(keras.ops.reshape(x, (-1,)))


def taken_from_a_vector(x):
    vector = keras.ops.reshape(x, (-1,)) * 2.0
    return x * keras.ops.take(vector, keras.ops.array([1, 2, 0]), axis=0)


@pytest.mark.parametrize("function", [largest_of_all, taken_from_a_vector])
def test_vectors_within_a_model(function, tmp_path):
    kn.tflite.convert(applying(function), tmp_path / "m.tflite")  # which compares


def test_nothing_of_the_model_changes(tmp_path):
    model = network()
    model.compile("adam", "mse")
    model.fit(np.ones((4, 13, 11, 3)), np.ones((4, 5)), epochs=1, verbose=0)
    model.layers[1].trainable = False

    def state():
        return (
            [weight.numpy().tobytes() for weight in model.weights],
            [weight.numpy().tobytes() for weight in model.optimizer.variables],
            [layer.trainable for layer in model.layers],
            [len(layer._inbound_nodes) for layer in (model, *model.layers)],
            [layer.dtype_policy.name for layer in model.layers],
            kn.get_kernel(),
            keras.config.is_interactive_logging_enabled(),
            model.get_config(),
        )

    before = state()
    kn.tflite.convert(model, tmp_path / "m.tflite")
    assert state() == before


def test_it_is_silent(tmp_path, capfd):
    kn.tflite.convert(network(), tmp_path / "m.tflite")
    assert capfd.readouterr().out == ""


# ---- What it says -----------------------------------------------------------------------------


def test_the_report(tmp_path):
    path = tmp_path / "m.tflite"
    report = kn.tflite.convert(network(), path)
    assert report.path == str(path)
    assert report.size == path.stat().st_size
    assert report.verified
    assert report.samples == verify.SAMPLES
    assert report.tolerance == 1e-5
    assert 0 <= report.max_error <= 1e-5 * report.max_output
    assert [a.runtime for a in report.agreements] == [str(r) for r in RUNTIMES]
    assert report.sqnr > 120
    assert json.loads(report.to_json()) == json.loads(json.dumps(dataclasses.asdict(report)))
    assert "| sequential" in report.to_markdown()


def test_the_report_as_a_table():
    norms = (
        Norm("a/norm", "scaled", "x", "y", ("m", "y"), layer="GroupNormalization"),
        Norm(
            "b/norm",
            "folded",
            layer="keras.BatchNormalization",
            why="in the weights of CONV_2D c",
        ),
    )
    report = kn.tflite.Report(
        path="m.tflite",
        size=12345,
        target="any",
        quantize=None,
        ops={"MUL": 6, "CONV_2D": 2},
        rank_above_4=0,
        norms=norms,
        agreements=(verify.Agreement("LiteRT, XNNPACK, 1 thread", 2e-6, 4.0, 131.25),),
        tolerance=1e-5,
        samples=8,
        notes=("Sizes are left open.",),
    )
    assert str(report).splitlines() == [
        "file                         m.tflite",
        "size                         12,345 bytes",
        "target                       any",
        "numbers                      float32",
        "operations                   8",
        "  MUL                        6",
        "  CONV_2D                    2",
        "tensors above rank 4         0",
        "norms                        2",
        "  scaled                     1",
        "  folded                     1",
        "  b/norm                     folded: in the weights of CONV_2D c",
        "compared with Keras          8 samples",
        "  LiteRT, XNNPACK, 1 thread  5.0e-07, 131.2 dB",
        "  allowed                    1e-05 of the largest output",
        "note                         Sizes are left open.",
    ]
    unverified = dataclasses.replace(report, agreements=(), notes=())
    assert str(unverified).splitlines()[-1] == "compared with Keras   no"
    assert (
        report.to_markdown()
        == """\
# m.tflite

|  |  |
| --- | --- |
| size | 12,345 bytes |
| target | any |
| numbers | float32 |
| operations | 8 |
| MUL | 6 |
| CONV_2D | 2 |
| tensors above rank 4 | 0 |

## Norms

| norm | layer | form | why |
| --- | --- | --- | --- |
| a/norm | GroupNormalization | scaled |  |
| b/norm | keras.BatchNormalization | folded | in the weights of CONV_2D c |

## Compared with Keras on 8 samples

| runtime | largest difference / largest output | SQNR |
| --- | --- | --- |
| LiteRT, XNNPACK, 1 thread | 5.0e-07 | 131.2 dB |

## Notes

- Sizes are left open.
"""
    )


def test_tensors_above_rank_4_are_counted(tmp_path):
    model = keras.Sequential([keras.Input((3, 4, 5, 2)), layers.ReLU(), kn.GroupNormalization(2)])
    report = kn.tflite.convert(model, tmp_path / "m.tflite")
    assert report.rank_above_4 == 3  # input, activation, result: nothing within the norm
    assert "3 tensors above rank 4 (no norm adds any)" in report.notes[0]


def test_gammas_of_every_element_are_pointed_out(tmp_path):
    model = keras.Sequential([keras.Input((5, 4, 3)), kn.LayerNormalization(axis=(1, 2, 3))])
    (norm,) = kn.tflite.convert(randomized(model), tmp_path / "m.tflite").norms
    assert "take 480 bytes; GroupNormalization(1) has them for each channel" in norm.why


@pytest.mark.parametrize("layer", [layers.LSTM(5), layers.Bidirectional(layers.GRU(4))], ids=str)
def test_recurrent_layers_are_unrolled_for_integers(layer, tmp_path, rng):
    model = keras.Sequential([keras.Input((6, 3)), layer, kn.LayerNormalization()])
    data = rng.normal(size=(32, 6, 3)).astype("float32")
    path = tmp_path / "m.tflite"
    report = kn.tflite.convert(model, path, quantize="int8", representative_data=data)
    assert "WHILE" not in report.ops
    assert report.sqnr > 20
    assert "WHILE" in kn.tflite.convert(model, path).ops


def test_without_verifying(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    report = kn.tflite.convert(network(), tmp_path / "m.tflite", verify=False)
    assert not report.verified
    assert report.max_error is None
    assert report.ops["CONV_2D"] == 2


# ---- What it refuses: nothing is left behind, and an older file stays ---------------------------


def refused(error, message, *arguments, path, **options):
    path.write_bytes(b"older")
    with pytest.raises(error) as caught:
        kn.tflite.convert(*arguments, path, **options)
    if message is not None:
        assert str(caught.value) == message
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == b"older"
    return str(caught.value)


class Apply(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def applying(function, shape=(3,)):
    return keras.Sequential([keras.Input(shape, name="x"), Apply(function)])


def test_operations_that_are_not_built_in_are_refused(tmp_path):
    message = (
        "The model needs operations that LiteRT has not built in: Betainc, Igamma. No file was "
        "written."
    )
    model = applying(lambda x: tf.math.betainc(x, x, x) + tf.math.igamma(x, x))
    refused(ConversionError, message, model, path=tmp_path / "m.tflite")


def test_flex_operations_are_refused(tmp_path):
    message = (
        "The model needs operations that LiteRT has not built in: MatrixInverse. No file was "
        "written."
    )
    model = applying(tf.linalg.inv, (2, 2))
    refused(ConversionError, message, model, path=tmp_path / "m.tflite")


def test_variables_are_refused(tmp_path):
    class Counter(layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=shape[1:], trainable=False, name="count")

        def call(self, x):
            self.count.assign_add(x[0])
            return x + self.count

    message = (
        "The file must hold no variable and no table, but the model's would need ASSIGN_VARIABLE, "
        "CALL_ONCE, READ_VARIABLE, VAR_HANDLE: a layer writes a variable or looks into a table "
        "when it is called, or was built inside a tf.function. No file was written."
    )
    model = keras.Sequential([keras.Input((3,)), Counter()])
    refused(ConversionError, message, model, path=tmp_path / "m.tflite")


def test_a_fused_operation_traced_before_is_refused(fused, tmp_path):
    norm = kn.GroupNormalization(2)
    norm.build((1, 5, 4))
    traced = tf.function(norm).get_concrete_function(tf.TensorSpec((1, 5, 4)))
    model = applying(lambda x: traced(x), (5, 4))
    kn.set_kernel("auto")
    message = (
        "The model needs operations that LiteRT has not built in: KerasNorms>Normalize. No file "
        "was written. The fused one came in with a concrete function, which was traced before: "
        "call the layer or the tf.function instead, or trace within `keras_norms.portable()`."
    )
    refused(ConversionError, message, model, path=tmp_path / "m.tflite")


def test_nan_is_refused(tmp_path):
    message = (
        "The output 'output_0' has 24 of 24 values in Keras that are NaN or infinite, so nothing "
        "shows that the file is right. No file was written. (Other samples can be given as `data`.)"
    )
    model = applying(lambda x: x / (x - x))
    refused(ConversionError, message, model, path=tmp_path / "m.tflite")


def test_a_file_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    run = verify.run_content

    def wrong(*arguments):
        return {name: y + np.float32(0.01) for name, y in run(*arguments).items()}

    monkeypatch.setattr(verify, "run_content", wrong)
    message = (
        "LiteRT and Keras disagree: the output 'output_0' is off by 0.01 where its largest value "
        "is 2. Allowed: tolerance=0.001 times that. No file was written. (LiteRT, XNNPACK, 1 "
        "thread. Rounding in a deep network may need a larger `tolerance`.)"
    )
    model, data = applying(lambda x: 2 * x), np.ones((4, 3))
    options = {"path": tmp_path / "m.tflite", "data": data}
    refused(ConversionError, message, model, tolerance=1e-3, **options)
    kn.tflite.convert(model, tmp_path / "m.tflite", data=data, tolerance=1e-2)


def test_layers_derived_from_ours_are_refused(tmp_path):
    class Doubled(kn.GroupNormalization):
        def call(self, x):
            return 2 * super().call(x)

    class Holder(layers.Layer):
        def __init__(self):
            super().__init__(name="holder")
            self.inner = [Doubled(3, name="doubled")]

        def call(self, x):
            return self.inner[0](x)

    model = keras.Sequential([keras.Input((6,)), Holder()], name="model")
    message = (
        "The converter must know every keras_norms layer. Received: 'model/holder/doubled' of "
        f"class Doubled; known: {', '.join(row.name for row in CATALOG)}. A class of your own "
        "should hold such a layer, not inherit from it."
    )
    refused(ConversionError, message, model, path=tmp_path / "m.tflite")


def test_weights_that_are_not_float32_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, dtype="float16", name="dense")])
    message = (
        f"The weights must be float32. Received: '{model.weights[0].path}' in float16. (Make the "
        "model under the policy 'float32' and `set_weights` it.)"
    )
    refused(ConversionError, message, model, path=tmp_path / "m.tflite")


def test_an_error_of_a_layer_is_shown(tmp_path):
    class Failing(layers.Layer):
        def call(self, x):
            raise KeyError("no such key, says the layer")

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

    model = keras.Sequential([keras.Input((3,)), Failing()])
    message = refused(KeyError, None, model, path=tmp_path / "m.tflite")
    assert "no such key, says the layer" in message


def test_a_failure_to_write_leaves_the_older_file(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    refused(OSError, "disk full", applying(lambda x: x), path=tmp_path / "m.tflite")


def test_an_interrupted_conversion_leaves_the_older_file(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "run_content", interrupt)
    refused(KeyboardInterrupt, "", applying(lambda x: x), path=tmp_path / "m.tflite")


def test_litert_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    message = (
        'Running a .tflite file needs LiteRT, which is not installed: pip install "keras-norms'
        '[tflite]". (`verify=False` writes a file without running it.)'
    )
    refused(ImportError, message, applying(lambda x: x), path=tmp_path / "m.tflite")


SHAPE_HELP = (
    "Pass `input_shapes` (without the batch), as in `input_shapes=(224, 224, 3)`; a size given "
    "there as None stays open, which costs operations and speed."
)
BOTH = (
    "for each input (image): in a list in this order, in a dict by name, or alone if there is one "
    "input. Received:"
)
ONES = np.ones


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be an integer above 0, or None. Received: 0"),
        ({"batch_size": 1.0}, "`batch_size` must be an integer above 0, or None. Received: 1.0"),
        ({"batch_size": True}, "`batch_size` must be an integer above 0, or None. Received: True"),
        ({"tolerance": 0}, "`tolerance` must be a number above 0. Received: 0"),
        ({"tolerance": np.nan}, "`tolerance` must be a number above 0. Received: nan"),
        ({"tolerance": "1"}, "`tolerance` must be a number above 0. Received: '1'"),
        (
            {"verify": False, "data": 1},
            "`data` is what the file is compared on. Received: data and verify=False",
        ),
        (
            {},
            "Every size must be known and above 0. Received: (None, None, 3) for the input "
            f"'image'. {SHAPE_HELP}",
        ),
        (
            {"input_shapes": (13, 0, 3)},
            "`input_shapes` must agree with the model, whose input 'image' has shape "
            "(None, None, 3) without the batch. Received: (13, 0, 3)",
        ),
        (
            {"target": "tpu"},
            "`target` must be one of ('any', 'cpu', 'gpu', 'npu'). Received: 'tpu'",
        ),
        (
            {"quantize": "int4"},
            "`quantize` must be one of (None, 'float16', 'dynamic', 'int8', 'int16x8'). "
            "Received: 'int4'",
        ),
        (
            {"norms": "half"},
            "`norms` must be one of ('auto', 'float', 'quantized'). Received: 'half'",
        ),
        (
            {"quantize": "int8", "input_shapes": (13, 11, 3)},
            "`representative_data` is what quantize='int8' measures the ranges of numbers on. "
            "Received: none",
        ),
        (
            {"representative_data": ONES((2, 13, 11, 3)), "input_shapes": (13, 11, 3)},
            "`representative_data` is what quantize=None has no use for.",
        ),
        (
            {"input_shapes": (13, 11, 4)},
            "`input_shapes` must agree with the model, whose input 'image' has shape "
            "(None, None, 3) without the batch. Received: (13, 11, 4)",
        ),
        (
            {"input_shapes": (1, 13, 11, 3)},
            "`input_shapes` must agree with the model, whose input 'image' has shape "
            "(None, None, 3) without the batch. Received: (1, 13, 11, 3)",
        ),
        (
            {"input_shapes": {"picture": (13, 11, 3)}},
            f"`input_shapes` must be a shape (without the batch) {BOTH} {{'picture': (13, 11, 3)}}",
        ),
        (
            {"input_shapes": "13x11"},
            f"`input_shapes` must be a shape (without the batch) {BOTH} '13x11'",
        ),
        (
            {"input_shapes": (13, 11, 3), "data": {"picture": ONES((2, 13, 11, 3))}},
            f"`data` must be an array of samples {BOTH} "
            "{'picture': an array of shape (2, 13, 11, 3)}",
        ),
        (
            {"input_shapes": (13, 11, 3), "data": [[1, 2], [3, 4]]},
            f"`data` must be an array of samples {BOTH} [[1, 2], [3, 4]]",
        ),
        (
            {"input_shapes": (13, 11, 3), "data": ONES((2, 13, 3))},
            "`data` must hold samples of shape (13, 11, 3) for the input 'image'. Received: an "
            "array of shape (2, 13, 3)",
        ),
        (
            {"input_shapes": (13, 11, 3), "data": ONES((0, 13, 11, 3))},
            "`data` must hold the same number of samples for every input, a multiple of "
            "batch_size=1. Received: {'image': 0}",
        ),
        (
            {"input_shapes": (13, 11, 3), "data": ONES((3, 13, 11, 3)), "batch_size": 2},
            "`data` must hold the same number of samples for every input, a multiple of "
            "batch_size=2. Received: {'image': 3}",
        ),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else None,
)
def test_wrong_arguments(options, message, tmp_path):
    refused(ValueError, message, network((None, None, 3)), path=tmp_path / "m.tflite", **options)


def test_wrong_models(tmp_path):
    path = tmp_path / "m.tflite"
    message = (
        "`model` must be a keras.Model, or the path of a .keras file, an .h5 file or a SavedModel. "
        "Received: 3"
    )
    refused(TypeError, message, 3, path=path)
    model = keras.Sequential([layers.Dense(3)], name="unbuilt")
    message = (
        "`model` must be built: call it once on data, or give it a keras.Input. Received: "
        "'unbuilt', which is not"
    )
    refused(ValueError, message, model, path=path)
    model = keras.Sequential([keras.Input((1,), dtype="string", name="text"), layers.Identity()])
    message = "Inputs must be numbers. Received: 'text' of dtype 'string'"
    refused(ValueError, message, model, path=path)


@pytest.mark.parametrize(
    ("error", "path", "message"),
    [
        (TypeError, 3, "`path` must be a string or a path. Received: 3"),
        (TypeError, b"m.tflite", "`path` must be a string or a path. Received: b'm.tflite'"),
        (ValueError, "", "`path` must not be empty. Received: ''"),
        (ValueError, "m.keras", "`path` must name a file ending in '.tflite'. Received: 'm.keras'"),
        (
            ValueError,
            "missing/m.tflite",
            "The folder of `path` must exist. Received: path='missing/m.tflite'",
        ),
        (
            ValueError,
            "folder.tflite",
            "`path` must name a file ending in '.tflite'. Received: 'folder.tflite'",
        ),
    ],
)
def test_wrong_paths(error, path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder.tflite")
    with pytest.raises(error) as caught:
        kn.tflite.convert(applying(lambda x: x), path)
    assert str(caught.value) == message
    assert os.listdir() == ["folder.tflite"]


def test_only_two_arguments_are_positional(tmp_path):
    with pytest.raises(TypeError, match="positional"):
        kn.tflite.convert(network(), tmp_path / "m.tflite", 2)


# ---- Its parts --------------------------------------------------------------------------------


def test_run(tmp_path, rng):
    path = tmp_path / "m.tflite"
    kn.tflite.convert(applying(lambda x: 3 * x), path, batch_size=2)
    data = rng.normal(size=(6, 3))
    for given in (data, [data], {"x": data}, tf.constant(data)):
        np.testing.assert_array_equal(kn.tflite.run(path, given), 3 * data.astype("float32"))
    number = (
        "`data` must hold the same number of samples for every input, a multiple of 2. Received: "
        "{'x': 3}"
    )
    shape = (
        "`data` must hold samples of shape (3,) for the input 'x'. Received: an array of shape "
        "(6, 2)"
    )
    for wrong, message in ((data[:3], number), (data[:, :2], shape)):
        with pytest.raises(ValueError) as caught:
            kn.tflite.run(path, wrong)
        assert str(caught.value) == message


def test_compare_takes_each_output_by_its_own_size():
    want = {"small": np.array([1e-3, 0]), "large": np.array([1e3, 0])}
    got = {"small": np.array([1e-3, 1e-9]), "large": np.array([1e3, 1e-2])}
    agreement = verify.compare("LiteRT", want, got, tolerance=2e-5)
    assert (agreement.max_error, agreement.max_output) == (1e-2, 1e3)  # the worse of the two
    with pytest.raises(ConversionError, match=r"'large' is off by 0\.01"):
        verify.compare("LiteRT", want, got, tolerance=5e-6)
    with pytest.raises(ConversionError, match="'small' is off by 1e-09"):
        verify.compare("LiteRT", want, got, tolerance=5e-7)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_compare_refuses_what_is_not_finite(wrong):
    good, bad = {"y": np.array([1.0, 2.0])}, {"y": np.array([1.0, wrong])}
    with pytest.raises(ConversionError, match="1 of 2 values in LiteRT that are NaN or infinite"):
        verify.compare("LiteRT", good, bad, tolerance=1.0)
    with pytest.raises(ConversionError, match="1 of 2 values in Keras that are NaN or infinite"):
        verify.compare("LiteRT", bad, bad, tolerance=1.0)


def test_compare_refuses_other_shapes_and_any_error_of_zeros():
    zeros = {"y": np.zeros((2, 3))}
    with pytest.raises(ConversionError, match=r"shape \(3, 2\) in LiteRT and \(2, 3\) in Keras"):
        verify.compare("LiteRT", zeros, {"y": np.zeros((3, 2))}, tolerance=1.0)
    assert verify.compare("LiteRT", zeros, zeros, tolerance=1e-5).max_error == 0
    with pytest.raises(ConversionError, match="off by 1e-30"):
        verify.compare("LiteRT", zeros, {"y": np.full((2, 3), 1e-30)}, tolerance=1e-5)


def test_it_needs_keras_on_tensorflow(tmp_path):
    script = """
        import sys
        import keras
        keras.backend.backend = lambda: "jax"
        import keras_norms as kn
        try:
            kn.tflite.convert(None, "m.tflite")
        except RuntimeError as error:
            print(error)
    """
    assert run_python(script).stdout.splitlines() == [
        "The converter needs Keras on TensorFlow (set KERAS_BACKEND=tensorflow and load the saved "
        "model there). Received: the backend 'jax'"
    ]
