package kerasnorms.digits

enum class Processor {
    CPU,
    GPU,
}

/**
 * A loaded model with one float32 input and one float32 output. It is opened, run and closed by one
 * thread: a GPU's context belongs to the thread that made it.
 *
 * Each flavor of the app brings one, with `openRunner` and the `processors` that it can run on.
 */
interface Runner : AutoCloseable {
    fun run(input: FloatArray): FloatArray
}
