"""Norms that go by several statistics or by their averages, in float64, from the papers.

Imports NumPy and nothing of ours. Every function takes x, the layer's weights by name, its
configuration and whether it is training; x and the weights may be complex: a derivative is the
imaginary part of the result at x + 1e-30j.
"""

import numpy as np
from reference import number


def _axes(x, config):
    """The channels' axis and the axes of space."""
    channels = config["axis"] % x.ndim
    return channels, tuple(a for a in range(1, x.ndim) if a != channels)


def _moments(x, axes):
    mean = x.mean(axes, keepdims=True)
    mean = mean + (x - mean).mean(axes, keepdims=True)
    return mean, np.square(x - mean).mean(axes, keepdims=True)


def _channels(weight, x, axis):
    shape = [1] * x.ndim
    shape[axis] = -1
    return number(weight).reshape(shape)


def _affine(y, weights, axis):
    if "gamma" in weights:
        y = y * _channels(weights["gamma"], y, axis)
    return y + _channels(weights["beta"], y, axis) if "beta" in weights else y


def _goes_by_batch(config, training):
    return training and config["trainable"] and not config.get("freeze_statistics", False)


# Switchable normalization (Luo et al. 2019, equations 3 to 6).


def softmax(z):
    e = np.exp(z - z.real.max())
    return e / e.sum()


def switchable_normalization(x, weights, config, training, weights_of=softmax):
    x = number(x)
    axis, space = _axes(x, config)
    found = {"instance": _moments(x, space)}
    if config["unbiased_instance_variance"]:
        n = np.prod([x.shape[a] for a in space])
        mean, variance = found["instance"]
        found["instance"] = mean, variance * (n / (n - 1) if n > 1 else 1)

    def together(over):
        """Equation 5, centred: the mean variance and the variance of the means."""
        means, variances = found["instance"]
        mean, between = _moments(means, over)
        return mean, variances.mean(over, keepdims=True) + between

    found["layer"] = together((axis,))
    found["batch"] = together((0,))
    if "batch" in config["statistics"] and not _goes_by_batch(config, training):
        moving = weights["moving_mean"], weights["moving_variance"]
        found["batch"] = tuple(_channels(w, x, axis) for w in moving)
    parts = [found[name] for name in config["statistics"]]
    by_mean, by_variance = (
        weights_of(number(weights[name])) for name in ("mean_weights", "variance_weights")
    )
    # The share of each mean's distance from the first: weights that sum to 1 leave that alone.
    first = parts[0][0]
    mean = sum(w * (m - first) for w, (m, _) in zip(by_mean, parts, strict=True))
    variance = sum(w * v for w, (_, v) in zip(by_variance, parts, strict=True))
    y = (x - first - mean) / np.sqrt(variance + config["epsilon"])
    return _affine(y, weights, axis)


# Sparse switchable normalization (Shao et al. 2019, algorithm 1).


def sparsemax(z):
    """Martins and Astudillo 2016, algorithm 1."""
    z = number(z)
    ordered = z[np.argsort(-z.real)]
    sums = np.cumsum(ordered)
    k = np.arange(1, len(z) + 1)
    size = int(k[1 + k * ordered.real > sums.real][-1])
    threshold = (sums[size - 1] - 1) / size
    return np.where(z.real > threshold.real, z - threshold, 0)


def sparsestmax(z, radius):
    """The point next to z of the simplex outside of the circle around its center."""
    z = number(z)
    p, n = sparsemax(z), len(z)
    if radius > np.sqrt((n - 1) / n) - 1e-6:
        radius = 1.0
    while True:
        inside = p.real > 0
        center = inside / inside.sum()
        offset = p - center
        distance = np.sqrt(np.square(offset).sum())
        needed = np.sqrt(max(radius**2 - np.square(center - 1 / n).sum(), 0))
        if distance.real < 1e-6 or distance.real >= needed * (1 - 1e-9):
            return p
        p = sparsemax(center + offset / distance * needed)


def sparse_switchable_normalization(x, weights, config, training):
    radius = float(np.real(weights["radius"]))
    return switchable_normalization(x, weights, config, training, lambda z: sparsestmax(z, radius))


# Batch renormalization (Ioffe 2017, algorithm 1).


def batch_renormalization(x, weights, config, training):
    x = number(x)
    axis, _ = _axes(x, config)
    others = tuple(a for a in range(x.ndim) if a != axis)
    epsilon = config["epsilon"]
    if not _goes_by_batch(config, training):
        mean, variance = (_channels(weights[f"moving_{n}"], x, axis) for n in ("mean", "variance"))
        return _affine((x - mean) / np.sqrt(variance + epsilon), weights, axis)
    bounds = config["renorm_clipping"]
    bounds = {"rmin": 1 / 3, "rmax": 3, "dmax": 5} if bounds is None else bounds
    mean, variance = _moments(x, others)
    stddev = np.sqrt(variance + epsilon)
    past = np.maximum(_channels(np.real(weights["renorm_stddev"]), x, axis), np.sqrt(epsilon))
    r = np.clip(stddev.real / past, bounds.get("rmin"), bounds.get("rmax"))
    d = (mean.real - _channels(np.real(weights["renorm_mean"]), x, axis)) / past
    if "dmax" in bounds:
        d = np.clip(d, -bounds["dmax"], bounds["dmax"])
    return _affine((x - mean) / stddev * r + d, weights, axis)


