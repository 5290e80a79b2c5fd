package android.graphics;

public final class Bitmap {
  public enum Config {
    ARGB_8888
  }

  public static Bitmap createBitmap(int width, int height, Config config) {
    throw new UnsupportedOperationException();
  }

  public void getPixels(
      int[] pixels, int offset, int stride, int x, int y, int width, int height) {}

  public void recycle() {}
}
