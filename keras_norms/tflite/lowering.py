"""How each norm is written, by target: one table, and the pass that puts it into effect.

The pass reads a float32 file that `marks.py` left its marks in. It takes what it can into the
weights around (`fold.py`), writes the rest by `forms.py`, and says for each norm what it became.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from keras_norms.tflite import fold, forms, marks, origins, tidy
from keras_norms.tflite.builder import Builder
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.graph import File, Graph
from keras_norms.tflite.norms import Norm

TARGETS = ("any", "cpu", "gpu", "npu")

LAYER_NORM, OTHER = "layer norm over the last axis", "every other norm"

# A mobile GPU and most NPUs compute in 16-bit floats, in which squares overflow: hence "scaled".
# The GPU delegate has a kernel for a layer norm over the last axis, and knows it by its centred
# form. Integers have no division that is right, so there all is centred, whatever the target.
TABLE: dict[str, dict[str, str]] = {
    LAYER_NORM: {
        "any": "centred",
        "cpu": "centred",
        "gpu": "centred",
        "npu": "scaled",
        "integers": "centred",
    },
    OTHER: {
        "any": "scaled",
        "cpu": "centred",
        "gpu": "scaled",
        "npu": "scaled",
        "integers": "centred",
    },
}


def column(target: str, quantize: str | None) -> str:
    """The column of the table. The numbers' format outranks the target."""
    return "integers" if quantize in ("int8", "int16x8") else target


def kind(view: forms.View) -> str:
    rows = not view.space_axes and view.groups == 1 and view.channels == 1
    return LAYER_NORM if rows and view.subtract_mean else OTHER


def lower(
    content: bytes,
    calls: Mapping[int, marks.Call],
    scopes: origins.Scopes,
    *,
    target: str = "any",
    quantize: str | None = None,
    custom_op: bool = False,
) -> tuple[bytes, list[Norm]]:
    """Replaces the marks in the bytes of a `.tflite` file.

    Args:
        calls: the layers' calls, by the number in their marks.
        scopes: of `origins.noted`, for the names of what norms are folded into.

    Returns: the bytes of the new file, and its norms in the order in which they are computed.
    """
    file = File(content)
    file.name_graphs()
    named = _Paths(calls)
    found = []
    for graph in file.graphs:
        found.append(_Pass(graph, named, scopes, column(target, quantize), custom_op))
        found[-1].run()
    file.name_apart()
    content = file.dump()
    return content, [norm for lowered in found for norm in lowered.norms()]


class _Paths:
    """Of the calls of layers, each with a name of its own."""

    def __init__(self, calls: Mapping[int, marks.Call]):
        self.calls = calls
        self._seen: dict[str, int] = {}

    def name(self, path: str) -> str:
        self._seen[path] = self._seen.get(path, 0) + 1
        times = self._seen[path]
        return path if times == 1 else f"{path}#{times}"


class _Region:
    """The operators of one norm: those between the marks of a layer's call, or one mark alone."""

    def __init__(self, path: str, call: marks.Call | None):
        self.path = path
        self.call = call
        self.operators: list[Any] = []
        self.forms: list[str] = []
        self.folded: list[str] = []
        self.why: list[str] = []  # it was not folded
        self.notes: list[str] = []


