#include "custom_ops/core/schedule.h"

#include <fstream>

namespace keras_norms {
namespace {

int64_t FindLastCacheBytes() {
  int64_t kibibytes = 0;
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> kibibytes;  // "32768K"
  return kibibytes > 0 ? kibibytes << 10 : 32 << 20;
}

}  // namespace

int64_t LastCacheBytes() {
  static const int64_t bytes = FindLastCacheBytes();
  return bytes;
}

}  // namespace keras_norms
