"""Which operations of a quantized file stay float32, for norms that do.

A norm divides by its input's size. So a weak sample, of which one int8 scale for all samples has
left three steps, comes out of a norm as strong as any other, and its error with it. What a norm has
not yet made equal must not pass through a scale that was fixed beforehand. Hence, with a norm in
float32:

- its operations are float32;
- so is every tensor that depends on the file's input other than through a norm and leads to this
  norm ("raw" below: in a network of norms, what precedes the first; in a transformer, the residual
  stream). Matrices and convolutions among these have int8 weights and find the scale of their input
  when they run ("dynamic");
- all else is integer, as without norms.

In int16x8 there are steps enough, and only the norm itself is float32.

Measured in dB beside the float32 file, on samples of 0.1 to 10 times the strength, for a
convolution, a group norm and a convolution in int8 (in brackets the worst sample):

    all in int8                                          -3.5 (-7.6)    169 us
    the norm in float32                                   7.1 (-0.7)    138 us
    and what leads to it: "dynamic"                      33.3 (33.1)    159 us
    and what leads to it: int16 activations              33.9 (33.2)   4868 us
    and what leads to it: float32 with int8 weights      33.9 (33.6)    265 us
    no norm, all in int8                                 24.4 (-1.7)
    the float32 file, its input rounded to 8 bits        10.5 (3.3)

The last line is why the file's input must not be rounded before a norm. The times are of one thread
on x86-64; in float32 it is 435 us.
"""

from collections.abc import Sequence

from keras_norms.tflite.flow import Flow
from keras_norms.tflite.norms import Norm

WEIGHTED = {
    "BATCH_MATMUL",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "EMBEDDING_LOOKUP",
    "FULLY_CONNECTED",
    "TRANSPOSE_CONV",
}


def plan(flow: Flow, norms: Sequence[Norm], floats: set[str], mode: str) -> dict[str, str]:
    """What each operation is made, by its first output, with some norms in float32."""
    kinds = {node.output: mode for node in flow.nodes}
    kept = [norm for norm in norms if norm.path in floats]
    if mode == "int8":
        raw = _raw(flow, norms)
        leading = _leading(flow, norms, [norm.enters for norm in kept])
        for node in flow.nodes:
            if node.output in raw & leading:
                weighted = node.op in WEIGHTED and node.constants
                kinds[node.output] = "dynamic" if weighted else "float32"
    # A norm that stays quantized is so also where it lies before one that does not.
    for norm in norms:
        numbers = "float32" if norm.path in floats else mode
        kinds.update(dict.fromkeys(norm.nodes, numbers))
    return kinds


def _raw(flow: Flow, norms: Sequence[Norm]) -> set[str]:
    """The tensors that depend on the file's input other than through a norm."""
    leaves = {norm.leaves for norm in norms}
    raw = set(flow.inputs)
    for node in flow.nodes:
        if raw.intersection(node.inputs):
            raw.update(set(node.outputs) - leaves)
    return raw


def _leading(flow: Flow, norms: Sequence[Norm], targets: Sequence[str]) -> set[str]:
    """The tensors that lead to some, each way followed back to the next norm."""
    leaves = {norm.leaves for norm in norms}
    found: set[str] = set()
    rest = list(targets)
    while rest:
        name = rest.pop()
        if name in found or name in leaves:
            continue
        found.add(name)
        if name in flow.producer:
            rest.extend(flow.producer[name].inputs)
    return found


def between(flow: Flow, nodes: set[str]) -> set[str]:
    """The operations that take what some make, and lead to one of them."""
    after: set[str] = set()  # tensors that depend on them
    for node in flow.nodes:
        if node.output in nodes or after.intersection(node.inputs):
            after.update(node.outputs)
    before: set[str] = set()  # tensors that they depend on
    for node in reversed(flow.nodes):
        if node.output in nodes or before.intersection(node.outputs):
            before.update(node.inputs)
    found = after & before & set(flow.producer)
    return {flow.producer[name].output for name in found} - nodes
