// Flexbuffer maps, for tests of the reader: every number, length and distance in `width` bytes.
#ifndef KERAS_NORMS_TESTS_TFLITE_FLEXBUFFER_WRITER_H_
#define KERAS_NORMS_TESTS_TFLITE_FLEXBUFFER_WRITER_H_

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

class FlexbufferWriter {
 public:
  explicit FlexbufferWriter(int width) : width_(width) {}

  void Int(const std::string& key, int64_t value) { values_[key] = {1, Raw(value), ""}; }
  void Uint(const std::string& key, uint64_t value) { values_[key] = {2, Raw(value), ""}; }
  void Bool(const std::string& key, bool value) { values_[key] = {26, Raw<int64_t>(value), ""}; }
  void Text(const std::string& key, const std::string& text) { values_[key] = {5, {}, text}; }
  void Float(const std::string& key, double value) {
    values_[key] = {3, width_ == 4 ? Raw(static_cast<float>(value)) : Raw(value), ""};
  }
  // The number stands elsewhere, as an IndirectFloat.
  void FarFloat(const std::string& key, double value) { values_[key] = {8, Raw(value), ""}; }
  void Forget(const std::string& key) { values_.erase(key); }

  std::vector<uint8_t> Bytes() const {
    std::vector<uint8_t> bytes;
    const auto number = [&](uint64_t value) {
      for (int i = 0; i < width_; ++i) bytes.push_back(value >> (8 * i));
    };
    const auto back_to = [&](size_t place) { number(bytes.size() - place); };
    std::map<std::string, size_t> keys, places;
    for (const auto& [key, value] : values_) {
      keys[key] = bytes.size();
      bytes.insert(bytes.end(), key.begin(), key.end());
      bytes.push_back(0);
      if (value.type == 5) {
        number(value.text.size());
        places[key] = bytes.size();
        bytes.insert(bytes.end(), value.text.begin(), value.text.end());
        bytes.push_back(0);
      } else if (value.type == 8) {
        places[key] = bytes.size();
        bytes.insert(bytes.end(), value.raw.begin(), value.raw.end());
      }
    }
    number(values_.size());
    const size_t keys_at = bytes.size();
    for (const auto& [key, place] : keys) back_to(place);
    back_to(keys_at);
    number(width_);
    number(values_.size());
    const size_t values_at = bytes.size();
    for (const auto& [key, value] : values_) {
      if (places.count(key)) {
        back_to(places[key]);
      } else {
        bytes.insert(bytes.end(), value.raw.begin(), value.raw.begin() + width_);
      }
    }
    for (const auto& [key, value] : values_) {
      bytes.push_back(value.type << 2 | (value.type == 8 ? 3 : Log2()));
    }
    back_to(values_at);
    bytes.push_back(9 << 2 | Log2());
    bytes.push_back(width_);
    return bytes;
  }

 private:
  struct Value {
    int type;
    std::vector<uint8_t> raw;
    std::string text;
  };

  template <class E>
  static std::vector<uint8_t> Raw(E value) {
    std::vector<uint8_t> raw(8);
    std::memcpy(raw.data(), &value, sizeof(E));
    return raw;
  }
  int Log2() const { return width_ == 8 ? 3 : width_ == 4 ? 2 : width_ == 2 ? 1 : 0; }

  const int width_;
  std::map<std::string, Value> values_;
};

#endif  // KERAS_NORMS_TESTS_TFLITE_FLEXBUFFER_WRITER_H_
