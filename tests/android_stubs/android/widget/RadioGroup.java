package android.widget;

import android.content.Context;
import android.util.AttributeSet;
import android.view.View;

public class RadioGroup extends View {
  public interface OnCheckedChangeListener {
    void onCheckedChanged(RadioGroup group, int checkedId);
  }

  public RadioGroup(Context context, AttributeSet attributes) {
    super(context, attributes);
  }

  public void setOnCheckedChangeListener(OnCheckedChangeListener listener) {}
}
