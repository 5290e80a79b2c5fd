"""What the wrappers share: kinds of layers, gradients, nothing assigned, state, files, errors.

The axes that number the outputs are written down here, for each kind of layer, and the kernels are
computed by `reference_kernels.py`. A plain layer that is given them says what must come out, and
what the gradient of a kernel is that the chain rule goes on from.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import reference_kernels as reference
import support
import tensorflow as tf
from keras import layers as L

import keras_norms as kn


class Norm(NamedTuple):
    """A wrapper; its own weights by attribute; its kernel and gradients as matrices."""

    wrap: Callable[..., keras.Layer]
    own: tuple[str, ...]
    kernel: Callable[..., Any]
    gradients: Callable[..., Any]


NORMS = {
    "weight": Norm(
        kn.WeightNormalization,
        ("gains",),
        reference.weight_norm,
        reference.weight_norm_gradients,
    ),
    "standard": Norm(
        lambda layer: kn.WeightStandardization(layer, epsilon=1e-3),
        (),
        lambda v: reference.standardized(v, 1e-3),
        lambda dw, v: reference.standardized_gradients(dw, v, 1e-3),
    ),
    "scaled": Norm(
        lambda layer: kn.WeightStandardization(layer, scaled=True, gamma=1.7),
        ("gains",),
        lambda v, gain: reference.standardized(v, 1e-6, gain, 1.7),
        lambda dw, v, gain: reference.standardized_gradients(dw, v, 1e-6, gain, 1.7),
    ),
    "spectral": Norm(
        lambda layer: kn.SpectralNormalization(layer, reparam=True),
        ("vectors_u", "vectors_v"),
        reference.spectral,
        reference.spectral_gradients,
    ),
}


class Kind(NamedTuple):
    """A layer, the shape of its input, and by the end of a weight's path its axes of outputs."""

    make: Callable[..., keras.Layer]
    shape: tuple[int, ...]
    axes: dict[str, tuple[int, ...]]


def einsum(equation, output_shape, bias_axes):
    return lambda: L.EinsumDense(equation, output_shape, bias_axes=bias_axes)


def attention():
    layer = L.MultiHeadAttention(2, 3)  # its build takes more than a wrapper has
    layer.build((None, 5, 7), (None, 5, 7))
    return layer


def attentive(layer):
    """Its query is its value, too."""
    return lambda x: layer(x, x)


RECURRENT = {"kernel": (1,), "recurrent_kernel": (1,)}
KINDS = {
    "Dense": Kind(lambda: L.Dense(5, "tanh"), (3, 4, 7), {"kernel": (1,)}),
    "EinsumDense, heads": Kind(
        einsum("abc,cde->abde", (None, 3, 5), "de"), (2, 4, 7), {"kernel": (1, 2)}
    ),
    # b is of the input, the kernel and the output: a kernel for each.
    "EinsumDense, shared": Kind(
        einsum("abc,bcd->abd", (4, 5), "bd"), (2, 4, 7), {"kernel": (0, 2)}
    ),
    "EinsumDense, dots": Kind(einsum("...x,yx->...y", 5, "y"), (2, 3, 4, 7), {"kernel": (0,)}),
    "EinsumDense, first": Kind(einsum("abc,dc->adb", (5, None), "d"), (2, 4, 7), {"kernel": (0,)}),
    "EinsumDense, sum": Kind(
        einsum("abcd,cde->abe", (None, 5), "e"), (2, 4, 3, 7), {"kernel": (2,)}
    ),
    "EinsumDense, swapped": Kind(einsum("ab,cdb->adc", (3, 5), "dc"), (2, 7), {"kernel": (0, 1)}),
    "Conv1D": Kind(lambda: L.Conv1D(5, 3, padding="same"), (2, 6, 4), {"kernel": (2,)}),
    "Conv2D": Kind(
        lambda: L.Conv2D(6, (3, 2), strides=2, activation="elu"),
        (2, 7, 5, 4),
        {"kernel": (3,)},
    ),
    "Conv2D, groups": Kind(lambda: L.Conv2D(6, (3, 2), groups=2), (2, 7, 5, 4), {"kernel": (3,)}),
    "Conv2D, first": Kind(  # float32 only, on a CPU
        lambda: L.Conv2D(6, (3, 2), data_format="channels_first"), (2, 4, 7, 5), {"kernel": (3,)}
    ),
    "Conv3D": Kind(lambda: L.Conv3D(5, (3, 2, 2)), (2, 4, 3, 5, 2), {"kernel": (4,)}),
    "DepthwiseConv1D": Kind(
        lambda: L.DepthwiseConv1D(3, depth_multiplier=2), (2, 7, 5), {"kernel": (1, 2)}
    ),
    "DepthwiseConv2D": Kind(
        lambda: L.DepthwiseConv2D((3, 2), depth_multiplier=2),
        (2, 7, 4, 5),
        {"kernel": (2, 3)},
    ),
    "SeparableConv1D": Kind(
        lambda: L.SeparableConv1D(7, 3, depth_multiplier=2),
        (2, 6, 5),
        {"depthwise_kernel": (1, 2), "pointwise_kernel": (2,)},
    ),
    "SeparableConv2D": Kind(
        lambda: L.SeparableConv2D(7, (3, 2), depth_multiplier=2),
        (2, 6, 4, 5),
        {"depthwise_kernel": (2, 3), "pointwise_kernel": (3,)},
    ),
    "Conv1DTranspose": Kind(
        lambda: L.Conv1DTranspose(5, 3, strides=2), (2, 6, 4), {"kernel": (1,)}
    ),
    "Conv2DTranspose": Kind(
        lambda: L.Conv2DTranspose(6, (3, 2), activation="elu"),
        (2, 4, 3, 5),
        {"kernel": (2,)},
    ),
    "Conv3DTranspose": Kind(
        lambda: L.Conv3DTranspose(5, (3, 2, 2)), (2, 3, 2, 4, 3), {"kernel": (3,)}
    ),
    "Embedding": Kind(lambda: L.Embedding(11, 5), (3, 4), {"embeddings": (0,)}),
    "SimpleRNN": Kind(lambda: L.SimpleRNN(5), (2, 4, 3), RECURRENT),
    "GRU": Kind(lambda: L.GRU(5, return_sequences=True), (2, 4, 3), RECURRENT),
    "LSTM": Kind(lambda: L.LSTM(5, return_state=True), (2, 4, 3), RECURRENT),
    "RNN of LSTMCell": Kind(lambda: L.RNN(L.LSTMCell(5), unroll=True), (2, 4, 3), RECURRENT),
    "RNN of cells": Kind(lambda: L.RNN([L.LSTMCell(5), L.GRUCell(7)]), (2, 3, 3), RECURRENT),
    "ConvLSTM2D": Kind(
        lambda: L.ConvLSTM2D(3, (3, 2)),
        (2, 2, 4, 5, 2),
        {"kernel": (3,), "recurrent_kernel": (3,)},
    ),
    "Bidirectional": Kind(lambda: L.Bidirectional(L.GRU(5)), (2, 4, 3), RECURRENT),
    "TimeDistributed": Kind(
        lambda: L.TimeDistributed(L.Conv1D(5, 3)), (2, 2, 6, 4), {"kernel": (2,)}
    ),
    "MultiHeadAttention": Kind(
        attention,
        (2, 5, 7),
        {
            **{f"{name}/kernel": (1, 2) for name in ("query", "key", "value")},
            "attention_output/kernel": (2,),
        },
    ),
    "Sequential": Kind(
        lambda: keras.Sequential(
            [L.Conv1D(5, 3, name="a"), L.ReLU(), L.Conv1DTranspose(4, 2, name="b")]
        ),
        (2, 6, 3),
        {"a/kernel": (2,), "b/kernel": (1,)},
    ),
}


