"""Moments over all replicas of a `tf.distribute` strategy."""

from typing import Any

from keras import ops

from keras_norms.moments import Moments, merge


def over_replicas(moments: Moments, count: Any, whole: Any) -> tuple[Moments, Any]:
    """The moments of all replicas together, and how many elements there are.

    One collective: each replica puts its count, mean and variance into its slot of a tensor of all
    replicas, a sum hands everyone all of them, and Chan's formula merges them. Its gradient is one
    collective, too. Replicas may have unequal counts, or none.

    Args:
        moments: of this replica's elements.
        count: how many those are.
        whole: how many there would be without a mask. A batch that is masked as a whole on all
            replicas counts as a whole.
    """
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return moments, count
    replicas = replica.num_replicas_in_sync
    shape, dtype = tf.shape(moments.variance), moments.variance.dtype
    counts = [tf.fill(shape, tf.cast(c, dtype)) for c in (count, whole)]
    own = tf.stack([*counts, *moments])
    here = tf.range(replicas) == tf.cast(replica.replica_id_in_sync_group, tf.int32)
    here = tf.reshape(here, [replicas] + [1] * own.shape.rank)
    slots = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(here, own, tf.zeros_like(own)))
    counts, wholes, *parts = tf.unstack(slots, axis=1)
    counts, wholes = ops.stop_gradient(counts), ops.stop_gradient(wholes)
    total = tf.reduce_sum(counts[:, 0])
    merged = merge(Moments(*parts), 0, tf.where(total > 0, counts, wholes))
    return Moments(*(statistic[0] for statistic in merged)), total
