package kerasnorms.digits

import android.content.res.AssetManager
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import kerasnorms.customop.NormsDelegate
import org.tensorflow.lite.Interpreter

val processors = setOf(Processor.CPU)

fun openRunner(assets: AssetManager, name: String, processor: Processor): Runner {
    require(processor in processors) { "The custom ops run on the CPU. Received: $processor." }
    return InterpreterRunner(assets, name)
}

/** A model with custom nodes, run by LiteRT's Interpreter with a delegate that runs those. */
private class InterpreterRunner(assets: AssetManager, name: String) : Runner {
    private val delegate = NormsDelegate()
    private val interpreter =
        try {
            Interpreter(map(assets, name), Interpreter.Options().addDelegate(delegate))
        } catch (error: Exception) {
            delegate.close()
            throw error
        }
    private val input = floats(interpreter.getInputTensor(0).numBytes())
    private val output = floats(interpreter.getOutputTensor(0).numBytes())

    override fun run(input: FloatArray): FloatArray {
        this.input.rewind()
        this.input.asFloatBuffer().put(input)
        output.rewind()
        interpreter.run(this.input, output)
        output.rewind()
        return FloatArray(output.capacity() / 4).also { output.asFloatBuffer().get(it) }
    }

    override fun close() {
        interpreter.close() // before its delegate
        delegate.close()
    }

    private companion object {
        fun floats(bytes: Int): ByteBuffer =
            ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder())

        fun map(assets: AssetManager, name: String): ByteBuffer =
            assets.openFd(name).use { asset ->
                FileInputStream(asset.fileDescriptor).use {
                    it.channel.map(
                        FileChannel.MapMode.READ_ONLY,
                        asset.startOffset,
                        asset.declaredLength,
                    )
                }
            }
    }
}
