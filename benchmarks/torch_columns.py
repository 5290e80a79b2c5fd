"""The same rows in PyTorch, in both of its memory formats."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.cases import BOTH, NORMS, Case

FORMATS = {  # name: memory format by rank
    "torch NCHW": {},
    "torch channels_last": {4: torch.channels_last, 5: torch.channels_last_3d},
}
NAMES = tuple(FORMATS)


def set_up(threads: int) -> str:
    torch.set_num_threads(threads)
    return torch.__version__


def data(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """x and dy: standard normal; the values need not be those of the other columns."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    return tuple(torch.randn(case.shape, generator=generator).to(dtype) for _ in range(2))


def column(name: str, case: Case, passes: str, x: torch.Tensor, dy: torch.Tensor) -> Callable:
    """A function that computes the row as `tf_columns.column` does, channels on axis 1.

    Raises NotImplementedError where PyTorch has no such layer or the format is the other one.
    """
    if case.layer not in NORMS:
        raise NotImplementedError("PyTorch has no such layer.")
    on_rows = case.layer in ("LayerNormalization", "RMSNormalization")
    if on_rows:
        channels = _trailing_axes(case)
        sizes = case.shape[-channels:]
    else:
        x, dy = (t.movedim(case.axis, 1) for t in (x, dy))
        sizes = x.shape[1:2]
    if name == "torch NCHW":
        x, dy = x.contiguous(), dy.contiguous()
    elif on_rows or x.dim() not in FORMATS[name]:
        raise NotImplementedError("PyTorch has one memory format for this row.")
    else:
        x, dy = (t.contiguous(memory_format=FORMATS[name][x.dim()]) for t in (x, dy))
    wide = torch.promote_types(x.dtype, torch.float32)
    gamma, beta = torch.ones(sizes, dtype=wide), torch.zeros(sizes, dtype=wide)
    norm, activation = _function(case, sizes, gamma, beta), _activation(case)

    def function(x):
        return activation(norm(x))

    if passes != BOTH:
        return lambda: _forward(function, x)
    sources = [x.requires_grad_(), gamma.requires_grad_()]
    if case.layer != "RMSNormalization":  # PyTorch's has no beta either
        sources.append(beta.requires_grad_())
    return lambda: _both(function, x, dy, sources)


def _forward(function, x):
    with torch.no_grad():
        return (function(x),)


def _both(function, x, dy, sources):
    y = function(x)
    return (y.detach(), *torch.autograd.grad(y, sources, dy))


def _trailing_axes(case: Case) -> int:
    rank = len(case.shape)
    axes = (case.axis,) if isinstance(case.axis, int) else case.axis
    axes = sorted(a % rank for a in axes)
    if axes != list(range(rank - len(axes), rank)):
        raise NotImplementedError("PyTorch normalizes rows over trailing axes only.")
    return len(axes)


def _activation(case: Case) -> Callable:
    return getattr(F, case.activation) if case.activation else lambda x: x


def _function(case: Case, sizes, gamma, beta) -> Callable:
    eps = case.arguments["epsilon"]
    match case.layer:
        case "LayerNormalization":
            return lambda x: F.layer_norm(x, sizes, gamma, beta, eps)
        case "RMSNormalization":
            return lambda x: F.rms_norm(x, sizes, gamma, eps)
        case "GroupNormalization":
            return lambda x: F.group_norm(x, case.groups, gamma, beta, eps)
        case "InstanceNormalization":
            return lambda x: F.instance_norm(x, weight=gamma, bias=beta, eps=eps)
        case "BatchNormalization":
            mean, variance = torch.zeros_like(beta), torch.ones_like(beta)
            return lambda x: F.batch_norm(
                x, mean, variance, gamma, beta, case.training, momentum=0.01, eps=eps
            )
    raise NotImplementedError(f"PyTorch's {case.layer} is not written down here.")
