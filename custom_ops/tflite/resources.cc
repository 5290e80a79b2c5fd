#include "custom_ops/tflite/resources.h"

#include <algorithm>
#include <cstdlib>
#include <system_error>
#include <utility>

namespace keras_norms {
namespace tflite {
namespace {

constexpr size_t kAlignment = 64;
constexpr int kMostThreads = 64;

}  // namespace

// Stands before its memory.
struct alignas(kAlignment) Resources::Block {
  Block* next;
  size_t bytes;
};

std::shared_ptr<Resources> Resources::Shared() {
  static std::mutex mutex;
  static std::weak_ptr<Resources> shared;
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Resources> resources = shared.lock();
  if (resources == nullptr) shared = resources = std::make_shared<Resources>();
  return resources;
}

Resources::~Resources() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  while (free_ != nullptr) std::free(std::exchange(free_, free_->next));
}

Pool Resources::Threads(int threads) {
  threads = std::min(threads, kMostThreads);
  if (threads <= 1) return {};
  std::lock_guard<std::mutex> lock(mutex_);
  try {
    while (static_cast<int>(threads_.size()) < threads - 1) {
      threads_.emplace_back([this] { Work(); });
    }
  } catch (const std::system_error&) {  // then with those that there are
  }
  const int there = static_cast<int>(threads_.size()) + 1;
  return {std::min(threads, there), [this](std::function<void()> task) {
            {
              std::lock_guard<std::mutex> lock(mutex_);
              tasks_.push_back(std::move(task));
            }
            wake_.notify_one();
          }};
}

void Resources::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return ends_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    const std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    lock.lock();
  }
}

Resources::Workspace::Workspace(Resources* resources, size_t bytes) : resources_(resources) {
  {
    std::lock_guard<std::mutex> lock(resources->mutex_);
    if (resources->free_ != nullptr) {
      block_ = std::exchange(resources->free_, resources->free_->next);
    }
  }
  if (block_ != nullptr && block_->bytes >= bytes) return;
  std::free(block_);
  block_ = nullptr;
  void* memory;
  if (posix_memalign(&memory, kAlignment, sizeof(Block) + bytes) != 0) return;
  block_ = static_cast<Block*>(memory);
  block_->bytes = bytes;
}

Resources::Workspace::~Workspace() {
  if (block_ == nullptr) return;
  std::lock_guard<std::mutex> lock(resources_->mutex_);
  block_->next = std::exchange(resources_->free_, block_);
}

void* Resources::Workspace::data() const { return block_ + 1; }

}  // namespace tflite
}  // namespace keras_norms
