package kerasnorms.digits

/** The median of the last runs: a model's first one, and one that is interrupted, stand out. */
class Latency(private val window: Int = 20) {
    private val runs = ArrayDeque<Long>()

    val count
        get() = runs.size

    fun add(nanoseconds: Long) {
        if (runs.size == window) runs.removeFirst()
        runs.addLast(nanoseconds)
    }

    fun clear() = runs.clear()

    fun medianMilliseconds(): Double {
        check(runs.isNotEmpty()) { "There is no median of no runs." }
        val sorted = runs.sorted()
        return (sorted[(count - 1) / 2] + sorted[count / 2]) / 2 / 1e6
    }
}
