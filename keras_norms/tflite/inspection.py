"""What stands in a `.tflite` file, read without running it."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_norms.messages import one_line
from keras_norms.tflite import metadata
from keras_norms.tflite.contents import Contents, contents_of
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.extent import check_extent
from keras_norms.tflite.graph import File, Graph
from keras_norms.tflite.text import as_json, table


@dataclass(frozen=True)
class Tensor:
    """An input or an output: its name in the signature, its sizes (None: any) and its type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Inspection:
    """A `.tflite` file. `print(inspection)` shows a table.

    Attributes:
        path, size: the file and its bytes.
        inputs, outputs: of its first signature, or of its main graph where it has none.
        ops: how often each operation stands in it, most frequent first, over all graphs.
        custom: the operations that are not built into LiteRT.
        stateful: those that keep a state between runs.
        rank_above_4: tensors with more than four dimensions, which mobile GPUs refuse.
        open_sizes: tensors with a size that is known only while it runs.
        constants: bytes of the weights and other constants by type of number.
        conversion: what the converter said of it; None if it is not ours.
        test_vectors: whether it holds a sample with the outputs expected.
    """

    path: str
    size: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    ops: dict[str, int]
    custom: tuple[str, ...]
    stateful: tuple[str, ...]
    rank_above_4: int
    open_sizes: int
    constants: dict[str, int]
    conversion: dict[str, Any] | None
    test_vectors: bool

    def to_json(self) -> str:
        return as_json(self)

    def __str__(self) -> str:
        rows = [
            ("file", self.path),
            ("size", f"{self.size:,} bytes"),
            *((f"input {t.name}", f"{t.dtype} {_sizes(t.shape)}") for t in self.inputs),
            *((f"output {t.name}", f"{t.dtype} {_sizes(t.shape)}") for t in self.outputs),
            ("operations", f"{sum(self.ops.values())}"),
            *((f"  {name}", f"{count}") for name, count in self.ops.items()),
            ("not built in", ", ".join(self.custom) or "none"),
            ("with a state", ", ".join(self.stateful) or "none"),
            ("tensors above rank 4", f"{self.rank_above_4}"),
            ("tensors of open size", f"{self.open_sizes}"),
            *((f"constants, {name}", f"{n:,} bytes") for name, n in self.constants.items()),
            ("test vectors", "yes" if self.test_vectors else "no"),
        ]
        if self.conversion:
            said = self.conversion
            rows.append(("written by", f"keras-norms {said.get('keras_norms')}"))
            rows.append(("  for", f"{said.get('target')}, {said.get('quantize') or 'float32'}"))
            forms = said.get("norms")
            if isinstance(forms, dict):
                rows += [(f"  {path}", f"{form}") for path, form in forms.items()]
        return table(rows)


def inspect(path: str | os.PathLike) -> Inspection:
    """Reads a `.tflite` file, by whomever it was written.

    Raises: ConversionError, a ValueError, if it is not a sound file.
    """
    content, file = read(path)
    try:
        return _inspection(str(path), content, file)
    except Exception as error:
        raise _unsound(path, error) from error


def read(path: str | os.PathLike) -> tuple[bytes, File]:
    """A file's bytes and what they hold.

    Raises: ConversionError, if it cannot be read, or is no file of the format.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`path` must be a string or a path. Received: {path!r}")
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a ValueError if the name holds a zero
        raise ConversionError(f"The file cannot be read: {error}") from error
    if content[4:8] != b"TFL3":
        raise ConversionError(
            f"A .tflite file must begin with its format's mark, TFL3. Received: {str(path)!r}, "
            f"{len(content)} bytes"
        )
    try:
        check_extent(content)
        return content, File(content)
    except Exception as error:  # damaged bytes can make the reader fail in any way
        raise _unsound(path, error) from error


def _unsound(path: Any, error: Exception) -> ConversionError:
    return ConversionError(
        f"The .tflite file is damaged. Received: {str(path)!r} "
        f"({type(error).__name__}: {one_line(error)})"
    )


def _inspection(path: str, content: bytes, file: File) -> Inspection:
    found: Contents = contents_of(file)
    graph = file.graphs[0]
    signatures = file.raw.signatureDefs or []
    if signatures:
        ends = [
            [((e.name or b"").decode(errors="replace"), e.tensorIndex) for e in side or []]
            for side in (signatures[0].inputs, signatures[0].outputs)
        ]
        graph = file.graphs[signatures[0].subgraphIndex]
    else:
        ends = [
            [(graph.tensor_name(int(t)), int(t)) for t in side]
            for side in (graph.raw.inputs, graph.raw.outputs)
        ]
    inputs, outputs = (tuple(_tensor(graph, name, t) for name, t in sorted(side)) for side in ends)
    constants: Counter[str] = Counter()
    for owner in file.graphs:
        for raw in owner.raw.tensors:
            data = file.raw.buffers[raw.buffer].data
            if data is not None and raw.buffer:
                constants[file.type_name(raw.type)] += len(data)
    open_sizes = sum(
        None in owner.shape(t) for owner in file.graphs for t in range(len(owner.raw.tensors))
    )
    said = metadata.read(file)
    conversion = said.get(metadata.CONVERSION)
    return Inspection(
        path=path,
        size=len(content),
        inputs=inputs,
        outputs=outputs,
        ops=found.ops,
        custom=found.custom,
        stateful=found.stateful,
        rank_above_4=found.rank_above_4,
        open_sizes=open_sizes,
        constants=dict(constants.most_common()),
        conversion=conversion if isinstance(conversion, dict) else None,
        test_vectors=metadata.TEST_VECTORS in said,
    )


def _tensor(graph: Graph, name: str, tensor: int) -> Tensor:
    return Tensor(name, graph.shape(tensor), graph.file.type_name(graph.raw.tensors[tensor].type))


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
