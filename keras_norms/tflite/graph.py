"""A `.tflite` file as a graph that can be changed: its operators, tensors and constants.

A thin layer over the object interface of TensorFlow's schema: a `File` holds `Graph`s (the main one
and the bodies of loops), a `Graph` its operators in the order in which they run. Tensors are
numbers, as in the file.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Shape = tuple[int | None, ...]

NONE = 0  # no activation


def schema() -> Any:
    """TensorFlow's module of the file format's classes."""
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


def _names(enumeration: str) -> dict[int, str]:
    values = vars(getattr(schema(), enumeration)).items()
    return {number: name for name, number in values if not name.startswith("_")}


class File:
    """The file's contents.

    Attributes:
        graphs: the main one first.
    """

    def __init__(self, content: bytes):
        module = schema()
        self.raw = module.ModelT.InitFromObj(module.Model.GetRootAs(bytearray(content), 0))
        self._codes = _names("BuiltinOperator")
        self._numbers = {name: number for number, name in self._codes.items()}
        self._constants: dict[tuple, int] = {}
        self._check()
        self.graphs = [Graph(self, subgraph) for subgraph in self.raw.subgraphs]

    def _check(self) -> None:
        """Raises: ValueError, if anything refers to what is not there."""

        def check(what: str, numbers: Any, count: int, least: int = 0) -> None:
            wrong = [int(n) for n in _given(numbers) if not least <= n < count]
            if wrong:
                raise ValueError(f"{what} {wrong[0]} is not one of {count}")

        buffers, codes = len(_given(self.raw.buffers)), len(_given(self.raw.operatorCodes))
        for raw in _given(self.raw.subgraphs):
            tensors = len(_given(raw.tensors))
            check("buffer", (t.buffer for t in _given(raw.tensors)), buffers)
            check("tensor", (*_given(raw.inputs), *_given(raw.outputs)), tensors)
            for op in _given(raw.operators):
                check("operator", [op.opcodeIndex], codes)
                check("tensor", op.inputs, tensors, least=-1)
                check("tensor", op.outputs, tensors)

    def op_name(self, operator: Any) -> str:
        """Its name in the schema, or of a custom operator its own."""
        code = self.raw.operatorCodes[operator.opcodeIndex]
        # Files by old writers have only the deprecated one-byte code.
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        if self._codes.get(number) == "CUSTOM":
            return (code.customCode or b"CUSTOM").decode(errors="replace")
        return self._codes.get(number, f"BUILTIN_{number}")

    def is_custom(self, operator: Any) -> bool:
        """Whether it is not one of LiteRT's own."""
        code = self.raw.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return self._codes.get(number) == "CUSTOM"

    def type_name(self, number: int) -> str:
        """NumPy's name of a tensor type, or the schema's where NumPy has none."""
        return _names("TensorType").get(number, f"type {number}").lower()

    def code(self, name: str, version: int = 1) -> int:
        """The index of the code of this operator, at least of this version."""
        for index, code in enumerate(self.raw.operatorCodes):
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            custom = (code.customCode or b"").decode(errors="replace")
            if name == (custom or self._codes.get(number)) and code.version >= version:
                return index
        code = schema().OperatorCodeT()
        number = self._numbers.get(name, self._numbers["CUSTOM"])
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
        code.version = version
        if name not in self._numbers:
            code.customCode = name.encode()
        self.raw.operatorCodes.append(code)
        return len(self.raw.operatorCodes) - 1

    def buffer(self, data: np.ndarray) -> int:
        """The index of a buffer with these bytes; equal ones are kept once."""
        key = data.tobytes()
        if key not in self._constants:
            buffer = schema().BufferT()
            buffer.data = np.frombuffer(key, np.uint8)
            self.raw.buffers.append(buffer)
            self._constants[key] = len(self.raw.buffers) - 1
        return self._constants[key]

    def name_graphs(self) -> None:
        """Gives branches and bodies of loops the names they have in every conversion.

        TensorFlow ends them with a count of the functions that the process has made.
        """
        for k, graph in enumerate(self.graphs[1:], 1):
            old = graph.raw.name or b""
            graph.raw.name = re.sub(rb"_\d+$", b"", old) + b"_%d" % k
            for tensor in graph.raw.tensors:
                if old and tensor.name and tensor.name.startswith(old):
                    tensor.name = graph.raw.name + tensor.name.removeprefix(old)

    def name_apart(self) -> None:
        """Gives every tensor a name of its own, over all graphs."""
        taken: set[bytes] = set()
        for graph in self.graphs:
            for tensor in graph.raw.tensors:
                name, k = tensor.name or b"tensor", 1
                while name in taken:
                    k += 1
                    name = (tensor.name or b"tensor") + b"_%d" % k
                taken.add(name)
                tensor.name = name

    def dump(self) -> bytes:
        """The bytes of the file, without what nothing refers to; constants aligned to 16 bytes."""
        for graph in self.graphs:
            graph.prune()
        self._prune_buffers()
        self._prune_codes()
        import flatbuffers

        builder = flatbuffers.Builder(1 << 20)
        for buffer in self.raw.buffers:
            buffer.Pack = _aligned(buffer)
        builder.Finish(self.raw.Pack(builder), b"TFL3")
        for buffer in self.raw.buffers:
            del buffer.Pack
        return bytes(builder.Output())

    def _prune_buffers(self) -> None:
        used = {0}  # the empty one
        tensors = [t for graph in self.graphs for t in graph.raw.tensors]
        metadata = self.raw.metadata or []
        used |= {t.buffer for t in tensors} | {m.buffer for m in metadata}
        new = {old: k for k, old in enumerate(sorted(used))}
        self.raw.buffers = [self.raw.buffers[old] for old in sorted(used)]
        self.raw.metadataBuffer = None  # deprecated; it counts buffers
        for owner in (*tensors, *metadata):
            owner.buffer = new[owner.buffer]
        self._constants.clear()

    def _prune_codes(self) -> None:
        operators = [op for graph in self.graphs for op in graph.operators]
        used = sorted({op.opcodeIndex for op in operators})
        new = {old: k for k, old in enumerate(used)}
        self.raw.operatorCodes = [self.raw.operatorCodes[old] for old in used]
        for op in operators:
            op.opcodeIndex = new[op.opcodeIndex]


