package kerasnorms.digits

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.graphics.Path
import android.util.AttributeSet
import android.view.MotionEvent
import android.view.View
import kotlin.math.max
import kotlin.math.min
import kotlin.math.roundToInt

/** A sheet to draw on with a finger. */
class DrawingView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** Gets the drawing after each stroke. */
    var onStroke: (Grayscale) -> Unit = {}

    private val path = Path()
    private val paint =
        Paint(Paint.ANTI_ALIAS_FLAG).apply {
            color = Color.BLACK
            style = Paint.Style.STROKE
            strokeCap = Paint.Cap.ROUND
            strokeJoin = Paint.Join.ROUND
        }

    fun clear() {
        path.reset()
        invalidate()
    }

    override fun onSizeChanged(width: Int, height: Int, oldWidth: Int, oldHeight: Int) {
        // About the strokes of the data sets, for a digit that fills most of the sheet.
        paint.strokeWidth = min(width, height) / 12f
        clear()
    }

    override fun onDraw(canvas: Canvas) {
        canvas.drawColor(Color.WHITE)
        canvas.drawPath(path, paint)
    }

    override fun onTouchEvent(event: MotionEvent): Boolean {
        when (event.actionMasked) {
            MotionEvent.ACTION_DOWN -> {
                path.moveTo(event.x, event.y)
                path.lineTo(event.x, event.y) // a tap leaves a dot
            }
            MotionEvent.ACTION_MOVE -> {
                for (k in 0 until event.historySize) {
                    path.lineTo(event.getHistoricalX(k), event.getHistoricalY(k))
                }
                path.lineTo(event.x, event.y)
            }
            MotionEvent.ACTION_UP -> performClick()
            else -> return super.onTouchEvent(event)
        }
        invalidate()
        return true
    }

    override fun performClick(): Boolean {
        super.performClick()
        onStroke(drawing())
        return true
    }

    /** Small, as the model's images are smaller yet, and the pixels are visited one by one. */
    private fun drawing(): Grayscale {
        val scale = min(1f, 256f / max(width, height))
        val columns = pixels(width * scale)
        val rows = pixels(height * scale)
        val bitmap = Bitmap.createBitmap(columns, rows, Bitmap.Config.ARGB_8888)
        Canvas(bitmap).apply {
            scale(scale, scale)
            drawPath(path, paint)
        }
        val colors = IntArray(columns * rows)
        bitmap.getPixels(colors, 0, columns, 0, 0, columns, rows)
        bitmap.recycle()
        // Alpha, as nothing but ink is drawn.
        val ink = FloatArray(colors.size) { (colors[it] ushr 24) / 255f }
        return Grayscale(columns, rows, ink)
    }

    private fun pixels(size: Float) = max(1, size.roundToInt())
}
