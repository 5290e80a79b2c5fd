"""What every layer of the catalog must do. A new layer is one more row and no new test here.

Tests marked `supports` fill the README's support matrix. A row's fields say what holds for it:
which compiled op it runs, what a mask means, how many inputs it takes. What does not depend on the
layer (control flow, compiling with open sizes) is tested with a row for each way into the library
and with the five classic norms, `rows.THOROUGH`; everything else with every row.
"""

import copy
import importlib
import inspect
import json
import math
import pkgutil

import keras
import numpy as np
import oracle
import pytest
import rows
import support
import tensorflow as tf
from rows import CATALOG, CLASSIC, LAYERS, OTHERS, THOROUGH, each, first, on_kernels
from support import training

import keras_norms as kn

# Layers that take a number for constant which depends on the input, as their papers say: what they
# call a gradient is that of no function, and has no differences to be compared with.
NO_FUNCTION = {
    "BatchRenormalization": "its corrections r and d are constants",
    "PowerNormalization": "its gradient in training goes by moving statistics",
    "SpectralNormalization": "its vectors u and v are constants",
}

# In the form of their examples.
WITHOUT_WEIGHTS = {"LocalResponseNormalization", "PixelNormalization", "UnitNormalization"}

# What a row's field `fused` names.
OPS = {
    "normalize": "KerasNorms>Normalize",
    "moments": "KerasNorms>Moments",
    "scale_shift": "KerasNorms>ScaleShift",
}

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


def missing(defined, table) -> set:
    return set(defined.values()) - {row.cls for row in table}


def defined_layers():
    defined = {}
    for package in (kn.layers, kn.wrappers):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
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
    assert public >= {row.name for row in CATALOG}


def test_fields_of_the_table():
    assert len(CLASSIC) == 5
    for row in CATALOG:
        assert set(row.fused.split(", ")) <= {"", *OPS}
        assert row.mask in ("statistics", "passed on", "steps")
        assert row.form in ("layer", "wrapper", "cell")
        assert row.replicas in ("same", "own")
        assert row.inputs >= 1
        # A layer that keeps statistics is told whether it trains.
        layer = rows.trained(row)
        assert training(row.cls) or not layer.non_trainable_weights
        assert bool(layer.trainable_weights) == (row.name not in WITHOUT_WEIGHTS)


@each
def test_each_layer_has_a_file_of_its_name(row):
    module = importlib.import_module(row.cls.__module__)
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in row.name).strip("_")
    room = "wrappers" if row.form == "wrapper" else "layers"
    assert module.__name__.replace("_", "") == f"keras_norms.{room}.{words}".replace("_", "")
    assert list(layer_classes(module)) == [row.name]


@each
def test_sizes_of_the_example_are_distinct(row):
    """Equal sizes hide a wrong broadcast."""
    assert len(set(row.shape)) == len(row.shape) >= 3
    assert 1 not in row.shape
    shape = rows.make(row).compute_output_shape(rows.shapes(row))
    assert (shape if isinstance(shape[0], int) else shape[0]) == row.shape


@each
def test_docstring_has_formula_and_source(row):
    text = inspect.getdoc(row.cls)
    assert "y = " in text and "Source: " in text and "Args:" in text and "Raises:" in text
    assert row.paper.split(", ")[0] in " ".join(text.split())
    for name in inspect.signature(row.cls.__init__).parameters:
        assert name in ("self", "args", "kwargs") or name in text


# Configuration.


def plain(config, inside=False):
    """Without names and noted sizes of layers inside of another: Keras adds them by itself."""
    if not isinstance(config, dict):
        return list(config) if isinstance(config, tuple) else config
    left_out = ("build_config", "name") if inside else ("build_config",)
    return {k: plain(value, True) for k, value in config.items() if k not in left_out}


@each
@pytest.mark.parametrize("built", [False, True])
def test_config_round_trip(row, built):
    example = rows.make(row, name="norm", dtype="mixed_bfloat16", trainable=False)
    layer = rows.own(row, example)
    before = plain(layer.get_config())
    if built:
        example(rows.data(row))
    config = layer.get_config()
    assert plain(config) == before  # `build` changes no argument
    for name, value in row.arguments.items():
        assert config[name] == value
    again = row.cls.from_config(json.loads(json.dumps(config)))
    assert plain(again.get_config()) == plain(config)
    computes = getattr(again, "layer", again)  # a wrapper's policy is its layer's
    assert (again.name, again.trainable) == ("norm", False)
    assert computes.dtype_policy.name == "mixed_bfloat16"


