"""How much a damaged `.tflite` file claims to hold, found before it is read.

The parts of the format are offsets, and nothing in a file keeps a thousand of them from leading to
one part: some kilobytes can stand for more objects than memory holds. The readers that flatbuffers
generates for Python do not look out for that.
"""

from collections.abc import Iterator

from keras_norms.tflite.graph import schema


def check_extent(content: bytes) -> None:
    """Raises: ValueError, if the file's parts would take more room than the file has."""
    room = len(content)
    for taken in _parts(schema().Model.GetRootAs(content, 0)):
        room -= taken
        if room < 0:
            raise ValueError(f"its parts take more than the {len(content)} bytes of the file")


def _parts(model) -> Iterator[int]:
    """The bytes of each vector of offsets, four for each, and of each name, as often as read."""
    yield 4 * (
        model.OperatorCodesLength()
        + model.SubgraphsLength()
        + model.BuffersLength()
        + model.MetadataLength()
        + model.SignatureDefsLength()
        + model.ExternalBufferGroupsLength()
        + model.ExternalBuffersLength()
    )
    yield _text(model.Description())
    for k in range(model.OperatorCodesLength()):
        yield _text(model.OperatorCodes(k).CustomCode())
    for k in range(model.MetadataLength()):
        yield _text(model.Metadata(k).Name())
    for k in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(k)
        yield 4 * (signature.InputsLength() + signature.OutputsLength())
        yield _text(signature.SignatureKey())
        for j in range(signature.InputsLength()):
            yield _text(signature.Inputs(j).Name())
        for j in range(signature.OutputsLength()):
            yield _text(signature.Outputs(j).Name())
    for k in range(model.SubgraphsLength()):
        graph = model.Subgraphs(k)
        yield 4 * (graph.TensorsLength() + graph.OperatorsLength())
        yield _text(graph.Name())
        for j in range(graph.TensorsLength()):
            tensor = graph.Tensors(j)
            sparsity = tensor.Sparsity()
            yield _text(tensor.Name())
            yield 4 * tensor.VariantTensorsLength()
            yield 4 * sparsity.DimMetadataLength() if sparsity else 0


def _text(name: bytes | None) -> int:
    return len(name or b"")
