"""Batch norms vanish in the weights around them where that is exact, and stay where it is not."""

import keras
import numpy as np
import pytest
from keras import layers as L
from test_tflite import randomized

import keras_norms as kn
from keras_norms.tflite.graph import File
from keras_norms.tflite.origins import origins

IMAGE, ROW = (9, 8, 6), (10,)


def signed(model):
    """The model with norms whose gammas have either sign."""
    draw = np.random.default_rng(5)
    for weight in randomized(model).weights:
        if weight.name == "gamma":
            weight.assign(weight * draw.choice([-1.0, 1.0], weight.shape))
        if weight.name == "bias":
            weight.assign(draw.normal(size=weight.shape))
    return model


def norm(**arguments):
    return kn.BatchNormalization(name="norm", **arguments)


def chain(*layers, shape=IMAGE):
    return keras.Sequential([keras.Input(shape), *layers])


def joined(join, *, norm_shared=False):
    x = keras.Input(IMAGE)
    parts = [L.Conv2D(4, 3)(x), L.Conv2D(4, 3, use_bias=False)(x)]
    return keras.Model(x, norm()(join(parts)))


def used_twice():
    x = keras.Input(IMAGE)
    y = L.Conv2D(4, 3)(x)
    return keras.Model(x, [norm()(y), L.ReLU()(y)])


def read_twice(*readers):
    x = keras.Input(IMAGE)
    y = norm()(L.ReLU()(x))
    return keras.Model(x, [reader(y) for reader in readers])


def shared():
    x, convolution, one = keras.Input(IMAGE), L.Conv2D(6, 3, padding="same"), norm()
    y = one(convolution(x))
    return keras.Model(x, one(convolution(L.ReLU()(y))))


