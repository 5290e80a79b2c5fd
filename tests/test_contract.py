"""What every layer of the catalog must do. A new layer is one more row and no new test here.

Tests marked `supports` fill the README's support matrix.
"""

import copy
import importlib
import inspect
import json
import pkgutil

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

import keras_norms as kn
from keras_norms.catalog import CATALOG

each = pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)


def make(row, **arguments):
    return row.cls(**row.arguments, **arguments)


def data(row, mean=3.0, seed=1, dtype="float32"):
    return np.random.default_rng(seed).normal(mean, 1, row.shape).astype(dtype)


def shuffled(layer, seed=5):
    """Every weight drawn anew, also those that are not trained; variances stay positive."""
    draw = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(draw.uniform(0.5, 2, weight.shape))
    return layer


def training(layer) -> dict:
    """The arguments of a training call."""
    return {"training": True} if "training" in inspect.signature(layer.call).parameters else {}


# The table is whole.


def layer_classes(module):
    """Layers of ours that a module defines, by name, without those that are only a base."""
    found = {
        name: cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and issubclass(cls, keras.Layer)
        and cls.__module__ == module.__name__
    }
    return {name: cls for name, cls in found.items() if not name.startswith("_")}


def missing(defined, rows) -> set:
    return set(defined.values()) - {row.cls for row in rows}


def defined_layers():
    defined = {}
    for module in pkgutil.iter_modules(kn.layers.__path__, "keras_norms.layers."):
        defined |= layer_classes(importlib.import_module(module.name))
    return defined


def test_every_layer_is_in_the_table():
    assert missing(defined_layers(), CATALOG) == set()
    assert len({row.cls for row in CATALOG}) == len(CATALOG) == len(defined_layers())


def test_a_layer_missing_from_the_table_is_found():
    for row in CATALOG:
        rest = [other for other in CATALOG if other is not row]
        assert missing(defined_layers(), rest) == {row.cls}


def test_every_row_is_public():
    for row in CATALOG:
        assert getattr(kn, row.name) is getattr(kn.layers, row.name) is row.cls
        assert row.name in kn.__all__
    public = {name for name in kn.__all__ if inspect.isclass(getattr(kn, name))}
    assert public == {row.name for row in CATALOG}


def test_each_layer_has_a_file_of_its_name():
    for row in CATALOG:
        module = importlib.import_module(row.cls.__module__)
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in row.name).strip("_")
        assert module.__name__.replace("_", "") == f"keras_norms.layers.{words}".replace("_", "")
        assert list(layer_classes(module)) == [row.name]


def test_sizes_of_the_examples_are_distinct():
    """Equal sizes hide a wrong broadcast."""
    for row in CATALOG:
        assert len(set(row.shape)) == len(row.shape) >= 3
        assert 1 not in row.shape
        assert make(row).compute_output_shape(row.shape) == row.shape


@each
def test_docstring_has_formula_and_source(row):
    text = inspect.getdoc(row.cls)
    assert "y = " in text and "Source: " in text and "Args:" in text and "Raises:" in text
    assert row.paper.split(", ")[0] in " ".join(text.split())
    for name in inspect.signature(row.cls.__init__).parameters:
        assert name in ("self", "args", "kwargs") or name in text


# Configuration.


@each
@pytest.mark.parametrize("built", [False, True])
def test_config_round_trip(row, built):
    layer = make(row, name="norm", dtype="mixed_bfloat16", trainable=False)
    before = layer.get_config()
    if built:
        layer(data(row))
    config = layer.get_config()
    assert config == before  # `build` changes no argument
    for name, value in row.arguments.items():
        assert config[name] == value
    again = row.cls.from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config
    assert (again.name, again.dtype_policy.name, again.trainable) == (
        "norm",
        "mixed_bfloat16",
        False,
    )


@each
def test_config_holds_every_argument(row):
    names = set(inspect.signature(row.cls.__init__).parameters) - {"self", "kwargs", "args"}
    assert names <= set(make(row).get_config())


@each
def test_is_registered(row):
    layer = make(row, name="norm")
    name = f"keras_norms>{row.name}"
    assert keras.saving.get_registered_name(row.cls) == name
    assert keras.saving.get_registered_object(name) is row.cls
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is row.cls and again.get_config() == layer.get_config()


