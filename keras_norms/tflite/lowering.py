"""How each of our layers is written in the file: its form.

There is one form for now: "portable", the layer's own computation in Keras operations, which the
converter turns into built-in ones. Forms for one target or another get their place here.
"""

import keras

from keras_norms.tflite.errors import ConversionError

FORMS = ("portable",)


def forms(model: keras.Model) -> dict[str, str]:
    """Our layers in the model, by path, with the form each will be written in.

    Raises: ConversionError, if a layer is derived from ours but stands in no table.
    """
    from keras_norms.catalog import CATALOG  # the table imports every layer

    known = {row.cls: row.lowering for row in CATALOG}
    found = {}
    for layer in model._flatten_layers():
        if not any(base.__module__.startswith("keras_norms.") for base in type(layer).__mro__):
            continue
        form = known.get(type(layer), getattr(type(layer), "lowering", None))
        if form not in FORMS:
            raise ConversionError(
                f"The converter must know every keras_norms layer. Received: {layer.path!r} of "
                f"class {type(layer).__name__}; known: {', '.join(c.__name__ for c in known)}. "
                "A class of your own should hold such a layer, not inherit from it."
            )
        found[layer.path] = form
    return found
