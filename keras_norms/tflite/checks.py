"""What a written file must not hold."""

from collections.abc import Sequence

from keras_norms.tflite import marks
from keras_norms.tflite.contents import contents
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.graph import File
from keras_norms.tflite.norms import Norm
from keras_norms.tflite.writer import not_built_in

SHAPES = {"SHAPE", "BROADCAST_ARGS"}


def refuse(content: bytes, norms: Sequence[Norm], *, custom_op: bool, dynamic: bool) -> None:
    """Raises: ConversionError, if there is anything that not every LiteRT can run."""
    found = contents(content)
    custom = [name for name in found.custom if not (custom_op and name == marks.NORMALIZE)]
    if custom:
        raise ConversionError(not_built_in(custom))
    if found.stateful:
        raise ConversionError(
            "The file must hold no variable and no table, but the model's would need "
            f"{', '.join(found.stateful)}: a layer writes a variable or looks into a table when "
            "it is called, or was built inside a tf.function. No file was written."
        )
    nodes = {name: norm for norm in norms for name in norm.nodes}
    for graph in File(content).graphs:
        rank = {graph.tensor_name(t): len(graph.shape(t)) for t in range(len(graph.raw.tensors))}
        for op in graph.operators:
            result = graph.outputs(op)[0]
            norm = nodes.get(graph.tensor_name(result))
            if norm is None:
                continue
            if len(graph.shape(result)) > max(4, rank.get(norm.enters, 0)):
                raise ConversionError(
                    f"{norm.path!r} would add a tensor above rank 4, of shape "
                    f"{graph.shape(result)}. No file was written."
                )
            if not dynamic and graph.name(op) in SHAPES:
                raise ConversionError(
                    f"{norm.path!r} would compute a shape while the file runs "
                    f"({graph.name(op)}). No file was written."
                )
