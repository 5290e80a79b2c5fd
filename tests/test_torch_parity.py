"""Parity with PyTorch's layers, which say the same with other words.

momentum: PyTorch's is the weight of the new batch, 1 - ours. Its moving variance is unbiased, ours
(as Keras') is biased. Skipped where torch is missing: `make test-torch` installs it.
"""

import keras
import numpy as np
import pytest
import reference_kernels as reference
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


# Wrappers. A kernel of ours with its axes in this order is their weight.

KERNEL = {2: (1, 0), 4: (3, 2, 0, 1)}
LINEAR = (lambda: keras.layers.Dense(5), lambda: torch.nn.Linear(7, 5), (3, 7))
CONV = (
    lambda: keras.layers.Conv2D(6, (3, 2)),
    lambda: torch.nn.Conv2d(4, 6, (3, 2)),
    (2, 7, 5, 4),
)
TRANSPOSED = (
    lambda: keras.layers.Conv2DTranspose(6, (3, 2)),
    lambda: torch.nn.ConvTranspose2d(4, 6, (3, 2)),
    (2, 5, 3, 4),
)


def theirs_of(x):
    """An array of ours, of a channels-last layout, as their tensor."""
    return torch.tensor(np.moveaxis(x, -1, 1) if x.ndim == 4 else x)


def ours_of(value):
    value = value.detach().numpy().astype("float64")
    return np.moveaxis(value, 1, -1) if value.ndim == 4 else value


def both(wrapper, module, x, rng):
    """Results, then gradients of x and the trained by ours and theirs: ((y, dx, ours), (...))."""
    given = theirs_of(x).requires_grad_(True)
    theirs = module(given)
    with tf.GradientTape() as tape:
        value = tf.constant(x)
        tape.watch(value)
        ours = wrapper(value, training=True)
        dy = rng.normal(size=ours.shape).astype("float32")
        loss = tf.reduce_sum(ours * dy)
    module.zero_grad()
    theirs.backward(theirs_of(dy))
    dx, *gradients = tape.gradient(loss, [value, *(w.value for w in wrapper.trainable_weights)])
    named = dict(zip([w.name for w in wrapper.trainable_weights], gradients, strict=True))
    return (ours, dx, named), (ours_of(theirs), ours_of(given.grad))


def near(got, want, what=""):
    want = np.asarray(want, "float64")
    support.close(got, want, atol=2 * support.GRADIENT * max(1, np.abs(want).max()), what=what)


@pytest.mark.parametrize(
    "case, dim", [(LINEAR, 0), (CONV, 0), (TRANSPOSED, 1)], ids=["Linear", "Conv2d", "Transpose"]
)
def test_weight_norm(case, dim, kernel, rng):
    make, module, shape = case
    x = rng.normal(size=shape).astype("float32")
    wrapper = kn.WeightNormalization(make(), data_init=False)
    wrapper(x)
    for weight in wrapper.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape) * rng.choice([-1, 1], weight.shape))
    module = torch.nn.utils.parametrizations.weight_norm(module(), dim=dim)
    g, v = (getattr(module.parametrizations.weight, f"original{k}") for k in (0, 1))
    order = KERNEL[v.ndim]
    with torch.no_grad():
        v.copy_(torch.tensor(wrapper.layer.kernel.numpy().transpose(order)))
        g.copy_(torch.tensor(wrapper.gains[0].numpy()).reshape(g.shape))
        module.bias.copy_(torch.tensor(wrapper.layer.bias.numpy()))
    (y, dx, ours), (want_y, want_dx) = both(wrapper, module, x, rng)
    near(y, want_y)
    near(dx, want_dx)
    near(ours["g"], g.grad.numpy().reshape(-1))
    near(ours["kernel"].numpy().transpose(order), v.grad.numpy())
    near(ours["bias"], module.bias.grad.numpy())


def test_weight_norm_of_an_embedding(kernel, rng):
    tokens = rng.integers(0, 11, (3, 4))
    wrapper = kn.WeightNormalization(keras.layers.Embedding(11, 5))
    wrapper(tokens)
    wrapper.gains[0].assign(rng.uniform(0.5, 2, 11))
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Embedding(11, 5))
    g, v = (getattr(module.parametrizations.weight, f"original{k}") for k in (0, 1))
    with torch.no_grad():
        v.copy_(torch.tensor(wrapper.layer.embeddings.numpy()))
        g.copy_(torch.tensor(wrapper.gains[0].numpy()).reshape(g.shape))
    dy = rng.normal(size=(3, 4, 5)).astype("float32")
    want = module(torch.tensor(tokens))
    want.backward(torch.tensor(dy))
    with tf.GradientTape() as tape:
        y = wrapper(tokens)
        loss = tf.reduce_sum(y * dy)
    dg, dv = tape.gradient(loss, [wrapper.gains[0].value, wrapper.layer.embeddings.value])
    near(y, want.detach().numpy())
    near(dg, g.grad.numpy()[:, 0])
    near(tf.convert_to_tensor(dv), v.grad.numpy())


