"""Quantized files: how near they are, which norms stay float32, and what is refused.

The numbers in dB are of fixed weights and samples. A margin stands beside each: what was measured
with LiteRT 2.3.0 and ai-edge-quantizer 0.10.0 on x86-64.
"""

import dataclasses
import resource
import warnings

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
import tflite_nets as nets
from ai_edge_litert.interpreter import Interpreter
from tensorflow.lite.python import schema_py_generated as schema

from keras_norms.tflite import ConversionError, choice, engine, measure, probe, quantize
from keras_norms.tflite.flow import Flow
from keras_norms.tflite.graph import File
from keras_norms.tflite.norms import Norm
from keras_norms.tflite.plan import plan
from keras_norms.tflite.samples import batches, stressed
from keras_norms.tflite.signature import Input

# A convolution with a group's mean in it, statistics of every kind, and both ranks.
CASES = [
    ("dense", "layer"),
    ("conv", "group"),
    ("conv", "switchable"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("conv", "layer"),
            ("conv", "layer-all"),
            ("conv", "instance"),
            ("dense", "rms"),
            ("conv", "unit"),
            ("conv", "frn"),
        ]
    ),
]
DATA = {"stationary": nets.stationary, "gain": nets.gain}


def quantized(kind, norm, mode, data, keep):
    content, norms = nets.net(kind, norm)
    return quantize.quantize(content, mode, norms=norms, samples=DATA[data](kind, 24, 1), keep=keep)


def agreement(kind, norm, content, data):
    """On samples that the file was not calibrated with."""
    test = DATA[data](kind, 12, 2)
    want = probe.probe(nets.net(kind, norm)[0], test)
    return measure.outputs(want, probe.probe(content, test))["y"]


def numbers(content):
    """The type of every operation's result, by LiteRT's own list of tensors."""
    details = Interpreter(model_content=content).get_tensor_details()
    types = {d["name"]: d["dtype"].__name__ for d in details}
    return {node.output: types[node.output] for node in Flow(content).nodes}


def floating(content):
    """The names of the float32 tensors of a file that LiteRT cannot open."""
    return {
        graph.tensor_name(t)
        for graph in File(content).graphs
        for t in range(len(graph.raw.tensors))
        if graph.is_float({t})
    }


def ops(content):
    return [node.op for node in Flow(content).nodes]


# ---- Norms in int8 and int16x8 ----------------------------------------------------------------


@pytest.mark.parametrize(("kind", "norm"), CASES)
def test_int16x8_of_all(kind, norm):
    """Nothing in it is float32 but the interface: 39.4 to 41.1 dB, as without a norm (40.1)."""
    made = quantized(kind, norm, "int16x8", "stationary", "quantized")
    assert agreement(kind, norm, made.content, "stationary").sqnr >= 38
    assert ops(made.content).count("QUANTIZE") == ops(made.content).count("DEQUANTIZE") == 1
    types = numbers(made.content)
    assert set(list(types.values())[:-1]) == {"int16"}
    assert [c.numbers for c in made.norms] == ["int16"]


@pytest.mark.parametrize(("kind", "norm"), CASES)
def test_int8_at_varying_gain(kind, norm):
    """Samples of 0.1 to 10 times the strength: -4 to -2 dB in int8, 33 to 36 with a float norm.

    (A switchable one mixes in statistics of the training: 14 and 31.)

    Without the norm it is 24.4 dB, and -1.7 in the worst sample: a norm that gets every sample
    whole makes them better than they would be without.
    """
    made = quantized(kind, norm, "int8", "gain", "float")
    got = agreement(kind, norm, made.content, "gain")
    assert got.sqnr >= 31
    # 20 and 33: a switchable norm leaves some of the gain.
    assert got.worst >= (18 if norm == "switchable" else 30)
    assert [c.numbers for c in made.norms] == ["float32"]
    every = quantized(kind, norm, "int8", "gain", "quantized")
    assert agreement(kind, norm, every.content, "gain").sqnr <= got.sqnr - 15
    assert [c.numbers for c in every.norms] == ["int8"]


