"""The ways of BatchNormalization to keep and to use statistics, and `recompute_statistics`."""

import keras
import numpy as np
import pytest
import reference
import support
import tensorflow as tf

import keras_norms as kn

SHAPE, AXES = (8, 5, 7, 3), (0, 1, 2)


def batches(count=3, mean=3.0, shape=SHAPE, seed=3):
    draw = np.random.default_rng(seed)
    return [draw.normal(mean, 1 + i, shape).astype("float32") for i in range(count)]


def close_statistics(layer, mean, variance, scale=1.0):
    """A few roundings; far from zero the mean's own."""
    atol = 8 * support.EPS32 * (scale + np.abs(mean).max())
    support.close(layer.moving_mean, mean, atol=atol)
    support.close(layer.moving_variance, variance, atol=0, rtol=3e-5)


# Renormalization, as Keras has it.

CLIPPINGS = [None, {"rmax": 1.5}, {"rmin": 0.5, "rmax": 2.0, "dmax": 0.3}, {"dmax": 0.0}]


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_renorm_is_that_of_keras(clipping, kernel):
    """Outputs, gradients and every moving statistic over several steps."""
    arguments = {"renorm": True, "renorm_clipping": clipping, "renorm_momentum": 0.8}
    ours = support.built(kn.BatchNormalization(momentum=0.7, **arguments), SHAPE)
    theirs = keras.layers.BatchNormalization(momentum=0.7, **arguments)
    theirs.build(SHAPE)
    assert [w.name for w in ours.weights] == [w.name for w in theirs.weights]
    theirs.set_weights(ours.get_weights())
    dy = np.random.default_rng(9).normal(size=SHAPE).astype("float32")
    for x in batches():
        got, want = (support.runner(v, "graph", training=True)(x, dy) for v in (ours, theirs))
        for part in ("y", "dx", "dgamma", "dbeta"):
            a, b = getattr(got, part), getattr(want, part).astype("float64")
            support.close(a, b, atol=2e-5 * np.abs(b).max(), what=part)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        support.close(a, b.numpy().astype("float64"), atol=2e-6 * np.abs(b.numpy()).max())
    got, want = ours(x), theirs(x)
    support.close(got, want.numpy().astype("float64"), atol=2e-5)


@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_renorm_far_from_zero(mean, kernel):
    """Keras: y off by 5e-3 at a mean of 1e4."""
    layer = support.built(kn.BatchNormalization(renorm=True), SHAPE)
    layer.renorm_mean.assign([mean] * 3)
    x = batches(1, mean)[0]
    gamma, beta = (v.astype("float64") for v in support.parameters(layer))
    y = layer(x, training=True)
    exact = reference.batch_norm(x, None, None)
    r = np.sqrt(exact.variance + 1e-3)  # renorm_stddev is 1
    want = (exact.y * r + (exact.mean - mean)) * gamma + beta
    # d is a difference of the means, of which the moving one is a float32.
    atol = 4 * support.FORWARD[kernel] * np.abs(gamma).max() + np.spacing(np.float32(mean)) * 2
    support.close(y, want, atol=atol)


def test_renorm_errors():
    for clipping, message in (
        ({"max": 1}, r"`renorm_clipping` may have the keys .* Received: renorm_clipping="),
        ({"rmin": 2, "rmax": 1}, r"`rmax` must be at least `rmin` .*'rmax': 1"),
        ({"dmax": -1}, r"`dmax` must be at least 0 .*'dmax': -1"),
    ):
        with pytest.raises(ValueError, match=message):
            kn.BatchNormalization(renorm=True, renorm_clipping=clipping)


