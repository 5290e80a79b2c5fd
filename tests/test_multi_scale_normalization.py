import math

import numpy as np
import pytest
import reference_scales
import support
import tensorflow as tf

import keras_norms as kn

SHAPE = (5, 7, 3, 6)

# name: shape, arguments.
CASES = {
    "nchw": ((2, 6, 11, 5), {"axis": 1, "groups": 3}),
    "one group": ((2, 13, 5, 4), {"windows": (5, 3)}),
    "a group per channel": ((2, 6, 5, 3), {"windows": (3, None), "groups": -1}),
    "rank 2": ((23, 6), {"groups": 2}),
    "rank 3": ((2, 23, 5), {"windows": (9, 1)}),
    "rank 5": ((2, 3, 2, 5, 4), {"windows": (3,), "groups": 2, "axis": 2}),
    "one position": ((5, 1, 1, 6), {}),
    "one sample": ((1, 17, 3), {"windows": [None, 7], "center": False}),
    "window wider than the image": ((2, 7, 3, 5), {"windows": (11,), "scale": False}),
    "a thin image": ((2, 1, 29, 3), {"windows": (15, 3)}),
}


def made(**arguments):
    return kn.MultiScaleNormalization(**arguments)


@pytest.mark.parametrize("name", CASES)
def test_matches_reference(name, kernel):
    shape, arguments = CASES[name]
    support.check(made(**arguments), shape, kernel, "eager", means=(0, 1e6))


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_modes(mode, kernel):
    shape, arguments = CASES["nchw"]
    support.check(made(**arguments), shape, kernel, mode, means=(1e4,))


@pytest.mark.parametrize("jit", [False, True])
def test_open_sizes(jit, kernel, rng):
    """One graph; a window of 9 is the whole sample in some images and not in others."""
    layer = support.built(made(windows=(9, 3), groups=2), (2, 5, 5, 4))
    weights, config = support.weights_of(layer), layer.get_config()
    spec = [tf.TensorSpec([None, None, None, 4])]
    run = tf.function(lambda x: layer(x), input_signature=spec, jit_compile=jit, autograph=False)
    for size in ((1, 1), (2, 9), (13, 4)):
        x = rng.normal(1e4, 1, (2, *size, 4)).astype("float32")
        want = reference_scales.multi_scale_normalization(x, weights, config, True)
        atol = support.FORWARD[kernel] * support.size_of(layer, want)
        support.close(run(x), want, atol=atol, what=f"{size}")


def test_definition_by_hand():
    """Positions 1, 3, 8 and a window of 3: at the edges two positions count."""
    x = np.array([1, 3, 8], "float32").reshape(1, 3, 1)
    got = made(windows=(3,), epsilon=0.0)(x).numpy().ravel()
    want = [(1 - 2) / 1, (3 - 4) / math.sqrt(26 / 3), (8 - 5.5) / 2.5]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_windows_far_from_the_samples_mean(kernel, rng):
    """A step of 1e4 in the image: only what is near it sees it."""
    layer = support.built(made(windows=(5,)), (2, 24, 3))
    x = rng.normal(size=(2, 24, 3)).astype("float32")
    x[:, 12:] += 1e4
    want, _ = support.expected(layer, x, x)
    got = layer(x)
    rounding = 16 * support.EPS32 * 1e4  # each half is 5e3 from the mean of both
    support.close(got, want.y, atol=rounding * support.largest(layer.gamma.numpy()))
    assert np.abs(got[:, :10]).max() > 1 and np.abs(got[:, 14:]).max() > 1


# Limits.