def test_int8_without_norms():
    """What the goal for norms is measured by: 24.4 dB (-1.7)."""
    made = quantized("conv", None, "int8", "gain", "float")
    without = agreement("conv", None, made.content, "gain")
    assert without.sqnr <= 26
    norm = quantized("conv", "layer", "int8", "gain", "float")
    assert agreement("conv", "layer", norm.content, "gain").sqnr >= without.sqnr - 6


def test_no_file_with_an_8_bit_input_does_better():
    """The float32 file itself, on the samples rounded to one scale: 10.8 dB (3.4)."""
    content, _ = nets.net("conv", "layer")
    test = nets.gain("conv", 12, 2)
    given = nets.gain("conv", 24, 1)
    low = min(batch["x"].min() for batch in given)
    scale = (max(batch["x"].max() for batch in given) - low) / 255
    rounded = [{"x": np.round((b["x"] - low) / scale) * scale + low} for b in test]
    rounded = [{"x": batch["x"].astype("float32")} for batch in rounded]
    got = measure.outputs(probe.probe(content, test), probe.probe(content, rounded))["y"]
    assert got.sqnr <= 14


def test_int8_of_a_stationary_norm():
    """Where samples are alike a quantized norm costs little: 29.8 dB, float 32.9."""
    every = quantized("conv", "group", "int8", "stationary", "quantized")
    float32 = quantized("conv", "group", "int8", "stationary", "float")
    every = agreement("conv", "group", every.content, "stationary").sqnr
    float32 = agreement("conv", "group", float32.content, "stationary").sqnr
    assert every >= 28
    assert float32 >= every + 2


def test_int16x8_at_varying_gain():
    """A variance over 1e4 is too much for int16 as well: 1.3 dB, and 40 with a float norm."""
    made = quantized("conv", "group", "int16x8", "gain", "auto")
    assert made.norms[0].numbers == "float32"
    assert agreement("conv", "group", made.content, "gain").sqnr >= 37
    assert numbers(made.content)["add;before;Const_11"] == "int16"


# ---- What is float32 ---------------------------------------------------------------------------


def test_what_leads_to_the_first_norm_is_float32():
    content, norms = nets.net("conv", "group")
    made = quantized("conv", "group", "int8", "gain", "float")
    types = numbers(made.content)
    assert {types[name] for name in norms[0].nodes} == {"float32"}
    # The mean of a group is a convolution: neither it nor its matrix of 1 / size is touched.
    of_group = [n for n in Flow(made.content).nodes if n.op == "CONV_2D" and "norm" in n.output]
    details = {d["name"]: d for d in Interpreter(model_content=made.content).get_tensor_details()}
    assert len(of_group) == 2
    assert {details[name]["dtype"] for n in of_group for name in n.constants} == {np.float32}
    # The convolution before it takes and gives float32, and its weights are int8 by channel.
    before = Flow(made.content).producer[norms[0].enters]
    assert types[before.output] == "float32"
    assert before.inputs == Flow(content).inputs
    (weights,) = (d for d in map(details.get, before.constants) if d["dtype"] == np.int8)
    assert len(weights["quantization_parameters"]["scales"]) == 32
    assert ops(made.content).count("QUANTIZE") == 1  # what leaves the norm


def test_a_transformer_keeps_its_residual_stream():
    """28.6 dB in int8 and 2.9 at varying gain; 31.6 and 31.5 with the stream in float32."""
    made = quantized("transformer", "layer", "int8", "gain", "float")
    got = agreement("transformer", "layer", made.content, "gain")
    assert got.sqnr >= 29
    assert got.worst >= 25
    types = numbers(made.content)
    stream = [n for n in Flow(made.content).nodes if n.op == "ADD" and "norm" not in n.output]
    assert [types[node.output] for node in stream] == ["float32"] * 4
    # The branches are integers: attention, and what is between the two matrices.
    inner = [n for n in Flow(made.content).nodes if n.op in ("SOFTMAX", "BATCH_MATMUL")]
    assert [types[node.output] for node in inner] == ["int8"] * 6
    relu = [types[name] for name in types if "Relu" in name]
    assert relu == ["int8"] * 2


