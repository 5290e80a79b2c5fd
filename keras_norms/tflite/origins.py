"""Which layers of the model a file's operators are of.

TensorFlow names an operator after the scopes in which it was traced. A scope is not a layer's name:
`conv2d_1` is that of a layer `conv2d` where `conv2d` was taken. So the layers' calls note theirs.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import keras

from keras_norms.tflite.fold import WEIGHTED, places
from keras_norms.tflite.graph import Graph
from keras_norms.tflite.marks import attribute, path_of

Scopes = Mapping[str, set[str]]


@contextmanager
def noted(model: keras.Model) -> Iterator[Scopes]:
    """Within it, the layers with a kernel note in which scopes they are called: their paths."""
    scopes: dict[str, set[str]] = {}
    with ExitStack() as stack:
        for layer in model._flatten_layers():
            holds = list(layer._flatten_layers(include_self=False, recursive=False))
            if not holds and any("kernel" in weight.name for weight in layer.weights):
                stack.enter_context(attribute(layer, "call", _noting(layer, scopes)))
        yield scopes


def _noting(layer, scopes):
    import tensorflow as tf

    call = layer.call

    @functools.wraps(call)
    def noting(*args, **kwargs):
        scopes.setdefault(tf.get_current_name_scope(), set()).add(path_of(layer))
        return call(*args, **kwargs)

    return noting


def origins(graph: Graph, scopes: Scopes) -> dict[int, str]:
    """The layers' paths by the identity of the operators with weights, where they are certain.

    Of a graph as the converter left it: what is changed later takes over names of others.
    """
    consumers = graph.consumers()
    found = {}
    for op in graph.operators:
        kind = graph.name(op)
        if kind not in WEIGHTED:
            continue
        layers = _layers(graph.tensor_name(graph.outputs(op)[0]), scopes)
        weights = graph.inputs(op)[places(kind)[1]]
        if not layers and len(consumers[weights]) == 1:  # an output of the file has another name
            layers = _layers(graph.tensor_name(weights), scopes)
        if len(layers) == 1:
            found[id(op)] = layers.pop()
    return found


def _layers(name: str, scopes: Scopes) -> set[str]:
    """Those in whose scopes a tensor was computed; one of fused operations has several names."""
    found = set()
    for part in name.split(";"):
        *scope, _ = part.split("/")
        while scope and "/".join(scope) not in scopes:
            scope.pop()
        found |= scopes.get("/".join(scope), set())
    return found