def alike(layer, other, shape, kernel):
    """y and the gradients that both have."""
    draw = np.random.default_rng(4)
    x, dy = support.drawn(draw, 1e4, shape), support.drawn(draw, 0, shape)
    got, want = (support.runner(one, "eager")(x, dy) for one in (layer, other))
    size = support.largest(layer.gamma.numpy())
    support.close(got.y, want.y, atol=2 * support.FORWARD[kernel] * size, what="y")
    # Both sides are within the bound of the exact result.
    atol = 2 * support.GRADIENT * np.abs(want.dx).max()
    support.close(got.dx, want.dx, atol=atol, what="dx")
    for name, value in want.gradients.items():
        value = value.reshape(-1, layer.gamma.shape[0]).sum(0)
        atol = 4 * support.GRADIENT * np.abs(value).max()
        support.close(got.gradients[name], value, atol=atol, what=name)


# Arguments, and the norm that they make it.
LIMITS = {
    "instance": ({"windows": (None,), "groups": -1}, kn.InstanceNormalization, {}),
    "group": ({"windows": (None,), "groups": 2}, kn.GroupNormalization, {"groups": 2}),
    "positional": (
        {"windows": (1,), "groups": 1, "epsilon": 1e-3},
        kn.PositionalNormalization,
        {"epsilon": 1e-3, "center": True, "scale": True},
    ),
    "wide": ({"windows": (13,), "groups": 3}, kn.GroupNormalization, {"groups": 3}),
    "windows alike": ({"windows": (13, None), "groups": 3}, kn.GroupNormalization, {"groups": 3}),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limit(name, kernel):
    arguments, cls, others = LIMITS[name]
    layer = support.built(made(**arguments), SHAPE)
    other = cls(**others)
    other.build(SHAPE)
    for weight in other.weights:
        weight.assign(getattr(layer, weight.name))
    alike(layer, other, SHAPE, kernel)


def test_limit_layer_norm(kernel):
    """Over space and channels; there gamma has an element for each of their elements."""
    layer = support.built(made(windows=(None,), groups=1), SHAPE)
    other = kn.LayerNormalization([1, 2, 3])
    other.build(SHAPE)
    for weight in other.weights:
        weight.assign(np.broadcast_to(getattr(layer, weight.name), SHAPE[1:]))
    alike(layer, other, SHAPE, kernel)


def test_a_share_of_1_is_that_window(kernel, rng):
    """The mixture is by the softmax of the logits, of means and variances each."""
    layer, alone = made(windows=(3, None)), made(windows=(3,))
    x = rng.normal(size=SHAPE).astype("float32")
    layer.build(SHAPE)
    layer.mean_weights.assign([50.0, -50.0])
    layer.variance_weights.assign([50.0, -50.0])
    support.close(layer(x), alone(x).numpy().astype("float64"), atol=1e-6)
    layer.mean_weights.assign([-50.0, 50.0])
    assert np.abs(layer(x) - alone(x)).max() > 0.1


# Masks.


def masks(rng):
    """Of positions, with holes wider than a window; the last sample as a whole."""
    mask = rng.uniform(size=(4, 11, 5)) < 0.6
    mask[1] = False
    mask[1, 0, 0] = True
    mask[-1] = False
    return {
        "positions": mask,
        "rows": mask[:, :, 2],
        "one for all": mask[:1],
        "samples": mask[:, 1, 1],
    }


@pytest.mark.parametrize(
    "name, axis", [("positions", 1), ("rows", -1), ("one for all", -1), ("samples", 1)]
)
def test_mask(name, axis, kernel, rng):
    mask = masks(rng)[name]
    layer = made(windows=(3, 5, None), groups=2, axis=axis)
    shape = (4, 11, 5, 4) if axis == -1 else (4, 4, 11, 5)
    support.built(layer, shape)
    weights = {name: w.astype("float64") for name, w in support.weights_of(layer).items()}
    kept = np.broadcast_to(mask.reshape(*mask.shape, *[1] * (3 - mask.ndim)), (4, 11, 5))

    def exact(x, weights):
        return reference_scales.multi_scale_normalization(
            x, weights, layer.get_config(), True, kept
        )

    x = rng.normal(1e3, 1, shape).astype("float32")
    dy = rng.normal(size=shape).astype("float32")
    got = support.runner(layer, "eager", mask=tf.constant(mask))(x, dy)
    want = exact(x, weights)
    # Masks run on the portable path; what is outside may be far from its window's mean.
    size = max(np.abs(want).max() / 4, support.largest(layer.gamma.numpy()))
    support.close(got.y, want, atol=support.FORWARD["portable"] * size)

    def slope(change):
        return (dy * exact(*change).imag).sum() / 1e-30

    for name, gradient in got.gradients.items():
        for at in np.ndindex(gradient.shape):
            moved = weights[name].astype("complex128")
            moved[at] += 1e-30j
            value = slope((x, {**weights, name: moved}))
            atol = support.GRADIENT * (np.abs(gradient).max() + size * 10)
            np.testing.assert_allclose(gradient[at], value, rtol=0, atol=atol, err_msg=name)
    for at in rng.integers(0, x.size, 12):
        moved = x.astype("complex128")
        moved.reshape(-1)[at] += 1e-30j
        value = slope((moved, weights))
        atol = support.GRADIENT * np.abs(got.dx).max()
        np.testing.assert_allclose(got.dx.reshape(-1)[at], value, rtol=0, atol=atol)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_the_mask_hides_does_not_matter(bad, kernel, rng):
    shape = (2, 11, 4)
    layer = support.built(made(windows=(3, 5), groups=2), shape)
    x = rng.normal(size=shape).astype("float32")
    mask = np.ones(shape[:2], "bool")
    mask[:, 3:6] = False
    good = layer(x, mask=tf.constant(mask)).numpy()
    x[~mask] = bad
    np.testing.assert_array_equal(layer(x, mask=tf.constant(mask)).numpy()[mask], good[mask])


def test_mask_of_elements_without_space(kernel, rng):
    """Rank 2 with one group is layer norm, whose mask may be of channels."""
    x = rng.normal(3, 1, (4, 6)).astype("float32")
    mask = tf.constant(rng.uniform(size=(4, 6)) < 0.6)
    layer, other = made(), kn.LayerNormalization(epsilon=1e-3)
    want = other(x, mask=mask).numpy().astype("float64")
    support.close(layer(x, mask=mask), want, atol=2 * support.FORWARD[kernel])


# Arguments.


def test_mixture():
    layer = made(windows=(3, None))
    with pytest.raises(ValueError, match="`mixture` needs a layer that is built"):
        layer.mixture()
    layer.build(SHAPE)
    assert layer.mixture() == {"mean": {3: 0.5, None: 0.5}, "variance": {3: 0.5, None: 0.5}}
    layer.variance_weights.assign(np.log([1.0, 3.0]))
    np.testing.assert_allclose(list(layer.mixture()["variance"].values()), [0.25, 0.75], rtol=1e-6)
    assert layer.mixture()["mean"] == {3: 0.5, None: 0.5}


@pytest.mark.parametrize(
    "given", [(), (2,), (-3,), (0,), (3, 3), (None, None), (3.0,), (True,), ("3",), ([3],), 3, None]
)
def test_windows_are_checked(given):
    with pytest.raises(ValueError) as error:
        made(windows=given)
    assert str(error.value) == (
        "`windows` must be a list or tuple of at least one window, none twice: an odd positive "
        "int, which holds for every axis of space, or None for the whole sample. "
        f"Received: windows={given!r}."
    )


def test_weights_and_defaults():
    layer = made()
    layer.build((None, None, None, 6))
    shapes = {"gamma": (6,), "beta": (6,), "mean_weights": (3,), "variance_weights": (3,)}
    assert {w.name: tuple(w.shape) for w in layer.weights} == shapes
    config = layer.get_config()
    assert (config["windows"], config["groups"], config["epsilon"]) == ([3, 7, None], 1, 1e-3)
    with pytest.raises(ValueError, match="`groups` must be positive and divide"):
        made(groups=4).build((None, 7, 6))
    with pytest.raises(ValueError, match="`groups` must be a positive int, or -1"):
        made(groups=0)