@each
def test_clone_and_copy(row):
    model = keras.Sequential([keras.Input(row.shape[1:]), shuffled_after_build(row)])
    clone = keras.models.clone_model(model)
    assert clone.layers[0].get_config() == model.layers[0].get_config()
    twin = copy.deepcopy(model)
    x = data(row)
    np.testing.assert_array_equal(twin.predict(x, verbose=0), model.predict(x, verbose=0))
    # A clone is a model with weights of its own, as the constructor makes them.
    assert np.abs(clone.predict(x, verbose=0) - model.predict(x, verbose=0)).max() > 0


def shuffled_after_build(row, **arguments):
    layer = make(row, **arguments)
    layer.build(row.shape)
    return shuffled(layer)


# Results.


@each
def test_matches_reference(row, kernel, mode):
    layer = make(row)
    support.check(layer, row.shape, kernel, mode, **training(layer))


@each
@pytest.mark.supports("fused op")
def test_fused_is_portable(row, fused):
    """The same within both bounds, forward and gradients, at a mean of 100."""
    x, dy = data(row, 1e2), data(row, 0, 2)
    results = []
    for kernel in ("fused", "portable"):
        kn.set_kernel(kernel)
        layer = support.built(make(row), row.shape)
        results.append(support.runner(layer, "graph", **training(layer))(x, dy))
    gamma, _ = support.parameters(layer)
    atol = sum(support.FORWARD.values()) * support.largest(gamma)
    support.close(results[0].y, results[1].y.astype("float64"), atol=atol)
    for got, want in zip(results[0][1:], results[1][1:], strict=True):
        if want is not None:
            atol = 2 * support.GRADIENT * np.abs(want).max()
            support.close(got, want.astype("float64"), atol=atol)


@each
@pytest.mark.supports("XLA")
def test_op_runs_inside_xla(row, fused):
    """The compiled program calls the op, and gives what it gives outside of XLA."""
    layer = support.built(make(row), row.shape)

    def call(x):
        return layer(x, **training(layer))

    x = tf.constant(data(row))
    jitted = tf.function(call, jit_compile=True, autograph=False)
    text = jitted.experimental_get_compiler_ir(x)(stage="optimized_hlo")
    assert 'custom_call_target="keras_norms_normalize"' in text
    gamma, _ = support.parameters(layer)
    atol = 2 * support.FORWARD["fused"] * support.largest(gamma)
    support.close(jitted(x), call(x).numpy().astype("float64"), atol=atol)


@each
@pytest.mark.supports("second gradients")
def test_first_and_second_gradients_are_differences(row, kernel):
    """Against central differences, in float64."""
    layer = support.built(make(row, dtype="float64"), row.shape)
    draw = np.random.default_rng(2)
    x, weight = draw.normal(size=(2, *row.shape))
    gamma = layer.trainable_weights[0]

    @tf.function(autograph=False)
    def slope(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = tf.reduce_sum(layer(x, **training(layer)) ** 2 * weight)
            dx = inner.gradient(value, x)
            size = tf.reduce_sum(dx**2)
        d2x, d2gamma = outer.gradient(size, (x, gamma.value))
        return value, dx, size, d2x, d2gamma

    _, dx, _, d2x, d2gamma = (v.numpy() for v in slope(tf.constant(x)))
    for _ in range(3):
        v = draw.normal(size=row.shape)
        up, down = (slope(tf.constant(x + sign * 1e-5 * v)) for sign in (1, -1))
        for index, got in ((0, (dx * v).sum()), (2, (d2x * v).sum())):
            want = float(up[index] - down[index]) / 2e-5
            # Step squared times a third derivative, and rounding of the sums over the step.
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7 * np.abs(float(up[index])))
    v = draw.normal(size=gamma.shape)
    start = gamma.numpy()
    sizes = []
    for sign in (1, -1):
        gamma.assign(start + sign * 1e-5 * v)
        sizes.append(float(slope(tf.constant(x))[2]))
    want = (sizes[0] - sizes[1]) / 2e-5
    np.testing.assert_allclose((d2gamma * v).sum(), want, rtol=1e-6, atol=1e-7 * sizes[0])


