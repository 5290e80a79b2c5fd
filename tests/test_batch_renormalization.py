import numpy as np
import pytest
import support

import keras_norms as kn

SHAPE = (5, 7, 3, 6)
PAPER = {"rmin": 1 / 3, "rmax": 3, "dmax": 5}


def pair(clipping, other, **arguments):
    """The layer, and `BatchNormalization` with the same weights."""
    layer = support.built(kn.BatchRenormalization(renorm_clipping=clipping, **arguments), SHAPE)
    base = kn.BatchNormalization(renorm=True, renorm_clipping=other, **arguments)
    base.build(SHAPE)
    layer.renorm_mean.assign([3, 2.9, 3.1, 3, 20, -20])
    layer.renorm_stddev.assign([1, 0.9, 1.1, 9, 0.1, 1])  # r and d meet their bounds
    base.set_weights(layer.get_weights())
    return layer, base


@pytest.mark.parametrize("clipping, other", [(None, PAPER), ({}, None), ({"rmax": 2}, {"rmax": 2})])
def test_is_batch_normalization_with_renorm(clipping, other, kernel, rng):
    layer, base = pair(clipping, other, momentum=0.7, renorm_momentum=0.8)
    for step in range(3):
        x, dy = rng.normal(3 + step, 1, SHAPE), rng.normal(size=SHAPE)
        x, dy = x.astype("float32"), dy.astype("float32")
        got, want = (support.runner(v, "eager", training=step < 2)(x, dy) for v in (layer, base))
        np.testing.assert_array_equal(got.y, want.y)
        np.testing.assert_array_equal(got.dx, want.dx)
    for a, b in zip(layer.weights, base.weights, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape, axis", [(SHAPE, -1), ((3, 11, 5), 1), ((7, 9), -1)])
def test_matches_reference(shape, axis, kernel):
    layer = kn.BatchRenormalization(axis)
    support.built(layer, shape)
    run = support.runner(layer, "eager", training=True)
    draw = np.random.default_rng(3)
    for mean in support.MEANS:
        channels = layer.renorm_mean.shape
        layer.renorm_mean.assign(draw.normal(mean, 1, channels))
        layer.renorm_stddev.assign(draw.uniform(0.2, 5, channels))
        x, dy = support.drawn(draw, mean, shape), support.drawn(draw, 0, shape)
        support.compare(layer, x, dy, run(x, dy), kernel, what=f"mean {mean:g}")


def test_first_step_by_hand():
    """renorm_stddev 1 and renorm_mean 0: r = 3 at most of sqrt(100), d = 5 at most of 10."""
    layer = kn.BatchRenormalization(epsilon=0.0)
    x = np.array([[0.0], [20.0]], "float32")
    np.testing.assert_allclose(layer(x, training=True), [[-3 + 5], [3 + 5]], rtol=1e-6)
    # After it the statistics are 0.01 of the way towards a mean and a deviation of 10.
    np.testing.assert_allclose(layer.renorm_mean, [0.1], rtol=1e-5)
    np.testing.assert_allclose(layer.renorm_stddev, [1.09], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, [1.09**2], rtol=1e-6)


def test_config_has_no_renorm():
    layer = kn.BatchRenormalization(1, renorm_momentum=0.5, center=False)
    config = layer.get_config()
    assert "renorm" not in config and config["renorm_clipping"] is None
    assert (config["axis"], config["renorm_momentum"], config["center"]) == (1, 0.5, False)
    again = kn.BatchRenormalization.from_config(config)
    assert (again.renormalization.rmin, again.renormalization.rmax) == (1 / 3, 3)
    assert again.renormalization.dmax == 5


def test_errors():
    with pytest.raises(ValueError) as error:
        kn.BatchRenormalization(renorm_clipping={"rmin": 2, "rmax": 1})
    assert str(error.value) == (
        "`rmax` must be at least `rmin` in `renorm_clipping`. "
        "Received: renorm_clipping={'rmin': 2, 'rmax': 1}."
    )
    with pytest.raises(TypeError, match="renorm"):
        kn.BatchRenormalization(renorm=False)
    with pytest.raises(ValueError, match="`virtual_batch_size` and `renorm=True` exclude"):
        kn.BatchRenormalization(virtual_batch_size=2)
