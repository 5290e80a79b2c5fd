package kerasnorms.digits

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class TestVectorsTest {
    @Test
    fun readsShapesAndMetadata() {
        val file = TfliteFile(tflite(metadata("other", "no"), metadata("name", "yes")))
        assertEquals("yes", String(file.metadata("name")!!))
        assertEquals("no", String(file.metadata("other")!!))
        assertNull(file.metadata("absent"))
        assertArrayEquals(intArrayOf(1, 8, 8, 1), file.inputShapes.single())
    }

    @Test
    fun readsTestVectors() {
        val json = json(intArrayOf(2, 1), floatArrayOf(0.5f, -3f))
        val vectors = TestVectors.of(TfliteFile(tflite(metadata(TestVectors.METADATA, json))))
        assertEquals(setOf("image"), vectors.inputs.keys)
        assertArrayEquals(intArrayOf(2, 1), vectors.inputs.getValue("image").shape)
        assertArrayEquals(floatArrayOf(0.5f, -3f), vectors.outputs.getValue("y").data, 0f)
    }

    @Test
    fun sizesThatDisagreeAreRefused() {
        val json = json(intArrayOf(3), floatArrayOf(0.5f, -3f))
        val file = TfliteFile(tflite(metadata(TestVectors.METADATA, json)))
        val error = assertThrows(IllegalArgumentException::class.java) { TestVectors.of(file) }
        assertEquals("image of shape [3] has 12 bytes. Received: 8.", error.message)
    }

    @Test
    fun otherTypesAreRefused() {
        val json = json(intArrayOf(2), floatArrayOf(0f, 0f)).replace("float32", "int8")
        val file = TfliteFile(tflite(metadata(TestVectors.METADATA, json)))
        val error = assertThrows(IllegalArgumentException::class.java) { TestVectors.of(file) }
        assertEquals("Test vectors are float32. Received: int8 for image.", error.message)
    }

    @Test
    fun aFileWithoutTestVectorsSaysSo() {
        val file = TfliteFile(tflite())
        val error = assertThrows(IllegalArgumentException::class.java) { TestVectors.of(file) }
        assertEquals("The file has no metadata \"keras_norms.test_vectors\".", error.message)
    }

    @Test
    fun otherFilesAreRefused() {
        for (bytes in listOf(ByteArray(0), ByteArray(100))) {
            assertThrows(IllegalArgumentException::class.java) { TfliteFile(bytes) }
        }
    }

    /** Cut anywhere, or with any byte changed, a file is read or refused: nothing else happens. */
    @Test
    fun brokenFilesAreReadOrRefused() {
        val whole = tflite(metadata(TestVectors.METADATA, json(intArrayOf(1), floatArrayOf(1f))))
        var refused = 0
        val broken =
            whole.indices.map { whole.copyOf(it) } +
                whole.indices.flatMap { k ->
                    listOf(0x7f, 0x80, 0xff).map { flip ->
                        whole.clone().also { it[k] = (it[k].toInt() xor flip).toByte() }
                    }
                }
        for (bytes in broken) {
            try {
                TestVectors.of(TfliteFile(bytes))
            } catch (error: IllegalArgumentException) {
                refused++
            }
        }
        assertTrue("$refused of ${broken.size}", refused >= whole.size)
    }

    private fun json(shape: IntArray, data: FloatArray): String {
        val bytes = ByteBuffer.allocate(4 * data.size).order(ByteOrder.LITTLE_ENDIAN)
        data.forEach { bytes.putFloat(it) }
        val value =
            """{"shape": ${shape.toList()}, "dtype": "float32", "data": "${
                Base64.getEncoder().encodeToString(bytes.array())
            }"}"""
        return """{"inputs": {"image": $value}, "outputs": {"y": $value}}"""
    }

    private fun metadata(name: String, content: String) = Pair(name, content.toByteArray())

    /** A .tflite file with one input and nothing but metadata, written front to back. */
    private fun tflite(vararg metadata: Pair<String, ByteArray>): ByteArray {
        val out = ByteBuffer.allocate(4096).order(ByteOrder.LITTLE_ENDIAN)

        /** A vtable and its table of 32-bit fields, all 0. Returns where the table begins. */
        fun table(fields: Int): Int {
            val size = 4 + 2 * fields
            out.position((out.position() + 3) / 4 * 4 + size % 4)
            val start = out.position()
            out.putShort(size.toShort()).putShort((4 + 4 * fields).toShort())
            for (k in 0 until fields) out.putShort((4 + 4 * k).toShort())
            val table = out.position()
            out.putInt(table - start)
            out.position(table + 4 + 4 * fields)
            return table
        }

        fun link(at: Int, to: Int) = out.putInt(at, to - at)

        fun field(table: Int, number: Int) = table + 4 + 4 * number

        fun vector(at: Int, count: Int): Int {
            out.position((out.position() + 3) / 4 * 4)
            link(at, out.position())
            out.putInt(count)
            return out.position()
        }

        fun bytes(at: Int, content: ByteArray) {
            vector(at, content.size)
            out.put(content)
        }

        fun ints(at: Int, vararg values: Int) {
            vector(at, values.size)
            values.forEach { out.putInt(it) }
        }

        fun tables(at: Int, fields: List<Int>): List<Int> {
            val start = vector(at, fields.size)
            out.position(start + 4 * fields.size)
            return fields.mapIndexed { k, count -> table(count).also { link(start + 4 * k, it) } }
        }

        out.putInt(0).put("TFL3".toByteArray())
        val model = table(7)
        link(0, model)
        for (unused in listOf(1, 3, 5)) ints(field(model, unused))
        val subgraph = tables(field(model, 2), listOf(2)).single()
        ints(field(subgraph, 1), 0)
        val tensor = tables(field(subgraph, 0), listOf(1)).single()
        ints(field(tensor, 0), 1, 8, 8, 1)
        // The first buffer is the empty one, as in every .tflite file.
        val buffers = tables(field(model, 4), List(metadata.size + 1) { 1 })
        ints(field(buffers[0], 0))
        val entries = tables(field(model, 6), metadata.map { 2 })
        metadata.forEachIndexed { k, (name, content) ->
            bytes(field(buffers[k + 1], 0), content)
            bytes(field(entries[k], 0), name.toByteArray())
            out.putInt(field(entries[k], 1), k + 1)
        }
        return out.array().copyOf(out.position())
    }
}
