import keras
import numpy as np
import pytest
import reference
import support
import tensorflow as tf

import keras_norms as kn

SHAPE = (5, 7, 3, 6)
MIXES = [{"mix": "gate"}, {"mix": "split"}, {"mix": "split", "instance_share": 0.3}]

# name: shape, axis.
GEOMETRIES = {
    "nchw": ((3, 11, 5, 7), 1),
    "rank_2": ((23, 7), -1),
    "rank_5": ((2, 3, 2, 5, 7), -1),
    "one_position": ((5, 1, 1, 6), -1),
    "batch_1": ((1, 17, 5), -1),
    "one_channel": ((3, 5, 7, 1), -1),
}


def made(**arguments):
    return kn.MixedNormalization(**arguments)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_matches_reference(name, mix, kernel):
    shape, axis = GEOMETRIES[name]
    support.check(made(axis=axis, **mix), shape, kernel, "eager", means=(0, 1e6), training=True)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_split_in_graphs(mode, kernel):
    support.check(made(mix="split"), SHAPE, kernel, mode, means=(1e4,), training=True)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_inference_matches_reference(mix, kernel, rng):
    layer = support.built(made(**mix), SHAPE)
    layer.moving_mean.assign(rng.normal(3, 1, 6))
    layer.moving_variance.assign(rng.uniform(0.5, 2, 6))
    x, dy = rng.normal(3, 1, SHAPE).astype("float32"), rng.normal(size=SHAPE).astype("float32")
    got = support.runner(layer, "eager", training=False)(x, dy)
    support.compare(layer, x, dy, got, kernel, training=False)


# At the ends it is one of both norms.


def same(layer, other, channels, kernel, rng, training=True, mask=None):
    """y and all gradients of these channels are those of the other norm of them."""
    for weight in other.weights:
        value = getattr(layer, weight.name).numpy()
        weight.assign(value[channels])
    x, dy = rng.normal(1e4, 2, SHAPE).astype("float32"), rng.normal(size=SHAPE).astype("float32")
    masked = {} if mask is None else {"mask": tf.constant(mask)}
    both = {"training": training, **masked}
    got = support.runner(layer, "eager", **both)(x, dy)
    want = support.runner(other, "eager", **both)(x[..., channels], dy[..., channels])
    size = max(np.abs(want.y).max(), support.largest(other.gamma.numpy()))
    what = type(other).__name__
    support.close(got.y[..., channels], want.y, atol=8e-6 * size, what=what)
    atol = 2 * support.GRADIENT * np.abs(want.dx).max()
    support.close(got.dx[..., channels], want.dx, atol=atol, what=f"dx, {what}")
    for name, value in want.gradients.items():
        atol = 4 * support.GRADIENT * np.abs(value).max()
        support.close(got.gradients[name][channels], value, atol=atol, what=f"{name}, {what}")
    for weight in other.non_trainable_weights:
        moved = getattr(layer, weight.name).numpy()[channels]
        support.close(moved, weight.numpy().astype("float64"), atol=0, rtol=1e-5)


MASK = np.random.default_rng(3).uniform(size=SHAPE[:3]) < 0.6
MASK[1] = False  # a sample as a whole


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gate, cls", [(1, kn.BatchNormalization), (0, kn.InstanceNormalization)])
def test_gate_at_its_ends(gate, cls, training, mask, kernel, rng):
    layer = support.built(made(), SHAPE)
    layer.moving_mean.assign(rng.normal(1e4, 1, 6))
    layer.gate.assign(np.full(6, gate))
    other = cls()
    other.build(SHAPE)
    same(layer, other, slice(None), kernel, rng, training, mask)


@pytest.mark.parametrize("share, first", [(0.5, 3), (0.3, 2), (0, 0), (1, 6)])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_split_is_two_norms_of_the_channels(share, first, mask, kernel, rng):
    layer = support.built(made(mix="split", instance_share=share), SHAPE)
    for cls, channels in (
        (kn.InstanceNormalization, slice(0, first)),
        (kn.BatchNormalization, slice(first, 6)),
    ):
        size = len(range(6)[channels])
        if size:
            fresh = support.built(made(mix="split", instance_share=share), SHAPE)
            other = cls()
            other.build((*SHAPE[:3], size))
            same(fresh, other, channels, kernel, rng, True, mask)
    assert "gate" not in {w.name for w in layer.weights}


def test_without_space_the_instance_is_0(kernel, rng):
    """What is left is batch norm times the gate."""
    layer = support.built(made(), (23, 7))
    x = rng.normal(3, 1, (23, 7)).astype("float32")
    normalized, *_ = reference.batch_norm(x, layer.gamma.numpy() * layer.gate.numpy(), None)
    want = normalized + layer.beta.numpy()
    support.close(layer(x, training=True), want, atol=4 * support.FORWARD[kernel])


