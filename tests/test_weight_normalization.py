"""g begins as |v|, and `data_init`: what the first batch sets, when, and when not."""

import keras
import numpy as np
import pytest
import support
import tensorflow as tf
from keras import layers as L

import keras_norms as kn

# A layer, the shape of its input, the axes of its result that are not outputs of the kernel.
KINDS = {
    "Dense": (lambda **k: L.Dense(5, **k), (64, 7), (0,)),
    "Conv2D": (lambda **k: L.Conv2D(6, 3, **k), (8, 7, 6, 4), (0, 1, 2)),
    "Conv2D, first": (
        lambda **k: L.Conv2D(6, 3, data_format="channels_first", **k),
        (8, 4, 7, 6),
        (0, 2, 3),
    ),
    "Conv2DTranspose": (lambda **k: L.Conv2DTranspose(6, 3, **k), (8, 4, 3, 5), (0, 1, 2)),
    "DepthwiseConv2D": (
        lambda **k: L.DepthwiseConv2D(3, depth_multiplier=2, **k),
        (8, 7, 6, 4),
        (0, 1, 2),
    ),
    "EinsumDense": (
        lambda **k: L.EinsumDense("abc,cde->adbe", (3, None, 5), bias_axes="de", **k),
        (8, 4, 7),
        (0, 2),
    ),
    "EinsumDense, bias in another order": (
        lambda **k: L.EinsumDense("abc,cde->abed", (None, 3, 5), bias_axes="ed", **k),
        (8, 9, 7),
        (0, 1),
    ),
    "EinsumDense, elided": (
        lambda **k: L.EinsumDense("ab...,bc->ac...", (5, 4), bias_axes="c", **k),
        (9, 7, 4),
        (0, 2),
    ),
    "EinsumDense, shared": (
        lambda **k: L.EinsumDense("...bc,bcd->...bd", (4, 5), bias_axes="bd", **k),
        (9, 3, 4, 7),
        (0, 1),
    ),
}


def data(shape, mean=1.0, deviation=2.0, seed=3):
    return np.random.default_rng(seed).normal(mean, deviation, shape).astype("float32")


def pre_activations(wrapper, x):
    """By a plain layer without the activation, in float64: the layer's own rounding is not meant.

    At a mean of 1e4, a float32 product is off by 1e-3.
    """
    plain = wrapper.remove()
    config = {**plain.get_config(), "activation": None, "dtype": "float64"}
    if config.get("data_format") == "channels_first":  # not of float64, on a CPU
        config["dtype"] = "float32"
    exact = type(plain).from_config(config)
    exact(x.astype(config["dtype"]))
    exact.set_weights(plain.get_weights())
    return np.asarray(exact(x.astype(config["dtype"])), "float64")


def check(wrapper, x, axes, deviation=0.01, mean=0.02):
    """Deviation 1 and mean 0 for each output."""
    t = pre_activations(wrapper, x)
    np.testing.assert_allclose(t.std(axes), 1, atol=deviation)
    if wrapper.layer.bias is not None:
        np.testing.assert_allclose(t.mean(axes), 0, atol=mean)
    assert float(wrapper.initialized) == 1


def values(layer):
    return [weight.numpy() for weight in layer.weights]


def same(got, want):
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


# g.


@pytest.mark.parametrize("data_init", [None, False])
def test_wrapping_changes_nothing(data_init, kernel, rng):
    """A layer that is built, trained: g begins as |v|, and inference initializes nothing."""
    x = rng.normal(size=(32, 7)).astype("float32")
    layer = L.Dense(5, "tanh")
    model = keras.Sequential([keras.Input((7,)), layer])
    model.compile(keras.optimizers.SGD(0.3), "mse")
    model.fit(x, x[:, :5], verbose=0)
    want, kernel_before = np.asarray(model(x), "float64"), layer.kernel.numpy()
    wrapper = kn.WeightNormalization(layer, data_init)
    support.close(wrapper(x), want, atol=support.FORWARD[kernel])
    lengths = np.sqrt(np.square(kernel_before.astype("float64")).sum(0))
    np.testing.assert_allclose(wrapper.gains[0].numpy(), lengths, rtol=1e-6)
    np.testing.assert_array_equal(layer.kernel.numpy(), kernel_before)
    support.close(wrapper(x, training=data_init is not None), want, atol=support.FORWARD[kernel])
    names = [weight.name for weight in wrapper.weights]
    offsets = ["g_offset", "bias_offset", "initialized"] if data_init is None else []
    assert names == ["g", *offsets, "kernel", "bias"]
    assert [w.name for w in wrapper.trainable_weights] == ["g", "kernel", "bias"]