def _given(values: Any) -> Any:
    """A list of a file, which is None where it has none."""
    return () if values is None else values


def _aligned(buffer: Any):
    """In the place of the generated `Pack`, which aligns bytes as bytes: LiteRT maps them."""
    module = schema()

    def pack(builder):
        data = None
        if buffer.data is not None and len(buffer.data):
            content = np.ascontiguousarray(buffer.data, dtype=np.uint8).tobytes()
            builder.StartVector(1, len(content), 16)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            data = builder.EndVector()
        module.BufferStart(builder)
        if data is not None:
            module.BufferAddData(builder, data)
        return module.BufferEnd(builder)

    return pack


class Graph:
    """One subgraph. Operators are the schema's objects, told apart by identity."""

    def __init__(self, file: File, raw: Any):
        self.file = file
        self.raw = raw
        self.operators: list[Any] = raw.operators
        self._written = {int(t) for op in self.operators for t in op.outputs}
        self._taken = {t.name for t in raw.tensors}

    # ---- What is there ------------------------------------------------------------------------

    def name(self, operator: Any) -> str:
        return self.file.op_name(operator)

    def tensor_name(self, tensor: int) -> str:
        return (self.raw.tensors[tensor].name or b"").decode(errors="replace")

    def shape(self, tensor: int) -> Shape:
        """None where a size is left open."""
        raw = self.raw.tensors[tensor]
        sizes = raw.shape if raw.shapeSignature is None else raw.shapeSignature
        sizes = [] if sizes is None else sizes
        return tuple(None if size < 0 else int(size) for size in sizes)

    def value(self, tensor: int) -> np.ndarray | None:
        """A constant's value; None of any other tensor."""
        if tensor < 0:
            return None
        raw = self.raw.tensors[tensor]
        data = self.file.raw.buffers[raw.buffer].data
        if data is None or tensor in self._written or raw.isVariable:
            return None
        dtype = dtypes().get(raw.type)
        if dtype is None:
            return None
        return np.asarray(data, np.uint8).view(dtype).reshape(self.shape(tensor))

    def is_constant(self, tensor: int) -> bool:
        data = self.file.raw.buffers[self.raw.tensors[tensor].buffer].data
        return data is not None and len(data) > 0

    def is_float(self, tensors: Iterable[int]) -> bool:
        """Whether all of them are of float32."""
        number = schema().TensorType.FLOAT32
        return all(self.raw.tensors[t].type == number for t in tensors)

    def inputs(self, operator: Any) -> list[int]:
        return [int(t) for t in operator.inputs]

    def outputs(self, operator: Any) -> list[int]:
        return [int(t) for t in operator.outputs]

    def producers(self) -> dict[int, Any]:
        """The operator that writes each tensor."""
        return {int(t): op for op in self.operators for t in op.outputs}

    def consumers(self) -> dict[int, list[Any]]:
        """The operators that read each tensor; None for the graph's own outputs."""
        found: dict[int, list[Any]] = defaultdict(list)
        for op in self.operators:
            for tensor in op.inputs:
                found[int(tensor)].append(op)
        for tensor in self.raw.outputs:
            found[int(tensor)].append(None)
        return found

    # ---- What changes it ----------------------------------------------------------------------

    def constant(self, value: Any, name: str) -> int:
        value = np.ascontiguousarray(value)
        tensor = self.tensor(value.shape, value.dtype, name)
        self.raw.tensors[tensor].buffer = self.file.buffer(value)
        return tensor

    def tensor(self, shape: Shape, dtype: Any, name: str) -> int:
        """A new one; None in `shape` is a size that is left open."""
        raw = schema().TensorT()
        raw.type = {v: k for k, v in dtypes().items()}[np.dtype(dtype)]
        raw.buffer = 0
        raw.name = self.free_name(name).encode()
        raw.hasRank = True
        self.raw.tensors.append(raw)
        self.set_shape(len(self.raw.tensors) - 1, shape)
        return len(self.raw.tensors) - 1

    def set_shape(self, tensor: int, shape: Shape) -> None:
        raw = self.raw.tensors[tensor]
        raw.shape = [1 if size is None else size for size in shape]
        signature = [-1 if size is None else size for size in shape]
        raw.shapeSignature = signature if None in shape else None

    def set_output(self, k: int, tensor: int) -> None:
        """Makes a tensor the k-th output."""
        old = int(self.raw.outputs[k])
        self.raw.outputs = [tensor if j == k else int(t) for j, t in enumerate(self.raw.outputs)]
        self._in_signatures(old, tensor)

    def _in_signatures(self, old: int, new: int) -> None:
        """Another tensor for an output, in the signatures that name it."""
        if self is self.file.graphs[0]:
            for signature in self.file.raw.signatureDefs or []:
                for entry in signature.outputs:
                    if entry.tensorIndex == old:
                        entry.tensorIndex = new

    def free_name(self, name: str) -> str:
        found, k = name, 1
        while found.encode() in self._taken:
            k += 1
            found = f"{name}_{k}"
        self._taken.add(found.encode())
        return found

    def operator(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        version: int = 1,
        **options: Any,
    ) -> Any:
        """A new one, which is not yet among the graph's operators."""
        module = schema()
        op = module.OperatorT()
        op.opcodeIndex = self.file.code(name, version)
        op.inputs, op.outputs = list(inputs), list(outputs)
        self._written.update(op.outputs)
        kind = OPTIONS.get(name)
        if kind is not None:
            op.builtinOptionsType = getattr(module.BuiltinOptions, kind)
            op.builtinOptions = getattr(module, f"{kind}T")()
            for key, value in options.items():
                setattr(op.builtinOptions, key, value)
        return op

    def replace(self, operator: Any, new: Iterable[Any]) -> None:
        """Puts operators, none or more, in the place of one."""
        k = next(k for k, op in enumerate(self.operators) if op is operator)
        self.operators[k : k + 1] = list(new)

    def rewire(self, old: int, new: int) -> None:
        """Whoever reads one tensor, the graph's outputs included, reads another."""
        for op in self.operators:
            op.inputs = [new if t == old else int(t) for t in op.inputs]
        self.raw.outputs = [new if t == old else int(t) for t in self.raw.outputs]
        self._in_signatures(old, new)

    def prune(self) -> None:
        """Drops operators without effect, then tensors that nothing refers to."""
        kept, alive = [], {int(t) for t in self.raw.outputs}
        for op in reversed(self.operators):
            if alive.intersection(map(int, op.outputs)) or self.name(op) in EFFECTS:
                alive.update(int(t) for t in op.inputs if t >= 0)
                alive.update(int(t) for t in op.outputs)
                alive.update(int(t) for t in (op.intermediates or []))
                kept.append(op)
        self.operators[:] = reversed(kept)
        alive.update(int(t) for t in self.raw.inputs)
        order = sorted(alive)
        new = {old: k for k, old in enumerate(order)} | {-1: -1}
        self.raw.tensors = [self.raw.tensors[old] for old in order]
        for op in self.operators:
            op.inputs = [new[int(t)] for t in op.inputs]
            op.outputs = [new[int(t)] for t in op.outputs]
            if op.intermediates is not None:
                op.intermediates = [new[int(t)] for t in op.intermediates]
        self.raw.inputs = [new[int(t)] for t in self.raw.inputs]
        self.raw.outputs = [new[int(t)] for t in self.raw.outputs]
        if self is self.file.graphs[0]:
            for signature in self.file.raw.signatureDefs or []:
                for entry in (*(signature.inputs or []), *(signature.outputs or [])):
                    entry.tensorIndex = new[entry.tensorIndex]
        self._written = {t for op in self.operators for t in op.outputs}


# Operators that matter without an output that is read.
EFFECTS = {"ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE_IMPORT", "VAR_HANDLE"}

# The class of an operator's options, where it has any that the passes write.
OPTIONS = {
    "ABS": "AbsOptions",
    "ADD": "AddOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "DIV": "DivOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "REDUCE_MAX": "ReducerOptions",
    "RESHAPE": "ReshapeOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
}


def dtypes() -> dict[int, np.dtype]:
    """NumPy's type of a tensor type of the schema."""
    module = schema()
    names = ("FLOAT16", "FLOAT32", "FLOAT64", "INT8", "INT16", "INT32", "INT64", "UINT8", "BOOL")
    numpy_names = {"BOOL": "bool"}
    return {
        getattr(module.TensorType, name): np.dtype(numpy_names.get(name, name.lower()))
        for name in names
    }
