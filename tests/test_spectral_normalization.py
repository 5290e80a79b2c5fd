"""Keras' form beside Keras' layer, and the reparametrization beside the singular values."""

import keras
import numpy as np
import pytest
import reference_kernels as reference
import support
import tensorflow as tf
from keras import layers as L

import keras_norms as kn

# Float32 results of the same operations in another order.
CLOSE = 2e-6

# As in test_reparametrization.py: a layer, its input, its axes of outputs.
KINDS = {
    "Dense": (lambda: L.Dense(5), (3, 7), (1,)),
    "Conv2D": (lambda: L.Conv2D(6, 3, groups=1), (2, 7, 5, 4), (3,)),
    "Conv2DTranspose": (lambda: L.Conv2DTranspose(6, 3), (2, 4, 3, 5), (2,)),
    "DepthwiseConv2D": (lambda: L.DepthwiseConv2D(3, depth_multiplier=2), (2, 7, 4, 5), (2, 3)),
    "EinsumDense": (
        lambda: L.EinsumDense("abc,cde->abde", (None, 3, 5), bias_axes="de"),
        (2, 4, 7),
        (1, 2),
    ),
    "Embedding": (lambda: L.Embedding(11, 5), (3, 4), (0,)),
}


def of(name, seed=3):
    draw = np.random.default_rng(seed)
    make, shape, axes = KINDS[name]
    x = draw.normal(size=shape).astype("float32")
    return make(), draw.integers(0, 11, shape) if name == "Embedding" else x, axes


def arrays(layer):
    return {weight.path.split("/", 1)[1]: weight.numpy() for weight in layer.weights}


# Keras' form.


@pytest.mark.parametrize(
    "name, rounds, mode",
    [
        *((name, 1, "graph") for name in ("Dense", "Conv2D", "Conv2DTranspose", "Embedding")),
        *(("Dense", 3, "eager"), ("Dense", 1, "xla")),
    ],
)
def test_as_keras(name, rounds, mode):
    inner, x, _ = of(name)
    theirs = keras.layers.SpectralNormalization(inner, rounds)
    theirs(x)
    ours = kn.SpectralNormalization(type(inner).from_config(inner.get_config()), rounds)
    ours(x)
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]
    assert [w.name for w in ours.trainable_weights] == [w.name for w in theirs.trainable_weights]
    ours.set_weights(theirs.get_weights())
    calls = [
        support.compiled(lambda x, layer=layer: layer(x, training=True), mode)
        for layer in (ours, theirs)
    ]
    for _ in range(3):
        got, want = (call(tf.constant(x)) for call in calls)
        if want.dtype.is_floating:  # theirs casts an embedding to the type of its tokens
            support.close(got, np.asarray(want, "float64"), atol=CLOSE)
        for one, other in zip(ours.weights, theirs.weights, strict=True):
            support.close(one.numpy(), other.numpy().astype("float64"), atol=CLOSE, what=one.name)
    got, want = (layer(x, training=False) for layer in (ours, theirs))
    if want.dtype.is_floating:
        support.close(got, np.asarray(want, "float64"), atol=CLOSE)


def test_gradients_as_keras(rng):
    """Of a training call: through the layer, not through the division."""
    x = rng.normal(size=(3, 7)).astype("float32")
    layers = [cls(L.Dense(5)) for cls in (kn.SpectralNormalization, L.SpectralNormalization)]
    for layer in layers:
        layer(x)
    layers[0].set_weights(layers[1].get_weights())
    found = []
    for layer in layers:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, training=True) ** 2)
        found.append(tape.gradient(loss, [w.value for w in layer.trainable_weights]))
    for got, want in zip(*found, strict=True):
        support.close(got, want.numpy().astype("float64"), atol=1e-5)


def test_training_as_keras(rng):
    x = rng.normal(size=(32, 7)).astype("float32")
    results = []
    for cls in (kn.SpectralNormalization, L.SpectralNormalization):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((7,)), cls(L.Dense(5))])
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        history = model.fit(x, x[:, :5], batch_size=8, epochs=2, shuffle=False, verbose=0)
        results.append((history.history["loss"], model.get_weights()))
    (ours, weights), (theirs, others) = results
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for got, want in zip(weights, others, strict=True):
        support.close(got, want.astype("float64"), atol=1e-5)