def test_length_and_direction_are_apart(kernel, rng):
    """v at another length gives the same; a step of v leaves |w|."""
    x = rng.normal(size=(6, 7)).astype("float32")
    wrapper = kn.WeightNormalization(L.Dense(5), data_init=False)
    want = np.asarray(wrapper(x), "float64")
    for factor in (1e-3, 1e4):
        wrapper.layer.kernel.assign(wrapper.layer.kernel * factor)
        support.close(wrapper(x), want, atol=4e-6 * np.abs(want).max())
        wrapper.layer.kernel.assign(wrapper.layer.kernel / factor)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(wrapper(x) ** 2)
    gradient = tape.gradient(loss, wrapper.layer.kernel.value).numpy()
    kernel_now = wrapper.layer.kernel.numpy()
    along = (gradient * kernel_now).sum(0)
    assert np.abs(along).max() < 1e-5 * np.abs(gradient).max()


def test_columns_of_zeros(kernel, rng):
    """No direction: w is 0, and gradients are numbers."""
    x = rng.normal(size=(6, 7)).astype("float32")
    wrapper = kn.WeightNormalization(L.Dense(5, kernel_initializer="zeros"), data_init=False)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum((wrapper(x) - 1) ** 2)
    assert float(loss) == 30
    for gradient in tape.gradient(loss, [w.value for w in wrapper.trainable_weights]):
        assert np.isfinite(gradient).all()


# data_init.


@pytest.mark.parametrize("name", KINDS)
def test_first_batch(name, kernel):
    """relu is in place, and is left out of what is measured. Nothing changes after."""
    make, shape, axes = KINDS[name]
    x = data(shape)
    wrapper = kn.WeightNormalization(make(activation="relu"))
    wrapper(x)
    kernels = wrapper.layer.get_weights()
    y = wrapper(x, training=True)
    assert np.asarray(y).min() == 0
    check(wrapper, x, axes)
    same(wrapper.layer.get_weights(), kernels)  # v and b are as they were
    before = values(wrapper)
    wrapper(data(shape, 5, 7, seed=8), training=True)
    same(values(wrapper), before)
    np.testing.assert_allclose(wrapper(x), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["Dense", "Conv2DTranspose", "EinsumDense"])
@pytest.mark.parametrize("mean, deviation", [(1e4, 1.0), (0.0, 0.05), (0.0, 100.0), (-3.0, 0.01)])
def test_inputs_of_any_size(name, mean, deviation, kernel):
    make, shape, axes = KINDS[name]
    x = data(shape, mean, deviation)
    wrapper = kn.WeightNormalization(make(activation="relu"))
    wrapper(x, training=True)
    check(wrapper, x, axes)


