"""Cells whose batch statistics have a row per time step (Cooijmans et al. 2016)."""

import keras
import numpy as np
import pytest
import reference_recurrent
import support
import tensorflow as tf

import keras_norms as kn

CELLS = {
    "lstm": kn.LayerNormLSTMCell,
    "gru": kn.LayerNormGRUCell,
    "simple_rnn": kn.LayerNormSimpleRNNCell,
}
each = pytest.mark.parametrize("kind", CELLS)
SHAPE, UNITS, ROWS = (7, 5, 3), 4, 8  # batch, time, features


def drawn(rng, shape=SHAPE):
    return rng.normal(size=shape).astype("float32")


def norm_of(**arguments):
    return kn.BatchNormalization(**{"momentum": 0.75, "epsilon": 1e-2, **arguments})


def rnn_of(kind="gru", *, rows=ROWS, norm=None, shape=SHAPE, cell=None, **kwargs):
    cell = CELLS[kind](UNITS, norm=norm or norm_of(), time_steps=rows, **(cell or {}))
    rnn = keras.layers.RNN(cell, **{"return_sequences": True, **kwargs})
    rnn.build(shape)
    draw = np.random.default_rng(7)
    for weight in rnn.trainable_weights:
        weight.assign(draw.choice([-1, 1], weight.shape) * draw.uniform(0.5, 2, weight.shape))
    return rnn


def forward(kind, rnn, x, training=True, mask=None):
    """Outputs, and the batch statistics of each step by norm."""
    norm = reference_recurrent.BatchNorm(training, 1e-2)
    weights, config = support.weights_of(rnn), rnn.cell.get_config()
    y, _ = reference_recurrent.run(kind, x, weights, config, norm=norm, mask=mask)
    return y, norm.found


def tables(rnn):
    """The moving statistics by norm."""
    return {
        name: [w.numpy() for w in (norm.moving_mean, norm.moving_variance)]
        for name in rnn.cell.widths
        for norm in [getattr(rnn.cell, name)]
    }


def moved(before, found, momentum=0.75):
    """The tables after each step has moved its row, the last row those beyond it."""
    after = {name: [table.astype("float64") for table in pair] for name, pair in before.items()}
    for name, steps in found.items():
        for t, statistics in enumerate(steps):
            for table, new in zip(after[name], statistics, strict=True):
                row = min(t, len(table) - 1)
                table[row] = table[row] * momentum + new * (1 - momentum)
    return after


def check_tables(rnn, want):
    got = tables(rnn)
    assert set(got) == set(want)
    for name, pair in want.items():
        for table, value in zip(got[name], pair, strict=True):
            # A few roundings in each of some steps.
            support.close(table, value, atol=8e-6 * max(1, np.abs(value).max()), what=name)


@each
@pytest.mark.parametrize(
    "mode, unroll", [("eager", False), ("graph", False), ("graph", True), ("xla", False)]
)
def test_training(kind, mode, unroll, rng):
    """Outputs, and every row moves once a sequence: the last one with what is beyond it."""
    rnn = rnn_of(kind, rows=3, unroll=unroll)
    run = support.compiled(lambda x: rnn(x, training=True), mode)
    for _ in range(2):
        x, before = drawn(rng), tables(rnn)
        assert before["layernorm" if kind == "simple_rnn" else "kernel_norm"][0].shape[0] == 3
        want, found = forward(kind, rnn, x)
        support.close(run(tf.constant(x)), want, atol=2e-5 * np.abs(want).max())
        check_tables(rnn, moved(before, found))


@each
def test_gradients(kind, kernel, rng):
    """Through the batch statistics of every step; parameters are shared over time."""
    rnn = rnn_of(kind)
    x, dy = drawn(rng), drawn(rng, (*SHAPE[:2], UNITS))
    got = support.runner(rnn, "graph", training=True)(x, dy)
    _, back = support.expected(rnn, x, dy, weights=got.weights)
    support.close(got.dx, back.dx, atol=support.GRADIENT * max(1, np.abs(back.dx).max()))
    for name, gradient in got.gradients.items():
        value = back.gradients[name]
        atol = support.GRADIENT * max(1, np.abs(value).max())
        support.close(gradient, value, atol=atol, what=name)


@each
def test_inference(kind, mode, rng):
    """By the rows; steps beyond the last go by it."""
    rnn = rnn_of(kind, rows=3)
    for weight in rnn.non_trainable_weights:
        if len(weight.shape) == 2:
            weight.assign(rng.uniform(0.5, 2, weight.shape))
    before = tables(rnn)
    x = drawn(rng)
    want, _ = forward(kind, rnn, x, training=False)
    got = support.compiled(rnn, mode)(tf.constant(x))
    support.close(got, want, atol=8e-6 * np.abs(want).max())
    check_tables(rnn, before)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("unroll", [False, True])