# Batch group normalization (Zhou et al. 2020): samples, space and the channels of a group.


def batch_group_normalization(x, weights, config, training):
    x = number(x)
    axis, _ = _axes(x, config)
    channels = x.shape[axis]
    groups = channels if config["groups"] == -1 else config["groups"]
    split = x.reshape((*x.shape[:axis], groups, channels // groups, *x.shape[axis + 1 :]))
    if _goes_by_batch(config, training):
        mean, variance = _moments(split, tuple(a for a in range(split.ndim) if a != axis))
    else:
        moving = weights["moving_mean"], weights["moving_variance"]
        mean, variance = (_channels(w, split, axis) for w in moving)
    y = (split - mean) / np.sqrt(variance + config["epsilon"])
    return _affine(y.reshape(x.shape), weights, axis)


# Power normalization (Shen et al. 2020, algorithm 2).


def _power(x, weights, config, training):
    """z, the root that x was divided by, and whether this is a step of warm-up."""
    axis, _ = _axes(x, config)
    others = tuple(a for a in range(x.ndim) if a != axis)
    square_mean = _channels(weights["moving_square_mean"], x, axis)
    steps = config["warmup_steps"]
    by_batch = _goes_by_batch(config, training)
    warm = by_batch and (steps is None or float(np.real(weights["step"])) < steps)
    if warm:
        square_mean = np.square(x).mean(others, keepdims=True)
    root = np.sqrt(square_mean + config["epsilon"])
    return x / root, root, warm, by_batch, axis, others


def power_normalization(x, weights, config, training):
    x = number(x)
    z, *_, axis, _ = _power(x, weights, config, training)
    return _affine(z, weights, axis)


def power_normalization_gradients(dy, x, weights, config, training):
    """dx, which is not the derivative of y, and the gradients of the trained weights by name."""
    x, dy = number(x), number(dy)
    z, root, warm, by_batch, axis, others = _power(x, weights, config, training)
    g = dy * _channels(weights["gamma"], x, axis) if "gamma" in weights else dy
    nu = _channels(weights["moving_gradient"], x, axis)
    if warm:
        nu = (g * z).mean(others, keepdims=True)
    dx = (g - nu * z if by_batch else g) / root
    own = {"gamma": (dy * z).sum(others), "beta": dy.sum(others)}
    return dx, {name: value for name, value in own.items() if name in weights}


def power_normalization_step(dy, x, weights, config):
    """The weights `moving_square_mean`, `moving_gradient` and `step` after a training step."""
    x, dy = number(x), number(dy)
    z, *_, axis, others = _power(x, weights, config, True)
    g = dy * _channels(weights["gamma"], x, axis) if "gamma" in weights else dy
    forward, backward = config["momentum"], config["backward_momentum"]
    nu, square_mean = weights["moving_gradient"], weights["moving_square_mean"]
    nu = nu * (1 - (1 - backward) * np.square(z).mean(others))
    return {
        "moving_square_mean": square_mean * forward + np.square(x).mean(others) * (1 - forward),
        "moving_gradient": nu + (1 - backward) * (g * z).mean(others),
        "step": weights["step"] + 1,
    }


# EvoNorm (Liu et al. 2020, table 2).


def evo_normalization_b0(x, weights, config, training):
    x = number(x)
    axis, space = _axes(x, config)
    if _goes_by_batch(config, training):
        _, batch = _moments(x, tuple(a for a in range(x.ndim) if a != axis))
    else:
        batch = _channels(weights["moving_variance"], x, axis)
    _, instance = _moments(x, space)
    left = np.broadcast_to(np.sqrt(batch + config["epsilon"]), x.shape)
    right = x * _channels(weights["v"], x, axis) + np.sqrt(instance + config["epsilon"])
    return _affine(x / np.where(left.real > right.real, left, right), weights, axis)


def evo_normalization_s0(x, weights, config, training):
    x = number(x)
    axis, _ = _axes(x, config)
    channels = x.shape[axis]
    groups = channels if config["groups"] == -1 else config["groups"]
    if config.get("group_size"):
        groups = channels // config["group_size"]
    split = x.reshape((*x.shape[:axis], groups, channels // groups, *x.shape[axis + 1 :]))
    _, variance = _moments(split, tuple(a for a in range(1, split.ndim) if a != axis))
    variance = np.repeat(variance.squeeze(axis + 1), channels // groups, axis)
    z = x * _channels(weights["v"], x, axis)
    y = x * (1 + np.tanh(z / 2)) / 2 / np.sqrt(variance + config["epsilon"])
    return _affine(y, weights, axis)