# Ghost batches.


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("axis", [-1, 1])
def test_virtual_batches(size, axis, kernel, mode):
    """Each by itself, the last one smaller; the moving statistics are the whole batch's."""
    x = np.moveaxis(batches(1)[0], -1, axis)
    dy = np.random.default_rng(9).normal(size=x.shape).astype("float32")
    layer = kn.BatchNormalization(axis, momentum=0.0, virtual_batch_size=size)
    support.built(layer, x.shape)
    gamma, beta = support.parameters(layer)
    got = support.runner(layer, mode, training=True)(x, dy)
    parts = [slice(i, i + size) for i in range(0, len(x), size)]
    want = [reference.batch_norm(x[p], gamma, beta, axis=axis).y for p in parts]
    back = [reference.batch_norm_gradients(dy[p], x[p], gamma, axis=axis) for p in parts]
    atol = support.FORWARD[kernel] * support.largest(gamma)
    support.close(got.y, np.concatenate(want), atol=atol, rtol=2.0**-24)
    dx = np.concatenate([b.dx for b in back])
    atol = support.GRADIENT * np.abs(dx).max() + 8 * support.EPS32 * max(b.scale for b in back)
    support.close(got.dx, dx, atol=atol)
    for name in ("dgamma", "dbeta"):
        value = sum(getattr(b, name) for b in back)
        atol = support.GRADIENT * np.abs(value).max() + 8 * support.EPS32 * np.abs(dy).max()
        support.close(getattr(got, name), value, atol=atol)
    whole = reference.batch_norm(x, None, None, axis=axis)
    close_statistics(layer, whole.mean.ravel(), whole.variance.ravel())


@pytest.mark.parametrize("jit", [False, True])
def test_virtual_batches_of_unknown_batch_size(jit, kernel):
    layer = support.built(kn.BatchNormalization(virtual_batch_size=3), SHAPE)
    gamma, beta = support.parameters(layer)
    spec = tf.TensorSpec((None, *SHAPE[1:]))
    run = tf.function(
        lambda x: layer(x, training=True), input_signature=[spec], jit_compile=jit, autograph=False
    )
    for samples in (7, 6, 2, 0):
        x = batches(1, shape=(samples, *SHAPE[1:]))[0]
        want = [reference.batch_norm(x[i : i + 3], gamma, beta).y for i in range(0, samples, 3)]
        atol = support.FORWARD[kernel] * support.largest(gamma)
        support.close(run(x), np.concatenate([x[:0], *want]), atol=atol, rtol=2.0**-24)


def test_virtual_batches_with_a_mask(kernel):
    x = batches(1, shape=(5, 11, 3))[0]
    mask = np.random.default_rng(2).uniform(size=(5, 11)) < 0.6
    layer = kn.BatchNormalization(virtual_batch_size=2, momentum=0.0, center=False, scale=False)
    got = layer(x, training=True, mask=tf.constant(mask))
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        want = reference.batch_norm(x[part], None, None, where=mask[part, :, None])
        support.close(got[part], want.y, atol=support.FORWARD["portable"], rtol=2.0**-24)
    whole = reference.batch_norm(x, None, None, where=mask[..., None])
    close_statistics(layer, whole.mean.ravel(), whole.variance.ravel())


def test_virtual_batch_errors():
    for size, error, message in (
        (0, ValueError, "`virtual_batch_size` must be at least 1. Received: virtual_batch_size=0."),
        (2.0, TypeError, "`virtual_batch_size` must be an int or None. Received: .*=2.0."),
        (True, TypeError, "`virtual_batch_size` must be an int or None. Received: .*=True."),
    ):
        with pytest.raises(error, match=message):
            kn.BatchNormalization(virtual_batch_size=size)
    for other in ("renorm", "synchronized"):
        message = f"`virtual_batch_size` and `{other}=True` exclude each other. Received: .*=4, "
        with pytest.raises(ValueError, match=message):
            kn.BatchNormalization(virtual_batch_size=4, **{other: True})
    with pytest.raises(ValueError, match=r"axis 0 holds the samples.*shape=\(8, 3\), axis=0"):
        kn.BatchNormalization(0, virtual_batch_size=4)(np.zeros((8, 3)), training=True)


# Moving statistics.


