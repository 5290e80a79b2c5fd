#include "custom_ops/tflite/options.h"

#include <cmath>

#include "custom_ops/tflite/flexbuffer.h"

namespace keras_norms {
namespace tflite {
namespace {

bool ActivationNamed(const std::string& name, Activation* activation) {
  if (name == "none") {
    *activation = Activation::kNone;
  } else if (name == "relu") {
    *activation = Activation::kRelu;
  } else if (name == "silu") {
    *activation = Activation::kSilu;
  } else if (name == "gelu") {
    *activation = Activation::kGelu;
  } else {
    return false;
  }
  return true;
}

// Of a hostile text, no more than a name has, and nothing that a reader of messages stumbles over.
std::string Printable(const std::string& text) {
  std::string shown = text.substr(0, 32);
  for (char& c : shown) {
    if (c < ' ' || c > '~') c = '?';
  }
  return shown;
}

}  // namespace

std::string Options::Read(const void* bytes, size_t size) {
  const FlexbufferMap map(bytes, size);
  if (!map.ok()) {
    return "the options must be a flexbuffer map. Received: " + std::to_string(size) + " bytes.";
  }
  const struct {
    const char* name;
    int64_t* value;
    int64_t least;
  } integers[] = {{"samples", &samples, 0},
                  {"before", &before, 0},
                  {"channels", &channels, 1},
                  {"after", &after, 0},
                  {"groups", &groups, 1}};
  for (const auto& option : integers) {
    const std::string name = std::string("`") + option.name + "`";
    if (!map.Get(option.name, option.value))
      return "the options must have an integer " + name + ".";
    if (*option.value < option.least) {
      return name + " must be at least " + std::to_string(option.least) +
             ". Received: " + std::to_string(*option.value) + ".";
    }
  }
  const struct {
    const char* name;
    bool* value;
  } flags[] = {
      {"subtract_mean", &subtract_mean}, {"has_gamma", &has_gamma}, {"has_beta", &has_beta}};
  for (const auto& option : flags) {
    if (!map.Get(option.name, option.value)) {
      return std::string("the options must have a bool `") + option.name + "`.";
    }
  }
  if (!map.Get("epsilon", &epsilon)) return "the options must have a float `epsilon`.";
  if (!(std::isfinite(epsilon) && epsilon >= 0)) {
    return "`epsilon` must be finite and at least 0. Received: " + std::to_string(epsilon) + ".";
  }
  std::string name;
  if (!map.Get("activation", &name)) return "the options must have a text `activation`.";
  if (!ActivationNamed(name, &activation)) {
    return "`activation` must be one of none, relu, silu, gelu. Received: " + Printable(name) + ".";
  }
  return "";
}

std::string Options::View(const TfLiteIntArray& dims, Geometry* k) const {
  const int64_t rank = dims.size;
  // One at a time: the sum of hostile numbers may overflow.
  if (samples > rank || before > rank - samples || channels > rank - samples - before ||
      after != rank - samples - before - channels) {
    return "`samples`, `before`, `channels` and `after` must add up to the rank of `x`. Received: "
           "samples=" +
           std::to_string(samples) + ", before=" + std::to_string(before) +
           ", channels=" + std::to_string(channels) + ", after=" + std::to_string(after) +
           ", x.shape=" + Shape(dims.data, rank) + ".";
  }
  // Below, byte counts of all arrays, in double, are far from overflow.
  constexpr int64_t kLimit = sizeof(size_t) > 4 ? int64_t{1} << 48 : int64_t{1} << 28;
  int64_t sizes[4] = {1, 1, 1, 1};
  const int64_t ends[4] = {samples, samples + before, samples + before + channels, rank};
  int64_t all = 1;  // of the sizes that are not 0
  for (int64_t axis = 0, part = 0; axis < rank; ++axis) {
    while (axis >= ends[part]) ++part;
    const int64_t size = dims.data[axis];
    if (size < 0 || (size > 0 && all > kLimit / size)) {
      return "`x` must have at most " + std::to_string(kLimit) +
             " elements. Received: x.shape=" + Shape(dims.data, rank) + ".";
    }
    if (size > 0) all *= size;
    sizes[part] *= size;
  }
  if (sizes[2] % groups != 0) {
    return "`groups` must divide the number of channels. Received: groups=" +
           std::to_string(groups) + ", channels=" + std::to_string(sizes[2]) +
           ", x.shape=" + Shape(dims.data, rank) + ".";
  }
  *k = {sizes[0], sizes[1], groups, sizes[2] / groups, sizes[3]};
  return "";
}

std::string Shape(const int* dims, int64_t rank) {
  std::string text = "(";
  for (int64_t i = 0; i < rank; ++i) {
    text += (i ? ", " : "") + std::to_string(dims[i]);
  }
  return text + ")";
}

}  // namespace tflite
}  // namespace keras_norms
