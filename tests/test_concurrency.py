"""The ops from many threads, in tf.data's, beside XLA's, in pools of one thread, and in copies of
the process: always the bits of a call by itself."""

import concurrent.futures
import itertools
import multiprocessing
import threading

import conftest
import numpy as np
import pytest
import support
import tensorflow as tf
from test_fused import (
    View,
    draw,
    moments,
    moments_grad,
    normalize,
    normalize_grad,
    scale_shift,
    scale_shift_grad,
)

import keras_norms as kn

pytestmark = pytest.mark.usefixtures("fused")

THREADS = 8
CALLS = 50  # of each thread
# Every walk; the larger ones are cut for several threads of the pool, or share one sum.
VIEWS = [
    View((3, 61, 67, 8), 1, 2, 1, 2),
    View((2, 26, 997), 1, 0, 1, 2),
    View((7, 11, 499), 0, 1, 1, 11),
    View((997, 67), 1, 0, 1, 1),
    View((1, 40001), 1, 0, 1, 1),
    View((5, 3, 7), 0, 2, 1, 7),
]


def every_op(view, x, dy, gamma, beta):
    y, mean, variance = normalize(view, x, gamma, beta, activation="silu")
    m, residual, v = moments(view, x)
    scale = tf.ones((*view.samples, *view.channels), gamma.dtype) * 1.1
    grads = normalize_grad(
        view, dy, x, gamma, mean, variance, beta=beta, has_beta=True, activation="silu"
    )
    return [
        *(y, mean, variance, m, residual, v, *grads),
        moments_grad(view, x, m, residual, v, m),
        scale_shift(view, x, scale, scale, scale),
        *scale_shift_grad(view, dy, x, scale, scale),
    ]


def content(tensors) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in tf.nest.flatten(tensors)]


def jobs():
    """(view, inputs) of every walk in every type."""
    types = ("float32", "bfloat16", "float16", "float64")
    return [(view, draw(view, dtype, 3)) for view, dtype in itertools.product(VIEWS, types)]


def from_threads(work):
    """Calls `work(thread)` in many threads that begin together; the first error is raised."""
    begin = threading.Barrier(THREADS)

    def start(thread):
        begin.wait()
        work(thread)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(start, thread) for thread in range(THREADS)]:
            done.result()


def check_threads(calls=CALLS):
    """Different ops, shapes and types at once, while another thread runs a jitted function."""
    todo = jobs()
    want = [content(every_op(view, *inputs)) for view, inputs in todo]
    jitted = tf.function(
        lambda *inputs: every_op(VIEWS[0], *inputs), jit_compile=True, autograph=False
    )
    want_jitted = content(jitted(*todo[0][1]))
    over = threading.Event()

    def background():
        while not over.is_set():
            assert content(jitted(*todo[0][1])) == want_jitted

    def work(thread):
        order = np.random.default_rng(thread).integers(len(todo), size=calls)
        for i in order:
            view, inputs = todo[i]
            assert content(every_op(view, *inputs)) == want[i], (thread, view.shape)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        beside = pool.submit(background)
        try:
            from_threads(work)
        finally:
            over.set()
        beside.result()


def check_functions(calls=CALLS):
    """One tf.function, traced and called by all threads at once, and the gradients of a tape."""
    todo = [(view, inputs) for view, inputs in jobs() if inputs[0].dtype == tf.float32]

    def step(samples, before, channels, groups, x, dy, gamma, beta):
        view = View(tuple(x.shape), samples, before, channels, groups)
        with tf.GradientTape() as tape:
            tape.watch((x, gamma, beta))
            y = normalize(view, x, gamma, beta, activation="gelu")[0]
        return y, tape.gradient(y, (x, gamma, beta), dy)

    def arguments(view, inputs):
        axes = view.axes
        names = ("sample_axes", "before_axes", "channel_axes")
        return (*(axes[name] for name in names), view.groups, *inputs)

    want = [content(step(*arguments(*job))) for job in todo]
    graph = tf.function(step, autograph=False)
    jitted = tf.function(step, autograph=False, jit_compile=True)

    def work(thread):
        for call in range(calls):
            i = (call + thread) % len(todo)
            function = jitted if i == 0 and thread % 2 else graph
            assert content(function(*arguments(*todo[i]))) == want[i], (thread, todo[i][0].shape)

    from_threads(work)


