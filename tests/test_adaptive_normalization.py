import json

import keras
import numpy as np
import pytest
import reference_adaptive
import support
import tensorflow as tf

import keras_norms as kn

X, NCHW, VECTORS = (5, 3, 2, 4), (5, 4, 3, 2), (5, 7)
Adaptive = kn.AdaptiveNormalization
ADALN = {"norm": "layer", "epsilon": 1e-6, "predictor_activation": "silu"}

# name: arguments, shape of x, shape of c.
CASES = {
    "FiLM": ({"norm": None, "unit_offset": False}, X, VECTORS),
    "FiLM of vectors": ({"norm": None, "activation": "relu"}, (5, 7), (5, 3)),
    "StyleGAN": ({"norm": "instance"}, X, VECTORS),
    "adaLN": (ADALN, (5, 3, 6), VECTORS),
    "adaLN-Zero": ({**ADALN, "gate": True}, (5, 3, 6), VECTORS),
    "adaLN-Zero, nchw": ({**ADALN, "gate": True, "axis": 1}, NCHW, VECTORS),
    "rms": ({"norm": "rms", "predictor_activation": "relu"}, (5, 3, 6), VECTORS),
    "batch, nchw": ({"norm": "batch", "axis": 1}, NCHW, VECTORS),
    "group": ({"norm": "group"}, (2, 3, 64), (2, 1)),
    "one sample": ({"norm": "instance"}, (1, 7, 3, 4), (1, 1)),
    "SPADE": ({"norm": "batch", "predictor": "conv", "hidden": 3}, X, (*X[:3], 6)),
    "SPADE, enlarged": (
        {"norm": "instance", "predictor": "conv", "hidden": None, "unit_offset": False},
        *(X, (5, 2, 1, 6)),
    ),
    "SPADE, reduced, nchw": (
        {"norm": "batch", "predictor": "conv", "hidden": 2, "axis": 1, "activation": "relu"},
        *((2, 4, 3, 2), (2, 3, 7, 5)),
    ),
    "SPADE of sequences": (
        {"norm": "layer", "predictor": "conv", "hidden": 2, "kernel_size": 4},
        *((3, 7, 5), (3, 4, 2)),
    ),
    "SPADE of volumes": (
        {"norm": None, "predictor": "conv", "hidden": None, "kernel_size": 2},
        *((2, 3, 4, 2, 5), (2, 2, 1, 3, 2)),
    ),
    "AdaIN": ({"norm": "instance", "predictor": "statistics", "epsilon": 1e-5}, X, (5, 2, 7, 4)),
    "AdaIN, nchw": (
        {"norm": "instance", "predictor": "statistics", "axis": 1},
        *((2, 6, 5, 3), (2, 6, 7)),
    ),
    "AdaIN of vectors": ({"norm": None, "predictor": "statistics"}, (3, 5), (3, 7, 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_matches_reference(name, kernel):
    arguments, *shapes = CASES[name]
    means = (0.0, 1e2 if arguments["norm"] in (None, "rms") else 1e6)
    support.check(Adaptive(**arguments), shapes, kernel, "eager", means=means, training=True)


@pytest.mark.parametrize("jit", ["graph", "xla"])
@pytest.mark.parametrize("name", ["adaLN-Zero", "SPADE, enlarged", "AdaIN"])
def test_matches_reference_in_graphs(name, jit, kernel):
    arguments, *shapes = CASES[name]
    support.check(Adaptive(**arguments), shapes, kernel, jit, means=(3.0,), training=True)


def with_labels(layer, labels, mode, **arguments):
    """`support.runner` for a layer whose second input is of integers."""

    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer([x, labels], **arguments)
        weights = [weight.value for weight in layer.trainable_weights]
        return y, *map(tf.convert_to_tensor, tape.gradient(y, [x, *weights], dy))

    step = support.compiled(step, mode)

    def run(x, dy):
        before = support.weights_of(layer)
        y, dx, *slopes = support.arrays(step(tf.constant(x), tf.constant(dy)))
        names = [weight.name for weight in layer.trainable_weights]
        gradients = dict(zip(names, slopes, strict=True))
        return support.Outputs(y, [dx, np.zeros(labels.shape)], gradients, before)

    return run


@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("norm, shape, axis", [("batch", X, -1), ("instance", NCHW, 1)])
def test_labels_match_reference(norm, shape, axis, kernel, mode, rng):
    layer = Adaptive(norm, "embedding", axis, classes=4)
    support.built(layer, [shape, (5,)])
    labels = np.array([3, 0, 3, 1, 3])  # one of them in no sample, one in several
    run = with_labels(layer, tf.constant(labels), mode, training=True)
    for mean in support.MEANS:
        x, dy = rng.normal(mean, 1, shape).astype("float32"), rng.normal(size=shape)
        dy = dy.astype("float32")
        support.compare(layer, [x, labels], dy, run(x, dy), kernel, what=f"mean {mean:g}")


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "int8", "uint32"])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_labels_of_every_type(dtype, shape, rng):
    x = rng.normal(size=(3, 5, 2)).astype("float32")
    layer = support.built(Adaptive("layer", "embedding", classes=300), [x.shape, shape])
    labels = np.array([5, 0, 120], dtype).reshape(shape)
    weights = support.weights_of(layer)
    want = reference_adaptive.adaptive_normalization(
        [x, labels], weights, layer.get_config(), False
    )
    for call in (layer, tf.function(layer)):
        support.close(call([x, tf.constant(labels)]), want, atol=1e-5)
    model = keras.Model(
        inputs := [keras.Input((5, 2)), keras.Input(shape[1:], dtype=dtype)], layer(inputs)
    )
    support.close(model.predict([x, labels], verbose=0), want, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_labels_out_of_range(dtype, rng):
    x = rng.normal(size=(4, 5, 2)).astype("float32")
    layer = Adaptive("layer", "embedding", classes=3)
    labels = np.array([2, 3, 0, 7], dtype)
    if dtype == "int64":
        labels[1:4:2] = -1, 2**32  # which as an int32 is 0
    with pytest.raises(ValueError) as error:
        layer([x, labels])
    assert (
        "Labels must be in [0, 2], as `classes` says. "
        f"Received: classes=3, labels {labels[[1, 3]].tolist()}."
    ) in str(error.value)
    fits = layer([x, np.array([2, 0, 0, 0], dtype)])
    for jit in (False, True):
        got = tf.function(layer, jit_compile=jit)([x, tf.constant(labels)]).numpy()
        np.testing.assert_array_equal(got[::2], fits[::2])
        assert np.isnan(got[1::2]).all()
    with tf.GradientTape() as tape:  # what is wrong does not reach the tables
        value = tf.reduce_sum(tf.function(layer)([x, tf.constant(labels)])[::2] ** 2)
    for gradient in tape.gradient(value, [w.value for w in layer.trainable_weights]):
        assert np.isfinite(tf.convert_to_tensor(gradient)).all()


def test_labels_are_integers(rng):
    with pytest.raises(TypeError, match=r"must be integer labels\. Received: dtype=float32\."):
        Adaptive("layer", "embedding", classes=3)([np.zeros((4, 5, 2)), np.zeros(4, "float32")])


# Special cases.


def test_zero_gate_begins_with_the_norm(kernel, rng):
    x, c = rng.normal(3, 1, (5, 11, 6)).astype("float32"), rng.normal(size=(5, 4))
    y, gate = Adaptive("layer", gate=True, epsilon=1e-6, predictor_activation="silu")([x, c])
    want = kn.LayerNormalization(epsilon=1e-6, center=False, scale=False)(x)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(gate, np.zeros((5, 1, 6)))
    other = Adaptive("layer", gate=True, kernel_initializer="ones")
    assert np.abs(other([x, c])[1]).max() > 0


@pytest.mark.parametrize("norm", [*reference_adaptive.EPSILON, None])
def test_labels_begin_with_the_norm(norm, kernel, rng):
    x = rng.normal(3, 1, (3, 5, 64)).astype("float32")
    got = Adaptive(norm, "embedding", classes=2)([x, np.array([1, 0, 1])], training=True)
    config = {"norm": norm, "epsilon": None, "trainable": True}
    want = reference_adaptive.normalized(x.astype("float64"), {}, config, True)
    support.close(got, want, atol=support.FORWARD[kernel], rtol=2.0**-24)


@pytest.mark.parametrize("mean", support.MEANS)
def test_statistics_far_from_zero(mean, kernel, rng):
    """y is as near as float32 has numbers, and of c itself it is c."""
    x, c = rng.normal(mean, 1, (2, 4, 37, 11, 3)).astype("float32")
    layer = Adaptive("instance", "statistics", epsilon=1e-5)
    want = reference_adaptive.adaptive_normalization([x, c], {}, layer.get_config(), False)
    unit = float(np.spacing(np.float32(np.abs(want).max())))
    atol = 4 * support.FORWARD[kernel] + (unit if mean else 0)  # std is 1, x within 4 of it
    support.close(layer([x, c]), want, atol=atol)
    support.close(layer([c, c]), c.astype("float64"), atol=atol)
    assert not layer.weights


def test_statistics_take_the_norms_epsilon():
    for norm, given, want in (
        *(("instance", None, 1e-3), ("rms", None, 1e-6), ("batch", 1e-5, 1e-5), (None, None, 1e-3)),
        *((None, 0.5, 0.5), (kn.GroupNormalization(2, epsilon=0.1), None, 0.1)),
    ):
        assert Adaptive(norm, "statistics", epsilon=given).statistics_epsilon == want


def test_conv_of_one_position_is_dense(kernel, rng):
    """A filter of one position on a map that is the same everywhere."""
    x, c = rng.normal(size=X).astype("float32"), rng.normal(size=VECTORS).astype("float32")
    dense = support.built(Adaptive("batch"), [X, c.shape])
    conv = Adaptive("batch", "conv", hidden=None, kernel_size=1)
    conv.build([X, (5, 1, 1, 7)])
    conv.kernel.assign(dense.kernel[None, None])
    conv.bias.assign(dense.bias)
    want = dense([x, c], training=True).numpy().astype("float64")
    support.close(conv([x, c[:, None, None]], training=True), want, atol=2e-5)


def test_dense_runs_the_compiled_op(fused):
    layer = support.built(Adaptive("instance"), [X, VECTORS])
    specs = [tf.TensorSpec(X), tf.TensorSpec(VECTORS)]
    graph = tf.function(lambda *x: layer(list(x)), specs, autograph=False)
    nodes = {op.type for op in graph.get_concrete_function().graph.get_operations()}
    assert {"KerasNorms>Normalize", "KerasNorms>ScaleShift"} <= nodes


# Layers as arguments.


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("c_shape", [VECTORS, (5, 3, 2, 7), (5, 1, 2, 7), (5, 1, 1, 7)])
@pytest.mark.parametrize("axis, shape", [(-1, X), (1, NCHW)])
def test_a_layer_as_predictor(axis, shape, c_shape, gate, kernel):
    """Per sample and per position; a size of 1 is for all of x's."""
    predictor = keras.layers.Dense((3 if gate else 2) * 4)
    layer = Adaptive("instance", predictor, axis, gate=gate)
    support.check(layer, [shape, c_shape], kernel, "eager", means=(0.0, 1e2))
    if gate:
        gate_shape = layer.compute_output_shape([shape, c_shape])[1]
        space = c_shape[1:-1] or (1, 1)
        assert gate_shape == ((5, *space, 4) if axis == -1 else (5, 4, *space))


@pytest.mark.parametrize("known", [True, False])
def test_predicted_sizes_of_1_that_are_not_known(known, kernel, rng):
    """The gradients of what is broadcast only when it runs."""
    x, c = rng.normal(size=(3, 7, 6)).astype("float32"), rng.normal(size=(3, 1, 4))
    c = c.astype("float32")
    layer = support.built(Adaptive("layer", keras.layers.Dense(12)), [(3, 7, 6), (3, None, 4)])
    dy = rng.normal(size=x.shape).astype("float32")
    specs = [tf.TensorSpec((3, 7, 6)), tf.TensorSpec((3, 1 if known else None, 4))]

    @tf.function(input_signature=specs, autograph=False)
    def slopes(x, c):
        with tf.GradientTape() as tape:
            tape.watch(c)
            y = layer([x, c])
        return tape.gradient(y, [c, layer.predictor.kernel.value], dy)

    _, back = support.expected(layer, [x, c], dy)
    for got, want in zip(slopes(x, c), (back.dx_parts[1], back.gradients["kernel"]), strict=True):
        support.close(got, want, atol=support.GRADIENT * np.abs(want).max() + 1e-5)


def test_a_layer_as_norm(kernel, rng):
    norm = kn.GroupNormalization(2, epsilon=1e-5, center=False, scale=False)
    support.check(Adaptive(norm), [X, VECTORS], kernel, "eager", training=True)
    x, c = rng.normal(3, 1, X).astype("float32"), rng.normal(size=VECTORS).astype("float32")
    theirs = Adaptive(keras.layers.LayerNormalization(epsilon=1e-5))
    ours = Adaptive("layer", epsilon=1e-5)
    for layer in (theirs, ours):
        layer.build([X, VECTORS])
    for name in ("kernel", "bias"):
        getattr(theirs, name).assign(getattr(ours, name))
    support.close(theirs([x, c]), ours([x, c]).numpy().astype("float64"), atol=2e-5)


@pytest.mark.parametrize("built", [False, True])
def test_config_with_layers_inside(built):
    predictor = keras.Sequential([keras.layers.Dense(5, "relu"), keras.layers.Dense(8)])
    norm = kn.BatchNormalization(momentum=0.5, gamma_regularizer=keras.regularizers.L2(0.1))
    layer = Adaptive(norm, predictor, unit_offset=False, activation="silu", name="a")
    if built:
        layer.build([X, (None, 7)])
        assert len(layer.weights) == 8
    config = json.loads(json.dumps(layer.get_config()))
    again = Adaptive.from_config(config)
    # A Sequential model that is built knows its input's shape, and says so.
    assert again.get_config()["norm"] == config["norm"]
    assert type(again.norm) is kn.BatchNormalization and again.norm.momentum == 0.5
    assert [type(part).__name__ for part in again.predictor.layers] == ["Dense", "Dense"]
    assert (again.unit_offset, again.gate) == (False, False)
    again.build([X, (None, 7)])
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights] or not built
    # The serialized configuration itself is an argument, too.
    third = Adaptive(config["norm"], config["predictor"])
    assert third.norm.get_config() == norm.get_config()


ARGUMENTS = {
    "dense": {
        **{"norm": "rms", "gate": True, "unit_offset": False, "predictor_activation": "silu"},
        **{"kernel_initializer": "random_normal", "bias_constraint": "non_neg"},
    },
    "embedding": {"norm": "batch", "classes": 4, "gamma_regularizer": "l2", "axis": 1},
    "conv": {"norm": None, "hidden": None, "kernel_size": 2, "bias_initializer": "ones"},
    "statistics": {"norm": None, "epsilon": 1e-5},
}


@pytest.mark.parametrize("predictor", ARGUMENTS)
def test_config_holds_the_predictors_arguments(predictor):
    layer = Adaptive(predictor=predictor, **ARGUMENTS[predictor])
    config = json.loads(json.dumps(layer.get_config()))
    assert set(ARGUMENTS[predictor]) <= set(config)
    again = Adaptive.from_config(config)
    assert again.get_config() == layer.get_config()


def test_arguments_of_the_weights(rng):
    """Of both convolutions; a seed does not make them alike."""
    layer = Adaptive(
        *("instance", "conv"),
        hidden=6,
        kernel_initializer=keras.initializers.RandomNormal(seed=3),
        kernel_regularizer=keras.regularizers.L2(0.5),
        bias_initializer=keras.initializers.Constant(2.0),
        kernel_constraint=keras.constraints.MaxNorm(1.0),
    )
    layer.build([(None, 5, 6), (None, 5, 6)])
    shapes = {"hidden_kernel": (3, 6, 6), "hidden_bias": (6,), "kernel": (3, 6, 12), "bias": (12,)}
    assert {w.name: tuple(w.shape) for w in layer.weights} == shapes
    np.testing.assert_array_equal(layer.hidden_bias, np.full(6, 2.0))
    assert isinstance(layer.hidden_kernel.constraint, keras.constraints.MaxNorm)
    kernels = [layer.hidden_kernel.numpy(), layer.kernel.numpy()]
    losses = sorted(0.5 * np.square(k).sum() for k in kernels)
    np.testing.assert_allclose(sorted(float(v) for v in layer.losses), losses, rtol=1e-5)
    layer = Adaptive("batch", "embedding", classes=3, gamma_initializer="zeros")
    layer.build([(None, 5, 6), (None,)])
    shapes = dict.fromkeys(("gamma", "beta"), (3, 6))
    shapes |= dict.fromkeys(("moving_mean", "moving_variance"), (6,))
    assert {w.name: tuple(w.shape) for w in layer.weights} == shapes
    np.testing.assert_array_equal(layer.gamma, np.zeros((3, 6)))


# Types, layouts, open sizes.

FORMS = {
    "dense": ({"gate": True}, VECTORS),
    "embedding": ({"predictor": "embedding", "classes": 3}, None),
    "conv": ({"predictor": "conv", "hidden": 3}, (5, 2, 3, 7)),
    "statistics": ({"predictor": "statistics", "epsilon": 1e-5}, (5, 2, 3, 4)),
    "layer": ({"predictor": "Dense"}, (5, 3, 2, 7)),
}


def formed(name, dtype="float32", **more):
    """A layer of that predictor, built, and the shape of its condition."""
    arguments, shape = FORMS[name]
    if name == "layer":
        arguments = {"predictor": keras.layers.Dense(8, dtype="float32")}
    layer = Adaptive(**{"norm": "instance", **arguments, "dtype": dtype, **more})
    support.built(layer, [X, shape or (5,)])
    return layer, shape


def condition(rng, shape, dtype="float32"):
    if shape is None:
        return np.array([2, 0, 1, 1, 0], "int32")
    return rng.normal(1, 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", FORMS)
def test_mixed_precision_rounds_once(name, dtype, kernel, rng):
    layer, shape = formed(name, f"mixed_{dtype}")
    assert all(weight.dtype == "float32" for weight in layer.weights)
    for given in ("float32", dtype):
        x, c = rng.normal(3, 1, X).astype(given), condition(rng, shape, given)
        want = reference_adaptive.adaptive_normalization(
            [x, c], support.weights_of(layer), layer.get_config(), True
        )
        pairs = layer([x, c], training=True), want
        for part, value in zip(*map(tf.nest.flatten, pairs), strict=True):
            assert part.dtype == dtype
            atol = support.FORWARD[kernel] * np.abs(value).max()
            support.close(part, value, atol=atol, rtol=support.ROUNDING[dtype])


OPEN = [*((name, False) for name in FORMS), ("dense", True), ("conv", True), ("embedding", True)]


@pytest.mark.parametrize("name, jit", OPEN)
def test_open_sizes(name, jit, kernel, rng):
    """One function for all batches and spaces, forward and backward; also an empty batch."""
    layer, shape = formed(name)
    spec = tf.TensorSpec([None, None, None, 4])
    other = tf.TensorSpec([None], "int32")
    if shape is not None:
        other = tf.TensorSpec([*[None] * (len(shape) - 1), shape[-1]])

    @tf.function(input_signature=[spec, other], autograph=False, jit_compile=jit)
    def step(x, c):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer([x, c], training=True)
        sources = [x, *(w.value for w in layer.trainable_weights)]
        slopes = tape.gradient(y, sources)
        return y, [tf.convert_to_tensor(slope) for slope in slopes]

    for size in (5, 0):
        x, c = rng.normal(3, 1, X).astype("float32")[:size], condition(rng, shape)[:size]
        y, (dx, *slopes) = step(x, c)
        y = y if isinstance(y, list | tuple) else (y,)
        assert y[0].shape == dx.shape == x.shape
        if not size:
            assert all(np.abs(slope).max() == 0 for slope in slopes)
            continue
        want, back = support.expected(
            layer, [x, c], tuple(np.ones(v.shape) for v in y) if layer.gate else np.ones(x.shape)
        )
        want = want.y if layer.gate else (want.y,)
        for part, value in zip(y, want, strict=True):
            support.close(part, value, atol=support.FORWARD[kernel] * np.abs(value).max())
        terms = back.scale * np.ones(())
        for weight, slope in zip(layer.trainable_weights, slopes, strict=True):
            value = back.gradients[weight.name]
            atol = support.gradient_bound(value, terms + back.terms.get(weight.name, 0))
            support.close(slope, value, atol=atol, what=weight.name)


@pytest.mark.parametrize("name", FORMS)
def test_channels_first_is_a_transposition(name, kernel, rng):
    last, shape = formed(name)
    maps = shape is not None and len(shape) == 4 and name != "layer"
    first = Adaptive.from_config({**last.get_config(), "axis": 1})
    c = condition(rng, shape)
    moved = np.moveaxis(c, -1, 1) if maps else c
    first.build([NCHW, moved.shape])
    for ours, theirs in zip(first.weights, last.weights, strict=True):
        ours.assign(theirs)
    x = rng.normal(3, 1, X).astype("float32")
    pairs = first([np.moveaxis(x, -1, 1), moved]), last([x, c])
    for got, want in zip(*map(tf.nest.flatten, pairs), strict=True):
        want = np.moveaxis(want, -1, 1).astype("float64")
        support.close(got, want, atol=2 * support.FORWARD[kernel] * np.abs(want).max())


def test_nearest_is_floor(rng):
    """Element i is that at floor(i * old / new), whether sizes are known or not."""
    x = np.ones((1, 12, 1), "float32")
    layer = Adaptive(None, "conv", hidden=None, kernel_size=1, kernel_initializer="ones")
    for old in range(1, 26):
        c = np.arange(old, dtype="float32")[None, :, None]
        want = 1 + 2 * np.floor(np.arange(12) * old / 12)
        got = layer([x, c])
        np.testing.assert_array_equal(got[0, :, 0], want)
    spec = [tf.TensorSpec((None, None, 1))] * 2
    open_sizes = tf.function(lambda *x: layer(list(x)), spec)
    np.testing.assert_array_equal(open_sizes(x, c), got)


# Training, inference and masks.


def test_moving_statistics_of_the_norm(kernel, rng):
    layer = Adaptive("batch", "embedding", classes=3)
    support.built(layer, [X, (5,)])
    x, labels = rng.normal(3, 2, X).astype("float32"), np.array([0, 2, 2, 1, 0])
    assert layer.inner.momentum == 0.99 and layer.inner.moving_mean.dtype == "float32"
    before = support.weights_of(layer)
    layer([x, labels])
    np.testing.assert_array_equal(layer.inner.moving_mean, before["moving_mean"])
    layer([x, labels], training=True)
    mean = x.mean((0, 1, 2), dtype="float64")
    support.close(layer.inner.moving_mean, 0.01 * mean, atol=1e-7)
    for training in (False, True):
        want, _ = support.expected(layer, [x, labels], np.zeros(X), training=training)
        got = layer([x, labels], training=training)
        atol = support.FORWARD[kernel] * np.abs(want.y).max()
        support.close(got, want.y, atol=atol)
    for frozen in (layer, Adaptive.from_config({**layer.get_config(), "trainable": False})):
        frozen.trainable = False
        if not frozen.built:
            frozen.build([X, (5,)])
        start = support.weights_of(frozen)
        frozen([x, labels], training=True)
        np.testing.assert_array_equal(frozen.inner.moving_mean, start["moving_mean"])


def test_recomputed_statistics(rng):
    inputs = [keras.Input(X[1:]), keras.Input((7,))]
    layer = Adaptive("batch")
    model = keras.Model(inputs, layer(inputs))
    x, c = rng.normal(3, 2, X).astype("float32"), rng.normal(size=VECTORS).astype("float32")
    assert kn.recompute_statistics(model, [([x, c], None)], verbose=0) == [layer.inner.path]
    support.close(layer.inner.moving_variance, x.var((0, 1, 2), dtype="float64"), atol=1e-5)


def test_masks(rng):
    """That of x is the norm's; where c's is False a map counts as 0, or not at all."""
    x, c = rng.normal(3, 1, (2, 5, 7, 6)).astype("float32")
    masks = [tf.constant(rng.random((5, 7)) < 0.6) for _ in range(2)]
    kept = masks[1].numpy()[..., None]
    layer = support.built(Adaptive("instance", "conv", hidden=2), [x.shape] * 2)
    got = layer([x, c], mask=masks)
    want = layer([x, np.where(kept, c, 0)], mask=masks[0])  # of x alone
    np.testing.assert_array_equal(got, want)
    assert np.abs(got - layer([x, c], mask=[masks[0], None])).max() > 0.1
    assert np.abs(got - layer([x, c], mask=[None, masks[1]])).max() > 0.1
    layer = Adaptive("instance", "statistics")
    got = layer([x, c], mask=[None, masks[1]])
    for sample in range(5):
        alone = [x[sample : sample + 1], c[sample][kept[sample, :, 0]][None]]
        want = layer(alone).numpy().astype("float64")
        support.close(got[sample : sample + 1], want, atol=1e-4)


def test_first_mask_is_passed_on(rng):
    x, c = tf.constant(rng.normal(size=(5, 7, 6))), tf.constant(rng.normal(size=(5, 4)))
    x._keras_mask = mask = tf.constant(rng.random((5, 7)) < 0.5)
    assert Adaptive("instance")([x, c])._keras_mask is mask
    y, gate = Adaptive("layer", gate=True)([x, c])
    assert y._keras_mask is mask and getattr(gate, "_keras_mask", None) is None
    got = Adaptive("instance", "embedding", classes=1)([x, np.zeros(5, "int32")])
    want = kn.InstanceNormalization()(x, mask=mask).numpy().astype("float64")
    support.close(got, want, atol=1e-5)


# Saving, and a model.


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.weights.h5", "saved"])
@pytest.mark.parametrize("form", FORMS)
def test_saved_and_restored(form, name, tmp_path, rng):
    def network(layer):
        c = keras.Input((), dtype="int32") if shape is None else keras.Input(shape[1:])
        inputs = [keras.Input(X[1:]), c]
        return keras.Model(inputs, layer(inputs))

    norm = kn.GroupNormalization(2) if form == "layer" else "batch"
    layer, shape = formed(form, norm=norm)
    model = network(layer)
    for weight in layer.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    x = [rng.normal(size=X).astype("float32"), condition(rng, shape)]
    want, path = tf.nest.flatten(model(x)), tmp_path / name
    if name == "saved":
        kn.export(model, path)
        loaded = tf.saved_model.load(path)
        got = loaded.serve(support.tensors(x))
        for part, value in zip(tf.nest.flatten(got), want, strict=True):
            support.close(part, value.numpy().astype("float64"), atol=1e-5 * np.abs(value).max())
        return
    if name == "model.weights.h5":
        model.save_weights(path)
        again = network(Adaptive.from_config(layer.get_config()))
        again.load_weights(path)
    else:
        model.save(path)
        again = keras.saving.load_model(path)
    for part, value in zip(tf.nest.flatten(again(x)), want, strict=True):
        np.testing.assert_array_equal(part, value)


@pytest.mark.parametrize("jit", [False, True])
def test_dit_block_trains(jit, kernel, rng):
    """At the start the block is the identity; the first step moves the gates alone."""
    keras.utils.set_random_seed(4)
    x, c = keras.Input((9, 8)), keras.Input((5,))
    arguments = {"epsilon": 1e-6, "gate": True, "predictor_activation": "silu"}
    first, second = Adaptive("layer", **arguments), Adaptive("rms", **arguments)
    y, gate = first([x, c])
    h = x + gate * keras.layers.MultiHeadAttention(2, 4)(y, y)
    y, gate = second([h, c])
    h = h + gate * keras.layers.Dense(8)(keras.layers.Dense(16, "gelu")(y))
    model = keras.Model([x, c], h)
    data = [rng.normal(size=(6, 9, 8)).astype("float32"), rng.normal(size=(6, 5))]
    np.testing.assert_array_equal(model(data), data[0])
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=jit)
    target = rng.normal(size=(6, 9, 8)).astype("float32")
    losses = [model.train_on_batch(data, target)]
    for layer in (first, second):
        scale, shift, gate = np.split(layer.kernel.numpy(), 3, -1)
        assert np.abs(scale).max() == np.abs(shift).max() == 0 < np.abs(gate).max()
    losses += [model.train_on_batch(data, target) for _ in range(2)]
    assert losses[2] < losses[1] < losses[0]
    assert np.abs(first.kernel[:, :16]).max() > 0


# Errors.

DENSE = "unit_offset, gate, predictor_activation, kernel_initializer"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"norm": "power"}, "`norm` must be of ('layer', 'instance', 'batch', 'group', 'rms'), a "
         "Keras layer or None. Received: norm='power'."),
        ({"predictor": "linear"}, "`predictor` must be of ('dense', 'embedding', 'conv', "
         "'statistics'), or a Keras layer. Received: predictor='linear'."),
        ({"epsilon": -1.0}, "`epsilon` must be at least 0. Received: epsilon=-1.0."),
        ({"norm": None, "epsilon": 0.1}, "`epsilon` is for a norm named by a string, or for the "
         'predictor "statistics". Received: epsilon=0.1, norm=None.'),
        ({"predictor": "statistics", "gate": True, "hidden": 2}, "This `predictor` takes no "
         "arguments of its own. Received: gate=True, hidden=2."),
        ({"predictor": "embedding", "classes": 2, "unit_offset": False}, "This `predictor` takes "
         "classes, gamma_initializer, gamma_regularizer, gamma_constraint, beta_initializer, "
         "beta_regularizer, beta_constraint. Received: unit_offset=False."),
        ({"predictor": "embedding"}, "`classes` must be a positive int. Received: classes=None."),
        ({"predictor": "conv", "hidden": 0}, "`hidden` must be a positive int or None. "
         "Received: hidden=0."),
        ({"predictor": "conv", "kernel_size": 1.5}, "`kernel_size` must be a positive int. "
         "Received: kernel_size=1.5."),
    ],
)  # fmt: skip
def test_errors_of_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        Adaptive(**arguments)
    assert str(error.value) == message


