"""What a row of a layer computes, in any release of TensorFlow."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from benchmarks.cases import BOTH


def step(call: Callable, variables: Sequence, passes: str) -> Callable:
    """A function of x (a tensor, or a list of them) and dy: `(y,)`, or `(y, *gradients)`.

    Args:
        call: the layer, a function of x.
        variables: what is trained; the gradients are those of x and then these.
        passes: of the row.
    """

    def forward(x, dy):
        return (call(x),)

    def both(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(x)
        sources = [*tf.nest.flatten(x), *variables]
        return (y, *tape.gradient(y, sources, output_gradients=dy))

    return both if passes == BOTH else forward
