#include "custom_ops/tflite/flexbuffer.h"

#include <cstring>

namespace keras_norms {
namespace tflite {
namespace {

enum Type : int {
  kInt = 1,
  kUint = 2,
  kFloat = 3,
  kKey = 4,
  kString = 5,
  kIndirectInt = 6,
  kIndirectUint = 7,
  kIndirectFloat = 8,
  kMap = 9,
  kBool = 26,
  kNoType = -1,
};

int TypeOf(uint8_t packed) { return packed >> 2; }
int WidthOf(uint8_t packed) { return 1 << (packed & 3); }

template <class E>
E Read(const uint8_t* from) {
  E value;
  std::memcpy(&value, from, sizeof(E));
  return value;
}

}  // namespace

FlexbufferMap::FlexbufferMap(const void* bytes, size_t size)
    : bytes_(static_cast<const uint8_t*>(bytes)), size_(bytes == nullptr ? 0 : size) {
  if (size_ < 3) return;
  const uint8_t type = bytes_[size_ - 2];
  const int root_width = bytes_[size_ - 1];
  const bool is_width = root_width == 1 || root_width == 2 || root_width == 4 || root_width == 8;
  if (TypeOf(type) != kMap || !is_width || size_ < 2 + static_cast<size_t>(root_width)) return;
  width_ = WidthOf(type);
  const size_t width = width_;
  uint64_t key_width, count, keys;
  if (!Follow(size_ - 2 - root_width, root_width, &values_)) return;
  // The number of values, the keys' width and the way to the keys stand before the values.
  if (values_ < 3 * width || !Unsigned(values_ - width, width_, &count) ||
      !Unsigned(values_ - 2 * width, width_, &key_width) ||
      !Follow(values_ - 3 * width, width_, &keys_)) {
    return;
  }
  if (key_width != 1 && key_width != 2 && key_width != 4 && key_width != 8) return;
  key_width_ = static_cast<int>(key_width);
  if (keys_ < key_width || !Unsigned(keys_ - key_width, key_width_, &keys) || keys != count) return;
  if (count > (size_ - values_) / (width + 1) || count > (size_ - keys_) / key_width) return;
  count_ = count;
  ok_ = true;
}

bool FlexbufferMap::Get(const char* key, int64_t* value) const {
  Value found;
  if (!Find(key, &found)) return false;
  Value at = found;
  if (Resolve(&at, kInt, kIndirectInt)) return Signed(at.at, at.width, value);
  at = found;
  uint64_t number;
  if (!Resolve(&at, kUint, kIndirectUint) || !Unsigned(at.at, at.width, &number)) return false;
  if (number > static_cast<uint64_t>(INT64_MAX)) return false;
  *value = static_cast<int64_t>(number);
  return true;
}

bool FlexbufferMap::Get(const char* key, double* value) const {
  Value at;
  if (!Find(key, &at)) return false;
  if (Resolve(&at, kFloat, kIndirectFloat)) return Float(at.at, at.width, value);
  int64_t number;
  if (!Get(key, &number)) return false;
  *value = static_cast<double>(number);
  return true;
}

bool FlexbufferMap::Get(const char* key, bool* value) const {
  Value at;
  if (!Find(key, &at)) return false;
  uint64_t number;
  if (Resolve(&at, kBool, kNoType)) {
    if (!Unsigned(at.at, at.width, &number)) return false;
    *value = number != 0;
    return true;
  }
  int64_t integer;
  if (!Get(key, &integer)) return false;
  *value = integer != 0;
  return true;
}

bool FlexbufferMap::Get(const char* key, std::string* value) const {
  Value found;
  size_t at;
  if (!Find(key, &found)) return false;
  const int type = TypeOf(found.type), width = WidthOf(found.type);
  if ((type != kString && type != kKey) || !Follow(found.at, found.width, &at)) return false;
  uint64_t length;
  if (type == kString) {
    if (at < static_cast<size_t>(width) || !Unsigned(at - width, width, &length)) return false;
  } else {
    const void* end = std::memchr(bytes_ + at, 0, size_ - at);
    if (end == nullptr) return false;
    length = static_cast<const uint8_t*>(end) - (bytes_ + at);
  }
  if (length > size_ - at) return false;
  value->assign(reinterpret_cast<const char*>(bytes_ + at), length);
  return true;
}

bool FlexbufferMap::Unsigned(size_t at, int width, uint64_t* value) const {
  if (at > size_ || size_ - at < static_cast<size_t>(width)) return false;
  const uint8_t* from = bytes_ + at;
  *value = width == 1   ? *from
           : width == 2 ? Read<uint16_t>(from)
           : width == 4 ? Read<uint32_t>(from)
                        : Read<uint64_t>(from);
  return true;
}

bool FlexbufferMap::Signed(size_t at, int width, int64_t* value) const {
  if (at > size_ || size_ - at < static_cast<size_t>(width)) return false;
  const uint8_t* from = bytes_ + at;
  *value = width == 1   ? Read<int8_t>(from)
           : width == 2 ? Read<int16_t>(from)
           : width == 4 ? Read<int32_t>(from)
                        : Read<int64_t>(from);
  return true;
}

bool FlexbufferMap::Float(size_t at, int width, double* value) const {
  if (at > size_ || size_ - at < static_cast<size_t>(width)) return false;
  if (width == 4) {
    *value = Read<float>(bytes_ + at);
  } else if (width == 8) {
    *value = Read<double>(bytes_ + at);
  } else {
    return false;  // no writer makes float16 of an epsilon, and none narrower exists
  }
  return true;
}

// Distances point back.
bool FlexbufferMap::Follow(size_t at, int width, size_t* target) const {
  uint64_t distance;
  if (!Unsigned(at, width, &distance) || distance > at) return false;
  *target = at - static_cast<size_t>(distance);
  return true;
}

bool FlexbufferMap::Find(const char* key, Value* value) const {
  if (!ok_) return false;
  const size_t length = std::strlen(key) + 1;
  for (size_t i = 0; i < count_; ++i) {
    size_t at;
    if (!Follow(keys_ + i * key_width_, key_width_, &at)) return false;
    if (size_ - at < length || std::memcmp(bytes_ + at, key, length) != 0) continue;
    *value = {values_ + i * width_, width_, bytes_[values_ + count_ * width_ + i]};
    return true;
  }
  return false;
}

// Where a value of either type stands, once an indirect one is followed.
bool FlexbufferMap::Resolve(Value* value, int direct, int indirect) const {
  if (TypeOf(value->type) == direct) return true;
  if (TypeOf(value->type) != indirect) return false;
  const int width = WidthOf(value->type);
  if (!Follow(value->at, value->width, &value->at)) return false;
  value->width = width;
  return true;
}

}  // namespace tflite
}  // namespace keras_norms
