// What the kernels are made of: element types, 16-byte vectors, reductions, moments, activations.
// Compiled by NVRTC and nvcc, and by g++ with tests/cuda/shim.h; where these differ, it is here.
#ifndef KERAS_NORMS_CUDA_DEVICE_H_
#define KERAS_NORMS_CUDA_DEVICE_H_

#include "custom_ops/cuda/arguments.h"

#if defined(__CUDACC__)
#define KERAS_NORMS_UNROLL _Pragma("unroll")
#define KERAS_NORMS_NO_UNROLL _Pragma("unroll 1")
#else
#define KERAS_NORMS_UNROLL
#define KERAS_NORMS_NO_UNROLL
#endif

namespace keras_norms {
namespace gpu {

struct bfloat16 {
  unsigned short bits;
};
struct float16 {
  unsigned short bits;
};

#if defined(__CUDACC__)
extern __shared__ __align__(16) unsigned char keras_norms_shared[];
template <class E>
__device__ E* Shared() {
  return reinterpret_cast<E*>(keras_norms_shared);
}

// The same, which the compiler must not know: else it writes unrolled code once for each value.
__device__ inline int Opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

struct alignas(16) Words {
  unsigned w[4];
};
__device__ inline Words LoadWords(const void* p) { return *static_cast<const Words*>(p); }
__device__ inline void StoreWords(const Words& words, void* p) { *static_cast<Words*>(p) = words; }

__device__ inline float Widen(unsigned short bits, const float16*) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
  return f;
}
__device__ inline unsigned Narrow(float f, const float16*) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f));
  return bits;
}

#if __CUDA_ARCH__ >= 900
// 16 bytes to shared memory, past the registers. There after AwaitCopies, for the thread that
// asked.
__device__ inline void CopyAsync(const void* from, void* to) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}
__device__ inline void AwaitCopies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Of all threads of a cluster. What they wrote into shared memory can then be read from all blocks.
__device__ inline void ClusterSynchronize() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// What block `rank` of the cluster has in its shared memory where p is in that of this block.
__device__ inline float FromBlock(int rank, const float* p) {
  const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(p));
  unsigned at;
  float value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(own), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(at) : "memory");
  return value;
}

// Between blocks that run at the same time, in memory: what one has stored, and what all of its
// threads have before a __syncthreads(), others can read once they have awaited its arrival.
__device__ inline void Tell(float* p, float value) {
  asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(p), "f"(value) : "memory");
}
__device__ inline float Told(const float* p) {
  float value;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(p) : "memory");
  return value;
}
__device__ inline void Arrive(unsigned* arrived) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
}
__device__ inline void AwaitArrivals(const unsigned* arrived, unsigned all) {
  unsigned so_far;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(so_far) : "l"(arrived) : "memory");
  } while (so_far < all);
}
#endif
#else
template <class E>
E* Shared() {
  return static_cast<E*>(shim::SharedMemory());
}

inline int Opaque(int value) { return value; }

struct alignas(16) Words {
  unsigned w[4];
};
inline Words LoadWords(const void* p) {
  Words words;
  shim::ExpectAligned(p);
  __builtin_memcpy(&words, p, sizeof(words));
  return words;
}
inline void StoreWords(const Words& words, void* p) {
  shim::ExpectAligned(p);
  __builtin_memcpy(p, &words, sizeof(words));
}

inline void CopyAsync(const void* from, void* to) {
  shim::ExpectAligned(from);
  shim::ExpectAligned(to);
  shim::CopyAsync(from, to);
}
inline void AwaitCopies() { shim::AwaitCopies(); }
inline float FromBlock(int rank, const float* p) {
  return *static_cast<const float*>(shim::SharedMemoryOf(rank, p));
}
inline void Tell(float* p, float value) { shim::Tell(p, value); }
inline float Told(const float* p) { return *p; }
inline void Arrive(unsigned* arrived) { shim::Arrive(arrived); }