def test_cumulative_average(kernel, mode):
    """momentum=None: the plain mean of all batches, as in PyTorch; the start does not count."""
    layer = support.built(kn.BatchNormalization(momentum=None), SHAPE)
    step = support.compiled(lambda x: layer(x, training=True), mode)
    seen = batches(4)
    for count, x in enumerate(seen, 1):
        step(tf.constant(x))
        step(tf.zeros((0, *SHAPE[1:])))  # is no batch
        mean = np.mean([v.astype("float64").mean(AXES) for v in seen[:count]], 0)
        variance = np.mean([v.astype("float64").var(AXES) for v in seen[:count]], 0)
        close_statistics(layer, mean, variance)
    assert float(layer.batch_count) == 4


def test_momentum_none_round_trips():
    layer = kn.BatchNormalization(momentum=None)
    assert layer.get_config()["momentum"] is None
    again = kn.BatchNormalization.from_config(layer.get_config())
    again.build(SHAPE)
    assert [w.name for w in again.weights][-1] == "batch_count"


@pytest.mark.parametrize("masked", [False, True])
def test_unbiased_moving_variance(masked, kernel):
    """PyTorch and the fused op of Keras 2; Keras 2 on [1, 2, 3, 4]: 1.667, Keras 3: 1.25."""
    layer = kn.BatchNormalization(momentum=0.0, unbiased_moving_variance=True)
    layer(np.array([[1.0], [2], [3], [4]], "float32"), training=True)
    np.testing.assert_allclose(layer.moving_variance, [5 / 3], rtol=1e-6)
    x = batches(1, shape=(3, 11, 5))[0]
    mask = np.random.default_rng(2).uniform(size=(3, 11)) < 0.6 if masked else np.ones((3, 11))
    layer = kn.BatchNormalization(momentum=0.0, unbiased_moving_variance=True)
    layer(x, training=True, mask=tf.constant(mask) if masked else None)
    want = x[mask > 0].astype("float64").var(0, ddof=1)
    np.testing.assert_allclose(layer.moving_variance, want, rtol=2e-5)


def test_unbiased_variance_of_one_element(kernel):
    """cuDNN: NaN (tensorflow/tensorflow#34062). One element has no other variance than 0."""
    layer = kn.BatchNormalization(momentum=0.5, unbiased_moving_variance=True)
    layer(np.ones((1, 3), "float32"), training=True)
    np.testing.assert_array_equal(layer.moving_variance, [0.5] * 3)


def test_frozen_statistics(kernel, mode):
    """gamma and beta train by the moving statistics, which stay."""
    layer = support.built(kn.BatchNormalization(freeze_statistics=True), SHAPE)
    layer.moving_mean.assign([1.0, 2, 3])
    layer.moving_variance.assign([4.0, 1, 2])
    x, dy = batches(2)
    gamma, beta = support.parameters(layer)
    got = support.runner(layer, mode, training=True)(x, dy)
    moving = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    want = reference.frozen_batch_norm(x, gamma, beta, *moving)
    support.close(got.y, want, atol=2e-5, rtol=1e-6)
    xhat = (x - moving[0].astype("float64")) / np.sqrt(moving[1].astype("float64") + 1e-3)
    support.close(got.dgamma, (dy * xhat).sum(AXES), atol=2e-5 * np.abs(dy * xhat).sum(AXES).max())
    support.close(got.dbeta, dy.astype("float64").sum(AXES), atol=2e-5 * np.abs(dy).sum())
    np.testing.assert_array_equal(moving[0], [1, 2, 3])
    layer.freeze_statistics = False
    layer(x, training=True)
    assert np.abs(layer.moving_mean.numpy() - [1, 2, 3]).min() > 0
    assert "freeze_statistics" not in layer.get_config()