def test_a_network_of_norms_stays_integer_behind_the_first():
    made = quantized("mobile", "group", "int8", "stationary", "float")
    types = numbers(made.content)
    weighted = [n for n in Flow(made.content).nodes if n.op.endswith("CONV_2D")]
    outside = {n.output: types[n.output] for n in weighted if "norm" not in n.output}
    # Of each block the first convolution sees the stream, the other two what a norm gave.
    assert list(outside.values()) == ["float32", "int8", "int8"] * 2
    assert agreement("mobile", "group", made.content, "stationary").sqnr >= 35  # 38.4


def test_a_graph_with_everything():
    """Batches of two, integers beside floats, branches, pools, a split, an operation that the
    engine does not know (LEAKY_RELU), outputs within, and a norm whose result is one."""
    w = nets.Weights(3)

    def function(x, k):
        a = tf.nn.relu(tf.nn.conv2d(x, w.kernel(3, 3, 8, 16), 1, "SAME") + w.bias(16))
        a = tf.concat([tf.nn.max_pool2d(a, 2, 2, "SAME"), tf.nn.avg_pool2d(a, 2, 2, "SAME")], -1)
        with tf.name_scope("n0"):
            y = nets.group_norm(a, w)
        b = tf.nn.leaky_relu(y) + tf.gather(w.kernel(10, 32), k)[:, None, None]
        b, gate = tf.split(b, 2, -1)
        b = b * tf.sigmoid(gate)
        with tf.name_scope("n1"):
            c = nets.layer_norm(b, w)
        z = tf.nn.conv2d(c, w.kernel(1, 1, 16, 4), 1, "SAME")
        return {"y": y, "z": z, "index": tf.argmax(c, -1), "double": x * 2.0}

    specs = [tf.TensorSpec((2, 12, 12, 8), name="x"), tf.TensorSpec((2,), "int32", name="k")]
    content = nets.converted(function, *specs)
    draw = np.random.default_rng(0)
    samples = [
        {
            "x": (draw.normal(size=(2, 12, 12, 8)) * 10 ** draw.uniform(-1, 1)).astype("float32"),
            "k": draw.integers(0, 10, 2).astype("int32"),
        }
        for _ in range(20)
    ]
    norms = nets.found(content, ["n0", "n1"])
    made = quantize.quantize(content, "int8", norms=norms, samples=samples, keep="float")
    assert made.calibration["y"].sqnr >= 35  # 39
    assert made.calibration["z"].sqnr >= 33  # 37
    assert set(made.calibration) == {"y", "z", "double"}
    wide = quantize.quantize(content, "int16x8", norms=norms, samples=samples, keep="float")
    assert wide.calibration["z"].sqnr >= 38  # 42


def test_an_unrolled_recurrent_layer(capfd):
    """Its first step has a gate for a state that is 0: an output of a SPLIT that nothing takes."""
    keras.utils.set_random_seed(0)
    x = keras.Input((5, 4), batch_size=1, name="x")
    model = keras.Model(x, keras.layers.LSTM(8, unroll=True)(x))
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    draw = np.random.default_rng(0)
    samples = [{"x": draw.normal(size=(1, 5, 4)).astype("float32")} for _ in range(16)]
    capfd.readouterr()
    made = quantize.quantize(content, "int8", samples=samples)
    assert made.calibration["output_0"].sqnr >= 20
    assert capfd.readouterr() == ("", "")


# ---- The choice --------------------------------------------------------------------------------


def test_auto_keeps_what_pays():
    """Of six norms in two blocks, those that see the stream and no more than needed."""
    made = quantized("mobile", "group", "int8", "gain", "auto")
    numbers = {c.path: c.numbers for c in made.norms}
    assert numbers["norm_0"] == "float32"
    assert list(numbers.values()).count("int8") >= 2
    float32 = quantized("mobile", "group", "int8", "gain", "float")
    for name in "calibration", "stress":
        best, got = (getattr(m, name)["y"].sqnr for m in (float32, made))
        assert got >= best - choice.COST
    assert made.trials <= choice.TRIALS
    why = {c.path: c.why for c in made.norms}
    assert why["norm_0"].startswith("quantized it would cost ")
    assert all(c.calibration.sqnr > 15 for c in made.norms)
    assert float32.norms[3].stress.sqnr > made.norms[4].stress.sqnr


