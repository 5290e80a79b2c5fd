// Vectors of Parameter<T>, loaded from and stored to any element type, written with the compilers'
// portable vector types. Included only by kernels-inl.h: everything here is local to one
// translation unit, so code compiled for a newer instruction set can never be linked into another
// unit.
#ifndef KERAS_NORMS_CORE_SIMD_H_
#define KERAS_NORMS_CORE_SIMD_H_

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "custom_ops/core/geometry.h"

namespace keras_norms {
namespace {

template <class U>
struct Vectors;

template <>
struct Vectors<float> {
  static constexpr int kLanes = KERAS_NORMS_VECTOR_BYTES / 4;
  typedef float V __attribute__((vector_size(KERAS_NORMS_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(KERAS_NORMS_VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(KERAS_NORMS_VECTOR_BYTES)));
  typedef uint16_t Half __attribute__((vector_size(KERAS_NORMS_VECTOR_BYTES / 2)));
};

template <>
struct Vectors<double> {
  static constexpr int kLanes = KERAS_NORMS_VECTOR_BYTES / 8;
  typedef double V __attribute__((vector_size(KERAS_NORMS_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(KERAS_NORMS_VECTOR_BYTES)));
};

using Floats = Vectors<float>;
using Doubles = Vectors<double>;

inline Floats::V Widen(Floats::Half h, const bfloat16*) {
  return (Floats::V)(__builtin_convertvector(h, Floats::Bits) << 16);
}

inline Floats::Half Narrow(Floats::V v, const bfloat16*) {
  const Floats::Bits bits = (Floats::Bits)v;
  const Floats::Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // nearest, ties to even
  const Floats::Bits nan = ((bits >> 16) & 0x8000) | 0x7fc0;
  return __builtin_convertvector((v != v) ? nan : rounded, Floats::Half);
}

#if defined(__F16C__) && KERAS_NORMS_VECTOR_BYTES == 32
inline Floats::V Widen(Floats::Half h, const float16*) {
  return (Floats::V)_mm256_cvtph_ps((__m128i)h);
}
inline Floats::Half Narrow(Floats::V v, const float16*) {
  return (Floats::Half)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__) && KERAS_NORMS_VECTOR_BYTES == 64
inline Floats::V Widen(Floats::Half h, const float16*) {
  return (Floats::V)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h);
}
inline Floats::Half Narrow(Floats::V v, const float16*) {
  return (Floats::Half)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#else
// By integers, so that no step meets a float32 subnormal, which the runtime's threads flush to 0.
inline Floats::V Widen(Floats::Half h, const float16*) {
  const Floats::Bits all = __builtin_convertvector(h, Floats::Bits);
  const Floats::Bits magnitude = all & 0x7fff;
  const Floats::Bits bias = magnitude - magnitude + (112u << 23);
  const Floats::Bits normal = (magnitude << 13) + bias;
  const Floats::Bits special = normal + bias;  // infinity or NaN: the largest exponent
  const Floats::V small = __builtin_convertvector((Floats::I)magnitude, Floats::V) * 0x1p-24f;
  Floats::Bits bits = (magnitude >= 0x7c00) ? special : normal;
  bits = (magnitude < 0x400) ? (Floats::Bits)small : bits;
  return (Floats::V)(bits | ((all & 0x8000) << 16));
}
inline Floats::Half Narrow(Floats::V v, const float16*) {
  const Floats::Bits all = (Floats::Bits)v;
  const Floats::Bits magnitude = all & 0x7fffffff;
  const Floats::Bits zero = all - all;
  const Floats::Bits normal =
      (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;  // ties to even
  // Below 2^-14 the result counts multiples of 2^-24: let an addition round them.
  const Floats::V shifted = (Floats::V)magnitude * 0x1p24f + 12582912.f;
  const Floats::Bits small = (Floats::Bits)shifted - 0x4b400000u;
  Floats::Bits bits = (magnitude < 0x38800000u) ? small : normal;
  bits = (magnitude >= 0x47800000u) ? zero + 0x7c00u : bits;
  bits = (magnitude > 0x7f800000u) ? zero + 0x7e00u : bits;
  return __builtin_convertvector(bits | ((all >> 16) & 0x8000), Floats::Half);
}
#endif

// The first `count` elements of a vector, the others 0; and storing as many.
template <class V, class E>
inline V GatherFirst(const E* p, int64_t count) {
  V v = {};
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(E)) - 1; ++i) {
    if (i < count) v[i] = p[i];
  }
  return v;
}
template <class V, class E>
inline void ScatterFirst(E* p, V v, int64_t count) {
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(E)) - 1; ++i) {
    if (i < count) p[i] = v[i];
  }
}
#if defined(__AVX2__)
inline __m256i First32(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i First64(int64_t count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
#endif
#if KERAS_NORMS_VECTOR_BYTES == 64
// By halves: a masked load of 64 bytes near a recent store takes 80 ns on Zen 4.
inline Floats::V LoadFirst(const float* p, int64_t count) {
  const __m256 zero = _mm256_setzero_ps();
  const __m256 low = count & 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, First32(count));
  const __m256 high = count & 8 ? _mm256_maskload_ps(p + 8, First32(count & 7)) : zero;
  return (Floats::V)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
inline Doubles::V LoadFirst(const double* p, int64_t count) {
  const __m256d zero = _mm256_setzero_pd();
  const __m256d low = count & 4 ? _mm256_loadu_pd(p) : _mm256_maskload_pd(p, First64(count));
  const __m256d high = count & 4 ? _mm256_maskload_pd(p + 4, First64(count & 3)) : zero;
  return (Doubles::V)_mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1);
}
inline Floats::Half LoadFirst(const uint16_t* p, int64_t count) {
  return GatherFirst<Floats::Half>(p, count);
}
inline void StoreFirst(float* p, Floats::V v, int64_t count) {
  __m256 half = _mm512_castps512_ps256((__m512)v);
  if (count & 8) {
    _mm256_storeu_ps(p, half);
    half = _mm512_extractf32x8_ps((__m512)v, 1);
    p += 8;
  }
  _mm256_maskstore_ps(p, First32(count & 7), half);
}
inline void StoreFirst(double* p, Doubles::V v, int64_t count) {
  __m256d half = _mm512_castpd512_pd256((__m512d)v);
  if (count & 4) {
    _mm256_storeu_pd(p, half);
    half = _mm512_extractf64x4_pd((__m512d)v, 1);
    p += 4;
  }
  _mm256_maskstore_pd(p, First64(count & 3), half);
}
inline void StoreFirst(uint16_t* p, Floats::Half v, int64_t count) { ScatterFirst(p, v, count); }
#else
inline Floats::Half LoadFirst(const uint16_t* p, int64_t count) {
  return GatherFirst<Floats::Half>(p, count);
}
inline void StoreFirst(uint16_t* p, Floats::Half v, int64_t count) { ScatterFirst(p, v, count); }
#if defined(__AVX2__)
inline Floats::V LoadFirst(const float* p, int64_t count) {
  return (Floats::V)_mm256_maskload_ps(p, First32(count));
}
inline Doubles::V LoadFirst(const double* p, int64_t count) {
  return (Doubles::V)_mm256_maskload_pd(p, First64(count));
}
inline void StoreFirst(float* p, Floats::V v, int64_t count) {
  _mm256_maskstore_ps(p, First32(count), (__m256)v);
}
inline void StoreFirst(double* p, Doubles::V v, int64_t count) {
  _mm256_maskstore_pd(p, First64(count), (__m256d)v);
}
#else
inline Floats::V LoadFirst(const float* p, int64_t count) {
  return GatherFirst<Floats::V>(p, count);
}
inline Doubles::V LoadFirst(const double* p, int64_t count) {
  return GatherFirst<Doubles::V>(p, count);
}
inline void StoreFirst(float* p, Floats::V v, int64_t count) { ScatterFirst(p, v, count); }
inline void StoreFirst(double* p, Doubles::V v, int64_t count) { ScatterFirst(p, v, count); }
#endif
#endif

#if defined(__x86_64__)
template <class V>
inline void StreamTo(void* p, V v) {
  if constexpr (sizeof(V) == 8) {
    _mm_stream_si64(static_cast<long long*>(p), (long long)v);
  } else if constexpr (sizeof(V) == 16) {
    _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
#if defined(__AVX2__)
  } else if constexpr (sizeof(V) == 32) {
    _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
#endif
#if KERAS_NORMS_VECTOR_BYTES == 64
  } else if constexpr (sizeof(V) == 64) {
    _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
#endif
  }
}
#endif

template <class To, class From>
inline To Copied(const From* from) {
  To to;
  __builtin_memcpy(&to, from, sizeof(To));
  return to;
}

// A tree of additions, by halves.
template <int kSize>
inline double SumOf(double* sum) {
  if constexpr (kSize == 1) {
    return sum[0];
  } else {
    for (int i = 0; i < kSize / 2; ++i) sum[i] += sum[i + kSize / 2];
    return SumOf<kSize / 2>(sum);
  }
}

// Loading, storing and masking for data of type T.
template <class T>
struct Simd {
  using U = Parameter<T>;
  using V = typename Vectors<U>::V;
  using I = typename Vectors<U>::I;
  static constexpr int kLanes = Vectors<U>::kLanes;

  static V Load(const T* p) {
    if constexpr (sizeof(T) == 2) {
      return Widen(Copied<Floats::Half>(p), p);
    } else {
      return Copied<V>(p);
    }
  }
  static void Store(T* p, V v) {
    if constexpr (sizeof(T) == 2) {
      const Floats::Half h = Narrow(v, p);
      __builtin_memcpy(p, &h, sizeof(h));
    } else {
      __builtin_memcpy(p, &v, sizeof(v));
    }
  }
  // Past the caches: p must be aligned to what is stored, and a fence must follow.
  static void Stream(T* p, V v) {
#if defined(__x86_64__)
    if constexpr (sizeof(T) == 2) {
      StreamTo(p, Narrow(v, p));
    } else {
      StreamTo(p, v);
    }
#else
    Store(p, v);
#endif
  }
  // The first `count` < kLanes elements; the others read as 0.
  static V LoadPart(const T* p, int64_t count) {
    if constexpr (sizeof(T) == 2) {
      return Widen(LoadFirst(reinterpret_cast<const uint16_t*>(p), count), p);
    } else {
      return LoadFirst(p, count);
    }
  }
  static void StorePart(T* p, V v, int64_t count) {
    if constexpr (sizeof(T) == 2) {
      StoreFirst(reinterpret_cast<uint16_t*>(p), Narrow(v, p), count);
    } else {
      StoreFirst(p, v, count);
    }
  }
  static V LoadParameter(const U* p) { return Copied<V>(p); }
  static V LoadParameterPart(const U* p, int64_t count) { return LoadFirst(p, count); }
  static void StoreParameter(U* p, V v) { __builtin_memcpy(p, &v, sizeof(v)); }
  static void StoreParameterPart(U* p, V v, int64_t count) { StoreFirst(p, v, count); }
  static V Fill(U value) { return V{} + value; }
  static U First(const T* p) {
    if constexpr (sizeof(T) == 2) {
      Floats::Half h = {};
      __builtin_memcpy(&h, p, sizeof(T));
      return Widen(h, p)[0];
    } else {
      return *p;
    }
  }
  // Keeps the first `count` lanes and makes the others 0, whatever they hold.
  static V Keep(V v, int64_t count) {
    I keep = {};
    for (int i = 0; i < kLanes; ++i) keep[i] = i < count ? -1 : 0;
    return (V)((I)v & keep);
  }
  // Whether a comparison holds in any lane.
  static bool Any(I mask) {
    uint64_t parts[sizeof(I) / 8], any = 0;
    __builtin_memcpy(parts, &mask, sizeof(mask));
    for (uint64_t part : parts) any |= part;
    return any != 0;
  }
  static V Larger(V a, V b) { return (a < b) ? b : a; }
  static V Absolute(V v) { return Larger(v, -v); }
  // v to the nearest multiple of a power of 2 that is 1/32 to 1/16 of `spread` (or to v's own last
  // bit). Where x has few different values, x - v then has few bits, which sums keep; otherwise
  // they would lose the same bits of v again and again. Where that overflows, v itself.
  static V Coarse(V v, V spread) {
    constexpr bool kFloat = sizeof(U) == 4;
    const I power = (I)spread & (I{} + (kFloat ? 0x7f800000 : 0x7ff0000000000000));
    const V shift = (V)power * static_cast<U>(kFloat ? 0x1.8p19 : 0x1.8p48);
    const V coarse = Rounded(v + shift) - shift;
    return (coarse - coarse == 0) ? coarse : v;
  }
  // Hides how v was made, so that v * w + z is not contracted: the product is rounded by itself.
  static V Rounded(V v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
  }
  // In double.
  typedef double Wide __attribute__((vector_size(kLanes * 8)));
  static Wide Widened(V v) { return __builtin_convertvector(v, Wide); }
  static V Narrowed(const Wide& v) { return __builtin_convertvector(v, V); }
  static double Sum(V v) {
    const Wide wide = Widened(v);
    double sum[kLanes];
    __builtin_memcpy(sum, &wide, sizeof(sum));
    return SumOf<kLanes>(sum);
  }
};

}  // namespace
}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_SIMD_H_
