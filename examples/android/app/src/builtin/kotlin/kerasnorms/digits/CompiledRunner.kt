package kerasnorms.digits

import android.content.res.AssetManager
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

val processors = setOf(Processor.CPU, Processor.GPU)

fun openRunner(assets: AssetManager, name: String, processor: Processor): Runner =
    CompiledRunner(assets, name, processor)

/** A model of built-in operations, run by LiteRT's CompiledModel. */
private class CompiledRunner(assets: AssetManager, name: String, processor: Processor) : Runner {
    // One accelerator alone: with the CPU as a second one LiteRT runs there what the GPU refuses,
    // and says so nowhere but in the log.
    private val model =
        CompiledModel.create(
            assets,
            name,
            CompiledModel.Options(
                when (processor) {
                    Processor.CPU -> Accelerator.CPU
                    Processor.GPU -> Accelerator.GPU
                }
            ),
        )
    private val inputs = model.createInputBuffers()
    private val outputs = model.createOutputBuffers()

    override fun run(input: FloatArray): FloatArray {
        inputs.single().writeFloat(input)
        model.run(inputs, outputs)
        return outputs.single().readFloat()
    }

    override fun close() {
        (inputs + outputs).forEach { it.close() }
        model.close()
    }
}
