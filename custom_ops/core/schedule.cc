#include "custom_ops/core/schedule.h"

#include <cstdio>

namespace keras_norms {
namespace {

int64_t FindLastCacheBytes() {
  // Not by a stream: for its sake the linker would put all locales into a library of this alone.
  int kibibytes = 0;
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(file, "%d", &kibibytes) != 1) kibibytes = 0;  // "32768K"
    std::fclose(file);
  }
  return kibibytes > 0 ? int64_t{kibibytes} << 10 : 32 << 20;
}

}  // namespace

int64_t LastCacheBytes() {
  static const int64_t bytes = FindLastCacheBytes();
  return bytes;
}

}  // namespace keras_norms