def test_arguments_of_another_predictor_are_refused():
    with pytest.raises(ValueError, match=rf"takes {DENSE}.*Received: classes=None\.$"):
        Adaptive(classes=None)
    with pytest.raises(ValueError, match="kernel_initializer='ones'"):
        Adaptive(predictor=keras.layers.Dense(4), kernel_initializer="ones")
    with pytest.raises(ValueError, match="Unrecognized keyword arguments"):
        Adaptive(filters=3)
    with pytest.raises(TypeError, match="`epsilon` must be a number"):
        Adaptive(epsilon="x")


PAIR = (
    "`inputs` must be the list [x, condition], two tensors of one batch: layer([x, condition]). "
    "Received: shapes="
)
CONDITION = "The condition, the second input, must be "


@pytest.mark.parametrize(
    "arguments, shapes, message",
    [
        ({}, [(5, 7, 6)], f"{PAIR}[(5, 7, 6)]."),
        ({}, [(5, 7, 6), (4, 3)], f"{PAIR}[(5, 7, 6), (4, 3)]."),
        ({}, [(5, 7, 6), (5, 3, 1)], f"{CONDITION}shaped (batch, features), their number known. "
         "Received: shapes=[(5, 7, 6), (5, 3, 1)]."),
        ({}, [(5, 7, 6), (5, None)], f"{CONDITION}shaped (batch, features), their number known. "
         "Received: shapes=[(5, 7, 6), (5, None)]."),
        ({"predictor": "embedding", "classes": 2}, [(5, 7, 6), (5, 2)],
         f"{CONDITION}labels shaped (batch,) or (batch, 1). "
         "Received: shapes=[(5, 7, 6), (5, 2)]."),
        ({"predictor": "conv"}, [(5, 7, 6), (5, 6)], f"{CONDITION}a map of x's rank, which is 3, 4 "
         "or 5, of known channels. Received: shapes=[(5, 7, 6), (5, 6)]."),
        ({"predictor": "conv"}, [(5, 7), (5, 6)], f"{CONDITION}a map of x's rank, which is 3, 4 "
         "or 5, of known channels. Received: shapes=[(5, 7), (5, 6)]."),
        ({"predictor": "statistics"}, [(5, 7, 6), (5, 7, 3)], f"{CONDITION}a map with as many "
         "channels as x, of rank 3 or more. Received: shapes=[(5, 7, 6), (5, 7, 3)]."),
        ({"predictor": "statistics"}, [(5, 7, 6), (5, 6)], f"{CONDITION}a map with as many "
         "channels as x, of rank 3 or more. Received: shapes=[(5, 7, 6), (5, 6)]."),
    ],
)  # fmt: skip
def test_errors_of_shapes(arguments, shapes, message):
    with pytest.raises(ValueError) as error:
        Adaptive(**arguments).build(shapes)
    assert str(error.value) == message