def of(name, dtype="float32", seed=3):
    """A layer of the kind, and an input."""
    keras.utils.set_random_seed(seed)
    kind, draw = KINDS[name], np.random.default_rng(seed)
    x = draw.normal(size=kind.shape)
    x = draw.integers(0, 11, kind.shape) if name == "Embedding" else x.astype(bare(dtype))
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)  # also of what is made inside
    try:
        return kind.make(), x
    finally:
        keras.config.set_dtype_policy(policy)


def bare(dtype):
    return dtype.removeprefix("mixed_") if dtype.startswith("mixed") else dtype


def called(layer, name):
    return attentive(layer) if name == "MultiHeadAttention" else layer


def randomized(layer, seed=5):
    draw = np.random.default_rng(seed)
    for weight in layer.weights:
        if weight.name != "initialized":
            value = draw.choice([-1, 1], weight.shape) * draw.uniform(0.5, 2, weight.shape)
            weight.assign(value)
    return layer


class Computed(NamedTuple):
    """The k-th kernel of a wrapper: where it is, and its matrix."""

    at: int  # in the weights of the layer
    axes: tuple[int, ...]
    v: np.ndarray
    own: list[np.ndarray]
    w: np.ndarray


def axes_of(weight, table):
    for end, axes in table.items():
        if f"/{weight.path}".endswith(f"/{end}"):
            return axes
    return None


def array(variable):
    return np.asarray(variable.numpy(), "float64")


def kernels(wrapper, norm, table):
    """All that are computed, in the order of the layer's weights; axes are by the table."""
    found = []
    for at, weight in enumerate(wrapper.layer.weights):
        axes = axes_of(weight, table)
        if axes is None:
            continue
        own = [array(getattr(wrapper, part)[len(found)]) for part in norm.own]
        if getattr(wrapper, "g_offset", None) is not None:
            own[0] = own[0] + array(wrapper.g_offset)
        v = reference.columns(array(weight), axes)
        found.append(Computed(at, axes, v, own, norm.kernel(v, *own)))
    assert len(found) == len(wrapper.kernels) >= 1
    return found


def give(plain, wrapper, norm, table):
    """Gives a plain layer the computed kernels, and all else as it is in the wrapped one."""
    values = [weight.numpy() for weight in wrapper.layer.weights]
    found = kernels(wrapper, norm, table)
    for one in found:
        values[one.at] = reference.from_columns(one.w, values[one.at].shape, one.axes)
    if getattr(wrapper, "bias_offset", None) is not None:
        (bias,) = [i for i, w in enumerate(wrapper.layer.weights) if w.name == "bias"]
        values[bias] = values[bias] + wrapper.bias_offset.numpy()
    plain.set_weights(values)
    return found


def pair(name, norm, dtype="float32"):
    """A wrapper with random weights, the plain layer with its kernels, those, and an input."""
    layer, x = of(name, dtype)
    wrapper = norm.wrap(layer)
    called(wrapper, name)(x)
    randomized(wrapper)
    plain, _ = of(name, dtype)
    called(plain, name)(x)
    return wrapper, plain, give(plain, wrapper, norm, KINDS[name].axes), x


