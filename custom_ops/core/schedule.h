// How work is cut into tasks, and scratch into arrays.
#ifndef KERAS_NORMS_CORE_SCHEDULE_H_
#define KERAS_NORMS_CORE_SCHEDULE_H_

#include <algorithm>
#include <cstdint>

#include "custom_ops/core/geometry.h"

namespace keras_norms {

constexpr int64_t kTaskElements = 16384;  // less work than this is not worth a task
constexpr int64_t kFewMeans = 8;          // fewer means than this are cut into pieces

// Bytes of the last cache before the memory, as the system tells them.
int64_t LastCacheBytes();

// Whether to write `to` past the caches, of `arrays` as large as x that a call reads and writes:
// they do not fit together, and to write into a cache a processor reads first what is overwritten.
// What is written over its own input is there already.
template <class T>
bool Streams(const Geometry& k, int arrays, const T* from, const T* to) {
  return to != from && arrays * k.size() * static_cast<int64_t>(sizeof(T)) > LastCacheBytes();
}

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many tasks `items` of `elements` each are worth.
inline int64_t Tasks(int64_t items, int64_t elements, int64_t most) {
  const int64_t worth = items * elements / kTaskElements;
  return std::max<int64_t>(1, std::min({items, worth, most}));
}

struct Range {
  int64_t begin, end;
};
inline Range Part(int64_t items, int64_t parts, int64_t part) {
  return {items * part / parts, items * (part + 1) / parts};
}

// Hands out scratch; without a base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class E>
  E* Take(int64_t count) {
    E* p = base_ == nullptr ? nullptr : reinterpret_cast<E*>(base_ + used_);
    used_ += CeilDiv(count * static_cast<int64_t>(sizeof(E)), 64) * 64;
    return p;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_SCHEDULE_H_
