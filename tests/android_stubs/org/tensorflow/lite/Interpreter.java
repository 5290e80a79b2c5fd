package org.tensorflow.lite;

import java.nio.ByteBuffer;

public final class Interpreter implements AutoCloseable {
  public static class Options {
    public Options addDelegate(Delegate delegate) {
      throw new UnsupportedOperationException();
    }
  }

  public Interpreter(ByteBuffer model, Options options) {}

  public Tensor getInputTensor(int index) {
    throw new UnsupportedOperationException();
  }

  public Tensor getOutputTensor(int index) {
    throw new UnsupportedOperationException();
  }

  public void run(Object input, Object output) {}

  @Override
  public void close() {}
}
