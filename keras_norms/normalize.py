"""The dispatch point: each norm comes through here and runs fused or portable.

    fused       the compiled op (TensorFlow)
    portable    `keras.ops`: every backend, every device, every exporter

Which one is chosen by `set_kernel`, the variable KERAS_NORMS_KERNEL or `with portable():`. "auto"
takes the compiled op where it can serve and is silent where not; "fused" raises there. Masked
statistics and graphs written to a file (`model.export` and the like) are always portable.
"""

import contextlib
import contextvars
import os
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import keras
from keras import activations, ops

from keras_norms import fused, sums
from keras_norms.geometry import Geometry
from keras_norms.moments import Moments, centre, compact, expand_mask

KERNELS = ("auto", "fused", "portable")


class Normalized(NamedTuple):
    """y, and the statistics shaped sample axes + (groups,), through which no gradient flows."""

    y: object
    mean: object
    variance: object


@dataclass(frozen=True)
class KernelInfo:
    """What would run, and why."""

    kernel: str  # "auto", "fused" or "portable", as set here
    fused: bool  # whether the compiled op is loaded
    library: str | None  # path of the compiled library
    tensorflow: str | None  # the version of TensorFlow that the library was built for
    devices: tuple[str, ...]  # that the compiled op runs on
    simd: str | None  # the instructions chosen for this processor
    why_not: str | None  # why the compiled op is not loaded, in a line


def _checked(kernel: str) -> str:
    if kernel not in KERNELS:
        raise ValueError(f"The kernel must be one of {KERNELS}. Received: {kernel!r}.")
    return kernel


class Writer(Protocol):
    """Who writes the norms of a graph in a form of its own, in the place of the two paths.

    It is asked for a `geometry` of which x already has the order, without masks and activations.
    """

    def active(self) -> bool:
        """Whether what is computed now is what it writes."""

    def normalize(self, x, geometry, gamma, beta, epsilon, subtract_mean):
        """y of `normalize`."""

    def moments(self, x, geometry, subtract_mean) -> Moments:
        """As `moments`; the residual is 0."""

    def scale_shift(self, x, geometry, center, scale, shift):
        """As `scale_shift`; a center or shift that is None is 0."""


_kernel = _checked(os.environ.get("KERAS_NORMS_KERNEL", "auto"))
_override: contextvars.ContextVar[str | None] = contextvars.ContextVar("kernel", default=None)
_writer: contextvars.ContextVar[Writer | None] = contextvars.ContextVar("writer", default=None)


def set_kernel(kernel: str) -> None:
    """Chooses "auto", "fused" or "portable" for the process; what is traced keeps its own."""
    global _kernel
    _kernel = _checked(kernel)


def get_kernel() -> str:
    """The kernel that is set here: by `with portable():`, `set_kernel` or KERAS_NORMS_KERNEL."""
    return _override.get() or _kernel


@contextlib.contextmanager
def portable():
    """Within the block, in this thread, norms run (and are traced) on the portable path."""
    token = _override.set("portable")
    try:
        yield
    finally:
        _override.reset(token)


def kernel_info() -> KernelInfo:
    """Which kernel is set, which library is loaded, and why not if none is."""
    return KernelInfo(kernel=get_kernel(), **fused.info())


def normalize(
    x,
    geometry: Geometry,
    *,
    gamma=None,
    beta=None,
    epsilon: float,
    subtract_mean=True,
    mask=None,
    activation=None,
) -> Normalized:
    """`y = activation((x - mean) / sqrt(variance + epsilon) * gamma + beta)` over a geometry.

    Args:
        x: float16, bfloat16, float32 or float64, any shape the geometry was made for.
        gamma, beta: None or shaped as `parameter_shape` says.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        subtract_mean: False takes the mean as 0: the variance is then the mean square.
        mask: None, or the positions whose statistics count, as in `expand_mask`; a group without
            any is taken whole.
        activation: None or a function of a tensor.

    Returns: y of x's shape and dtype; mean and variance (biased) in float32, or in float64 if x is.
    """
    if mask is not None:
        mask = expand_mask(mask, x.shape, geometry)
    gamma, beta = (_parameter(p, x, geometry, n) for p, n in ((gamma, "gamma"), (beta, "beta")))
    writer = _writer_here() if mask is None else None
    runs_fused = writer is None and mask is None and _runs_fused(x)
    # In 16 bits what lies between the two ops would be rounded once more.
    views = geometry.untransposed(x.shape) if runs_fused and x.dtype == _wide(x) else None
    if views is not None:
        return _untransposed(x, *views, gamma, beta, epsilon, subtract_mean, activation)
    x = _transpose(x, geometry.order)
    if writer is not None:
        y = writer.normalize(x, geometry, gamma, beta, epsilon, subtract_mean)
        y = y if activation is None else activation(y)
        return Normalized(_transpose_back(y, geometry.order), None, None)
    if runs_fused:
        within, after = _activations(activation)
        y, mean, variance = fused.normalize(
            x, geometry, gamma, beta, epsilon, subtract_mean, within
        )
        y = after(y)
    else:
        with exact_gradients():
            y, mean, variance = portably(
                x, geometry, gamma, beta, epsilon, subtract_mean, mask, activation
            )
    y = _transpose_back(y, geometry.order)
    return Normalized(y, ops.stop_gradient(mean), ops.stop_gradient(variance))


