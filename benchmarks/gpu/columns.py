"""The ways to compute a case: ours, PyTorch's eager and compiled ones, Triton's, a copy.

Each gives a list of calls, one for each set of tensors, so that calls in turn find nothing of
theirs in the cache. All sets have the same x and dy for all columns.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch._functorch.config
import torch.nn.functional as F

from benchmarks.gpu import cases
from benchmarks.gpu.cases import BACKWARD, CHANNELS_LAST, EPSILON, FORWARD, ROWS, Case

Calls = list[Callable[[], Any]]


class Data(NamedTuple):
    """What the columns are given; gamma and beta in float32."""

    xs: list[torch.Tensor]
    dys: list[torch.Tensor]
    gamma: torch.Tensor
    beta: torch.Tensor


def data(case: Case, passes: str, least_bytes: int, device) -> Data:
    """Sets of x and dy, x = 3 + 2 randn; together with y or dx at least so many bytes."""
    tensors = 2 if passes == FORWARD else 3
    sets = max(1, -(-least_bytes // (tensors * case.bytes)))
    generator = torch.Generator(device).manual_seed(0)

    def drawn(shape, mean, deviation, dtype=torch.float32):
        noise = torch.randn(shape, generator=generator, device=device)
        return noise.mul_(deviation).add_(mean).to(dtype)

    dtype = getattr(torch, case.dtype)
    xs = [drawn(case.shape, 3, 2, dtype) for _ in range(sets)]
    dys = [drawn(case.shape, 0, 1, dtype) for _ in range(sets if passes == BACKWARD else 0)]
    return Data(xs, dys, drawn((case.channels,), 1, 0.2), drawn((case.channels,), 0, 0.5))


def build(name: str, case: Case, passes: str, data: Data, library, stream) -> Calls:
    """The calls of a column. NotImplementedError: it has no way to compute this case.

    Args:
        stream: a function that gives the stream to launch on.
    """
    match name:
        case cases.OURS:
            return _ours(case, passes, data, library, stream)
        case cases.TWICE:
            ours = _ours(case, passes, data, library, stream)
            return [_read_twice(library, call) for call in ours]
        case cases.EAGER:
            return _torch(case, passes, data, lambda function: function)
        case cases.COMPILED:
            return _torch(case, passes, data, _compiled)
        case cases.TRITON:
            return _triton(case, passes, data)
        case cases.CLONE:
            return [x.clone for x in data.xs]
    raise ValueError(f"There is no such column. Received: {name!r}")


def result(name: str, case: Case, found: Any) -> torch.Tensor:
    """y, or dx, of what a column's call has returned, as x lies in memory."""
    first = found if isinstance(found, torch.Tensor) else found[0]
    moved = case.layout == CHANNELS_LAST and name in (cases.EAGER, cases.COMPILED)
    return first.movedim(1, -1) if moved else first


def _ours(case, passes, data, library, stream) -> Calls:
    k, first = case.geometry, data.xs[0]
    beta = data.beta if case.subtract_mean else None

    def floats(*shape):
        return torch.empty(shape, dtype=torch.float32, device=first.device)

    size = library.workspace_bytes(case.dtype, k)
    workspace = torch.empty(size, dtype=torch.uint8, device=first.device)
    common = EPSILON, case.subtract_mean, "none"

    def forward(x):
        y, mean, variance = torch.empty_like(x), floats(k.n, k.g), floats(k.n, k.g)

        def call():
            arguments = (x, data.gamma, beta, *common, y, mean, variance, workspace, stream())
            library.normalize(case.dtype, k, *arguments)
            return y, mean, variance

        return call

    def backward(x, dy):
        _, mean, variance = forward(x)()
        dbeta = None if beta is None else floats(k.g * k.d)
        outputs = torch.empty_like(x), floats(k.g * k.d), dbeta

        def call():
            given = dy, x, data.gamma, beta, mean, variance
            library.normalize_grad(case.dtype, k, *given, *common, *outputs, workspace, stream())
            return outputs

        return call

    if passes == FORWARD:
        return [forward(x) for x in data.xs]
    return [backward(x, dy) for x, dy in zip(data.xs, data.dys, strict=True)]


def _read_twice(library, call: Callable[[], Any]) -> Callable[[], Any]:
    def twice():
        library.read_once(False)
        try:
            return call()
        finally:
            library.read_once(True)

    return twice


def _torch(case, passes, data, prepare: Callable[[Callable], Callable]) -> Calls:
    function = prepare(_function(case))
    # These two mix types; the others take parameters of x's type only.
    mixed = case.layer in ("batch", "instance")
    dtype = torch.float32 if mixed else data.xs[0].dtype
    gamma, beta = (p.to(dtype) for p in (data.gamma, data.beta))

    def view(x):
        return x.movedim(-1, 1) if case.layout == CHANNELS_LAST else x

    def forward(x):
        def call():
            with torch.no_grad():
                return function(x, gamma, beta)

        return call

    def backward(x, dy):
        sources = [view(x).detach().requires_grad_(), gamma.detach().requires_grad_()]
        if case.layer == "rms":
            y = function(*sources, beta)
        else:
            sources.append(beta.detach().requires_grad_())
            y = function(*sources)
        return lambda: torch.autograd.grad(y, sources, view(dy), retain_graph=True)

    if passes == FORWARD:
        return [forward(view(x)) for x in data.xs]
    return [backward(x, dy) for x, dy in zip(data.xs, data.dys, strict=True)]


def _function(case: Case) -> Callable:
    match case.layer:
        case "layer":
            return lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPSILON)
        case "rms":
            return lambda x, w, b: F.rms_norm(x, w.shape, w, EPSILON)
        case "batch":
            return lambda x, w, b: F.batch_norm(x, None, None, w, b, True, eps=EPSILON)
        case "instance":
            return lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=EPSILON)
        case "group":
            return lambda x, w, b: F.group_norm(x, case.groups, w, b, EPSILON)
    raise NotImplementedError(f"PyTorch has no such layer. Received: {case.layer!r}")


def _compiled(function: Callable) -> Callable:
    # A backward pass is run many times; donated buffers would allow only one.
    torch._functorch.config.donated_buffer = False
    torch.compiler.reset()  # else the number of shapes is limited
    return torch.compile(function, mode="max-autotune-no-cudagraphs", dynamic=False)


def _triton(case, passes, data) -> Calls:
    if case.layout != ROWS or passes != FORWARD:
        raise NotImplementedError("The Triton kernel is for rows, forward.")
    from benchmarks.gpu import triton_rows

    def forward(x):
        y, rms = torch.empty_like(x), case.layer == "rms"
        return lambda: triton_rows.forward(x, data.gamma, data.beta, y, EPSILON, rms)

    return [forward(x) for x in data.xs]
