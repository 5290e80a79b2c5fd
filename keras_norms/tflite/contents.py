"""What stands in a `.tflite` file: its operations and its tensors' ranks."""

from collections import Counter
from dataclasses import dataclass

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
    from tensorflow.lite.python import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    model = schema.Model.GetRootAs(content, 0)
    codes, custom = [], set()
    for k in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(k)
        # Files by old writers have only the deprecated one-byte code.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if number == schema.BuiltinOperator.CUSTOM:
            codes.append((code.CustomCode() or b"CUSTOM").decode(errors="replace"))
            custom.add(codes[-1])
        else:
            codes.append(names.get(number, f"BUILTIN_{number}"))
    ops: Counter[str] = Counter()
    above_4 = 0
    for k in range(model.SubgraphsLength()):
        graph = model.Subgraphs(k)
        ops.update(codes[graph.Operators(j).OpcodeIndex()] for j in range(graph.OperatorsLength()))
        above_4 += sum(graph.Tensors(j).ShapeLength() > 4 for j in range(graph.TensorsLength()))
    by_count = dict(sorted(ops.items(), key=lambda item: (-item[1], item[0])))
    return Contents(by_count, above_4, tuple(sorted(custom)))