def _untransposed(x, statistics, parameters, gamma, beta, epsilon, subtract_mean, activation):
    """`normalize` by the compiled op and the views of `Geometry.untransposed`."""
    within, after = _activations(activation)
    plain = gamma is None and beta is None
    y, mean, variance = fused.normalize(
        x, statistics, None, None, epsilon, subtract_mean, within if plain else "none"
    )
    if not plain:
        gamma = ops.ones_like(beta) if gamma is None else gamma
        y = fused.scale_shift(y, parameters, None, gamma, beta, within)
    sizes = ops.shape(x)
    sizes = (*sizes[: statistics.samples], *sizes[-statistics.channels :], 1)
    mean, variance = (ops.stop_gradient(ops.reshape(s, sizes)) for s in (mean, variance))
    return Normalized(after(y), mean, variance)


def moments(x, geometry: Geometry, *, subtract_mean=True, mask=None) -> Moments:
    """Mean and variance over a geometry, through which gradients flow; float32 or wider.

    Args:
        x, subtract_mean, mask: as in `normalize`.
    """
    if mask is not None:
        mask = expand_mask(mask, x.shape, geometry)
    x = _transpose(x, geometry.order)
    writer = _writer_here() if mask is None else None
    if writer is not None:
        return writer.moments(x, geometry, subtract_mean)
    if mask is None and _runs_fused(x):
        mean, residual, variance = fused.moments(x, geometry, subtract_mean)
        center = ops.stop_gradient(mean)
        return Moments(center, (mean - center) + residual, variance)
    with exact_gradients():
        found = centre(ops.cast(x, _wide(x)), geometry, subtract_mean=subtract_mean, mask=mask)
        return Moments(
            *(compact(s, geometry) for s in (found.mean, found.residual, found.variance))
        )


def normalize_by(
    found: Moments,
    x,
    geometry: Geometry,
    *,
    gamma=None,
    beta=None,
    epsilon,
    correction=None,
    activation=None,
):
    """`normalize` by moments that are given, through which gradients flow; only y.

    Args:
        found: shaped sample axes + channel axes of x. A center or residual that is None is 0.
        epsilon: float, or a tensor that broadcasts against the variance.
        correction: r and d in `y = ((x - mean) / sqrt(variance + epsilon) * r + d) * gamma + beta`.
    """
    if found.residual is not None and _writer_here() is not None:  # one number holds the mean
        found = Moments(found.center + found.residual, None, found.variance)
    scale = ops.rsqrt(found.variance + epsilon)
    shift = None if found.residual is None else -found.residual * scale
    if correction is not None:
        r, d = correction
        scale, shift = scale * r, d if shift is None else shift * r + d
    if gamma is not None:
        gamma = ops.cast(gamma, scale.dtype)
        scale, shift = scale * gamma, None if shift is None else shift * gamma
    if beta is not None:
        beta = ops.cast(beta, scale.dtype)
        shift = ops.zeros_like(scale) + beta if shift is None else shift + beta
    return scale_shift(
        x, geometry, center=found.center, scale=scale, shift=shift, activation=activation
    )


def scale_shift(x, geometry: Geometry, *, center=None, scale, shift=None, activation=None):
    """`y = activation((x - center) * scale + shift)`.

    Args:
        center, scale, shift: shaped sample axes + channel axes of x.
        activation: None or a function of a tensor.

    Returns: same shape and dtype as x; computed in float32, or in float64 if x is.
    """
    x = _transpose(x, geometry.order)
    coefficients = [None if c is None else ops.cast(c, _wide(x)) for c in (center, scale, shift)]
    writer = _writer_here()
    if writer is not None:
        y = writer.scale_shift(x, geometry, *coefficients)
        return _transpose_back(y if activation is None else activation(y), geometry.order)
    if _runs_fused(x):
        within, after = _activations(activation)
        y = after(fused.scale_shift(x, geometry, *coefficients, within))
    else:
        with exact_gradients():
            y = scale_shift_portably(x, geometry, *coefficients, activation)
    return _transpose_back(y, geometry.order)