def gradients(call, variables, x, slopes):
    """The result, nested as it is but as arrays, dx and the variables' gradients."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = call(x)
        parts = tf.nest.flatten(y)
        loss = tf.add_n(
            [tf.reduce_sum(tf.cast(p, d.dtype) * d) for p, d in zip(parts, slopes, strict=True)]
        )
    sources = [variable.value for variable in variables]
    if x.dtype.is_floating:
        dx, *rest = tape.gradient(loss, [x, *sources])
    else:
        dx, rest = None, tape.gradient(loss, sources)
    return parts, dx, [tf.convert_to_tensor(g) for g in rest]


def wide_enough(y):
    return tf.cast(y, tf.float64 if y.dtype == tf.float64 else tf.float32)


def compare(wrapper, plain, found, norm, name, x, atol, mode="eager"):
    """Outputs and all gradients, against the plain layer and the chain rule."""
    draw = np.random.default_rng(9)
    outputs = tf.nest.flatten(called(plain, name)(x))
    slopes = [tf.constant(draw.normal(size=y.shape), wide_enough(y).dtype) for y in outputs]
    own = [getattr(wrapper, part) for part in norm.own if part == "gains"]
    trained = [*wrapper.layer.trainable_weights, *(own[0] if own else [])]

    def step(x):
        return gradients(called(wrapper, name), trained, x, slopes)

    y, dx, got = support.arrays(support.compiled(step, mode)(tf.constant(x)))
    want_y, want_dx, dw = gradients(called(plain, name), plain.trainable_weights, x, slopes)
    dw = [np.asarray(one, "float64") for one in dw]
    wanted = list(dw)
    for one in found:
        at = [w is wrapper.layer.weights[one.at] for w in wrapper.layer.trainable_weights].index(
            True
        )
        shape = dw[at].shape
        dv, *rest = norm.gradients(reference.columns(dw[at], one.axes), one.v, *one.own)
        wanted[at] = reference.from_columns(dv, shape, one.axes)
        wanted += rest[: len(own)]
    pairs = [*zip(y, want_y, strict=True), *zip(got, wanted, strict=True)]
    if want_dx is not None:
        pairs.append((dx, want_dx))
    # The bias of an attention's keys has a gradient of 0: what is left there is rounding.
    least = 1e-4 * max(np.abs(want_one).max() for _, want_one in pairs)
    for got_one, want_one in pairs:
        want_one = np.asarray(want_one, "float64")
        size = max(np.abs(want_one).max(), least)
        support.close(got_one, want_one, atol=atol * size, what=name)


SEVERAL = (
    *("Dense", "EinsumDense, shared", "EinsumDense, swapped", "Conv2D", "DepthwiseConv2D"),
    *("SeparableConv1D", "Conv2DTranspose", "Embedding", "LSTM", "MultiHeadAttention"),
)
CASES = [("weight", name) for name in KINDS if name != "Conv2D, first"]
CASES += [(norm, name) for norm in ("scaled", "spectral") for name in SEVERAL]
CASES += [("standard", name) for name in SEVERAL[3:6]]


def same(got, want, what=""):
    for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(want), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=what)


def near(got, want, atol=2e-6):
    """Float32 results of two computations of one thing."""
    for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(want), strict=True):
        other = np.asarray(other, "float64")
        support.close(one, other, atol=atol * max(1, np.abs(other).max(initial=0)))


def state(layer):
    """Of all variables: those of seeds, too."""
    return [variable.numpy() for variable in layer.variables]


def removed(wrapper, call, x, atol):
    """`remove()` gives a plain layer of its own with the wrapper's results."""
    before, want = state(wrapper), call(wrapper)(x)
    plain = wrapper.remove()
    assert type(plain) is type(wrapper.layer) and plain.name == wrapper.layer.name
    assert not {id(w) for w in plain.variables} & {id(w) for w in wrapper.variables}
    near(call(plain)(x), want, atol)
    for weight in plain.weights:
        weight.assign(np.zeros(weight.shape))
    same(state(wrapper), before)
    same(call(wrapper)(x), want)


# float64 throughout, so what is left is the length's TINY (1e-12 beside lengths of 1) and rounding.
@pytest.mark.parametrize("norm, name", CASES)
def test_each_kind(norm, name):
    """Results, all gradients, and `remove`."""
    norm = NORMS[norm]
    wrapper, plain, found, x = pair(name, norm, "float64")
    compare(wrapper, plain, found, norm, name, x, atol=1e-10)
    removed(wrapper, lambda layer: called(layer, name), x, atol=1e-13)


@pytest.mark.parametrize(
    "norm, name, mode",
    [
        ("weight", "Conv2D, first", "eager"),
        ("weight", "Conv2D", "graph"),
        ("weight", "Conv2D", "xla"),
        ("scaled", "Conv2DTranspose", "xla"),
    ],
)
def test_each_path(norm, name, mode, kernel):
    norm = NORMS[norm]
    wrapper, plain, found, x = pair(name, norm)
    compare(wrapper, plain, found, norm, name, x, atol=2 * support.GRADIENT, mode=mode)


@pytest.mark.parametrize(
    "norm, name, mode", [("spectral", "Dense", "xla"), ("scaled", "LSTM", "xla")]
)
def test_each_portable_path(norm, name, mode):
    norm = NORMS[norm]
    wrapper, plain, found, x = pair(name, norm)
    compare(wrapper, plain, found, norm, name, x, atol=2 * support.GRADIENT, mode=mode)


def test_gradients_of_the_reference(rng):
    """By the complex step."""
    v, dw = rng.normal(size=(2, 7, 5))
    g, (vu, vv) = rng.normal(size=5), (rng.normal(size=5), rng.normal(size=7))
    cases = [
        (reference.weight_norm, reference.weight_norm_gradients, (v, g), 2),
        (reference.standardized, reference.standardized_gradients, (v, 1e-3), 1),
        (reference.standardized, reference.standardized_gradients, (v, 1e-3, g, 1.7), 1),
        (
            lambda gain: reference.standardized(v, 1e-3, gain, 1.7),
            lambda dw, gain: reference.standardized_gradients(dw, v, 1e-3, gain, 1.7)[1:],
            (g,),
            1,
        ),
        (reference.spectral, reference.spectral_gradients, (v, vu, vv), 1),
    ]
    for function, back, arguments, count in cases:
        got = back(dw, *arguments)
        for k in range(count):
            want = np.zeros(arguments[k].shape)
            for at in np.ndindex(want.shape):
                moved = [*arguments]
                moved[k] = arguments[k].astype(complex)
                moved[k][at] += 1e-30j
                want[at] = (dw * function(*moved).imag / 1e-30).sum()
            np.testing.assert_allclose(got[k], want, rtol=1e-12, atol=1e-13)


def test_columns_of_the_reference(rng):
    kernel = rng.normal(size=(2, 3, 4, 5))
    matrix = reference.columns(kernel, (0, 2))
    np.testing.assert_array_equal(matrix[7, 6], kernel[1, 1, 2, 2])  # (1, 2) of 3x5, (1, 2) of 2x4
    np.testing.assert_array_equal(reference.from_columns(matrix, kernel.shape, (0, 2)), kernel)


@pytest.mark.parametrize("mean", [1e2, 1e4])
@pytest.mark.parametrize("norm", ["weight", "standard", "scaled"])
def test_kernels_far_from_zero(norm, mean, kernel, rng):
    """A Dense layer gives its kernel for the unit matrix."""
    norm = NORMS[norm]
    wrapper = norm.wrap(L.Dense(5, use_bias=False))
    wrapper(np.eye(29, dtype="float32"))
    wrapper.layer.kernel.assign(rng.normal(mean, 1, (29, 5)))
    own = [array(getattr(wrapper, part)[0]) for part in norm.own]
    want = norm.kernel(array(wrapper.layer.kernel), *own)
    atol = support.FORWARD[kernel] * np.abs(want).max()
    support.close(wrapper(np.eye(29, dtype="float32")), want, atol=atol)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "norm, name",
    [
        *(("weight", name) for name in ("Dense", "Embedding", "Bidirectional", "Conv2DTranspose")),
        *(("spectral", "LSTM"), ("scaled", "Conv2D"), ("weight", "RNN of cells")),
    ],
)
def test_mixed_precision(norm, name, dtype, rng):
    """The kernel is computed in float32, then cast by the layer, whose type the result has."""
    norm = NORMS[norm]
    wrapper, plain, _, x = pair(name, norm, f"mixed_{dtype}")
    assert all(weight.dtype == "float32" for weight in wrapper.weights)
    y, want = (tf.nest.flatten(layer(x)) for layer in (wrapper, plain))
    for one, other in zip(y, want, strict=True):
        assert one.dtype == other.dtype == dtype
        # A kernel off by a float32 rounding may be cast to the neighbour.
        other = np.asarray(tf.cast(other, tf.float64))
        atol = 4 * support.ROUNDING[dtype] * max(1, np.abs(other).max())
        support.close(tf.cast(one, tf.float64), other, atol=atol)
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.reduce_sum(tf.cast(one, "float32")) for one in map_call(wrapper, x)])
    for gradient in tape.gradient(loss, [w.value for w in wrapper.trainable_weights]):
        assert gradient.dtype == "float32"


