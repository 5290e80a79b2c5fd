"""The forms that norms are written in, each by itself, and which is taken when."""

import keras
import numpy as np
import pytest
import rows
import tensorflow as tf
from test_tflite import NORM_OPS, SCALED_OPS, randomized

import keras_norms as kn
from keras_norms.tflite import forms, lowering
from keras_norms.tflite.builder import Builder
from keras_norms.tflite.graph import File
from keras_norms.tflite.runtimes import RUNTIMES

# samples, before, channels, after, groups; the shape of x.
VIEWS = {
    "rows": ((1, 0, 1, 0, 1), (3, 7)),
    "rows of rank 4": ((3, 0, 1, 0, 1), (2, 3, 5, 7)),
    "rows of rank 5": ((4, 0, 1, 0, 1), (2, 3, 2, 5, 7)),
    "all of a sample": ((1, 0, 3, 0, 1), (2, 5, 3, 7)),
    "all of a sample, rank 5": ((1, 0, 4, 0, 1), (2, 5, 3, 2, 7)),
    "channels": ((1, 2, 1, 0, 6), (2, 5, 3, 6)),
    "channels of rank 3": ((1, 1, 1, 0, 6), (2, 5, 6)),
    "channels of rank 5": ((1, 3, 1, 0, 6), (2, 5, 3, 2, 6)),
    "channels first": ((1, 0, 1, 2, 6), (2, 6, 5, 3)),
    "channels first, rank 5": ((1, 0, 1, 3, 6), (2, 6, 5, 3, 2)),
    "channels between": ((1, 1, 1, 1, 6), (2, 5, 6, 3)),
    "groups": ((1, 2, 1, 0, 3), (2, 5, 3, 6)),
    "groups of rank 5": ((1, 3, 1, 0, 3), (2, 5, 3, 2, 6)),
    "groups first": ((1, 0, 1, 2, 2), (2, 6, 5, 3)),
    "groups of a vector": ((1, 0, 1, 0, 3), (4, 6)),
    "one group": ((1, 2, 1, 0, 1), (2, 5, 3, 6)),
    "one group of vectors": ((1, 1, 1, 0, 1), (2, 5, 6)),
    "one sample": ((0, 2, 1, 0, 3), (5, 3, 6)),
    "one position": ((1, 2, 1, 0, 2), (3, 1, 1, 6)),
}


def written(form, name, *, epsilon=1e-3, subtract_mean=True, gamma=None, beta=None):
    """A file that is the form alone."""
    numbers, shape = VIEWS[name]
    function = tf.function(lambda x: x + 1.0).get_concrete_function(tf.TensorSpec(shape, name="x"))
    file = File(tf.lite.TFLiteConverter.from_concrete_functions([function]).convert())
    (graph,) = file.graphs
    (old,) = graph.operators
    builder = Builder(graph, "norm")
    given = [None if p is None else builder.constant(p, k) for p, k in ((gamma, "g"), (beta, "b"))]
    options = {"epsilon": epsilon, "subtract_mean": subtract_mean}
    view = forms.View(*numbers, **options, gamma=given[0], beta=given[1])
    y = forms.FORMS[form](builder, int(graph.raw.inputs[0]), view)
    graph.replace(old, builder.operators)
    graph.set_output(0, y)
    return file.dump()


