"""Takes `a * x + b` into the operators around it, where the result is exactly the same.

A batch norm at inference is such an `a * x + b`, with numbers for each channel; so are the gamma
and beta of the other norms. They vanish in the weights of a convolution or a dense layer before or
after, also across operators that let them through (pooling by averages, reshapes, concatenation).

A factor and an offset are arrays that broadcast against a tensor without its first axis, the batch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_norms.tflite.graph import NONE, Graph

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")

_SAME = 0  # padding

# What the model's own names begin with in a file.
PREFIX = "fixed_1/call_1/"

Action = Callable[[], None]


class Cannot(Exception):
    """Why something cannot be taken in, in words that follow "not folded: "."""


@dataclass
class Plan:
    """What to do to take it in, all of it or nothing, and where it goes."""

    actions: list[Action]
    targets: list[str]

    def carry_out(self) -> None:
        for action in self.actions:
            action()


def places(kind: str) -> tuple[int, int, int]:
    """Where, among an operator's inputs, what comes in, the weights and the bias stand."""
    return (2, 1, 3) if kind == "TRANSPOSE_CONV" else (0, 1, 2)


def attempt(make: Callable[[], Plan]) -> tuple[Plan | None, str]:
    """A plan, or none and the reason why there is none."""
    try:
        return make(), ""
    except Cannot as reason:
        return None, str(reason)


