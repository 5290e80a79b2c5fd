package com.google.ai.edge.litert;

import android.content.res.AssetManager;
import java.util.List;

public class CompiledModel implements AutoCloseable {
  public static class Options {
    public Options(Accelerator... accelerators) {}
  }

  public static CompiledModel create(AssetManager assets, String name, Options options)
      throws LiteRtException {
    throw new UnsupportedOperationException();
  }

  public List<TensorBuffer> createInputBuffers() throws LiteRtException {
    throw new UnsupportedOperationException();
  }

  public List<TensorBuffer> createOutputBuffers() throws LiteRtException {
    throw new UnsupportedOperationException();
  }

  public void run(List<TensorBuffer> inputs, List<TensorBuffer> outputs) throws LiteRtException {}

  @Override
  public final void close() {}
}