@pytest.mark.parametrize("name, jit_compile", [("Dense", True), ("Conv2D", False)])
def test_fit(name, jit_compile, kernel):
    """In a graph, with steps too small to move anything."""
    make, shape, axes = KINDS[name]
    x = data(shape)
    wrapper = kn.WeightNormalization(make(activation="relu"))
    model = keras.Sequential([keras.Input(shape[1:]), wrapper])
    model.compile(keras.optimizers.SGD(1e-9), "mse", jit_compile=jit_compile)
    before, target = values(wrapper), np.zeros(model(x).shape)
    model.evaluate(x, target, batch_size=len(x), verbose=0)
    same(values(wrapper), before)
    model.fit(x, target, batch_size=len(x), verbose=0)
    check(wrapper, x, axes)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_types(dtype, kernel):
    """Moments of half-type pre-activations, in float32."""
    make, shape, axes = KINDS["Dense"]
    x = data(shape, 1, 100)
    wrapper = kn.WeightNormalization(make(activation="relu", dtype=dtype))
    given = x.astype("float64" if dtype == "float64" else dtype.removeprefix("mixed_"))
    y = wrapper(given, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == wrapper.layer.compute_dtype
    wide = kn.WeightNormalization(make(activation="relu"))
    wide(x)
    wide.set_weights(wrapper.get_weights())
    check(wide, x, axes, *((0.02, 0.05) if dtype == "mixed_bfloat16" else ()))


def test_deep_nets_get_it_from_layer_to_layer(kernel):
    """One training call initializes all, each by what the ones before it give."""
    layers = [
        kn.WeightNormalization(
            L.Dense(16, "relu", kernel_initializer=keras.initializers.RandomNormal(stddev=s))
        )
        for s in (1e-3, 30.0, 0.05)
    ]
    model = keras.Sequential([keras.Input((7,)), *layers])
    x = data((256, 7))
    model(x, training=True)
    given = x
    for layer in layers:
        t = pre_activations(layer, given)
        np.testing.assert_allclose(t.std(0), 1, atol=0.01)
        np.testing.assert_allclose(t.mean(0), 0, atol=0.02)
        given = np.asarray(layer(given))


def test_without_bias(kernel):
    make, shape, axes = KINDS["Conv2D"]
    x = data(shape)
    wrapper = kn.WeightNormalization(make(use_bias=False))
    wrapper(x, training=True)
    assert wrapper.bias_offset is None
    check(wrapper, x, axes)


def test_a_bias_that_does_not_begin_at_zero_is_added():
    make, shape, _ = KINDS["Dense"]
    x = data(shape)
    wrapper = kn.WeightNormalization(make(bias_initializer=keras.initializers.Constant(0.5)))
    y = np.asarray(wrapper(x, training=True))
    np.testing.assert_allclose(y.mean(0), 0.5, atol=0.001)
    np.testing.assert_allclose(y.std(0), 1, atol=0.001)
    np.testing.assert_array_equal(wrapper.layer.bias.numpy(), np.full(5, 0.5))
    np.testing.assert_allclose(wrapper.remove().bias, wrapper.bias_offset + 0.5, rtol=1e-6)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_an_empty_batch_waits(mode, kernel):
    make, shape, axes = KINDS["Dense"]
    wrapper = kn.WeightNormalization(make())
    wrapper.build(shape)
    before = values(wrapper)

    def call(x):
        return wrapper(x, training=True)

    step = call if mode == "eager" else tf.function(call, jit_compile=mode == "xla")
    assert step(tf.zeros((0, 7))).shape == (0, 5)
    same(values(wrapper), before)
    x = data(shape)
    step(tf.constant(x))
    check(wrapper, x, axes)


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_waits(strange, mode, kernel):
    wrapper = kn.WeightNormalization(L.Dense(5))
    wrapper.build((64, 7))
    x = data((64, 7))
    run = support.compiled(lambda x: wrapper(x, training=True), mode)
    run(tf.constant(np.where(np.arange(7) == 3, strange, x).astype("float32")))
    assert wrapper.initialized.numpy() == 0
    run(tf.constant(x))
    check(wrapper, x, (0,))


@pytest.mark.parametrize("shape", [(16, 6, 7), (8, 3, 2, 7)])
def test_masked_positions_do_not_count(shape, kernel, rng):
    wrapper = kn.WeightNormalization(L.Dense(5))
    x, mask = data(shape), rng.uniform(size=shape[:2]) < 0.5
    x[~mask] = 1000
    wrapper(x, mask=tf.constant(mask), training=True)
    check(wrapper, x[mask], tuple(range(x[mask].ndim - 1)))
    wrapper = kn.WeightNormalization(L.Dense(5))
    wrapper(x, mask=tf.zeros_like(mask), training=True)
    assert wrapper.initialized.numpy() == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_kernels_of_any_size(size, dtype, kernel, rng):
    """Their squares may be beyond the type's range."""
    plain = L.Dense(4, use_bias=False, dtype=dtype)
    plain.build((None, 5))
    plain.kernel.assign(rng.normal(size=(5, 4)) * size)
    x = rng.normal(size=(6, 5)).astype(dtype)
    want = np.asarray(plain(x), "float64")
    wrapper = kn.WeightNormalization(plain)
    atol = (4e-6 if dtype == "float32" else 4e-15) * np.abs(want).max()
    support.close(wrapper(x), want, atol=atol)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4])
def test_a_constant_input_has_no_spread(value, kernel):
    """g stays, and what comes out is finite and has mean 0."""
    wrapper = kn.WeightNormalization(L.Dense(5))
    x = np.full((8, 7), value, "float32")
    y = np.asarray(wrapper(x, training=True))
    assert np.isfinite(y).all() and np.abs(y).max() <= 1e-5 * max(value, 1)
    assert all(np.isfinite(value).all() for value in values(wrapper))
    np.testing.assert_array_equal(wrapper.g_offset.numpy(), np.zeros(5))


def test_one_dead_output_does_not_spoil_the_others(kernel):
    """A column of zeros has no spread; the rest is initialized."""
    wrapper = kn.WeightNormalization(L.Dense(5))
    x = data((64, 7))
    wrapper(x)
    v = wrapper.layer.kernel.numpy()
    v[:, 2] = 0
    wrapper.layer.kernel.assign(v)
    y = np.asarray(wrapper(x, training=True))
    np.testing.assert_allclose(y.std(0), [1, 1, 0, 1, 1], atol=0.001)
    np.testing.assert_allclose(y.mean(0), 0, atol=0.001)