def embedding():
    """Integers come in, so that there is no gain: nothing forces a norm to float32."""
    table = tf.constant(np.random.default_rng(5).normal(size=(50, 64)), "float32")
    w = nets.Weights(6)
    norm = nets.Scoped(nets.layer_norm, w)

    def function(x):
        y = norm(nets.dense(tf.gather(table, x), w, 64, "before"))
        return nets.dense(y, w, 64, "after")

    content = nets.converted(function, tf.TensorSpec((1, 20), "int32", name="x"))
    draw = np.random.default_rng(7)
    samples = [{"x": draw.integers(0, 50, (1, 20)).astype("int32")} for _ in range(24)]
    return content, nets.found(content, ["norm_0"]), samples


def test_auto_quantizes_all_that_costs_nothing():
    content, norms, samples = embedding()
    made = quantize.quantize(content, "int8", norms=norms, samples=samples)
    assert [c.numbers for c in made.norms] == ["int8"]
    assert made.norms[0].why.startswith("quantized it costs ")
    assert made.trials == 2
    assert made.calibration == made.stress


def test_auto_is_bounded(monkeypatch):
    monkeypatch.setattr(choice, "TRIALS", 3)
    made = quantized("mobile", "group", "int8", "gain", "auto")
    assert made.trials == 3
    assert any(c.why == "not tried, after 3 files" for c in made.norms)
    assert {c.numbers for c in made.norms if "not tried" in c.why} == {"float32"}


def test_the_search():
    """Norms that cost 2, 0.5, 9 and 0.2 dB: by halves, the last first; one is too much."""
    costs = dict(zip("abcd", (2.0, 0.5, 9.0, 0.2), strict=True))
    made = []

    def make(floats):
        made.append(floats)
        return "".join(sorted(floats)).encode()

    def run(content):
        lost = sum(cost for path, cost in costs.items() if path not in content.decode())
        return {"calibration": {"y": measure.Distance(30 - lost, 0, 0)}}

    chosen = choice.choose("abcd", make, run)
    assert chosen.floats == {"c"}
    assert chosen.content == b"c"
    assert chosen.why == {
        "a": "quantized with 1 more it costs 2.7 dB",
        "b": "quantized with 1 more it costs 2.7 dB",
        "c": "quantized it would cost 9.2 dB",
        "d": "quantized it costs 0.2 dB",
    }
    assert ["".join(sorted(floats)) for floats in made] == ["abcd", "", "ab", "abc", "ab", "c"]

    def runs_if_float(content):
        if "a" not in content.decode():
            raise ConversionError("It does not run")
        return run(content)

    chosen = choice.choose("ab", make, runs_if_float)
    assert chosen.floats == {"a"}
    assert chosen.why["a"] == "LiteRT cannot run the file in which it is quantized"


def test_a_fused_norm_stays_float32():
    """A CUSTOM operation between integers; it needs no kernel here, for nothing is run."""
    signature = 'name: "KerasNorms>Normalize" attr { key: "tfl_fusable_op" value { b: true } }'

    @tf.function(experimental_implements=signature)
    def norm(x):
        return x - 1.0

    w = nets.Weights()

    def function(x):
        return nets.dense(norm(nets.dense(x, w, 32, "before")), w, 32, "after")

    content = nets.converted(function, tf.TensorSpec((1, 4, 32), "float32", name="x"))
    graph = Flow(content)
    (node,) = (node for node in graph.nodes if node.op == "KerasNorms>Normalize")
    one = Norm("norm", "fused", node.inputs[0], node.output, (node.output,))
    ranges = dict.fromkeys([*graph.producer, *graph.inputs], (-3.0, 3.0))
    for floats in {"norm"}, set():
        made = engine.apply(content, plan(graph, [one], floats, "int8"), ranges)
        (custom,) = (n for n in Flow(made).nodes if n.custom)
        assert {*custom.inputs, *custom.outputs} <= floating(made)
        assert "QUANTIZE" in ops(made)


# ---- The other modes ---------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["layer", "group", "unit"])
def test_float16(norm):
    content, norms = nets.net("conv", norm)
    made = quantize.quantize(content, "float16", norms=norms, samples=nets.gain("conv", 12, 3))
    assert agreement("conv", norm, made.content, "gain").sqnr >= 65  # 70 to 76
    assert len(made.content) < 0.55 * len(content) + 2000
    types = {d["dtype"] for d in Interpreter(model_content=made.content).get_tensor_details()}
    assert np.float16 in types
    assert made.trials == 0
    assert [c.numbers for c in made.norms] == ["float32"]
    assert made.calibration["y"].sqnr >= 65


