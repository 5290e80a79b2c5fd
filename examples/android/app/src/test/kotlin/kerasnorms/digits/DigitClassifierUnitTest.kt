package kerasnorms.digits

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Test

class DigitClassifierUnitTest {
    @Test
    fun softmaxOfLargeLogitsIsFinite() {
        assertArrayEquals(
            floatArrayOf(0.5f, 0.5f, 0f),
            DigitClassifier.softmax(floatArrayOf(1e4f, 1e4f, -1e4f)),
            1e-6f,
        )
        assertArrayEquals(
            floatArrayOf(0.25f, 0.75f),
            DigitClassifier.softmax(floatArrayOf(0f, Math.log(3.0).toFloat())),
            1e-6f,
        )
    }

    @Test
    fun theMedianIsOfTheLastRuns() {
        val latency = Latency(window = 4)
        assertThrows(IllegalStateException::class.java) { latency.medianMilliseconds() }
        for (milliseconds in listOf(900, 5, 1, 3, 9)) latency.add(milliseconds * 1_000_000L)
        assertEquals(4, latency.count)
        assertEquals(4.0, latency.medianMilliseconds(), 0.0)
    }

    @Test
    fun anEmptySheetIsNothingToRead() = assertNull(Grayscale(30, 40, FloatArray(1200)).fit(8))

    /** A filled rectangle of 2:1 anywhere on the sheet fills the height and half of the width. */
    @Test
    fun digitsFillTheHeightOfSmallImages() {
        val ink = FloatArray(9000) { if (it % 100 in 50..65 && it / 100 in 7..38) 1f else 0f }
        val want = FloatArray(64) { if (it % 8 in 2..5) 1f else 0f }
        assertArrayEquals(want, Grayscale(100, 90, ink).fit(8)!!, 1e-6f)
    }

    /** In the large images they have 20 pixels, and the centre of mass in the middle one. */
    @Test
    fun digitsStandInABoxInLargeImages() {
        val ink = FloatArray(40000) { if (it % 200 in 20..59 && it / 200 in 150..189) 1f else 0f }
        val want = FloatArray(784) { if (it % 28 in 5..24 && it / 28 in 5..24) 1f else 0f }
        assertArrayEquals(want, Grayscale(200, 200, ink).fit(28)!!, 1e-6f)
    }
}
