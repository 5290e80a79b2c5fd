"""The compiled op inside XLA: `jit_compile=True` in functions and in `fit`."""

import itertools
import re

import keras
import numpy as np
import pytest
import support
import tensorflow as tf
import test_fused

import keras_norms as kn

pytestmark = pytest.mark.usefixtures("fused")


@pytest.fixture(autouse=True)
def known_to_xla(fused):
    """Pytest imports keras_norms before anything compiles, so XLA knows the op."""
    assert kn.kernel_info().devices == ("CPU", "XLA:CPU")


def jit(function):
    return tf.function(function, jit_compile=True, autograph=False)


def targets(function, *inputs):
    """Which custom calls stand in the compiled code."""
    text = function.experimental_get_compiler_ir(*inputs)(stage="optimized_hlo")
    return sorted(re.findall(r'custom_call_target="(keras_norms_\w+)"', text))


# The custom calls ------------------------------------------------------------------------------

VIEW = test_fused.View((3, 5, 7, 22), 1, 2, 1, 2)


def by_the_ops(view, x, dy, gamma, beta):
    """Every output of the six ops, the statistics and coefficients made of the data."""
    y, mean, variance = test_fused.normalize(view, x, gamma, beta)
    m, residual, v = test_fused.moments(view, x)
    scale = tf.broadcast_to(gamma, (*view.samples, *view.channels))
    return (
        *(y, mean, variance, m, residual, v),
        *test_fused.normalize_grad(view, dy, x, gamma, mean, variance),
        test_fused.moments_grad(view, x, m, residual, v, m),
        test_fused.scale_shift(view, x, scale, scale, scale),
        *test_fused.scale_shift_grad(view, dy, x, scale, scale),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["nhwc", "nchw", "nhcw", "batch", "rows", "two_channel_axes"])
def test_bitwise_the_same_as_outside(name, dtype):
    """The same kernels on the same data, whatever calls them."""
    view = test_fused.view_of(name)
    inputs = test_fused.draw(view, dtype, 10)
    want = by_the_ops(view, *inputs)
    got = jit(lambda *inputs: by_the_ops(view, *inputs))(*inputs)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.dtype == w.dtype
        np.testing.assert_array_equal(g, w, err_msg=f"output {i}")


@pytest.mark.parametrize("shape", [(0, 5, 7, 22), (3, 0, 7, 22)])
def test_without_elements(shape):
    view = test_fused.View(shape, 1, 2, 1, 2)
    inputs = test_fused.draw(view, "float32", 0)
    got = jit(lambda *inputs: by_the_ops(view, *inputs))(*inputs)
    for g, w in zip(got, by_the_ops(view, *inputs), strict=True):
        np.testing.assert_array_equal(g, w)


def test_compiled_code_holds_the_custom_calls():
    inputs = test_fused.draw(VIEW, "float32", 0)
    names = ("normalize", "normalize_grad", "moments", "moments_grad", "scale_shift")
    want = sorted(f"keras_norms_{name}" for name in (*names, "scale_shift_grad"))
    assert targets(jit(lambda *inputs: by_the_ops(VIEW, *inputs)), *inputs) == want
    kn.set_kernel("portable")
    assert targets(jit(lambda x: kn.ops.group_norm(x, 2)), inputs[0]) == []


