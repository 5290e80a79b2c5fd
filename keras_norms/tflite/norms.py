"""What became of the norms of a model in its file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Norm:
    """One call of a norm layer.

    Attributes:
        path: of the Keras layer, with #2, #3 for further calls of a shared one.
        form: how it is written: "folded", "centred", "scaled", "custom", "portable".
        enters: the name of the tensor that it normalizes; "" if folded.
        leaves: the name of its result; "" if folded.
        nodes: the names of the first results of the operators it consists of.
        layer: the class of the layer, with its module where that is not ours.
        why: where it went, or why it could not be folded; "" if there is nothing to say.
    """

    path: str
    form: str
    enters: str = ""
    leaves: str = ""
    nodes: tuple[str, ...] = ()
    layer: str = ""
    why: str = ""