@pytest.mark.parametrize("file", ["a.keras", "a.h5", "a.weights.h5"])
def test_files_as_keras(file, tmp_path, rng):
    """Weights go both ways."""
    x = rng.normal(size=(3, 7)).astype("float32")
    classes = (kn.SpectralNormalization, L.SpectralNormalization)
    for cls, other in (classes, classes[::-1]):
        model = keras.Sequential([keras.Input((7,)), cls(L.Dense(5), name="sn")])
        model(x, training=True)
        again = keras.Sequential([keras.Input((7,)), other(L.Dense(5), name="sn")])
        if file == "a.weights.h5":
            model.save_weights(tmp_path / file)
            again.load_weights(tmp_path / file)
        else:
            model.save(tmp_path / file)
            again.set_weights(keras.saving.load_model(tmp_path / file).get_weights())
        np.testing.assert_array_equal(again(x), model(x))
        np.testing.assert_array_equal(
            again.layers[0].get_weights()[1], model.layers[0].get_weights()[1]
        )


def test_configs_as_keras():
    for cls, other in (
        (kn.SpectralNormalization, L.SpectralNormalization),
        (L.SpectralNormalization, kn.SpectralNormalization),
    ):
        config = cls(L.Dense(5, name="d"), 3, name="sn").get_config()
        again = other.from_config({**config, "layer": dict(config["layer"])})
        assert again.get_config() == config
        assert (again.name, again.power_iterations, again.layer.units) == ("sn", 3, 5)


@pytest.mark.parametrize(
    "arguments", [{"power_iterations": 0}, {"power_iterations": -1}], ids=["zero", "negative"]
)
def test_errors_as_keras(arguments):
    for cls in (kn.SpectralNormalization, L.SpectralNormalization):
        with pytest.raises(ValueError, match=r"greater than zero. Received"):
            cls(L.Dense(5), **arguments)
    for cls in (kn.SpectralNormalization, L.SpectralNormalization):
        with pytest.raises(ValueError, match="no attribute 'kernel' nor 'embeddings'"):
            cls(L.LSTM(5))(np.ones((2, 3, 4), "float32"))
        layer = cls(L.Dense(5))
        layer(np.ones((2, 3), "float32"))
        with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 3"):
            layer(np.ones((2, 4), "float32"))


@pytest.mark.parametrize("reparam, mode", [(False, "graph"), (True, "graph"), (True, "xla")])
def test_kernel_of_zeros(reparam, mode):
    """Nothing to turn to: u stays, the result is finite, gradients too."""
    layer = kn.SpectralNormalization(L.Dense(5, kernel_initializer="zeros"), reparam=reparam)
    x = tf.ones((3, 7))
    layer(x)
    u = layer.vectors_u[0].numpy()

    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((layer(x, training=True) - 1) ** 2)
        return loss, tape.gradient(loss, layer.layer.kernel.value)

    loss, gradient = support.compiled(step, mode)(x)
    assert float(loss) == 15 and np.isfinite(gradient).all()
    np.testing.assert_array_equal(layer.vectors_u[0].numpy(), u)
    np.testing.assert_array_equal(layer.layer.kernel.numpy(), np.zeros((7, 5)))


# The reparametrization.


def test_where_keras_is_otherwise(rng):
    """There a forward call changes the kernel, and a transposed convolution's axis is its inputs'.

    And the gradient has a part along the kernel, and some layers have no such form.
    """
    found = {}
    for make in (
        lambda layer: kn.SpectralNormalization(layer, reparam=True),
        keras.layers.SpectralNormalization,
    ):
        keras.utils.set_random_seed(3)
        wrapper = make(L.Dense(5))
        x = rng.normal(size=(30, 7)).astype("float32")
        wrapper(x)
        before = wrapper.layer.kernel.numpy()
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(wrapper(x, training=True) ** 2)
        gradient = tape.gradient(loss, wrapper.layer.kernel.value).numpy()
        moved = np.abs(wrapper.layer.kernel.numpy() - before).max()
        along = abs((gradient * wrapper.layer.kernel.numpy()).sum())
        transposed = make(L.Conv2DTranspose(6, 3))
        transposed(np.ones((2, 4, 4, 5), "float32"))
        u = next(w for w in transposed.weights if w.name == "vector_u")
        found[type(wrapper).__module__.split(".")[0]] = moved, along, u.shape
    moved, along, shape = found["keras_norms"]
    assert moved == 0 and along < 1e-3 and shape == (1, 6)
    moved, along, shape = found["keras"]
    assert moved > 0.01 and along > 1 and shape == (1, 5)
    for layer, given in ((L.SeparableConv2D(6, 3), (2, 5, 5, 3)), (L.LSTM(5), (2, 4, 3))):
        x = np.ones(given, "float32")
        with pytest.raises(ValueError, match="no attribute"):
            keras.layers.SpectralNormalization(type(layer).from_config(layer.get_config()))(x)
        wrapper = kn.SpectralNormalization(layer, reparam=True)
        wrapper(x, training=True)
        assert len(wrapper.vectors_u) == 2


