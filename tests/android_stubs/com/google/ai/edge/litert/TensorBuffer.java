package com.google.ai.edge.litert;

public class TensorBuffer implements AutoCloseable {
  public void writeFloat(float[] data) throws LiteRtException {}

  public float[] readFloat() throws LiteRtException {
    throw new UnsupportedOperationException();
  }

  @Override
  public final void close() {}
}
