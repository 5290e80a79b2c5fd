package kerasnorms.digits

import android.content.res.AssetManager
import kotlin.math.exp
import kotlin.math.roundToInt
import kotlin.math.sqrt

/** What a model reads, how sure it is of each digit, and how long one run took. */
class Reading(val digit: Int, val probabilities: FloatArray, val nanoseconds: Long)

/** Reads digits with a model of `examples/digits.py`, trained on 8x8 or on 28x28 pixels. */
class DigitClassifier(file: TfliteFile, private val runner: Runner) : AutoCloseable {
    /** Of the images that the model reads. */
    val side: Int

    init {
        val shape = file.inputShapes.singleOrNull()
        val size = shape?.fold(1) { product, size -> product * size } ?: 0
        side = sqrt(size.toDouble()).roundToInt()
        require(size > 0 && side * side == size) {
            "The model reads one square image. Received: inputs of shapes " +
                "${file.inputShapes.map { it.toList() }}."
        }
    }

    /** Null if there is nothing on the image. */
    fun read(image: Grayscale): Reading? {
        val input = image.fit(side) ?: return null
        val start = System.nanoTime()
        val logits = logits(input)
        val nanoseconds = System.nanoTime() - start
        val probabilities = softmax(logits)
        return Reading(logits.indices.maxBy { logits[it] }, probabilities, nanoseconds)
    }

    /** What the model says of an image of `side` x `side` pixels. */
    fun logits(image: FloatArray): FloatArray {
        require(image.size == side * side) {
            "The model reads ${side}x$side pixels. Received: ${image.size}."
        }
        return runner.run(image)
    }

    override fun close() = runner.close()

    companion object {
        const val ASSET = "digits.tflite"

        fun file(assets: AssetManager) = TfliteFile(assets.open(ASSET).use { it.readBytes() })

        fun open(assets: AssetManager, processor: Processor): DigitClassifier {
            val runner = openRunner(assets, ASSET, processor)
            return try {
                DigitClassifier(file(assets), runner)
            } catch (error: Exception) {
                runner.close()
                throw error
            }
        }

        fun softmax(logits: FloatArray): FloatArray {
            val largest = logits.max() // exp() of what is left is at most 1
            val parts = FloatArray(logits.size) { exp(logits[it] - largest) }
            val sum = parts.sum()
            return FloatArray(parts.size) { parts[it] / sum }
        }
    }
}