def test_sequences_of_one_step(unroll, mode, rng):
    """Each batch moves the row, however often the loop calls the first step."""
    shape = (7, 1, 3)
    rnn = rnn_of(unroll=unroll, shape=shape)
    run = support.compiled(lambda x: rnn(x, training=True), mode)
    for _ in range(3):
        x, before = drawn(rng, shape), tables(rnn)
        _, found = forward("gru", rnn, x)
        run(tf.constant(x))
        check_tables(rnn, moved(before, found))


def test_stacked_cells_move_once(rng):
    cells = [kn.LayerNormSimpleRNNCell(UNITS, norm=norm_of(), time_steps=ROWS) for _ in range(2)]
    stack = keras.layers.RNN(keras.layers.StackedRNNCells(cells), return_sequences=True)
    stack.build(SHAPE)
    alone = [keras.layers.RNN(cell, return_sequences=True) for cell in cells]
    x, before = drawn(rng), [tables(one) for one in alone]
    first, found = forward("simple_rnn", alone[0], x)
    want, found_next = forward("simple_rnn", alone[1], first)
    support.close(stack(x, training=True), want, atol=2e-5 * np.abs(want).max())
    for one, was, steps in zip(alone, before, (found, found_next), strict=True):
        check_tables(one, moved(was, steps))


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("unroll", [False, True])
def test_masks(unroll, mode, rng):
    """Steps are those of the longest sample; a step that is masked for all is none.

    Masked samples of other steps count, with what their states would have become.
    """
    rnn = rnn_of(unroll=unroll)
    mask = np.array([[0, 0, 1, 1, 1]] * 6 + [[0, 0, 0, 1, 1]], bool)
    x, before = drawn(rng), tables(rnn)
    run = support.compiled(lambda x: rnn(x, mask=tf.constant(mask), training=True), mode)
    want, found = forward("gru", rnn, x, mask=mask)
    support.close(run(tf.constant(x)), want, atol=2e-5 * np.abs(want).max())
    check_tables(rnn, moved(before, {name: steps[2:] for name, steps in found.items()}))


@pytest.mark.parametrize("norm", [norm_of(), kn.BatchGroupNormalization(2, momentum=0.5)])
@pytest.mark.parametrize("first", [False, True])
def test_what_stands_beside_a_sample_changes_no_prediction(norm, first, rng):
    """Each sample goes by its own steps, wherever the padding is and in both directions."""
    cell = kn.LayerNormLSTMCell(UNITS, norm=norm, time_steps=ROWS)
    rnn = keras.layers.Bidirectional(keras.layers.RNN(cell))
    x, lengths = drawn(rng), np.array([5, 1, 3, 3, 5, 0, 5])
    rnn(x, training=True)
    mask = np.arange(SHAPE[1]) < lengths[:, None]
    mask = mask[:, ::-1] if first else mask
    together = np.asarray(rnn(x, mask=tf.constant(mask)))
    for k, length in enumerate(lengths):
        alone = rnn(x[k : k + 1, mask[k]]) if length else np.zeros((1, 2 * UNITS))
        support.close(together[k : k + 1], np.asarray(alone, "float64"), atol=2e-6)


def test_stateful_goes_on_counting(rng):
    rnn = rnn_of(stateful=True)
    x, before = drawn(rng), tables(rnn)
    _, found = forward("gru", rnn, x)
    rnn(x[:, :2], training=True)
    rnn(x[:, 2:], training=True)
    check_tables(rnn, moved(before, found))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_long_sequences_in_half_precision(dtype, rng):
    """Step 259 is its own, which bfloat16 could not count to; the count is the last state."""
    cell = kn.LayerNormSimpleRNNCell(
        1, norm=norm_of(momentum=0.0), time_steps=300, dtype=f"mixed_{dtype}"
    )
    rnn = keras.layers.RNN(cell, return_state=True, dtype=f"mixed_{dtype}")
    x = np.zeros((2, 260, 1), "float32")
    x[1, 259] = 1
    y, h, count = tf.function(lambda x: rnn(x, training=True))(tf.constant(x))
    assert y.dtype == h.dtype == count.dtype == dtype
    np.testing.assert_array_equal(tf.cast(count, "float32"), [[4, 1, 0]] * 2)
    variances = cell.layernorm.moving_variance.numpy()[:, 0]
    assert cell.layernorm.moving_variance.dtype == "float32"
    np.testing.assert_array_equal(np.flatnonzero(variances), [259, *range(260, 300)])
    assert variances[259] != 1 == variances[260]


def test_all_batches_weigh_the_same(rng):
    """`momentum=None` counts each row's batches."""
    rnn = rnn_of("simple_rnn", rows=4, norm=norm_of(momentum=None))
    total = np.zeros((4, UNITS))
    for length in (5, 2):
        x = drawn(rng)[:, :length]
        _, found = forward("simple_rnn", rnn, x)
        rnn(x, training=True)
        for t, (mean, _) in enumerate(found["layernorm"]):
            total[min(t, 3)] += mean
    counts = np.array([2, 2, 1, 2])
    np.testing.assert_array_equal(rnn.cell.layernorm.batch_count, counts)
    support.close(rnn.cell.layernorm.moving_mean, total / counts[:, None], atol=4e-6)


