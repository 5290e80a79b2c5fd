package kerasnorms.digits

import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import kotlin.math.abs
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Assume.assumeTrue
import org.junit.Test
import org.junit.runner.RunWith

/** On the device the model says what it said in Keras, by the test vectors in its file. */
@RunWith(AndroidJUnit4::class)
class DigitClassifierTest {
    private val assets = InstrumentationRegistry.getInstrumentation().targetContext.assets

    @Test fun cpuAgreesWithKeras() = agrees(Processor.CPU, 1e-4f)

    /** In float16, which has 11 bits. On a device whose GPU LiteRT does not support this fails. */
    @Test
    fun gpuAgreesWithKeras() {
        assumeTrue("This flavor runs on the CPU alone.", Processor.GPU in processors)
        agrees(Processor.GPU, 1e-2f)
    }

    /** Every output within `tolerance` of the largest one. */
    private fun agrees(processor: Processor, tolerance: Float) {
        val vectors = TestVectors.of(DigitClassifier.file(assets))
        val input = vectors.inputs.values.single()
        val want = vectors.outputs.values.single().data
        val got =
            DigitClassifier.open(assets, processor).use { classifier ->
                val size = classifier.side * classifier.side
                assertTrue("no samples", input.data.isNotEmpty())
                assertEquals("not whole images", 0, input.data.size % size)
                (0 until input.data.size / size).flatMap { sample ->
                    classifier
                        .logits(input.data.copyOfRange(sample * size, (sample + 1) * size))
                        .asList()
                }
            }
        assertEquals(want.size, got.size)
        val allowed = tolerance * want.maxOf { abs(it) }
        for (k in want.indices) assertEquals("output $k", want[k], got[k], allowed)
    }
}