def own_arguments(cls) -> set[str]:
    """The constructor's arguments, with those that it hands on to our bases."""
    found = set()
    for base in inspect.getmro(cls):
        if base.__module__.startswith("keras_norms.") and "__init__" in vars(base):
            found |= set(inspect.signature(base.__init__).parameters)
            if not any(
                p.kind is p.VAR_KEYWORD
                for p in inspect.signature(base.__init__).parameters.values()
            ):
                break
    return found - {"self", "affine", "args", "arguments", "kwargs", "own"}


# A value for each argument that a configuration may leave out while it is at its default.
CHANGED = {
    "activation": "relu",
    "axis": [1],
    "cast_mode": "llama",
    "freeze_statistics": True,
    "group_size": 3,
    "norm": {"class_name": "RMSNormalization"},
    "offset": 1.0,
    "time_steps": 3,
    "unbiased_moving_variance": True,
    "use_scale": False,
    "virtual_batch_size": 2,
    "weight_names": ["kernel"],
}


@each
def test_config_holds_every_argument(row):
    """What Keras' layer lacks may be left out while at its default: such files load into Keras."""
    theirs = getattr(keras.layers, row.name, None)
    theirs = set(inspect.signature(theirs.__init__).parameters) if theirs else set()
    left_out = own_arguments(row.cls) - set(rows.own(row, rows.make(row)).get_config())
    assert not left_out & theirs
    weights = {weight.name for weight in rows.trained(row).weights}
    for name in left_out:
        if name.endswith("_initializer"):  # a base's, for a weight that this layer has not
            assert name.removesuffix("_initializer") not in weights
            continue
        try:
            config = rows.own(row, rows.make(row, **{name: CHANGED.get(name)})).get_config()
        except (TypeError, ValueError) as error:  # a base's, which this layer fixes
            assert name in str(error)
            continue
        assert config[name] == CHANGED[name]
        assert row.cls.from_config(config).get_config() == config


@each
def test_is_registered(row):
    layer = rows.own(row, rows.make(row, name="norm"))
    name = f"keras_norms>{row.name}"
    assert keras.saving.get_registered_name(row.cls) == name
    assert keras.saving.get_registered_object(name) is row.cls
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is row.cls and again.get_config() == layer.get_config()


@each
def test_clone_and_copy(row):
    layer = rows.trained(row)
    model, x = rows.model_of(row, layer), rows.data(row)
    clone = keras.models.clone_model(model)
    assert plain(rows.norm_of(clone, row).get_config()) == plain(layer.get_config())
    twin = copy.deepcopy(model)
    np.testing.assert_array_equal(rows.outputs_of(twin, x), rows.outputs_of(model, x))
    # A clone is a model with weights of its own, as the constructor makes them.
    different = np.abs(rows.outputs_of(clone, x) - rows.outputs_of(model, x)).max() > 0
    assert different == bool(layer.weights)


# Results.


def bound(layer, y, kernel):
    return support.FORWARD[kernel] * support.size_of(layer, y)


@on_kernels(
    mode=["eager", "graph", pytest.param("xla", marks=pytest.mark.supports("XLA"))],
)
def test_matches_reference(row, kernel, mode):
    """At means up to 1e6, forward and gradients; what multiplies x by a matrix, at mean 0."""
    layer = rows.make(row)
    means = support.MEANS if row in LAYERS else (0,)
    support.check(layer, rows.shapes(row), kernel, mode, means=means, **training(layer))


# The classic ones are tested in files of their own.
@on_kernels([row for row in CATALOG if training(row.cls) and row not in CLASSIC])
def test_inference_matches_reference(row, kernel):
    """By the moving statistics, whatever the batch; they stay as they are."""
    layer = rows.trained(row)
    x, dy = rows.data(row, 2), rows.slopes(row, layer)
    got = support.runner(layer, "graph", training=False)(x, dy)
    support.compare(layer, x, dy, got, kernel, training=False)
    for name, value in support.weights_of(layer).items():
        np.testing.assert_array_equal(value, got.weights[name], err_msg=name)


@pytest.mark.supports("fused CPU")
@pytest.mark.supports("XLA")
@pytest.mark.parametrize("row", [r for r in CATALOG if r.fused], ids=lambda row: row.name)
def test_op_runs_in_graphs_and_inside_xla(row, fused):
    """The graph and the compiled program call the ops that the table names."""
    layer = rows.built(row)

    def call(x):
        return layer(x, **training(layer))

    x = support.tensors(rows.data(row))
    graph = tf.function(call, autograph=False).get_concrete_function(x).graph.as_graph_def()
    functions = [node for function in graph.library.function for node in function.node_def]
    jitted = tf.function(call, jit_compile=True, autograph=False)
    text = jitted.experimental_get_compiler_ir(x)(stage="optimized_hlo")
    for name in row.fused.split(", "):
        assert OPS[name] in {node.op for node in (*graph.node, *functions)}
        assert f'custom_call_target="keras_norms_{name}"' in text


