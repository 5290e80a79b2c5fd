"""Masked statistics of the norms that keep samples apart, which no Keras norm has.

Keras' LayerNormalization and GroupNormalization pass a mask on and count the padding in;
RMSNormalization drops it with a warning. The layers' contract with the reference is elsewhere; here
the reference is told which elements count.
"""

import keras
import numpy as np
import pytest
import reference
import support
import tensorflow as tf

import keras_norms as kn

# id: class, arguments, shape of x, shape of the mask, the mask's axes, the statistics' axes (of x
# with the channels split where there are groups), split channel axis.
CASES = {
    "LN over time": (kn.LayerNormalization, {"axis": [1, 2]}, (4, 7, 5), (4, 7), (0, 1), (1, 2)),
    "LN over elements": (kn.LayerNormalization, {}, (4, 3, 11), (4, 3, 11), (0, 1, 2), (2,)),
    "LN, one mask": (kn.LayerNormalization, {"axis": [2, 1]}, (4, 7, 5), (1, 7), (0, 1), (1, 2)),
    "LN on axis 1": (kn.LayerNormalization, {"axis": 1}, (4, 7, 5), (4, 7, 5), (0, 1, 2), (1,)),
    "RMS over time": (kn.RMSNormalization, {"axis": [1, 2]}, (4, 7, 5), (4, 7), (0, 1), (1, 2)),
    "RMS over elements": (kn.RMSNormalization, {}, (4, 3, 11), (4, 3, 11), (0, 1, 2), (2,)),
    "IN": (kn.InstanceNormalization, {}, (4, 7, 5), (4, 7), (0, 1), (1,)),
    "IN, rows": (kn.InstanceNormalization, {}, (4, 7, 5, 3), (4, 7), (0, 1), (1, 2)),
    "IN on axis 1": (kn.InstanceNormalization, {"axis": 1}, (4, 3, 7, 5), (4, 7), (0, 2), (2, 3)),
    "GN": (kn.GroupNormalization, {"groups": 2}, (4, 7, 6), (4, 7), (0, 1), (1, 3)),
    "GN on axis 1": (
        *(kn.GroupNormalization, {"groups": 3, "axis": 1}, (4, 6, 7, 5)),
        *((4, 7, 5), (0, 2, 3), (2, 3, 4)),
    ),
}