def map_call(layer, x):
    return tf.nest.flatten(layer(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_would_not_hold_these_kernels(dtype, rng):
    """Squares of 3e4 overflow in float16, and bfloat16 has no 1e4 + 1."""
    x = rng.normal(size=(4, 7)).astype(dtype)
    for norm, mean in (("weight", 3e4), ("standard", 1e4)):
        norm = NORMS[norm]
        wrapper = norm.wrap(L.Dense(5, use_bias=False, dtype=f"mixed_{dtype}"))
        wrapper(x)
        wrapper.layer.kernel.assign(rng.normal(mean, 1, (7, 5)))
        own = [array(getattr(wrapper, part)[0]) for part in norm.own]
        kernel = norm.kernel(array(wrapper.layer.kernel), *own)
        size = np.abs(kernel).max()
        support.close(
            tf.cast(wrapper(x), "float64"),
            x.astype("float64") @ kernel,
            atol=16 * support.ROUNDING[dtype] * size,
        )


# No side effects.

EVERY = {
    **{name: norm.wrap for name, norm in NORMS.items()},
    "keras": kn.SpectralNormalization,
    "not by data": lambda layer: kn.WeightNormalization(layer, data_init=False),
}
NEVER_ASSIGNED = ["not by data", "standard", "scaled", "spectral"]


def dense_data(rng, samples=6):
    return rng.normal(size=(samples, 7)).astype("float32")


@pytest.mark.parametrize("name", NEVER_ASSIGNED)
def test_a_call_assigns_no_kernel(name, mode, rng):
    """What peers do: kernel := kernel / sigma, or := g v / |v|."""
    wrapper = EVERY[name](L.Dense(5))
    x = dense_data(rng)
    wrapper(x)
    before = wrapper.layer.get_weights()
    call = support.compiled(lambda x: wrapper(x, training=True), mode)
    for _ in range(2):
        call(tf.constant(x))
    same(wrapper.layer.get_weights(), before)


@pytest.mark.parametrize("name", ["weight", "scaled", "spectral", "keras"])
def test_predict_and_evaluate_change_no_weight(name, rng):
    x = dense_data(rng)
    model = keras.Sequential([keras.Input((7,)), EVERY[name](L.Dense(5))])
    model.compile("sgd", "mse")
    before = state(model.layers[0])
    model.predict(x, verbose=0)
    model.evaluate(x, x[:, :5], verbose=0)
    model(x)
    model(x, training=False)
    same(state(model.layers[0]), before)


@pytest.mark.parametrize("name", EVERY)
def test_not_trainable(name, rng):
    """Nothing moves in training, but the kernel of Keras' form, as there."""
    x = dense_data(rng)
    wrapper = EVERY[name](L.Dense(5))
    wrapper.trainable = False
    model = keras.Sequential([keras.Input((7,)), wrapper, L.Dense(2)])
    assert wrapper.trainable_weights == []
    before = state(wrapper)
    model.compile("sgd", "mse")
    model.fit(x, x[:, :2], verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(state(wrapper), before, strict=True)]
    assert any(changed) == (name == "keras")


def test_an_embedding_is_not_assigned(rng):
    wrapper = kn.WeightNormalization(L.Embedding(11, 5))
    tokens = rng.integers(0, 11, (3, 4))
    wrapper(tokens)
    before = wrapper.layer.get_weights()
    wrapper(tokens, training=True)
    same(wrapper.layer.get_weights(), before)


@pytest.mark.parametrize("name", ["weight", "scaled", "spectral"])
def test_no_tensor_stays_from_a_trace(name, tmp_path, rng):
    """tensorflow/addons#1788: the kernel was a tensor of the graph traced last."""
    x = tf.constant(rng.normal(size=(2, 4, 3)).astype("float32"))
    wrapper = NORMS[name].wrap(L.LSTM(5))
    want = wrapper(x)
    near(tf.function(wrapper)(x), want)
    tf.saved_model.save(as_module(wrapper), tmp_path / "first")
    near(tf.function(lambda x: wrapper(x))(x), want)
    same(wrapper(x), want)
    assert [w.shape for w in wrapper.layer.weights] == [(3, 20), (5, 20), (20,)]
    near(tf.saved_model.load(tmp_path / "first")(x), want)
    assert all(
        isinstance(v, keras.Variable)
        for v in vars(wrapper.layer.cell).values()
        if hasattr(v, "shape")
    )


def as_module(layer):
    module = tf.Module()
    module.layer = layer
    module.__call__ = tf.function(
        lambda x: layer(x), input_signature=[tf.TensorSpec((None, 4, 3), tf.float32)]
    )
    return module


@pytest.mark.parametrize("name", ["weight", "scaled", "spectral", "keras"])
def test_copies_and_clones(name, rng):
    x = dense_data(rng)
    model = keras.Sequential([keras.Input((7,)), EVERY[name](L.Dense(5, "relu")), L.Dense(2)])
    model.compile("sgd", "mse")
    model.fit(x, x[:, :2], verbose=0)
    want = model(x)
    twin = copy.deepcopy(model)
    same(twin(x), want)
    twin.layers[0].layer.kernel.assign(np.ones((7, 5)))
    same(model(x), want)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    same(clone(x), want)


def test_two_models_share_a_wrapper(rng):
    x = dense_data(rng)
    shared = kn.WeightNormalization(L.Dense(5))
    models = [keras.Sequential([keras.Input((7,)), shared, *more]) for more in ([], [L.ReLU()])]
    models[0].compile(keras.optimizers.SGD(0.1), "mse")
    models[0].fit(x, x[:, :5], verbose=0)
    assert float(shared.initialized) == 1
    before = models[1](x)
    same(before, tf.nn.relu(models[0](x)))
    models[0].fit(x, x[:, :5], verbose=0)
    assert np.abs(models[1](x) - before).max() > 0
    same(models[1](x), tf.nn.relu(models[0](x)))


@keras.saving.register_keras_serializable("tests")
class Adding(L.Dense):
    """Adds a loss of its own."""

    def call(self, inputs, training=None):
        y = super().call(inputs, training=training)
        self.add_loss(0.3 * keras.ops.sum(y))
        return y


def regularized():
    return Adding(5, activity_regularizer="l2", kernel_regularizer="l1", bias_regularizer="l2")


@pytest.mark.parametrize("name", ["weight", "scaled", "spectral", "keras"])
def test_losses_count_once(name, rng):
    """Those of activities, of weights (of v, not of the computed), and the layer's own."""
    x = dense_data(rng)
    wrapper, plain = EVERY[name](regularized()), regularized()
    training = name in ("weight", "keras")
    wrapper(x, training=training)  # the call that may initialize, and measures
    assert len(wrapper.losses) == 4
    plain(x)
    plain.set_weights(wrapper.remove().get_weights())
    wrapper._clear_losses(), plain._clear_losses()

    def of_weights(kernel):
        return 0.01 * (np.abs(kernel).sum() + np.square(wrapper.layer.bias.numpy()).sum())

    wrapper(x)
    plain(x)
    assert len(wrapper.losses) == len(plain.losses) == 4
    activities = float(sum(plain.losses)) - of_weights(plain.kernel.numpy())
    # The bias' regularizer, too, is of the weight, without its offset.
    activities += 0.01 * (
        np.square(wrapper.layer.bias.numpy()).sum() - np.square(plain.bias.numpy()).sum()
    )
    want = activities + of_weights(wrapper.layer.kernel.numpy())
    np.testing.assert_allclose(float(sum(wrapper.losses)), want, rtol=1e-5)
    wrapper._clear_losses()
    in_graph = tf.function(lambda x: (wrapper(x), sum(wrapper.losses))[1])
    np.testing.assert_allclose(float(in_graph(x)), want, rtol=1e-5)
    if name == "keras":  # fit would divide the kernel once more
        return
    wrapper._clear_losses()
    model = keras.Sequential([keras.Input((7,)), wrapper])
    for jit_compile in (False, True) if name == "weight" else (False,):
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
        loss = model.fit(x, model(x), verbose=0).history["loss"][0]
        # The power method moves sigma a little.
        np.testing.assert_allclose(loss, want, rtol=1e-5 if name != "spectral" else 1e-2)


def test_the_first_batch_counts_once(rng):
    """Pre-activations that are measured are no activities."""
    x = dense_data(rng)
    wrapper = kn.WeightNormalization(regularized())
    y = wrapper(x, training=True)
    activity = 0.01 * np.square(y).sum() / len(x) + 0.3 * np.sum(y)  # Keras' mean over samples
    weights = 0.01 * np.abs(wrapper.layer.kernel.numpy()).sum()
    np.testing.assert_allclose(float(sum(wrapper.losses)), activity + weights, rtol=1e-5)


def test_state_inside_goes_on(rng):
    """Seeds of dropout advance, a batch norm moves; as in the plain layers."""
    x = rng.normal(3, 2, (6, 7)).astype("float32")

    def parts():
        return keras.Sequential(
            [L.Dense(4), L.BatchNormalization(momentum=0.5), L.Dropout(0.5, seed=3)]
        )

    wrapper, plain = kn.WeightNormalization(parts()), parts()
    for layer in (wrapper, plain):
        layer.build((None, 7))
    plain.set_weights(wrapper.layer.get_weights())  # g begins as |v|
    seeds = [layer.layers[2].seed_generator.state for layer in (wrapper.layer, plain)]
    for layer in (wrapper, plain):
        model = keras.Sequential([keras.Input((7,)), layer])
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=True)
        model.fit(x, x[:, :4], batch_size=3, epochs=2, shuffle=False, verbose=0)
    same(seeds[0].numpy(), seeds[1].numpy())
    assert seeds[0].numpy()[1] > 3
    near(wrapper.layer.get_weights(), plain.get_weights())
    assert np.abs(wrapper.layer.layers[1].moving_mean.numpy()).max() > 0.5


def test_a_recurrent_layer_with_dropout(rng):
    """Its seeds advance, in a graph and outside of it."""
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    wrapper = kn.WeightNormalization(L.LSTM(5, dropout=0.3, recurrent_dropout=0.2))
    model = keras.Sequential([keras.Input((4, 3)), wrapper])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    seed = wrapper.layer.cell.seed_generator.state
    states, losses = [seed.numpy()], []
    for _ in range(2):
        losses += model.fit(x, np.zeros((2, 5)), verbose=0).history["loss"]
        states.append(seed.numpy())
    assert len({tuple(value) for value in states}) == 3
    assert losses[0] != losses[1]
    same(wrapper(x), wrapper(x))
    convolved = kn.WeightNormalization(L.ConvLSTM1D(5, 2, dropout=0.3))
    for layer, given in ((wrapper, x), (convolved, x[..., None])):
        calls = [np.asarray(layer(given, training=True)) for _ in range(2)]
        assert np.abs(calls[0] - calls[1]).max() > 1e-3


# What stands around and inside of other layers.


def lstm(**arguments):
    return L.LSTM(5, return_sequences=True, return_state=True, **arguments)


COMBINED = {
    "layer": (lambda wrap: wrap(lstm()), 2),
    "in Bidirectional": (lambda wrap: L.Bidirectional(wrap(lstm())), 4),
    "of Bidirectional": (lambda wrap: wrap(L.Bidirectional(lstm(), merge_mode="sum")), 4),
    "of a cell": (
        lambda wrap: L.RNN(wrap(L.LSTMCell(5)), return_sequences=True, return_state=True),
        2,
    ),
    "of cells": (lambda wrap: L.RNN([wrap(L.GRUCell(5)), wrap(L.GRUCell(5))]), 2),
    "of stacked cells": (
        lambda wrap: L.RNN(wrap(L.StackedRNNCells([L.GRUCell(5), L.GRUCell(5)]))),
        2,
    ),
    "in TimeDistributed": (lambda wrap: L.TimeDistributed(wrap(L.Dense(5))), 0),
}


def wrappers_in(layer):
    return [part for part in layer._flatten_layers() if isinstance(part, WRAPPERS)]


WRAPPERS = (kn.WeightNormalization, kn.SpectralNormalization, kn.WeightStandardization)


def combined(make, norm, x):
    """A layer that holds wrappers, with random weights; and the same with plain layers."""
    outer, plain = make(norm.wrap), make(lambda layer: layer)
    outer(x), plain(x)
    randomized(outer)
    values = {id(weight): weight.numpy() for weight in outer.weights}
    for wrapper in wrappers_in(outer):
        for one in kernels(wrapper, norm, RECURRENT):
            weight = wrapper.layer.weights[one.at]
            values[id(weight)] = reference.from_columns(one.w, weight.shape, one.axes)
        for weight in (*wrapper._trainable_variables, *wrapper._non_trainable_variables):
            del values[id(weight)]
    plain.set_weights([values[id(w)] for w in outer.weights if id(w) in values])
    return outer, plain


@pytest.mark.parametrize(
    "norm, name",
    [
        *(("scaled", name) for name in COMBINED),
        *(("spectral", name) for name in ("in Bidirectional", "of a cell")),
    ],
)
def test_combined(norm, name, rng):
    """With masks and initial states, as plain layers with the computed kernels."""
    make, count = COMBINED[name]
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    outer, plain = combined(make, NORMS[norm], x)
    near(outer(x), plain(x))
    mask = np.array([[True, True, False, True], [True, False, True, False]])
    states = [*rng.normal(size=(count, 2, 5)).astype("float32")]
    near(outer(x, mask=mask), plain(x, mask=mask))
    passed = [np.asarray(part) for part in mask_of(outer, x, mask) if part is not None]
    same(passed, [np.asarray(part) for part in mask_of(plain, x, mask) if part is not None])
    if count:
        near(outer(x, mask=mask, initial_state=states), plain(x, mask=mask, initial_state=states))
        without = outer(x, initial_state=states)
        near(without, plain(x, initial_state=states))
        assert np.abs(tf.nest.flatten(without)[0] - tf.nest.flatten(outer(x))[0]).max() > 1e-3
    shapes = [tuple(part.shape) for part in tf.nest.flatten(outer(x))]
    assert tf.nest.flatten(outer.compute_output_shape(x.shape)) == tf.nest.flatten(shapes)


def mask_of(layer, x, mask):
    found = layer.compute_mask(x, mask)
    return found if isinstance(found, list | tuple) else [found]


def test_masks_pass_through(rng):
    """From a wrapped embedding to a wrapped recurrent layer, in a model."""
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            kn.WeightNormalization(L.Embedding(11, 5, mask_zero=True)),
            kn.WeightNormalization(L.LSTM(3, return_sequences=True)),
            kn.SpectralNormalization(L.Dense(2), reparam=True),
            L.GlobalAveragePooling1D(),
        ]
    )
    tokens = np.array([[3, 4, 0, 0], [1, 2, 3, 4]])
    near(model(tokens)[:1], model(tokens[:1, :2]))
    same(model.layers[0].compute_mask(tokens, None), tokens > 0)


