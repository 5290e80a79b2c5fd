// The custom calls that the ops lower to inside XLA, when they run: from buffers to the functions
// of core/normalize.h or of cuda/plan.h.
#ifndef KERAS_NORMS_TF_XLA_CALLS_H_
#define KERAS_NORMS_TF_XLA_CALLS_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "custom_ops/core/normalize.h"
#include "xla/ffi/api/ffi.h"

// Both wheels, tensorflow and tensorflow-cpu, export this; its header needs others that they lack.
namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi();
}

namespace keras_norms {

namespace ffi = xla::ffi;

// What every handler is given.
struct Call {
  Geometry k;
  std::vector<void*> in, out;
  double epsilon;
  bool subtract_mean, has_gamma, has_beta, has_center, has_shift;
  Activation activation;
  void* scratch = nullptr;
  ffi::DataType type = ffi::DataType::INVALID;  // of the first input

  bool activates() const { return activation != Activation::kNone; }

  template <class V>
  V* Out(int i) const {
    return static_cast<V*>(out[i]);
  }
  template <class V>
  const V* In(int i, bool there = true) const {
    return there ? static_cast<const V*>(in[i]) : nullptr;
  }

  ffi::Error Read(ffi::RemainingArgs args, ffi::RemainingRets rets, ffi::Dictionary attributes) {
    const auto integer = [&](const char* name) {
      const auto value = attributes.get<int64_t>(name);
      return value.has_value() ? *value : int64_t{-1};
    };
    const auto low = attributes.get<float>("epsilon_low"), high = attributes.get<float>("epsilon");
    k = {integer("n"), integer("s"), integer("g"), integer("d"), integer("t")};
    const int64_t flags = integer("flags"), number = integer("activation");
    if (k.n < 0 || k.s < 0 || k.g < 0 || k.d < 0 || k.t < 0 || flags < 0 || number < 0 ||
        !low.has_value() || !high.has_value()) {
      return ffi::Error::InvalidArgument("keras_norms: a custom call without its attributes");
    }
    epsilon = static_cast<double>(*high) + *low;
    subtract_mean = flags & 1;
    has_gamma = flags & 2;
    has_beta = flags & 4;
    has_center = flags & 8;
    has_shift = flags & 16;
    activation = static_cast<Activation>(number);
    for (size_t i = 0; i < args.size(); ++i) {
      const auto buffer = args.get<ffi::AnyBuffer>(i);
      if (!buffer.has_value()) return buffer.error();
      if (i == 0) type = buffer->element_type();
      in.push_back(buffer->untyped_data());
    }
    for (size_t i = 0; i < rets.size(); ++i) {
      auto buffer = rets.get<ffi::AnyBuffer>(i);
      if (!buffer.has_value()) return buffer.error();
      out.push_back((*buffer)->untyped_data());
    }
    return ffi::Error::Success();
  }
};

template <class T>
constexpr ffi::DataType kDataType = ffi::DataType::INVALID;
template <>
inline constexpr ffi::DataType kDataType<float> = ffi::DataType::F32;
template <>
inline constexpr ffi::DataType kDataType<double> = ffi::DataType::F64;
template <>
inline constexpr ffi::DataType kDataType<bfloat16> = ffi::DataType::BF16;
template <>
inline constexpr ffi::DataType kDataType<float16> = ffi::DataType::F16;

// f(T{}) for the one of the types that the call has.
template <class... Types, class F>
ffi::Error ForType(const Call& call, const F& f) {
  ffi::Error error = ffi::Error::InvalidArgument("keras_norms: unknown element type");
  (void)((call.type == kDataType<Types> && (error = f(Types{}), true)) || ...);
  return error;
}

// Memory of the host, for the time of a call.
class HostScratch {
 public:
  explicit HostScratch(int64_t bytes) {
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (rounded > 0) data_.reset(std::aligned_alloc(kAlignment, rounded));
    failed_ = rounded > 0 && data_ == nullptr;
  }
  bool failed() const { return failed_; }
  void* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  static constexpr size_t kAlignment = 64;
  std::unique_ptr<void, Free> data_;
  bool failed_;
};

inline ffi::Error NoMemory() {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "keras_norms: no memory for scratch");
}

// Each call by what it runs. `on` is the Pool or the Launcher: overloads tell them apart.

