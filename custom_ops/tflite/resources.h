// Threads and scratch memory, shared by all nodes of all interpreters in the process: a network has
// many norms, and at a time few of them run.
#ifndef KERAS_NORMS_TFLITE_RESOURCES_H_
#define KERAS_NORMS_TFLITE_RESOURCES_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "custom_ops/core/parallel.h"

namespace keras_norms {
namespace tflite {

class Resources {
  struct Block;

 public:
  // Each node holds one of these. With the last node threads end and memory is freed, so that the
  // library may be unloaded afterwards.
  static std::shared_ptr<Resources> Shared();

  Resources() = default;
  ~Resources();
  Resources(const Resources&) = delete;
  Resources& operator=(const Resources&) = delete;

  // A pool of `threads`, the caller's included; of fewer where the system starts no more.
  Pool Threads(int threads);

  // Memory aligned to 64 bytes, given back when this is destroyed. It is kept then, and the next
  // that asks gets it: where nodes run one after the other there is one block, as large as the
  // largest wish.
  class Workspace {
   public:
    Workspace(Resources* resources, size_t bytes);
    ~Workspace();
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    bool ok() const { return block_ != nullptr; }  // false: there is no memory
    void* data() const;

   private:
    Resources* const resources_;
    Block* block_ = nullptr;
  };

 private:
  void Work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  bool ends_ = false;
  Block* free_ = nullptr;
};

}  // namespace tflite
}  // namespace keras_norms

#endif  // KERAS_NORMS_TFLITE_RESOURCES_H_