class Folding:
    """Looks at a graph as it is; make a new one after the graph has changed.

    Args:
        layers: the paths of Keras' layers by the identity of operators, which are named after them.
    """

    def __init__(self, graph: Graph, layers: Mapping[int, str]):
        self.graph = graph
        self.layers = layers
        self.producers = graph.producers()
        self.consumers = graph.consumers()

    # ---- Into what comes before ---------------------------------------------------------------

    def backward(self, tensor: int, by: Any, a: np.ndarray, b: np.ndarray) -> Plan:
        """To make the tensor itself `a * tensor + b`, which only the operator `by` reads.

        Raises: Cannot.
        """
        graph = self.graph
        op = self._only(tensor, by)
        kind = graph.name(op)
        shape = graph.shape(tensor)
        if kind in WEIGHTED:
            a, b = self._vector(a, shape), self._vector(b, shape)
            if kind == "FULLY_CONNECTED" and op.builtinOptions.weightsFormat:
                raise Cannot(f"{kind} before it has shuffled weights")
            w, bias = self._weights(op, kind)
            axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
            along = np.expand_dims(a, tuple(k for k in range(w.ndim) if k != axis))
            moved = b if bias is None else bias * a + b
            return self._rewritten(op, kind, w * along, moved if np.any(moved) else bias)
        inputs = graph.inputs(op)
        source = inputs[0]
        if kind == "RESHAPE":
            before = graph.shape(source)
            a, b = (self._reshaped(v, shape, before) for v in (a, b))
            return self.backward(source, op, a, b)
        if kind == "AVERAGE_POOL_2D" or (kind == "MAX_POOL_2D" and np.all(a > 0)):
            return self.backward(source, op, self._vector(a, shape), self._vector(b, shape))
        if kind == "MEAN" and self._over_space(op):
            return self.backward(source, op, self._vector(a, shape), self._vector(b, shape))
        if kind == "CONCATENATION" and op.builtinOptions.axis in (-1, len(shape) - 1):
            a, b = self._vector(a, shape), self._vector(b, shape)
            plan, first = Plan([], []), 0
            if len(set(inputs)) < len(inputs):
                raise Cannot(f"{kind} before it takes a tensor twice")
            for part in inputs:
                last = first + (graph.shape(part)[-1] or 0)
                found = self.backward(part, op, a[first:last], b[first:last])
                plan, first = Plan(plan.actions + found.actions, plan.targets + found.targets), last
            return plan
        if kind == "ADD" and graph.shape(inputs[0]) == graph.shape(inputs[1]) == shape:
            if inputs[0] == inputs[1]:
                raise Cannot(f"{kind} before it takes a tensor twice")
            one = self.backward(inputs[0], op, a, b)
            two = self.backward(inputs[1], op, a, np.zeros_like(b))
            return Plan(one.actions + two.actions, one.targets + two.targets)
        raise Cannot(f"{kind} before it does not let it through")

    def centred(self, tensor: int, by: Any) -> Plan:
        """To make the tensor `tensor - mean(tensor, -1)`, which only the operator `by` reads.

        Raises: Cannot.
        """
        op = self._only(tensor, by)
        kind = self.graph.name(op)
        if kind not in ("CONV_2D", "FULLY_CONNECTED"):
            raise Cannot(f"{kind} before it mixes no channels")
        w, bias = self._weights(op, kind)
        if kind == "CONV_2D" and w.shape[3] != self.graph.shape(self.graph.inputs(op)[0])[3]:
            raise Cannot(f"{kind} before it has groups, which see their own inputs alone")
        bias = None if bias is None else bias - bias.mean()
        return self._rewritten(op, kind, w - w.mean(0), bias)

    def _only(self, tensor: int, by: Any) -> Any:
        """The operator that writes a tensor which only `by` reads, as it is."""
        graph = self.graph
        name = graph.tensor_name(tensor)
        op = self.producers.get(tensor)
        if op is None:
            raise Cannot("what comes before it is an input or a constant")
        if [c is by for c in self.consumers[tensor]] != [True]:
            raise Cannot(f"{name!r} before it is used elsewhere too")
        if getattr(op.builtinOptions, "fusedActivationFunction", NONE) != NONE:
            raise Cannot(f"there is an activation between it and {graph.name(op)} before it")
        return op

    # ---- Into what comes after ----------------------------------------------------------------

    def forward(self, tensor: int, a: np.ndarray, b: np.ndarray) -> Plan:
        """To make every reader of the tensor read it as if it were `a * tensor + b`.

        Raises: Cannot.
        """
        plan = Plan([], [])
        for op in self.consumers[tensor]:
            found = self._forward(tensor, op, a, b)
            plan = Plan(plan.actions + found.actions, plan.targets + found.targets)
        if not plan.actions:
            raise Cannot("nothing reads it")
        return plan

    def _forward(self, tensor: int, op: Any, a: np.ndarray, b: np.ndarray) -> Plan:
        graph = self.graph
        if op is None:
            raise Cannot("its result is an output")
        kind, shape = graph.name(op), graph.shape(tensor)
        if kind in WEIGHTED:
            place = places(kind)[0]
            if [graph.inputs(op)[k] == tensor for k in range(len(op.inputs))].count(True) != 1 or (
                graph.inputs(op)[place] != tensor
            ):
                raise Cannot(f"{kind} after it takes its result as weights")
            return self._into(op, kind, a, b, shape)
        out = graph.shape(graph.outputs(op)[0])
        if kind == "RESHAPE":
            return self._through(op, *(self._reshaped(v, shape, out) for v in (a, b)))
        if kind == "PAD" and not np.any(b) and out[-1] == shape[-1]:
            return self._through(op, self._vector(a, shape), np.zeros(1, np.float32))
        plain = getattr(op.builtinOptions, "fusedActivationFunction", NONE) == NONE
        if plain and kind == "AVERAGE_POOL_2D":
            return self._through(op, self._vector(a, shape), self._vector(b, shape))
        if plain and kind == "MAX_POOL_2D" and np.all(a > 0):
            return self._through(op, self._vector(a, shape), self._vector(b, shape))
        if kind == "MEAN" and self._over_space(op):
            return self._through(op, self._vector(a, shape), self._vector(b, shape))
        raise Cannot(f"{kind} after it does not take it in")

    def _through(self, op: Any, a: np.ndarray, b: np.ndarray) -> Plan:
        return self.forward(self.graph.outputs(op)[0], a, b)

    def _into(self, op: Any, kind: str, a: np.ndarray, b: np.ndarray, shape: Any) -> Plan:
        w, bias = self._weights(op, kind)
        if kind == "FULLY_CONNECTED":
            if op.builtinOptions.weightsFormat:
                raise Cannot(f"{kind} after it has shuffled weights")
            size = w.shape[1]
            if shape[-1] == size:
                a, b = self._vector(a, shape), self._vector(b, shape)
            else:  # it flattens what it takes
                a, b = (self._reshaped(v, shape, (shape[0], size)).reshape(-1) for v in (a, b))
                a, b = np.broadcast_to(a, size), np.broadcast_to(b, size)
            scaled, moved = w * a, w @ b
        else:
            a, b = self._vector(a, shape), self._vector(b, shape)
            if np.any(b) and (kind == "TRANSPOSE_CONV" or self._pads(op, shape, w)):
                raise Cannot(f"{kind} after it pads with zeros, which its offset would have moved")
            if kind == "DEPTHWISE_CONV_2D":
                each = w.shape[3] // len(a)
                a, b = np.repeat(a, each), np.repeat(b, each)
                scaled, moved = w * a, (w * b).sum((0, 1, 2))
            else:
                groups = len(a) // w.shape[3]
                # The input channels that each output channel sees.
                own = np.repeat(np.arange(groups), w.shape[0] // groups)
                a, b = (v.reshape(groups, 1, 1, -1)[own] for v in (a, b))
                scaled, moved = w * a, (w * b).sum((1, 2, 3))
        if not np.any(b):
            moved = None
        elif bias is not None:
            moved = moved + bias
        return self._rewritten(op, kind, scaled, bias if moved is None else moved)

    def _pads(self, op: Any, shape: Any, w: np.ndarray) -> bool:
        options = op.builtinOptions
        if options.padding != _SAME:
            return False
        for k, axis in ((1, "H"), (2, "W")):
            stride, dilation = (
                getattr(options, f"stride{axis}"),
                getattr(options, f"dilation{axis}Factor"),
            )
            reach = (w.shape[k] - 1) * dilation + 1
            if reach > stride or shape[k] is None:
                if reach > 1:
                    return True
            elif (math.ceil(shape[k] / stride) - 1) * stride + reach > shape[k]:
                return True
        return False

    # ---- What both need -----------------------------------------------------------------------

    def _weights(self, op: Any, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
        """As float64, so that a product is rounded once."""
        _, of_weights, of_bias = places(kind)
        inputs = self.graph.inputs(op)
        w = self.graph.value(inputs[of_weights])
        given = len(inputs) > of_bias and inputs[of_bias] >= 0
        bias = self.graph.value(inputs[of_bias]) if given else None
        if w is None or w.dtype != np.float32 or (given and bias is None):
            raise Cannot(f"the weights of {kind} are not constant floats")
        return w.astype(np.float64), None if bias is None else bias.astype(np.float64)

    def _rewritten(self, op: Any, kind: str, w: np.ndarray, bias: np.ndarray | None) -> Plan:
        _, of_weights, of_bias = places(kind)
        numbers = [w] if bias is None else [w, bias]
        new = [np.asarray(v, np.float64).astype(np.float32) for v in numbers]
        if not all(np.all(np.isfinite(v)) for v in new):
            raise Cannot(f"the weights of {kind} would not be finite")
        graph, name = self.graph, self.graph.tensor_name(self.graph.outputs(op)[0])
        said = self.layers.get(id(op)) or name.split(";")[0].removeprefix(PREFIX)

        def act():
            inputs = graph.inputs(op)
            inputs += [-1] * (of_bias + 1 - len(inputs))
            inputs[of_weights] = graph.constant(new[0], f"{name}/weights")
            if bias is not None:
                inputs[of_bias] = graph.constant(new[1], f"{name}/bias")
            op.inputs = inputs
            if kind == "TRANSPOSE_CONV":  # the first version has no bias
                op.opcodeIndex = graph.file.code(kind, version=3)

        return Plan([act], [f"{kind} {said}"])

    def _over_space(self, op: Any) -> bool:
        """Whether a MEAN leaves the batch and the channels alone."""
        axes = self.graph.value(self.graph.inputs(op)[1])
        rank = len(self.graph.shape(self.graph.inputs(op)[0]))
        return axes is not None and not {0, rank - 1} & {int(k) % rank for k in np.ravel(axes)}

    def _vector(self, v: np.ndarray, shape: Any) -> np.ndarray:
        """One number a channel (the last axis).

        Raises: Cannot, if there are more.
        """
        v = np.asarray(v, np.float64)
        if v.ndim == 0:
            v = v.reshape(1)
        rows = v.reshape(-1, v.shape[-1])
        if not np.all(rows == rows[:1]):
            raise Cannot("its numbers are not the same at every position")
        return np.broadcast_to(rows[0], shape[-1:])

    def _reshaped(self, v: np.ndarray, before: Any, after: Any) -> np.ndarray:
        """Through a RESHAPE that leaves the batch alone."""
        if before[0] != after[0] and None not in (before[0], after[0]):
            raise Cannot("a RESHAPE between them changes the batch")
        if None in before[1:] or None in after[1:]:
            raise Cannot("a RESHAPE between them is of open size")
        if math.prod(before[1:]) != math.prod(after[1:]):
            raise Cannot("a RESHAPE between them changes the batch")
        if before[1:] and after[1:] and before[-1] == after[-1] and np.ndim(v) <= 1:
            return v
        return np.broadcast_to(v, before[1:]).reshape(after[1:])


# Operators that can end with an activation.
_ENDING = {
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DIV": "DivOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MUL": "MulOptions",
    "SUB": "SubOptions",
}
_ACTIVATIONS = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}


def activations(graph: Graph) -> None:
    """Lets operators end with the activation that comes after them."""
    consumers, producers = graph.consumers(), graph.producers()
    for op in list(graph.operators):
        function = _ACTIVATIONS.get(graph.name(op))
        if function is None:
            continue
        (tensor,), (result,) = graph.inputs(op), graph.outputs(op)
        before = producers.get(tensor)
        if before is None or graph.name(before) not in _ENDING or len(consumers[tensor]) != 1:
            continue
        if before.builtinOptions.fusedActivationFunction != NONE:
            continue
        before.builtinOptions.fusedActivationFunction = function
        before.outputs = [result]
        producers[result] = before
        graph.replace(op, [])
