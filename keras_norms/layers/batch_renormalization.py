"""BatchRenormalization."""

from typing import Any

import keras

from keras_norms.layers.batch_normalization import BatchNormalization

CLIPPING = {"rmin": 1 / 3, "rmax": 3, "dmax": 5}


@keras.saving.register_keras_serializable("keras_norms")
class BatchRenormalization(BatchNormalization):
    """Batch normalization whose training is corrected towards the moving statistics.

        training:    y = ((x - mean) / sqrt(variance + epsilon) * r + d) * gamma + beta
                     r = clip(sqrt(variance + epsilon) / renorm_stddev, rmin, rmax)
                     d = clip((mean - renorm_mean) / renorm_stddev, -dmax, dmax)
        inference:   y = (x - moving_mean) / sqrt(moving_variance + epsilon) * gamma + beta

    So both normalize by about the same statistics, which lets it cope with small batches. r and d
    are constants to the gradient. `BatchNormalization(renorm=True)` is the same layer; unless
    clipping is given it does not clip.

    Args:
        axis: int, the axis of the channels.
        momentum: float in [0, 1], the weight of the past in the moving statistics; None: all
            batches weigh the same.
        epsilon: float >= 0, added to the variance, so in units of x squared.
        renorm_clipping: dict of the corrections' bounds: "rmin", "rmax", "dmax"; one that is
            missing does not clip. None: {"rmin": 1 / 3, "rmax": 3, "dmax": 5}, the paper's.
        renorm_momentum: float in [0, 1], of the statistics that the corrections go by.
        **kwargs: as in `BatchNormalization`, but `renorm` and `virtual_batch_size`: `center`,
            `scale`, `beta_initializer`, ..., `synchronized`, `activation`; those of `keras.Layer`.

    Call arguments:
        inputs: `(batch, ..., channels)`, or with the channels at `axis`; any rank, only the number
            of channels need be known; float16, bfloat16, float32 or float64.
        training: bool, whether to normalize by the batch and to update the moving statistics.
        mask: optional, bool, as in `BatchNormalization`.

    Returns: same shape, in the layer's compute dtype.

    Raises:
        ValueError: as `BatchNormalization`; `renorm_clipping` has other keys or rmax < rmin or
            dmax < 0.
        TypeError: `axis` is no int, `momentum` no number.

    Differences from the paper: r and d are clipped from the first step on; there the bounds widen
    over the first steps, from no correction.

    Source: Ioffe 2017, arXiv:1702.03275, algorithm 1.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-3,
        *,
        renorm_clipping: dict[str, float] | None = None,
        renorm_momentum: float = 0.99,
        **kwargs: Any,
    ):
        super().__init__(
            axis,
            momentum,
            epsilon,
            renorm=True,
            renorm_clipping=CLIPPING if renorm_clipping is None else renorm_clipping,
            renorm_momentum=renorm_momentum,
            **kwargs,
        )
        self.renorm_clipping = renorm_clipping

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["renorm"]
        return config
