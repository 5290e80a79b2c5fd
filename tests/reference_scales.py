"""Norms by the mean alone, by two norms at once and by windows, in float64, from the papers.

A function per layer, named after it: `(x, weights, config, training)` gives y. `x` and the weights
may be complex, so that gradients can be had by the complex step.
"""

import itertools

import numpy as np
from reference import number
from reference_mixing import _goes_by_batch as goes_by_batch
from reference_mixing import _moments as moments
from reference_mixing import softmax
from reference_scaling import affine, along, space


def others(x, axis):
    return tuple(a for a in range(x.ndim) if a != axis % x.ndim)


# Mean-only batch normalization (Salimans and Kingma 2016, section 4).


def mean_only_batch_normalization(x, weights, config, training):
    x, axis = number(x), config["axis"]
    if goes_by_batch(config, training):
        mean, _ = moments(x, others(x, axis))
    else:
        mean = along(weights["moving_mean"], x, axis)
    return affine(x - mean, weights, axis)


# Batch-instance normalization (Nam and Kim 2018); IBN (Pan et al. 2018).


def mixed_normalization(x, weights, config, training):
    x, axis = number(x), config["axis"]
    batch = moments(x, others(x, axis))
    if not goes_by_batch(config, training):
        batch = (along(weights[f"moving_{name}"], x, axis) for name in ("mean", "variance"))
    by_batch, by_instance = (
        (x - mean) / np.sqrt(variance + config["epsilon"])
        for mean, variance in (batch, moments(x, space(x, axis)))
    )
    if config["mix"] == "gate":
        gate = along(weights["gate"], x, axis)
        return affine(gate * by_batch + (1 - gate) * by_instance, weights, axis)
    channels = x.shape[axis]
    first = along(np.arange(channels) < round(config["instance_share"] * channels), x, axis)
    return affine(np.where(first.real > 0, by_instance, by_batch), weights, axis)


# Multi-scale normalization: local moments (Ortiz et al. 2020), mixed (Luo et al. 2019).


def shifts(sizes, width):
    """Pairs of slices of space: positions, and their neighbours at one offset of a window."""
    reach = [min(width // 2, max(size - 1, 0)) for size in sizes]
    for offsets in itertools.product(*(range(-r, r + 1) for r in reach)):
        pairs = list(zip(offsets, sizes, strict=True))
        here = tuple(slice(max(0, -o), size - max(0, o)) for o, size in pairs)
        there = tuple(slice(max(0, o), size - max(0, -o)) for o, size in pairs)
        yield (slice(None), *here), (slice(None), *there)


def window_moments(x, kept, width):
    """Over a window and the last axis.

    Args:
        x: samples, space, groups, channels of a group.
        kept: numbers 1 and 0, shaped samples, space, 1, 1.
        width: of the window, or None.
    """
    over = (*range(1, x.ndim - 2), x.ndim - 1)
    count = kept.sum(over, keepdims=True) * x.shape[-1]
    mean = (x * kept).sum(over, keepdims=True) / count
    whole = mean, (np.square(x - mean) * kept).sum(over, keepdims=True) / count
    if width is None:
        return whole
    pairs = list(shifts(x.shape[1:-2], width))
    count = np.zeros((*x.shape[:-2], 1, 1))
    mean, variance = (np.zeros((*x.shape[:-1], 1), x.dtype) for _ in range(2))
    for here, there in pairs:
        count[here] += kept[there]
        mean[here] += (x * kept)[there].sum(-1, keepdims=True)
    elements = np.maximum(count, 1) * x.shape[-1]
    mean /= elements
    for here, there in pairs:
        squares = np.square(x[there] - mean[here]) * kept[there]
        variance[here] += squares.sum(-1, keepdims=True)
    found = mean, variance / elements
    return tuple(np.where(count > 0, s, w) for s, w in zip(found, whole, strict=True))


def multi_scale_normalization(x, weights, config, training, kept=None):
    """kept: bool, shaped as x without the channels; None: all."""
    x, axis, groups = number(x), config["axis"], config["groups"]
    split = np.moveaxis(x, axis, -1)
    groups = split.shape[-1] if groups == -1 else groups
    split = split.reshape((*split.shape[:-1], groups, split.shape[-1] // groups))
    kept = np.ones(split.shape[:-2], bool) if kept is None else kept
    kept = kept | ~kept.any(tuple(range(1, kept.ndim)), keepdims=True)
    kept = kept[..., None, None].astype("float64")
    if x.size:
        split = split - split.mean().real  # shifts every mean alike; keeps digits far from zero
    found = [window_moments(split, kept, width) for width in config["windows"]]
    by_mean, by_variance = (
        softmax(number(weights[name])) for name in ("mean_weights", "variance_weights")
    )
    mean = sum(w * m for w, (m, _) in zip(by_mean, found, strict=True))
    variance = sum(w * v for w, (_, v) in zip(by_variance, found, strict=True))
    y = (split - mean) / np.sqrt(variance + config["epsilon"])
    y = np.moveaxis(y.reshape((*y.shape[:-2], x.shape[axis])), -1, axis)
    return affine(y, weights, axis)