LAYERS = {
    "BatchNormalization": (kn.BatchNormalization(), "normalize"),
    "BatchNormalization_frozen": (kn.BatchNormalization(trainable=False), "scale_shift"),
    "GroupNormalization": (kn.GroupNormalization(2), "normalize"),
    "InstanceNormalization": (kn.InstanceNormalization(), "normalize"),
    "LayerNormalization": (kn.LayerNormalization(), "normalize"),
    "RMSNormalization": (kn.RMSNormalization(), "normalize"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_and_its_gradient_are_custom_calls(name):
    layer, target = LAYERS[name]
    shape = (3, 5, 7, 22)
    support.built(layer, shape)

    @jit
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.tanh(layer(x, training=True) if "Batch" in name else layer(x))
        return tape.gradient(y, x)

    want = [f"keras_norms_{target}", f"keras_norms_{target}_grad"]
    assert targets(step, tf.ones(shape)) == want


# Control flow, and functions in functions ------------------------------------------------------


@pytest.fixture
def data(rng):
    """x, and gamma and beta of GroupNormalization(2)."""
    x = rng.normal(3, 1, (3, 5, 7, 22))
    gamma, beta = rng.normal(size=(2, 22))
    return [tf.constant(v, tf.float32) for v in (x, gamma, beta)]


def norm(x, gamma, beta):
    return kn.ops.group_norm(x, 2, gamma, beta)


def in_while_loop(x, gamma, beta):
    """Three times, as a loop."""
    return tf.while_loop(
        lambda i, y: i < 3,
        lambda i, y: (i + 1, norm(y, gamma, beta)),
        (tf.constant(0), x),
        maximum_iterations=3,
    )[1]


def in_cond(x, gamma, beta):
    """Whichever branch: the condition is data."""
    norm_of = lambda x: norm(x, gamma, beta)  # noqa: E731
    return tf.cond(tf.reduce_mean(x) > 0, lambda: norm_of(x), lambda: norm_of(-x) * 2)


def recomputed(x, gamma, beta):
    return tf.recompute_grad(lambda *a: tf.tanh(norm(*a)))(x, gamma, beta)


def mapped(x, gamma, beta):
    return tf.map_fn(lambda row: norm(row[None], gamma, beta)[0], x)


def vectorized(x, gamma, beta):
    return tf.vectorized_map(lambda row: norm(row[None], gamma, beta)[0], x)


# As it is, and without control flow.
CONTROL_FLOW = {
    "while_loop": (in_while_loop, lambda x, g, b: norm(norm(norm(x, g, b), g, b), g, b)),
    "cond": (in_cond, norm),
    "recompute_grad": (recomputed, lambda *a: tf.tanh(norm(*a))),
    "map_fn": (mapped, norm),
    "vectorized_map": (vectorized, norm),
}


def with_gradients(function):
    def both(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
            loss = tf.reduce_sum(tf.square(y) * tf.linspace(0.5, 1.5, 22))
        return y, *tape.gradient(loss, inputs)

    return both


def alone(function):
    return lambda *inputs: [function(*inputs)]


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("name", CONTROL_FLOW)
def test_control_flow(name, mode, data):
    function, plain = CONTROL_FLOW[name]
    if name == "cond":
        data[0] = -data[0]
        plain = lambda x, g, b: norm(-x, g, b) * 2  # noqa: E731
    # Under XLA the loop that replaces vectorized_map, for any op without a rule of its own, has no
    # gradient: its length is unknown there.
    backward = (name, mode) != ("vectorized_map", "xla")
    function, plain = map(with_gradients if backward else alone, (function, plain))
    compiled = support.compiled(function, mode)
    got, want = compiled(*data), plain(*data)
    for what, g, w in zip(("y", "dx", "dgamma", "dbeta"), got, want, strict=backward):
        # The same kernels; sums over rows and products around them in another order, three layers.
        support.close(g, w, atol=16 * support.EPS32 * np.abs(w).max(), what=what)
    if mode == "xla":
        found = (
            {"keras_norms_normalize", "keras_norms_normalize_grad"}
            if backward
            else {"keras_norms_normalize"}
        )
        assert set(targets(compiled, *data)) == found


def test_function_traced_outside_and_called_inside(data):
    """The inner function's trace cannot know what will call it: the op itself goes into XLA."""
    inner = tf.function(with_gradients(norm), autograph=False)
    want = inner(*data)
    outer = jit(lambda *inputs: [2 * v for v in inner(*inputs)])
    for g, w in zip(outer(*data), want, strict=True):
        support.close(g, 2 * w.numpy(), atol=0, rtol=support.EPS32)  # doubling rounds nothing
    assert targets(outer, *data) == ["keras_norms_normalize", "keras_norms_normalize_grad"]


def test_shapes_unknown_until_called(data):
    function = tf.function(
        norm,
        jit_compile=True,
        autograph=False,
        input_signature=[tf.TensorSpec((None, None, None, 22)), *[tf.TensorSpec(22)] * 2],
    )
    x, gamma, beta = data
    for part in (x, x[:1], x[:, :2, 1:]):
        np.testing.assert_array_equal(function(part, gamma, beta), norm(part, gamma, beta))


# Training --------------------------------------------------------------------------------------

SHAPE = (7, 5)


def make(seed=1):
    """Dense layers and all five norms."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Dense(22),
            kn.BatchNormalization(momentum=0.9),
            keras.layers.Activation("gelu"),
            keras.layers.Dense(26),
            kn.GroupNormalization(13),
            keras.layers.Activation("gelu"),
            keras.layers.Dense(17),
            kn.LayerNormalization(),
            keras.layers.Dense(19),
            kn.RMSNormalization(),
            keras.layers.Dense(11),
            kn.InstanceNormalization(),
            keras.layers.Activation("gelu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def samples():
    rng = np.random.default_rng(3)
    x = rng.normal(2, 3, (48, *SHAPE)).astype("float32")
    return x, np.tanh(x[:, :3, 0] - x[:, 2:5, 1]).astype("float32")


def train(kernel, jit_compile):
    """A model after 20 steps, and the loss of each."""
    kn.set_kernel(kernel)
    model = make()
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=jit_compile)
    x, y = (v[:16] for v in samples())
    history = model.fit(x, y, batch_size=16, epochs=20, verbose=0)
    return model, np.array(history.history["loss"])


@pytest.fixture(scope="module")
def curves():
    """20 losses of training, by kernel and jit_compile."""
    test_fused.conftest.need_fused()
    before = kn.get_kernel()
    found = {key: train(*key) for key in [("fused", False), ("fused", True), ("portable", False)]}
    kn.set_kernel(before)
    return found


@pytest.mark.parametrize("key", [("fused", True), ("portable", False)])
def test_training_curves_are_the_same(key, curves):
    losses, want = curves[key][1], curves["fused", False][1]
    assert want.shape == (20,)
    assert want[-1] < 0.6 * want[0]  # something was learnt, so gradients count
    np.testing.assert_allclose(losses, want, rtol=1e-4)  # the promise
    for got, weight in zip(curves[key][0].weights, curves["fused", False][0].weights, strict=True):
        # What the losses are held to, of the weights.
        largest = np.abs(weight.numpy()).max()
        support.close(got, weight.numpy(), atol=1e-4 * max(largest, 0.1), what=weight.path)


def test_fit_under_jit_runs_custom_calls(curves):
    model, _ = curves["fused", True]
    assert model.jit_compile is True
    x, y = (tf.constant(v[:16]) for v in samples())

    @jit
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    want = ["keras_norms_normalize"] * 5 + ["keras_norms_normalize_grad"] * 5
    assert targets(step, x, y) == want


def test_several_steps_in_one_execution(curves):
    model = make()
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=True, steps_per_execution=5)
    x, y = (np.concatenate([v[:16]] * 10) for v in samples())
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    want = curves["fused", True][0]
    assert int(model.optimizer.iterations) == int(want.optimizer.iterations) == 20
    for got, weight in zip(model.weights, want.weights, strict=True):
        largest = np.abs(weight.numpy()).max()
        support.close(got, weight.numpy(), atol=1e-4 * max(largest, 0.1), what=weight.path)


def test_evaluate_and_predict_under_jit(curves):
    """With the last batch smaller, and moving statistics that training has moved."""
    model, _ = curves["fused", True]
    x, y = samples()
    kn.set_kernel("portable")
    want = model(x, training=False).numpy()
    kn.set_kernel("fused")
    got = model.predict(x, batch_size=20, verbose=0)
    # Six Dense layers and five norms of data of about 1, each rounded by a few units.
    atol = 64 * support.EPS32 * np.abs(want).max()
    support.close(got, want, atol=atol)
    loss = model.evaluate(x, y, batch_size=20, verbose=0)
    np.testing.assert_allclose(loss, np.square(want - y).mean(), rtol=64 * support.EPS32)


@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_mixed_precision_trains_under_jit(policy, curves):
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        model, losses = train("fused", True)
    finally:
        keras.mixed_precision.set_dtype_policy(before)
    assert {w.dtype for w in model.weights} == {"float32"}
    want = curves["fused", True][1]
    # Outputs of 8 bits (bfloat16; float16: 11): half a per cent of their size, at each of 20 steps.
    np.testing.assert_allclose(losses, want, rtol=0.05, atol=2.0**-8 * want[0])


# In other processes ----------------------------------------------------------------------------

COMPILED_BEFORE = """
import numpy as np, tensorflow as tf
tf.function(lambda x: x + 1, jit_compile=True)(tf.ones(3))
import keras, keras_norms as kn
info = kn.kernel_info()
assert info.fused and info.devices == ("CPU",), info
x = tf.constant(np.random.default_rng(0).normal(3, 1, (3, 5, 7, 22)), tf.float32)
layer = kn.GroupNormalization(2)
def step(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    return y, tape.gradient(y, x, tf.tanh(x))
def ours(function):
    graph = function.get_concrete_function(x).graph
    return [op.type for op in graph.get_operations() if op.type.startswith("KerasNorms>")]
plain, compiled = (tf.function(step, jit_compile=c, autograph=False) for c in (False, True))
assert ours(plain) == ["KerasNorms>Normalize", "KerasNorms>NormalizeGrad"], ours(plain)
assert ours(compiled) == [], ours(compiled)  # portable: XLA does not know the op
text = compiled.experimental_get_compiler_ir(x)(stage="optimized_hlo")
assert "keras_norms" not in text
for got, want in zip(compiled(x), plain(x)):
    assert np.abs(got - want).max() < 2e-5, np.abs(got - want).max()  # the portable bound
model = keras.Sequential([keras.Input((5,)), kn.BatchNormalization(), keras.layers.Dense(1)])
model.compile("sgd", "mse", jit_compile=True)
loss = model.fit(x[0, 0, :, :5], x[0, 0, :, :1], epochs=3, verbose=0).history["loss"]
assert loss[2] < loss[0], loss
kn.set_kernel("fused")
assert len(layer(x).shape) == 4
try:
    tf.function(lambda x: kn.ops.rms_norm(x), jit_compile=True, autograph=False)(x)
except RuntimeError as error:
    print(error)
"""


def test_after_a_compilation_xla_is_portable():
    """XLA takes note of its ops at the first compilation in the process, and of no later ones."""
    printed = support.run_python(COMPILED_BEFORE).stdout
    assert printed == (
        'The kernel is set to "fused", which cannot serve here: XLA compiled a function before '
        "`import keras_norms`, so it does not know the op: import keras_norms first. "
        '`keras_norms.set_kernel("auto")` falls back to the portable path.\n'
    )


# One process imports TensorFlow; a copy of it runs with four threads, and it itself with one.
THREADS = """
import os, sys, warnings
sys.path.insert(0, sys.argv[1])
import keras, numpy as np, tensorflow as tf
warnings.simplefilter("ignore", DeprecationWarning)  # of copying a process that has threads
four = os.fork()
tf.config.threading.set_intra_op_parallelism_threads(1 if four else 4)
import test_xla
if not four:
    np.savez(sys.argv[3], **{f"jit {i}": v.numpy() for i, v in enumerate(test_xla.large())})
    os._exit(0)
assert os.waitpid(four, 0)[1] == 0
results = {f"jit {i}": v.numpy() for i, v in enumerate(test_xla.large())}
tf.config.optimizer.set_jit(True)
from tensorflow.python.eager import context
context.enable_run_metadata()
clustered = test_xla.clustered()
graphs = context.export_run_metadata().partition_graphs
results["ops"] = sorted({node.op for graph in graphs for node in graph.node})
results |= {f"clustered {i}": v.numpy() for i, v in enumerate(clustered)}
np.savez(sys.argv[2], **results)
"""


BITS = {2: tf.int16, 4: tf.int32, 8: tf.int64}


def large():
    """The ops on data large enough for several threads, under XLA: each geometry in a type or two.

    As bits, which NumPy can keep of any type.
    """
    results = []
    types = itertools.cycle(("float32", "bfloat16", "float64", "float16", "float32"))
    for geometry, dtype in zip(test_fused.LARGE.values(), types, strict=False):
        view = test_fused.View(*geometry)

        def run(x, dy, gamma, beta, view=view):
            plain = by_the_ops(view, x, dy, gamma, beta)
            scale = tf.ones((*view.samples, *view.channels), gamma.dtype) * 1.1
            inputs = x, dy, gamma, beta, *plain[1:3], scale
            return *plain, *test_fused.activated(view, *inputs)

        outputs = jit(run)(*test_fused.draw(view, dtype, 10))
        results += [tf.bitcast(output, BITS[output.dtype.size]) for output in outputs]
    return results


def clustered():
    """A training step of GroupNormalization that XLA may take by itself."""
    x, dy, gamma, beta = test_fused.draw(VIEW, "float32", 10)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.tanh(norm(x * 2, gamma, beta))
        return y, tape.gradient(y, x, dy)

    return tf.function(step, autograph=False)(x)


@pytest.fixture(scope="module")
def threads(tmp_path_factory):
    """What `large` and `clustered` give with one thread, and `large` with four."""
    test_fused.conftest.need_fused()
    folder = tmp_path_factory.mktemp("xla")
    files = folder / "one.npz", folder / "four.npz"
    here = test_fused.conftest.__file__.rpartition("/")[0]
    flags = "--tf_xla_cpu_global_jit --tf_xla_min_cluster_size=1"
    support.run_python(THREADS, here, *files, env={"TF_XLA_FLAGS": flags})
    results = []
    for file in files:
        with np.load(file) as found:
            results.append(dict(found))
    return results


def test_bitwise_the_same_for_any_number_of_threads(threads):
    results = large()
    assert len(results) == len(test_fused.LARGE) * 22
    for i, result in enumerate(results):
        for found in threads:
            np.testing.assert_array_equal(found[f"jit {i}"], result, err_msg=f"output {i}")


def test_automatic_clustering(threads):
    one_thread, _ = threads
    ops = set(one_thread["ops"])
    assert "_XlaRun" in ops and not any(op.startswith("KerasNorms>") for op in ops)
    for i, want in enumerate(clustered()):  # here XLA stands aside
        # tanh and products around the op: some roundings of numbers of about 1.
        atol = 16 * support.EPS32 * np.abs(want).max()
        support.close(one_thread[f"clustered {i}"], want, atol=atol)
