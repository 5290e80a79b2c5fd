"""Ours in the place of Keras' own layers: the same, but where Keras is wrong, as shown here."""

import inspect

import keras
import numpy as np
import pytest
import reference
import support
import tensorflow as tf
from keras.src import testing

import keras_norms as kn

# Ours and Keras' by one name.
NAMES = (
    "BatchNormalization",
    "LayerNormalization",
    "GroupNormalization",
    "RMSNormalization",
)


def pair(name, *arguments, **options):
    """Our layer and Keras', made by the same call."""
    return tuple(getattr(m, name)(*arguments, **options) for m in (kn, keras.layers))


def built_pair(shape, name, *arguments, **options):
    """The same with the same weights."""
    ours, theirs = pair(name, *arguments, **options)
    support.built(ours, shape)
    theirs.build(shape)
    theirs.set_weights(ours.get_weights())
    return ours, theirs


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    """Keras' arguments come first, in its order, with its defaults; `call` may take a mask more."""
    for method in ("__init__", "call"):
        ours, theirs = (
            inspect.signature(getattr(getattr(m, name), method)).parameters
            for m in (kn, keras.layers)
        )
        given = [argument for argument in theirs if argument != "kwargs"]
        assert list(ours)[: len(given)] == given
        assert ("kwargs" in ours) == ("kwargs" in theirs)
        for argument in theirs:
            assert ours[argument].default == theirs[argument].default, argument
            assert ours[argument].kind == theirs[argument].kind, argument
        for argument in set(ours) - set(theirs):
            assert ours[argument].default is not inspect.Parameter.empty, argument


# name, positional arguments, other arguments, shape.
CASES = [
    ("BatchNormalization", (), {}, (8, 5, 7, 11)),
    ("BatchNormalization", (1,), {"epsilon": 1e-5}, (8, 11, 5, 7)),
    ("BatchNormalization", (-2, 0.9, 1e-4), {}, (8, 11, 5)),
    ("BatchNormalization", (), {"center": False}, (23, 7)),
    ("BatchNormalization", (), {"scale": False}, (23, 7)),
    ("BatchNormalization", (), {}, (2, 3, 4, 5, 6)),
    ("LayerNormalization", (), {}, (3, 5, 67)),
    ("LayerNormalization", (1,), {}, (3, 67, 5)),
    ("LayerNormalization", ([1, 2, 3],), {"epsilon": 1e-5}, (3, 5, 7, 11)),
    ("LayerNormalization", ((-1, -3),), {}, (3, 5, 7, 11)),
    ("LayerNormalization", ([3, 1],), {}, (3, 5, 7, 11)),
    ("LayerNormalization", (), {"center": False}, (23, 7)),
    ("LayerNormalization", (), {"scale": False}, (23, 7)),
    ("GroupNormalization", (), {}, (3, 5, 7, 64)),
    ("GroupNormalization", (2, 1), {}, (3, 6, 5, 7)),
    ("GroupNormalization", (3, -2, 1e-5), {}, (3, 5, 6, 7)),
    ("GroupNormalization", (-1,), {}, (3, 5, 7, 11)),
    ("GroupNormalization", (1,), {"center": False}, (3, 13, 6)),
    ("GroupNormalization", (2,), {"scale": False}, (5, 6)),
    ("GroupNormalization", (2,), {}, (2, 3, 4, 5, 6)),
    ("RMSNormalization", (), {}, (3, 5, 67)),
    ("RMSNormalization", (-1, 1e-3), {}, (3, 5, 7, 11)),
    ("RMSNormalization", ([-1, -2],), {}, (3, 5, 7)),
]
cases = pytest.mark.parametrize("name, arguments, options, shape", CASES)


