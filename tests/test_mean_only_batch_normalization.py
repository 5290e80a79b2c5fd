import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import keras_norms as kn

SHAPE = (5, 7, 3, 6)


@pytest.mark.parametrize(
    "shape, axis",
    [
        ((3, 11, 5, 7), 1),
        ((23, 7), -1),
        ((2, 3, 2, 5, 7), -1),
        ((1, 1, 1, 6), -1),
        ((1, 17, 1), 2),
        ((7, 5), 0),
    ],
)
def test_matches_reference(shape, axis, kernel):
    layer = kn.MeanOnlyBatchNormalization(axis)
    support.check(layer, shape, kernel, "eager", training=True)


def test_without_beta(kernel):
    layer = kn.MeanOnlyBatchNormalization(center=False)
    support.check(layer, SHAPE, kernel, "graph", training=True)
    assert [w.name for w in layer.weights] == ["moving_mean"]


def test_is_batch_normalization_without_its_division(kernel, rng):
    """Batch norm times the deviation that it divided by."""
    x = rng.normal(1e4, 2, SHAPE).astype("float32")
    got = kn.MeanOnlyBatchNormalization(center=False)(x, training=True)
    normalized = kn.BatchNormalization(center=False, scale=False)(x, training=True)
    deviation = np.sqrt(x.astype("float64").var((0, 1, 2)) + 1e-3)
    support.close(got, normalized * deviation, atol=4 * support.FORWARD[kernel])


def test_weight_norm_before_it_leaves_no_scale(kernel, rng):
    """The paper's pair: any bias of the layer before has no effect."""
    norm = kn.MeanOnlyBatchNormalization()
    dense = kn.WeightNormalization(keras.layers.Dense(6, bias_initializer="ones"), data_init=False)
    x = rng.normal(size=(11, 4)).astype("float32")
    y = norm(dense(x), training=True)
    dense.layer.bias.assign(dense.layer.bias + 50)
    support.close(norm(dense(x), training=True), y.numpy().astype("float64"), atol=1e-5)


@pytest.mark.parametrize("momentum", [0.9, 0.0, 1.0, None])
def test_moving_mean_after_one_step_and_two(momentum, kernel, rng):
    layer = kn.MeanOnlyBatchNormalization(momentum=momentum, moving_mean_initializer="ones")
    want = np.ones(6)
    for step in range(2):
        x = rng.normal(1e4 + step, 2, SHAPE).astype("float32")
        layer(x, training=True)
        past = momentum if momentum is not None else 1 - 1 / (step + 1)
        want = want * past + x.astype("float64").mean((0, 1, 2)) * (1 - past)
        support.close(layer.moving_mean, want, atol=0, rtol=4 * support.EPS32)


def test_mask(kernel, rng):
    """The mean is that of the True positions, and is taken off all."""
    layer = support.built(kn.MeanOnlyBatchNormalization(momentum=0.0), SHAPE)
    x, dy = rng.normal(1e2, 1, SHAPE), rng.normal(size=SHAPE)
    x, dy = x.astype("float32"), dy.astype("float32")
    mask = rng.uniform(size=SHAPE[:2]) < 0.6
    got = support.runner(layer, "eager", training=True, mask=tf.constant(mask))(x, dy)
    kept = np.broadcast_to(mask[..., None], SHAPE[:3])
    mean = x[kept].astype("float64").mean(0)
    atol = support.FORWARD["portable"]
    support.close(got.y, x - mean + got.weights["beta"], atol=atol, rtol=2.0**-24)
    support.close(layer.moving_mean, mean, atol=0, rtol=2 * support.EPS32)
    dx = dy - kept[..., None] * dy.astype("float64").sum((0, 1, 2)) / kept.sum()
    support.close(got.dx, dx, atol=support.GRADIENT)
    again = layer(x, mask=tf.constant(mask))  # inference
    support.close(again, np.asarray(got.y, "float64"), atol=2 * support.EPS32 * 1e2)


def test_mask_of_wrong_shape_at_inference_too():
    layer = kn.MeanOnlyBatchNormalization()
    for training in (False, True):
        with pytest.raises(ValueError, match=r"`mask` must have the sizes.*\(5, 3\)"):
            layer(np.zeros(SHAPE, "float32"), training=training, mask=np.ones((5, 3), "bool"))


@pytest.mark.parametrize("what", ["inference", "frozen", "untrainable"])
def test_what_goes_by_the_moving_mean(what, kernel, rng):
    layer = support.built(kn.MeanOnlyBatchNormalization(), SHAPE)
    layer.freeze_statistics, layer.trainable = what == "frozen", what != "untrainable"
    mean = rng.normal(size=6).astype("float32")
    layer.moving_mean.assign(mean)
    x = rng.normal(size=SHAPE).astype("float32")
    got = support.runner(layer, "eager", training=what != "inference")(x, x)
    support.close(got.y, x - mean.astype("float64") + layer.beta.numpy(), atol=1e-6)
    np.testing.assert_array_equal(got.dx, x)
    np.testing.assert_array_equal(layer.moving_mean, mean)


def test_recomputed_mean_is_that_of_all_batches(rng):
    """Each batch by its elements."""
    layer = kn.MeanOnlyBatchNormalization()
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    batches = [rng.normal(i, 1, (n, *SHAPE[1:])).astype("float32") for i, n in enumerate((5, 2))]
    assert kn.recompute_statistics(model, batches, verbose=0) == [layer.path]
    want = np.concatenate(batches).astype("float64").mean((0, 1, 2))
    support.close(layer.moving_mean, want, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [{"epsilon": 1e-3}, {"scale": True}, {"gamma_constraint": None}, {"moving_variance": 1}],
)
def test_arguments_of_a_division_are_refused(arguments):
    with pytest.raises(ValueError) as error:
        kn.MeanOnlyBatchNormalization(**arguments)
    assert f"{arguments}" in str(error.value)


def test_config_holds_nothing_of_a_division():
    config = kn.MeanOnlyBatchNormalization(1, None, beta_regularizer="l2").get_config()
    assert (config["axis"], config["momentum"], config["center"]) == (1, None, True)
    assert config["beta_regularizer"]["class_name"] == "L2"
    assert not [name for name in config if "gamma" in name or "variance" in name]
    assert not {"epsilon", "scale"} & set(config)