inline float Widen(unsigned short bits, const float16*) {
  const unsigned magnitude = bits & 0x7fff, sign = (bits & 0x8000u) << 16;
  if (magnitude < 0x400) {
    const float small = static_cast<float>(magnitude) * 0x1p-24f;
    return __uint_as_float(__float_as_uint(small) | sign);
  }
  const unsigned bias = magnitude >= 0x7c00 ? 224u << 23 : 112u << 23;
  return __uint_as_float(((magnitude << 13) + bias) | sign);
}
inline unsigned Narrow(float f, const float16*) {
  const unsigned all = __float_as_uint(f), sign = all >> 16 & 0x8000, magnitude = all & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {  // counts multiples of 2^-24: let an addition round them
    const float shifted = __uint_as_float(magnitude) * 0x1p24f + 12582912.f;
    return sign | (__float_as_uint(shifted) - 0x4b400000);
  }
  return sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13);
}
#endif

__device__ inline float Widen(unsigned short bits, const bfloat16*) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
__device__ inline unsigned Narrow(float f, const bfloat16*) {
  const unsigned bits = __float_as_uint(f);
  if (f != f) return (bits >> 16 & 0x8000) | 0x7fc0;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // nearest, ties to even
}

// V neighbouring elements, as they lie in memory: 16 bytes, or one element.
template <class T, int V>
struct Vector {
  Words words;
  __device__ void Load(const T* p) { words = LoadWords(p); }
  __device__ void Store(T* p) const { StoreWords(words, p); }
  __device__ float operator[](int i) const {
    const T* type = nullptr;
    return Widen(static_cast<unsigned short>(words.w[i / 2] >> (i % 2 * 16)), type);
  }
  __device__ void Set(const float (&v)[V]) {
    const T* type = nullptr;
    KERAS_NORMS_UNROLL
    for (int i = 0; i < V / 2; ++i) {
      words.w[i] = Narrow(v[2 * i], type) | Narrow(v[2 * i + 1], type) << 16;
    }
  }
};
template <>
struct Vector<float, 4> {
  Words words;
  __device__ void Load(const float* p) { words = LoadWords(p); }
  __device__ void Store(float* p) const { StoreWords(words, p); }
  __device__ float operator[](int i) const { return __uint_as_float(words.w[i]); }
  __device__ void Set(const float (&v)[4]) {
    KERAS_NORMS_UNROLL
    for (int i = 0; i < 4; ++i) words.w[i] = __float_as_uint(v[i]);
  }
};
template <class T>
struct Vector<T, 1> {
  T element;
  __device__ void Load(const T* p) { element = *p; }
  __device__ void Store(T* p) const { *p = element; }
  __device__ float operator[](int) const {
    const T* type = nullptr;
    return Widen(element.bits, type);
  }
  __device__ void Set(const float (&v)[1]) {
    const T* type = nullptr;
    element.bits = static_cast<unsigned short>(Narrow(v[0], type));
  }
};
template <>
struct Vector<float, 1> {
  float element;
  __device__ void Load(const float* p) { element = *p; }
  __device__ void Store(float* p) const { *p = element; }
  __device__ float operator[](int) const { return element; }
  __device__ void Set(const float (&v)[1]) { element = v[0]; }
};

// V parameters from p on, or as many times `otherwise` where p is null.
template <int V>
__device__ void LoadParameters(const float* p, Index i, float otherwise, float (&to)[V]) {
  if (p == nullptr) {
    KERAS_NORMS_UNROLL
    for (int j = 0; j < V; ++j) to[j] = otherwise;
  } else if constexpr (V == 1) {
    to[0] = p[i];
  } else {
    KERAS_NORMS_UNROLL
    for (int j = 0; j < V; j += 4) {
      const Words words = LoadWords(p + i + j);
      KERAS_NORMS_UNROLL
      for (int m = 0; m < 4; ++m) to[j + m] = __uint_as_float(words.w[m]);
    }
  }
}
__device__ inline float At(const float* p, Index i, float otherwise) {
  return p == nullptr ? otherwise : p[i];
}