@pytest.mark.parametrize("name", KINDS)
def test_sigma_is_the_largest_singular_value(name):
    inner, x, axes = of(name)
    layer = kn.SpectralNormalization(inner, power_iterations=50, reparam=True)
    layer(x)
    for _ in range(4):
        layer(x, training=True)
    plain = layer.remove()
    (weight,) = (w for w in inner.weights if w.name in ("kernel", "embeddings"))
    (given,) = (w for w in plain.weights if w.name in ("kernel", "embeddings"))
    matrix = reference.columns(weight.numpy().astype("float64"), axes)
    u, v = layer.vectors_u[0].numpy(), layer.vectors_v[0].numpy()
    assert (u.shape, v.shape) == ((1, matrix.shape[1]), (1, matrix.shape[0]))
    largest = np.linalg.svd(matrix, compute_uv=False)[0]
    np.testing.assert_allclose((v @ matrix @ u.T).item(), largest, rtol=1e-3)
    computed = reference.columns(given.numpy().astype("float64"), axes)
    np.testing.assert_allclose(np.linalg.svd(computed, compute_uv=False)[0], 1, rtol=1e-3)


def test_the_first_rounds_are_near_already(rng):
    """15 of them, as in PyTorch."""
    layer = kn.SpectralNormalization(L.Dense(64), reparam=True)
    layer(rng.normal(size=(2, 32)).astype("float32"))
    matrix = layer.layer.kernel.numpy().astype("float64")
    u, v = layer.vectors_u[0].numpy(), layer.vectors_v[0].numpy()
    np.testing.assert_allclose([np.square(u).sum(), np.square(v).sum()], 1, rtol=1e-6)
    largest = np.linalg.svd(matrix, compute_uv=False)[0]
    assert 0.95 * largest < (v @ matrix @ u.T).item() < largest * (1 + 1e-6)


@pytest.mark.parametrize("name", ["Dense", "Conv2DTranspose", "DepthwiseConv2D"])
def test_gradient_has_no_part_along_the_kernel(name, rng):
    """<dL/dW, W> = 0, whatever the loss; Keras' form has about 30."""
    inner, x, _ = of(name)
    layer = kn.SpectralNormalization(inner, reparam=True)
    layer(x)
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
        loss = tf.reduce_sum(y * rng.normal(size=y.shape).astype("float32"))
    gradient = tape.gradient(loss, inner.kernel.value)
    kernel = inner.kernel.numpy()
    size = np.sqrt(np.square(gradient).sum() * np.square(kernel).sum())
    assert size > 1 and abs(np.sum(gradient * kernel)) < 1e-5 * size


