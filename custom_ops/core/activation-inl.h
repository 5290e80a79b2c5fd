// The activations and their derivatives for the vectors of simd.h. Included only by kernels-inl.h,
// and local to one translation unit for the same reason.
#ifndef KERAS_NORMS_CORE_ACTIVATION_INL_H_
#define KERAS_NORMS_CORE_ACTIVATION_INL_H_

#include "custom_ops/core/activation.h"
#include "custom_ops/core/simd.h"

namespace keras_norms {
namespace {

// exp(-x) of x >= 0; 0 where that is hardly above the smallest normal number. Of NaN it may be any
// number: what follows multiplies by the NaN.
inline Floats::V ExpOfMinus(Floats::V x) {
  constexpr float kLast = 87;
  const Floats::V bounded = -((x > kLast) ? Floats::V{} + kLast : x);
  // exp(r + n * log(2)), the last in two parts so that n times the first is exact. Adding kRound
  // leaves n in the mantissa's low bits.
  constexpr float kRound = 12582912;
  const Floats::V shifted = bounded * 1.44269504f + kRound;
  const Floats::V n = shifted - kRound;
  const Floats::V r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  Floats::V p = r * 1.38143072e-3f + 8.36885668e-3f;
  p = p * r + 4.16684017e-2f;
  p = p * r + 0.166665195f;
  p = p * r + 0.499999934f;
  p = p * (r * r) + r + 1;
  const Floats::V scaled = (Floats::V)((Floats::Bits)p + ((Floats::Bits)shifted << 23));
  return (x > kLast) ? Floats::V{} : scaled;
}

// The lower tail of the normal distribution at -a, for 0 <= a <= 20, from e = exp(-a * a / 2): e
// times a polynomial in u = 0.295 a / (1 + 0.295 a), which is fitted to 4e-8 of itself for a < 13.5
// and exact at 0, where the tail is largest.
inline Floats::V TailOf(Floats::V a, Floats::V e) {
  const Floats::V scaled = a * 0.295f;
  const Floats::V u = scaled / (scaled + 1);
  Floats::V p = u * 0.0394931249f - 0.132213622f;
  p = p * u + 0.0913266465f;
  p = p * u + 0.13463901f;
  p = p * u - 0.0134304939f;
  p = p * u - 0.787921011f;
  p = p * u + 1.52047241f;
  p = p * u - 1.3523488f;
  p = p * u + 0.5f;
  return p * e;
}

// Of double by the C library, lane by lane: it is the type for checks.
inline Doubles::V ExpOfMinus(Doubles::V x) {
  for (int i = 0; i < Doubles::kLanes; ++i) x[i] = __builtin_exp(-x[i]);
  return x;
}
inline Doubles::V TailOf(Doubles::V a, Doubles::V) {
  for (int i = 0; i < Doubles::kLanes; ++i) a[i] = __builtin_erfc(a[i] * 0x1.6a09e667f3bcdp-1) / 2;
  return a;
}

// Beyond these the exponentials above are 0: a z held within gives what infinity tends to, and not
// infinity times 0.
template <class U>
struct Ends {
  static constexpr U kSilu = sizeof(U) == 4 ? 100 : 800;
  static constexpr U kGelu = sizeof(U) == 4 ? 20 : 40;
};
template <class V, class U>
inline V AtLeast(V v, U bound) {
  return (v < bound) ? V{} + bound : v;
}
template <class V, class U>
inline V AtMost(V v, U bound) {
  return (v > bound) ? V{} + bound : v;
}

template <Activation kActivation, class T>
typename Simd<T>::V Activated(typename Simd<T>::V z) {
  using V = typename Simd<T>::V;
  using U = typename Simd<T>::U;
  if constexpr (kActivation == Activation::kRelu) {
    return (z < 0) ? V{} : z;
  } else if constexpr (kActivation == Activation::kSilu) {
    z = AtLeast(z, -Ends<U>::kSilu);
    const V e = ExpOfMinus((z < 0) ? -z : z);
    return z * ((z < 0) ? e : V{} + 1) / (e + 1);
  } else if constexpr (kActivation == Activation::kGelu) {
    z = AtLeast(z, -Ends<U>::kGelu);
    const V a = AtMost((z < 0) ? -z : z, Ends<U>::kGelu);
    const V tail = TailOf(a, ExpOfMinus(a * a / 2));
    return z * ((z < 0) ? tail : 1 - tail);
  } else {
    return z;
  }
}

// dy * activation'(z).
template <Activation kActivation, class T>
typename Simd<T>::V TimesDerivative(typename Simd<T>::V dy, typename Simd<T>::V z) {
  using V = typename Simd<T>::V;
  using U = typename Simd<T>::U;
  if constexpr (kActivation == Activation::kRelu) {
    return (z > 0) ? dy : V{};
  } else if constexpr (kActivation == Activation::kSilu) {
    z = AtMost(AtLeast(z, -Ends<U>::kSilu), Ends<U>::kSilu);
    const V e = ExpOfMinus((z < 0) ? -z : z), one = V{} + 1, share = 1 / (e + 1);
    const V sigmoid = share * ((z < 0) ? e : one), rest = share * ((z < 0) ? one : e);
    return dy * (sigmoid * (z * rest + 1));
  } else if constexpr (kActivation == Activation::kGelu) {
    z = AtMost(AtLeast(z, -Ends<U>::kGelu), Ends<U>::kGelu);
    const V a = (z < 0) ? -z : z;
    const V e = ExpOfMinus(a * a / 2), tail = TailOf(a, e);
    constexpr U kDensity = 0x1.9884533d43651p-2;  // of the normal distribution at 0
    return dy * (((z < 0) ? tail : 1 - tail) + z * e * kDensity);
  } else {
    return dy;
  }
}

// Calls fn(tag) with the activation as tag.kValue.
template <Activation kActivation>
struct ActivationTag {
  static constexpr Activation kValue = kActivation;
};
template <class Fn>
inline void WithActivation(Activation activation, const Fn& fn) {
  switch (activation) {
    case Activation::kRelu:
      return fn(ActivationTag<Activation::kRelu>());
    case Activation::kSilu:
      return fn(ActivationTag<Activation::kSilu>());
    case Activation::kGelu:
      return fn(ActivationTag<Activation::kGelu>());
    default:
      return fn(ActivationTag<Activation::kNone>());
  }
}

// A Finish with its branches taken: one of these is chosen before a loop.
template <Activation kActivation, bool kGradient, class T>
struct Step {
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr bool kPlain = kActivation == Activation::kNone;
  const T* dy;

  V operator()(V z, int64_t i) const {
    if constexpr (kGradient) return TimesDerivative<kActivation, T>(S::Load(dy + i), z);
    return Activated<kActivation, T>(z);
  }
  V operator()(V z, int64_t i, int64_t n) const {
    if constexpr (kGradient) return TimesDerivative<kActivation, T>(S::LoadPart(dy + i, n), z);
    return Activated<kActivation, T>(z);
  }
  Step From(int64_t i) const { return {kGradient ? dy + i : dy}; }
};
template <class T>
using PlainStep = Step<Activation::kNone, false, T>;

// Calls fn(step) for an activation that is not none.
template <class T, class Fn>
inline void WithStep(const Finish<T>& finish, const Fn& fn) {
  WithActivation(finish.activation, [&](auto tag) {
    constexpr Activation kActivation = decltype(tag)::kValue;
    if constexpr (kActivation != Activation::kNone) {
      if (finish.dy == nullptr) return fn(Step<kActivation, false, T>{nullptr});
      return fn(Step<kActivation, true, T>{finish.dy});
    }
  });
}

}  // namespace
}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_ACTIVATION_INL_H_
