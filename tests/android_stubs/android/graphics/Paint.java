package android.graphics;

public class Paint {
  public static final int ANTI_ALIAS_FLAG = 1;

  public enum Cap {
    BUTT,
    ROUND,
    SQUARE
  }

  public enum Join {
    MITER,
    ROUND,
    BEVEL
  }

  public enum Style {
    FILL,
    STROKE,
    FILL_AND_STROKE
  }

  public Paint(int flags) {}

  public int getColor() {
    throw new UnsupportedOperationException();
  }

  public void setColor(int color) {}

  public Style getStyle() {
    throw new UnsupportedOperationException();
  }

  public void setStyle(Style style) {}

  public Cap getStrokeCap() {
    throw new UnsupportedOperationException();
  }

  public void setStrokeCap(Cap cap) {}

  public Join getStrokeJoin() {
    throw new UnsupportedOperationException();
  }

  public void setStrokeJoin(Join join) {}

  public float getStrokeWidth() {
    throw new UnsupportedOperationException();
  }

  public void setStrokeWidth(float width) {}
}