@each
@pytest.mark.supports("half precision")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision(row, dtype, kernel, mode):
    """Half outputs are the float32 result, rounded; weights stay float32."""
    layer = support.built(make(row, dtype=f"mixed_{dtype}"), row.shape)
    assert all(weight.dtype == "float32" for weight in layer.weights)
    assert not layer.autocast
    wide = support.built(make(row, dtype="float32"), row.shape)
    x = data(row)
    call = support.compiled(lambda x: layer(x, **training(layer)), mode)
    got = call(tf.constant(x))
    assert got.dtype == dtype
    want, _ = support.expected(wide, x, x)
    gamma, _ = support.parameters(layer)
    atol = support.FORWARD[kernel] * support.largest(gamma)
    support.close(got, want.y, atol=atol, rtol=support.ROUNDING[dtype])
    # Half inputs: the same formula of the rounded numbers.
    half = x.astype(dtype)
    want, _ = support.expected(wide, half, half)
    support.close(call(tf.constant(half)), want.y, atol=atol, rtol=support.ROUNDING[dtype])


@each
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_policies(row, dtype, kernel):
    """Layers of one type throughout: statistics and moving averages in float32 or wider."""
    layer = support.built(make(row, dtype=dtype), row.shape)
    x = data(row, dtype="float64" if dtype == "float64" else "float32").astype(dtype)
    got = layer(x, **training(layer))
    assert got.dtype == dtype
    want, _ = support.expected(layer, x, x)
    gamma, _ = support.parameters(layer)
    atol = 1e-13 if dtype == "float64" else support.FORWARD[kernel] * support.largest(gamma)
    support.close(got, want.y, atol=atol, rtol=support.ROUNDING[dtype])
    for weight in layer.non_trainable_weights:
        assert weight.dtype == ("float64" if dtype == "float64" else "float32")


@each
@pytest.mark.supports("open sizes")
@pytest.mark.parametrize("jit", [False, True])
def test_unknown_batch_and_space(row, jit, kernel):
    """One traced function for every batch, height and width."""
    layer = support.built(make(row), row.shape)
    # Space is open; the channels are not, and of the last axis the layers normalize over are.
    spec = tf.TensorSpec([None] * (len(row.shape) - 1) + [row.shape[-1]], "float32")

    @tf.function(input_signature=[spec], autograph=False, jit_compile=jit)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **training(layer))
        return y, tape.gradient(y, x, y)

    draw = np.random.default_rng(4)
    gamma, _ = support.parameters(layer)
    for scale in (1, 2, 0):  # the example's sizes, sizes beyond a block of 1024, and nothing
        shape = tuple(size if scale < 2 else 7 + 37 * i for i, size in enumerate(row.shape[:-1]))
        shape = (*((0,) * (scale == 0)), *shape[scale == 0 :], row.shape[-1])
        x = draw.normal(1e2, 1, shape).astype("float32")
        y, dx = step(tf.constant(x))
        assert y.shape == dx.shape == shape
        want, back = support.expected(layer, x, y)
        atol = support.FORWARD[kernel] * support.largest(gamma)
        support.close(y, want.y, atol=atol, rtol=2.0**-24, what=f"{shape}")
        # The gradient's seed is y itself, rounded: of size 5, its mean does not cancel.
        atol = support.GRADIENT * np.abs(back.dx).max(initial=0) + 8 * support.EPS32 * back.scale
        support.close(dx, back.dx, atol=atol, what=f"{shape}")


@each
@pytest.mark.parametrize("what", ["batch", "all"])
def test_symbolic_model(row, what, kernel):
    """In a functional model with open sizes; the output's shape and type are told."""
    shape = row.shape[1:] if what == "batch" else (*[None] * (len(row.shape) - 2), row.shape[-1])
    inputs = keras.Input(shape)
    layer = make(row)
    outputs = layer(inputs)
    assert outputs.shape == (None, *shape)
    assert outputs.dtype == "float32"
    shuffled(layer)
    model = keras.Model(inputs, outputs)
    x = data(row)
    np.testing.assert_array_equal(model(x), layer(x))


@each
@pytest.mark.parametrize("size", [0, 1])
def test_batch_of_none_or_one(row, size, kernel, mode):
    layer = support.built(make(row), row.shape)
    x = data(row)[:size]
    got = support.runner(layer, mode, **training(layer))(x, x)
    assert got.y.shape == got.dx.shape == x.shape
    assert all(np.isfinite(weight.numpy()).all() for weight in layer.weights)
    if size:
        support.compare(layer, x, x, got, kernel)
    else:
        np.testing.assert_array_equal(got.dgamma, np.zeros(got.dgamma.shape))


