import importlib.util

import keras
import numpy as np
import pytest
import reference_mixing
import support
import tensorflow as tf

import keras_norms as kn

SHAPE = (5, 7, 3, 6)
AVERAGES = "moving_square_mean", "moving_gradient", "step"


def relative(got, want, what=""):
    """The formula is not centred: to the bound, relative to its own size."""
    support.close(got, want, atol=4e-6 * np.abs(want).max(initial=1e-3), what=what)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla", "graph under a tape"])
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_steps_of_warm_up_and_after(mode, mean, kernel, rng):
    """y, dx and every weight, over the border between both algorithms."""
    layer = support.built(kn.PowerNormalization(warmup_steps=2, backward_momentum=0.8), SHAPE)
    weights = {name: w.astype("float64") for name, w in support.weights_of(layer).items()}
    config = layer.get_config()

    class Called:
        trainable_weights = layer.trainable_weights
        weights = layer.weights
        __call__ = staticmethod(tf.function(lambda x: layer(x, training=True), autograph=False))

    if mode == "graph under a tape":  # there the backward pass is a graph of its own
        run = support.runner(Called(), "eager")
    else:
        run = support.runner(layer, mode, training=True)
    for step in range(4):
        x, dy = rng.normal(mean, 1 + step, SHAPE), rng.normal(size=SHAPE)
        x, dy = x.astype("float32"), dy.astype("float32")
        got = run(x, dy)
        relative(got.y, reference_mixing.power_normalization(x, weights, config, True))
        arguments = dy, x, weights, config
        dx, gradients = reference_mixing.power_normalization_gradients(*arguments, True)
        # At a mean of 1e4 z is about 1 and sum(g z) cancels.
        support.close(got.dx, dx, atol=2e-5 * np.abs(dx).max(), what=f"step {step}")
        for name, value in gradients.items():
            relative(got.gradients[name], value, f"{name}, step {step}")
        weights |= reference_mixing.power_normalization_step(*arguments)
        for name in AVERAGES:
            relative(getattr(layer, name).numpy(), weights[name], f"{name}, step {step}")


