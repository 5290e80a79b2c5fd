// Arrays that show what a kernel touches, and the numbers put into them.
#ifndef KERAS_NORMS_TESTS_CPP_ARRAYS_H_
#define KERAS_NORMS_TESTS_CPP_ARRAYS_H_

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tests/cpp/check.h"
#include "tests/cpp/elements.h"

namespace keras_norms {

// Read by the core: exactly as long as it says, and aligned to no more than its element type.
template <class T>
class Input {
 public:
  explicit Input(int64_t size) : storage_(size + 1) {}
  int64_t size() const { return static_cast<int64_t>(storage_.size()) - 1; }
  const T* data() const { return storage_.data() + 1; }
  T& operator[](int64_t i) { return storage_[i + 1]; }
  const T& operator[](int64_t i) const { return storage_[i + 1]; }

 private:
  std::vector<T> storage_;
};

// Written by the core: filled with NaN (all bits 1), between guards that are checked at the end.
template <class T>
class Output {
 public:
  explicit Output(int64_t size, bool aligned = false)
      : size_(size), begin_(kGuard + (aligned ? 0 : sizeof(T))) {
    const int64_t bytes = (begin_ + size * sizeof(T) + kGuard + 63) / 64 * 64;
    storage_ = static_cast<char*>(std::aligned_alloc(64, bytes));
    std::memset(storage_, kGuardByte, bytes);
    std::memset(storage_ + begin_, 0xff, size * sizeof(T));
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  ~Output() {
    const int64_t end = begin_ + size_ * static_cast<int64_t>(sizeof(T));
    for (int64_t i = 0; i < kGuard; ++i) {
      const bool intact = storage_[i] == kGuardByte && storage_[end + i] == kGuardByte;
      if (!intact) {
        check::Fail("something wrote outside of its array");
        break;
      }
    }
    std::free(storage_);
  }
  int64_t size() const { return size_; }
  T* data() { return reinterpret_cast<T*>(storage_ + begin_); }
  const T* data() const { return reinterpret_cast<const T*>(storage_ + begin_); }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  bool SameBits(const Output& other) const {
    return size_ == other.size_ && std::memcmp(data(), other.data(), size_ * sizeof(T)) == 0;
  }

 private:
  static constexpr int64_t kGuard = 256;
  static constexpr char kGuardByte = 0x5a;
  int64_t size_, begin_;
  char* storage_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Bits() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Of mean 0 and deviation 1: the sum of eight 16-bit numbers, nearly normal, never beyond 4.9.
  double Normal() {
    int64_t sum = 0;
    for (int draw = 0; draw < 2; ++draw) {
      const uint64_t bits = Bits();
      for (int shift = 0; shift < 64; shift += 16) sum += bits >> shift & 0xffff;
    }
    return (sum - 4 * 65535) * (std::sqrt(1.5) * 0x1p-16);
  }
  template <class T>
  void Fill(Input<T>* to, double mean, double deviation) {
    for (int64_t i = 0; i < to->size(); ++i) (*to)[i] = Nearest<T>(mean + deviation * Normal());
  }

 private:
  uint64_t state_;
};

}  // namespace keras_norms

#endif  // KERAS_NORMS_TESTS_CPP_ARRAYS_H_