struct Range {
  Index begin, end;
};
__device__ inline Range Part(Index items, Index parts, Index part) {
  return {items * part / parts, items * (part + 1) / parts};
}
__device__ inline Index PartSize(Index items, Index parts, Index part) {
  const Range range = Part(items, parts, part);
  return range.end - range.begin;
}

// A place in rows of `length` items that moves on by `step` items, without a division each time.
struct Stride {
  Index row, item, rows_on, items_on, length;
  __device__ Stride(Index first, Index step, Index length)
      : row(first / length),
        item(first % length),
        rows_on(step / length),
        items_on(step % length),
        length(length) {}
  __device__ void Advance() {
    row += rows_on;
    item += items_on;
    if (item >= length) {
      item -= length;
      ++row;
    }
  }
};

// sum + error = a + b, exactly.
__device__ inline void TwoSum(float a, float b, float* sum, float* error) {
  const float s = a + b, part = s - a;
  *error = (a - (s - part)) + (b - part);
  *sum = s;
}

// Sums v over each group of `threads` (a power of 2) neighbouring threads: all of them get the same
// bits. Every thread of the block must come here.
template <int N>
__device__ void GroupSum(int threads, float* shared, float (&v)[N]) {
  for (int offset = (threads < 32 ? threads : 32) / 2; offset > 0; offset /= 2) {
    KERAS_NORMS_UNROLL
    for (int i = 0; i < N; ++i) v[i] += __shfl_xor_sync(0xffffffffu, v[i], offset);
  }
  if (threads <= 32) return;
  __syncthreads();  // what an earlier call left may still be read
  if (threadIdx.x % 32 == 0) {
    KERAS_NORMS_UNROLL
    for (int i = 0; i < N; ++i) shared[threadIdx.x / 32 * N + i] = v[i];
  }
  __syncthreads();
  const int warps = threads / 32, first = static_cast<int>(threadIdx.x) / threads * warps;
  KERAS_NORMS_UNROLL
  for (int i = 0; i < N; ++i) {
    v[i] = 0;
    for (int warp = first; warp < first + warps; ++warp) v[i] += shared[warp * N + i];
  }
}

// The mean is mean + rest, so that of a mean far from 0 nothing is lost. m2 is the sum of squared
// distances from it. Without subtract_mean: 0 and the sum of squares.
struct Moment {
  float mean, rest, m2;
};

// Of the first `valid` of N values.
template <int N>
__device__ Moment TileMoment(const float (&v)[N], int valid, float inverse, bool subtract_mean) {
  float first = 0, sum = 0, delta = 0;
  if (subtract_mean) {
    first = v[0];
    KERAS_NORMS_UNROLL
    for (int i = 1; i < N; ++i) sum += i < valid ? v[i] - first : 0;
    delta = sum * inverse;
  }
  Moment tile;
  TwoSum(first, delta, &tile.mean, &tile.rest);
  tile.m2 = 0;
  KERAS_NORMS_UNROLL
  for (int i = 0; i < N; ++i) {
    const float c = (v[i] - first) - delta;
    tile.m2 += i < valid ? c * c : 0;
  }
  return tile;
}

// What merging `b` elements to `a` weighs with: by Chan's rule, for any number of moments.
struct Chan {
  float share, weight;
  __device__ Chan(float a, float b) : share(a > 0 ? b / (a + b) : 1), weight(a * share) {}
  __device__ void Merge(const Moment& b, Moment* a) const {
    if (share == 1) *a = b;
    if (share == 0 || share == 1) return;  // one of them is empty
    const float delta = (b.mean - a->mean) + (b.rest - a->rest);
    float error;
    TwoSum(a->mean, delta * share, &a->mean, &error);
    a->rest += error;
    a->m2 += b.m2 + delta * delta * weight;
  }
};

// Whether z needs what rounding lost of the mean. Of a mean within 8 deviations of 0 that moves z
// by at most 8 * gamma roundings of 1.
__device__ inline bool NeedsResidual(const Known& known, Index unit) {
  const float mean = known.mean[unit];
  return mean * mean > 64 * (known.variance[unit] + known.epsilon);
}

// A product that is rounded, not fused into a sum, so that what is equal cancels.
__device__ inline float Product(float a, float b) { return __fmul_rn(a, b); }