@pytest.mark.parametrize("value", [1e-12, 1e5, 6e-8])
def test_float16_keeps_what_it_cannot_hold(value):
    constant = tf.constant(np.full(100, value, "float32"))
    content = nets.converted(lambda x: x + constant, tf.TensorSpec((1, 100), "float32", name="x"))
    made = quantize.quantize(content, "float16").content
    np.testing.assert_array_equal(
        probe.probe(made, [{"x": np.zeros((1, 100), "float32")}]).outputs["y"], constant[None, None]
    )


def test_float16_of_a_shared_constant_and_an_output():
    matrix = tf.constant(np.random.default_rng(0).normal(size=(8, 8)), "float32")

    def function(x):
        return tf.matmul(tf.matmul(x, matrix), matrix)

    content = nets.converted(function, tf.TensorSpec((1, 8), "float32", name="x"))
    made = quantize.quantize(content, "float16").content
    assert ops(made).count("DEQUANTIZE") == 1
    assert Flow(made).nodes[0].op == "DEQUANTIZE"


def test_dynamic():
    content, norms = nets.net("conv", "group")
    made = quantize.quantize(content, "dynamic", norms=norms, samples=nets.gain("conv", 12, 3))
    assert agreement("conv", "group", made.content, "gain").sqnr >= 33  # 35.5
    assert len(made.content) < 0.4 * len(content)
    details = {d["name"]: d for d in Interpreter(model_content=made.content).get_tensor_details()}
    integer = {
        node.output
        for node in Flow(made.content).nodes
        if any(details[name]["dtype"] == np.int8 for name in node.constants)
    }
    assert len(integer) == 2
    assert not integer & set(norms[0].nodes)


def test_nothing_is_measured_without_samples():
    content, norms = nets.net("tiny", "layer")
    made = quantize.quantize(content, "dynamic", norms=norms)
    assert made.calibration == made.stress == {}
    assert made.norms[0].calibration is None


@pytest.mark.parametrize("mode", quantize.MODES)
def test_the_interface_is_float32_and_the_bytes_are_the_same_twice(mode):
    content, norms = nets.net("tiny", "layer")
    samples = nets.gain("tiny", 12, 3)
    made, again = (quantize.quantize(content, mode, norms=norms, samples=samples) for _ in range(2))
    assert made == again
    assert Flow(made.content).signature == Flow(content).signature
    (output,) = Interpreter(model_content=made.content).get_output_details()
    assert output["dtype"] == np.float32


# ---- Measuring ---------------------------------------------------------------------------------


def test_distance():
    want = np.array([[3.0, 4.0], [0.3, 0.4]])
    got = want + np.array([[0.05, 0], [0, 0.05]])
    found = measure.distance(want, got)
    assert found.sqnr == pytest.approx(10 * np.log10(25.25 / 0.005))
    assert found.worst == pytest.approx(10 * np.log10(0.25 / 0.0025))
    assert found.max_error == pytest.approx(0.05)
    assert measure.distance(want, want) == measure.Distance(150, 150, 0)
    got[0, 0] = np.nan
    assert measure.distance(want, got).sqnr == -150
    with pytest.raises(ValueError, match="Shapes must agree"):
        measure.distance(want, got[:1])


def test_norms_are_measured_one_by_one():
    made = quantized("conv", "layer", "int8", "stationary", "quantized")
    content, norms = nets.net("conv", "layer")
    samples = nets.stationary("conv", 6, 4)
    name = norms[0].leaves
    want, got = (probe.probe(c, samples, tensors=[name]) for c in (content, made.content))
    (found,) = measure.tensors(want, got).values()
    assert 25 < found.sqnr < 45
    # Real numbers: whole steps from one another.
    details = {d["name"]: d for d in Interpreter(model_content=made.content).get_tensor_details()}
    (scale,) = details[name]["quantization_parameters"]["scales"]
    assert details[name]["dtype"] == np.int8
    steps = np.unique(got.tensors[name]) / scale
    np.testing.assert_allclose(steps - steps[0], np.round(steps - steps[0]), atol=1e-3)
    assert 100 < len(steps) <= 256