@on_kernels(both=False)
def test_first_and_second_gradients_are_differences(row, kernel):
    """Against central differences, in float64."""
    layer = rows.built(row, dtype="float64")
    mode = {} if row.name in NO_FUNCTION else training(layer)
    draw = np.random.default_rng(2)
    x = support.drawn(draw, 0, rows.shapes(row), "float64")
    weights = support.drawn(draw, 0, layer.compute_output_shape(rows.shapes(row)), "float64")
    sources = [variable.value for variable in layer.trainable_weights[:1]]

    @tf.function(autograph=False)
    def slope(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                outputs = zip(*map(tf.nest.flatten, (layer(x, **mode), weights)), strict=True)
                value = tf.add_n([tf.reduce_sum(y**2 * weight) for y, weight in outputs])
            dx = inner.gradient(value, x)
            size = tf.add_n([tf.reduce_sum(part**2) for part in tf.nest.flatten(dx)])
        d2x, d2weight = outer.gradient(size, (x, sources), unconnected_gradients="zero")
        return value, dx, size, d2x, d2weight

    def dot(gradient, v):
        pairs = zip(*map(tf.nest.flatten, (gradient, v)), strict=True)
        return sum(float(np.sum(g * part)) for g, part in pairs)

    _, dx, _, d2x, d2weight = support.arrays(slope(support.tensors(x)))
    for _ in range(3):
        v = support.drawn(draw, 0, rows.shapes(row), "float64")
        moved = [
            tf.nest.map_structure(lambda a, b, s=sign: a + s * 1e-5 * b, x, v) for sign in (1, -1)
        ]
        up, down = (slope(support.tensors(one)) for one in moved)
        for index, got in ((0, dot(dx, v)), (2, dot(d2x, v))):
            want = float(up[index] - down[index]) / 2e-5
            # Step squared times a third derivative, and rounding of the sums over the step.
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7 * np.abs(float(up[index])))
    for variable, gradient in zip(layer.trainable_weights, d2weight, strict=False):
        v = draw.normal(size=variable.shape)
        start = variable.numpy()
        sizes = []
        for sign in (1, -1):
            variable.assign(start + sign * 1e-5 * v)
            sizes.append(float(slope(support.tensors(x))[2]))
        want = (sizes[0] - sizes[1]) / 2e-5
        np.testing.assert_allclose((gradient * v).sum(), want, rtol=1e-6, atol=1e-7 * sizes[0])


def half_precision(row, dtype, kernel, mode):
    layer = rows.built(row, dtype=f"mixed_{dtype}")
    assert all(weight.dtype == "float32" for weight in layer.weights)
    assert not layer.autocast
    wide = rows.built(row, dtype="float32")
    x = rows.data(row)
    call = support.compiled(lambda x: first(layer(x, **training(layer))), mode)
    for given in (x, tf.nest.map_structure(lambda a: a.astype(dtype), x)):
        weights = support.weights_of(layer)
        got = call(support.tensors(given))
        assert got.dtype == dtype
        dy = rows.slopes(row, wide)
        want = first(support.expected(wide, given, dy, weights=weights)[0].y)
        atol = bound(wide, want, kernel)
        support.close(got, want, atol=atol, rtol=support.ROUNDING[dtype])


