"""The smallest file, y = x + x, which shows that a runtime works."""

import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

from .job import Failure, Job

SHAPE = (1, 5)


def why_not(runtime: ModuleType) -> str | None:
    """Runs the file; None, or what was wrong."""
    x = np.linspace(-3, 4, 10, dtype="float32").reshape(2, 5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "smoke.tflite"
        path.write_bytes(content())
        try:
            (got,) = runtime.run([Job(path, {"x": x})])
        except Failure as failure:
            return str(failure)
    # Twice a number is exact in any format; x has to be rounded to float16 on a GPU.
    if list(got) == ["y"] and np.allclose(got["y"], x + x, rtol=2**-10, atol=0):
        return None
    return f"x + x of {x.tolist()} was {got}"


def content() -> bytearray:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def tensor(name):
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(SHAPE), 0, 0  # FLOAT32
        return made

    def named(name, index):
        made = schema.TensorMapT()
        made.name, made.tensorIndex = name, index
        return made

    add = schema.OperatorT()
    add.opcodeIndex, add.inputs, add.outputs = 0, [0, 0], [1]
    add.builtinOptionsType, add.builtinOptions = (
        schema.BuiltinOptions.AddOptions,
        schema.AddOptionsT(),
    )
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [tensor("x"), tensor("y")], [add]
    graph.inputs, graph.outputs = [0], [1]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = [named("x", 0)], [named("y", 1)]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.signatureDefs, model.buffers = [signature], [schema.BufferT()]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return builder.Output()