@each
@pytest.mark.supports("masks pass")
def test_mask_is_passed_on(row, kernel):
    """Warnings are errors here: Keras warns of a layer that drops its mask."""
    layer = shuffled_after_build(row)
    assert layer.supports_masking
    x = keras.ops.convert_to_tensor(data(row))
    mask = keras.ops.convert_to_tensor(
        np.arange(np.prod(row.shape[:2])).reshape(row.shape[:2]) % 3 > 0
    )
    keras.src.backend.set_keras_mask(x, mask)
    y = layer(x)
    np.testing.assert_array_equal(keras.src.backend.get_keras_mask(y), mask)
    np.testing.assert_array_equal(y, layer(data(row)))  # at inference it changes no value


@each
def test_wrong_rank_or_size(row):
    layer = make(row)
    layer.build(row.shape)
    wrong = np.zeros((*row.shape[:-1], row.shape[-1] + 1), "float32")
    with pytest.raises(ValueError):
        layer(wrong)


# Weights: initializers, regularizers, constraints, training.


@each
def test_initializers_regularizers_constraints(row):
    names = inspect.signature(row.cls.__init__).parameters
    if "gamma_initializer" not in names:
        assert [w.name for w in shuffled_after_build(row).trainable_weights] == ["scale"]
        return
    layer = make(
        row,
        gamma_initializer=keras.initializers.Constant(0.5),
        beta_initializer=keras.initializers.Constant(-2.0),
        gamma_regularizer=keras.regularizers.L2(0.1),
        beta_regularizer=keras.regularizers.L1(0.2),
        gamma_constraint=keras.constraints.NonNeg(),
        beta_constraint=keras.constraints.MaxNorm(1.0),
    )
    layer(data(row))
    size = layer.gamma.shape[0]
    np.testing.assert_array_equal(layer.gamma, np.full(layer.gamma.shape, 0.5))
    np.testing.assert_array_equal(layer.beta, np.full(layer.beta.shape, -2.0))
    losses = sorted(float(v) for v in layer.losses)
    np.testing.assert_allclose(losses, sorted([0.1 * 0.25 * size, 0.2 * 2 * size]), rtol=1e-6)
    assert isinstance(layer.gamma.constraint, keras.constraints.NonNeg)
    assert isinstance(layer.beta.constraint, keras.constraints.MaxNorm)
    again = row.cls.from_config(layer.get_config())
    assert again.gamma_regularizer.get_config() == layer.gamma_regularizer.get_config()


@each
@pytest.mark.supports("fit")
@pytest.mark.parametrize("jit", [False, True])
def test_fit(row, jit, kernel):
    """A step changes each trainable weight by the reference's gradient, times the rate."""
    layer = support.built(make(row), row.shape)
    model = keras.Sequential([keras.Input(row.shape[1:]), layer])
    model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=jit)
    x, target = data(row), data(row, 0, 2)
    want, _ = support.expected(layer, x, x)
    _, back = support.expected(layer, x, 2 * (want.y - target) / x.size)
    start = [w.numpy() for w in layer.trainable_weights]
    history = model.fit(x, target, batch_size=len(x), epochs=1, verbose=0)
    loss = np.square(want.y - target).mean()
    np.testing.assert_allclose(history.history["loss"][0], loss, rtol=1e-5)  # float32 mean of 600
    for weight, old, slope in zip(layer.trainable_weights, start, back[1:3], strict=False):
        step = 0.5 * slope
        atol = 4 * support.GRADIENT * np.abs(step).max() + support.EPS32 * np.abs(old).max()
        support.close(weight, old - step, atol=atol, what=weight.name)


