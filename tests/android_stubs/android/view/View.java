package android.view;

import android.content.Context;
import android.graphics.Canvas;
import android.util.AttributeSet;

public class View {
  public static final int VISIBLE = 0;
  public static final int GONE = 8;

  public interface OnClickListener {
    void onClick(View view);
  }

  public View(Context context, AttributeSet attributes) {}

  public final int getWidth() {
    throw new UnsupportedOperationException();
  }

  public final int getHeight() {
    throw new UnsupportedOperationException();
  }

  public boolean isEnabled() {
    throw new UnsupportedOperationException();
  }

  public void setEnabled(boolean enabled) {}

  public int getVisibility() {
    throw new UnsupportedOperationException();
  }

  public void setVisibility(int visibility) {}

  public void setOnClickListener(OnClickListener listener) {}

  public void invalidate() {}

  public boolean performClick() {
    throw new UnsupportedOperationException();
  }

  public boolean onTouchEvent(MotionEvent event) {
    throw new UnsupportedOperationException();
  }

  protected void onDraw(Canvas canvas) {}

  protected void onSizeChanged(int width, int height, int oldWidth, int oldHeight) {}
}