@pytest.mark.supports("mixed precision")
@on_kernels(OTHERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_of_what_holds_a_matrix(row, dtype, kernel):
    """Products of half type are off by their own rounding; weights and norms are not half."""
    layer, x = rows.built(row, dtype=f"mixed_{dtype}"), rows.data(row, 0)
    assert all(weight.dtype == "float32" for weight in layer.weights)
    weights = support.weights_of(layer)
    for given in (x, x.astype(dtype)):
        for variable, value in zip(layer.weights, weights.values(), strict=True):
            variable.assign(value)
        got = layer(tf.constant(given), **training(layer))
        assert got.dtype == dtype
        want = support.expected(layer, x, np.zeros_like(x), weights=weights)[0].y
        size = np.sqrt(np.square(want).mean())
        support.close(got, want, atol=16 * support.ROUNDING[dtype] * size)


@pytest.mark.supports("mixed precision")
@on_kernels(LAYERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision(row, dtype, kernel):
    """Half outputs are the float32 result, rounded, also of half inputs; weights stay float32."""
    half_precision(row, dtype, kernel, "eager")


@on_kernels([row for row in THOROUGH if row in LAYERS], both=False)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_inside_xla(row, dtype, kernel):
    half_precision(row, dtype, kernel, "xla")


@on_kernels(LAYERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_policies(row, dtype, kernel):
    """Layers of one type throughout: statistics and moving averages in float32 or wider."""
    layer = rows.built(row, dtype=dtype)
    x = tf.nest.map_structure(
        lambda a: a.astype(dtype),
        rows.data(row, dtype="float64" if dtype == "float64" else "float32"),
    )
    weights = support.weights_of(layer)
    got = first(layer(support.tensors(x), **training(layer)))
    assert got.dtype == dtype
    want = first(support.expected(layer, x, rows.slopes(row, layer), weights=weights)[0].y)
    atol = bound(layer, want, kernel)
    if dtype == "float64":
        atol *= 1e-13 / support.FORWARD[kernel]
    support.close(got, want, atol=atol, rtol=support.ROUNDING[dtype])
    for weight in layer.non_trainable_weights:
        if keras.backend.is_float_dtype(weight.dtype):
            assert weight.dtype == ("float64" if dtype == "float64" else "float32")


def open_sizes(row, jit, kernel):
    layer = rows.built(row)
    # Space is open; the channels are not, and of the last axis the layers normalize over are.
    spec = tf.TensorSpec([None] * (len(row.shape) - 1) + [row.shape[-1]], "float32")
    spec = spec if row.inputs == 1 else [spec] * row.inputs

    @tf.function(input_signature=[spec], autograph=False, jit_compile=jit)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **training(layer))
        return y, tape.gradient(y, x, y)

    for scale in (1, 2, 0):  # the example's sizes, sizes beyond a block of 1024, and nothing
        shape = tuple(size if scale < 2 else 3 + 34 * i for i, size in enumerate(row.shape[:-1]))
        shape = (*((0,) * (scale == 0)), *shape[scale == 0 :], row.shape[-1])
        x = rows.data(row, 1e2 if row in LAYERS else 0, 4, shape=shape)
        weights = support.weights_of(layer)
        y, dx = support.arrays(step(support.tensors(x)))
        for part in (*tf.nest.flatten(y), *tf.nest.flatten(dx)):
            assert part.shape == shape
        if not scale:
            continue
        want, back = support.expected(layer, x, y, weights=weights)
        pairs = zip(*map(tf.nest.flatten, (y, want.y)), strict=True)
        for result, value in pairs:
            atol = bound(layer, value, kernel)
            support.close(result, value, atol=atol, rtol=2.0**-24, what=f"{shape}")
        # The gradient's seed is y itself, rounded: of size 5, its mean does not cancel.
        for result, value in zip(back.at(dx), back.dx_parts, strict=True):
            atol = support.gradient_bound(value, back.scale)
            support.close(result, value, atol=atol, what=f"{shape}")


@on_kernels(both=False)
def test_unknown_batch_and_space(row, kernel):
    """One traced function for every batch, height and width."""
    open_sizes(row, False, kernel)


@on_kernels(THOROUGH, both=False)
def test_unknown_batch_and_space_inside_xla(row, kernel):
    open_sizes(row, True, kernel)


@pytest.mark.supports("functional")
@on_kernels(both=False)
@pytest.mark.parametrize("what", ["batch", "all"])
def test_symbolic_model(row, what, kernel):
    """In a functional model with open sizes; the output's shape and type are told."""
    shape = row.shape[1:] if what == "batch" else (*[None] * (len(row.shape) - 2), row.shape[-1])
    layer = rows.make(row)
    model = rows.model_of(row, layer, shape=shape)
    assert model.outputs[0].shape == (None, *shape)
    assert model.outputs[0].dtype == "float32"
    rows.shuffled(layer)
    x = rows.data(row)
    np.testing.assert_array_equal(model(x), first(layer(support.tensors(x))))


def batch_of_none_or_one(row, size, kernel, mode):
    layer = rows.built(row)
    shape = (size, *row.shape[1:])
    x, dy = rows.data(row, shape=shape), rows.slopes(row, layer, shape=shape)
    got = support.runner(layer, mode, **training(layer))(x, dy)
    for part in (*tf.nest.flatten(got.y), *tf.nest.flatten(got.dx)):
        assert part.shape == shape
    assert all(np.isfinite(weight.numpy()).all() for weight in layer.weights)
    if size:
        support.compare(layer, x, dy, got, kernel)
    else:
        for name, gradient in got.gradients.items():
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape), err_msg=name)
        for name, weight in support.weights_of(layer).items():
            if not name.startswith("vector_"):  # those go by the kernel
                np.testing.assert_array_equal(weight, got.weights[name], err_msg=name)