def test_the_stress():
    draw = np.random.default_rng(0)
    given = [
        {"x": draw.normal(size=(4, 9, 5)).astype("float32"), "k": np.full((4, 2), 3, "int32")}
        for _ in range(6)
    ]
    got = stressed(given)
    x, y = (np.concatenate([b["x"] for b in part]) for part in (given, got))
    gains = y.std((1, 2)) / x.std((1, 2))
    assert gains.min() < 0.2
    assert 0.6 < gains.max() <= 1
    assert np.all((y >= x.min() - 1e-6) & (y <= x.max() + 1e-6))
    assert np.abs(y.mean((1, 2)) / y.std((1, 2))).max() > 1
    for before, after in zip(given, got, strict=True):
        np.testing.assert_array_equal(before["k"], after["k"])
    np.testing.assert_array_equal(y, np.concatenate([b["x"] for b in stressed(given)]))


# ---- Representative data -----------------------------------------------------------------------

INPUTS = (Input("a", (2, 3), "float32"), Input("b", (2,), "int32"))


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def ways():
    a = np.arange(60, dtype="float64").reshape(20, 3)
    b = np.arange(20)
    steps = [{"a": a[k : k + 5], "b": b[k : k + 5]} for k in range(0, 20, 5)]
    singles = [[a[k], b[k]] for k in range(20)]
    dataset = tf.data.Dataset.from_tensor_slices({"a": a, "b": b})
    return {
        "list": [a, b],
        "dict": {"b": b, "a": a},
        "steps": steps,
        "generator": (step for step in steps),
        "function": lambda: iter(steps),
        "function of lists": lambda: ([s["a"], s["b"]] for s in steps),
        "single samples": singles,
        "dataset": dataset,
        "batched dataset": dataset.batch(3),
        "endless dataset": dataset.batch(4).repeat(),
        "dataset of x and y": dataset.map(lambda x: (x, x["b"])).batch(3),
        "dataset of x, y and weights": dataset.map(lambda x: (x, 1, 0.5)),
        "dataset of tuples": dataset.map(lambda x: (x["a"], x["b"])).batch(3),
        "dataset of a tuple and y": dataset.map(lambda x: ((x["a"], x["b"]), x["a"])).batch(3),
        "tuple and tuple": ((tuple(step.values()), (b, a)) for step in steps),
        "list and y": ((list(step.values()), 1) for step in steps),
        "list, y and weights": [(list(step.values()), {"y": 3}, None) for step in steps],
        "lists of samples": [([*a[:2]], [*b[:2]]), ([*a[2:]], [*b[2:]])],
        "lists of numbers": ((a[k].tolist(), int(b[k])) for k in range(20)),
    }


@pytest.mark.parametrize("way", ways())
def test_ways_to_give_samples(way):
    got = batches(ways()[way], INPUTS, most=20)
    assert len(got) == 10
    assert {(b["a"].shape, b["a"].dtype.name) for b in got} == {((2, 3), "float32")}
    assert {(b["b"].shape, b["b"].dtype.name) for b in got} == {((2,), "int32")}
    np.testing.assert_array_equal(joined(got)["a"], np.arange(60).reshape(20, 3))
    np.testing.assert_array_equal(joined(got)["b"], np.arange(20))


# As for `fit`; y has the shape of a sample.
XY = tf.data.Dataset.from_tensor_slices((np.arange(30.0).reshape(10, 3), np.ones((10, 3))))