def test_errors_of_a_call(rng):
    x, c = np.zeros((5, 7, 6), "float32"), np.zeros((5, 4), "float32")
    layer = Adaptive()
    layer([x, c])
    for bad in ([x[:4], c], [x[..., :5], c], [x, c[:, :3]], [x], x):
        with pytest.raises(ValueError):
            layer(bad)
    with pytest.raises(ValueError, match="Axis 0 holds the samples"):
        Adaptive(axis=0)([x, c])
    with pytest.raises(ValueError, match="out of bounds"):
        Adaptive(axis=3)([x, c])
    with pytest.raises(TypeError, match="`axis` must be an int"):
        Adaptive(axis=[1, 2])([x, c])
    with pytest.raises(ValueError, match=r"must give 2 numbers per channel.*shape=\(5, 11\)"):
        Adaptive(predictor=keras.layers.Dense(11))([x, c])
    with pytest.raises(ValueError, match=r"must give 3 numbers per channel.*shape=\(5, 12\)"):
        Adaptive(predictor=keras.layers.Dense(12), gate=True)([x, c])
    with pytest.raises(ValueError, match=r"for each position of x .*shape=\(5, 3, 12\)"):
        Adaptive(predictor=keras.layers.Dense(12))([x, np.zeros((5, 3, 4), "float32")])