// As in custom_ops/core/activation.h.
enum Activation { kNone, kRelu, kSilu, kGelu };

__device__ inline float AtLeast(float v, float bound) { return v < bound ? bound : v; }
__device__ inline float AtMost(float v, float bound) { return v > bound ? bound : v; }

// silu and gelu are z times the share of a distribution that is below z: the logistic one, the
// normal one. One code for both, for it is repeated for each element that a thread holds.
struct Distribution {
  float share, density;  // at z

  __device__ Distribution(bool normal, float z) {
    const float a = AtMost(fabsf(z), kEnd);
    const float power = normal ? a * a / 2 : a;
    // 0 where that is hardly above the smallest normal number.
    const float e = power > 87 ? 0 : expf(-power);
    const float scaled = a * 0.295f, inverse = __fdividef(1, 1 + (normal ? scaled : e));
    // The normal tail is as in custom_ops/core/activation-inl.h: e times a polynomial.
    const float tail = e * (normal ? Polynomial(scaled * inverse) : inverse);
    share = z < 0 ? tail : 1 - tail;
    density = normal ? e * 0.398942280f : tail * inverse;
  }
  __device__ static float Polynomial(float u) {
    float p = u * 0.0394931249f - 0.132213622f;
    p = p * u + 0.0913266465f;
    p = p * u + 0.13463901f;
    p = p * u - 0.0134304939f;
    p = p * u - 0.787921011f;
    p = p * u + 1.52047241f;
    p = p * u - 1.3523488f;
    return p * u + 0.5f;
  }
  // Beyond this the tail is 0: a z held within gives what infinity tends to, and not infinity
  // times 0.
  static constexpr float kEnd = 100;
};

__device__ inline float Smooth(bool normal, float z) {
  z = AtLeast(z, -Distribution::kEnd);
  return z * Distribution(normal, z).share;
}
__device__ inline float SmoothDerivative(bool normal, float z) {
  z = AtMost(AtLeast(z, -Distribution::kEnd), Distribution::kEnd);
  const Distribution at(normal, z);
  return at.share + z * at.density;
}

template <int V, class Fn>
__device__ void ForEach(const Fn& fn) {
  KERAS_NORMS_UNROLL
  for (int j = 0; j < V; ++j) fn(j);
}

// Calls fn(j, unit, channel) for V channels from `first` on, or V times for it, of which d have a
// unit in common; unit counts from `units`. One division for all.
template <int V, class Fn>
__device__ void ForChannels(Index first, bool neighbours, Index d, Index units, const Fn& fn) {
  Index unit = units + first / d, within = first % d;
  KERAS_NORMS_UNROLL
  for (int j = 0; j < V; ++j) {
    fn(j, unit, neighbours ? first + j : first);
    if (neighbours && ++within == d) {
      within = 0;
      ++unit;
    }
  }
}

// z becomes activation(z).
template <int V>
__device__ void Activate(int activation, float (&z)[V]) {
  activation = Opaque(activation);
  if (activation == kRelu) {
    ForEach<V>([&](int j) { z[j] = z[j] < 0 ? 0 : z[j]; });
  } else if (activation != kNone) {
    ForEach<V>([&](int j) { z[j] = Smooth(activation == kGelu, z[j]); });
  }
}

// dy becomes dz = dy * activation'(z).
template <int V>
__device__ void TimesDerivative(int activation, const float (&z)[V], float (&dy)[V]) {
  activation = Opaque(activation);
  if (activation == kRelu) {
    ForEach<V>([&](int j) { dy[j] = z[j] > 0 ? dy[j] : 0; });
  } else if (activation != kNone) {
    ForEach<V>([&](int j) { dy[j] *= SmoothDerivative(activation == kGelu, z[j]); });
  }
}

// Of a gradient.
struct Sums {
  float dz, dz_xc, xc;
  __device__ void Add(const Sums& other) {
    dz += other.dz;
    dz_xc += other.dz_xc;
    xc += other.xc;
  }
};

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_DEVICE_H_
