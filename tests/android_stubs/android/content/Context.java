package android.content;

import android.content.res.AssetManager;

public abstract class Context {
  public AssetManager getAssets() {
    throw new UnsupportedOperationException();
  }

  public final String getString(int id) {
    throw new UnsupportedOperationException();
  }

  public final String getString(int id, Object... arguments) {
    throw new UnsupportedOperationException();
  }
}
