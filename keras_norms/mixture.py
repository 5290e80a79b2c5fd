"""Statistics mixed by weights that are learned."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_norms.base import wide


class Mixture:
    """A part of layers that mix the means and the variances of several statistics.

    `mean_weights` and `variance_weights` are logits, an element per statistic.
    """

    mean_weights: Any = None
    variance_weights: Any = None

    @property
    def mixed(self) -> Sequence[Any]:
        """What the statistics are called, in order."""
        raise NotImplementedError

    def add_mixture(self) -> None:
        """Makes the weights: all statistics alike at first."""
        shape = (len(self.mixed),)
        self.mean_weights = self.add_parameter("mean_weights", shape, "ones")
        self.variance_weights = self.add_parameter("variance_weights", shape, "ones")

    def weights_of(self, logits: Any) -> Any:
        """Of wide logits, the weights of the mixture, which are 0 or more and sum to 1."""
        weights = ops.exp(logits - ops.max(logits))  # ops.softmax warns of a single one
        return weights / ops.sum(weights)

    def shares(self) -> tuple[Any, Any]:
        """The weights of the means and those of the variances."""
        logits = self.mean_weights, self.variance_weights
        return tuple(self.weights_of(wide(ops.convert_to_tensor(w))) for w in logits)

    def mixture(self) -> dict[str, dict[Any, float]]:
        """The weight of each statistic by its name: `{"mean": {...}, "variance": {...}}`."""
        if self.mean_weights is None:
            raise ValueError("`mixture` needs a layer that is built: call it, or `build`, first.")
        found = (map(float, ops.convert_to_numpy(weights)) for weights in self.shares())
        return {
            name: dict(zip(self.mixed, weights, strict=True))
            for name, weights in zip(("mean", "variance"), found, strict=True)
        }