def run(content, x, runtime=RUNTIMES[0]):
    interpreter = runtime.open(content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def reference(x, numbers, *, epsilon=1e-3, subtract_mean=True, gamma=None, beta=None):
    samples, before, channels, _, groups = numbers
    first, last = samples + before, samples + before + channels
    sizes = [
        int(np.prod(part)) for part in (x.shape[:samples], x.shape[samples:first], x.shape[last:])
    ]
    count = int(np.prod(x.shape[first:last]))
    v = x.astype("float64").reshape(sizes[0], sizes[1], groups, count // groups, sizes[2])
    d = v - v.mean((1, 3, 4), keepdims=True) if subtract_mean else v
    y = d / np.sqrt((d**2).mean((1, 3, 4), keepdims=True) + epsilon)
    flat = (1, 1, groups, count // groups, 1)
    y = y if gamma is None else y * gamma.reshape(flat)
    return (y if beta is None else y + beta.reshape(flat)).reshape(x.shape)


@pytest.mark.parametrize("affine", ["", "gamma and beta"])
@pytest.mark.parametrize("subtract_mean", [True, False], ids=["mean", "no mean"])
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("form", forms.FORMS)
def test_a_form(form, name, subtract_mean, affine, rng):
    numbers, shape = VIEWS[name]
    first = numbers[0] + numbers[1]
    channels = shape[first : first + numbers[2]]
    options = {"subtract_mean": subtract_mean}
    for parameter in ("gamma", "beta"):
        if parameter in affine:
            options[parameter] = rng.normal(1, 0.3, channels).astype("float32")
    content = written(form, name, **options)
    file = File(content)
    kinds = {file.op_name(op) for op in file.graphs[0].operators}
    assert kinds <= (NORM_OPS if form == "centred" else SCALED_OPS)
    ranks = [len(file.graphs[0].shape(t)) for t in range(len(file.graphs[0].raw.tensors))]
    assert max(ranks) <= max(4, len(shape))
    above = [
        op for op in file.graphs[0].operators if len(shape) > 4 and file.op_name(op) != "RESHAPE"
    ]
    assert all(len(file.graphs[0].shape(int(op.outputs[0]))) <= 4 for op in above)
    for mean, deviation in ((0.5, 2.0), (10.0, 1.0), (0.0, 1e-3), (0.0, 5e3)):
        x = rng.normal(mean, deviation, shape).astype("float32")
        want = reference(x, numbers, **options)
        for runtime in RUNTIMES[::2]:
            got = run(content, x, runtime)
            # x - mean is off by eps * |mean|, relative to a deviation.
            bound = 2e-6 * (1 + abs(mean) / deviation) * max(1, np.abs(want).max())
            np.testing.assert_allclose(got, want, rtol=0, atol=bound)


@pytest.mark.parametrize("affine", ["gamma", "beta"])
@pytest.mark.parametrize("name", ["rows", "groups", "groups first", "groups of a vector"])
@pytest.mark.parametrize("form", forms.FORMS)
def test_a_form_with_one_parameter(form, name, affine, rng):
    test_a_form(form, name, True, affine, rng)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-12])
@pytest.mark.parametrize("form", forms.FORMS)
def test_a_constant_input(form, epsilon):
    """Gives zeros, or what rounding the mean leaves of them; never NaN."""
    x = np.full(VIEWS["groups"][1], 3.0, "float32")
    got = run(written(form, "groups", epsilon=epsilon), x)
    assert np.all(np.isfinite(got))
    if epsilon == 1e-3:
        np.testing.assert_allclose(got, 0, atol=1e-4)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-8, 1e-30])
def test_the_scaled_form_counts_epsilon_in_small_inputs(epsilon, rng):
    numbers, shape = VIEWS["rows"]
    for deviation in (1e-2, 1e-4, 1e-6):
        x = rng.normal(0, deviation, shape).astype("float32")
        options = {"epsilon": epsilon, "subtract_mean": False}
        got = run(written("scaled", "rows", **options), x)
        want = reference(x, numbers, **options)
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


# ---- Which form is taken ----------------------------------------------------------------------


@pytest.mark.parametrize("quantize", [None, "float16", "dynamic", "int8", "int16x8"])
@pytest.mark.parametrize("target", lowering.TARGETS)
def test_the_numbers_outrank_the_target(target, quantize):
    column = lowering.column(target, quantize)
    assert column == ("integers" if quantize in ("int8", "int16x8") else target)
    assert all(row[column] in forms.FORMS for row in lowering.TABLE.values())