struct NormalizeCall {
  static constexpr const char* kTarget = "keras_norms_normalize";
  template <class T, class On, class U = Parameter<T>>
  static auto Run(const On& on, const Call& c) {
    return Normalize<T>(on, c.k, c.In<T>(0), c.In<U>(1, c.has_gamma), c.In<U>(2, c.has_beta),
                        c.epsilon, c.subtract_mean, c.activation, c.Out<T>(0), c.Out<U>(1),
                        c.Out<U>(2), c.scratch);
  }
};

struct NormalizeGradCall {
  static constexpr const char* kTarget = "keras_norms_normalize_grad";
  template <class T, class On, class U = Parameter<T>>
  static auto Run(const On& on, const Call& c) {
    return NormalizeGrad<T>(on, c.k, c.In<T>(0), c.In<T>(1), c.In<U>(2, c.has_gamma),
                            c.In<U>(3, c.has_beta && c.activates()), c.In<U>(4), c.In<U>(5),
                            c.epsilon, c.subtract_mean, c.activation, c.Out<T>(0),
                            c.has_gamma ? c.Out<U>(1) : nullptr, c.has_beta ? c.Out<U>(2) : nullptr,
                            c.scratch);
  }
};

struct MomentsCall {
  static constexpr const char* kTarget = "keras_norms_moments";
  template <class T, class On, class U = Parameter<T>>
  static auto Run(const On& on, const Call& c) {
    return Moments<T>(on, c.k, c.In<T>(0), c.subtract_mean, c.Out<U>(0), c.Out<U>(1), c.Out<U>(2),
                      c.scratch);
  }
};

struct MomentsGradCall {
  static constexpr const char* kTarget = "keras_norms_moments_grad";
  template <class T, class On, class U = Parameter<T>>
  static auto Run(const On& on, const Call& c) {
    return MomentsGrad<T>(on, c.k, c.In<T>(0), c.In<U>(1), c.In<U>(2), c.In<U>(3), c.In<U>(4),
                          c.Out<T>(0), c.scratch);
  }
};

struct ScaleShiftCall {
  static constexpr const char* kTarget = "keras_norms_scale_shift";
  template <class T, class On, class U = Parameter<T>>
  static auto Run(const On& on, const Call& c) {
    return ScaleShift<T>(on, c.k, c.In<T>(0), c.In<U>(1, c.has_center), c.In<U>(2),
                         c.In<U>(3, c.has_shift), c.activation, c.Out<T>(0));
  }
};

struct ScaleShiftGradCall {
  static constexpr const char* kTarget = "keras_norms_scale_shift_grad";
  template <class T, class On, class U = Parameter<T>>
  static auto Run(const On& on, const Call& c) {
    return ScaleShiftGrad<T>(on, c.k, c.In<T>(0), c.In<T>(1), c.In<U>(2, c.has_center), c.In<U>(3),
                             c.In<U>(4, c.has_shift && c.activates()), c.activation, c.Out<T>(0),
                             c.Out<U>(1), c.Out<U>(2), c.scratch);
  }
};

// Registers handler<Call> of a call for one of XLA's platforms. `binding` says what handlers get
// before arguments, results and attributes.
#define KERAS_NORMS_HANDLE(name, platform, handler, binding)                 \
  XLA_FFI_DEFINE_HANDLER(k##name##Handler, (handler<name##Call>),            \
                         (binding).RemainingArgs().RemainingRets().Attrs()); \
  XLA_FFI_REGISTER_HANDLER(ffi::GetXlaFfiApi(), name##Call::kTarget, platform, k##name##Handler)
#define KERAS_NORMS_HANDLE_ALL(platform, handler, binding)       \
  KERAS_NORMS_HANDLE(Normalize, platform, handler, binding);     \
  KERAS_NORMS_HANDLE(NormalizeGrad, platform, handler, binding); \
  KERAS_NORMS_HANDLE(Moments, platform, handler, binding);       \
  KERAS_NORMS_HANDLE(MomentsGrad, platform, handler, binding);   \
  KERAS_NORMS_HANDLE(ScaleShift, platform, handler, binding);    \
  KERAS_NORMS_HANDLE(ScaleShiftGrad, platform, handler, binding)

}  // namespace keras_norms

#endif  // KERAS_NORMS_TF_XLA_CALLS_H_
