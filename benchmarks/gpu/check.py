"""Holds the six functions to the reference: every output, its surroundings and its repeatability.

Outputs and workspace are filled with NaN before a call and every buffer lies between guard zones.
Each call is made twice, which must give the same bits, and once more in place where it may be.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from benchmarks.gpu import cases, reference
from benchmarks.gpu.cases import EPSILON, Geometry
from benchmarks.gpu.library import ACTIVATIONS
from benchmarks.gpu.reference import DX, FORWARD, SUMS

GUARD, PATTERN = 256, 0xA5  # bytes on either side, and what they hold


@dataclass(frozen=True)
class Item:
    """One geometry in one dtype, with data of this mean and deviation."""

    name: str
    geometry: Geometry
    dtype: str
    subtract_mean: bool = True
    activation: str = "none"
    mean: float = 3.0
    deviation: float = 2.0
    offset: int = 0  # elements by which tensors miss the alignment of a vector
    read_once: bool = True  # where a device can

    @property
    def title(self) -> str:
        words = [self.name, "x".join(map(str, self.geometry)), self.dtype]
        words += [self.activation] * (self.activation != "none")
        words += ["without mean"] * (not self.subtract_mean) + ["unaligned"] * bool(self.offset)
        words += ["read twice"] * (not self.read_once)
        return " ".join([*words, f"{self.mean:g}+{self.deviation:g}randn"])


def small_items() -> Iterator[Item]:
    for dtype in cases.DTYPES:
        for i, k in enumerate(cases.SMALL):
            yield Item("small", k, dtype)
            yield Item("small", k, dtype, activation=ACTIVATIONS[1 + i % 3], read_once=False)
            yield Item("small", k, dtype, i % 2 == 0, ACTIVATIONS[1 + i % 3], offset=i % 2)
            if dtype == "float32":
                yield Item("small", k, dtype, mean=1e3, deviation=1.0)


def items(quick: bool = False) -> Iterator[Item]:
    """Everything small, then the shapes that are timed."""
    yield from small_items()
    found = cases.quick_cases() if quick else cases.all_cases()
    for case in found:
        item = Item(case.layer, case.geometry, case.dtype, case.subtract_mean)
        yield item
        if case.dtype == "float32":
            yield Item(**{**vars(item), "mean": 1e3, "deviation": 1.0})


class Buffer:
    """A tensor between guard zones; `tensor` is the part that a kernel is given."""

    def __init__(self, shape, dtype: torch.dtype, device, offset: int = 0):
        begin = GUARD + offset * dtype.itemsize
        size = math.prod(shape) * dtype.itemsize
        self._bytes = torch.full((begin + size + GUARD,), PATTERN, dtype=torch.uint8, device=device)
        self._zones = self._bytes[:begin], self._bytes[begin + size :]
        self.tensor = self._bytes[begin : begin + size].view(dtype).view(shape)

    @property
    def intact(self) -> bool:
        return all(bool((zone == PATTERN).all()) for zone in self._zones)


@dataclass(frozen=True)
class Output:
    """What a function writes: its reference, and the kind of bound that holds for it."""

    name: str
    want: torch.Tensor
    kind: str
    wide: bool = False  # float32 whatever x is
    scale: torch.Tensor | None = None  # the error is relative to this, not to `want`
    base: torch.Tensor | None = None  # is added before comparing
    over: str | None = None  # the input that it may take the place of


class Checker:
    """Runs one item. `problems` are sentences; `outputs` name the errors and their bounds."""

    def __init__(self, library, item: Item, device, stream=0):
        self.library, self.item, self.device, self.stream = library, item, device, stream
        self.outputs: list[dict] = []
        self.problems: list[str] = []
        self.type = getattr(torch, item.dtype)
        size = library.workspace_bytes(item.dtype, item.geometry)
        self.workspace = Buffer((size,), torch.uint8, device)

    def run(self) -> None:
        k, item = self.item.geometry, self.item
        full, channel, unit = tuple(k), (1, 1, k.g, k.d, 1), (k.n, 1, k.g, 1, 1)
        lane = (k.n, 1, k.g, k.d, 1)
        generator = torch.Generator(self.device).manual_seed(k.size % 1009)

        def drawn(shape, mean=0.0, deviation=1.0, dtype=torch.float32):
            buffer = self._buffer(shape, dtype)
            noise = torch.randn(shape, generator=generator, device=self.device)
            buffer.tensor.copy_(mean + deviation * noise)
            return buffer

        x, dy = drawn(full, item.mean, item.deviation, self.type), drawn(full, dtype=self.type)
        gamma, beta = drawn(channel, 1, 0.2), drawn(channel, 0, 0.5)
        center = drawn(lane, item.mean, 0.1)
        scale, shift = drawn(lane, 1 / item.deviation, 0.1), drawn(lane)
        # The gradient of moments is divided by the count: float16 has no numbers that small.
        dmean, dvariance = drawn(unit, 0, k.count), drawn(unit, 0, k.count)

        xs, name, subtract = x.tensor.double(), item.activation, item.subtract_mean
        mean64, variance64 = reference.moments(xs, k, subtract)
        wide = {n: b.tensor.double() for n, b in {"gamma": gamma, "beta": beta}.items()}
        z = reference.normalize(xs, wide["gamma"], wide["beta"], mean64, variance64, EPSILON)
        center64, scale64, shift64 = (b.tensor.double() for b in (center, scale, shift))
        affine = (xs - center64) * scale64 + shift64
        if name == "relu":  # at its kink the last rounding of z decides on the whole of dy
            dy.tensor[torch.minimum(z.abs(), affine.abs()) < 1e-3] = 0

        inputs = {"x": x, "gamma": gamma, "beta": beta}
        arguments = ("x", "gamma", "beta", EPSILON, subtract, name, "y", "mean", "variance")
        # The mean is a float32, whose rounding the deviation is not known to.
        statistics = [
            Output("mean", mean64, FORWARD, wide=True, scale=mean64 if subtract else xs),
            Output("variance", variance64, FORWARD, wide=True),
        ]
        outputs = [Output("y", reference.activate(name, z), FORWARD, over="x"), *statistics]
        found = self._function("normalize", arguments, inputs, outputs)

        dz = dy.tensor.double() * reference.slope(name, z)
        dx, dgamma, dbeta = reference.normalize_grad(
            dz, xs, wide["gamma"], mean64, variance64, EPSILON, subtract
        )
        inputs = {"dy": dy, **inputs, "mean": found["mean"], "variance": found["variance"]}
        arguments = ("dy", "x", "gamma", "beta", "mean", "variance", EPSILON, subtract, name)
        outputs = [
            Output("dx", dx, DX, over="dy"),
            Output("dgamma", dgamma, SUMS, wide=True),
            Output("dbeta", dbeta, SUMS, wide=True),
        ]
        self._function("normalize_grad", (*arguments, "dx", "dgamma", "dbeta"), inputs, outputs)

        outputs = [*statistics]
        arguments = ("x", subtract, "mean", "residual", "variance")
        deviation = (variance64 + EPSILON).sqrt()
        residual = Output("residual", mean64, FORWARD, True, deviation)
        found = self._function("moments", arguments, {"x": x}, [*outputs, residual])

        inputs = {"x": x, **{n: found[n] for n in ("mean", "residual")}}
        inputs |= {"dmean": dmean, "dvariance": dvariance}
        want = reference.moments_grad(
            xs, mean64, dmean.tensor.double(), dvariance.tensor.double(), k
        )
        self._function("moments_grad", (*inputs, "dx"), inputs, [Output("dx", want, DX, over="x")])

        inputs = {"x": x, "center": center, "scale": scale, "shift": shift}
        outputs = [Output("y", reference.activate(name, affine), FORWARD, over="x")]
        self._function("scale_shift", (*inputs, name, "y"), inputs, outputs, workspace=False)

        dz = dy.tensor.double() * reference.slope(name, affine)
        dx, dscale, dshift = reference.scale_shift_grad(dz, xs, center64, scale64)
        outputs = [
            Output("dx", dx, DX, over="dy"),
            Output("dscale", dscale, SUMS, wide=True),
            Output("dshift", dshift, SUMS, wide=True),
        ]
        inputs = {"dy": dy, **inputs}
        arguments = (*inputs, name, "dx", "dscale", "dshift")
        self._function("scale_shift_grad", arguments, inputs, outputs)

    def _buffer(self, shape, dtype) -> Buffer:
        return Buffer(shape, dtype, self.device, self.item.offset)

    def _function(self, function, arguments, inputs, outputs, workspace=True) -> dict[str, Buffer]:
        before = {n: b.tensor.clone() for n, b in inputs.items()}
        found = self._call(function, arguments, inputs, outputs, {}, workspace)
        for output in outputs:
            self._compare(function, output, found)
        again = self._call(function, arguments, inputs, outputs, {}, workspace)
        self._same(function, "of the second call", found, again)
        for name, buffer in inputs.items():
            if not _same_bits(before[name], buffer.tensor):
                self.problems.append(f"{function} changes its input {name}")
        for output in (o for o in outputs if o.over):
            copy = self._buffer(before[output.over].shape, self.type)
            copy.tensor.copy_(before[output.over])
            there = {**inputs, output.over: copy}
            given = {output.name: copy}
            again = self._call(function, arguments, there, outputs, given, workspace)
            self._same(function, "in place", found, again)
        return found

    def _call(self, function, arguments, inputs, outputs, given, workspace) -> dict[str, Buffer]:
        written = {}
        for output in outputs:
            shape = tuple(self.item.geometry) if output.over else output.want.shape
            kind = torch.float32 if output.wide else self.type
            written[output.name] = given.get(output.name) or self._buffer(shape, kind)
            if output.name not in given:
                written[output.name].tensor.fill_(math.nan)
        self.workspace.tensor.fill_(0xFF)  # a NaN of any type
        buffers = {**inputs, **written}
        values = [buffers[a].tensor if a in buffers else a for a in arguments]
        values += [self.workspace.tensor] * workspace
        item = self.item
        getattr(self.library, function)(item.dtype, item.geometry, *values, self.stream)
        for name, buffer in {**buffers, "workspace": self.workspace}.items():
            if not buffer.intact:
                self.problems.append(f"{function} writes beside {name}")
        return written

    def _compare(self, function: str, output: Output, found: dict[str, Buffer]) -> None:
        got = found[output.name].tensor.double()
        if output.name == "residual":  # the exact mean is the sum of both
            got = got + found["mean"].tensor.double()
        size = output.want if output.scale is None else output.scale
        difference = (got - output.want).square().mean().sqrt()
        error = float(difference / size.square().mean().sqrt())
        limit = reference.limit(output.kind, "float32" if output.wide else self.item.dtype)
        entry = {"function": function, "output": output.name, "error": float(f"{error:.3g}")}
        entry["limit"] = limit
        self.outputs.append(entry)
        if not error <= limit:  # a NaN is not
            self.problems.append(f"{function}: {output.name} is off by {error:.2g}, not {limit:g}")

    def _same(self, function, when, found, again) -> None:
        for name, buffer in found.items():
            if not _same_bits(buffer.tensor, again[name].tensor):
                self.problems.append(f"{function}: {name} {when} has other bits")


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32}[a.dtype.itemsize]
    return bool(torch.equal(a.view(integer), b.view(integer)))


def check(library, item: Item, device, stream=0) -> dict:
    """The row of results.json for this item."""
    checker = Checker(library, item, device, stream)
    library.read_once(item.read_once)
    try:
        checker.run()
    finally:
        library.read_once(True)
    return {
        "item": asdict(item) | {"title": item.title},
        "outputs": checker.outputs,
        "problems": checker.problems,
    }
