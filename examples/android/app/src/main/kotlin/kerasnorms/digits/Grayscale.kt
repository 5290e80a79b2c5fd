package kerasnorms.digits

import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

/** An image: how much ink is on each pixel, 0 to 1, row by row. */
class Grayscale(val width: Int, val height: Int, val ink: FloatArray) {
    init {
        require(ink.size == width * height) {
            "An image of ${width}x$height has ${width * height} pixels. Received: ${ink.size}."
        }
    }

    /**
     * The digit as the data sets show theirs, in `side` x `side` pixels; null if there is no ink.
     *
     * Digits of scikit-learn (8x8) fill the image's height. Those of MNIST (28x28) fill 20 pixels
     * of the height or the width, moved by whole pixels so that their centre of mass is on the
     * middle pixel. Each pixel is the mean over the area that it covers, as in both sets.
     */
    fun fit(side: Int): FloatArray? {
        val rows = (0 until height).filter { y -> (0 until width).any { inked(it, y) } }
        val columns = (0 until width).filter { x -> (0 until height).any { inked(x, it) } }
        if (rows.isEmpty()) return null
        val (top, bottom) = Pair(rows.first(), rows.last() + 1)
        val (left, right) = Pair(columns.first(), columns.last() + 1)

        val large = side >= 16
        val box = if (large) side * 20 / 28.0 else side.toDouble()
        val scale = max(bottom - top, right - left) / box // pixels here for one pixel there
        val x0: Double
        val y0: Double
        if (large) {
            val (x, y) = centreOfMass()
            x0 = left - scale * floor(side / 2 + 1 - (x - left) / scale)
            y0 = top - scale * floor(side / 2 + 1 - (y - top) / scale)
        } else {
            x0 = (left + right - scale * side) / 2
            y0 = (top + bottom - scale * side) / 2
        }
        return FloatArray(side * side) {
            val (row, column) = Pair(it / side, it % side)
            mean(x0 + column * scale, y0 + row * scale, scale)
        }
    }

    private fun inked(x: Int, y: Int) = ink[y * width + x] > 0f

    private fun centreOfMass(): Pair<Double, Double> {
        var (sum, sumX, sumY) = Triple(0.0, 0.0, 0.0)
        for (y in 0 until height) {
            for (x in 0 until width) {
                val mass = ink[y * width + x]
                sum += mass
                sumX += mass * (x + 0.5)
                sumY += mass * (y + 0.5)
            }
        }
        return Pair(sumX / sum, sumY / sum)
    }

    /** Over a square, with the parts of the pixels at its edge; outside of the image is no ink. */
    private fun mean(x0: Double, y0: Double, size: Double): Float {
        var sum = 0.0
        for (y in max(0, floor(y0).toInt()) until min(height, ceil(y0 + size).toInt())) {
            val covered = min(y + 1.0, y0 + size) - max(y.toDouble(), y0)
            for (x in max(0, floor(x0).toInt()) until min(width, ceil(x0 + size).toInt())) {
                val part = covered * (min(x + 1.0, x0 + size) - max(x.toDouble(), x0))
                sum += part * ink[y * width + x]
            }
        }
        return (sum / (size * size)).toFloat()
    }
}