@pytest.mark.parametrize("name", ["layer", "in Bidirectional", "of Bidirectional"])
def test_stateful(name, rng):
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    make = {
        "layer": lambda wrap: wrap(L.LSTM(5, stateful=True)),
        "in Bidirectional": lambda wrap: L.Bidirectional(wrap(L.LSTM(5, stateful=True))),
        "of Bidirectional": lambda wrap: wrap(L.Bidirectional(L.LSTM(5, stateful=True))),
    }[name]
    outer, plain = combined(make, NORMS["scaled"], x)
    layers = [outer, plain]
    for layer in layers:
        layer.reset_state()
        assert layer.stateful
    first, second, third = ([layer(x) for layer in layers] for _ in range(3))
    for got, want in (first, second, third):
        near(got, want)
    assert np.abs(first[0] - second[0]).max() > 1e-3
    in_graph = tf.function(outer)
    near(in_graph(x), plain(x))
    for got, want in zip(outer.states, plain.states, strict=True):
        near(got.numpy(), want.numpy())
    outer.reset_state()
    near(outer(x), first[0])


def test_initial_states_of_a_model(tmp_path, rng):
    """Keras tensors, given by name."""
    x, h, c = keras.Input((4, 3)), keras.Input((5,)), keras.Input((5,))
    wrapper = kn.WeightNormalization(L.LSTM(5, return_state=True))
    model = keras.Model([x, h, c], wrapper(x, initial_state=[h, c]))
    data = [rng.normal(size=(2, *one.shape[1:])).astype("float32") for one in model.inputs]
    near(model(data), wrapper.remove()(data[0], initial_state=data[1:]))
    model.save(tmp_path / "model.keras")
    same(keras.saving.load_model(tmp_path / "model.keras")(data), model(data))