@pytest.mark.parametrize("target", lowering.TARGETS)
def test_the_report_names_the_form(target, tmp_path):
    x = keras.Input((5, 4, 6))
    norms = [kn.GroupNormalization(2), kn.LayerNormalization(), kn.RMSNormalization()]
    model = randomized(keras.Model(x, [norm(x) for norm in norms]))
    report = kn.tflite.convert(model, tmp_path / "m.tflite", target=target)
    row, other = (lowering.TABLE[kind][target] for kind in (lowering.LAYER_NORM, lowering.OTHER))
    assert [norm.form for norm in report.norms] == [other, row, other]
    assert report.target == target


def test_targets_that_change_nothing_are_told(tmp_path, rng):
    model = keras.Sequential([keras.Input((5, 4, 6)), kn.GroupNormalization(2)])
    data, path = rng.normal(size=(16, 5, 4, 6)).astype("float32"), tmp_path / "m.tflite"
    options = {"target": "gpu", "quantize": "int8", "representative_data": data}
    told = "int8 has one form for all targets: 'gpu' changes nothing."
    assert told in kn.tflite.convert(model, path, **options).notes
    report = kn.tflite.convert(model, path, target="npu", custom_op=True)
    assert report.notes == ("Neither GPUs nor NPUs take the custom op: it runs on the CPU.",)
    assert kn.tflite.convert(model, path, target="gpu").notes == ()


# ---- The custom op ----------------------------------------------------------------------------

FUSED = [
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "PixelNormalization",
    "PositionalNormalization",
    "ScaleNormalization",
    "UnitNormalization",
    "ResidualNormalization",
]


@pytest.mark.parametrize("name", FUSED)
def test_a_norm_is_one_node(name, tmp_path, rng):
    (row,) = (row for row in rows.CATALOG if row.name == name)
    layer = rows.make(row)
    model = randomized(rows.model_of(row, layer))
    path = tmp_path / "m.tflite"
    report = kn.tflite.convert(model, path, custom_op=True, batch_size=2)
    assert report.ops["KerasNorms>Normalize"] == 1
    assert not set(report.ops) & {"MEAN", "RSQRT"}
    assert [norm.form for norm in report.norms] == ["custom"]
    assert report.max_error <= 4e-6 * report.max_output
    found = kn.tflite.inspect(path)
    assert found.custom == ("KerasNorms>Normalize",)


def custom_network():
    layers = keras.layers
    return randomized(
        keras.Sequential(
            [
                keras.Input((14, 13, 3)),
                layers.Conv2D(8, 3),
                kn.GroupNormalization(4),
                layers.ReLU(),
                layers.Conv2D(8, 3, padding="same"),
                layers.LayerNormalization(),
                layers.GlobalAveragePooling2D(),
                layers.Dense(5),
            ]
        )
    )


@pytest.mark.parametrize("quantize", ["float16", "dynamic", "int8", "int16x8"])
def test_the_custom_op_stays_float_in_any_format(quantize, tmp_path, rng):
    model, options = custom_network(), {}
    if quantize in ("int8", "int16x8"):
        options["representative_data"] = rng.normal(size=(32, 14, 13, 3)).astype("float32")
    path = tmp_path / "m.tflite"
    report = kn.tflite.convert(model, path, custom_op=True, quantize=quantize, **options)
    assert report.ops["KerasNorms>Normalize"] == 2
    assert {choice.numbers for choice in report.choices} == {"float32"}
    assert report.sqnr >= {"float16": 60, "dynamic": 38, "int8": 33, "int16x8": 38}[quantize]


def test_the_custom_op_is_refused_unless_asked_for(tmp_path):
    path = tmp_path / "m.tflite"
    kn.tflite.convert(custom_network(), path, custom_op=True)
    opened = kn.tflite.Runtime().open(path.read_bytes())  # `run` would find its delegate
    with pytest.raises(RuntimeError, match="unresolved custom op: KerasNorms>Normalize"):
        opened.allocate_tensors()
