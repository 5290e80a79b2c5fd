"""ai-edge-quantizer, told for each operation by its name what to make of it."""

import contextlib
import io
import re
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.flow import Flow, Node

# What an operation can be made: weights and activations. "dynamic" takes and gives float32 and has
# its weights in int8; XNNPACK finds the scale of what comes in for every run, or row, anew.
KINDS = ("float32", "dynamic", "int8", "int16x8")

# Below this many numbers a weight in int8 saves nothing; TensorFlow's converter has the same.
SMALL = 1024

Ranges = Mapping[str, tuple[float, float]]


def apply(content: bytes, kinds: Mapping[str, str], ranges: Ranges) -> bytes:
    """The file with its operations in other numbers.

    Operations that the engine or LiteRT's kernels lack in integers stay float32, between a
    DEQUANTIZE and a QUANTIZE. Inputs and outputs stay float32.

    Args:
        content: of a float32 file.
        kinds: one of `KINDS` by the first output of an operation; float32 for those not named.
        ranges: of every float32 tensor that is computed or given, for "int8" and "int16x8".

    Raises: ConversionError, if the engine refuses.
    """
    quantizer, qtyping = _engine()

    class Quantizer(quantizer.Quantizer):
        def _ensure_model_qsv_sufficient(self, calibration_result):
            """Would load the file into this process, where LiteRT may lack its operations."""

    flow = Flow(content)
    # The ranges of the weights are the engine's business.
    computed = set(flow.producer) | set(flow.inputs)
    static = {
        name: {"min": np.float32(least).reshape(()), "max": np.float32(most).reshape(())}
        for name, (least, most) in ranges.items()
        if name in computed
    }
    work = Quantizer(bytearray(content))
    scopes = defaultdict(list)
    # The engine forgets an output that nothing takes, as of a SPLIT, and XNNPACK refuses a SPLIT
    # into int8 and float32.
    taken = {name for node in flow.all_nodes for name in node.inputs} | set(flow.outputs)
    for node in flow.all_nodes:
        whole = len(node.outputs) == 1 or taken.issuperset(node.outputs)
        scopes[kinds.get(node.output, "float32") if whole else "float32"].append(_scope(node))
    scopes.pop("float32", None)
    if not scopes:
        return content
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    for kind, names in sorted(scopes.items()):
        work.update_quantization_recipe(_only(names), every, _recipe(qtyping, kind))
    # The engine has a pseudo-operation for each output, with the name of the tensor.
    work.update_quantization_recipe(
        ".*", qtyping.TFLOperationName.OUTPUT, algorithm_key="no_quantize"
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars that show the progress
            result = work.quantize(static or None, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ConversionError(f"The quantizer refused the file. It says: {error}") from error
    return bytes(result.quantized_model)


def _recipe(qtyping, kind: str):
    def numbers(bits, symmetric, granularity):
        return qtyping.TensorQuantizationConfig(
            num_bits=bits, symmetric=symmetric, granularity=granularity
        )

    grain = qtyping.QuantGranularity
    activations = {
        "dynamic": None,
        "int8": numbers(8, False, grain.TENSORWISE),
        "int16x8": numbers(16, True, grain.TENSORWISE),  # LiteRT has no other in int16
    }[kind]
    return qtyping.OpQuantizationConfig(
        activation_tensor_config=activations,
        weight_tensor_config=numbers(8, True, grain.CHANNELWISE),
        compute_precision=qtyping.ComputePrecision.INTEGER,
        min_weight_elements=SMALL if kind == "dynamic" else 0,
    )


def _scope(node: Node) -> str:
    """The engine's name of an operation."""
    return "".join(f"{name};" for name in node.outputs if name)[:10000]


def _only(names: list[str]) -> str:
    return rf"\A(?:{'|'.join(map(re.escape, names))})\Z"


def _engine():
    try:
        from ai_edge_quantizer import qtyping, quantizer
    except ImportError as error:
        raise ImportError(
            "Quantization to 8 bits needs ai-edge-quantizer, which is not installed: "
            'pip install "keras-norms[tflite]"'
        ) from error
    return quantizer, qtyping