@pytest.mark.parametrize("what", ["empty", "masked"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"renorm": True}, {"synchronized": True}, {"virtual_batch_size": 2}, {"momentum": None}],
    ids=lambda a: next(iter(a), "plain"),
)
def test_batches_without_elements(what, arguments, kernel):
    """Keras: NaN, and a step towards 0. Here nothing moves, and nothing is NaN."""
    layer = support.built(kn.BatchNormalization(**arguments), (4, 5, 3))
    before = layer.get_weights()
    x = np.zeros((0, 5, 3), "float32") if what == "empty" else batches(1, shape=(4, 5, 3))[0]
    mask = tf.zeros((4, 5), "bool") if what == "masked" else None
    got = support.runner(layer, "graph", training=True, mask=mask)(x, x)
    assert np.isfinite(got.y).all() and np.isfinite(got.dx).all()
    for a, b in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


# recompute_statistics.


def model_of(*layers):
    return keras.Sequential([keras.Input((5, 3)), keras.layers.Dropout(0.9), *layers])


def data_set():
    """Batches of unequal sizes, far apart."""
    draw = np.random.default_rng(6)
    return [
        draw.normal(10 * i, 1 + i, (size, 5, 3)).astype("float32")
        for i, size in enumerate((4, 1, 7))
    ]