FOLDED = {
    "conv": (lambda: chain(L.Conv2D(4, 3), norm()), ["CONV_2D"]),
    "conv without bias": (lambda: chain(L.Conv2D(4, 3, use_bias=False), norm()), ["CONV_2D"]),
    "conv in groups": (lambda: chain(L.Conv2D(4, 3, groups=2), norm()), ["CONV_2D"]),
    "depthwise": (
        lambda: chain(L.DepthwiseConv2D(3, depth_multiplier=2), norm()),
        ["DEPTHWISE_CONV_2D"],
    ),
    "transposed": (lambda: chain(L.Conv2DTranspose(4, 3, strides=2), norm()), None),
    "dense": (lambda: chain(L.Dense(7), norm(), shape=ROW), ["FULLY_CONNECTED"]),
    "dense of rows": (lambda: chain(L.Dense(7), norm(), shape=(5, 10)), None),
    "conv with relu after": (lambda: chain(L.Conv2D(4, 3), norm(), L.ReLU()), ["CONV_2D"]),
    "separable": (
        lambda: chain(L.SeparableConv2D(4, 3), norm()),
        ["DEPTHWISE_CONV_2D", "CONV_2D"],
    ),
    "before conv": (lambda: chain(norm(), L.Conv2D(4, 3)), ["CONV_2D"]),
    "before conv in groups": (lambda: chain(norm(), L.Conv2D(4, 3, groups=2)), ["CONV_2D"]),
    "before pointwise conv": (
        lambda: chain(norm(), L.Conv2D(4, 1, padding="same", use_bias=False)),
        ["CONV_2D"],
    ),
    "before depthwise": (
        lambda: chain(norm(), L.DepthwiseConv2D(3, depth_multiplier=2)),
        ["DEPTHWISE_CONV_2D"],
    ),
    "before dense": (lambda: chain(norm(), L.Dense(7), shape=ROW), ["FULLY_CONNECTED"]),
    "before dense of rows": (lambda: chain(norm(), L.Dense(7), shape=(5, 10)), None),
    "before flatten and dense": (lambda: chain(norm(), L.Flatten(), L.Dense(7)), None),
    "before global pooling and dense": (
        lambda: chain(norm(), L.GlobalAveragePooling2D(), L.Dense(7)),
        ["MEAN", "FULLY_CONNECTED"],
    ),
    "of the flattened, before dense": (lambda: chain(L.Flatten(), norm(), L.Dense(7)), None),
    "after pooling": (
        lambda: chain(L.Conv2D(4, 3), L.AveragePooling2D(2, padding="same"), norm()),
        ["CONV_2D", "AVERAGE_POOL_2D"],
    ),
    "after global pooling": (
        lambda: chain(L.Conv2D(4, 3), L.GlobalAveragePooling2D(), norm()),
        ["CONV_2D", "MEAN"],
    ),
    "after reshape": (
        lambda: chain(L.Conv2D(4, 3), L.Reshape((-1, 4)), norm()),
        ["CONV_2D", "RESHAPE"],
    ),
    "of a norm": (
        lambda: chain(L.Conv2D(4, 3), norm(), kn.BatchNormalization(name="norm_2")),
        None,
    ),
    "after concatenation": (
        lambda: joined(L.Concatenate()),
        ["CONV_2D", "CONV_2D", "CONCATENATION"],
    ),
    "after addition": (lambda: joined(L.Add()), ["CONV_2D", "CONV_2D", "ADD"]),
    "for two readers": (lambda: read_twice(L.Conv2D(4, 3), L.Conv2D(5, 1)), None),
    "shared": (shared, None),
    "Keras' own": (
        lambda: chain(L.Conv2D(4, 3), L.BatchNormalization(name="norm")),
        ["CONV_2D"],
    ),
    "mean only": (
        lambda: chain(L.Conv2D(4, 3), kn.MeanOnlyBatchNormalization(name="norm")),
        ["CONV_2D"],
    ),
    "layer scale": (lambda: chain(L.Conv2D(4, 3), kn.LayerScale(name="norm")), ["CONV_2D"]),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folded(case, tmp_path):
    make, ops = FOLDED[case]
    report = kn.tflite.convert(signed(make()), tmp_path / "m.tflite")  # which compares
    assert {n.form for n in report.norms} == {"folded"}
    assert not set(report.ops) & ({"MUL", "ADD", "SUB"} - set(ops or ()))
    if ops is not None:
        assert sorted(ops) == sorted(name for name, k in report.ops.items() for _ in range(k))


NOT_FOLDED = {
    "activation before": (
        lambda: chain(L.Conv2D(4, 3, activation="relu"), norm()),
        "not folded: there is an activation between it and CONV_2D before it; its result is an "
        "output",
    ),
    "used elsewhere": (used_twice, "used elsewhere too"),
    "nothing around": (
        lambda: chain(norm()),
        "not folded: what comes before it is an input or a constant; its result is an output",
    ),
    "largest of negative": (
        lambda: chain(L.Conv2D(4, 3), L.MaxPooling2D(2), norm()),
        "not folded: MAX_POOL_2D before it does not let it through; its result is an output",
    ),
    "one of two readers": (
        lambda: read_twice(L.Conv2D(4, 3), L.Activation("sigmoid")),
        "LOGISTIC after it does not take it in",
    ),
    "channels first": (
        lambda: chain(L.ReLU(), norm(axis=1)),
        "not folded: its channels are not the last axis",
    ),
}


@pytest.mark.parametrize("case", NOT_FOLDED)
def test_not_folded(case, tmp_path):
    make, why = NOT_FOLDED[case]
    report = kn.tflite.convert(signed(make()), tmp_path / "m.tflite")
    (found,) = report.norms
    assert found.form == "multiply and add"
    assert why in found.why


def test_what_pads_with_zeros_takes_the_scale_alone(tmp_path):
    model = signed(chain(L.ReLU(), norm(), L.Conv2D(4, 3, padding="same")))
    report = kn.tflite.convert(model, tmp_path / "m.tflite")
    (found,) = report.norms
    assert found.form == "offset"
    assert "(the scale)" in found.why
    assert "pads with zeros" in found.why
    assert report.ops == {"ADD": 1, "CONV_2D": 1, "RELU": 1}


def test_a_scale_near_zero_is_not_divided_by(tmp_path):
    model = signed(chain(L.ReLU(), norm(), L.Conv2D(4, 3, padding="same")))
    gamma = model.get_layer("norm").gamma
    gamma.assign(np.asarray(gamma) * [1, 1, 0, 1, 1, 1])
    report = kn.tflite.convert(model, tmp_path / "m.tflite")
    assert report.norms[0].form == "multiply and add"


def test_positive_scales_pass_the_largest(tmp_path):
    model = randomized(chain(L.Conv2D(4, 3), L.MaxPooling2D(2), norm()))
    report = kn.tflite.convert(model, tmp_path / "m.tflite")
    assert report.ops == {"CONV_2D": 1, "MAX_POOL_2D": 1}


@pytest.mark.parametrize("same", [False, True], ids=["valid", "same"])
def test_gamma_and_beta_go_into_what_follows(same, tmp_path):
    """All of them where nothing is padded, else gamma alone."""
    convolution = L.Conv2D(4, 3, padding="same" if same else "valid")
    model = signed(chain(L.ReLU(), kn.LayerNormalization(name="norm"), convolution))
    plain = chain(L.ReLU(), kn.LayerNormalization(center=False, scale=False), convolution)
    report = kn.tflite.convert(model, tmp_path / "m.tflite")
    without = kn.tflite.convert(plain, tmp_path / "plain.tflite")
    assert sum(report.ops.values()) == sum(without.ops.values()) + same
    assert ("(gamma)" if same else "(gamma and beta)") in report.norms[0].why


def test_gammas_of_every_element_go_into_a_dense_layer(tmp_path):
    make = kn.LayerNormalization
    model = signed(chain(L.ReLU(), make(axis=(1, 2, 3), name="norm"), L.Flatten(), L.Dense(2)))
    report = kn.tflite.convert(model, tmp_path / "m.tflite", metadata=False)
    plain = chain(
        L.ReLU(), make(axis=(1, 2, 3), center=False, scale=False), L.Flatten(), L.Dense(2)
    )
    without = kn.tflite.convert(plain, tmp_path / "plain.tflite", metadata=False)
    assert report.ops == without.ops
    assert report.size < without.size + 200


@pytest.mark.parametrize("quantize", ["int8", "int16x8"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_integers_keep_unequal_channels_apart(padding, quantize, tmp_path, rng):
    """In the weights after it a factor of 1/30 would leave a channel few of 256 steps."""
    scales = np.array([1, 30, 1, 5, 1, 1], "float32")
    model = chain(L.ReLU(), norm(), L.Conv2D(8, 3, padding=padding))
    model.get_layer("norm").set_weights([np.ones(6), np.full(6, 0.3), 0.8 * scales, scales**2 / 3])
    data = rng.normal(size=(64, *IMAGE)).astype("float32") * scales
    report = kn.tflite.convert(
        model, tmp_path / "m.tflite", quantize=quantize, representative_data=data
    )
    assert report.norms[0].form == "multiply and add"
    assert min(agreement.sqnr for agreement in report.agreements) > 33


def test_integers_take_in_equal_channels(tmp_path, rng):
    model = chain(L.ReLU(), norm(), L.Conv2D(8, 3))
    report = kn.tflite.convert(
        model,
        tmp_path / "m.tflite",
        quantize="int8",
        representative_data=rng.normal(size=(16, *IMAGE)).astype("float32"),
    )
    assert report.norms[0].form == "folded"


def test_a_mean_over_channels_goes_into_the_layer_before(tmp_path):
    model = signed(chain(L.Dense(7), kn.LayerNormalization(name="norm"), shape=ROW))
    report = kn.tflite.convert(model, tmp_path / "m.tflite", target="cpu")
    assert report.ops["MEAN"] == 1
    assert "SUB" not in report.ops
    assert "(the mean)" in report.norms[0].why


def test_a_mean_over_groups_of_channels_stays(tmp_path):
    """No weight of one group's outputs meets the other group's inputs."""
    model = signed(chain(L.Conv2D(4, 3, groups=2), kn.LayerNormalization(name="norm")))
    report = kn.tflite.convert(model, tmp_path / "m.tflite", target="cpu")
    assert "SUB" in report.ops


@pytest.mark.parametrize("make", [norm, lambda: kn.LayerNormalization(name="norm")])
def test_channels_that_are_added_take_no_scale(make, tmp_path):
    """As in residual networks whose shortcuts have fewer channels."""
    wider = L.ZeroPadding2D(((0, 0), (1, 2)), data_format="channels_first")
    model = signed(chain(L.ReLU(), make(), wider, L.Conv2D(4, 3)))
    report = kn.tflite.convert(model, tmp_path / "m.tflite")
    assert "in the weights" not in report.norms[0].why


def test_wrappers_leave_their_kernels(tmp_path):
    model = chain(
        kn.WeightNormalization(L.Conv2D(4, 3)),
        kn.WeightStandardization(L.Conv2D(5, 3)),
        kn.SpectralNormalization(L.Conv2D(6, 3), reparam=True),
        L.SpectralNormalization(L.Conv2D(6, 1)),
        norm(),
    )
    report = kn.tflite.convert(signed(model), tmp_path / "m.tflite")
    assert report.ops == {"CONV_2D": 4}
    assert [n.form for n in report.norms] == ["folded"] * 5


KERAS = {
    "BatchNormalization": lambda: L.BatchNormalization(scale=False),
    "LayerNormalization": lambda: L.LayerNormalization(epsilon=1e-5),
    "LayerNormalization over all": lambda: L.LayerNormalization(axis=[1, 2, 3]),
    "GroupNormalization": lambda: L.GroupNormalization(3),
    "GroupNormalization of channels": lambda: L.GroupNormalization(-1),
    "RMSNormalization": lambda: L.RMSNormalization(),
    "UnitNormalization": lambda: L.UnitNormalization(),
}


@pytest.mark.parametrize("name", KERAS)
def test_layers_of_keras_are_written_as_ours(name, tmp_path):
    model, ours = (
        randomized(chain(make())) for make in (KERAS[name], lambda: kn_of(KERAS[name]()))
    )
    path = tmp_path / "m.tflite"
    report = kn.tflite.convert(model, path, metadata=False)
    without = kn.tflite.convert(ours, tmp_path / "ours.tflite", metadata=False)
    assert report.norms[0].layer == f"keras.{name.split()[0]}"
    assert report.ops == without.ops


def kn_of(layer):
    return getattr(kn, type(layer).__name__).from_config(layer.get_config())


@pytest.mark.parametrize("arguments", [{"axis": [1, -1]}, {"rms_scaling": True}])
@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")
def test_what_keras_computes_otherwise_stays_keras(arguments, tmp_path):
    report = kn.tflite.convert(
        randomized(chain(L.LayerNormalization(**arguments))), tmp_path / "m.tflite"
    )
    assert "as Keras computes it" in report.norms[0].why


def test_how_keras_weights_began_does_not_matter(tmp_path):
    class Halves(keras.initializers.Initializer):  # not registered
        def __call__(self, shape, dtype=None):
            return keras.ops.full(shape, 0.5, dtype)

    model = chain(L.Conv2D(4, 3), L.BatchNormalization(gamma_initializer=Halves()))
    assert kn.tflite.convert(model, tmp_path / "m.tflite").ops == {"CONV_2D": 1}


def test_why_gamma_and_beta_stay(tmp_path):
    report = kn.tflite.convert(
        signed(chain(kn.GroupNormalization(2, name="norm"))), tmp_path / "m.tflite"
    )
    assert report.norms[0].why == "gamma and beta stay: its result is an output"
    assert f"{report.norms[0].path}" in str(report)


# ---- Where they went ---------------------------------------------------------------------------


def places(model, folder):
    """What the report says of each norm, by its own name."""
    report = kn.tflite.convert(signed(model), folder / "m.tflite")
    return {n.path.split("/")[-1]: n.why.removeprefix("in the weights of ") for n in report.norms}


def test_layers_are_named_where_they_take_a_norm_in(tmp_path):
    """Not by TensorFlow's scopes, in which `conv` is `conv_1`, nor by the name of an output."""
    model = chain(
        L.Conv2D(4, 3, name="conv"),
        kn.BatchNormalization(name="one"),
        L.ReLU(),
        L.DepthwiseConv2D(3, name="conv_1"),
        L.BatchNormalization(name="two"),
        L.ReLU(),
        kn.WeightNormalization(L.Conv2D(4, 3, activation="relu", name="conv_2"), name="wrapper"),
        kn.LayerNormalization(name="three"),
        L.Flatten(),
        L.Dense(3, name="dense"),
    )
    found, name = places(model, tmp_path), model.name
    assert found["one"] == f"CONV_2D {name}/conv"
    assert found["two"] == f"DEPTHWISE_CONV_2D {name}/conv_1"
    assert found["three"] == f"FULLY_CONNECTED {name}/dense (gamma and beta)"


def test_nested_and_shared_layers_are_named(tmp_path):
    x = keras.Input(IMAGE)
    inner = keras.Sequential(
        [keras.Input(IMAGE), L.Conv2D(6, 3, padding="same", name="conv"), norm()], name="inner"
    )
    y = L.Conv2DTranspose(4, 3, name="conv")(inner(L.ReLU()(inner(x))))
    y = kn.BatchNormalization(name="after")(y)
    y = kn.BatchNormalization(name="separated")(L.SeparableConv2D(5, 3, name="pair")(L.ReLU()(y)))
    assert places(keras.Model(x, y), tmp_path) == {
        "norm": "CONV_2D inner/conv",
        "norm#2": "CONV_2D inner/conv",
        "after": "TRANSPOSE_CONV conv",
        "separated": "CONV_2D pair",
    }


def test_layers_of_attention_are_named(tmp_path):
    x = keras.Input((5, 8))
    y = kn.LayerNormalization(name="norm")(x)
    model = keras.Model(x, L.MultiHeadAttention(2, 4, name="attention")(y, y))
    said = places(model, tmp_path)["norm"]
    assert {part.split()[1] for part in said.split(", ")} == {
        f"attention/{name}" for name in ("query", "key", "value")
    }


PAIR = {"left": "relu", "right": "tanh"}


def test_a_layer_with_the_weights_of_another_is_not_taken_for_it(tmp_path):
    """Their kernels are one constant in the file, which has the name of either."""
    x = keras.Input(ROW)
    parts = [kn.BatchNormalization(name=name)(L.Activation(a)(x)) for name, a in PAIR.items()]
    heads = [L.Dense(3, use_bias=False, name=f"of_{name}") for name in PAIR]
    model = signed(keras.Model(x, [h(p) for h, p in zip(heads, parts, strict=True)]))
    heads[1].set_weights(heads[0].get_weights())
    report = kn.tflite.convert(model, tmp_path / "m.tflite")
    assert [n.form for n in report.norms] == ["folded"] * 2
    for found in report.norms:
        assert found.why.startswith("in the weights of FULLY_CONNECTED StatefulPartitionedCall")


def test_a_name_that_two_share_is_nobodys(tmp_path):
    x = keras.Input(ROW)
    heads = [L.Dense(3, use_bias=False, name=name) for name in PAIR]
    model = keras.Model(x, [h(L.Activation(PAIR[h.name])(x)) for h in heads])
    heads[1].set_weights(heads[0].get_weights())
    kn.tflite.convert(model, tmp_path / "m.tflite", verify=False)
    (graph,) = File((tmp_path / "m.tflite").read_bytes()).graphs
    one, two = (op for op in graph.operators if graph.name(op) == "FULLY_CONNECTED")
    weights = graph.inputs(one)[1]
    assert graph.inputs(two)[1] == weights
    graph.raw.tensors[weights].name = b"net/left_1/MatMul"
    scopes = {"net/left_1": {"left"}, "net": {"right"}}
    assert origins(graph, scopes) == {}
    graph.operators.remove(two)
    assert origins(graph, scopes) == {id(one): "left"}
    assert origins(graph, {"net/left_1": {"left", "right"}}) == {}