@each
def test_untrainable_weights_stay(row, kernel):
    layer = shuffled_after_build(row)
    layer.trainable = False
    model = keras.Sequential([keras.Input(row.shape[1:]), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    before = [w.numpy() for w in layer.weights]
    model.fit(data(row), np.zeros((*row.shape[:-1], 1)), verbose=0)
    for weight, old in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


# Saving.


@each
@pytest.mark.supports("save and load")
@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.weights.h5"])
def test_save_and_load(row, name, kernel, tmp_path):
    """Predictions are bitwise the same after a round trip, on the same path."""
    model = keras.Sequential(
        [keras.Input(row.shape[1:]), shuffled_after_build(row), keras.layers.Dense(2)]
    )
    x = data(row)
    want = model.predict(x, verbose=0)
    path = tmp_path / name
    if name == "model.weights.h5":
        model.save_weights(path)
        again = keras.Sequential([keras.Input(row.shape[1:]), make(row), keras.layers.Dense(2)])
        again.load_weights(path)
    else:
        model.save(path)
        again = keras.saving.load_model(path)
    assert again.layers[0].get_config()["axis"] == model.layers[0].get_config()["axis"]
    np.testing.assert_array_equal(again.predict(x, verbose=0), want)
    for weight, old in zip(again.layers[0].weights, model.layers[0].weights, strict=True):
        np.testing.assert_array_equal(weight, old)
        assert weight.name == old.name


@each
@pytest.mark.parametrize("first, second", [("fused", "portable"), ("portable", "fused")])
def test_what_one_path_trained_the_other_loads(row, first, second, fused, tmp_path):
    """The path is no part of a model; results agree within both bounds."""
    kn.set_kernel(first)
    model = keras.Sequential([keras.Input(row.shape[1:]), shuffled_after_build(row)])
    want = model.predict(data(row), verbose=0)
    model.save(tmp_path / "model.keras")
    kn.set_kernel(second)
    again = keras.saving.load_model(tmp_path / "model.keras")
    atol = 2 * sum(support.FORWARD.values())  # gamma is at most 2
    support.close(again.predict(data(row), verbose=0), want.astype("float64"), atol=atol)


# Surroundings.


@each
@pytest.mark.parametrize("inside", ["while_loop", "cond", "recompute_grad", "vectorized_map"])
@pytest.mark.parametrize("jit", [False, True])
def test_inside_of_control_flow(row, inside, jit, kernel):
    """The same as outside of it, gradients included."""
    layer = support.built(make(row), row.shape)
    x, weight = data(row), data(row, 0, 2)

    def twice(x):
        for _ in range(2):  # a sum: a norm of a norm has next to no gradient
            x = layer(x) + 0.5 * x
        return x

    def loop(x):
        def body(i, v):
            return i + 1, layer(v) + 0.5 * v

        return tf.while_loop(lambda i, _: i < 2, body, (0, x), maximum_iterations=2)[1]

    function = {
        "while_loop": loop,
        "cond": lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: twice(x), lambda: x),
        "recompute_grad": tf.recompute_grad(twice),
        "vectorized_map": lambda x: tf.vectorized_map(twice, x[None])[0],
    }[inside]

    def step(x, function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
            value = tf.reduce_sum(y * weight)
        return y, tape.gradient(value, x)

    got = tf.function(lambda x: step(x, function), jit_compile=jit, autograph=False)(tf.constant(x))
    for result, want in zip(got, step(tf.constant(x), twice), strict=True):
        atol = 2 * support.GRADIENT * np.abs(want).max()
        support.close(result, want.numpy().astype("float64"), atol=atol)


def test_two_replicas():
    """Layers that keep samples apart train on two replicas as on one."""
    script = """
    import keras, numpy as np, tensorflow as tf, keras_norms as kn
    from keras_norms.catalog import CATALOG

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert mirrored.num_replicas_in_sync == 2

    def losses(row, strategy):
        draw = np.random.default_rng(3)
        x, target = draw.normal(size=(2, 8, *row.shape[1:])).astype("float32")
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = keras.Sequential([
                keras.Input(row.shape[1:]), keras.layers.Dense(row.shape[-1]),
                row.cls(**row.arguments)])
            model.compile(keras.optimizers.SGD(0.1), "mse")
        history = model.fit(x, target, batch_size=8, epochs=3, shuffle=False, verbose=0)
        return history.history["loss"]

    for row in CATALOG:
        one, two = losses(row, tf.distribute.get_strategy()), losses(row, mirrored)
        assert np.isfinite(two).all() and two[-1] < two[0], (row.name, two)
        if row.name != "BatchNormalization":  # each replica has statistics of its own
            np.testing.assert_allclose(two, one, rtol=1e-5, err_msg=row.name)
        print(row.name)
    """
    lines = support.run_python(script).stdout.split()
    assert lines == [row.name for row in CATALOG]