@cases
def test_outputs_and_gradients(name, arguments, options, shape, kernel, rng):
    """Within 1e-6 of the largest value, for float32 data of unit scale."""
    layers = built_pair(shape, name, *arguments, **options)
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    batch = {"training": True} if name == "BatchNormalization" else {}
    results = []
    for layer in layers:
        with tf.GradientTape() as tape:
            value = tf.constant(x)
            tape.watch(value)
            y = layer(value, **batch)
        weights = [w.value for w in layer.trainable_weights]
        results.append([y, *tape.gradient(y, [value, *weights], dy), *layer.non_trainable_weights])
    assert [w.path.split("/")[-1] for w in layers[0].weights] == [
        w.path.split("/")[-1] for w in layers[1].weights
    ]
    for got, want in zip(*results, strict=True):
        want = np.asarray(want).astype("float64")
        support.close(got, want, atol=1e-6 * np.abs(want).max())
    if batch:
        got, want = (np.asarray(layer(x)) for layer in layers)
        support.close(got, want.astype("float64"), atol=1e-6 * np.abs(want).max())


@cases
def test_configurations_load_both_ways(name, arguments, options, shape):
    ours, theirs = built_pair(shape, name, *arguments, **options)
    fresh_ours, fresh_theirs = pair(name, *arguments, **options)
    for config in (theirs.get_config(), fresh_theirs.get_config()):
        assert getattr(kn, name).from_config(config).compute_output_shape(shape) == shape
    for config in (ours.get_config(), fresh_ours.get_config()):
        again = getattr(keras.layers, name).from_config(config)
        again.build(shape)
        assert [w.shape for w in again.weights] == [w.shape for w in theirs.weights]
    # Before `build`, which in Keras changes the configuration, the two say the same.
    own = {**fresh_ours.get_config(), "name": "norm"}
    other = {**fresh_theirs.get_config(), "name": "norm"}
    other.pop("rms_scaling", None)  # deprecated in Keras; accepted by ours as False
    assert own == other