@pytest.mark.parametrize(
    "data",
    [
        np.arange(30.0).reshape(10, 3),
        [np.arange(30.0).reshape(10, 3)],
        iter(np.arange(30.0).reshape(10, 3)),
        tf.data.Dataset.from_tensor_slices(np.arange(30.0).reshape(10, 3)),
        lambda: ([row[None]] for row in np.arange(30.0).reshape(10, 3)),
        XY,
        XY.batch(4),
        XY.map(lambda x, y: ({"x": x}, y)),
        XY.map(lambda x, y: ((x,), y, y)),
        XY.map(lambda x, y: (x, x)),
        lambda: ((x, float(y[0])) for x, y in XY.as_numpy_iterator()),
        list(XY.batch(3).as_numpy_iterator()),
        (np.arange(30.0).reshape(10, 3), np.ones((10, 3))),
        (np.arange(30.0).reshape(10, 3), np.ones(10), np.ones(10)),
    ],
    ids=[
        *("array", "list", "rows", "dataset", "representative_dataset", "x and y", "batches of it"),
        *("of a dict", "of a tuple, with weights", "x twice", "generator", "list of x and y"),
        *("arrays x and y", "arrays x, y and weights"),
    ],
)
def test_samples_of_one_input_fill_the_last_batch(data):
    got = batches(data, [Input("x", (4, 3), "float32")])
    assert len(got) == 3
    want = np.arange(30).reshape(10, 3)
    np.testing.assert_array_equal(joined(got)["x"], [*want, *want[:2]])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "must be arrays of samples"),
        (3, "must be arrays of samples"),
        (np.ones((20, 3)), "must be arrays of samples"),
        ([np.ones((20, 3))], "must be arrays of samples"),
        ({"a": np.ones((20, 3))}, "Received: a dict of 'a'"),
        ({"a": np.ones((20, 3)), "b": np.ones(19)}, "the same number of samples"),
        ({"a": np.ones((20, 4)), "b": np.ones(20)}, "must hold samples of shape"),
        ({"a": np.full((20, 3), np.nan), "b": np.ones(20)}, "60 of 60 values of 'a'"),
        ({"a": np.full((20, 3), np.inf), "b": np.ones(20)}, "must be finite"),
        ([{"a": np.ones((2, 3)), "b": np.ones(1)}], "Every step"),
        (iter([]), "at least one"),
        ([{"a": np.ones((2, 3))}], "must be arrays of samples"),
        (XY.map(lambda x, y: (x, y, y)), "with such an x, or .* Received: a tuple of 3"),
        (XY, r"Every step of `representative_data` .* Received: {'a': 1, 'b': 3}"),
        (XY.map(lambda x, y: ({"a": x}, y)), "Received: a dict of 'a'"),
        (XY.map(lambda x, y: ((x, y, y), y, y)), "Received: a tuple of 3"),
        ([(np.ones((2, 3)), np.ones(2), np.ones(2), np.ones(2))], "Received: a tuple of 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_samples(data, message):
    with pytest.raises(ValueError, match=message):
        batches(data, INPUTS)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ((np.ones(3), 1, 1, 1), "Received: a tuple of 4"),
        ([np.ones(3), 1], "Received: a list of 2"),
        (([1.0, 2.0, 3.0], 1), "Received: a tuple of 2"),
        ((1.0, 2.0, 3.0), "Received: a tuple of 3"),
        (
            (np.ones(2), np.ones(3)),
            r"samples of shape \(3,\) .* Received: an array of shape \(1, 2\)",
        ),
        (({"y": np.ones(3)}, 1), "Received: a dict of 'y'"),
    ],
)
def test_steps_that_are_not_of_fit(step, message):
    with pytest.raises(ValueError, match=rf"^`representative_data` must .*{message}"):
        batches([step] * 10, [Input("x", (4, 3), "float32")])


