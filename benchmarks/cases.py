"""What is measured: layers on shapes, in a dtype, forward, forward+backward or inference.

A model is a case, too: its layer is the norm inside of it, its pass a whole training step.
"""

import math
from dataclasses import dataclass

FORWARD, BOTH, INFERENCE, STEP = "forward", "forward+backward", "inference", "train step"
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
# The norms that Keras has, with the same arguments. What a row of them must move is known.
NORMS = (
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "BatchNormalization",
)
SHARED = (*NORMS, "ResidualNormalization")  # take `axis` and `epsilon`; Keras has a like of them


@dataclass(frozen=True)
class Case:
    """One layer on one shape.

    Attributes:
        layer: name of the class in `keras_norms`.
        shape: of x, with the batch; of a CNN's images, or of a Transformer's tokens.
        axis: the channel axis or axes, as the layer takes it.
        groups: of GroupNormalization, else None.
        dtype: of x. Parameters stay float32 beside float16 and bfloat16 (mixed policies).
        training: False is BatchNormalization with its moving statistics.
        family: the part of the table it stands in.
        activation: of the layer; beside it, Keras has a layer more.
        model: "CNN" or "Transformer", the model that holds the layer, or None.
    """

    layer: str
    shape: tuple[int, ...]
    axis: int | tuple[int, ...] = -1
    groups: int | None = None
    dtype: str = "float32"
    training: bool = True
    family: str = "usual"
    activation: str | None = None
    model: str | None = None

    @classmethod
    def of(cls, kept: dict) -> "Case":
        """From what `dataclasses.asdict` and JSON have made of one."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()})

    @property
    def name(self) -> str:
        """The layer as one writes it, without its dtype: `GroupNormalization(32, axis=1)`; of a
        model, behind the model's name.
        """
        return f"{self.model} of {self.layer_name}" if self.model else self.layer_name

    @property
    def layer_name(self) -> str:
        arguments = [] if self.groups is None else [str(self.groups)]
        if self.axis != -1:
            arguments.append(f"axis={self.axis}")
        if self.activation is not None:
            arguments.append(f'activation="{self.activation}"')
        return f"{self.layer}({', '.join(arguments)})"

    @property
    def bytes(self) -> int:
        """Of x."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def passes(self) -> tuple[str, ...]:
        if self.model:
            return (STEP,)
        return (FORWARD, BOTH) if self.training else (INFERENCE,)

    @property
    def policy(self) -> str:
        """The Keras dtype policy that computes in `dtype`."""
        return f"mixed_{self.dtype}" if self.dtype in ("float16", "bfloat16") else self.dtype

    @property
    def arguments(self) -> dict:
        """What the constructors of ours and of Keras' layer share; of other layers, their own."""
        groups = {} if self.groups is None else {"groups": self.groups}
        shared = {"axis": self.axis, "epsilon": 1e-3} if self.layer in SHARED else {}
        return {**shared, "dtype": self.policy, **groups}


def _usual():
    for shape in ((512, 768), (4096, 768), (4096, 4096), (8192, 1024)):
        yield Case("LayerNormalization", shape)
    for shape in ((4096, 768), (8192, 1024)):
        yield Case("RMSNormalization", shape)
    for shape in ((32, 56, 56, 64), (128, 28, 28, 128)):
        yield Case("GroupNormalization", shape, groups=32)
        yield Case("InstanceNormalization", shape)
        yield Case("BatchNormalization", shape)


def _family(family, *cases):
    for layer, shape, axis, groups in cases:
        yield Case(layer, shape, axis, groups, family=family)


def _dtypes():
    for dtype in ("bfloat16", "float16", "float64"):
        yield Case("LayerNormalization", (4096, 768), dtype=dtype, family="dtypes")
        yield Case("GroupNormalization", (32, 56, 56, 64), -1, 32, dtype, family="dtypes")
        yield Case("BatchNormalization", (32, 56, 56, 64), dtype=dtype, family="dtypes")