def test_nested():
    """The outer one computes what the inner one takes for its weight."""
    x = np.eye(7, dtype="float32")
    inner = kn.WeightStandardization(L.Dense(5, use_bias=False), epsilon=1e-3)
    outer = kn.SpectralNormalization(inner, reparam=True)
    outer(x)
    v = array(inner.layer.kernel)
    w = reference.spectral(v, array(outer.vectors_u[0]), array(outer.vectors_v[0]))
    near(outer(x), reference.standardized(w, 1e-3))
    once = outer.remove()
    assert type(once) is kn.WeightStandardization and type(once.remove()) is L.Dense
    near(once.remove()(x), outer(x))
    near(once.layer.kernel.numpy(), w)


def test_nested_data_init(rng):
    x = rng.normal(3, 2, (64, 7)).astype("float32")
    outer = kn.WeightStandardization(kn.WeightNormalization(L.Dense(5)))
    y = np.asarray(outer(x, training=True))
    np.testing.assert_allclose(y.std(0), 1, atol=1e-4)
    assert float(outer.layer.initialized) == 1
    near(outer.remove().remove()(x), y, 1e-5)


def test_a_model_rebuilt_with_plain_layers(rng):
    x = rng.normal(size=(6, 9, 9, 3)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((9, 9, 3)),
            kn.WeightNormalization(L.Conv2D(4, 3, activation="relu", name="first")),
            kn.WeightStandardization(L.DepthwiseConv2D(3), scaled=True),
            L.GlobalMaxPooling2D(),
            kn.SpectralNormalization(L.Dense(2), name="last"),
        ]
    )
    model.compile("sgd", "mse")
    model.fit(x, np.ones((6, 2)), verbose=0)

    def without(layer):
        return (
            layer.remove()
            if isinstance(layer, WRAPPERS)
            else layer.__class__.from_config(layer.get_config())
        )

    plain = keras.models.clone_model(model, clone_function=without)
    # A clone has what `remove` gave.
    near(plain(x), model(x))
    assert not wrappers_in(plain) and plain.layers[0].name == "first"