def expected(layer, x, dy, where, axes):
    """Forward and backward, with the channels split in two axes for groups."""
    subtract_mean = not isinstance(layer, kn.RMSNormalization)
    gamma, beta = support.parameters(layer)
    channels = reference.positive(layer.axis, x.ndim)
    shape, where = x.shape, np.broadcast_to(where, x.shape)
    if isinstance(layer, kn.GroupNormalization):
        (c,) = channels
        split = (*shape[:c], layer.groups, shape[c] // layer.groups, *shape[c + 1 :])
        x, dy, where = (v.reshape(split) for v in (x, dy, where))
        gamma, beta = (v.reshape(split[c : c + 2]) for v in (gamma, beta))
        channels = (c, c + 1)
    arguments = axes, channels, layer.epsilon, subtract_mean
    want = reference.forward(x, gamma, beta, *arguments, where=where)
    back = reference.backward(dy, x, gamma, *arguments, where=where)
    return want.y.reshape(shape), back.dx.reshape(shape), back.dgamma.ravel(), back.scale


@pytest.mark.parametrize("name", CASES)
def test_masked_statistics(name, kernel, mode):
    cls, arguments, shape, mask_shape, mask_axes, axes = CASES[name]
    draw = np.random.default_rng(8)
    mask = draw.uniform(size=mask_shape) < 0.6
    mask[..., :2] = [False, True]
    if mask.ndim == 3:
        mask[:, 1:3] = True  # along axis 1, too, no group is without
    where = reference.spread(mask, mask_axes, len(shape)) > 0
    layer = support.built(cls(**arguments), shape)
    run = support.runner(layer, mode, mask=tf.constant(mask))
    means = (0.0, 1.0) if cls is kn.RMSNormalization else support.MEANS
    for mean in means:
        x = draw.normal(mean, 1, shape).astype("float32")
        dy = draw.normal(size=shape).astype("float32")
        y, dx, dgamma, scale = expected(layer, x, dy, where, axes)
        got = run(x, dy)
        # Masks run on the portable path whichever kernel is set. A group of few elements of like
        # size has a small variance, and what is outside of the mask is far from its mean.
        atol = support.FORWARD["portable"] * max(1, np.abs(y).max() / 4)
        support.close(got.y, y, atol=atol, rtol=2.0**-24, what=f"mean {mean:g}")
        atol = support.GRADIENT * max(np.abs(dx).max(), scale)
        support.close(got.dx, dx, atol=atol, what=f"mean {mean:g}")
        atol = support.GRADIENT * (np.abs(dgamma).max() + np.abs(y).max())
        support.close(got.dgamma.ravel(), dgamma, atol=atol, what=f"mean {mean:g}")


@pytest.mark.parametrize("cls", [kn.LayerNormalization, kn.RMSNormalization])
def test_mask_of_whole_positions_changes_nothing(cls, fused):
    """So an `Embedding(mask_zero=True)` does not cost a Transformer the compiled op."""
    layer = support.built(cls(), (4, 7, 5))
    x = np.random.default_rng(8).normal(size=(4, 7, 5)).astype("float32")
    mask = np.arange(28).reshape(4, 7) % 3 > 0
    np.testing.assert_array_equal(layer(x, mask=tf.constant(mask)), layer(x))
    run = tf.function(lambda x: layer(x, mask=tf.constant(mask)), autograph=False)
    nodes = run.get_concrete_function(x).graph.get_operations()
    assert "KerasNorms>Normalize" in {node.type for node in nodes}


@pytest.mark.parametrize(
    "cls, argument",
    [(kn.GroupNormalization, 2), (kn.InstanceNormalization, -1), (kn.LayerNormalization, [1, 2])],
)
def test_sample_masked_as_a_whole_counts_as_a_whole(cls, argument, kernel):
    layer = cls(argument)
    x = np.random.default_rng(8).normal(3, 1, (4, 7, 6)).astype("float32")
    mask = np.ones((4, 7), "bool")
    mask[1], mask[2, 3:] = False, False
    support.built(layer, x.shape)
    got, plain = layer(x, mask=tf.constant(mask)), layer(x)
    atol = 2 * support.FORWARD["portable"] * 2
    for sample, same in ((0, True), (1, True), (2, False)):
        assert (np.abs(got[sample] - plain[sample]).max() < atol) == same


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("name", ["LN over time", "RMS over time", "IN", "GN"])
def test_what_the_mask_hides_does_not_matter(name, bad, kernel, mode):
    cls, arguments, shape, *_ = CASES[name]
    layer = support.built(cls(**arguments), shape)
    x = np.random.default_rng(8).normal(size=shape).astype("float32")
    mask = np.ones(shape[:2], "bool")
    mask[:, 3] = False
    run = support.compiled(lambda x: layer(x, mask=tf.constant(mask)), mode)
    good = run(tf.constant(x)).numpy()
    x[:, 3] = bad
    np.testing.assert_array_equal(run(tf.constant(x)).numpy()[mask], good[mask])


def test_mask_comes_from_the_model_and_goes_on():
    model = keras.Sequential(
        [keras.layers.Masking(), kn.GroupNormalization(1), kn.RMSNormalization()]
    )
    x = np.random.default_rng(8).normal(size=(3, 6, 4)).astype("float32")
    x[0, 4:] = 0
    y = model(x)
    alone = model(x[:1, :4])
    np.testing.assert_allclose(y[:1, :4], alone, atol=2e-5)
    np.testing.assert_array_equal(keras.src.backend.get_keras_mask(y), (x != 0).any(-1))


@pytest.mark.parametrize(
    "layer, shape",
    [
        (kn.LayerNormalization(), (5, 7)),
        (kn.LayerNormalization(), (4, 7, 6, 1)),
        (kn.GroupNormalization(2), (4, 7, 6)),
        (kn.InstanceNormalization(), (7,)),
        (kn.RMSNormalization(), (4, 6)),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_mask_of_wrong_shape(layer, shape):
    text = r"`mask` must have the sizes of the input's axes.* Received: mask.shape=\("
    with pytest.raises(ValueError, match=text):
        layer(np.zeros((4, 7, 6), "float32"), mask=np.ones(shape, "bool"))