def test_gradient_of_the_gate_of_many_samples(kernel):
    """A long sum over samples and space, in float32."""
    draw = np.random.default_rng(5)
    x = draw.normal(1e3, 1, (20000, 3, 2)) * draw.uniform(0.5, 2, (20000, 1, 2))
    x, dy = x.astype("float32"), draw.normal(1, 1, (20000, 3, 2)).astype("float32")
    layer = made(gate_initializer=keras.initializers.Constant(0.25))
    layer.build(x.shape)
    got = support.runner(layer, "graph", training=True)(x, dy).gradients["gate"]
    batch, instance = (
        reference.forward(x, None, None, axes, (2,), 1e-3).y for axes in ((0, 1), (1,))
    )
    want = (dy * (batch - instance)).sum((0, 1))
    support.close(got, want, atol=support.GRADIENT * np.abs(want).max())


# The gate's constraint.


def test_gate_starts_at_1_and_stays_in_its_interval(rng):
    layer = made()
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    np.testing.assert_array_equal(layer.gate, np.ones(6))
    model.compile(keras.optimizers.SGD(1e3), "mse")
    x = rng.normal(size=SHAPE) * rng.uniform(0.1, 3, (5, 1, 1, 6))
    seen = []
    for _ in range(4):
        model.train_on_batch(x, rng.normal(size=SHAPE))
        seen.append(layer.gate.numpy())
    seen = np.array(seen)
    assert seen.min() == 0 and seen.max() == 1  # both ends, and never beyond


def test_gate_may_be_free():
    assert made(gate_constraint=None).gate_constraint is None
    own = made(gate_constraint=keras.constraints.NonNeg())
    again = kn.MixedNormalization.from_config(own.get_config())
    assert isinstance(again.gate_constraint, keras.constraints.NonNeg)


def test_unit_interval():
    constraint = kn.constraints.UnitInterval()
    w = np.array([-2, 0, 0.25, 1, 7], "float32")
    np.testing.assert_array_equal(constraint(w), np.array([0, 0, 0.25, 1, 1], "float32"))
    config = keras.constraints.serialize(constraint)
    assert config["registered_name"] == "keras_norms>UnitInterval"
    assert isinstance(keras.constraints.deserialize(config), kn.constraints.UnitInterval)
    again = kn.MixedNormalization.from_config(made().get_config())
    assert isinstance(again.gate_constraint, kn.constraints.UnitInterval)


# Moving statistics.


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("mix", ["gate", "split"])
@pytest.mark.parametrize("momentum", [0.9, None])
def test_moving_statistics_are_the_batchs(momentum, mix, unbiased, kernel, rng):
    layer = made(mix=mix, momentum=momentum, unbiased_moving_variance=unbiased)
    other = kn.BatchNormalization(momentum=momentum, unbiased_moving_variance=unbiased)
    for step in range(2):
        x = rng.normal(1e4 + step, 2, SHAPE).astype("float32")
        layer(x, training=True)
        other(x, training=True)
    support.close(layer.moving_mean, other.moving_mean.numpy(), atol=0, rtol=4 * support.EPS32)
    support.close(layer.moving_variance, other.moving_variance.numpy(), atol=0, rtol=2e-5)


def test_recomputed_statistics_are_those_of_all_batches(rng):
    layer = made()
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    batches = [rng.normal(i, 1 + i, (n, *SHAPE[1:])) for i, n in enumerate((5, 3))]
    batches = [batch.astype("float32") for batch in batches]
    assert kn.recompute_statistics(model, batches, verbose=0) == [layer.path]
    _, mean, variance = reference.batch_norm(np.concatenate(batches), None, None)
    support.close(layer.moving_mean, mean.ravel(), atol=1e-6)
    support.close(layer.moving_variance, variance.ravel(), atol=1e-5)


# Arguments.


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        (
            {"mix": "both"},
            ValueError,
            "`mix` must be one of ('gate', 'split'). Received: mix='both'.",
        ),
        (
            {"instance_share": 1.5},
            ValueError,
            "`instance_share` must be in [0, 1]. Received: instance_share=1.5.",
        ),
        (
            {"instance_share": "half"},
            TypeError,
            "`instance_share` must be a number. Received: instance_share='half'.",
        ),
    ],
)
def test_errors(arguments, kind, message):
    with pytest.raises(kind) as error:
        made(**arguments)
    assert str(error.value) == message


def test_weights():
    names = ["gamma", "beta", "moving_mean", "moving_variance"]
    for mix, own in (("gate", ["gate"]), ("split", [])):
        layer = made(mix=mix, axis=1)
        layer.build((None, 7, None))
        assert sorted(w.name for w in layer.weights) == sorted(names + own)
        assert {tuple(w.shape) for w in layer.weights} == {(7,)}


@pytest.mark.parametrize("mix", ["gate", "split"])
def test_a_constant_sample_without_epsilon(mix, kernel, rng):
    """Its instance norm is 0, and its batch norm what it would be otherwise."""
    x = rng.normal(size=(4, 6, 3)).astype("float32")
    x[0, :, 2] = 1
    layer = support.built(kn.MixedNormalization(mix, epsilon=0), x.shape)
    got = layer(x, training=True).numpy()
    layer.epsilon = 1e-12
    support.close(got, layer(x, training=True).numpy().astype("float64"), atol=1e-5)
