// The attributes that all ops share, and what they make of a shape.
#ifndef KERAS_NORMS_TF_ATTRIBUTES_H_
#define KERAS_NORMS_TF_ATTRIBUTES_H_

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "custom_ops/core/activation.h"
#include "custom_ops/core/geometry.h"
#include "tensorflow/core/framework/types.h"
#include "tensorflow/core/util/overflow.h"

namespace keras_norms {

// Reads an attribute that the op may not have.
template <class Construction, class V>
absl::Status ReadIfThere(Construction* c, const char* name, V* value) {
  return c->HasAttr(name) ? c->GetAttr(name, value) : absl::OkStatus();
}

// As the ops' attribute `activation` names it; its definition refuses other names.
inline Activation ActivationNamed(const std::string& name) {
  return name == "relu"   ? Activation::kRelu
         : name == "silu" ? Activation::kSilu
         : name == "gelu" ? Activation::kGelu
                          : Activation::kNone;
}

struct Attributes {
  int64_t sample_axes = 0, before_axes = 0, channel_axes = 1, groups = 1;
  float epsilon_high = 0, epsilon_low = 0;
  bool subtract_mean = true;
  bool has_gamma = true, has_beta = true, has_center = true, has_shift = true;
  Activation activation = Activation::kNone;

  bool activates() const { return activation != Activation::kNone; }
  double epsilon() const { return static_cast<double>(epsilon_high) + epsilon_low; }

  template <class Construction>
  absl::Status Read(Construction* c) {
    absl::Status status;
    status.Update(c->GetAttr("sample_axes", &sample_axes));
    status.Update(c->GetAttr("before_axes", &before_axes));
    status.Update(c->GetAttr("channel_axes", &channel_axes));
    status.Update(ReadIfThere(c, "groups", &groups));
    status.Update(ReadIfThere(c, "epsilon", &epsilon_high));
    status.Update(ReadIfThere(c, "epsilon_low", &epsilon_low));
    status.Update(ReadIfThere(c, "subtract_mean", &subtract_mean));
    status.Update(ReadIfThere(c, "has_gamma", &has_gamma));
    status.Update(ReadIfThere(c, "has_beta", &has_beta));
    status.Update(ReadIfThere(c, "has_center", &has_center));
    status.Update(ReadIfThere(c, "has_shift", &has_shift));
    std::string name;
    status.Update(ReadIfThere(c, "activation", &name));
    activation = ActivationNamed(name);
    tensorflow::DataType data, parameters;
    status.Update(c->GetAttr("T", &data));
    status.Update(c->GetAttr("U", &parameters));
    if (!status.ok()) return status;
    if ((data == tensorflow::DT_DOUBLE) != (parameters == tensorflow::DT_DOUBLE)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "Parameters and statistics must be float64 when `x` is, and float32 otherwise. "
          "Received: ",
          tensorflow::DataTypeString(data), " and ", tensorflow::DataTypeString(parameters)));
    }
    if (!(std::isfinite(epsilon()) && epsilon() >= 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("`epsilon` must be finite and at least 0. Received: epsilon=", epsilon()));
    }
    return status;
  }

  std::vector<int64_t> Samples(absl::Span<const int64_t> dims) const {
    return {dims.begin(), dims.begin() + sample_axes};
  }
  std::vector<int64_t> Channels(absl::Span<const int64_t> dims) const {
    const auto first = dims.begin() + sample_axes + before_axes;
    return {first, first + channel_axes};
  }
  // Of mean and variance.
  std::vector<int64_t> Statistics(absl::Span<const int64_t> dims) const {
    std::vector<int64_t> shape = Samples(dims);
    shape.push_back(groups);
    return shape;
  }
  // Of center, scale and shift.
  std::vector<int64_t> Coefficients(absl::Span<const int64_t> dims) const {
    std::vector<int64_t> shape = Samples(dims);
    for (int64_t size : Channels(dims)) shape.push_back(size);
    return shape;
  }

  // `per_channel` makes each channel its own group, whatever `groups` says.
  absl::Status View(absl::Span<const int64_t> dims, bool per_channel, Geometry* k) const {
    const int64_t rank = static_cast<int64_t>(dims.size());
    // One at a time: the sum of hostile attributes may overflow.
    if (sample_axes > rank || before_axes > rank - sample_axes ||
        channel_axes > rank - sample_axes - before_axes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "`sample_axes`, `before_axes` and `channel_axes` must not add up to more than the rank "
          "of `x`. Received: sample_axes=",
          sample_axes, ", before_axes=", before_axes, ", channel_axes=", channel_axes,
          ", x.shape=(", absl::StrJoin(dims, ", "), ")"));
    }
    int64_t sizes[4] = {1, 1, 1, 1}, all = 1;
    const int64_t ends[4] = {sample_axes, sample_axes + before_axes,
                             sample_axes + before_axes + channel_axes, rank};
    for (int64_t axis = 0, part = 0; axis < rank; ++axis) {
      while (axis >= ends[part]) ++part;
      sizes[part] = tensorflow::MultiplyWithoutOverflow(sizes[part], dims[axis]);
      if (sizes[part] < 0) break;
    }
    for (int64_t size : sizes) all = all < 0 ? all : tensorflow::MultiplyWithoutOverflow(all, size);
    const int64_t g = per_channel ? sizes[2] : groups;
    if (g > 0 && sizes[2] > 0 && sizes[2] % g != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("`groups` must divide the number of channels. Received: groups=", groups,
                       ", channels=", sizes[2], ", x.shape=(", absl::StrJoin(dims, ", "), ")"));
    }
    // Beyond any address space; below, XLA can add up the bytes of all arrays without overflow.
    constexpr int64_t kLimit = int64_t{1} << 56;
    const int64_t means = tensorflow::MultiplyWithoutOverflow(sizes[0], g);
    const bool fits = sizes[0] >= 0 && sizes[1] >= 0 && sizes[2] >= 0 && sizes[3] >= 0 &&
                      all >= 0 && all < kLimit && means >= 0 && means < kLimit &&
                      tensorflow::MultiplyWithoutOverflow(sizes[0], sizes[2]) >= 0;
    if (!fits) {
      return absl::InvalidArgumentError(
          absl::StrCat("`x` must have fewer than 2^56 elements and means. Received: x.shape=(",
                       absl::StrJoin(dims, ", "), "), groups=", groups));
    }
    *k = {sizes[0], sizes[1], g, per_channel ? 1 : sizes[2] / g, sizes[3]};
    return absl::OkStatus();
  }
};

// Checks the shape of an input that depends on x's; `there` false: it must be empty.
inline absl::Status CheckShape(const char* name, absl::Span<const int64_t> got,
                               std::vector<int64_t> want, bool there = true) {
  if (!there) want = {0};
  if (got == absl::Span<const int64_t>(want)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("`", name, "` must have shape (", absl::StrJoin(want, ", "),
                   ") for this `x` and these attributes. Received: ", name, ".shape=(",
                   absl::StrJoin(got, ", "), ")"));
}

}  // namespace keras_norms

#endif  // KERAS_NORMS_TF_ATTRIBUTES_H_
