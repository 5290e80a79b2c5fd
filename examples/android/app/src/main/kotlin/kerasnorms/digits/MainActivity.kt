package kerasnorms.digits

import android.app.Activity
import android.os.Bundle
import android.view.View
import android.widget.Button
import android.widget.RadioButton
import android.widget.RadioGroup
import android.widget.TextView
import java.util.concurrent.Executors

/** Shows what the model reads of what is drawn. One other thread does all of the model's work. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private val latency = Latency() // the worker's, as is the classifier
    private var classifier: DigitClassifier? = null

    private lateinit var prediction: TextView
    private lateinit var probabilities: TextView
    private lateinit var speed: TextView
    private lateinit var error: TextView

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_main)
        prediction = findViewById(R.id.prediction)
        probabilities = findViewById(R.id.probabilities)
        speed = findViewById(R.id.latency)
        error = findViewById(R.id.error)

        val drawing = findViewById<DrawingView>(R.id.drawing)
        drawing.onStroke = ::read
        findViewById<Button>(R.id.clear).setOnClickListener {
            drawing.clear()
            show(getString(R.string.draw), "", "")
        }
        findViewById<RadioButton>(R.id.gpu).isEnabled = Processor.GPU in processors
        findViewById<RadioGroup>(R.id.processor).setOnCheckedChangeListener { _, checked ->
            open(if (checked == R.id.cpu) Processor.CPU else Processor.GPU)
            drawing.clear()
        }
        open(Processor.CPU)
    }

    override fun onDestroy() {
        worker.execute { classifier?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    private fun open(processor: Processor) {
        show(getString(R.string.draw), "", "")
        error.visibility = View.GONE
        work(processor.name) {
            classifier?.close()
            classifier = null
            latency.clear()
            classifier = DigitClassifier.open(assets, processor)
        }
    }

    private fun read(image: Grayscale) {
        work(getString(R.string.draw)) {
            val reading = classifier?.read(image) ?: return@work
            latency.add(reading.nanoseconds)
            val (milliseconds, runs) = Pair(latency.medianMilliseconds(), latency.count)
            runOnUiThread {
                show(
                    reading.digit.toString(),
                    reading.probabilities.withIndex().joinToString("\n") { (digit, probability) ->
                        val bar = "█".repeat((20 * probability).toInt())
                        getString(R.string.probability, digit, 100 * probability, bar)
                    },
                    getString(R.string.latency, milliseconds, runs),
                )
            }
        }
    }

    private fun show(digit: String, all: String, time: String) {
        prediction.text = digit
        probabilities.text = all
        speed.text = time
    }

    /** What fails is shown: a model or a library that is missing, a GPU that refuses the model. */
    private fun work(what: String, task: () -> Unit) {
        worker.execute {
            try {
                task()
            } catch (failure: Exception) {
                fail(what, failure)
            } catch (failure: LinkageError) {
                fail(what, failure)
            }
        }
    }

    private fun fail(what: String, failure: Throwable) {
        runOnUiThread {
            error.text = getString(R.string.failed, what, failure.toString())
            error.visibility = View.VISIBLE
        }
    }
}