def test_weight_norm_of_a_recurrent_layer(kernel, rng):
    """Both kernels; the gates are in one order, and theirs has a bias more."""
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    wrapper = kn.WeightNormalization(keras.layers.LSTM(5, return_sequences=True))
    wrapper(x)
    for weight in wrapper.weights:
        weight.assign(rng.normal(size=weight.shape))
    module = torch.nn.LSTM(3, 5, batch_first=True)
    names = {"weight_ih_l0": 0, "weight_hh_l0": 1}
    for name in names:
        torch.nn.utils.parametrizations.weight_norm(module, name)
    own = [w.numpy() for w in wrapper.layer.weights]
    parts = [module.parametrizations[name] for name in names]
    with torch.no_grad():
        for part, k in zip(parts, names.values(), strict=True):
            part.original0.copy_(torch.tensor(wrapper.gains[k].numpy()).reshape(-1, 1))
            part.original1.copy_(torch.tensor(own[k].T))
        module.bias_ih_l0.copy_(torch.tensor(own[2]))
        module.bias_hh_l0.zero_()
    dy = rng.normal(size=(2, 4, 5)).astype("float32")
    want, _ = module(torch.tensor(x))
    want.backward(torch.tensor(dy))
    with tf.GradientTape() as tape:
        y = wrapper(x)
        loss = tf.reduce_sum(y * dy)
    variables = [*wrapper.gains, *wrapper.layer.weights[:2]]
    gradients = tape.gradient(loss, [w.value for w in variables])
    near(y, want.detach().numpy())
    for k, part in enumerate(parts):
        near(gradients[k], part.original0.grad.numpy()[:, 0])
        near(gradients[2 + k].numpy().T, part.original1.grad.numpy())


@pytest.mark.parametrize(
    "case, rounds, dim",
    [(LINEAR, 1, 1), (LINEAR, 3, 1), (CONV, 200, 0), (TRANSPOSED, 200, 1)],
    ids=["Linear, 1", "Linear, 3", "Conv2d", "Transpose"],
)
def test_spectral_norm(case, rounds, dim, rng):
    """Several training steps, each with the vectors that the step before left.

    Ours goes from u to v and back, as the paper and Keras do; theirs from v to u. So one round of
    ours is one of theirs on the transposed matrix, with u and v exchanged; many are the same.
    """
    make, module, shape = case
    x = rng.normal(size=shape).astype("float32")
    wrapper = kn.SpectralNormalization(make(), rounds, reparam=True)
    wrapper(x)
    for weight in wrapper.layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    module = torch.nn.utils.parametrizations.spectral_norm(
        module(), n_power_iterations=rounds, dim=dim
    ).train()
    part = module.parametrizations.weight
    order = KERNEL[part.original.ndim]
    exact = case is LINEAR
    with torch.no_grad():
        part.original.copy_(torch.tensor(wrapper.layer.kernel.numpy().transpose(order)))
        module.bias.copy_(torch.tensor(wrapper.layer.bias.numpy()))
        if exact:
            part[0]._u.copy_(torch.tensor(wrapper.vectors_v[0].numpy()[0]))
            part[0]._v.copy_(torch.tensor(wrapper.vectors_u[0].numpy()[0]))
    for step in range(4):
        (y, dx, ours), (want_y, want_dx) = both(wrapper, module, x, rng)
        gradient = part.original.grad
        near(y, want_y, f"step {step}")
        near(dx, want_dx, f"step {step}")
        near(ours["kernel"].numpy().transpose(order), gradient.numpy(), f"step {step}")
        if exact:
            near(wrapper.vectors_u[0].numpy()[0], part[0]._v.numpy())
            near(wrapper.vectors_v[0].numpy()[0], part[0]._u.numpy())
        wrapper.layer.kernel.assign(wrapper.layer.kernel - 0.05 * ours["kernel"])
        with torch.no_grad():
            part.original -= 0.05 * gradient
    module.eval()
    near(wrapper(x), ours_of(module(theirs_of(x))))


@pytest.mark.parametrize("scaled", [False, True])
def test_weight_standardization(scaled, kernel, rng):
    """As timm's StdConv2d and ScaledStdConv2d compute it: a batch norm of the weight."""
    functional = torch.nn.functional
    make, _, shape = CONV
    x = rng.normal(size=shape).astype("float32")
    gamma = 1.7139588594436646 if scaled else 1.0
    wrapper = kn.WeightStandardization(make(), 1e-5, scaled, gamma)
    wrapper(x)
    wrapper.layer.kernel.assign(rng.normal(0.5, 1, wrapper.layer.kernel.shape))
    v = torch.tensor(wrapper.layer.kernel.numpy().transpose(KERNEL[4]).copy(), requires_grad=True)
    gain = None
    if scaled:
        wrapper.gains[0].assign(rng.uniform(0.5, 2, 6))
        gain = torch.tensor(wrapper.gains[0].numpy(), requires_grad=True)

    class Standardized(torch.nn.Module):
        def forward(self, x):
            scale = None if gain is None else gain * (gamma * v[0].numel() ** -0.5)
            w = functional.batch_norm(
                v.reshape(1, 6, -1), None, None, weight=scale, training=True, momentum=0.0, eps=1e-5
            )
            return functional.conv2d(x, w.reshape_as(v), torch.zeros(6))

    (y, dx, ours), (want_y, want_dx) = both(wrapper, Standardized(), x, rng)
    near(y, want_y)
    near(dx, want_dx)
    near(ours["kernel"].numpy().transpose(KERNEL[4]), v.grad.numpy())
    if scaled:
        near(ours["gain"], gain.grad.numpy())
    want = reference.standardized(
        reference.columns(wrapper.layer.kernel.numpy(), (3,)),
        1e-5,
        wrapper.gains[0].numpy() if scaled else None,
        gamma,
    )
    plain = wrapper.remove().kernel.numpy()
    near(reference.columns(plain, (3,)), want)
