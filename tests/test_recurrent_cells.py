import keras
import numpy as np
import oracle
import pytest
import reference
import reference_recurrent
import support
import tensorflow as tf

import keras_norms as kn

CELLS = {
    "lstm": kn.LayerNormLSTMCell,
    "gru": kn.LayerNormGRUCell,
    "simple_rnn": kn.LayerNormSimpleRNNCell,
}
KERAS = {
    "lstm": keras.layers.LSTMCell,
    "gru": keras.layers.GRUCell,
    "simple_rnn": keras.layers.SimpleRNNCell,
}
each = pytest.mark.parametrize("kind", CELLS)

SHAPE, UNITS = (3, 4, 7), 5  # batch, time, features


def drawn(rng, shape=SHAPE):
    return rng.normal(size=shape).astype("float32")


def rnn_of(kind, *, units=UNITS, shape=SHAPE, arguments=None, **kwargs):
    """The cell in a layer, its weights of either sign."""
    cell = CELLS[kind](units, **(arguments or {}))
    rnn = keras.layers.RNN(cell, **{"return_sequences": True, **kwargs})
    rnn.build(shape)
    draw = np.random.default_rng(7)
    for weight in rnn.trainable_weights:
        weight.assign(draw.choice([-1, 1], weight.shape) * draw.uniform(0.5, 2, weight.shape))
    return rnn


def want_of(kind, rnn, x, **arguments):
    """All outputs and the last states, by the reference."""
    weights = support.weights_of(rnn)
    return reference_recurrent.run(kind, x, weights, rnn.cell.get_config(), **arguments)


def bound(value, share=4e-6):
    """A few roundings of float32 in each of some steps, in units of the largest element."""
    return share * max(1.0, np.abs(value).max(initial=0))


@each
@pytest.mark.parametrize(
    "mode, shape, units",
    [
        ("eager", SHAPE, UNITS),
        ("graph", (1, 3, 1), 3),
        ("graph", (17, 2, 3), 11),
        ("xla", SHAPE, UNITS),
    ],
)
def test_matches_reference(kind, mode, shape, units, kernel, rng):
    """Outputs and the gradients of x and of all weights."""
    rnn = rnn_of(kind, units=units, shape=shape)
    x, dy = drawn(rng, shape), drawn(rng, (*shape[:2], units))
    got = support.runner(rnn, mode)(x, dy)
    want, back = support.expected(rnn, x, dy, weights=got.weights)
    support.close(got.y, want.y, atol=bound(want.y))
    support.close(got.dx, back.dx, atol=bound(back.dx, support.GRADIENT))
    assert set(got.gradients) == set(back.gradients) == set(oracle.named(rnn, trainable=True))
    for name, gradient in got.gradients.items():
        value = back.gradients[name]
        support.close(gradient, value, atol=bound(value, support.GRADIENT), what=name)


@each
def test_states(kind, kernel, rng):
    """Initial states in, last states out, and the gradients from the ones to the others."""
    rnn = rnn_of(kind, return_state=True)
    x = drawn(rng)
    count = reference_recurrent.STEPS[kind][1]
    starts = [drawn(rng, (3, UNITS)) for _ in range(count)]
    slopes = [drawn(rng, (3, UNITS)) for _ in range(count)]
    tensors = [tf.constant(start) for start in starts]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        y, *states = rnn(x, initial_state=tensors)
    gradients = tape.gradient(states, tensors, [tf.constant(slope) for slope in slopes])
    want, last = want_of(kind, rnn, x, states=starts)
    support.close(y, want, atol=bound(want))
    for got, value in zip(states, last, strict=True):
        support.close(got, value, atol=bound(value))
    for k, got in enumerate(gradients):
        value = np.zeros(got.shape)
        for place in np.ndindex(*value.shape):
            moved = [start.astype(complex) for start in starts]
            moved[k][place] += 1j * oracle.STEP
            _, ends = want_of(kind, rnn, x, states=moved)
            value[place] = sum(
                (slope * end.imag).sum() / oracle.STEP
                for slope, end in zip(slopes, ends, strict=True)
            )
        support.close(got, value, atol=bound(value, support.GRADIENT))


