"""The table of the layers: one row each.

A layer that is not in it is not exported. The tests that every layer must pass, the converter and
the support matrix are loops over this table.
"""

from dataclasses import dataclass
from typing import Any

import keras

from keras_norms import layers


@dataclass(frozen=True)
class Row:
    """A layer with an example of its use.

    Attributes:
        cls: the layer's class.
        arguments: example arguments of the constructor, that fit `shape`.
        shape: example shape of an input, batch included; sizes are distinct.
        lowering: how the converter to TFLite writes it; "portable": as it computes in `keras.ops`.
        paper: authors, year and arXiv number.
    """

    cls: type[keras.Layer]
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    lowering: str
    paper: str

    @property
    def name(self) -> str:
        return self.cls.__name__


CATALOG: tuple[Row, ...] = (
    Row(
        layers.BatchNormalization,
        {"momentum": 0.9},
        (5, 7, 3, 6),
        "portable",
        "Ioffe and Szegedy 2015, arXiv:1502.03167",
    ),
    Row(
        layers.LayerNormalization,
        {"epsilon": 1e-5},
        (5, 7, 11),
        "portable",
        "Ba, Kiros and Hinton 2016, arXiv:1607.06450",
    ),
    Row(
        layers.InstanceNormalization,
        {"epsilon": 1e-5},
        (5, 7, 3, 6),
        "portable",
        "Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022",
    ),
    Row(
        layers.GroupNormalization,
        {"groups": 2},
        (5, 7, 3, 6),
        "portable",
        "Wu and He 2018, arXiv:1803.08494",
    ),
    Row(
        layers.RMSNormalization,
        {"epsilon": 1e-5},
        (5, 7, 11),
        "portable",
        "Zhang and Sennrich 2019, arXiv:1910.07467",
    ),
)