def test_what_is_removed_keeps_the_state_of_its_parts(rng):
    """Moving statistics, too."""
    x = rng.normal(size=(4, 7)).astype("float32")
    parts = keras.Sequential([L.Dense(5), L.BatchNormalization(), L.Dense(3)])
    wrapper = kn.WeightNormalization(parts)
    for _ in range(3):
        wrapper(x, training=True)
    near(wrapper.remove()(x), wrapper(x))


def test_names_of_several(rng):
    """In the order of the layer's weights."""
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    wrapper = kn.WeightNormalization(L.RNN([L.GRUCell(5), L.GRUCell(7)]))
    wrapper(x)
    found = [(gain.name, tuple(gain.shape)) for gain in wrapper.gains]
    assert found == [
        ("g_kernel", (15,)),
        ("g_recurrent_kernel", (15,)),
        ("g_kernel_1", (21,)),
        ("g_recurrent_kernel_1", (21,)),
    ]
    wrapper = kn.SpectralNormalization(L.LSTM(5), reparam=True, weight_names=["recurrent_kernel"])
    wrapper(x)
    assert [w.name for w in wrapper.weights][:2] == ["vector_u", "vector_v"]


# Files.


def every_wrapper():
    """A model with each of them, trained."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,), dtype="int32")
    x = kn.WeightNormalization(L.Embedding(11, 6))(inputs)
    x = L.Bidirectional(kn.WeightNormalization(L.LSTM(4, return_sequences=True)))(x)
    x = L.RNN(kn.WeightStandardization(L.SimpleRNNCell(4)), return_sequences=True)(x)
    x = L.TimeDistributed(kn.WeightStandardization(L.Dense(6), scaled=True, gamma=1.7))(x)
    x = kn.WeightNormalization(L.Conv1D(5, 3, activation="relu"))(x)
    x = L.GlobalAveragePooling1D()(x)
    x = kn.SpectralNormalization(L.Dense(4))(x)
    x = kn.WeightNormalization(kn.SpectralNormalization(L.Dense(3), reparam=True), axis=1)(x)
    model = keras.Model(inputs, x)
    loss = keras.losses.MeanSquaredError()
    model.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=False)
    tokens = np.random.default_rng(1).integers(0, 11, (6, 5))
    model.fit(tokens, np.zeros((6, 3)), batch_size=3, verbose=0)
    return model, tokens


@pytest.fixture(scope="module")
def trained():
    return every_wrapper()


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_files(file, trained, tmp_path):
    model, tokens = trained
    model.save(tmp_path / file)
    again = keras.saving.load_model(tmp_path / file)
    same(again(tokens), model(tokens))
    same(again.get_weights(), model.get_weights())
    if file == "model.keras":  # from HDF5, Keras loads no model's optimizer as it was
        again.fit(tokens, np.zeros((6, 3)), batch_size=3, verbose=0)
        assert np.abs(again(tokens) - model(tokens)).max() > 0


def test_weights_file(trained, tmp_path):
    model, tokens = trained
    model.save_weights(tmp_path / "model.weights.h5")
    again = keras.models.clone_model(model)
    assert np.abs(again(tokens) - model(tokens)).max() > 0
    again.compile(keras.optimizers.Adam(1e-2), "mse")
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "model.weights.h5")
    same(again(tokens), model(tokens))


@pytest.mark.parametrize("write", ["export", "save"])
def test_saved_model(write, trained, tmp_path):
    """tensorflow/addons#1788."""
    model, tokens = trained
    want = model(tokens)
    if write == "export":
        kn.export(model, tmp_path / "saved")
        loaded = tf.saved_model.load(tmp_path / "saved")
        call = loaded.serve
    else:
        with kn.portable():
            tf.saved_model.save(model, tmp_path / "saved")
        loaded = tf.saved_model.load(tmp_path / "saved")
        call = loaded.signatures["serving_default"]
    got = tf.nest.flatten(call(tf.constant(tokens, "int32")))
    near(got, [want], 1e-5)
    same(model(tokens), want)


# Errors.


def message(error, function, *arguments, **named):
    with pytest.raises(error) as caught:
        function(*arguments, **named)
    return str(caught.value)


class Custom(keras.Layer):
    """Of a type that is not known, with a kernel that has the outputs first."""

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(5, shape[-1]))

    def call(self, x):
        return x @ keras.ops.transpose(self.kernel)


ALL = pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda cls: cls.__name__)


def reparam(wrap):
    return {"reparam": True} if wrap is kn.SpectralNormalization else {}


@ALL
def test_needs_a_layer(wrap):
    assert "Layer 5 supplied to Wrapper isn't a supported layer type." in message(
        ValueError, wrap, 5
    )


@ALL
def test_needs_a_kernel(wrap):
    layer = wrap(L.ReLU(), **reparam(wrap))
    got = message(ValueError, layer, np.ones((2, 3), "float32"))
    assert got.startswith(
        "ReLU object has no weight kernel or recurrent_kernel or depthwise_kernel or "
        "pointwise_kernel or embeddings to compute; a layer that makes its weights when called "
        "must be called before it is wrapped. Received: layer=<ReLU name="
    )
    assert "weight_names=None." in got


@ALL
def test_layers_that_are_to_be_called_first(wrap, rng):
    x = rng.normal(size=(2, 3, 8)).astype("float32")
    attention = L.MultiHeadAttention(2, 4)
    got = message(ValueError, wrap(attention, **reparam(wrap)), x, x)
    assert "MultiHeadAttention cannot be built from the shape of one input: call it once" in got
    want = attention(x, x)
    wrapper = wrap(attention, **reparam(wrap))
    assert wrapper(x, x).shape == want.shape and len(wrapper.kernels) == 4