MASKS = {
    "right": [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]],
    "left": [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]],
    "all left": [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]],
}


@each
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_masks(kind, unroll, name, rng):
    rnn = rnn_of(kind, unroll=unroll, return_state=True)
    x, mask = drawn(rng), np.array(MASKS[name], bool)
    y, *states = rnn(x, mask=tf.constant(mask))
    want, last = want_of(kind, rnn, x, mask=mask)
    support.close(y, want, atol=bound(want))
    for got, value in zip(states, last, strict=True):
        support.close(got, value, atol=bound(value))


@each
def test_directions(kind, rng):
    """`go_backwards` and `Bidirectional`, whose halves have weights of their own."""
    x = drawn(rng)
    rnn = rnn_of(kind, go_backwards=True)
    want, _ = want_of(kind, rnn, x[:, ::-1])
    support.close(rnn(x), want, atol=bound(want))
    both = keras.layers.Bidirectional(keras.layers.RNN(CELLS[kind](UNITS), return_sequences=True))
    both.build(SHAPE)
    draw = np.random.default_rng(5)
    for weight in both.weights:
        weight.assign(draw.uniform(-1, 1, weight.shape))
    forward, _ = want_of(kind, both.forward_layer, x)
    backward, _ = want_of(kind, both.backward_layer, x[:, ::-1])
    want = np.concatenate([forward, backward[:, ::-1]], axis=-1)
    support.close(both(x), want, atol=bound(want))


@each
def test_stateful(kind, rng):
    """Two halves of a sequence are the whole."""
    x = drawn(rng)
    rnn = rnn_of(kind, stateful=True)
    want, _ = want_of(kind, rnn, x)
    support.close(rnn(x[:, :2]), want[:, :2], atol=bound(want))
    support.close(rnn(x[:, 2:]), want[:, 2:], atol=bound(want))
    rnn.reset_state()
    support.close(rnn(x[:, :1]), want[:, :1], atol=bound(want))


@each
def test_stacked(kind, rng):
    x = drawn(rng)
    stack = keras.layers.StackedRNNCells([CELLS[kind](3), CELLS[kind](UNITS)])
    rnn = keras.layers.RNN(stack, return_sequences=True)
    got, want = rnn(x), x
    for cell in stack.cells:
        one = keras.layers.RNN(cell, return_sequences=True)
        want, _ = want_of(kind, one, want)
    support.close(got, want, atol=bound(want))


@each
@pytest.mark.parametrize("unroll", [False, True])
def test_dropout(kind, unroll, rng):
    """One mask for all gates and steps, another one for each batch; none at inference."""
    arguments = {"dropout": 0.4, "recurrent_dropout": 0.3, "seed": 3}
    rnn = rnn_of(kind, unroll=unroll, arguments=arguments)
    x = drawn(rng)
    support.close(rnn(x), want_of(kind, rnn, x)[0], atol=bound(x))
    masks = [
        rnn.cell.get_dropout_mask(tf.ones((3, 7))),
        rnn.cell.get_recurrent_dropout_mask(tf.ones((3, UNITS))),
    ]
    got = rnn(x, training=True)  # by the masks drawn already
    want, _ = want_of(kind, rnn, x, drop=[mask.numpy() for mask in masks])
    support.close(got, want, atol=bound(want))
    assert {0.0} < set(masks[0].numpy().ravel()) and {0.0} < set(masks[1].numpy().ravel())
    others = [np.asarray(rnn(x, training=True)) for _ in range(2)]
    assert np.abs(others[0] - got).max() > 1e-3 < np.abs(others[1] - others[0]).max()
    again = rnn_of(kind, unroll=unroll, arguments=arguments)
    again(x)  # draws masks, too
    support.close(again(x, training=True), want, atol=bound(want))