@pytest.mark.parametrize("rounds", [1, 4])
def test_rounds_by_the_reference(rounds, rng):
    x = rng.normal(size=(3, 7)).astype("float32")
    layer = kn.SpectralNormalization(L.Dense(5), rounds, reparam=True)
    layer(x)
    layer.layer.kernel.assign(rng.normal(size=(7, 5)))
    matrix = layer.layer.kernel.numpy().astype("float64")
    u = layer.vectors_u[0].numpy()
    for _ in range(3):
        y = layer(x, training=True)
        u, v = reference.power_method(matrix, u, rounds)
        support.close(layer.vectors_u[0].numpy()[0], u, atol=CLOSE)
        support.close(layer.vectors_v[0].numpy()[0], v, atol=CLOSE)
        support.close(y, x @ reference.spectral(matrix, u, v), atol=1e-5)
    before = [w.numpy() for w in layer.weights]
    for training in (False, None):
        support.close(layer(x, training=training), y.numpy().astype("float64"), atol=CLOSE)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_several_kernels(rng):
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    layer = kn.SpectralNormalization(L.LSTM(5), 30, reparam=True)
    layer(x)
    names = ["vector_u_kernel", "vector_v_kernel", "vector_u_recurrent_kernel"]
    assert [w.name for w in layer.weights][:3] == names
    tf.function(lambda x: layer(x, training=True))(x)
    kernel, recurrent, _ = (w.numpy() for w in layer.remove().weights)
    for matrix in (kernel, recurrent):
        np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False)[0], 1, rtol=1e-3)


def test_a_cell_in_a_loop(rng):
    """Each step of a training call has its rounds, inside of the loop."""
    x = rng.normal(size=(2, 6, 3)).astype("float32")
    cell = kn.SpectralNormalization(L.SimpleRNNCell(5), 10, reparam=True)
    layer = L.RNN(cell)
    layer(x)
    cell.layer.kernel.assign(rng.normal(size=(3, 5)))
    step = tf.function(lambda x: layer(x, training=True))
    assert np.isfinite(step(x)).all()
    kernel = cell.remove().kernel.numpy()
    np.testing.assert_allclose(np.linalg.svd(kernel, compute_uv=False)[0], 1, rtol=1e-3)


def test_bounded_slope(rng):
    """A net of such layers and relu is 1-Lipschitz, as a GAN's critic should be."""
    layers = [kn.SpectralNormalization(L.Dense(16, "relu"), 20, reparam=True) for _ in range(3)]
    x, step = rng.normal(size=(2, 200, 8)).astype("float32")
    y, moved = x, x + step
    for layer in layers:
        y = layer(y, training=True)
        moved = layer(moved)
    slopes = np.linalg.norm(moved - y, axis=-1) / np.linalg.norm(step, axis=-1)
    assert slopes.max() < 1 + 1e-3


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        (
            {"power_iterations": 0},
            ValueError,
            "`power_iterations` must be greater than zero. Received: power_iterations=0.",
        ),
        ({"power_iterations": 1.5}, TypeError, "'float' object cannot be interpreted as an int"),
        ({"epsilon": 0}, ValueError, "`epsilon` must be positive. Received: epsilon=0."),
        ({"epsilon": -1e-3}, ValueError, "`epsilon` must be positive. Received: epsilon=-0.001."),
        ({"epsilon": "x"}, TypeError, "`epsilon` must be a number. Received: epsilon='x'."),
        (
            {"axis": 0},
            ValueError,
            "`weight_names` and `axis` need `reparam=True`: Keras' form has one kernel. Received: "
            "weight_names=None, axis=0, reparam=False.",
        ),
        (
            {"weight_names": ["kernel"]},
            ValueError,
            "`weight_names` and `axis` need `reparam=True`: Keras' form has one kernel. Received: "
            "weight_names=['kernel'], axis=None, reparam=False.",
        ),
    ],
)
def test_errors(arguments, error, says):
    with pytest.raises(error) as caught:
        kn.SpectralNormalization(L.Dense(5), **arguments)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e20, np.nan])
def test_a_strange_kernel_does_not_stop_the_power_method(size, mode, rng):
    """When it is an ordinary one again, its norm becomes 1."""
    wrapper = kn.SpectralNormalization(L.Dense(4, kernel_initializer="zeros"), reparam=True)
    x, kernel = rng.normal(size=(6, 5)).astype("float32"), rng.normal(size=(5, 4)) * 3
    wrapper.build(x.shape)
    run = support.compiled(lambda x: wrapper(x, training=True), mode)
    for factor in (size, 1.0):
        wrapper.layer.kernel.assign(kernel * factor)
        for _ in range(30):
            run(tf.constant(x))
        if factor == 1 or factor > 1e3:
            largest = np.linalg.svd(wrapper.remove().kernel.numpy().astype("float64"))[1][0]
            assert abs(largest - 1) < 1e-3