def _inference():
    for shape, axis in (((32, 56, 56, 64), -1), ((128, 28, 28, 128), -1), ((32, 64, 56, 56), 1)):
        yield Case("BatchNormalization", shape, axis, training=False, family="inference")


def _models():
    for layer, groups in (("BatchNormalization", None), ("GroupNormalization", 8)):
        yield Case(layer, (32, 32, 32, 3), groups=groups, family="models", model="CNN")
    for layer in ("LayerNormalization", "RMSNormalization"):
        yield Case(layer, (16, 128), family="models", model="Transformer")


def _more_layers():
    image, tokens = (32, 56, 56, 64), (4096, 768)
    yield Case("BatchNormalization", image, family="more layers", activation="relu")
    yield Case("GroupNormalization", image, -1, 32, family="more layers", activation="silu")
    yield Case("LayerNormalization", tokens, family="more layers", activation="gelu")
    yield Case("ResidualNormalization", tokens, family="more layers")
    yield Case("DynamicTanh", tokens, family="more layers")
    for layer in ("SwitchableNormalization", "FilterResponseNormalization"):
        yield Case(layer, image, family="more layers")
    yield Case("GlobalResponseNormalization", image, family="more layers")
    yield Case("EvoNormalizationS0", image, -1, 32, family="more layers")
    yield Case("WeightStandardization", (4, 7, 7, 256), family="more layers")


CASES = (
    *_usual(),
    *_models(),
    *_inference(),
    *_family(
        "channels first",
        ("GroupNormalization", (32, 64, 56, 56), 1, 32),
        ("InstanceNormalization", (32, 64, 56, 56), 1, None),
        ("BatchNormalization", (32, 64, 56, 56), 1, None),
    ),
    *_family(
        "other axes",
        ("LayerNormalization", (32, 28, 28, 64), (1, 2, 3), None),
        ("LayerNormalization", (32, 64, 28, 28), 1, None),
        ("GroupNormalization", (32, 28, 64, 28), 2, 32),
        ("GroupNormalization", (4, 8, 28, 28, 64), -1, 32),
        ("InstanceNormalization", (4, 8, 28, 28, 64), -1, None),
        ("BatchNormalization", (4, 8, 28, 28, 64), -1, None),
    ),
    *_family(
        "tiny",
        ("LayerNormalization", (1, 10), -1, None),
        ("LayerNormalization", (32, 16), -1, None),
        ("RMSNormalization", (1, 10), -1, None),
        ("RMSNormalization", (32, 16), -1, None),
        ("GroupNormalization", (1, 10), -1, 5),
        ("GroupNormalization", (32, 16), -1, 4),
        ("InstanceNormalization", (32, 4, 16), -1, None),
        ("BatchNormalization", (1, 10), -1, None),
        ("BatchNormalization", (32, 16), -1, None),
    ),
    *_family(
        "awkward",
        ("LayerNormalization", (16, 65, 63, 3), -1, None),
        ("LayerNormalization", (16, 65, 63, 5), -1, None),
        ("RMSNormalization", (16, 65, 63, 5), -1, None),
        ("GroupNormalization", (16, 65, 63, 3), -1, 3),
        ("GroupNormalization", (16, 65, 63, 5), -1, 1),
        ("InstanceNormalization", (16, 65, 63, 3), -1, None),
        ("BatchNormalization", (16, 65, 63, 3), -1, None),
        ("BatchNormalization", (16, 65, 63, 5), -1, None),
    ),
    *_dtypes(),
    *_more_layers(),
)

QUICK = (
    Case("LayerNormalization", (512, 768)),
    Case("GroupNormalization", (8, 56, 56, 64), groups=32),
    Case("InstanceNormalization", (8, 64, 56, 56), 1, family="channels first"),
    Case("BatchNormalization", (8, 56, 56, 64)),
    Case("BatchNormalization", (8, 56, 56, 64), training=False, family="inference"),
    Case("RMSNormalization", (32, 16), family="tiny"),
    Case("GroupNormalization", (16, 65, 63, 3), groups=3, family="awkward"),
)