@each
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision(kind, dtype, kernel, rng):
    arguments = {"dtype": f"mixed_{dtype}"}
    cell = CELLS[kind](UNITS, **arguments)
    rnn = keras.layers.RNN(cell, return_sequences=True, return_state=True, **arguments)
    support.built(rnn, SHAPE)
    assert {weight.dtype for weight in rnn.weights} == {"float32"}
    x = drawn(rng)
    y, *states = rnn(x)
    assert {one.dtype.name for one in (y, *states)} == {dtype}
    want, _ = want_of(kind, rnn, x)
    # A product of 7 or 5 terms of up to 2 and a sum or two in each of 4 steps, normalized.
    close = 64 * support.ROUNDING[dtype]
    support.close(tf.cast(y, "float32"), want, atol=close * np.abs(want).max())


@each
def test_double_precision(kind, rng):
    rnn = support.built(
        keras.layers.RNN(CELLS[kind](UNITS, dtype="float64"), dtype="float64"), SHAPE
    )
    x = rng.normal(size=SHAPE)
    want, _ = want_of(kind, rnn, x)
    support.close(rnn(x), want[:, -1], atol=1e-13 * np.abs(want).max())


@each
def test_zeros(kind, kernel):
    """At the first step the state is 0, so the variance of its product is, too."""
    rnn = rnn_of(kind)
    zeros = np.zeros(SHAPE, "float32")
    got = support.runner(rnn, "graph")(zeros, np.ones((*SHAPE[:2], UNITS), "float32"))
    for value in (got.y, got.dx, *got.gradients.values()):
        assert np.isfinite(value).all()


@each
def test_empty_batch_and_unknown_sizes(kind, rng):
    rnn = rnn_of(kind, shape=(None, None, 7))
    assert rnn(np.zeros((0, 3, 7), "float32")).shape == (0, 3, UNITS)
    run = tf.function(rnn, input_signature=[tf.TensorSpec([None, None, 7])])
    x = drawn(rng)
    support.close(run(x), want_of(kind, rnn, x)[0], atol=bound(x))


@each
@pytest.mark.parametrize("use_bias", [True, False])
def test_without_norms_it_is_keras(kind, use_bias, rng):
    x = drawn(rng)
    ours = keras.layers.RNN(CELLS[kind](UNITS, use_bias=use_bias, norm=keras.layers.Identity()))
    theirs = keras.layers.RNN(KERAS[kind](UNITS, use_bias=use_bias))
    ours.build(SHAPE)
    theirs.build(SHAPE)
    weights = [rng.normal(size=weight.shape) for weight in theirs.get_weights()]
    ours.set_weights(weights)
    theirs.set_weights(weights)
    support.close(ours(x), theirs(x).numpy().astype("float64"), atol=2e-6)


@each
def test_other_norms(kind, kernel, rng):
    """RMS normalization and groups, each place with weights of its own."""
    x = drawn(rng)

    def rms(z, weights, name, config, step):
        scale = reference_recurrent.weight_of(weights, name, "scale")
        return reference.rms_norm(z, scale, axis=-1, epsilon=1e-6)[0]

    def groups(z, weights, name, config, step):
        gamma, beta = (
            reference_recurrent.weight_of(weights, name, part) for part in ("gamma", "beta")
        )
        return reference.group_norm(z, gamma, beta, groups=2, axis=-1, epsilon=1e-2)[0]

    for template, norm in (
        (kn.RMSNormalization(), rms),
        (kn.GroupNormalization(2, epsilon=1e-2), groups),
    ):
        rnn = rnn_of(kind, units=6, arguments={"norm": template})
        assert not template.built
        want, _ = want_of(kind, rnn, x, norm=norm)
        support.close(rnn(x), want, atol=bound(want))


def test_a_template_that_is_in_use(rng):
    """Its shape and weights stay its own, and every layer of Keras will do."""
    template = kn.DynamicTanh(name="elsewhere")
    template(drawn(rng, (3, 2)))
    cell = kn.LayerNormGRUCell(UNITS, norm=template, dtype="mixed_bfloat16")
    norms = [getattr(cell, name) for name in cell.widths]
    assert [norm.name for norm in norms] == list(cell.widths)
    assert all(type(norm) is kn.DynamicTanh and norm is not template for norm in norms)
    assert {norm.dtype_policy.name for norm in norms} == {"mixed_bfloat16"}
    cell.build((None, 7))
    assert [tuple(norm.gamma.shape) for norm in norms] == [(10,), (10,), (5,), (5,)]
    again = kn.LayerNormGRUCell(UNITS, norm=cell.norm)
    assert type(again.kernel_norm) is kn.DynamicTanh


