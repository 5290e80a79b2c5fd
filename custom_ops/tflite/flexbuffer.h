// Reads a flexbuffer map of scalars and texts, the options of a custom op. The bytes come from a
// file that anyone may have written: every read is checked against the buffer's ends, and what is
// not understood is "not there".
//
// The format, from the end: the root's type and width, one byte each; before them the root itself,
// which for a map is the distance back to its values. A map's values follow their number, before
// which stand the distance back to the keys and their width; after the values stands a type for
// each. Keys are distances back to texts that end with a zero byte. A type's low two bits are the
// logarithm of the width of what it points at.
#ifndef KERAS_NORMS_TFLITE_FLEXBUFFER_H_
#define KERAS_NORMS_TFLITE_FLEXBUFFER_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace keras_norms {
namespace tflite {

class FlexbufferMap {
 public:
  // `bytes` must outlive this.
  FlexbufferMap(const void* bytes, size_t size);

  // Whether the bytes are a map. What follows finds nothing in anything else.
  bool ok() const { return ok_; }

  // Each returns whether there is a value of that kind; else `value` is untouched. A bool may be
  // stored as an integer, a number as an integer, a float as either.
  bool Get(const char* key, int64_t* value) const;
  bool Get(const char* key, double* value) const;
  bool Get(const char* key, bool* value) const;
  bool Get(const char* key, std::string* value) const;

 private:
  struct Value {
    size_t at;     // where it is stored
    int width;     // in how many bytes
    uint8_t type;  // with the width of what it points at
  };

  bool Unsigned(size_t at, int width, uint64_t* value) const;
  bool Signed(size_t at, int width, int64_t* value) const;
  bool Float(size_t at, int width, double* value) const;
  bool Follow(size_t at, int width, size_t* target) const;
  bool Find(const char* key, Value* value) const;
  bool Resolve(Value* value, int direct, int indirect) const;

  const uint8_t* bytes_;
  size_t size_;
  bool ok_ = false;
  size_t keys_ = 0, values_ = 0, count_ = 0;
  int key_width_ = 1, width_ = 1;
};

}  // namespace tflite
}  // namespace keras_norms

#endif  // KERAS_NORMS_TFLITE_FLEXBUFFER_H_