def test_groups(rng):
    """`BatchGroupNormalization`: a row holds an element per group."""
    norm = kn.BatchGroupNormalization(2, momentum=0.0)
    rnn = rnn_of("simple_rnn", norm=norm)
    layer = rnn.cell.layernorm
    assert layer.moving_mean.shape == (ROWS, 2)
    x = drawn(rng)[:, :1]
    y = rnn(x, training=True)  # momentum 0: inference goes by this batch
    support.close(rnn(x), y.numpy().astype("float64"), atol=4e-6)


def test_frozen(rng):
    x = drawn(rng)
    for norm in (norm_of(freeze_statistics=True), norm_of(trainable=False)):
        rnn = rnn_of(norm=norm)
        before = tables(rnn)
        np.testing.assert_array_equal(rnn(x, training=True), rnn(x))
        check_tables(rnn, before)


def test_empty_batch(rng):
    rnn = rnn_of()
    before = tables(rnn)
    assert rnn(np.zeros((0, 4, 3), "float32"), training=True).shape == (0, 4, UNITS)
    check_tables(rnn, before)


# Models.


def model_of(jit_compile=False):
    keras.utils.set_random_seed(3)
    cell = kn.LayerNormLSTMCell(
        8,
        norm=kn.BatchNormalization(
            momentum=0.8, gamma_initializer=keras.initializers.Constant(0.1)
        ),
        time_steps=6,
    )
    model = keras.Sequential([keras.Input((6, 2)), keras.layers.RNN(cell), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=jit_compile)
    return model


def samples(rng):
    x = drawn(rng, (64, 6, 2))
    return x, x[:, -1, :1] * x[:, 0, 1:]


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fit_and_files(jit_compile, rng, tmp_path):
    model, (x, y) = model_of(jit_compile), samples(rng)
    losses = model.fit(x, y, epochs=10, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    want = model.predict(x, verbose=0)
    if not jit_compile:
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(again.predict(x, verbose=0), want)
        np.testing.assert_allclose(
            again.train_on_batch(x, y), model.train_on_batch(x, y), rtol=1e-6
        )
        want = model.predict(x, verbose=0)
        kn.export(model, tmp_path / "saved")
        loaded = tf.saved_model.load(tmp_path / "saved")
        support.close(loaded.serve(tf.constant(x)), want.astype("float64"), atol=1e-6)


def test_recomputed_statistics(rng):
    """Those of all samples together, row by row; rows that no step reached stay."""
    rnn = rnn_of(rows=7)
    model = keras.Sequential([keras.Input((None, 3)), rnn])
    x = drawn(rng, (12, 5, 3))
    before = tables(rnn)
    paths = kn.recompute_statistics(model, [x[:4], x[4:]], verbose=0)
    assert len(paths) == 4
    # The first norm sees the data itself, so its statistics are those of all samples.
    z = x.astype("float64") @ rnn.cell.kernel.numpy()[:, : 2 * UNITS]
    mean, variance = tables(rnn)["kernel_norm"]
    support.close(mean[:5], z.mean(0), atol=4e-6)
    support.close(variance[:5], z.var(0), atol=2e-5)
    # The others, of the two batches: here the first step, whose state is 0 ...
    for name, pair in tables(rnn).items():
        for table, old in zip(pair, before[name], strict=True):
            np.testing.assert_array_equal(table[5:], old[5:])
            assert (table[:5] != old[:5]).any(1)[1:].all()
    # ... and of one batch all.
    kn.recompute_statistics(model, [x], verbose=0)
    _, found = forward("gru", rnn, x)
    check_tables(
        rnn,
        {
            name: [np.concatenate([[new[k] for new in found[name]], pair[k][5:]]) for k in range(2)]
            for name, pair in before.items()
        },
    )


# Errors.


def test_refused():
    for norm in (
        kn.BatchRenormalization(),
        kn.BatchNormalization(renorm=True),
        kn.BatchNormalization(synchronized=True),
        kn.SwitchableNormalization(statistics=("layer", "batch")),
        kn.PowerNormalization(),
        kn.EvoNormalizationB0(),
        keras.layers.BatchNormalization(),
    ):
        with pytest.raises(
            ValueError, match=r"`norm` with moving statistics must be a `BatchNormalization`"
        ):
            kn.LayerNormGRUCell(3, norm=norm, time_steps=2)
    for steps in (None, 0, 2.0, True):
        with pytest.raises(
            ValueError, match=rf"`time_steps` must be an int of at least 1 .*time_steps={steps}"
        ):
            kn.LayerNormGRUCell(3, norm=norm_of(), time_steps=steps)
    for norm in (None, kn.RMSNormalization()):
        with pytest.raises(ValueError, match=r"`time_steps` must be None .*time_steps=4"):
            kn.LayerNormGRUCell(3, norm=norm, time_steps=4)
    cell = kn.LayerNormGRUCell(3, norm=norm_of(), time_steps=2)
    with pytest.raises(ValueError, match=r"2 states \(the last one counts the steps: zeros"):
        cell(tf.ones((2, 4)), [tf.ones((2, 3))])
