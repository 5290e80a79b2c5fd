package android.widget;

import android.content.Context;
import android.util.AttributeSet;

public class RadioButton extends Button {
  public RadioButton(Context context, AttributeSet attributes) {
    super(context, attributes);
  }
}
