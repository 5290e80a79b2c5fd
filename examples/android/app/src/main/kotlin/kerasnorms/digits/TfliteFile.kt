package kerasnorms.digits

import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * What the app has to know of a .tflite file and the runtime does not tell: the shapes of its
 * inputs and its metadata. A .tflite file is a FlatBuffer; the numbers of fields are those of
 * LiteRT's schema (`tflite/schema/schema.fbs`), which never change.
 *
 * @throws IllegalArgumentException where the bytes are no .tflite file, or a broken one.
 */
class TfliteFile(bytes: ByteArray) {
    private val data = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN)
    private val model: Int

    init {
        require(bytes.size >= 8 && String(bytes, 4, 4, Charsets.ISO_8859_1) == "TFL3") {
            "A .tflite file has the identifier TFL3 in bytes 4 to 7. Received: ${bytes.size} bytes."
        }
        model = checked { pointer(0) }
    }

    /** The shapes of the inputs of the first subgraph, in its order. */
    val inputShapes: List<IntArray> = checked {
        val subgraph = tables(model, SUBGRAPHS).first()
        val tensors = tables(subgraph, SUBGRAPH_TENSORS)
        ints(subgraph, SUBGRAPH_INPUTS).map { ints(tensors[it], TENSOR_SHAPE) }
    }

    /** The metadata of that name, or null where there is none. */
    fun metadata(name: String): ByteArray? = checked {
        tables(model, METADATA)
            .find { String(bytes(it, METADATA_NAME), Charsets.UTF_8) == name }
            ?.let { content(tables(model, BUFFERS)[int(it, METADATA_BUFFER)]) }
    }

    /** Of a file beyond 2 GB the data stand behind the FlatBuffer, where two fields say. */
    private fun content(buffer: Int): ByteArray {
        val at = field(buffer, BUFFER_OFFSET)?.let { data.getLong(it) } ?: 0
        if (at <= 1) return bytes(buffer, BUFFER_DATA)
        val size = field(buffer, BUFFER_SIZE)?.let { data.getLong(it) } ?: 0
        return slice(Math.toIntExact(at), Math.toIntExact(size))
    }

    private fun pointer(at: Int): Int = Math.addExact(at, data.getInt(at))

    /** Where the field of that number stands in the table, or null where it has its default. */
    private fun field(table: Int, number: Int): Int? {
        val fields = Math.subtractExact(table, data.getInt(table))
        val entry = 4 + 2 * number
        if (entry >= data.getShort(fields).toUShort().toInt()) return null
        val offset = data.getShort(fields + entry).toUShort().toInt()
        return if (offset == 0) null else table + offset
    }

    private fun int(table: Int, number: Int): Int =
        field(table, number)?.let { data.getInt(it) } ?: 0

    /** Where a vector's elements begin, and how many there are. */
    private fun vector(table: Int, number: Int, elementSize: Int): Pair<Int, Int> {
        val at = pointer(field(table, number) ?: return Pair(0, 0))
        val count = data.getInt(at)
        if (count < 0 || count > (data.limit() - at - 4) / elementSize) {
            throw IndexOutOfBoundsException("a vector of $count elements at byte $at")
        }
        return Pair(at + 4, count)
    }

    private fun ints(table: Int, number: Int): IntArray {
        val (at, count) = vector(table, number, 4)
        return IntArray(count) { data.getInt(at + 4 * it) }
    }

    private fun tables(table: Int, number: Int): List<Int> {
        val (at, count) = vector(table, number, 4)
        return List(count) { pointer(at + 4 * it) }
    }

    private fun bytes(table: Int, number: Int): ByteArray {
        val (at, count) = vector(table, number, 1)
        return slice(at, count)
    }

    private fun slice(at: Int, size: Int): ByteArray {
        if (size < 0 || at < 0 || at > data.limit() - size) {
            throw IndexOutOfBoundsException("$size bytes at byte $at")
        }
        return data.array().copyOfRange(at, at + size)
    }

    private fun <T> checked(read: () -> T): T =
        try {
            read()
        } catch (error: IndexOutOfBoundsException) {
            throw IllegalArgumentException(broken(error), error)
        } catch (error: ArithmeticException) {
            throw IllegalArgumentException(broken(error), error)
        } catch (error: NoSuchElementException) {
            throw IllegalArgumentException(broken(error), error)
        }

    private fun broken(error: Exception) =
        "The .tflite file of ${data.limit()} bytes is broken: ${error.message}."

    private companion object {
        const val SUBGRAPHS = 2
        const val BUFFERS = 4
        const val METADATA = 6
        const val SUBGRAPH_TENSORS = 0
        const val SUBGRAPH_INPUTS = 1
        const val TENSOR_SHAPE = 0
        const val METADATA_NAME = 0
        const val METADATA_BUFFER = 1
        const val BUFFER_DATA = 0
        const val BUFFER_OFFSET = 1
        const val BUFFER_SIZE = 2
    }
}