@ALL
def test_unknown_layers_need_an_axis(wrap, rng):
    x = rng.normal(size=(3, 7)).astype("float32")
    got = message(ValueError, wrap(Custom(name="own"), **reparam(wrap)), x)
    assert got == (
        "Which axes of kernel number the outputs is not known of Custom: give `axis`. "
        "Received: layer=<Custom name=own, built=True>, kernel.shape=(5, 7)."
    )
    layer = wrap(Custom(name="own"), axis=0, **reparam(wrap))
    assert layer(x).shape == (3, 5)
    assert (layer.kernels[0].outputs, layer.kernels[0].inputs) == (5, 7)
    near(layer.remove()(x), layer(x))


@ALL
def test_weight_names(wrap, rng):
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    assert message(TypeError, wrap, L.Dense(5), weight_names="kernel", **reparam(wrap)) == (
        "`weight_names` must be None or a list of names. Received: weight_names='kernel'."
    )
    assert message(ValueError, wrap, L.Dense(5), weight_names=[], **reparam(wrap)) == (
        "`weight_names` must hold a name, or be None for all kernels. Received: weight_names=[]."
    )
    layer = wrap(L.Dense(5, name="d"), weight_names=["kernel", "colonel"], **reparam(wrap))
    assert message(ValueError, layer, x) == (
        "Dense object has no weight ['colonel'] to compute; a layer that makes its weights when "
        "called must be called before it is wrapped. Received: layer=<Dense name=d, built=True>, "
        "with the weights ['kernel', 'bias'], weight_names=['kernel', 'colonel']."
    )
    layer = wrap(L.GRU(5), weight_names=("recurrent_kernel",), **reparam(wrap))
    layer(x)
    assert [kernel.variable.shape for kernel in layer.kernels] == [(5, 15)]


@ALL
@pytest.mark.parametrize(
    "axis, error, rule",
    [
        (2, ValueError, "`axis` must name axes of the weight, none twice. Received: axis=2,"),
        (-3, ValueError, "`axis` must name axes of the weight, none twice. Received: axis=-3,"),
        ([1, -1], ValueError, "none twice. Received: axis=[1, -1], kernel.shape=(3, 5)."),
        ([], ValueError, "`axis` must name axes of the weight, none twice. Received: axis=[],"),
        (True, TypeError, "None, an int or a list or tuple of ints. Received: axis=True."),
        ([0.5], TypeError, "None, an int or a list or tuple of ints. Received: axis=[0.5]."),
        ("last", TypeError, "None, an int or a list or tuple of ints. Received: axis='last'."),
    ],
)
def test_axis(wrap, axis, error, rule):
    def make():
        wrap(L.Dense(5), axis=axis, **reparam(wrap))(np.ones((2, 3), "float32"))

    assert rule in message(error, make)


def adapted(how):
    layer = L.Dense(5, name="d")
    return layer, {"lora": lambda: layer.enable_lora(2), "int8": lambda: layer.quantize("int8")}[
        how
    ]


@pytest.mark.parametrize(
    "wrap, how, says",
    [
        *((wrap, "lora", "lora_enabled=True, quantization_mode=None.") for wrap in WRAPPERS),
        (kn.WeightNormalization, "int8", "lora_enabled=False, quantization_mode=int8."),
    ],
)
def test_adapted_layers_are_refused(wrap, how, says):
    """Before, and after; until then it works."""
    x = np.ones((2, 8), "float32")
    layer, adapt = adapted(how)
    layer(x)
    adapt()
    got = message(ValueError, wrap(layer, **reparam(wrap)), x)
    rule = "A layer with LoRA or with quantized weights cannot be wrapped, nor adapted or quantized"
    assert got.startswith(rule) and says in got
    layer, adapt = adapted(how)
    wrapper = wrap(layer, **reparam(wrap))
    wrapper(x)
    plain = wrapper.remove()
    adapt()
    for call in (lambda: wrapper(x), wrapper.remove):
        got = message(ValueError, call)
        assert rule in got and "take the plain layer of `remove()`" in got and says in got
    assert plain.kernel.shape == (8, 5)


@ALL
@pytest.mark.parametrize(
    "make",
    [
        lambda: L.LSTMCell(5, dropout=0.3),
        lambda: L.GRUCell(5, recurrent_dropout=0.3),
        lambda: L.StackedRNNCells([L.LSTMCell(5), L.SimpleRNNCell(5, dropout=0.3)]),
    ],
)
def test_cells_with_dropout_are_refused(wrap, make):
    got = message(ValueError, wrap, make())
    assert got.startswith(
        "A cell with dropout draws its masks for the RNN layer that it stands in: wrap that "
        f"layer, {wrap.__name__}(keras.layers.RNN(cell)). Received: <"
    )


@ALL
def test_remove_needs_a_built_layer(wrap):
    got = message(ValueError, wrap(L.Dense(5), name="w").remove)
    assert got == (
        "`remove` needs a layer that is built: call it first. Received: "
        f"<{wrap.__name__} name=w, built=False>."
    )


def test_an_inner_layer_that_assigns_its_kernel_is_refused():
    layer = kn.WeightStandardization(kn.SpectralNormalization(L.Dense(5)))
    got = message(ValueError, layer, np.ones((2, 3), "float32"), training=True)
    assert "must not assign the weight that its wrapper computes. Received: an update of" in got


@ALL
def test_a_layer_that_is_rematerialized(wrap, rng):
    """Its kernel gets the gradient that it gets without."""
    x = rng.normal(size=(4, 6, 5)).astype("float32")
    weight = rng.normal(size=(4, 4, 3)).astype("float32")

    def gradients(inner):
        keras.utils.set_random_seed(2)
        layer = wrap(inner, **reparam(wrap))
        layer.build(x.shape)

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x, training=False) * weight)
            return tape.gradient(loss, [w.value for w in layer.trainable_weights])

        return step()

    first = keras.initializers.GlorotUniform(seed=4)
    plain = L.Conv1D(3, 3, kernel_initializer=first)
    with keras.RematScope(mode="list_of_layers", layer_names=["inner"]):
        inner = L.Conv1D(3, 3, name="inner", kernel_initializer=first)
    assert inner._remat_mode is not None
    for got, want in zip(gradients(inner), gradients(plain), strict=True):
        support.close(got, want.numpy().astype("float64"), atol=1e-5)