@on_kernels(both=False)
@pytest.mark.parametrize("size", [0, 1])
def test_batch_of_none_or_one(row, size, kernel):
    """An empty batch moves no statistics."""
    batch_of_none_or_one(row, size, kernel, "eager")


@on_kernels(THOROUGH, both=False)
@pytest.mark.parametrize("size", [0, 1])
def test_batch_of_none_or_one_inside_xla(row, size, kernel):
    batch_of_none_or_one(row, size, kernel, "xla")


@each
def test_wrong_rank_or_size(row):
    layer = rows.make(row)
    layer.build(rows.shapes(row))
    if not any(row.shape[-1] in weight.shape for weight in layer.weights):
        pytest.skip("without weights of the channels any number of them is right")
    wrong = rows.data(row, shape=(*row.shape[:-1], row.shape[-1] + 1))
    with pytest.raises(ValueError):
        layer(wrong)


# Masks.


@pytest.mark.supports("mask")
@on_kernels()
def test_mask_is_passed_on(row, kernel):
    """Warnings are errors here: Keras warns of a layer that drops its mask."""
    layer = rows.trained(row)
    assert layer.supports_masking
    x = [keras.ops.convert_to_tensor(part) for part in tf.nest.flatten(rows.data(row))]
    size = math.prod(row.shape[:2])
    mask = keras.ops.convert_to_tensor(np.arange(size).reshape(row.shape[:2]) % 3 > 0)
    for part in x:
        keras.src.backend.set_keras_mask(part, mask)
    y = first(layer(x if row.inputs > 1 else x[0]))
    np.testing.assert_array_equal(keras.src.backend.get_keras_mask(y), mask)
    if row.mask == "passed on":  # it changes no value
        np.testing.assert_array_equal(y, first(layer(support.tensors(rows.data(row)))))


STATISTICS = [row for row in CATALOG if row.mask == "statistics"]


@pytest.mark.supports("mask")
@pytest.mark.parametrize("row", STATISTICS, ids=lambda row: row.name)
@pytest.mark.parametrize("rank", ["positions", "samples and one axis"])
def test_masked_values_do_not_matter(row, rank):
    """Other numbers, and NaN, where the mask is False change nothing where it is True."""
    shape = row.shape[:-1] if rank == "positions" else row.shape[:2]
    mask = np.random.default_rng(6).uniform(size=shape) < 0.6
    kept = np.broadcast_to(mask.reshape(*shape, *[1] * (len(row.shape) - len(shape))), row.shape)
    x = rows.data(row)
    given = tf.constant(mask) if row.inputs == 1 else [tf.constant(mask)] * row.inputs
    results = []
    for other in (None, 1e3, np.nan):
        layer = rows.built(row)
        changed = tf.nest.map_structure(
            lambda part, o=other: part if o is None else np.where(kept, part, np.float32(o)), x
        )
        y = first(layer(support.tensors(changed), mask=given, **training(layer))).numpy()
        results.append((y[kept], support.weights_of(layer)))
    assert np.isfinite(results[0][0]).all()
    for y, weights in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        for name, weight in weights.items():
            np.testing.assert_array_equal(weight, results[0][1][name], err_msg=name)


@pytest.mark.supports("mask")
@pytest.mark.parametrize("row", STATISTICS, ids=lambda row: row.name)
def test_batch_masked_as_a_whole(row):
    """Finite results, and statistics that stay."""
    layer = rows.built(row)
    before = support.weights_of(layer)
    mask = tf.zeros(row.shape[:-1], "bool")
    mask = mask if row.inputs == 1 else [mask] * row.inputs
    y = first(layer(support.tensors(rows.data(row)), mask=mask, **training(layer)))
    assert np.isfinite(y.numpy()).all()
    for name, weight in support.weights_of(layer).items():
        np.testing.assert_array_equal(weight, before[name], err_msg=name)


# Activations.