def test_doubtful_samples_warn_and_are_in_the_result():
    content, norms = nets.net("tiny", None)
    i = [Input("x", (1, 16, 64), "float32")]
    with pytest.warns(UserWarning, match="has 3 different samples"):
        samples = batches(np.random.default_rng(0).normal(size=(3, 16, 64)), i)
    made = quantize.quantize(content, "int8", norms=norms, samples=samples)
    assert len(made.warnings) == 1
    with pytest.warns(UserWarning) as caught:
        batches(np.ones((40, 16, 64)), i)
    assert [str(w.message)[:44] for w in caught] == [
        "The representative data has 1 different samp",
        "The representative data of 'x' is 1 everywhe",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches(np.random.default_rng(0).normal(size=(10, 16, 64)), i)


# ---- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["int8", "int16x8"])
def test_integers_need_samples(mode):
    content, norms = nets.net("tiny", "layer")
    for samples in None, []:
        with pytest.raises(ValueError, match="needs `representative_data`"):
            quantize.quantize(content, mode, norms=norms, samples=samples)


def test_wrong_arguments():
    content, norms = nets.net("tiny", "layer")
    with pytest.raises(ValueError, match="`mode` must be one of float16, dynamic, int8, int16x8"):
        quantize.quantize(content, "int4")
    with pytest.raises(ValueError, match="`keep` must be one of auto, float, quantized"):
        quantize.quantize(content, "int8", keep="all")
    with pytest.raises(ValueError, match="The tensors of a norm must be in the file"):
        quantize.quantize(content, "dynamic", norms=[Norm("n", "f", "nowhere", "no", ())])
    part = dataclasses.replace(norms[0], nodes=(norms[0].nodes[0], norms[0].nodes[-1]))
    with pytest.raises(ValueError, match="All operations between those of a norm"):
        quantize.quantize(content, "dynamic", norms=[part])
    with pytest.raises(ValueError, match="sizes and types of the file's inputs"):
        quantize.quantize(content, "int8", norms=norms, samples=[{"x": np.ones((1, 3))}])


def test_what_is_not_finite_is_refused():
    content = nets.converted(tf.math.log, tf.TensorSpec((1, 4), "float32", name="x"))
    samples = [{"x": np.full((1, 4), -k, "float32")} for k in range(12)]
    with pytest.raises(ConversionError, match="must compute finite values"):
        quantize.quantize(content, "int8", samples=samples)


def test_sizes_that_are_not_fixed():
    def function(x):
        return tf.reshape(tf.nn.relu(x), (-1, 2))

    content = nets.converted(function, tf.TensorSpec((None, 4), "float32", name="x"))
    for mode in "int8", "int16x8":
        with pytest.raises(ConversionError, match="needs fixed sizes"):
            quantize.quantize(content, mode, samples=[{"x": np.ones((1, 4), "float32")}])


def loop(body=None):
    """A file with a loop; with a `body`, one that goes through that graph."""

    def function(x):
        return tf.while_loop(lambda a: tf.reduce_sum(a) < 9.0, lambda a: (a * 2,), (x,))[0]

    content = nets.converted(function, tf.TensorSpec((1, 4), "float32", name="x"))
    if body is None:
        return content
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    (operator,) = model.subgraphs[0].operators
    operator.builtinOptions.bodySubgraphIndex = body
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_loops():
    samples = [{"x": np.full((1, 4), k, "float32")} for k in range(1, 13)]
    for mode in "int8", "int16x8":
        with pytest.raises(ConversionError, match=r"needs a file without loops.*unroll=True"):
            quantize.quantize(loop(), mode, samples=samples)
    assert quantize.quantize(loop(), "float16", samples=samples).calibration["y"].sqnr == 150
    made = quantize.quantize(loop(), "dynamic", samples=samples)
    assert made.warnings == ("Weights within loops stay float32: `unroll=True` writes none.",)


@pytest.mark.parametrize("stack", ["usual", "unlimited"])
def test_a_file_that_kills_litert(stack, request):
    """A loop whose body is the graph that it stands in: LiteRT runs out of stack."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if stack == "unlimited":
        resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
        request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_STACK, (soft, hard)))
    with pytest.raises(ConversionError, match=r"ended by SIGSEGV.*`unroll=True`"):
        probe.probe(loop(body=0), [{"x": np.ones((1, 4), "float32")}])


def test_a_file_that_litert_refuses():
    """A divisor that its scale makes 0."""
    content = nets.converted(lambda x: 1.0 / x + x, tf.TensorSpec((1, 64), "float32", name="x"))
    x = np.linspace(0.001, 10, 64, dtype="float32")[None]
    with pytest.raises(ConversionError, match=r"LiteRT could not run the file. It says: .*div.cc"):
        quantize.quantize(content, "int8", samples=[{"x": x}] * 2)


def test_an_operation_that_nobody_knows():
    signature = 'name: "Unknown" attr { key: "tfl_fusable_op" value { b: true } }'
    function = tf.function(lambda x: x + 1.0, experimental_implements=signature)
    content = nets.converted(function, tf.TensorSpec((1, 4), "float32", name="x"))
    with pytest.raises(ConversionError, match="unresolved custom op: Unknown"):
        quantize.quantize(content, "int8", samples=[{"x": np.ones((1, 4), "float32")}])