@cases
def test_weights_transfer_both_ways(name, arguments, options, shape, tmp_path):
    """By `set_weights`, and by files of weights."""
    ours, theirs = built_pair(shape, name, *arguments, **options)
    again_ours, again_theirs = pair(name, *arguments, **options)
    for n, (source, target) in enumerate([(ours, again_theirs), (theirs, again_ours)]):
        path = tmp_path / f"{n}.weights.h5"
        keras.Sequential([keras.Input(shape[1:], batch_size=shape[0]), source]).save_weights(path)
        model = keras.Sequential([keras.Input(shape[1:], batch_size=shape[0]), target])
        model.load_weights(path)
        for got, want in zip(target.get_weights(), ours.get_weights(), strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_keras_model_loads_with_our_layers(kernel, rng, tmp_path):
    """`custom_objects` puts our layers in the place of Keras' in a saved model."""
    model = keras.Sequential(
        [keras.Input((5, 7, 6))]
        + [getattr(keras.layers, n)() for n in NAMES if n[0] != "G"]
        + [keras.layers.GroupNormalization(2)]
    )
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    path = tmp_path / "model.h5"
    model.save(path)
    ours = keras.saving.load_model(path, custom_objects={n: getattr(kn, n) for n in NAMES})
    assert [type(layer).__module__.split(".")[0] for layer in ours.layers] == ["keras_norms"] * 4
    x = rng.normal(size=(3, 5, 7, 6)).astype("float32")
    want = model.predict(x, verbose=0).astype("float64")
    # Four layers, each within 1e-6 of the other; gamma, up to 2, passes the first ones' on.
    support.close(ours.predict(x, verbose=0), want, atol=4e-6 * np.abs(want).max())


@pytest.mark.parametrize("shape, mask_shape", [((3, 13, 7), (3, 13)), ((3, 5, 4, 7), (3, 5, 4))])
def test_masks(shape, mask_shape, kernel, rng):
    layers = built_pair(shape, "BatchNormalization", momentum=0.5)
    x = rng.normal(size=shape).astype("float32")
    mask = rng.uniform(size=mask_shape) < 0.6
    results = []
    for layer in layers:
        y = layer(x, training=True, mask=tf.constant(mask))
        results.append([y, *layer.non_trainable_weights])
    for got, want in zip(*results, strict=True):
        want = np.asarray(want).astype("float64")
        # Keras divides by count + 1e-7, 2e-9 of it for the 39 * 0.6 positions and less.
        support.close(got, want, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64"])
@cases
def test_policies(name, arguments, options, shape, dtype, kernel, rng):
    """The same types of results and weights, and the same values to a rounding of the type."""
    layers = built_pair(shape, name, *arguments, **options, dtype=dtype)
    x = rng.normal(size=shape).astype("float32")
    batch = {"training": True} if name == "BatchNormalization" else {}
    got, want = (layer(x, **batch) for layer in layers)
    assert got.dtype == want.dtype
    assert [w.dtype for w in layers[0].weights] == [w.dtype for w in layers[1].weights]
    unit = {"mixed_float16": 2.0**-10, "mixed_bfloat16": 2.0**-7, "float64": 1e-14}[dtype]
    if dtype == "float64" and name in ("LayerNormalization", "GroupNormalization"):
        unit = support.EPS32  # Keras computes these two in the input's float32
    want = np.asarray(want).astype("float64")
    # Keras rounds the input (BatchNormalization, RMSNormalization) or the scale first.
    support.close(got, want, atol=4 * unit * np.abs(want).max())


# Keras' test trains from a generator and does not turn `shuffle` off.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
@cases
def test_standard_test_of_keras(name, arguments, options, shape):
    """Keras' own conformance test of a layer: configuration, shapes, training, mixed precision."""
    names = list(inspect.signature(getattr(kn, name).__init__).parameters)[1:]
    trainable = 2 - (name == "RMSNormalization") - len({"center", "scale"} & set(options))
    testing.TestCase("run_layer_test").run_layer_test(
        getattr(kn, name),
        init_kwargs={**dict(zip(names, arguments, strict=False)), **options},
        input_shape=shape,
        expected_output_shape=shape,
        expected_num_trainable_weights=trainable,
        expected_num_non_trainable_weights=2 * (name == "BatchNormalization"),
        expected_num_seed_generators=0,
        expected_num_losses=0,
        supports_masking=True,
    )


def zeros(*shape):
    return np.zeros(shape, "float32")


# A mistake, made with the layers of either module.
MISTAKES = {
    "groups do not divide": lambda m: m.GroupNormalization(4).build((2, 5, 6)),
    "more groups than channels": lambda m: m.GroupNormalization(7).build((2, 5, 6)),
    "32 groups of 16 channels": lambda m: m.GroupNormalization().build((2, 16)),
    "no groups": lambda m: m.GroupNormalization(0),
    "groups no int": lambda m: m.GroupNormalization(2.0),
    "GN, unknown channels": lambda m: m.GroupNormalization(2).build((2, 5, None)),
    "GN, axis": lambda m: m.GroupNormalization(2, axis=3).build((2, 5, 6)),
    "GN, axis of shape": lambda m: m.GroupNormalization(2, 3).compute_output_shape((2, 5, 6)),
    "BN, axis": lambda m: m.BatchNormalization(3).build((2, 5, 6)),
    "BN, axis of call": lambda m: m.BatchNormalization(3)(zeros(2, 5, 6)),
    "BN, axis of shape": lambda m: m.BatchNormalization(3).compute_output_shape((2, 5, 6)),
    "BN, several axes": lambda m: m.BatchNormalization([1]),
    "BN, axis no number": lambda m: m.BatchNormalization("a"),
    "BN, unknown channels": lambda m: m.BatchNormalization().build((2, 5, None)),
    "BN, momentum no number": lambda m: m.BatchNormalization(momentum="a"),
    "BN, epsilon no number": lambda m: m.BatchNormalization(epsilon="a"),
    "BN, epsilon None": lambda m: m.BatchNormalization(epsilon=None),
    "BN, initializer": lambda m: m.BatchNormalization(beta_initializer="no such"),
    "BN, unknown argument": lambda m: m.BatchNormalization(no_such=1),
    "BN, unknown in config": lambda m: m.BatchNormalization.from_config({"no_such": 1}),
    "BN, rank of mask": lambda m: m.BatchNormalization()(
        zeros(2, 5, 6), mask=np.ones((2, 5, 6), bool)
    ),
    "BN, no axes": lambda m: m.BatchNormalization()(np.float32(1)),
    "LN, axis no int": lambda m: m.LayerNormalization("a"),
    "LN, axis None": lambda m: m.LayerNormalization(None),
    "LN, axis": lambda m: m.LayerNormalization(3).build((2, 5, 6)),
    "LN, axis of call": lambda m: m.LayerNormalization(3)(zeros(2, 5, 6)),
    "LN, axis of shape": lambda m: m.LayerNormalization(3).compute_output_shape((2, 5, 6)),
    "LN, unknown channels": lambda m: m.LayerNormalization().build((2, 5, None)),
    "RMS, axis": lambda m: m.RMSNormalization(3).build((2, 5, 6)),
    "RMS, axis no int": lambda m: m.RMSNormalization("a").build((2, 5, 6)),
    "RMS, axis of shape": lambda m: m.RMSNormalization(3).compute_output_shape((2, 5, 6)),
    "RMS, unknown argument": lambda m: m.RMSNormalization(no_such=1),
    "no tensor": lambda m: m.LayerNormalization()(None),
    "a string": lambda m: m.LayerNormalization()("abc"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_errors_are_of_the_same_type(mistake):
    with pytest.raises(Exception) as theirs:
        MISTAKES[mistake](keras.layers)
    with pytest.raises(theirs.type) as ours:
        MISTAKES[mistake](kn)
    if ours.type.__module__.startswith("keras_norms"):
        assert issubclass(ours.type, ValueError)


@pytest.mark.parametrize("name", NAMES)
def test_other_channels_or_rank_than_built_for(name):
    """ValueError in ours; in Keras' LayerNormalization and RMSNormalization a TensorFlow error."""
    layer = getattr(kn, name)(*(2,) * (name[0] == "G"))
    layer(zeros(2, 5, 6))
    for shape in [(2, 5, 4), (2, 4)]:
        with pytest.raises(ValueError):
            layer(zeros(*shape))


# Deviations: where Keras is wrong. The first number in a comment is Keras 3.15's, measured. When
# a `wrong` assertion fails, Keras has been mended: then the deviation can go from our docs.


def errors(layers, x, want, **arguments):
    """The largest error of ours and of Keras'."""
    return [np.abs(np.asarray(layer(x, **arguments)) - want).max() for layer in layers]


def test_deviation_group_norm_of_a_large_image(kernel, rng):
    """keras-team/keras#19348: one long sum. Off by 2.8 to 4.2 deviations at a mean of 100."""
    x = rng.normal(100, 1, (1, 600, 400, 24)).astype("float32")
    want = reference.group_norm(x, None, None, groups=3).y
    ours, wrong = errors(pair("GroupNormalization", 3), x, want)
    assert ours <= support.FORWARD[kernel]
    assert wrong > 1


def test_deviation_batch_norm_of_four_million_elements(kernel, rng):
    """Off by 6.6 deviations at a mean of 1e4; 4.6 at 100; the moving mean is 9809."""
    x = rng.normal(1e4, 1, (4_200_000, 2)).astype("float32")
    layers = pair("BatchNormalization", momentum=0.0)
    ours, wrong = errors(layers, x, reference.batch_norm(x, None, None).y, training=True)
    assert ours <= support.FORWARD[kernel]
    assert wrong > 1
    mean = x.mean(0, dtype="float64")
    support.close(layers[0].moving_mean, mean, rtol=support.EPS32, atol=0)
    assert np.abs(layers[1].moving_mean.numpy() - mean).max() > 100


@pytest.mark.parametrize(
    "name, shape, arguments, least",
    [
        ("BatchNormalization", (1031, 8), {}, 2e-4),  # 2.7e-3
        ("LayerNormalization", (8, 1031), {}, 2e-4),  # 1.8e-3
        ("GroupNormalization", (2, 5, 103, 6), {"groups": 2}, 2e-4),  # 1.3e-3
    ],
)
def test_deviation_data_far_from_zero(name, shape, arguments, least, kernel, rng):
    """tensorflow/tensorflow#117318: x * scale - mean * scale, both of size 1e4."""
    x = rng.normal(1e4, 1, shape).astype("float32")
    layers = pair(name, **arguments)
    want = support.REFERENCE[name][0](x, None, None, **arguments).y
    batch = {"training": True} if name == "BatchNormalization" else {}
    ours, wrong = errors(layers, x, want, **batch)
    assert ours <= support.FORWARD[kernel]
    assert wrong > least


def test_deviation_synchronized(kernel, rng):
    """E[x^2] - E[x]^2: off by 0.024 deviations at a mean of 100, by 117 at 1e4, on one replica."""
    for mean, least in ((1e2, 2e-3), (1e4, 10)):
        x = rng.normal(mean, 1, (2, 5, 103, 6)).astype("float32")
        want = reference.batch_norm(x, None, None).y
        layers = pair("BatchNormalization", synchronized=True)
        ours, wrong = errors(layers, x, want, training=True)
        assert ours <= support.FORWARD[kernel]
        assert wrong > least


def test_deviation_order_of_gamma_for_axes_of_mixed_sign(kernel, rng):
    """Gamma is shaped (8, 6) for axes (-1, 1), then reshaped to (6, 8), not transposed: off 8.6."""
    layers = pair("LayerNormalization", [1, -1])
    x = rng.normal(size=(2, 6, 7, 8)).astype("float32")
    gamma = rng.normal(size=(8, 6)).astype("float32")
    for layer in layers:
        layer.build(x.shape)
        assert tuple(layer.gamma.shape) == (8, 6)
        layer.gamma.assign(gamma)
    want = reference.layer_norm(x, gamma, None, axis=[1, -1]).y
    ours, wrong = errors(layers, x, want)
    assert ours <= support.FORWARD[kernel] * np.abs(gamma).max()
    assert wrong > 1


def test_deviation_rms_along_another_axis(kernel, rng):
    """Scale meets the last axis: an error for (2,4,3,5), silently off by 5.2 for (2,4,3,4)."""
    scale = rng.normal(size=4).astype("float32")
    for shape in ((2, 4, 3, 5), (2, 4, 3, 4)):
        x = rng.normal(size=shape).astype("float32")
        layers = pair("RMSNormalization", 1)
        for layer in layers:
            layer.build(shape)
            layer.scale.assign(scale)
        want = reference.rms_norm(x, scale, axis=1).y
        ours = np.abs(layers[0](x) - want).max()
        assert ours <= support.FORWARD[kernel] * np.abs(scale).max()
        if shape[-1] == 4:
            assert np.abs(layers[1](x) - want).max() > 1
        else:
            with pytest.raises(tf.errors.InvalidArgumentError):
                layers[1](x)


def test_deviation_mask_of_channels_first(kernel, rng):
    """The mask meets the last axis: (batch, time) is an error, (batch, channels) is accepted."""
    x = rng.normal(size=(3, 7, 13)).astype("float32")
    ours, theirs = pair("BatchNormalization", 1, momentum=0.0)
    mask = rng.uniform(size=(3, 13)) < 0.6
    ours(x, training=True, mask=tf.constant(mask))
    want = reference.batch_norm(x, None, None, axis=1, where=mask[:, None])
    support.close(ours.moving_mean, want.mean.ravel(), atol=2e-5)  # masks are portable
    with pytest.raises(tf.errors.InvalidArgumentError):
        theirs(x, training=True, mask=tf.constant(mask))
    wrong = tf.ones((3, 7), "bool")
    theirs(x, training=True, mask=wrong)
    with pytest.raises(ValueError, match="`mask` must have"):
        ours(x, training=True, mask=wrong)


def test_deviation_batch_without_elements(kernel):
    """Keras: NaN moving statistics for an empty batch; variance 1 -> 0.5 for a masked one."""
    for x, mask in ((zeros(0, 4, 3), None), (zeros(2, 4, 3), tf.zeros((2, 4), "bool"))):
        ours, theirs = pair("BatchNormalization", momentum=0.5)
        for layer in (ours, theirs):
            layer(x, training=True, mask=mask)
        np.testing.assert_array_equal(ours.moving_mean, [0, 0, 0])
        np.testing.assert_array_equal(ours.moving_variance, [1, 1, 1])
        wrong = np.full(3, np.nan if mask is None else 0.5)
        np.testing.assert_array_equal(theirs.moving_variance, wrong)


def test_deviation_moving_statistics_of_half_layers(kernel):
    """Variance 9e4 is inf in Keras' float16 moving variance, and the layer then gives zeros."""
    x = np.array([[300], [-300], [300], [-300]], "float16")
    ours, theirs = pair("BatchNormalization", momentum=0.0, dtype="float16")
    for layer in (ours, theirs):
        layer(x, training=True)
    np.testing.assert_array_equal(ours.moving_variance, [9e4])
    support.close(ours(x), np.sign(x).astype("float64"), atol=2.0**-11)
    assert theirs.moving_variance.dtype == "float16"
    assert np.isinf(theirs.moving_variance.numpy()).all()
    np.testing.assert_array_equal(theirs(x), np.zeros((4, 1)))


def test_deviation_configuration_after_build():
    """Keras' `build` changes arguments: groups -1 -> 4, axis -1 -> [-1], [3, 1] -> [1, 3]."""
    for name, argument, wrong, key in (
        ("GroupNormalization", -1, 5, "groups"),
        ("LayerNormalization", -1, [-1], "axis"),
        ("LayerNormalization", [3, 1], [1, 3], "axis"),
        ("RMSNormalization", -1, [-1], "axis"),
    ):
        ours, theirs = pair(name, argument)
        for layer in (ours, theirs):
            layer.build((2, 3, 4, 5))
        assert ours.get_config()[key] == argument
        assert theirs.get_config()[key] == wrong


def test_deviation_mask_through_rms():
    """Keras drops the mask with a warning."""
    mask = keras.ops.ones((2, 3), "bool")
    ours, theirs = pair("RMSNormalization")
    x = keras.ops.ones((2, 3, 4))
    keras.src.backend.set_keras_mask(x, mask)
    np.testing.assert_array_equal(keras.src.backend.get_keras_mask(ours(x)), mask)
    with pytest.warns(UserWarning, match="does not support mask"):
        y = theirs(x)
    assert keras.src.backend.get_keras_mask(y) is None


def test_deviation_float32_inputs_under_mixed_float16(kernel, rng):
    """Keras' BatchNormalization casts its float32 input to float16 first: 1e5 becomes inf."""
    x = (1e5 * rng.normal(size=(16, 3))).astype("float32")
    ours, theirs = pair("BatchNormalization", dtype="mixed_float16")
    want = reference.batch_norm(x, None, None).y
    atol = support.FORWARD[kernel]
    support.close(ours(x, training=True), want, atol=atol, rtol=support.ROUNDING["float16"])
    assert not np.isfinite(np.asarray(theirs(x, training=True))).all()