def test_a_batch_of_one(kernel):
    """No spread again, but of a convolution there is: over space."""
    wrapper = kn.WeightNormalization(L.Dense(5))
    y = np.asarray(wrapper(data((1, 7)), training=True))
    np.testing.assert_allclose(y, 0, atol=1e-5)
    make, shape, axes = KINDS["Conv2D"]
    wrapper = kn.WeightNormalization(make())
    x = data((1, *shape[1:]))
    wrapper(x, training=True)
    check(wrapper, x, axes)


def test_inference_before_training_does_nothing():
    make, shape, _ = KINDS["Dense"]
    wrapper = kn.WeightNormalization(make())
    x = data(shape)
    y = wrapper(x)
    before = values(wrapper)
    for call in (wrapper, tf.function(wrapper), lambda x: wrapper(x, training=False)):
        np.testing.assert_allclose(call(x), y, rtol=0, atol=1e-5)
        same(values(wrapper), before)
    assert float(wrapper.initialized) == 0


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_loaded_models_do_not_initialize_again(file, tmp_path):
    make, shape, _ = KINDS["Dense"]
    x = data(shape)
    model = keras.Sequential([keras.Input(shape[1:]), kn.WeightNormalization(make())])
    model(x, training=True)
    model.save(tmp_path / file)
    again = keras.saving.load_model(tmp_path / file)
    again(data(shape, 9, 30), training=True)
    same(values(again), values(model))


def test_gradients_are_of_g_and_v(kernel, rng):
    """After initialization: as for a layer that began with these g and b."""
    x = data((64, 7))
    wrapper = kn.WeightNormalization(L.Dense(5, "tanh"))
    wrapper(x, training=True)
    other = kn.WeightNormalization(L.Dense(5, "tanh"), data_init=False)
    other(x)
    found = []
    g = wrapper.gains[0] + wrapper.g_offset
    weights = wrapper.layer.kernel.numpy(), wrapper.layer.bias + wrapper.bias_offset
    for weight, value in zip((*other.gains, *other.layer.weights), (g, *weights), strict=True):
        weight.assign(value)
    for layer in (wrapper, other):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, training=True) ** 2)
        found.append(tape.gradient(loss, [w.value for w in layer.trainable_weights]))
    for got, want in zip(*found, strict=True):
        want = want.numpy().astype("float64")
        support.close(got, want, atol=2e-5 * np.abs(want).max())


def test_gradients_of_the_first_batch_leave_out_what_was_measured():
    """The offsets are constants: a loss has the same gradients in the batch after."""
    x = data((64, 7))
    wrapper = kn.WeightNormalization(L.Dense(5, "tanh"))
    found = []
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(wrapper(x, training=True) ** 2)
        found.append(tape.gradient(loss, [w.value for w in wrapper.trainable_weights]))
    for got, want in zip(*found, strict=True):
        want = want.numpy().astype("float64")
        support.close(got, want, atol=2e-5 * np.abs(want).max())


# What is refused, and what has none.


@pytest.mark.parametrize(
    "make, arguments",
    [
        (lambda: L.LSTM(5), {}),
        (lambda: L.Embedding(11, 5), {}),
        (lambda: L.SeparableConv2D(5, 3), {}),
        (lambda: L.TimeDistributed(L.Dense(5)), {}),
        (lambda: L.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="e"), {}),
        (lambda: L.Dense(5), {"axis": 1}),
        (lambda: L.Dense(5), {"weight_names": ["kernel"]}),
    ],
)
def test_where_there_is_nothing_to_measure(make, arguments):
    with pytest.raises(ValueError) as caught:
        kn.WeightNormalization(make(), data_init=True, **arguments)
    assert str(caught.value).startswith(
        "`data_init=True` needs a layer with pre-activations (Dense, EinsumDense with a bias for "
        "each output or none, Conv1D to Conv3D, DepthwiseConv, Conv*Transpose), and neither "
        "`weight_names` nor `axis`: wrap the layers inside of others. Received: layer=<"
    )
    wrapper = kn.WeightNormalization(make(), **arguments)
    assert not wrapper.by_data and wrapper.data_init is None


def test_data_init_is_a_bool():
    with pytest.raises(TypeError, match=r"`data_init` must be a bool or None.*data_init='no'"):
        kn.WeightNormalization(L.Dense(3), data_init="no")


# Several replicas.

