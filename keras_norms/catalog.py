"""The table of the layers: one row each.

A layer that is not in it is not exported. The tests that every layer must pass, the converter and
the support matrix are loops over this table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from keras_norms import layers


def _around_dense(cls: type[keras.Layer], dtype: Any = None, **arguments: Any) -> keras.Layer:
    return cls(keras.layers.Dense(11, dtype=dtype), **arguments)


def _in_rnn(cls: type[keras.Layer], dtype: Any = None, **arguments: Any) -> keras.Layer:
    return keras.layers.RNN(cls(**arguments, dtype=dtype), return_sequences=True, dtype=dtype)


# How the class of a row stands in a model.
FORMS: dict[str, Callable[..., keras.Layer]] = {
    "layer": lambda cls, **arguments: cls(**arguments),
    "wrapper": _around_dense,
    "cell": _in_rnn,
}


@dataclass(frozen=True)
class Row:
    """A layer with an example of its use, and what it promises.

    Attributes:
        cls: the layer's class.
        arguments: example arguments of the constructor, that fit `shape`.
        shape: example shape of an input, batch included; sizes are distinct.
        paper: authors, year and arXiv number.
        fused: the ops of the compiled library that it calls, "normalize", "moments" or
            "scale_shift" for training; "" if it is portable throughout.
        mask: "statistics" if a mask says what the statistics are taken over, "passed on" if it
            does not change the result, "steps" if the RNN layer leaves out the masked ones.
        replicas: on several replicas, results are the "same" as on one, or each has statistics of
            its "own".
        inputs: how many tensors of `shape` a call takes, in a list if more than one.
        form: "layer"; "wrapper", of another layer; "cell", of a recurrent layer. The example of a
            wrapper is of a Dense layer, that of a cell in an RNN layer.
    """

    cls: type[keras.Layer]
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    paper: str
    fused: str = "normalize"
    mask: str = "statistics"
    replicas: str = "same"
    inputs: int = 1
    form: str = "layer"

    @property
    def name(self) -> str:
        return self.cls.__name__

    def example(self, **arguments: Any) -> keras.Layer:
        """A layer that a model can hold, with these arguments in the place of the example's."""
        return FORMS[self.form](self.cls, **{**self.arguments, **arguments})