def _activations(activation):
    """The activation's name in the compiled op, and what is left to apply to its result."""
    if activation is None:
        return "none", lambda y: y
    for name in fused.ACTIVATIONS:
        if activation is getattr(activations, name):
            return name, lambda y: y
    return "none", activation


def portably(x, geometry, gamma, beta, epsilon, subtract_mean, mask=None, activation=None):
    """`normalize` on the portable path, of x in the geometry's order."""
    gamma, beta = _expand(gamma, geometry), _expand(beta, geometry)
    y, mean, residual, variance = centre(
        ops.cast(x, _wide(x)), geometry, subtract_mean=subtract_mean, mask=mask
    )
    scale = ops.rsqrt(variance + epsilon)
    if gamma is not None and geometry.space_axes:  # the product is small: one pass over x less
        scale, gamma = sums.multiply(scale, gamma), None
    y = sums.multiply(y, scale)
    y = y if gamma is None else sums.multiply(y, gamma)
    y = y if beta is None else sums.add(y, beta)
    y = y if activation is None else activation(y)
    mean, variance = compact(mean + residual, geometry), compact(variance, geometry)
    return ops.cast(y, x.dtype), mean, variance


def scale_shift_portably(x, geometry, center, scale, shift, activation=None):
    """`scale_shift` on the portable path, of x in the geometry's order."""
    center, scale, shift = (along_channels(c, geometry) for c in (center, scale, shift))
    y = ops.copy(ops.cast(x, _wide(x)))  # as in `moments.centre`
    y = sums.multiply(y if center is None else sums.subtract(y, center), scale)
    y = y if shift is None else sums.add(y, shift)
    return ops.cast(y if activation is None else activation(y), x.dtype)


def exact_gradients():
    """Ours, which are exact for long sums; the backend's own in a graph written to a file."""
    return sums.plain_gradients() if fused.exporting() else contextlib.nullcontext()


@contextlib.contextmanager
def written_by(writer: Writer):
    """Within it, `writer` has its say in every norm."""
    token = _writer.set(writer)
    try:
        with sums.plain_gradients():  # a file has no gradients
            yield
    finally:
        _writer.reset(token)


def _writer_here() -> Writer | None:
    writer = _writer.get()
    return writer if writer is not None and writer.active() else None


def _runs_fused(x) -> bool:
    kernel = get_kernel()
    if kernel == "portable" or fused.exporting():
        return False
    reason = fused.unusable_here(x) if fused.available() else fused.why_not
    if reason and kernel == "fused":
        raise RuntimeError(
            f'The kernel is set to "fused", which cannot serve here: {reason} '
            '`keras_norms.set_kernel("auto")` falls back to the portable path.'
        )
    return not reason


def _parameter(parameter, x, geometry, name):
    """Gamma or beta with its axes in the order of x's channel axes, of the statistics' dtype."""
    if parameter is None:
        return None
    parameter = _transpose(ops.cast(parameter, _wide(x)), geometry.parameter_order)
    order = geometry.order or tuple(range(len(x.shape)))
    sizes = tuple(x.shape[order[a]] for a in geometry.channel_axes)
    if tuple(parameter.shape) != sizes:
        raise ValueError(
            f"`{name}` must have the sizes of the channel axes. Received: {name}.shape="
            f"{tuple(parameter.shape)}, channel sizes={sizes}, input shape={tuple(x.shape)}."
        )
    return parameter


def along_channels(coefficient, geometry: Geometry):
    """A coefficient shaped sample axes + channel axes, to axes that broadcast against x."""
    return _expand(coefficient, geometry, geometry.samples)


def _expand(p, geometry, samples=0):
    """Channels (after `samples` sample axes) to axes that broadcast against x."""
    if p is None:
        return None
    shape = ops.shape(p)
    before = [1] * (geometry.samples + geometry.before - samples)
    return sums.reshape(p, (*shape[:samples], *before, *shape[samples:], *[1] * geometry.after))


def _wide(x) -> str:
    return keras.backend.result_type(x.dtype, "float32")


def _transpose(x, order):
    return x if order is None else ops.transpose(x, order)


def _transpose_back(x, order):
    return (
        x if order is None else ops.transpose(x, sorted(range(len(order)), key=order.__getitem__))
    )