@pytest.mark.parametrize("warmup_steps", [1, None])
def test_warm_up_has_the_exact_gradient(warmup_steps, kernel, rng):
    """Of the forward formula, by the complex step."""
    shape = (3, 4, 5)
    layer = support.built(kn.PowerNormalization(warmup_steps=warmup_steps), shape)
    weights, config = support.weights_of(layer), layer.get_config()
    x, dy = rng.normal(0.3, 1, (2, *shape)).astype("float32")
    want = np.zeros(shape)
    for place in np.ndindex(shape):
        z = x.astype("complex128")
        z[place] += 1e-30j
        y = reference_mixing.power_normalization(z, weights, config, True)
        want[place] = (dy * y.imag).sum() / 1e-30
    got = support.runner(layer, "eager", training=True)(x, dy)
    support.close(got.dx, want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("shape, axis", [((23, 7), -1), ((3, 11, 5), 1), ((2, 3, 2, 5, 7), -1)])
@pytest.mark.parametrize("training", [True, False])
def test_matches_reference(shape, axis, training, kernel, rng):
    layer = support.built(kn.PowerNormalization(axis, warmup_steps=0), shape)
    channels = layer.moving_gradient.shape
    run = support.runner(layer, "eager", training=training)
    for mean in (0, 1e6):
        layer.moving_square_mean.assign(rng.uniform(0.5, 2, channels) * (1 + mean**2))
        layer.moving_gradient.assign(rng.normal(size=channels))
        x, dy = support.drawn(rng, mean, shape), support.drawn(rng, 0, shape)
        support.compare(layer, x, dy, run(x, dy), kernel, training=training)


def test_gradient_by_hand():
    """One channel, x = (1, 3), psi = 2, g = (1, 0): z = (.5, 1.5), nu = .2."""
    layer = kn.PowerNormalization(epsilon=0.0, warmup_steps=0)
    layer.build((None, 1))
    layer.moving_square_mean.assign([4])
    layer.moving_gradient.assign([0.2])
    got = support.runner(layer, "eager", training=True)(
        np.array([[1], [3]], "float32"), np.array([[1], [0]], "float32")
    )
    np.testing.assert_allclose(got.y, [[0.5], [1.5]])
    np.testing.assert_allclose(got.dx, [[(1 - 0.2 * 0.5) / 2], [-0.2 * 1.5 / 2]], rtol=1e-6)
    # mean(z^2) = 1.25, mean(g z) = 0.25
    np.testing.assert_allclose(layer.moving_gradient, [0.2 * (1 - 0.125) + 0.025], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_square_mean, [0.9 * 4 + 0.1 * 5], rtol=1e-6)


def test_mask(kernel, rng):
    """In warm-up with a momentum of 0 what is masked changes no statistic, and dx is exact."""
    shape = (3, 5, 4)
    layer = support.built(kn.PowerNormalization(momentum=0.0), shape)
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    mask = rng.uniform(size=shape[:2]) < 0.6
    got = support.runner(layer, "eager", training=True, mask=tf.constant(mask))(x, dy)
    wide, gamma = x.astype("float64"), layer.gamma.numpy().astype("float64")
    square = np.square(wide[mask]).mean(0)
    relative(layer.moving_square_mean.numpy(), square)
    root = np.sqrt(square + layer.epsilon)
    z, g = wide / root, dy * gamma
    relative(got.y, z * gamma + layer.beta.numpy())
    relative(got.dx, (g - mask[..., None] * z * (g * z).sum((0, 1)) / mask.sum()) / root)


@pytest.mark.parametrize("what", ["inference", "untrainable", "frozen", "empty", "masked"])
def test_what_is_no_step(what, kernel, rng):
    layer = support.built(kn.PowerNormalization(warmup_steps=1), (None, 4))
    x = rng.normal(size=(0 if what == "empty" else 6, 4)).astype("float32")
    layer.moving_gradient.assign(np.arange(4))
    layer.moving_square_mean.assign(np.arange(4) + 1)
    layer.freeze_statistics = what == "frozen"
    layer.trainable = what != "untrainable"
    options = {"mask": tf.zeros(6, "bool")} if what == "masked" else {}
    got = support.runner(layer, "eager", training=what != "inference", **options)(x, x)
    assert np.isfinite(got.y).all() and np.isfinite(got.dx).all()
    np.testing.assert_array_equal(layer.moving_gradient, np.arange(4))
    np.testing.assert_array_equal(layer.moving_square_mean, np.arange(4) + 1)
    assert layer.step.numpy() == 0


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_fit(jit_compile, dtype, rng):
    """Each batch is a step, the backward pass included, and the averages are those of the data."""
    layer = kn.PowerNormalization(warmup_steps=2, momentum=0.5, dtype=dtype)
    layers = [keras.layers.Dense(3, dtype="float32"), layer, keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
    x = rng.normal(size=(12, 4)).astype("float32")
    model.fit(x, x[:, :1], batch_size=4, verbose=0, shuffle=False)
    assert layer.step.numpy() == 3
    square = np.square(layers[0](x).numpy().astype("float64")).reshape(3, 4, 3).mean(1)
    want = np.ones(3)
    for batch in square:
        want = (want + batch) / 2
    support.close(layer.moving_square_mean, want, atol=1e-5)
    assert np.isfinite(layer.moving_gradient).all() and np.abs(layer.moving_gradient).min() > 0


def test_cumulative_average(rng):
    layer = kn.PowerNormalization(momentum=None)
    x = rng.normal(2, 1, (2, 9, 3)).astype("float32")
    for batch in x:
        layer(batch, training=True)
    want = np.square(x.astype("float64")).mean((0, 1))
    support.close(layer.moving_square_mean, want, atol=2e-6)


def test_recomputed_average_is_that_of_all_batches(rng):
    layer = kn.PowerNormalization(warmup_steps=0)
    model = keras.Sequential([keras.Input((3,)), layer])
    batches = [rng.normal(i, 1 + i, (n, 3)).astype("float32") for i, n in enumerate((5, 3))]
    assert kn.recompute_statistics(model, batches, verbose=0) == [layer.path]
    want = np.square(np.concatenate(batches).astype("float64")).mean(0)
    support.close(layer.moving_square_mean, want, atol=2e-6)
    assert layer.step.numpy() == 0


def test_steps_on_pytorch():
    needs("torch")
    script = """
        import sys
        sys.path.insert(0, "tests")
        import numpy as np, torch, reference_mixing, keras_norms as kn
        x, dy = np.random.default_rng(0).normal(0.3, 1, (2, 6, 3)).astype("float32")
        layer = kn.PowerNormalization(warmup_steps=1)
        layer.build(x.shape)
        weights = {w.name: w.value.detach().numpy().copy() for w in layer.weights}
        for _ in range(3):
            given = torch.tensor(x, requires_grad=True)
            layer(given, training=True).backward(torch.tensor(dy))
            arguments = dy, x, weights, layer.get_config()
            want, _ = reference_mixing.power_normalization_gradients(*arguments, True)
            np.testing.assert_allclose(given.grad, want, atol=2e-6)
            weights |= reference_mixing.power_normalization_step(*arguments)
        for weight in layer.weights:
            np.testing.assert_allclose(weight.value.detach(), weights[weight.name], atol=2e-6)
    """
    support.run_python(script, env={"KERAS_BACKEND": "torch"})


def test_jax_trains_in_warm_up_only():
    needs("jax")
    script = """
        import numpy as np, keras_norms as kn
        x = np.ones((6, 3), "float32")
        assert kn.PowerNormalization(warmup_steps=None)(x, training=True).shape == x.shape
        try:
            kn.PowerNormalization(warmup_steps=3)(x, training=True)
        except NotImplementedError as error:
            print(error)
    """
    result = support.run_python(script, env={"KERAS_BACKEND": "jax"})
    assert (
        "`PowerNormalization` changes `moving_gradient` in the backward pass, which JAX cannot do; "
        "`warmup_steps=None` trains by the batch's statistics throughout. Received: warmup_steps=3."
    ) in result.stdout


def needs(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        (
            {"backward_momentum": 2},
            ValueError,
            "`backward_momentum` must be in [0, 1]. Received: backward_momentum=2.",
        ),
        (
            {"warmup_steps": -1},
            ValueError,
            "`warmup_steps` must be at least 0. Received: warmup_steps=-1.",
        ),
        (
            {"warmup_steps": "3"},
            TypeError,
            "`warmup_steps` must be a number. Received: warmup_steps='3'.",
        ),
    ],
)
def test_errors(arguments, kind, message):
    with pytest.raises(kind) as error:
        kn.PowerNormalization(**arguments)
    assert str(error.value) == message


def test_weights_and_config():
    layer = kn.PowerNormalization(1, center=False, moving_square_mean_initializer="zeros")
    layer.build((None, 7, None))
    shapes = {"gamma": (7,), "moving_square_mean": (7,), "moving_gradient": (7,), "step": ()}
    assert {w.name: tuple(w.shape) for w in layer.weights} == shapes
    np.testing.assert_array_equal(layer.moving_square_mean, np.zeros(7))
    config = layer.get_config()
    assert (config["warmup_steps"], config["backward_momentum"]) == (10000, 0.9)
    assert not {"moving_mean_initializer", "moving_variance_initializer"} & set(config)