@on_kernels(LAYERS)
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "tanh"])
def test_activation(row, activation, kernel):
    """The same as the activation of what the layer gives without one, gradients included."""
    plain, layer = rows.built(row), rows.built(row, activation=activation)
    for weight, other in zip(layer.weights, plain.weights, strict=True):
        weight.assign(other)
    x, dy = rows.data(row, 1), rows.slopes(row, plain)
    got = support.runner(layer, "eager", **training(layer))(x, dy)
    function = keras.activations.get(activation)

    def after(x, **arguments):
        y = plain(x, **arguments)
        return (function(y[0]), *y[1:]) if isinstance(y, list | tuple) else function(y)

    after.weights, after.trainable_weights = plain.weights, plain.trainable_weights
    want = support.runner(after, "eager", **training(layer))(x, dy)
    size = max(np.abs(part).max() for part in tf.nest.flatten(want.y))
    atol = 2 * support.FORWARD[kernel] * max(size, support.size_of(plain, want.y))
    for result, value in zip(*map(tf.nest.flatten, (got.y, want.y)), strict=True):
        support.close(result, value.astype("float64"), atol=atol)
    scale = max(np.abs(part).max() for part in tf.nest.flatten(want.dx))
    for result, value in zip(*map(tf.nest.flatten, (got.dx, want.dx)), strict=True):
        support.close(result, value.astype("float64"), atol=2 * support.GRADIENT * scale)
    for name, value in want.gradients.items():
        atol = 2 * support.GRADIENT * np.abs(value).max() + 8 * support.EPS32 * np.abs(dy[0]).max()
        support.close(got.gradients[name], value.astype("float64"), atol=atol, what=name)


@pytest.mark.parametrize("row", LAYERS, ids=lambda row: row.name)
def test_activation_in_the_configuration(row):
    """A name, a function or a configuration; none by default."""
    assert "activation" not in rows.make(row).get_config() or (
        rows.make(row).get_config()["activation"] is None
    )
    for activation in ("gelu", keras.activations.gelu):
        config = rows.make(row, activation=activation).get_config()
        assert config["activation"] == "gelu"
        again = row.cls.from_config(json.loads(json.dumps(config)))
        assert again.activation is keras.activations.gelu
        assert again.get_config() == config


# Weights: initializers, regularizers, constraints, training.


AFFINE = [row for row in LAYERS if "gamma_initializer" in rows.make(row).get_config()]


@pytest.mark.parametrize("row", AFFINE, ids=lambda row: row.name)
def test_initializers_regularizers_constraints(row):
    layer = rows.make(
        row,
        **{name: True for name in ("center", "scale") if name in own_arguments(row.cls)},
        gamma_initializer=keras.initializers.Constant(0.5),
        beta_initializer=keras.initializers.Constant(-2.0),
        gamma_regularizer=keras.regularizers.L2(0.1),
        beta_regularizer=keras.regularizers.L1(0.2),
        gamma_constraint=keras.constraints.NonNeg(),
        beta_constraint=keras.constraints.MaxNorm(1.0),
    )
    layer(rows.data(row))
    size = layer.gamma.shape[0]
    np.testing.assert_array_equal(layer.gamma, np.full(layer.gamma.shape, 0.5))
    np.testing.assert_array_equal(layer.beta, np.full(layer.beta.shape, -2.0))
    losses = sorted(float(v) for v in layer.losses)
    np.testing.assert_allclose(losses, sorted([0.1 * 0.25 * size, 0.2 * 2 * size]), rtol=1e-6)
    assert isinstance(layer.gamma.constraint, keras.constraints.NonNeg)
    assert isinstance(layer.beta.constraint, keras.constraints.MaxNorm)
    again = row.cls.from_config(layer.get_config())
    assert again.gamma_regularizer.get_config() == layer.gamma_regularizer.get_config()


def fitted(row, jit):
    layer = rows.built(row)
    model = rows.model_of(row, layer)
    model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=jit)
    x, target = rows.data(row), rows.data(row, 0, 2)
    target = first(target)
    zeros = tf.nest.map_structure(np.zeros_like, rows.slopes(row, layer))
    want, _ = support.expected(layer, x, zeros)
    dy = 2 * (first(want.y) - target) / target.size
    dy = type(zeros)([dy, *zeros[1:]]) if isinstance(zeros, list | tuple) else dy
    _, back = support.expected(layer, x, dy)
    start = support.weights_of(layer)
    history = model.fit(x, target, batch_size=len(target), epochs=1, verbose=0)
    loss = np.square(first(want.y) - target).mean()
    np.testing.assert_allclose(history.history["loss"][0], loss, rtol=1e-5)  # float32 mean of 600
    for name in oracle.named(layer, trainable=True):
        old, step = start[name], 0.5 * back.gradients[name]
        atol = 4 * support.GRADIENT * np.abs(step).max() + support.EPS32 * np.abs(old).max()
        support.close(support.weights_of(layer)[name], old - step, atol=atol, what=name)