def test_recomputed_statistics_are_the_data_sets(kernel):
    bn = kn.BatchNormalization(name="bn")
    model = model_of(bn)
    bn.moving_mean.assign([5.0, 5, 5])
    assert kn.recompute_statistics(model, data_set(), verbose=0) == [bn.path]
    x = np.concatenate(data_set()).astype("float64")
    np.testing.assert_allclose(bn.moving_mean, x.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(bn.moving_variance, x.var((0, 1)), rtol=1e-6)
    # So inference over the whole set is standard.
    y = model.predict(x, verbose=0)
    np.testing.assert_allclose(y.std((0, 1)), np.ones(3), atol=1e-3)


def test_recompute_in_depth_and_what_is_left_alone():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.norm = kn.BatchNormalization(renorm=True)

        def call(self, x):
            return self.norm(x)

    block, frozen, still = Block(), kn.BatchNormalization(), kn.BatchNormalization(name="still")
    tracked = kn.InstanceNormalization(track_running_stats=True)
    inner = keras.Sequential([block, frozen, kn.LayerNormalization()])
    model = model_of(inner, tracked, still)
    frozen.trainable, still.freeze_statistics = False, True
    before = {layer: layer.get_weights() for layer in (frozen, still)}
    batches = tf.data.Dataset.from_tensor_slices(np.concatenate(data_set())).batch(4)
    done = kn.recompute_statistics(model, batches.map(lambda x: (x, x)), steps=2, verbose=0)
    assert set(done) == {block.norm.path, tracked.path}
    for layer, weights in before.items():
        for a, b in zip(layer.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)
    x = np.concatenate(data_set())[:8].astype("float64")
    np.testing.assert_allclose(block.norm.moving_mean, x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(block.norm.renorm_mean, x.mean((0, 1)), rtol=1e-5)
    stddev = np.sqrt(x.var((0, 1)) + 1e-3)
    for name in ("moving_stddev", "renorm_stddev"):
        np.testing.assert_allclose(getattr(block.norm, name), stddev, rtol=1e-5)


def test_recompute_shows_progress(capsys):
    model = model_of(kn.BatchNormalization())
    kn.recompute_statistics(model, data_set())
    assert "3/3" in capsys.readouterr().out
    kn.recompute_statistics(model, data_set(), verbose=0)
    assert capsys.readouterr().out == ""


def test_recompute_errors_change_nothing():
    bn = kn.BatchNormalization()
    model = model_of(bn)
    before = bn.get_weights()
    good = data_set()[0]

    def broken():
        yield good
        raise OSError("gone")

    for dataset, steps, error, message in (
        ([], None, ValueError, "`dataset` must hold a batch. Received: dataset="),
        ([good], 0, ValueError, "`steps` must be an int of at least 1 or None. Received: steps=0."),
        ([good, good[..., :2]], None, ValueError, "incompatible"),
        (broken(), None, OSError, "gone"),
    ):
        with pytest.raises(error, match=message):
            kn.recompute_statistics(model, dataset, steps, verbose=0)
        for a, b in zip(bn.get_weights(), before, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(TypeError, match=r"`model` must be a keras.Model. Received: model="):
        kn.recompute_statistics(bn, [good])
    with pytest.raises(ValueError, match="holds no layer of keras_norms with moving statistics"):
        kn.recompute_statistics(model_of(kn.LayerNormalization()), [good])


@pytest.mark.parametrize("layer", [kn.BatchNormalization, kn.BatchGroupNormalization])
def test_recomputed_unbiased_variance(layer, rng):
    """n / (n - 1) for all elements together, not for each batch: that was 60 % too large."""
    x = rng.normal(3, 2, (200, 4)).astype("float32")
    arguments = {"groups": 4} if layer is kn.BatchGroupNormalization else {}
    layer = layer(unbiased_moving_variance=True, momentum=None, **arguments)
    model = keras.Sequential([keras.Input((4,)), layer])
    kn.recompute_statistics(model, np.split(x, 100), verbose=0)
    np.testing.assert_allclose(layer.moving_variance, x.var(0, ddof=1, dtype="float64"), rtol=1e-5)
    assert float(layer.batch_count) == 100


def test_float64_data_in_float32_layers(rng):
    """NumPy's own type: everything is computed in it, and the weights stay float32."""
    x = rng.normal(3, 2, (6, 5, 4))
    mask = tf.constant(rng.uniform(size=(6, 5)) < 0.7)
    for layer in (
        kn.BatchRenormalization(),
        kn.BatchNormalization(unbiased_moving_variance=True),
        kn.BatchNormalization(unbiased_moving_variance=True, dtype="float64"),
        kn.InstanceNormalization(track_running_stats=True, unbiased_moving_variance=True),
        kn.SwitchableNormalization(unbiased_instance_variance=True),
        kn.EvoNormalizationB0(unbiased_moving_variance=True),
    ):
        for given in (None, mask):
            y = layer(x, training=True, mask=given)
            assert y.dtype == layer.compute_dtype and np.isfinite(y).all()


@pytest.mark.parametrize("spec", [(1, None), (None, None), (1, 5), (None, 1), (None,)])
def test_masks_of_open_sizes(spec, rng):
    """What broadcasts may be known at run time only; it counts as often as it is repeated."""
    x = rng.normal(3, 2, (4, 5, 3)).astype("float32")
    sizes = [5 if a else 4 for a in range(len(spec))]
    shape = [given or size for given, size in zip(spec, sizes, strict=True)]
    if spec == (None, None):
        shape = [4, 1]
    mask = rng.uniform(size=shape) < 0.7
    mask.flat[0] = True
    kept = np.broadcast_to(mask.reshape(*shape, *[1] * (2 - len(shape))), (4, 5))
    for layer in (
        kn.BatchNormalization(momentum=0.0, unbiased_moving_variance=True),
        kn.BatchNormalization(momentum=0.0, unbiased_moving_variance=True, virtual_batch_size=8),
    ):
        layer.build((None, 5, 3))
        signature = [tf.TensorSpec((None, None, 3)), tf.TensorSpec(spec, "bool")]
        run = tf.function(
            lambda x, m, layer=layer: layer(x, training=True, mask=m),
            input_signature=signature,
            autograph=False,
        )
        run(x, mask)
        want = x[kept].astype("float64").var(0, ddof=1)
        np.testing.assert_allclose(layer.moving_variance, want, rtol=1e-5)


def test_arguments_of_renormalization_are_checked():
    for value in (3, -1):
        message = rf"`renorm_momentum` must be in \[0, 1\]. Received: renorm_momentum={value}."
        with pytest.raises(ValueError, match=message):
            kn.BatchNormalization(renorm=True, renorm_momentum=value)
    with pytest.raises(
        TypeError, match=r"`renorm_clipping` must be a dict or None. Received: .*=3"
    ):
        kn.BatchNormalization(renorm=True, renorm_clipping=3)
    with pytest.raises(TypeError, match=r"`axis` must be an int.* Received: axis=1.9."):
        kn.BatchNormalization(axis=1.9)
