"""Calling a layer with other values in the place of some of its variables."""

from collections.abc import Sequence
from typing import Any

import keras


class Substitution(keras.StatelessScope):
    """Within the block these variables have these values, in this thread; nothing is assigned.

    All else is as outside: other variables are read where they are and may be assigned, inside
    loops and branches too, and an outer scope (Keras' on JAX) keeps its values and updates.

    Args:
        values: pairs of a variable and the tensor to take for it.

    Attributes:
        losses: what layers added inside, for the caller to add anew outside.
    """

    def __init__(self, values: Sequence[tuple[keras.Variable, Any]]):
        super().__init__(values, collect_losses=True, initialize_variables=False)

    def get_current_value(self, variable: keras.Variable) -> Any:
        value = super().get_current_value(variable)
        if value is None and self.original_scope is not None:
            value = self.original_scope.get_current_value(variable)
        return value

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        variable, value = update
        if id(variable) in self.state_mapping:
            raise ValueError(
                "A layer that is wrapped must not assign the weight that its wrapper computes. "
                f"Received: an update of {variable.path}."
            )
        self.__exit__(None, None, None)
        try:
            variable.assign(value)
        finally:
            self.__enter__()