def test_weights_are_in_the_order_of_addons():
    names = {
        "lstm": ["kernel", "recurrent_kernel", "bias"]
        + [
            f"{norm}/{part}"
            for norm in ("kernel_norm", "recurrent_norm", "state_norm")
            for part in ("gamma", "beta")
        ],
        "simple_rnn": ["kernel", "recurrent_kernel", "bias", "gamma"],
    }
    for kind, wanted in names.items():
        assert list(oracle.named(rnn_of(kind))) == wanted


# Arguments.


@each
def test_config(kind):
    own = {"layernorm_epsilon": 1e-2, "gamma_regularizer": "l2"}
    own = own if kind == "simple_rnn" else {"norm_epsilon": 1e-2, "norm_gamma_initializer": "zeros"}
    for arguments in (
        {},
        {**own, "dropout": 0.2, "activation": "relu"},
        {"norm": kn.GroupNormalization(1, gamma_initializer="zeros")},
        {"norm": kn.BatchNormalization(momentum=0.5), "time_steps": 3},
    ):
        cell = CELLS[kind](UNITS, **arguments)
        config = cell.get_config()
        again = CELLS[kind].from_config(config)
        assert again.get_config() == config
        assert ("norm" in config) == ("norm" in arguments)
        assert (
            keras.saving.deserialize_keras_object(
                keras.saving.serialize_keras_object(cell)
            ).get_config()
            == config
        )
        for name in cell.widths:
            assert getattr(again, name).get_config() == getattr(cell, name).get_config()


def test_arguments_of_the_layer_normalization():
    cell = kn.LayerNormLSTMCell(
        3,
        norm_gamma_initializer=keras.initializers.RandomNormal(seed=None),
        norm_beta_initializer="ones",
        norm_epsilon=0.5,
    )
    cell.build((None, 2))
    first, second = cell.kernel_norm, cell.recurrent_norm
    assert (first.gamma.numpy() != second.gamma.numpy()).all()
    assert (first.beta.numpy() == 1).all() and cell.state_norm.epsilon == 0.5
    cell = kn.LayerNormSimpleRNNCell(
        3, gamma_initializer="zeros", gamma_regularizer="l1", gamma_constraint="non_neg"
    )
    assert cell.layernorm.beta is None and cell.layernorm.epsilon == 1e-5
    assert isinstance(cell.layernorm.gamma_regularizer, keras.regularizers.L1)
    assert isinstance(cell.layernorm.gamma_constraint, keras.constraints.NonNeg)
    assert isinstance(cell.layernorm.gamma_initializer, keras.initializers.Zeros)


def test_errors():
    with pytest.raises(ValueError, match=r"`reset_after` must be True: .*reset_after=False\."):
        kn.LayerNormGRUCell(3, reset_after=False)
    for kind, own in (
        ("lstm", {"norm_epsilon": 1e-5}),
        ("gru", {"norm_gamma_initializer": "zeros"}),
        ("lstm", {"norm_beta_initializer": "ones"}),
        ("simple_rnn", {"layernorm_epsilon": 1e-3}),
        ("simple_rnn", {"gamma_constraint": "non_neg"}),
    ):
        (name,) = own
        with pytest.raises(ValueError, match=rf"With `norm` given, .* Received: {{'{name}'"):
            CELLS[kind](3, norm=kn.RMSNormalization(), **own)
    for norm in ("layer", kn.RMSNormalization, {"name": "x"}):
        with pytest.raises(TypeError, match=r"`norm` must be a Keras layer.* Received: norm="):
            kn.LayerNormLSTMCell(3, norm=norm)
    metric = keras.saving.serialize_keras_object(keras.metrics.Mean())
    with pytest.raises(TypeError, match=r"`norm` must be a Keras layer.* of type Mean\."):
        kn.LayerNormLSTMCell(3, norm=metric)
    with pytest.raises(ValueError, match="`groups` must be positive and divide"):
        kn.LayerNormLSTMCell(3, norm=kn.GroupNormalization(4)).build((None, 2))
    cell = kn.LayerNormLSTMCell(3)
    with pytest.raises(ValueError, match=r"The cell has 2 states\. Received: 1 states\."):
        cell(tf.ones((2, 4)), [tf.ones((2, 3))])