# Beside PyTorch: the modules that the papers' code is made of.


def torch_recipes(torch):
    """By name: our layer, c's shape, and their y of x and c with our weights, as tensors."""
    functional = torch.nn.functional

    def channels(part):
        return part[:, :, None, None]

    def film(x, c, w):
        gamma, beta = functional.linear(c, w["kernel"].T, w["bias"]).chunk(2, 1)
        return functional.instance_norm(x, eps=1e-5) * (1 + channels(gamma)) + channels(beta)

    def adaln(x, c, w):
        found = functional.linear(functional.silu(c), w["kernel"].T, w["bias"])
        scale, shift, gate = (part.unsqueeze(1) for part in found.chunk(3, 1))
        y = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        return y + gate  # both outputs in one

    def conditional(x, c, w):
        gamma, beta = (functional.embedding(c, w[name]) for name in ("gamma", "beta"))
        y = functional.batch_norm(x, None, None, training=True, eps=1e-5)
        return channels(gamma) * y + channels(beta)

    def spade(x, c, w):
        def conv(c, kernel, bias):
            return functional.conv2d(c, kernel.permute(3, 2, 0, 1), bias, padding=1)

        c = functional.interpolate(c, size=x.shape[2:], mode="nearest")
        c = functional.relu(conv(c, w["hidden_kernel"], w["hidden_bias"]))
        gamma, beta = conv(c, w["kernel"], w["bias"]).chunk(2, 1)
        y = functional.batch_norm(x, None, None, training=True, eps=1e-5)
        return y * (1 + gamma) + beta

    def adain(x, c, w):
        flat = c.flatten(2)
        std = torch.sqrt(flat.var(2, unbiased=False) + 1e-5)
        y = functional.instance_norm(x, eps=1e-5)
        return y * channels(std) + channels(flat.mean(2))

    first, image = {"axis": 1, "epsilon": 1e-5}, (4, 6, 7, 3)
    return {
        "film": (Adaptive("instance", **first), image, (4, 5), film),
        "adaln": (Adaptive(**ADALN, gate=True), (4, 11, 6), (4, 5), adaln),
        "conditional": (
            *(Adaptive("batch", "embedding", classes=3, **first), image, None),
            conditional,
        ),
        "spade": (Adaptive("batch", "conv", hidden=8, **first), image, (4, 2, 4, 2), spade),
        "adain": (Adaptive("instance", "statistics", **first), image, (4, 6, 5, 8), adain),
    }


