"""What the wrappers share: a layer called with kernels that are computed, and never assigned."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_norms.kernels import Kernel, kernels_of
from keras_norms.substitution import Substitution

# Variables of a layer, with the values to take for them.
Values = list[tuple[keras.Variable, Any]]


def _of_the_layer(name: str) -> property:
    """An attribute that the wrapper has if its layer has it."""

    def get(self):
        return getattr(self.layer, name)

    def set(self, value):
        setattr(self.layer, name, value)

    return property(get, set)


class Reparametrization(keras.layers.Wrapper):
    """A layer whose kernels are functions of what is trained.

    A subclass gives `computed(kernel, k)`; it may have weights of its own (`build`) and prepare
    them for a call (`prepare`). The wrapped layer's own kernels stay its weights, under their
    names, and are what the functions are of.

    Args:
        layer: a `keras.Layer`: Dense, EinsumDense, a convolution (depthwise, separable,
            transposed), Embedding, a recurrent layer or cell, or what holds such layers.
        weight_names: names of the weights to compute; None: those of "kernel",
            "recurrent_kernel", "depthwise_kernel", "pointwise_kernel" and "embeddings" it has.
        axis: int or list of ints, the axes of the weights that number the outputs; None: by the
            type of layer, see `kernels._axes`.
        **kwargs: `name`, `trainable`; the dtype policy is the layer's.
    """

    # What a recurrent layer or cell is asked for by those that hold it.
    go_backwards = _of_the_layer("go_backwards")
    return_sequences = _of_the_layer("return_sequences")
    return_state = _of_the_layer("return_state")
    stateful = _of_the_layer("stateful")
    states = _of_the_layer("states")
    zero_output_for_mask = _of_the_layer("zero_output_for_mask")
    state_size = _of_the_layer("state_size")
    output_size = _of_the_layer("output_size")
    get_initial_state = _of_the_layer("get_initial_state")
    reset_state = _of_the_layer("reset_state")

    def __init__(
        self,
        layer: keras.Layer,
        *,
        weight_names: Sequence[str] | None = None,
        axis: int | Sequence[int] | None = None,
        **kwargs: Any,
    ):
        if isinstance(layer, keras.Layer):
            # The kernels are computed in the type they are kept in; the layer casts them.
            kwargs["dtype"] = layer.variable_dtype
        super().__init__(layer, **kwargs)
        if weight_names is not None:
            if not isinstance(weight_names, list | tuple):
                raise TypeError(
                    "`weight_names` must be None or a list of names. "
                    f"Received: weight_names={weight_names!r}."
                )
            if not weight_names:
                raise ValueError(
                    "`weight_names` must hold a name, or be None for all kernels. "
                    f"Received: weight_names={weight_names!r}."
                )
        if not isinstance(layer, keras.layers.RNN) and any(map(_has_dropout, _cells(layer))):
            raise ValueError(
                "A cell with dropout draws its masks for the RNN layer that it stands in: wrap "
                f"that layer, {type(self).__name__}(keras.layers.RNN(cell)). Received: {layer}."
            )
        self.weight_names = None if weight_names is None else list(weight_names)
        self.axis = list(axis) if isinstance(axis, list | tuple) else axis
        self.kernels: tuple[Kernel, ...] = ()
        self.supports_masking = layer.supports_masking
        self.autocast = False
        takes = inspect.signature(layer.call).parameters
        self._takes = {name for name in ("training", "mask") if name in takes}

    def build(self, input_shape: Any = None) -> None:
        try:
            super().build(input_shape)
        except TypeError as error:  # a `build` of several shapes
            raise ValueError(
                f"{type(self.layer).__name__} cannot be built from the shape of one input: call it "
                f"once before it is wrapped. Received: layer={self.layer}, "
                f"input_shape={input_shape}."
            ) from error
        refuse_adapted(self.layer)
        for part in self.layer._flatten_layers():
            # Called again in a backward pass, the layer would find its own kernel, not the
            # computed one.
            part._remat_mode = None
        self.kernels = tuple(self.kernels_of_layer())

    def kernels_of_layer(self) -> list[Kernel]:
        return kernels_of(self.layer, self.weight_names, self.axis)

    def suffixes(self) -> list[str]:
        """What is added to the name of a weight that there is for each kernel."""
        return [f"_{kernel.name}" if len(self.kernels) > 1 else "" for kernel in self.kernels]

    def add_for_each(self, name: str, initial: Callable[[Kernel], Any]) -> list[Any]:
        """A trainable weight for each kernel, with an element per output.

        Args:
            initial: the values it begins with; they may depend on the kernel's.
        """

        def initializer(kernel):
            return lambda shape, dtype=None: ops.cast(initial(kernel), dtype)

        return [
            self.add_weight(
                name=f"{name}{suffix}",
                shape=(kernel.outputs,),
                initializer=initializer(kernel),
                autocast=False,
            )
            for kernel, suffix in zip(self.kernels, self.suffixes(), strict=True)
        ]

    def computed(self, kernel: Kernel, k: int) -> Any:
        """The matrix to take for the k-th kernel's."""
        raise NotImplementedError

    def prepare(self, training: bool | None, mask: Any, result: Callable[[Values], Any]) -> None:
        """What a call does before the kernels are computed.

        Args:
            mask: of the inputs, or None.
            result: what the layer gives for the call's inputs with other values of its variables.
        """

    def values(self) -> Values:
        """The layer's variables that are computed, with their values."""
        return [
            (kernel.variable, kernel.shaped(self.computed(kernel, k)))
            for k, kernel in enumerate(self.kernels)
        ]

    def call(
        self, inputs: Any, *args: Any, training: bool | None = None, mask: Any = None, **kwargs: Any
    ) -> Any:
        refuse_adapted(self.layer)
        kwargs = self._handed_on(kwargs, training=training, mask=mask)

        def result(values):
            with Substitution(values) as scope:
                outputs = self.layer(inputs, *args, **kwargs)
            return outputs, scope.losses

        self.prepare(training, mask, lambda values: result(values)[0])
        outputs, losses = result(self.values())
        for loss in losses:
            self.add_loss(loss)
        return outputs

    def remove(self) -> keras.Layer:
        """The plain layer, a new one, with the computed kernels as its weights."""
        if not self.built:
            raise ValueError(
                f"`remove` needs a layer that is built: call it first. Received: {self}."
            )
        refuse_adapted(self.layer)
        plain = type(self.layer).from_config(self.layer.get_config())
        plain.build_from_config(self.layer.get_build_config())
        values = {id(variable): value for variable, value in self.values()}
        for old, new in zip(self.layer.weights, plain.weights, strict=True):
            new.assign(values.get(id(old), old))
        return plain

    def _handed_on(self, kwargs: dict[str, Any], **offered: Any) -> dict[str, Any]:
        """The arguments of a call, with those offered that are given and that the layer takes."""
        taken = {k: v for k, v in offered.items() if k in self._takes and v is not None}
        return {**kwargs, **taken}

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(
        self, inputs: Any, *args: Any, training: bool | None = None, mask: Any = None, **kwargs: Any
    ) -> Any:
        kwargs = self._handed_on(kwargs, training=training, mask=mask)
        return self.layer.compute_output_spec(inputs, *args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        given = {"weight_names": self.weight_names, "axis": self.axis}
        return {**config, **{name: value for name, value in given.items() if value is not None}}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> keras.Layer:
        """From `get_config()`, where Bidirectional may have turned a layer's direction."""
        config = dict(config)
        if "go_backwards" in config:
            layer = config["layer"]
            own = {**layer["config"], "go_backwards": config.pop("go_backwards")}
            config["layer"] = {**layer, "config": own}
        return super().from_config(config, custom_objects)


def _cells(layer: keras.Layer) -> list[keras.Layer]:
    """The layer itself, or those that it stacks, if they are recurrent cells."""
    stacked = isinstance(layer, keras.layers.StackedRNNCells)
    parts = layer._flatten_layers() if stacked else [layer]
    return [part for part in parts if hasattr(part, "state_size")]


def _has_dropout(cell: keras.Layer) -> bool:
    return any(getattr(cell, name, 0) for name in ("dropout", "recurrent_dropout"))


def refuse_adapted(layer: keras.Layer) -> None:
    """ValueError for a layer whose kernel is not its own: with LoRA, or quantized."""
    for part in layer._flatten_layers():
        if getattr(part, "lora_enabled", False) or getattr(part, "quantization_mode", None):
            raise ValueError(
                "A layer with LoRA or with quantized weights cannot be wrapped, nor adapted or "
                "quantized inside of its wrapper, which computes the kernel that these stand in "
                "for: take the plain layer of `remove()` from a wrapper whose layer is as it was, "
                "and adapt or quantize that. Received: layer="
                f"{part}, lora_enabled={getattr(part, 'lora_enabled', False)}, "
                f"quantization_mode={getattr(part, 'quantization_mode', None)}."
            )


def settle(variable: keras.Variable, value: Any, valid: Any) -> None:
    """Assigns the value as a constant, where it is valid.

    On JAX what a call assigns keeps its gradient, which later in the call would count.
    """
    old = ops.convert_to_tensor(variable.value)
    variable.assign(detached(ops.where(valid, ops.cast(value, old.dtype), old)))


def detached(x: Any) -> Any:
    """x as a constant, and as it is now: PyTorch's variables change in place."""
    return ops.copy(ops.stop_gradient(ops.convert_to_tensor(x)))