# Models.


def model_of(kind, **arguments):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((None,)),
            keras.layers.Embedding(9, 7, mask_zero=True),
            keras.layers.Bidirectional(keras.layers.RNN(CELLS[kind](UNITS, **arguments))),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy")
    return model


def words(rng):
    """Whether the 8 comes before the 7, in padded sequences."""
    x = rng.integers(1, 7, (32, 6))
    x[:, 4:] *= rng.integers(0, 2, (32, 1))
    y = rng.integers(0, 2, 32)
    x[:, 1], x[:, 2] = 7 + y, 8 - y
    return x, y


@pytest.mark.parametrize(
    "kind, jit_compile",
    [
        ("lstm", False),
        pytest.param("gru", True, marks=pytest.mark.slow),
        pytest.param("simple_rnn", False, marks=pytest.mark.slow),
    ],
)
def test_fit(kind, jit_compile, rng):
    model = model_of(kind)
    model.compile(model.optimizer, model.loss, jit_compile=jit_compile)
    losses = model.fit(*words(rng), epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def check_file(build, x, path):
    """What was saved to `path` predicts as the model that `build` makes."""
    model = build()
    want = model.predict(x, verbose=0)
    if path.name == "saved":
        kn.export(model, path)
        loaded = tf.saved_model.load(path)
        support.close(loaded.serve(tf.constant(x, tf.float32)), want.astype("float64"), atol=1e-6)
        return
    if path.name == "model.weights.h5":
        model.save_weights(path)
        again = build()
        again.load_weights(path)
    else:
        model.save(path)
        again = keras.saving.load_model(path)
    np.testing.assert_array_equal(again.predict(x, verbose=0), want)


@pytest.mark.parametrize(
    "kind, name, norm",
    [
        ("gru", "model.keras", kn.RMSNormalization()),
        ("lstm", "model.h5", None),
        ("simple_rnn", "saved", kn.RMSNormalization()),
    ],
)
def test_files(kind, name, norm, rng, tmp_path):
    """Of a bidirectional, masked net; the contract tests save what is trained."""

    def build():
        model = model_of(kind, norm=norm, dropout=0.1)
        model.optimizer.build(model.trainable_variables)
        return model

    check_file(build, words(rng)[0], tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, name, norm",
    [
        ("lstm", "model.keras", None),
        ("gru", "model.keras", kn.RMSNormalization()),
        ("simple_rnn", "model.h5", None),
        ("lstm", "model.h5", kn.RMSNormalization()),
        ("gru", "model.weights.h5", None),
        ("simple_rnn", "saved", None),
        ("lstm", "saved", kn.RMSNormalization()),
    ],
)
def test_files_of_trained_models(kind, name, norm, rng, tmp_path):
    def build():
        model = model_of(kind, norm=norm, dropout=0.1)
        model.train_on_batch(x, y)  # the optimizer has its variables
        return model

    x, y = words(rng)
    check_file(build, x, tmp_path / name)


def test_norms_that_do_not_fit():
    cell = kn.LayerNormLSTMCell(3, norm=keras.layers.Dense(5))
    with pytest.raises(ValueError, match=r"`norm` must give what has the shape of its input"):
        cell.build((None, 4))
    hidden = keras.Sequential([kn.BatchNormalization()])
    with pytest.raises(ValueError, match=r"`norm` with moving statistics must be a `BatchNorm"):
        kn.LayerNormLSTMCell(3, norm=hidden, time_steps=4)
