"""Constraints of weights."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_norms")
class UnitInterval(keras.constraints.Constraint):
    """Takes what an update leaves outside of [0, 1] back to its nearer end."""

    def __call__(self, w: Any) -> Any:
        return ops.clip(ops.convert_to_tensor(w), 0.0, 1.0)