@pytest.mark.parametrize("name", ["film", "adaln", "conditional", "spade", "adain"])
def test_torch_parity(name, kernel, rng):
    torch = pytest.importorskip("torch", reason="torch is missing: `make test-torch` installs it")
    ours, x_shape, c_shape, theirs = torch_recipes(torch)[name]
    support.built(ours, [x_shape, c_shape or (4,)])
    x, dy = rng.normal(1, 1, (2, *x_shape)).astype("float32")
    c = np.array([2, 0, 2, 1]) if c_shape is None else rng.normal(size=c_shape).astype("float32")
    weights = [torch.tensor(w.numpy(), requires_grad=True) for w in ours.trainable_weights]
    names = [w.name for w in ours.trainable_weights]
    given = torch.tensor(x, requires_grad=True)
    condition = torch.tensor(c, requires_grad=c_shape is not None)
    want = theirs(given, condition, dict(zip(names, weights, strict=True)))
    want.backward(torch.tensor(dy))
    with tf.GradientTape() as tape:
        inputs = [tf.constant(x), tf.constant(c)]
        tape.watch(inputs[: 1 if c_shape is None else 2])
        y = ours(inputs, training=True)
        y = y[0] + y[1] if ours.gate else y
    sources = [*inputs[: 1 if c_shape is None else 2], *(w.value for w in ours.trainable_weights)]
    slopes = tape.gradient(y, sources, tf.constant(dy))
    leaves = [given, *([] if c_shape is None else [condition]), *weights]
    pairs = [(y, want.detach()), *zip(slopes, (leaf.grad for leaf in leaves), strict=True)]
    for got, value in pairs:
        value = value.numpy().astype("float64")
        # Each is within its bound of the exact result.
        support.close(tf.convert_to_tensor(got), value, atol=3e-5 * np.abs(value).max())
