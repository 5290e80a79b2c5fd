"""What is checked and timed: layers on shapes, as the view `x[n, s, g, d, t]` of the kernels."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

DTYPES = ("bfloat16", "float32", "float16")  # parameters are float32 beside all of them
ITEM_BYTES = {"bfloat16": 2, "float32": 4, "float16": 2}
FORWARD, BACKWARD = "forward", "backward"
OURS, EAGER, COMPILED, TRITON, CLONE = "ours", "torch", "torch.compile", "Triton", "clone"
TWICE = "ours, 2 reads"  # as on devices whose blocks cannot hold together what is read once
EPSILON = 1e-3

ROWS, CHANNELS_LAST, CHANNELS_FIRST = "rows", "channels last", "channels first"


class Geometry(NamedTuple):
    """As custom_ops/core/geometry.h."""

    n: int
    s: int
    g: int
    d: int
    t: int

    @property
    def size(self) -> int:
        return math.prod(self)

    @property
    def count(self) -> int:
        """Elements behind each mean."""
        return self.s * self.d * self.t


@dataclass(frozen=True)
class Case:
    """A layer on a shape: "layer", "rms" (of rows), "batch", "instance" or "group"."""

    layer: str
    shape: tuple[int, ...]  # as it lies in memory
    layout: str
    dtype: str
    groups: int | None = None

    @property
    def name(self) -> str:
        layer = self.layer if self.groups is None else f"{self.layer}({self.groups})"
        return f"{layer} {'x'.join(map(str, self.shape))} {self.layout} {self.dtype}"

    @property
    def bytes(self) -> int:
        """Of x."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def subtract_mean(self) -> bool:
        return self.layer != "rms"

    @property
    def channels(self) -> int:
        return self.shape[1 if self.layout == CHANNELS_FIRST else -1]

    @property
    def geometry(self) -> Geometry:
        if self.layout == ROWS:
            return Geometry(self.shape[0], 1, 1, self.shape[1], 1)
        n, channels = self.shape[0], self.channels
        space = math.prod(self.shape) // (n * channels)
        groups = self.groups or channels
        s, t = (1, space) if self.layout == CHANNELS_FIRST else (space, 1)
        if self.layer == "batch":
            n, s = 1, n * s
        return Geometry(n, s, groups, channels // groups, t)


ROW_SHAPES = (
    *((8192, 4096), (32768, 1024), (16384, 768), (65536, 256), (262144, 64), (4096, 8192)),
    *((2048, 65536), (1024, 131072), (32, 1_000_000)),
    (8191, 4097),  # no vectors fit: the scalar kernels
)
IMAGE_SHAPES = (  # channels last, with the groups of GroupNormalization
    ((32, 56, 56, 256), 32),
    ((64, 112, 112, 64), 32),
    ((32, 7, 7, 2048), 32),
    ((8, 128, 128, 512), 32),
    ((32, 56, 56, 64), 32),  # batch norm of these: by all blocks of a device at once
    ((2, 64, 64, 1280), 32),
    ((1, 512, 512, 128), 32),
    ((256, 14, 14, 1024), 32),
    ((2, 32, 64, 64, 64), 32),
    ((16, 224, 224, 3), 1),
    ((32, 56, 56, 24), 8),  # whole vectors of float32 and of 16 bits; 3 channels a group
)


def rows(shape: tuple[int, ...], dtype: str) -> Iterator[Case]:
    for layer in ("layer", "rms"):
        yield Case(layer, shape, ROWS, dtype)


def images(shape: tuple[int, ...], groups: int, dtype: str) -> Iterator[Case]:
    n, *space, channels = shape
    first = (n, channels, *space)
    for at, layout in ((shape, CHANNELS_LAST), (first, CHANNELS_FIRST)):
        yield Case("batch", at, layout, dtype)
        yield Case("instance", at, layout, dtype)
        yield Case("group", at, layout, dtype, groups)


def all_cases(dtypes=DTYPES) -> list[Case]:
    """The most telling first, as a run that is short of time leaves out the last."""
    found = []
    for dtype in dtypes:
        found += itertools.chain.from_iterable(rows(shape, dtype) for shape in ROW_SHAPES)
        found += itertools.chain.from_iterable(images(*image, dtype) for image in IMAGE_SHAPES)
    return found


def timed_cases() -> list[Case]:
    """All, but of float16, which moves what bfloat16 does, only the first shapes."""
    half = [*rows(ROW_SHAPES[0], "float16"), *images(*IMAGE_SHAPES[0], "float16")]
    return [*all_cases(DTYPES[:2]), *half]


def compiled_cases() -> list[Case]:
    """Those that torch.compile is timed on, which takes seconds for each."""
    first = [*rows(ROW_SHAPES[0], "bfloat16"), *images(*IMAGE_SHAPES[0], "bfloat16")]
    return [*first, *rows(ROW_SHAPES[6], "bfloat16"), *rows(ROW_SHAPES[0], "float32")]


def quick_cases() -> list[Case]:
    found = [*rows(ROW_SHAPES[0], "bfloat16"), *rows(ROW_SHAPES[1], "float32")]
    return [*found, *images(*IMAGE_SHAPES[0], "bfloat16"), *images(*IMAGE_SHAPES[2], "float32")]


# Sizes that are odd, prime or 1, for each walk of the kernels and each of its ways to cut the work.
SMALL = (
    *(Geometry(5, 1, 1, 67, 1), Geometry(7, 1, 3, 72, 1), Geometry(3, 1, 1, 4133, 1)),
    *(Geometry(3, 1, 1, 6152, 1), Geometry(2, 1, 1, 33_000, 1), Geometry(2, 1, 1, 33_001, 1)),
    *(Geometry(2, 35, 1, 22, 1), Geometry(1, 513, 24, 1, 1), Geometry(3, 37, 3, 1, 1)),
    *(Geometry(2, 129, 4, 16, 1), Geometry(3, 1, 2, 5, 49), Geometry(2, 1, 4, 8, 64)),
    *(Geometry(1, 5, 7, 1, 131), Geometry(1, 3, 16, 1, 40), Geometry(2, 3, 2, 3, 7)),
    Geometry(1, 5, 3, 1, 264),
)
# More than a cluster of blocks holds, so that all blocks of a device do, where it has as many.
LARGE = Geometry(1, 60_001, 32, 1, 1)