def check_pipelines(count=40):
    """In the threads of tf.data: a layer and the ops, mapped and interleaved."""
    view = View((11, 31, 67), 1, 1, 1, 1)
    layer = kn.LayerNormalization()
    layer.build((None, 31, 67))
    generator = np.random.default_rng(7)
    x = tf.constant(generator.normal(3, 1, (count, *view.shape)), "float32")
    _, dy, gamma, beta = draw(view, "float32", 0)

    def function(x):
        return [*every_op(view, x, dy, gamma, beta), layer(x)]

    graph = tf.function(function, autograph=False)
    want = [content(graph(each)) for each in x]
    data = tf.data.Dataset.from_tensor_slices(x)
    mapped = data.map(function, num_parallel_calls=THREADS)
    assert [content(each) for each in mapped] == want
    interleaved = tf.data.Dataset.range(4).interleave(
        lambda part: data.shard(4, part).map(function, num_parallel_calls=2),
        cycle_length=4,
        num_parallel_calls=4,
    )
    assert [content(each) for each in interleaved] == want


def test_many_threads():
    check_threads()


def test_one_function_in_many_threads():
    check_functions()


def test_in_the_threads_of_tf_data():
    check_pipelines()


# Other processes -------------------------------------------------------------------------------

# One process imports TensorFlow. Copies of it, each for itself, set up its pools; then it uses
# TensorFlow, and is copied again. How each copy ended is printed; one that hangs, its alarm ends.
COPIES = """
import os, signal, sys, warnings
sys.path.insert(0, sys.argv[1])
import keras, tensorflow as tf
warnings.simplefilter("ignore", DeprecationWarning)  # of copying a process that has threads

def copy(name, function, seconds, leave):
    child = os.fork()
    if not child:
        signal.alarm(seconds)
        leave(not function())
    print(name, os.waitpid(child, 0)[1], flush=True)

def with_pools(intra, inter):
    tf.config.threading.set_intra_op_parallelism_threads(intra)
    tf.config.threading.set_inter_op_parallelism_threads(inter)
    import test_concurrency as t
    t.check_threads(calls=5)
    t.check_functions(calls=5)
    t.check_pipelines(count=8)
    return True

for intra, inter in ((1, 1), (2, 1)):
    copy(f"{intra},{inter}", lambda: with_pools(intra, inter), 100, os._exit)

tf.config.threading.set_intra_op_parallelism_threads(2)
import test_concurrency as t
view = t.VIEWS[0]
inputs = t.draw(view, "float32", 3)
want = t.content(t.every_op(view, *inputs))

copy("nothing", lambda: True, 10, os._exit)
copy("exit", lambda: True, 10, sys.exit)  # as a program ends, with all that is done then
copy("op", lambda: t.content(t.every_op(view, *inputs)) == want, 10, os._exit)
assert t.content(t.every_op(view, *inputs)) == want
"""


def test_in_copies_of_a_process():
    """No deadlock with one thread within an op, or for ops beside one another. And a copy of a
    process that has used TensorFlow ends as it should, if it leaves that alone; its pools have no
    threads there: tf.add of a large tensor waits for ever, the ops' callers do the work themselves.
    """
    conftest.need_fused()
    here = conftest.__file__.rpartition("/")[0]
    printed = support.run_python(COPIES, here).stdout
    ended = {name: int(status) for name, status in map(str.split, printed.splitlines())}
    assert ended == dict.fromkeys(("1,1", "2,1", "nothing", "exit", "op"), 0)


def in_a_worker(seed):
    """Of a fresh process: the results for the inputs of that seed."""
    kn.set_kernel("fused")
    return [content(every_op(view, *draw(view, "float32", 3, seed))) for view in VIEWS]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_multiprocessing(method):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        results = list(pool.map(in_a_worker, range(4), timeout=200))
    assert results == [in_a_worker(seed) for seed in range(4)]