@on_kernels([row for row in CATALOG if row.name not in WITHOUT_WEIGHTS], both=False)
def test_fit(row, kernel):
    """A step changes each trainable weight by the reference's gradient, times the rate."""
    fitted(row, False)


@on_kernels([row for row in THOROUGH if row.name not in WITHOUT_WEIGHTS], both=False)
def test_fit_inside_xla(row, kernel):
    fitted(row, True)


@on_kernels(both=False)
def test_untrainable_weights_stay(row, kernel):
    layer = rows.trained(row)
    layer.trainable = False
    model = rows.model_of(row, layer, keras.layers.Dense(1))
    model.compile("sgd", "mse")
    before = [weight.numpy() for weight in layer.weights]
    model.train_on_batch(rows.data(row), np.zeros((*row.shape[:-1], 1)))
    for weight, old in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


# Saving.


@pytest.mark.supports("Sequential")
@pytest.mark.parametrize("row", [r for r in CATALOG if r.inputs == 1], ids=lambda row: row.name)
def test_sequential_model(row):
    """Built on its first input, trained, and the same as its layers one after the other."""
    dense = keras.layers.Dense(row.shape[-1])
    layer = rows.make(row)
    if isinstance(layer.compute_output_shape(row.shape)[0], tuple):
        pytest.skip("a layer with several outputs fits no Sequential model")
    model = keras.Sequential([dense, layer])
    model.compile("sgd", "mse")
    x = rows.data(row)
    assert np.isfinite(model.train_on_batch(x, rows.data(row, 0)))
    np.testing.assert_array_equal(model(x), layer(dense(x)))


@each
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("model.keras", marks=pytest.mark.supports(".keras")),
        pytest.param("model.h5", marks=pytest.mark.supports(".h5")),
        pytest.param("model.weights.h5", marks=pytest.mark.supports(".h5")),
    ],
)
def test_save_and_load(row, name, tmp_path):
    """Outputs are bitwise the same after a round trip, on the same path."""

    def network(layer):
        return rows.model_of(row, layer, keras.layers.Dense(2))

    layer = rows.trained(row)
    model, x = network(layer), rows.data(row)
    want = rows.outputs_of(model, x)
    path = tmp_path / name
    if name == "model.weights.h5":
        model.save_weights(path)
        again = network(rows.make(row))
        again.load_weights(path)
    else:
        model.save(path)
        again = keras.saving.load_model(path)
    loaded = rows.norm_of(again, row)
    config = {**plain(layer.get_config()), "name": ""}
    assert {**plain(loaded.get_config()), "name": ""} == config
    np.testing.assert_array_equal(rows.outputs_of(again, x), want)
    for weight, old in zip(loaded.weights, layer.weights, strict=True):
        np.testing.assert_array_equal(weight, old)
        assert weight.name == old.name


@pytest.mark.supports("SavedModel")
@each
def test_saved_model(row, tmp_path):
    """Built-in operations only, and the same results within the bound of two paths."""
    layer = rows.trained(row)
    model, x = rows.model_of(row, layer), rows.data(row)
    kn.export(model, tmp_path / "saved")  # refuses the compiled op
    want = rows.outputs_of(model, x)
    loaded = tf.saved_model.load(tmp_path / "saved")
    got = loaded.serve(support.tensors(x))
    atol = sum(support.FORWARD.values()) * support.size_of(layer, want)
    support.close(first(got), want.astype("float64"), atol=atol)


@pytest.mark.parametrize("row", [r for r in CATALOG if r.fused], ids=lambda row: row.name)
def test_what_one_path_trained_the_other_loads(row, fused, tmp_path):
    """The path is no part of a model; results agree within both bounds."""
    layer = rows.trained(row)
    model, x = rows.model_of(row, layer), rows.data(row)
    want = rows.outputs_of(model, x)
    model.save(tmp_path / "model.keras")
    kn.set_kernel("portable")
    again = keras.saving.load_model(tmp_path / "model.keras")
    atol = sum(support.FORWARD.values()) * support.size_of(layer, want)
    support.close(rows.outputs_of(again, x), want.astype("float64"), atol=atol)