class _Pass:
    """The lowering of one graph."""

    def __init__(
        self, graph: Graph, named: _Paths, scopes: origins.Scopes, column: str, custom_op: bool
    ):
        self.graph = graph
        self.layers = origins.origins(graph, scopes)
        self._kept = list(graph.operators)  # so that no later one is taken for one of them
        self.named = named
        self.column = column
        self.custom_op = custom_op
        self.regions: list[_Region] = []
        self.of: dict[int, _Region] = {}  # by the identity of an operator

    def run(self) -> None:
        self._find_regions()
        for name, step in ((marks.SCALE_SHIFT, self._scale_shift), (marks.NORMALIZE, self._norm)):
            for op in [op for op in self.graph.operators if self.graph.name(op) == name]:
                step(op)
        if self.column in ("any", "gpu"):
            own = [op for op in self.graph.operators if id(op) in self.of]
            for old, new in tidy.splits(self.graph, own):
                self.of[id(new)] = self.of[id(old)]
        tidy.constants(self.graph)
        tidy.ranks(self.graph)
        fold.activations(self.graph)
        if self.graph is self.graph.file.graphs[0]:  # a loop may hand on what it is given
            tidy.outputs(self.graph)
        self.graph.prune()
        for region in self.regions:
            region.operators = [op for op in self.graph.operators if self.of.get(id(op)) is region]

    def norms(self) -> list[Norm]:
        return [self._norm_of(region) for region in self.regions]

    # ---- Which operators belong to which norm ---------------------------------------------------

    def _find_regions(self) -> None:
        graph = self.graph
        ends: dict[int, dict[str, list[Any]]] = {}
        for op in graph.operators:
            if graph.name(op) in (marks.ENTER, marks.LEAVE):
                number = attributes(op)["number"]
                ends.setdefault(number, {marks.ENTER: [], marks.LEAVE: []})
                ends[number][graph.name(op)].append(op)
        if not ends.keys() <= self.named.calls.keys():
            raise ConversionError(
                "The model calls a tf.function that is no layer's own, and that keeps the norms of "
                "an earlier conversion in its trace. Make it a method of a layer or a plain "
                "function, or convert the model in a new process. No file was written."
            )
        for number, found in sorted(ends.items()):
            call = self.named.calls[number]
            region = _Region(self.named.name(call.path), call)
            self.regions.append(region)
            for op in self._between(found[marks.ENTER], found[marks.LEAVE]):
                self.of[id(op)] = region
        for found in ends.values():
            for op in (*found[marks.ENTER], *found[marks.LEAVE]):
                self._bypass(op)
        for op in graph.operators:
            if graph.name(op) in (marks.NORMALIZE, marks.SCALE_SHIFT) and id(op) not in self.of:
                self.of[id(op)] = region = _Region(
                    self.named.name(graph.tensor_name(graph.inputs(op)[0])), None
                )
                self.regions.append(region)

    def _between(self, enters: list[Any], leaves: list[Any]) -> list[Any]:
        """The operators that read, at whatever distance, from the one and into the other."""
        graph = self.graph
        reached = {t for op in enters for t in graph.outputs(op)}
        after = []
        for op in graph.operators:
            if reached.intersection(graph.inputs(op)):
                reached.update(graph.outputs(op))
                after.append(op)
        needed = {t for op in leaves for t in graph.inputs(op)}
        between = []
        for op in reversed(after):
            if needed.intersection(graph.outputs(op)):
                needed.update(graph.inputs(op))
                between.append(op)
        return between

    def _bypass(self, op: Any) -> None:
        """Takes a mark without effect away."""
        graph = self.graph
        (tensor,), (result,) = graph.inputs(op), graph.outputs(op)
        before = graph.producers().get(tensor)
        graph.replace(op, [])
        if result in map(int, graph.raw.outputs) and before is not None:
            # An output keeps its name, which callers know.
            graph.rewire(tensor, result)
            before.outputs = [result if t == tensor else int(t) for t in before.outputs]
        else:
            graph.rewire(result, tensor)

    # ---- A scale and a shift for each channel ---------------------------------------------------

    def _scale_shift(self, op: Any) -> None:
        graph, region = self.graph, self.of[id(op)]
        x, scale, shift = graph.inputs(op)
        (y,) = graph.outputs(op)
        view = attributes(op)
        ones = [1] * view["after"]
        a, b = graph.value(scale), graph.value(shift)
        if a is None or b is None or ones or view["channels"] != 1:
            region.why.append(
                "not folded: its channels are not the last axis"
                if ones or view["channels"] != 1
                else "not folded: its numbers are known only at run time"
            )
            return self._multiply_and_add(op, (scale, shift), ones)
        folding = fold.Folding(graph, self.layers)
        reasons = []
        for make in (
            lambda: folding.backward(x, op, a, b),
            lambda: self._forward(folding, y, a, b),
        ):
            plan, reason = fold.attempt(make)
            if plan is not None:
                plan.carry_out()
                region.folded += plan.targets
                return self._drop(op)
            reasons.append(reason)
        region.why.append(f"not folded: {'; '.join(reasons)}")
        if np.any(b) and invertible(a):  # what pads with zeros takes the factor: a * (x + b / a)
            plan, _ = fold.attempt(lambda: self._forward(folding, y, a, np.zeros_like(b)))
            if plan is not None:
                plan.carry_out()
                region.folded += [f"{target} (the scale)" for target in plan.targets]
                moved = graph.constant((b / a).astype(np.float32), f"{region.path}/shift")
                return self._write(op, region, "offset", lambda build: build.add(x, moved))
        return self._multiply_and_add(op, (a, b), ones)

    def _forward(self, folding: fold.Folding, y: int, a: np.ndarray, b: np.ndarray) -> fold.Plan:
        """Into what comes after, where it leaves integers enough to each channel.

        Raises: fold.Cannot.
        """
        if self.column == "integers" and not even(a):
            raise fold.Cannot("after it, channels of unequal scale would share the steps of 8 bits")
        return folding.forward(y, a, b)

    def _multiply_and_add(self, op: Any, by: Any, ones: list[int]) -> None:
        x = self.graph.inputs(op)[0]

        def write(b):
            factor, offset = (
                v if isinstance(v, int) else b.constant(v, name)
                for v, name in zip(by, ("scale", "shift"), strict=True)
            )
            factor, offset = (b.reshape(t, (*b.shape(t), *ones)) for t in (factor, offset))
            y = x
            if not _all(b.graph.value(factor), 1):
                y = b.mul(y, factor)
            if not _all(b.graph.value(offset), 0):
                y = b.add(y, offset)
            return y

        self._write(op, self.of[id(op)], "multiply and add", write)

    # ---- A norm -------------------------------------------------------------------------------

    def _norm(self, op: Any) -> None:
        graph, region = self.graph, self.of[id(op)]
        x, *parameters = graph.inputs(op)
        (y,) = graph.outputs(op)
        options = attributes(op)
        fields = ("samples", "before", "channels", "after", "groups", "epsilon", "subtract_mean")
        view = forms.View(**{name: options[name] for name in fields})
        given = iter(parameters)
        gamma = next(given) if options["has_gamma"] else None
        beta = next(given) if options["has_beta"] else None
        gamma, beta = self._absorbed(region, y, view, gamma, beta)
        view = replace(view, gamma=gamma, beta=beta)
        numbers = sum(
            graph.value(p).size for p in (gamma, beta) if p is not None and graph.is_constant(p)
        )
        if view.channels > 1 and numbers:
            region.notes.append(
                f"gamma and beta of every element take {4 * numbers:,} bytes; "
                "GroupNormalization(1) has them for each channel"
            )
        if self.custom_op:
            op.inputs = [x, *(p for p in (gamma, beta) if p is not None)]
            op.customOptions = marks.options(
                {**options, "has_gamma": gamma is not None, "has_beta": beta is not None}
            )
            region.forms.append("custom")
            return
        form = TABLE[kind(view)][self.column]
        if self.column == "cpu" and kind(view) == LAYER_NORM:
            plan, _ = fold.attempt(lambda: fold.Folding(graph, self.layers).centred(x, op))
            if plan is not None:
                plan.carry_out()
                region.folded += [f"{target} (the mean)" for target in plan.targets]
                view = replace(view, subtract_mean=False)
        self._write(op, region, form, lambda b: forms.FORMS[form](b, x, view))

    def _absorbed(
        self, region: _Region, y: int, view: forms.View, gamma: int | None, beta: int | None
    ) -> tuple[int | None, int | None]:
        """What is left of gamma and beta when what comes after has taken in what it can."""
        graph = self.graph
        a, b = (None if p is None else graph.value(p) for p in (gamma, beta))
        unknown = (gamma is not None and a is None) or (beta is not None and b is None)
        if (gamma, beta) == (None, None) or unknown or view.after:
            return gamma, beta
        a = np.ones_like(b) if a is None else a
        b = np.zeros_like(a) if b is None else b
        folding = fold.Folding(graph, self.layers)
        left, what = None, "gamma and beta"
        plan, reason = fold.attempt(lambda: folding.forward(y, a, b))
        if plan is None and gamma is not None and not view.space_axes and invertible(a):
            # What pads with zeros takes the factor alone: gamma * (y + beta / gamma).
            plan, _ = fold.attempt(lambda: self._forward(folding, y, a, np.zeros_like(b)))
            if plan is not None:
                left = graph.constant((b / a).astype(np.float32), f"{region.path}/beta")
                what = "gamma"
        if plan is None:
            region.notes.append(f"gamma and beta stay: {reason}")
            return gamma, beta
        plan.carry_out()
        region.folded += [f"{target} ({what})" for target in plan.targets]
        return None, left

    # ---- What all need ------------------------------------------------------------------------

    def _write(self, op: Any, region: _Region, form: str, write: Any) -> None:
        """Puts operators in the place of a mark; the last writes the mark's result."""
        graph = self.graph
        (y,) = graph.outputs(op)
        builder = Builder(graph, region.path)
        result = write(builder)
        if not builder.operators:
            return self._drop(op)
        last = builder.operators[-1]
        assert graph.outputs(last) == [result], "A form ends with its result."
        last.outputs = [y]
        for new in builder.operators:
            self.of[id(new)] = region
        graph.replace(op, builder.operators)
        region.forms.append(form)

    def _drop(self, op: Any) -> None:
        """What came in takes the place of the result."""
        op.inputs = op.inputs[:1]
        self._bypass(op)

    def _norm_of(self, region: _Region) -> Norm:
        graph = self.graph
        nodes = tuple(graph.tensor_name(graph.outputs(op)[0]) for op in region.operators)
        inside = {t for op in region.operators for t in graph.outputs(op)}
        read = [t for op in region.operators for t in graph.inputs(op)]
        consumers = graph.consumers()
        own = {id(op) for op in region.operators}
        enters = [t for t in read if t not in inside and graph.value(t) is None and t >= 0]
        leaves = [t for t in inside if any(op is None or id(op) not in own for op in consumers[t])]
        why = list(region.notes)
        if len(nodes) <= 2:  # else the layer is more than a scale and a shift
            why += region.why
        if region.folded:
            why = [f"in the weights of {', '.join(region.folded)}", *why]
        layer = type(region.call.layer) if region.call else None
        module = "" if layer is None else layer.__module__.split(".")[0]
        return Norm(
            path=region.path,
            layer="" if layer is None else ("keras." * (module == "keras") + layer.__name__),
            form=" + ".join(dict.fromkeys(region.forms))
            or ("portable" if nodes else "folded" if region.folded else "nothing left"),
            enters=graph.tensor_name(enters[0]) if enters else "",
            leaves=graph.tensor_name(leaves[0]) if leaves else "",
            nodes=nodes,
            why=". ".join(filter(None, [region.call.note if region.call else "", *why])),
        )


def attributes(op: Any) -> dict[str, Any]:
    """A custom operator's options."""
    from flatbuffers import flexbuffers

    return flexbuffers.Loads(bytes(op.customOptions))


def invertible(factor: np.ndarray) -> bool:
    """Whether an offset divided by it keeps its precision."""
    return bool(np.all(np.abs(factor) > 1e-4 * np.abs(factor).max(initial=0)))


def even(factor: np.ndarray) -> bool:
    """Whether channels divided by it keep about the scales they have beside each other.

    A factor of 10 costs 13 dB in int8, of 100 some 33 dB.
    """
    sizes = np.abs(factor)
    return bool(sizes.max(initial=0) <= 2 * sizes.min(initial=np.inf))


def _all(values: np.ndarray | None, number: float) -> bool:
    return values is not None and bool(np.all(values == number))
