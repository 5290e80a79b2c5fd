"""What TensorFlow's converter leaves to do after norms are written: passes over a whole graph.

constants    what depends on constants alone is computed here; a mobile GPU takes no such thing
ranks        what is computed has two axes or more: a mobile GPU reads a vector as a batch
splits       parts are cut out one by one: of x * a + b with the parts a and b of one SPLIT, the
             GPU delegate of LiteRT 2.3 makes x
outputs      an output is computed: a mobile GPU does not copy inputs
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_norms.tflite.builder import broadcast
from keras_norms.tflite.graph import NONE, Graph

_ELEMENTWISE: dict[str, Callable] = {
    "ABS": np.abs,
    "ADD": np.add,
    "DIV": np.divide,
    "MAXIMUM": np.maximum,
    "MINIMUM": np.minimum,
    "MUL": np.multiply,
    "RSQRT": lambda x: 1 / np.sqrt(x),
    "SQRT": np.sqrt,
    "SUB": np.subtract,
}
_REDUCTIONS = {"MEAN": np.mean, "REDUCE_MAX": np.max, "SUM": np.sum}


def constants(graph: Graph) -> None:
    """Computes what has only constants to go by, in float64, each operation rounded to float32."""
    for op in list(graph.operators):
        kind = graph.name(op)
        values = [graph.value(t) for t in graph.inputs(op)]
        if not values or any(value is None for value in values):
            continue
        if getattr(op.builtinOptions, "fusedActivationFunction", NONE) != NONE:
            continue
        x = values[0].astype(np.float64) if values[0].dtype == np.float32 else None
        with np.errstate(all="ignore"):
            if x is None:
                continue
            if kind in _ELEMENTWISE:
                result = _ELEMENTWISE[kind](x, *(v.astype(np.float64) for v in values[1:]))
            elif kind in _REDUCTIONS:
                axes = tuple(int(a) for a in np.ravel(values[1]))
                result = _REDUCTIONS[kind](x, axis=axes, keepdims=op.builtinOptions.keepDims)
            elif kind == "RESHAPE":
                result = x.reshape([int(size) for size in np.ravel(values[1])])
            else:
                continue
        (old,) = graph.outputs(op)
        if old in map(int, graph.raw.outputs):
            continue
        new = graph.constant(np.asarray(result).astype(np.float32), graph.tensor_name(old))
        graph.rewire(old, new)
        graph.replace(op, [])


def ranks(graph: Graph) -> None:
    """Puts axes of size 1 before those of computed floats that have fewer than two.

    Elementwise operations broadcast as before, and what reshapes or reduces is told so. Where
    anything else reads such a tensor, all stay as they are.
    """
    producers, ends = graph.producers(), {int(t) for t in graph.raw.outputs}
    every = {t for t in producers if len(graph.shape(t)) < 2}
    low, before = set(every), None
    while before != low:  # one that stays keeps those beside it
        before = set(low)
        for op in graph.operators:
            around = every.intersection((*graph.inputs(op), *graph.outputs(op)))
            if around and not (_takes_ranks(graph, op, every) and around <= low):
                low -= around
    if not low or low & ends:
        return
    for op in graph.operators:
        kind, (result, *_), inputs = graph.name(op), graph.outputs(op), graph.inputs(op)
        if result not in low:
            continue
        shape = graph.shape(result)
        if kind in ("REDUCE_MAX", "MEAN"):
            op.builtinOptions.keepDims = True
            wanted = (1,) * len(graph.shape(inputs[0]))
            over = graph.constant(
                np.arange(len(wanted), dtype=np.int32), f"{graph.tensor_name(result)}/axes"
            )
            op.inputs = [inputs[0], over]
        elif kind == "RESHAPE":
            wanted = (1,) * (2 - len(shape)) + shape
            sizes = np.asarray([-1 if s is None else s for s in wanted], np.int32)
            target = graph.constant(sizes, f"{graph.tensor_name(result)}/shape")
            new = graph.operator("RESHAPE", [inputs[0], target], [result], newShape=sizes.tolist())
            op.inputs, op.builtinOptions = new.inputs, new.builtinOptions
            op.builtinOptionsType = new.builtinOptionsType
        else:
            wanted = broadcast((1, 1), *(graph.shape(t) for t in inputs))
        graph.set_shape(result, wanted)


def _takes_ranks(graph: Graph, op: Any, low: set[int]) -> bool:
    """Whether an operator can be told of more axes of the tensors in `low`."""
    kind, around = graph.name(op), {*graph.inputs(op), *graph.outputs(op)}
    if kind in ("REDUCE_MAX", "MEAN"):  # of everything; other axes would have other numbers
        return graph.shape(graph.outputs(op)[0]) == () and graph.is_float(around & low)
    return kind in {*_ELEMENTWISE, "LOGISTIC", "RESHAPE"} and graph.is_float(around & low)


def splits(graph: Graph, operators: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Writes these of a graph's operators, where they are SPLITs, as STRIDED_SLICEs.

    Returns: pairs of an operator that is gone and one in its place.
    """
    pairs = []
    for op in operators:
        if graph.name(op) != "SPLIT" or graph.value(graph.inputs(op)[0]) is None:
            continue
        axis, x = int(graph.value(graph.inputs(op)[0])), graph.inputs(op)[1]
        rank, first, cuts = len(graph.shape(x)), 0, []
        others = ((1 << rank) - 1) & ~(1 << axis % rank)
        for part in graph.outputs(op):
            last = first + graph.shape(part)[axis]
            name = graph.tensor_name(part)
            begin, end, stride = (
                [number if a == axis % rank else rest for a in range(rank)]
                for number, rest in ((first, 0), (last, 0), (1, 1))
            )
            ends = [
                graph.constant(np.asarray(v, np.int32), f"{name}/{what}")
                for v, what in ((begin, "begin"), (end, "end"), (stride, "stride"))
            ]
            cuts.append(
                graph.operator(
                    "STRIDED_SLICE", [x, *ends], [part], beginMask=others, endMask=others
                )
            )
            first = last
        graph.replace(op, cuts)
        pairs += [(op, cut) for cut in cuts]
    return pairs


def outputs(graph: Graph) -> None:
    """Adds zero where an output is an input or a constant."""
    computed = graph.producers()
    for k, tensor in enumerate(int(t) for t in graph.raw.outputs):
        if tensor in computed or not graph.is_float({tensor}):
            continue
        zero = graph.constant(np.float32(0), "zero")
        result = graph.tensor(graph.shape(tensor), np.float32, f"{graph.tensor_name(tensor)}/same")
        graph.operators.append(
            graph.operator("ADD", [tensor, zero], [result], fusedActivationFunction=NONE)
        )
        graph.set_output(k, result)