def family():
    """A trained model with one layer of every row, and an input."""
    keras.utils.set_random_seed(3)
    inputs, outputs, x = [], [], []
    for row in CATALOG:
        own = [keras.Input(row.shape[1:]) for _ in range(row.inputs)]
        hidden = [keras.layers.Dense(row.shape[-1])(one) for one in own]
        y = first(rows.make(row)(hidden if row.inputs > 1 else hidden[0]))
        outputs.append(keras.layers.Dense(1, name=row.name)(keras.layers.Flatten()(y)))
        inputs += own
        x += tf.nest.flatten(rows.data(row))
    model = keras.Model(inputs, keras.layers.Add()(outputs))
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.MeanSquaredError())
    target = np.zeros((len(x[0]), 1), "float32")
    losses = [float(model.train_on_batch(x, target)) for _ in range(3)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    return model, x


@pytest.mark.slow
def test_one_model_of_all_layers(tmp_path):
    """It trains, and gives the same after a round trip through each format."""
    model, x = family()
    want = rows.outputs_of(model, x)
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
        again = keras.saving.load_model(tmp_path / name)
        np.testing.assert_array_equal(rows.outputs_of(again, x), want, err_msg=name)
    model.save_weights(tmp_path / "model.weights.h5")
    again = keras.models.clone_model(model)
    again.compile(keras.optimizers.Adam(1e-3), keras.losses.MeanSquaredError())
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(rows.outputs_of(again, x), want)
    kn.export(model, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    got = loaded.serve([tf.constant(part) for part in x])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())  # two paths


# Surroundings.


def in_control_flow(row, inside, jit):
    """The same as outside of it, gradients included."""
    layer = rows.built(row)
    x, weight = first(rows.data(row)), first(rows.data(row, 0, 2))

    def once(v):
        return first(layer([v] * row.inputs if row.inputs > 1 else v)) + 0.5 * v

    def twice(v):
        for _ in range(2):  # a sum: a norm of a norm has next to no gradient
            v = once(v)
        return v

    def loop(x):
        def body(i, v):
            return i + 1, once(v)

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


@on_kernels(both=False)
def test_inside_of_a_branch(row, kernel):
    in_control_flow(row, "cond", False)


# RMS does not subtract a mean: what is captured in a branch is the input itself. A cell is in a
# loop as it is, and TensorFlow cannot put that of Keras' own LSTM into each of these.
FLOWS = [
    row
    for row in CATALOG
    if row.form != "cell" and (row in rows.DISTINCT or row.name == "RMSNormalization")
]


@on_kernels(FLOWS, both=False)
@pytest.mark.parametrize("inside", ["while_loop", "cond", "recompute_grad", "vectorized_map"])
@pytest.mark.parametrize("jit", [False, True])
def test_inside_of_control_flow(row, inside, jit, kernel):
    in_control_flow(row, inside, jit)


REPLICAS = """
import json, sys
import keras, tensorflow as tf
sys.path.insert(0, "tests")
import rows

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert mirrored.num_replicas_in_sync == 2

def drawn(row, seed):
    return rows.first(rows.data(row, 0, seed, shape=(8, *row.shape[1:])))

x = [[drawn(row, seed) for seed in range(row.inputs)] for row in rows.CATALOG]
target = {row.name: drawn(row, 9) for row in rows.CATALOG}

def losses(strategy):
    with strategy.scope():
        keras.utils.set_random_seed(1)
        inputs, outputs = [], {}
        for row in rows.CATALOG:
            own = [keras.Input(row.shape[1:]) for _ in range(row.inputs)]
            hidden = [keras.layers.Dense(row.shape[-1])(one) for one in own]
            outputs[row.name] = rows.first(rows.make(row)(hidden if row.inputs > 1 else hidden[0]))
            inputs.append(own)
        model = keras.Model(inputs, outputs)
        model.compile(keras.optimizers.SGD(0.1), dict.fromkeys(outputs, "mse"))
    history = model.fit(x, target, batch_size=8, epochs=3, shuffle=False, verbose=0).history
    return {name: history[f"{name}_loss"] for name in outputs}

one, two = losses(tf.distribute.get_strategy()), losses(mirrored)
print("FOUND" + json.dumps({name: (one[name], two[name]) for name in one}))
"""


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """By row: losses of three steps on one replica, and on two. All rows are one model."""

    def run():
        return json.loads(support.run_python(REPLICAS).stdout.partition("FOUND")[2])

    return rows.once(tmp_path_factory, "replicas", run)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row, id=row.name, marks=[pytest.mark.supports("sync")] * (row.replicas == "same")
        )
        for row in CATALOG
    ],
)
@pytest.mark.slow
def test_two_replicas(row, replicas):
    """As on one, if a sample's result is its own; else each replica has its own statistics."""
    one, two = replicas[row.name]
    assert np.isfinite(two).all() and two[-1] < two[0]
    if row.replicas == "same":
        np.testing.assert_allclose(two, one, rtol=1e-5)