CATALOG: tuple[Row, ...] = (
    Row(
        layers.BatchNormalization,
        {"momentum": 0.9},
        (5, 7, 3, 6),
        "Ioffe and Szegedy 2015, arXiv:1502.03167",
        replicas="own",
    ),
    Row(
        layers.LayerNormalization,
        {"epsilon": 1e-5},
        (5, 7, 11),
        "Ba, Kiros and Hinton 2016, arXiv:1607.06450",
    ),
    Row(
        layers.InstanceNormalization,
        {"epsilon": 1e-5},
        (5, 7, 3, 6),
        "Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022",
    ),
    Row(
        layers.GroupNormalization,
        {"groups": 2},
        (5, 7, 3, 6),
        "Wu and He 2018, arXiv:1803.08494",
    ),
    Row(
        layers.RMSNormalization,
        {"epsilon": 1e-5},
        (5, 7, 11),
        "Zhang and Sennrich 2019, arXiv:1910.07467",
    ),
    Row(
        layers.BatchRenormalization,
        {"momentum": 0.9},
        (5, 7, 3, 6),
        "Ioffe 2017, arXiv:1702.03275",
        fused="moments",
        replicas="own",
    ),
    Row(
        layers.BatchGroupNormalization,
        {"groups": 2},
        (5, 7, 3, 6),
        "Zhou et al. 2020, arXiv:2009.04529",
        replicas="own",
    ),
    Row(
        layers.SwitchableNormalization,
        {"unbiased_instance_variance": True},
        (5, 7, 3, 6),
        "Luo et al. 2019, arXiv:1806.10779",
        fused="moments",
        replicas="own",
    ),
    Row(
        layers.SparseSwitchableNormalization,
        {"epsilon": 1e-4},
        (5, 7, 3, 6),
        "Shao et al. 2019, arXiv:1903.03793",
        fused="moments",
        replicas="own",
    ),
    Row(
        layers.PowerNormalization,
        {"warmup_steps": 0},
        (5, 7, 3, 6),
        "Shen et al. 2020, arXiv:2003.07845",
        fused="moments",
        replicas="own",
    ),
    Row(
        layers.EvoNormalizationB0,
        {"momentum": 0.8},
        (5, 7, 3, 6),
        "Liu et al. 2020, arXiv:2004.02967",
        fused="moments",
        replicas="own",
    ),
    Row(
        layers.EvoNormalizationS0,
        {"groups": 2},
        (5, 7, 3, 6),
        "Liu et al. 2020, arXiv:2004.02967",
        fused="moments",
    ),
    Row(
        layers.FilterResponseNormalization,
        {"learned_epsilon": True},
        (5, 7, 3, 6),
        "Singh and Krishnan 2020, arXiv:1911.09737",
        fused="moments, scale_shift",
    ),
    Row(
        layers.ThresholdedLinearUnit,
        {"affine": True},
        (5, 7, 3, 6),
        "Singh and Krishnan 2020, arXiv:1911.09737",
        fused="",
        mask="passed on",
    ),
    Row(
        layers.GlobalResponseNormalization,
        {"epsilon": 1e-5},
        (5, 7, 3, 6),
        "Woo et al. 2023, arXiv:2301.00808",
        fused="moments, scale_shift",
    ),
    Row(
        layers.LocalResponseNormalization,
        {"depth_radius": 2},
        (5, 7, 3, 11),
        "Krizhevsky, Sutskever and Hinton 2012, NIPS",
        fused="",
        mask="passed on",
    ),
    Row(
        layers.PixelNormalization,
        {"epsilon": 1e-5},
        (5, 7, 3, 6),
        "Karras et al. 2018, arXiv:1710.10196",
    ),
    Row(
        layers.PositionalNormalization,
        {"scale": True},
        (5, 7, 3, 6),
        "Li et al. 2019, arXiv:1907.04312",
    ),
    Row(
        layers.ScaleNormalization,
        {"epsilon": 1e-4},
        (5, 7, 11),
        "Nguyen and Salazar 2019, arXiv:1910.05895",
        mask="passed on",
    ),
    Row(
        layers.UnitNormalization,
        {"axis": -1},
        (5, 7, 11),
        "Nguyen and Salazar 2019, arXiv:1910.05895",
        fused="",
        mask="passed on",
    ),
    Row(
        layers.DynamicTanh,
        {"axis": -1},
        (5, 7, 11),
        "Zhu et al. 2025, arXiv:2503.10622",
        fused="scale_shift",
        mask="passed on",
    ),
    Row(
        layers.LayerScale,
        {"init_value": 0.5},
        (5, 7, 11),
        "Touvron et al. 2021, arXiv:2103.17239",
        fused="scale_shift",
        mask="passed on",
    ),
    Row(
        layers.ResidualNormalization,
        {"epsilon": 1e-5, "alpha": 2.0},
        (5, 7, 11),
        "Wang et al. 2022, arXiv:2203.00555",
        mask="passed on",
        inputs=2,
    ),
    Row(
        layers.WeightNormalization,
        {"data_init": True},
        (5, 7, 11),
        "Salimans and Kingma 2016, arXiv:1602.07868",
        mask="passed on",
        form="wrapper",
    ),
    Row(
        layers.SpectralNormalization,
        {"reparam": True},
        (5, 7, 11),
        "Miyato et al. 2018, arXiv:1802.05957",
        fused="",
        mask="passed on",
        form="wrapper",
    ),
    Row(
        layers.WeightStandardization,
        {"scaled": True},
        (5, 7, 11),
        "Qiao et al. 2019, arXiv:1903.10520",
        mask="passed on",
        form="wrapper",
    ),
    Row(
        layers.MeanOnlyBatchNormalization,
        {"momentum": 0.9},
        (5, 7, 3, 6),
        "Salimans and Kingma 2016, arXiv:1602.07868",
        fused="moments, scale_shift",
        replicas="own",
    ),
    Row(
        layers.MixedNormalization,
        {"gate_constraint": None},
        (5, 7, 3, 6),
        "Nam and Kim 2018, arXiv:1805.07925",
        fused="moments, scale_shift",
        replicas="own",
    ),
    Row(
        layers.MultiScaleNormalization,
        {"groups": 2},
        (5, 7, 3, 6),
        "Ortiz et al. 2020, arXiv:2003.06922",
        fused="moments, scale_shift",
    ),
    Row(
        layers.AdaptiveNormalization,
        {"norm": "instance", "predictor": "conv", "hidden": 2},
        (5, 7, 3, 6),
        "Perez et al. 2018, arXiv:1709.07871",
        inputs=2,
    ),
    Row(
        layers.LayerNormLSTMCell,
        {"units": 11, "norm_epsilon": 1e-5},
        (5, 7, 11),
        "Ba, Kiros and Hinton 2016, arXiv:1607.06450",
        mask="steps",
        form="cell",
    ),
    Row(
        layers.LayerNormGRUCell,
        {"units": 11, "norm_epsilon": 1e-5},
        (5, 7, 11),
        "Ba, Kiros and Hinton 2016, arXiv:1607.06450",
        mask="steps",
        form="cell",
    ),
    Row(
        layers.LayerNormSimpleRNNCell,
        {"units": 11, "layernorm_epsilon": 1e-4},
        (5, 7, 11),
        "Ba, Kiros and Hinton 2016, arXiv:1607.06450",
        mask="steps",
        form="cell",
    ),
)