REPLICAS = """
import sys
import keras, numpy as np, tensorflow as tf
import keras_norms as kn

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
L = keras.layers

def batches(x, sizes):
    first = np.cumsum([0, *sizes])
    def own(context):
        rank = context.replica_id_in_sync_group
        return tf.constant(x[first[rank] : first[rank + 1]])
    return mirrored.experimental_distribute_values_from_function(own)

def check(make, shape, sizes, mean, axes, in_graph):
    x = np.random.default_rng(3).normal(mean, 2, (sum(sizes), *shape)).astype("float32")
    x[: sizes[0]] += 3  # the replicas' own moments differ
    with mirrored.scope():
        wrapper = kn.WeightNormalization(make())
        wrapper.build((None, *shape))
    def run(x):
        return mirrored.run(lambda x: wrapper(x, training=True), args=(x,))
    (tf.function(run) if in_graph else run)(batches(x, sizes))
    for weight in (wrapper.g_offset, wrapper.bias_offset, wrapper.initialized):
        own = [v.numpy() for v in weight._value.values]
        assert len(own) == 2
        np.testing.assert_array_equal(*own, err_msg=weight.name)
    plain = wrapper.remove()
    config = {**plain.get_config(), "activation": None, "dtype": "float64"}
    exact = type(plain).from_config(config)
    exact(x.astype("float64"))
    exact.set_weights(plain.get_weights())
    t = np.asarray(exact(x.astype("float64")))
    what = f"{type(plain).__name__}, {sizes}, {mean}, {in_graph}"
    np.testing.assert_allclose(t.std(axes), 1, atol=0.01, err_msg=what)
    np.testing.assert_allclose(t.mean(axes), 0, atol=0.02, err_msg=what)
    alone = kn.WeightNormalization(make())
    alone(x)
    alone.layer.set_weights(wrapper.layer.get_weights())
    alone.gains[0].assign(wrapper.gains[0].numpy())
    alone(x, training=True)
    for name in ("g_offset", "bias_offset"):
        got, want = (getattr(layer, name).numpy() for layer in (wrapper, alone))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * (1 + mean), err_msg=what)

dense = lambda: L.Dense(5, "relu")
for sizes, mean, in_graph in (((50, 7), 1.0, True), ((0, 40), 1e4, True), ((20, 30), 1.0, False)):
    check(dense, (7,), sizes, mean, (0,), in_graph)
if kn.kernel_info().fused:
    kn.set_kernel("fused")
check(lambda: L.Conv2D(4, 3, activation="relu"), (6, 5, 3), (4, 3), 1.0, (0, 1, 2), True)

# Under fit, over two steps: set once.
with mirrored.scope():
    wrapper = kn.WeightNormalization(L.Dense(3, "relu"))
    model = keras.Sequential([keras.Input((7,)), wrapper])
    model.compile(keras.optimizers.SGD(1e-9), "mse")
x = np.random.default_rng(5).normal(2, 3, (48, 7)).astype("float32")
model.fit(x, np.zeros((48, 3)), batch_size=24, shuffle=False, verbose=0)
plain = wrapper.remove()
t = x[:24] @ np.asarray(plain.kernel) + np.asarray(plain.bias)
np.testing.assert_allclose(t.std(0), 1, atol=0.01)
np.testing.assert_allclose(t.mean(0), 0, atol=0.02)
print("done")
"""


@pytest.mark.slow
def test_two_replicas_share_their_statistics():
    assert support.run_python(REPLICAS).stdout.strip().endswith("done")


# What it is for.


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_badly_scaled_net_learns(activation):
    """Six layers of small kernels: no signal comes through, until their lengths are set by data."""
    sklearn = pytest.importorskip("sklearn.datasets")
    digits = sklearn.load_digits()
    x, target = (digits.data / 16).astype("float32"), digits.target

    def loss(data_init, seed):  # 0.10 to 0.25 against 2.303 for other seeds
        keras.utils.set_random_seed(seed)
        small = keras.initializers.RandomNormal(stddev=0.05)
        hidden = [
            kn.WeightNormalization(L.Dense(64, activation, kernel_initializer=small), data_init)
            for _ in range(5)
        ]
        last = kn.WeightNormalization(L.Dense(10, kernel_initializer=small), data_init)
        model = keras.Sequential([keras.Input((64,)), *hidden, last])
        crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.SGD(0.003, momentum=0.9)
        model.compile(optimizer, crossentropy, jit_compile=False)
        return model.fit(x, target, batch_size=64, epochs=3, verbose=0).history["loss"][-1]

    assert loss(True, 1) < 0.5
    assert loss(False, 1) > 2.29  # log(10) is chance
