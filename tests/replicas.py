"""One worker of `test_distribution.py`: a strategy over two replicas, beside one of both batches.

    python tests/replicas.py mirrored|workers KERNEL

"workers" is one of two processes that TF_CONFIG names; "mirrored" has two logical CPUs.
"""

import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_norms as kn

SHAPE = (3, 2, 5)  # of a sample: with space, channels last
# Samples of the two replicas: equal, unequal, and one without any.
BATCHES = ((4, 4), (5, 2), (3, 0))


def strategy_of(kind):
    if kind == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def step(layer, x, dy, mask):
    """y, dx, the weights' gradients: of one replica, or of one process."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, mask=mask)
        loss = tf.reduce_sum(y * dy)
    return y, tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])


def make(**arguments):
    cls = kn.BatchRenormalization if arguments else kn.BatchNormalization
    layer = cls(synchronized=True, momentum=0.5, **arguments)
    layer.build((None, *SHAPE))
    draw = np.random.default_rng(5)
    for weight in (layer.gamma, layer.beta):
        weight.assign(draw.uniform(0.5, 2, weight.shape).astype("float32"))
    return layer


def data(sizes, mean):
    draw = np.random.default_rng(7)
    x = draw.normal(mean, 1, (sum(sizes), *SHAPE)).astype("float32")
    dy = draw.normal(size=x.shape).astype("float32")
    mask = draw.uniform(size=x.shape[:2]) > 0.3
    return x, dy, mask


def per_replica(strategy, whole, sizes):
    """Each replica's samples of the batch."""
    first = np.cumsum([0, *sizes])

    def own(context):
        rank = context.replica_id_in_sync_group
        return tf.constant(whole[first[rank] : first[rank + 1]])

    return strategy.experimental_distribute_values_from_function(own)


def gather(strategy, value, sizes):
    """What this process has of the replicas' samples: their positions, and the values."""
    local = [v.numpy() for v in strategy.experimental_local_results(value)]
    first = np.cumsum([0, *sizes])
    ranks = range(2) if len(local) == 2 else [int(os.environ["WORKER"])]
    positions = np.concatenate([np.arange(first[r], first[r + 1]) for r in ranks])
    return positions, np.concatenate(local)


def close(got, want, what, atol=1e-6):
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=atol * scale, err_msg=what)


def compare(strategy, sizes, mean, masked, **arguments):
    """masked: True, False, or "all" for a batch of which no position counts."""
    what = f"sizes {sizes}, mean {mean:g}, masked {masked}, {arguments}"
    x, dy, mask = data(sizes, mean)
    mask = (mask if masked != "all" else np.zeros_like(mask)) if masked else None
    alone = make(**arguments)
    want_y, (want_dx, want_dgamma, want_dbeta) = step(alone, *map(_tensor, (x, dy, mask)))
    with strategy.scope():
        layer = make(**arguments)

    @tf.function
    def run(x, dy, mask):
        def replica(*args):
            y, (dx, dgamma, dbeta) = step(layer, *args)
            context = tf.distribute.get_replica_context()
            return y, dx, *context.all_reduce("SUM", [dgamma, dbeta])

        return strategy.run(replica, args=(x, dy, mask))

    args = [None if v is None else per_replica(strategy, v, sizes) for v in (x, dy, mask)]
    y, dx, dgamma, dbeta = run(*args)
    for name, value, want in (("y", y, want_y), ("dx", dx, want_dx)):
        positions, got = gather(strategy, value, sizes)
        close(got, want.numpy()[positions], f"{name}, {what}")
    for name, value, want in (("dgamma", dgamma, want_dgamma), ("dbeta", dbeta, want_dbeta)):
        close(strategy.experimental_local_results(value)[0], want.numpy(), f"{name}, {what}")
    for name in layer.moving:
        got, want = (getattr(v, name).numpy() for v in (layer, alone))
        close(got, want, f"{name}, {what}")
    if masked == "all":
        np.testing.assert_array_equal(layer.moving_variance.numpy(), np.ones(SHAPE[-1]))
        return
    exact = x if mask is None else x[mask]
    axes = tuple(range(exact.ndim - 1))
    variance = exact.astype("float64").var(axes)
    moved = layer.moving_variance.numpy()
    if not arguments:  # in renormalization it is the moving standard deviation that is averaged
        np.testing.assert_allclose(moved, 0.5 + 0.5 * variance, rtol=2e-6, err_msg=what)


def _tensor(value):
    return None if value is None else tf.constant(value)


def collectives(strategy):
    """Collective operations in the graph of a step: (with the gradient, forward alone)."""
    with strategy.scope():
        layer = make()
    x, dy, _ = data((4, 4), 0.0)
    args = [per_replica(strategy, v, (4, 4)) for v in (x, dy)]

    def count(function):
        graph = tf.function(lambda *a: strategy.run(function, args=a)).get_concrete_function(*args)
        types = [n.op for f in graph.graph.as_graph_def().library.function for n in f.node_def]
        types += [n.op for n in graph.graph.as_graph_def().node]
        return sum(t.startswith("CollectiveReduce") for t in types)

    return count(lambda x, dy: step(layer, x, dy, None)), count(
        lambda x, dy: layer(x, training=True)
    )


def main():
    kind, kernel = sys.argv[1:]
    strategy = strategy_of(kind)
    assert strategy.num_replicas_in_sync == 2
    kn.set_kernel(kernel)
    for sizes in BATCHES:
        for mean in (0.0, 1e4):
            compare(strategy, sizes, mean, masked=False)
    compare(strategy, (4, 3), 1e4, masked=True)
    compare(strategy, (4, 3), 1e2, masked="all")
    compare(strategy, (4, 4), 1e2, masked=False, renorm_clipping={"rmax": 3.0})
    if kind == "workers":
        assert collectives(strategy) == (2, 1)
    if len(sys.argv) > 3:
        Path(sys.argv[3]).write_text("done")
    print(f"{kind} {kernel} {keras.__version__}: equal")


if __name__ == "__main__":
    main()
