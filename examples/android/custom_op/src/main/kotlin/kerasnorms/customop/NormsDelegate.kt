package kerasnorms.customop

import org.tensorflow.lite.Delegate

/** Runs a model's nodes `KerasNorms>Normalize`. Close it after the interpreters that use it. */
class NormsDelegate : Delegate, AutoCloseable {
    private var handle = create()

    override fun getNativeHandle(): Long {
        check(handle != 0L) { "The delegate is closed." }
        return handle
    }

    override fun close() {
        if (handle != 0L) destroy(handle)
        handle = 0
    }

    /** @throws IllegalStateException with the library's own words. */
    private external fun create(): Long

    private external fun destroy(handle: Long)

    private companion object {
        init {
            System.loadLibrary("keras_norms_jni")
        }
    }
}
