package android.app;

import android.os.Bundle;
import android.view.View;

public class Activity extends android.content.Context {
  protected void onCreate(Bundle savedInstanceState) {}

  protected void onDestroy() {}

  public void setContentView(int layout) {}

  public <T extends View> T findViewById(int id) {
    throw new UnsupportedOperationException();
  }

  public final void runOnUiThread(Runnable action) {}
}
