"""Who makes and who takes the tensors of a `.tflite` file, all by their names."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.graph import File, Graph


@dataclass(frozen=True)
class Node:
    """An operation. `inputs` are the tensors that are computed, `constants` those that are not."""

    op: str
    custom: bool
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def output(self) -> str:
        return self.outputs[0]

    @property
    def fused(self) -> bool:
        """Whether it stands for several operations, of which none can be looked into."""
        return self.custom or self.op == "STABLEHLO_COMPOSITE"


class Flow:
    """The main graph of a file: the one that its signature runs.

    Attributes:
        nodes: its operations, in the order they are run.
        all_nodes: those of the graphs of loops and branches as well.
        inputs, outputs: the tensors that are given, and those that are returned.
        signature: the inputs by their names in the signature: shape and NumPy type.
        dynamic: tensors with a size that is known only when the file runs.
        repeated: names that more than one tensor has, over all graphs.
    """

    def __init__(self, content: bytes):
        file = File(content)
        main, *others = file.graphs
        self.nodes = [_node(main, op) for op in main.operators]
        self.all_nodes = self.nodes + [_node(g, op) for g in others for op in g.operators]
        self.inputs = tuple(main.tensor_name(int(t)) for t in main.raw.inputs)
        self.outputs = tuple(main.tensor_name(int(t)) for t in main.raw.outputs)
        given = {e.name.decode(): e.tensorIndex for e in _signature(file.raw).inputs}
        self.signature = {
            name: (main.shape(t), file.type_name(main.raw.tensors[t].type))
            for name, t in given.items()
        }
        tensors = [(g, t) for g in file.graphs for t in range(len(g.raw.tensors))]
        self.dynamic = [g.tensor_name(t) for g, t in tensors if None in g.shape(t)]
        names = Counter(g.tensor_name(t) for g, t in tensors)
        self.repeated = [name for name, count in names.items() if count > 1]

    @cached_property
    def producer(self) -> dict[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs}


def _node(graph: Graph, operator: Any) -> Node:
    given = [t for t in graph.inputs(operator) if t >= 0]
    return Node(
        op=graph.name(operator),
        custom=graph.file.is_custom(operator),
        inputs=tuple(graph.tensor_name(t) for t in given if not graph.is_constant(t)),
        constants=tuple(graph.tensor_name(t) for t in given if graph.is_constant(t)),
        outputs=tuple(graph.tensor_name(t) for t in graph.outputs(operator)),
    )


def _signature(model: Any) -> Any:
    if model.signatureDefs is None or len(model.signatureDefs) != 1:
        count = len(model.signatureDefs or ())
        raise ConversionError(f"A file must have one signature. Received: one with {count}")
    return model.signatureDefs[0]
