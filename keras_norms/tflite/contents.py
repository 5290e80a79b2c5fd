"""What stands in a `.tflite` file: its operations and its tensors' ranks."""

from collections import Counter
from dataclasses import dataclass

from keras_norms.tflite.graph import File

# They keep a state between runs: the converter left a variable or a table that it should have
# turned into constants, and such a file gives NaN or runs on few devices.
STATEFUL = {
    "ASSIGN_VARIABLE",
    "CALL_ONCE",
    "HASHTABLE",
    "HASHTABLE_FIND",
    "HASHTABLE_IMPORT",
    "HASHTABLE_SIZE",
    "READ_VARIABLE",
    "VAR_HANDLE",
}


@dataclass(frozen=True)
class Contents:
    """Counted over all subgraphs. `custom` are the names of operations that are not built in."""

    ops: dict[str, int]
    rank_above_4: int
    custom: tuple[str, ...]

    @property
    def stateful(self) -> tuple[str, ...]:
        return tuple(sorted(STATEFUL & set(self.ops)))


def contents(content: bytes) -> Contents:
    """Reads the bytes of a `.tflite` file."""
    return contents_of(File(content))


def contents_of(file: File) -> Contents:
    operators = [op for graph in file.graphs for op in graph.operators]
    ops = Counter(map(file.op_name, operators))
    custom = {file.op_name(op) for op in operators if file.is_custom(op)}
    above_4 = sum(len(g.shape(t)) > 4 for g in file.graphs for t in range(len(g.raw.tensors)))
    by_count = dict(sorted(ops.items(), key=lambda item: (-item[1], item[0])))
    return Contents(by_count, above_4, tuple(sorted(custom)))
