"""Parity with PyTorch's layers, which say the same with other words.

momentum: PyTorch's is the weight of the new batch, 1 - ours. Its moving variance is unbiased, ours
(as Keras') is biased. Skipped where torch is missing: `make test-torch` installs it.
"""

import numpy as np
import pytest
import support
import tensorflow as tf

import keras_norms as kn

torch = pytest.importorskip("torch", reason="torch is missing: `make test-torch` installs it")

SHAPE = (4, 6, 5, 7)  # channels first, as PyTorch has them
# Ours, theirs (without their weights).
LAYERS = {
    "batch": (kn.BatchNormalization(1, epsilon=1e-5), lambda: torch.nn.BatchNorm2d(6)),
    "group": (kn.GroupNormalization(3, 1, 1e-5), lambda: torch.nn.GroupNorm(3, 6)),
    "instance": (
        kn.InstanceNormalization(1, 1e-5),
        lambda: torch.nn.InstanceNorm2d(6, affine=True),
    ),
    "layer": (kn.LayerNormalization(-1, 1e-5), lambda: torch.nn.LayerNorm(7)),
    "layer_of_axes": (
        kn.LayerNormalization([1, 2, 3], 1e-5),
        lambda: torch.nn.LayerNorm(SHAPE[1:]),
    ),
    "rms": (kn.RMSNormalization(-1, 1e-6), lambda: torch.nn.RMSNorm(7, eps=1e-6)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("mean", [0.0, 1e2])
def test_outputs_and_gradients(name, mean, kernel, rng):
    source, make = LAYERS[name]
    ours = support.built(type(source).from_config(source.get_config()), SHAPE)
    theirs = make().train()
    gamma, beta = support.parameters(ours)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(gamma))
        if beta is not None:
            theirs.bias.copy_(torch.tensor(beta))
    x, dy = rng.normal(size=(2, *SHAPE)).astype("float32")
    x += np.float32(mean)
    batch = {"training": True} if name == "batch" else {}
    got = support.runner(ours, "eager", **batch)(x, dy)
    value = torch.tensor(x, requires_grad=True)
    y = theirs(value)
    y.backward(torch.tensor(dy))
    # Ours is held to its bound; PyTorch's float32 mean of 1e2 is itself off by a rounding.
    atol = support.FORWARD[kernel] * support.largest(gamma) + 4 * support.EPS32 * (1 + mean)
    support.close(got.y, y.detach().numpy().astype("float64"), atol=atol)
    pairs = [(got.dx, value.grad), (got.dgamma, theirs.weight.grad)]
    if beta is not None:
        pairs.append((got.dbeta, theirs.bias.grad))
    for result, want in pairs:
        want = want.numpy().astype("float64")
        atol = (2 * support.GRADIENT + 8 * support.EPS32 * mean) * np.abs(want).max()
        support.close(result, want, atol=atol)


def test_moving_statistics(kernel, rng):
    """Ours with momentum 0.9 is theirs with 0.1; their variance is count / (count - 1) of ours."""
    ours = kn.BatchNormalization(1, momentum=0.9, epsilon=1e-5)
    theirs = torch.nn.BatchNorm2d(6, momentum=0.1).train()
    count = SHAPE[0] * SHAPE[2] * SHAPE[3]
    for _ in range(3):
        x = rng.normal(3, 2, SHAPE).astype("float32")
        ours(x, training=True)
        theirs(torch.tensor(x))
    support.close(ours.moving_mean, theirs.running_mean.numpy().astype("float64"), atol=1e-6)
    batch = theirs.running_var.numpy().astype("float64") - 0.9**3  # the start, 1, was not scaled
    want = 0.9**3 + batch * (count - 1) / count
    support.close(ours.moving_variance, want, atol=1e-5)  # a sum of size 2 of float32 roundings
    theirs.eval()
    ours.moving_variance.assign(theirs.running_var.numpy())
    with torch.no_grad():
        want = theirs(torch.tensor(x)).numpy().astype("float64")
    support.close(ours(tf.constant(x)), want, atol=4e-6)


@pytest.mark.parametrize("momentum", [0.75, None])
def test_batch_statistics_as_they_keep_them(momentum, kernel, rng):
    """Unbiased moving variances, and the cumulative average that momentum=None stands for."""
    ours = kn.BatchNormalization(1, momentum=momentum, unbiased_moving_variance=True)
    theirs = torch.nn.BatchNorm2d(6, momentum=None if momentum is None else 1 - momentum)
    theirs.train()
    for step in range(3):
        x = rng.normal(step, 1 + step, SHAPE).astype("float32")
        ours(x, training=True)
        theirs(torch.tensor(x))
    for got, want in (
        (ours.moving_mean, theirs.running_mean),
        (ours.moving_variance, theirs.running_var),
    ):
        support.close(got, want.numpy().astype("float64"), atol=1e-5)


@pytest.mark.parametrize("momentum", [0.75, 0.0])
def test_running_statistics_of_instances(momentum, kernel, rng):
    """`track_running_stats`, which PyTorch alone has; its inference goes by them."""
    options = {"momentum": momentum, "unbiased_moving_variance": True}
    ours = kn.InstanceNormalization(1, 1e-5, track_running_stats=True, **options)
    theirs = torch.nn.InstanceNorm2d(6, momentum=1 - momentum, track_running_stats=True).train()
    for step in range(3):
        x = rng.normal(step, 1 + step, SHAPE).astype("float32")
        got, want = ours(x, training=True), theirs(torch.tensor(x))
        support.close(got, want.numpy().astype("float64"), atol=2e-5)
    for got, want in (
        (ours.moving_mean, theirs.running_mean),
        (ours.moving_variance, theirs.running_var),
        (ours(x), theirs.eval()(torch.tensor(x))),
    ):
        support.close(got, want.numpy().astype("float64"), atol=2e-5)
