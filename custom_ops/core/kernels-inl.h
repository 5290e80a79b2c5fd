// The inner loops, written once. kernels_<target>.cc sets KERAS_NORMS_TARGET and
// KERAS_NORMS_VECTOR_BYTES and includes this file.
#include "custom_ops/core/activation-inl.h"
#include "custom_ops/core/kernels.h"
#include "custom_ops/core/simd.h"

namespace keras_norms {
namespace {

constexpr int64_t kTile = 4096;    // elements of a segment whose sums stay in vector registers
constexpr int64_t kTileRows = 64;  // rows of lanes, likewise
constexpr int64_t kWidestLanes = 1024;
constexpr int kUnroll = 4;

// Adds the moments of `count_b` more elements to those of `count_a` (Chan, Golub and LeVeque 1979).
inline void Merge(double count_a, double* mean_a, double* m2_a, double count_b, double mean_b,
                  double m2_b) {
  const double delta = mean_b - *mean_a;
  const double share = count_b / (count_a + count_b);
  *mean_a += delta * share;
  *m2_a += m2_b + delta * delta * count_a * share;
}

// Calls full(i) for each whole vector of [0, size) and part(i, count) for the rest.
template <int kLanes, class Full, class Part>
inline void ForVectors(int64_t size, const Full& full, const Part& part) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) full(i);
  if (i < size) part(i, size - i);
}

// Stores whole vectors, past the caches where that is asked for and y is aligned. Rows of y are
// `stride` elements apart.
template <class T>
struct Writer {
  using S = Simd<T>;
  T* y;
  bool stream;
  Writer(T* y, bool wanted, int64_t stride = 0)
      : y(y),
        stream(wanted && stride % S::kLanes == 0 &&
               reinterpret_cast<uintptr_t>(y) % (S::kLanes * sizeof(T)) == 0) {}
  void Store(int64_t i, typename S::V v) const {
    if (stream) {
      S::Stream(y + i, v);
    } else {
      S::Store(y + i, v);
    }
  }
};

// ---- Segments ---------------------------------------------------------------------------------

// The sums of x - anchor and of its square over a tile.
template <class T>
struct AnchoredSums {
  using S = Simd<T>;
  using V = typename S::V;
  double sum, square;

  AnchoredSums(const T* x, int64_t size, typename S::U anchor) {
    constexpr int L = S::kLanes;
    const V a = S::Fill(anchor);
    V sums[kUnroll] = {}, squares[kUnroll] = {};
    const auto add = [&](int u, V d) {
      sums[u] += d;
      squares[u] += d * d;
    };
    int64_t i = 0;
    for (; i + kUnroll * L <= size; i += kUnroll * L) {
      for (int u = 0; u < kUnroll; ++u) add(u, S::Load(x + i + u * L) - a);
    }
    for (; i + L <= size; i += L) add(0, S::Load(x + i) - a);
    if (i < size) add(1, S::Keep(S::LoadPart(x + i, size - i) - a, size - i));
    sum = S::Sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    square = S::Sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
  }
};

// About the mean of a few elements from all over the tile: near its mean, if its elements are
// alike.
template <class T>
inline typename Simd<T>::U AnchorOf(const T* x, int64_t size) {
  using S = Simd<T>;
  constexpr int kSamples = 8;
  const int64_t step = size / kSamples;
  const auto first = S::First(x);
  auto sum = first - first, spread = sum;
  for (int i = 1; i < kSamples; ++i) {
    const auto d = S::First(x + i * step) - first;
    sum += d;
    if (d > spread || -d > spread) spread = d < 0 ? -d : d;
  }
  return S::Coarse(S::Fill(first + sum / kSamples), S::Fill(spread))[0];
}

// One pass over a tile, relative to an anchor, and another where that anchor turns out to lie more
// than a deviation from the mean: so at most one bit of the variance cancels. Where the sums from
// an anchor overflow, those from 0 may not.
template <class T>
Moment TileMoments(const T* x, int64_t size) {
  auto anchor = AnchorOf(x, size);
  for (int pass = 0;; ++pass) {
    const AnchoredSums<T> sums(x, size, anchor);
    const double left = sums.sum / size, m2 = sums.square - sums.sum * left;
    const double mean = static_cast<double>(anchor) + left;
    const bool finite = mean - mean == 0;
    if (pass == 1 || (finite && !(sums.sum * left > m2))) return {mean, m2 < 0 ? 0 : m2};
    anchor = finite ? static_cast<decltype(anchor)>(mean) : 0;
  }
}

template <class T>
Moment TileSquares(const T* x, int64_t size) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int L = S::kLanes;
  V square[kUnroll] = {};
  const auto add = [&square](int u, V v) { square[u] += v * v; };
  int64_t i = 0;
  for (; i + kUnroll * L <= size; i += kUnroll * L) {
    for (int u = 0; u < kUnroll; ++u) add(u, S::Load(x + i + u * L));
  }
  for (; i + L <= size; i += L) add(0, S::Load(x + i));
  if (i < size) add(1, S::LoadPart(x + i, size - i));
  return {0, S::Sum((square[0] + square[1]) + (square[2] + square[3]))};
}

template <class T>
Moment SegmentMoments(const T* x, int64_t size, bool subtract_mean) {
  Moment all = {0, 0};
  for (int64_t begin = 0; begin < size; begin += kTile) {
    const int64_t count = size - begin < kTile ? size - begin : kTile;
    if (subtract_mean) {
      const Moment tile = TileMoments(x + begin, count);
      Merge(begin, &all.mean, &all.m2, count, tile.mean, tile.m2);
    } else {
      all.m2 += TileSquares(x + begin, count).m2;
    }
  }
  return all;
}

// The loops of each step are functions of their own: together they would make one with a frame that
// the plain loop, which needs none, pays for too.
template <class Step, class T, class U = typename Simd<T>::U>
__attribute__((noinline)) void SegmentAffineOf(const T* x, int64_t size, U center, U scale, U shift,
                                               Step step, bool stream, T* y) {
  using S = Simd<T>;
  using V = typename S::V;
  const Writer<T> out(y, stream);
  const V c = S::Fill(center), a = S::Fill(scale), b = S::Fill(shift);
  ForVectors<S::kLanes>(
      size, [&](int64_t i) { out.Store(i, step((S::Load(x + i) - c) * a + b, i)); },
      [&](int64_t i, int64_t n) {
        S::StorePart(y + i, step((S::LoadPart(x + i, n) - c) * a + b, i, n), n);
      });
}

template <class T, class U = typename Simd<T>::U>
void SegmentAffine(const T* x, int64_t size, U center, U scale, U shift, const Finish<T>& finish,
                   T* y) {
  if (finish.activation == Activation::kNone) {
    return SegmentAffineOf(x, size, center, scale, shift, PlainStep<T>(), finish.stream, y);
  }
  WithStep(finish, [&](auto step) {
    SegmentAffineOf(x, size, center, scale, shift, step, finish.stream, y);
  });
}

// kGamma and kBeta say what is there if nothing follows. An activation costs more than asking.
template <bool kGamma, bool kBeta, class Step, class T, class U = typename Simd<T>::U>
__attribute__((noinline)) void RowAffineOf(const T* x, int64_t size, U center, U residual, U rstd,
                                           const U* gamma, const U* beta, Step step, bool stream,
                                           T* y) {
  using S = Simd<T>;
  using V = typename S::V;
  const Writer<T> out(y, stream);
  const V c = S::Fill(center), r = S::Fill(residual), a = S::Fill(rstd);
  const bool has_gamma = Step::kPlain ? kGamma : gamma != nullptr;
  const bool has_beta = Step::kPlain ? kBeta : beta != nullptr;
  ForVectors<S::kLanes>(
      size,
      [&](int64_t i) {
        V v = (S::Load(x + i) - c - r) * a;
        if (has_gamma) v *= S::LoadParameter(gamma + i);
        if (has_beta) v += S::LoadParameter(beta + i);
        out.Store(i, step(v, i));
      },
      [&](int64_t i, int64_t n) {
        V v = (S::LoadPart(x + i, n) - c - r) * a;
        if (has_gamma) v *= S::LoadParameterPart(gamma + i, n);
        if (has_beta) v += S::LoadParameterPart(beta + i, n);
        S::StorePart(y + i, step(v, i, n), n);
      });
}

template <class T, class U = typename Simd<T>::U>
void RowAffine(const T* x, int64_t size, U center, U residual, U rstd, const U* gamma,
               const U* beta, const Finish<T>& finish, T* y) {
  if (finish.activation == Activation::kNone) {
    using Plain = PlainStep<T>;
    const auto run =
        gamma ? (beta ? RowAffineOf<true, true, Plain, T> : RowAffineOf<true, false, Plain, T>)
              : (beta ? RowAffineOf<false, true, Plain, T> : RowAffineOf<false, false, Plain, T>);
    return run(x, size, center, residual, rstd, gamma, beta, Plain(), finish.stream, y);
  }
  WithStep(finish, [&](auto step) {
    RowAffineOf<true, true>(x, size, center, residual, rstd, gamma, beta, step, finish.stream, y);
  });
}

template <bool kGamma, class T, class U = typename Simd<T>::U>
Sums TileSums(const T* dy, const T* x, int64_t size, const U* gamma, U center) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int L = S::kLanes;
  const V c = S::Fill(center);
  V g_sum[2] = {}, g_xc_sum[2] = {}, xc_sum[2] = {};
  const auto add = [&](int u, V g, V xc) {
    g_sum[u] += g;
    g_xc_sum[u] += g * xc;
    xc_sum[u] += xc;
  };
  const auto full = [&](int u, int64_t i) {
    V g = S::Load(dy + i);
    if constexpr (kGamma) g *= S::LoadParameter(gamma + i);
    add(u, g, S::Load(x + i) - c);
  };
  int64_t i = 0;
  for (; i + 2 * L <= size; i += 2 * L) {
    full(0, i);
    full(1, i + L);
  }
  for (; i + L <= size; i += L) full(0, i);
  if (i < size) {
    V g = S::LoadPart(dy + i, size - i);
    if constexpr (kGamma) g *= S::LoadParameterPart(gamma + i, size - i);
    add(1, g, S::Keep(S::LoadPart(x + i, size - i) - c, size - i));
  }
  return {S::Sum(g_sum[0] + g_sum[1]), S::Sum(g_xc_sum[0] + g_xc_sum[1]),
          S::Sum(xc_sum[0] + xc_sum[1])};
}

template <class T, class U = typename Simd<T>::U>
Sums SegmentSums(const T* dy, const T* x, int64_t size, const U* gamma, U center) {
  Sums all = {0, 0, 0};
  for (int64_t begin = 0; begin < size; begin += kTile) {
    const int64_t count = size - begin < kTile ? size - begin : kTile;
    const Sums tile = gamma ? TileSums<true>(dy + begin, x + begin, count, gamma + begin, center)
                            : TileSums<false>(dy + begin, x + begin, count, gamma, center);
    all.g += tile.g;
    all.g_xc += tile.g_xc;
    all.xc += tile.xc;
  }
  return all;
}

template <class T, class U = typename Simd<T>::U>
void SegmentGradient(const T* dy, const T* x, int64_t size, const Gradient<U>& k, U gamma,
                     bool stream, T* dx) {
  using S = Simd<T>;
  using V = typename S::V;
  const Writer<T> out(dx, stream);
  const V c = S::Fill(k.center), r = S::Fill(k.residual), a = S::Fill(k.rstd),
          m = S::Fill(k.mean_g), b = S::Fill(k.slope), w = S::Fill(gamma);
  const auto gradient = [&](V g, V v) { return a * (S::Rounded(g * w) - m - (v - c - r) * b); };
  ForVectors<S::kLanes>(
      size, [&](int64_t i) { out.Store(i, gradient(S::Load(dy + i), S::Load(x + i))); },
      [&](int64_t i, int64_t n) {
        S::StorePart(dx + i, gradient(S::LoadPart(dy + i, n), S::LoadPart(x + i, n)), n);
      });
}

// kRows rows at once, so that their parameters' sums are loaded and stored once.
template <bool kGamma, bool kSums, int kRows, class T, class U = typename Simd<T>::U>
void RowsGradientOf(const T* dy, const T* x, int64_t size, int64_t stride, const Gradient<U>* k,
                    const U* gamma, bool stream, T* dx, U* dgamma, U* dbeta) {
  using S = Simd<T>;
  using V = typename S::V;
  const Writer<T> out(dx, stream, kRows > 1 ? stride : 0);
  V c[kRows], r[kRows], a[kRows], m[kRows], b[kRows];
  for (int j = 0; j < kRows; ++j) {
    c[j] = S::Fill(k[j].center);
    r[j] = S::Fill(k[j].residual);
    a[j] = S::Fill(k[j].rstd);
    m[j] = S::Fill(k[j].mean_g);
    b[j] = S::Fill(k[j].slope);
  }
  ForVectors<S::kLanes>(
      size,
      [&](int64_t i) {
        V w = {}, gamma_sum = {}, beta_sum = {};
        if constexpr (kGamma) w = S::LoadParameter(gamma + i);
        if constexpr (kSums) {
          gamma_sum = S::LoadParameter(dgamma + i);
          beta_sum = S::LoadParameter(dbeta + i);
        }
        // All loads before the first store: a load that follows a store to an address 4096 * n
        // bytes away waits for it.
        V d[kRows], xc[kRows];
        for (int j = 0; j < kRows; ++j) {
          d[j] = S::Load(dy + j * stride + i);
          xc[j] = S::Load(x + j * stride + i) - c[j] - r[j];
        }
        for (int j = 0; j < kRows; ++j) {
          const V g = kGamma ? S::Rounded(d[j] * w) : d[j];
          out.Store(j * stride + i, a[j] * (g - m[j] - xc[j] * b[j]));
          gamma_sum += d[j] * (xc[j] * a[j]);
          beta_sum += d[j];
        }
        if constexpr (kSums) {
          S::StoreParameter(dgamma + i, gamma_sum);
          S::StoreParameter(dbeta + i, beta_sum);
        }
      },
      [&](int64_t i, int64_t n) {
        V w = {}, gamma_sum = {}, beta_sum = {};
        if constexpr (kGamma) w = S::LoadParameterPart(gamma + i, n);
        if constexpr (kSums) {
          gamma_sum = S::LoadParameterPart(dgamma + i, n);
          beta_sum = S::LoadParameterPart(dbeta + i, n);
        }
        for (int j = 0; j < kRows; ++j) {
          const int64_t at = j * stride + i;
          const V d = S::LoadPart(dy + at, n), xc = S::LoadPart(x + at, n) - c[j] - r[j];
          const V g = kGamma ? S::Rounded(d * w) : d;
          S::StorePart(dx + at, a[j] * (g - m[j] - xc * b[j]), n);
          gamma_sum += d * (xc * a[j]);
          beta_sum += d;
        }
        if constexpr (kSums) {
          S::StoreParameterPart(dgamma + i, gamma_sum, n);
          S::StoreParameterPart(dbeta + i, beta_sum, n);
        }
      });
}

template <class T, class U = typename Simd<T>::U>
void RowsGradient(const T* dy, const T* x, int64_t rows, int64_t size, int64_t stride,
                  const Gradient<U>* k, const U* gamma, bool stream, T* dx, U* dgamma, U* dbeta) {
  const auto one =
      gamma ? (dgamma ? RowsGradientOf<true, true, 1, T> : RowsGradientOf<true, false, 1, T>)
            : (dgamma ? RowsGradientOf<false, true, 1, T> : RowsGradientOf<false, false, 1, T>);
  const auto two =
      gamma ? (dgamma ? RowsGradientOf<true, true, 2, T> : RowsGradientOf<true, false, 2, T>)
            : (dgamma ? RowsGradientOf<false, true, 2, T> : RowsGradientOf<false, false, 2, T>);
  for (int64_t row = 0, step; row < rows; row += step) {
    step = rows - row < 2 ? 1 : 2;
    const int64_t at = row * stride;
    (step == 2 ? two : one)(dy + at, x + at, size, stride, k + row, gamma, stream, dx + at, dgamma,
                            dbeta);
  }
}

// ---- Short rows -------------------------------------------------------------------------------

// kLanes rows transposed: element i of all of them is vector i. Rows that are not there are 0.
template <class T>
struct Transposed {
  using S = Simd<T>;
  using U = typename S::U;
  using V = typename S::V;
  static constexpr int L = S::kLanes;
  U at[kShortRow][L] __attribute__((aligned(64)));

  V operator[](int64_t i) const { return Copied<V>(at[i]); }
  void Set(int64_t i, V v) { __builtin_memcpy(at[i], &v, sizeof(v)); }

  void Read(const T* x, int64_t rows, int64_t stride, int64_t size) {
    if (rows < L) {
      for (int64_t i = 0; i < size; ++i) Set(i, V{});
    }
    for (int64_t r = 0; r < rows; ++r) {
      if constexpr (sizeof(T) == 2) {
        U row[kShortRow];
        ForVectors<L>(
            size, [&](int64_t i) { S::StoreParameter(row + i, S::Load(x + r * stride + i)); },
            [&](int64_t i, int64_t n) {
              S::StoreParameterPart(row + i, S::LoadPart(x + r * stride + i, n), n);
            });
        for (int64_t i = 0; i < size; ++i) at[i][r] = row[i];
      } else {
        for (int64_t i = 0; i < size; ++i) at[i][r] = x[r * stride + i];
      }
    }
  }
  void Write(T* y, int64_t rows, int64_t stride, int64_t size) const {
    for (int64_t r = 0; r < rows; ++r) {
      if constexpr (sizeof(T) == 2) {
        U row[kShortRow];
        for (int64_t i = 0; i < size; ++i) row[i] = at[i][r];
        ForVectors<L>(
            size, [&](int64_t i) { S::Store(y + r * stride + i, S::LoadParameter(row + i)); },
            [&](int64_t i, int64_t n) {
              S::StorePart(y + r * stride + i, S::LoadParameterPart(row + i, n), n);
            });
      } else {
        for (int64_t i = 0; i < size; ++i) y[r * stride + i] = at[i][r];
      }
    }
  }
};

// 1 / sqrt(variance + epsilon), in double; 0 for rows that are not there.
template <class T>
typename Simd<T>::V Rstd(typename Simd<T>::V variance, double epsilon, int64_t rows) {
  using S = Simd<T>;
  double rstd[S::kLanes];
  for (int i = 0; i < S::kLanes; ++i) rstd[i] = 1 / __builtin_sqrt(variance[i] + epsilon);
  typename S::V v = {};
  for (int i = 0; i < S::kLanes; ++i) v[i] = static_cast<typename S::U>(rstd[i]);
  return S::Keep(v, rows);
}

template <class T, class U = typename Simd<T>::U>
void ShortRows(const T* x, int64_t rows, int64_t stride, int64_t size, bool subtract_mean,
               const U* gamma, const U* beta, double epsilon, Activation activation, T* y, U* mean,
               U* residual, U* variance, int64_t out_stride) {
  using S = Simd<T>;
  using V = typename S::V;
  const V count = S::Fill(static_cast<U>(size));
  for (int64_t first = 0; first < rows; first += S::kLanes) {
    const int64_t n = rows - first < S::kLanes ? rows - first : S::kLanes;
    Transposed<T> v;
    v.Read(x + first * stride, n, stride, size);
    V center = {}, rest = {}, square = {};
    if (subtract_mean) {
      V anchor = v[0], sum = {}, left = {};
      for (int64_t i = 1; i < size; ++i) sum += v[i] - anchor;
      if (S::Any(sum - sum != 0)) {  // as TileMoments
        anchor = (sum - sum == 0) ? anchor : V{};
        sum = V{};
        for (int64_t i = 0; i < size; ++i) sum += v[i] - anchor;
      }
      const V rough = S::Rounded(sum / count);
      for (int64_t i = 0; i < size; ++i) {
        const V d = v[i] - anchor - rough;
        left += d;
        square += d * d;
      }
      left /= count;
      const V lost = (square - square == 0) ? left : V{};  // an infinite square stays infinite
      square -= count * lost * lost;
      square = (square < 0) ? V{} : square;
      const V from_anchor = rough + left;
      center = S::Rounded(anchor + from_anchor);
      rest = S::Rounded(anchor - center) + from_anchor;
    } else {
      for (int64_t i = 0; i < size; ++i) square += v[i] * v[i];
    }
    const V spread = square / count;
    for (int64_t r = 0; r < n; ++r) {
      const int64_t out = (first + r) * out_stride;
      if (mean != nullptr) mean[out] = center[r];
      if (residual != nullptr) residual[out] = rest[r];
      if (variance != nullptr) variance[out] = spread[r];
    }
    if (y == nullptr) continue;
    const V rstd = Rstd<T>(spread, epsilon, n);
    for (int64_t i = 0; i < size; ++i) {
      V out = (v[i] - center - rest) * rstd;
      if (gamma != nullptr) out *= S::Fill(gamma[i]);
      if (beta != nullptr) out += S::Fill(beta[i]);
      v.Set(i, out);
    }
    WithActivation(activation, [&](auto tag) {
      if constexpr (decltype(tag)::kValue != Activation::kNone) {
        for (int64_t i = 0; i < size; ++i) v.Set(i, Activated<decltype(tag)::kValue, T>(v[i]));
      }
    });
    v.Write(y + first * stride, n, stride, size);
  }
}

// g times the activation's derivative. Not inlined: that costs the others a fifth of their speed.
template <class T, class U = typename Simd<T>::U, class V = typename Simd<T>::V>
__attribute__((noinline)) void ShortRowsDerivative(const Transposed<T>& x, int64_t rows,
                                                   int64_t size, V center, V rest, V rstd,
                                                   const U* gamma, const U* beta,
                                                   Activation activation, Transposed<T>* g) {
  using S = Simd<T>;
  WithActivation(activation, [&](auto tag) {
    for (int64_t i = 0; i < size; ++i) {
      V z = (x[i] - center - rest) * rstd;
      if (gamma != nullptr) z *= S::Fill(gamma[i]);
      if (beta != nullptr) z += S::Fill(beta[i]);
      g->Set(i, S::Keep(TimesDerivative<decltype(tag)::kValue, T>((*g)[i], z), rows));
    }
  });
}

template <class T, class U = typename Simd<T>::U>
void ShortRowsGradient(const T* dy, const T* x, int64_t rows, int64_t stride, int64_t size,
                       bool subtract_mean, const U* gamma, const U* beta, const U* mean,
                       const U* variance, int64_t statistics_stride, double epsilon,
                       Activation activation, T* dx, double* dgamma, double* dbeta) {
  using S = Simd<T>;
  using V = typename S::V;
  const V count = S::Fill(static_cast<U>(size));
  for (int64_t begin = 0; begin < rows; begin += kTileRows * S::kLanes) {
    const int64_t limit = begin + kTileRows * S::kLanes;
    const int64_t end = rows < limit ? rows : limit;
    V gamma_sum[kShortRow], beta_sum[kShortRow];
    for (int64_t i = 0; i < size; ++i) gamma_sum[i] = beta_sum[i] = V{};
    for (int64_t first = begin; first < end; first += S::kLanes) {
      const int64_t n = end - first < S::kLanes ? end - first : S::kLanes;
      Transposed<T> v, g;
      v.Read(x + first * stride, n, stride, size);
      g.Read(dy + first * stride, n, stride, size);
      V center = {}, spread = {};
      for (int64_t r = 0; r < n; ++r) {
        center[r] = mean[(first + r) * statistics_stride];
        spread[r] = variance[(first + r) * statistics_stride];
      }
      const V rstd = Rstd<T>(spread, epsilon, n);
      V rest = {};
      if (subtract_mean) {
        for (int64_t i = 0; i < size; ++i) rest += v[i] - center;
        rest /= count;
      }
      if (activation != Activation::kNone) {
        ShortRowsDerivative(v, n, size, center, rest, rstd, gamma, beta, activation, &g);
      }
      V mean_g = {}, slope = {};
      for (int64_t i = 0; i < size; ++i) {
        const V xc = v[i] - center - rest, d = g[i];
        const V w = gamma != nullptr ? S::Rounded(d * S::Fill(gamma[i])) : d;
        v.Set(i, xc);
        g.Set(i, w);
        mean_g += w;
        slope += w * xc;
        gamma_sum[i] += d * (xc * rstd);
        beta_sum[i] += S::Keep(d, n);
      }
      mean_g = subtract_mean ? S::Rounded(mean_g / count) : V{};
      slope = slope / count * rstd * rstd;
      for (int64_t i = 0; i < size; ++i) v.Set(i, rstd * (g[i] - mean_g - v[i] * slope));
      v.Write(dx + first * stride, n, stride, size);
    }
    for (int64_t i = 0; i < size; ++i) {
      dgamma[i] += S::Sum(gamma_sum[i]);
      dbeta[i] += S::Sum(beta_sum[i]);
    }
  }
}

// ---- Lanes ------------------------------------------------------------------------------------

// Few channels, or a number of them that no vector divides, waste lanes: take `fold` rows as one
// row of fold * channels lanes, where lane j belongs to channel j % channels.
template <class T>
int64_t FoldOf(int64_t rows, int64_t channels) {
  constexpr int64_t L = Simd<T>::kLanes;
  int64_t fold = 1;
  if (channels % L != 0 && channels * L <= kWidestLanes) fold = L;
  while (fold * channels < 4 * L && fold * channels * 2 <= kWidestLanes) fold *= 2;
  return fold <= rows ? fold : 1;
}

// Where a tile takes only some lanes of each row, no processor foresees the jumps to the next rows.
template <class T>
inline void PrefetchAhead(const T* p, int64_t stride) {
  constexpr int64_t kRowsAhead = 16;
  __builtin_prefetch(p + kRowsAhead * stride, 0, 2);
}

// A number in double for each lane of a vector, or for the first `count` of them.
template <bool kPart, class Wide>
inline Wide LoadLanes(const double* from, int64_t count) {
  Wide v = {};
  __builtin_memcpy(&v, from, kPart ? count * sizeof(double) : sizeof(v));
  return v;
}
template <bool kPart, class Wide>
inline void StoreLanes(double* to, const Wide& v, int64_t count) {
  __builtin_memcpy(to, &v, kPart ? count * sizeof(double) : sizeof(v));
}

// Moments of kVectors vectors of lanes over a few rows, `stride` elements apart, merged into those
// of `before` earlier rows. `count` says how many lanes are there when less than one vector.
//
// One pass, relative to about the mean of four rows, and another where that lies more than two
// deviations from the mean of a lane, or the sums from it overflow.
template <int kVectors, bool kPart, class T>
void TileLanes(const T* x, int64_t rows, int64_t stride, int64_t count, int64_t before,
               double* mean, double* m2) {
  using S = Simd<T>;
  using V = typename S::V;
  using U = typename S::U;
  using Wide = typename S::Wide;
  constexpr int L = S::kLanes;
  const auto load = [count](const T* p) {
    if constexpr (kPart) return S::LoadPart(p, count);
    return S::Load(p);
  };
  V anchor[kVectors], sum[kVectors], square[kVectors];
  const int64_t step = (rows - 1) / 3 * stride;
  for (int v = 0; v < kVectors; ++v) {
    const T* p = x + v * L;
    const V first = load(p), a = load(p + step) - first, b = load(p + 2 * step) - first,
            c = load(p + 3 * step) - first;
    anchor[v] = S::Coarse(first + (a + b + c) * S::Fill(U{1} / 4),
                          S::Larger(S::Larger(S::Absolute(a), S::Absolute(b)), S::Absolute(c)));
  }
  const V share = S::Fill(static_cast<U>(1.0 / rows)), most = S::Fill(static_cast<U>(0.8));
  for (int pass = 0;; ++pass) {
    for (int v = 0; v < kVectors; ++v) sum[v] = square[v] = V{};
    const bool jumps = stride > kVectors * L;
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        if (jumps) PrefetchAhead(x + r * stride + v * L, stride);
        const V d = load(x + r * stride + v * L) - anchor[v];
        sum[v] += d;
        square[v] += d * d;
      }
    }
    // With n left^2 = sum^2 / n and m2 = square - n left^2: far where left^2 > 4 m2 / n.
    typename S::I far[kVectors], any = {};
    for (int v = 0; v < kVectors; ++v) {
      far[v] = (sum[v] * sum[v] * share > most * square[v]) | (sum[v] - sum[v] != 0);
      any |= far[v];
    }
    if (pass == 1 || !S::Any(any)) break;
    for (int v = 0; v < kVectors; ++v) {  // the others stay: no lane shows in another
      const V nearer = (sum[v] - sum[v] == 0) ? S::Rounded(anchor[v] + sum[v] * share) : V{};
      anchor[v] = far[v] ? nearer : anchor[v];
    }
  }
  const double share_of_tile = static_cast<double>(rows) / (before + rows);
  const double both = before * share_of_tile;
  for (int v = 0; v < kVectors; ++v) {
    const Wide total = S::Widened(sum[v]), left = total / static_cast<double>(rows);
    Wide tile_m2 = S::Widened(square[v]) - total * left;
    tile_m2 = (tile_m2 < 0) ? Wide{} : tile_m2;
    const Wide before_mean = LoadLanes<kPart, Wide>(mean + v * L, count);
    const Wide delta = S::Widened(anchor[v]) + left - before_mean;
    StoreLanes<kPart>(mean + v * L, before_mean + delta * share_of_tile, count);
    StoreLanes<kPart>(m2 + v * L,
                      LoadLanes<kPart, Wide>(m2 + v * L, count) + tile_m2 + delta * delta * both,
                      count);
  }
}

template <int kVectors, bool kPart, class T>
void TileLaneSquares(const T* x, int64_t rows, int64_t stride, int64_t count, double* m2) {
  using S = Simd<T>;
  using V = typename S::V;
  constexpr int L = S::kLanes;
  V square[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      const T* p = x + r * stride + v * L;
      const V value = kPart ? S::LoadPart(p, count) : S::Load(p);
      square[v] += value * value;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    const int lanes = kPart ? static_cast<int>(count) : L;
    for (int i = 0; i < lanes; ++i) m2[v * L + i] += square[v][i];
  }
}

// Calls tile(vectors, part, lane, count) so that its calls cover `lanes` lanes.
template <int kLanes, class Tile>
inline void ForLanes(int64_t lanes, const Tile& tile) {
  int64_t lane = 0;
  for (; lane + 4 * kLanes <= lanes; lane += 4 * kLanes) tile.template Run<4, false>(lane, kLanes);
  for (; lane + kLanes <= lanes; lane += kLanes) tile.template Run<1, false>(lane, kLanes);
  if (lane < lanes) tile.template Run<1, true>(lane, lanes - lane);
}

template <class T>
struct MomentsTile {
  const T* x;
  int64_t rows, stride, before;
  bool subtract_mean;
  double *mean, *m2;
  template <int kVectors, bool kPart>
  void Run(int64_t lane, int64_t count) const {
    if (subtract_mean) {
      TileLanes<kVectors, kPart>(x + lane, rows, stride, count, before, mean + lane, m2 + lane);
    } else {
      TileLaneSquares<kVectors, kPart>(x + lane, rows, stride, count, m2 + lane);
    }
  }
};

template <class T>
void PlainLanesMoments(const T* x, int64_t rows, int64_t lanes, bool subtract_mean, double* mean,
                       double* m2) {
  for (int64_t i = 0; i < lanes; ++i) mean[i] = m2[i] = 0;
  for (int64_t row = 0; row < rows; row += kTileRows) {
    const int64_t count = rows - row < kTileRows ? rows - row : kTileRows;
    ForLanes<Simd<T>::kLanes>(
        lanes, MomentsTile<T>{x + row * lanes, count, lanes, row, subtract_mean, mean, m2});
  }
}

template <class T>
void LanesMoments(const T* x, int64_t rows, int64_t channels, bool subtract_mean, double* mean,
                  double* m2) {
  const int64_t fold = FoldOf<T>(rows, channels);
  if (fold == 1) return PlainLanesMoments(x, rows, channels, subtract_mean, mean, m2);
  double wide_mean[kWidestLanes], wide_m2[kWidestLanes];
  const int64_t folded = rows / fold, rest = rows - folded * fold;
  PlainLanesMoments(x, folded, fold * channels, subtract_mean, wide_mean, wide_m2);
  for (int64_t c = 0; c < channels; ++c) {
    mean[c] = wide_mean[c];
    m2[c] = wide_m2[c];
    for (int64_t i = 1; i < fold; ++i) {
      Merge(folded * i, mean + c, m2 + c, folded, wide_mean[i * channels + c],
            wide_m2[i * channels + c]);
    }
  }
  if (rest == 0) return;
  PlainLanesMoments(x + folded * fold * channels, rest, channels, subtract_mean, wide_mean,
                    wide_m2);
  for (int64_t c = 0; c < channels; ++c) {
    Merge(folded * fold, mean + c, m2 + c, rest, wide_mean[c], wide_m2[c]);
  }
}

// Elements of a few rows, with the coefficients of their lanes in registers. kCenter and kShift as
// kGamma and kBeta of rows.
template <bool kCenter, bool kShift, class Step, class T>
struct AffineTile {
  using S = Simd<T>;
  using U = typename S::U;
  const T* x;
  int64_t rows, stride;
  const U *center, *scale, *shift;
  Step step;
  Writer<T> out;

  template <int kVectors, bool kPart>
  void Run(int64_t lane, int64_t count) const {
    using V = typename S::V;
    constexpr int L = S::kLanes;
    const bool has_center = Step::kPlain ? kCenter : center != nullptr;
    const bool has_shift = Step::kPlain ? kShift : shift != nullptr;
    const auto parameter = [&](const U* p) {
      return kPart ? S::LoadParameterPart(p, count) : S::LoadParameter(p);
    };
    V c[kVectors] = {}, a[kVectors], b[kVectors] = {};
    for (int v = 0; v < kVectors; ++v) {
      if (has_center) c[v] = parameter(center + lane + v * L);
      a[v] = parameter(scale + lane + v * L);
      if (has_shift) b[v] = parameter(shift + lane + v * L);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t i = r * stride + lane + v * L;
        V z = kPart ? S::LoadPart(x + i, count) : S::Load(x + i);
        if (has_center) z -= c[v];
        z *= a[v];
        if (has_shift) z += b[v];
        if constexpr (kPart) {
          S::StorePart(out.y + i, step(z, i, count), count);
        } else {
          out.Store(i, step(z, i));
        }
      }
    }
  }
};

// Calls tile(first element, rows) for the rows of lanes, a few at a time, and once more for part of
// a row.
template <class Tile>
inline void ForTiles(int64_t size, int64_t lanes, const Tile& tile) {
  const int64_t rows = size / lanes;
  for (int64_t row = 0; row < rows; row += kTileRows) {
    tile(row * lanes, rows - row < kTileRows ? rows - row : kTileRows, lanes);
  }
  if (rows * lanes < size) tile(rows * lanes, 1, size - rows * lanes);
}

template <bool kCenter, bool kShift, class Step, class T, class U = typename Simd<T>::U>
__attribute__((noinline)) void PlainLanesAffine(const T* x, int64_t size, int64_t lanes,
                                                const U* center, const U* scale, const U* shift,
                                                Step step, bool stream, T* y) {
  ForTiles(size, lanes, [&](int64_t begin, int64_t rows, int64_t width) {
    ForLanes<Simd<T>::kLanes>(width, AffineTile<kCenter, kShift, Step, T>{
                                         x + begin, rows, lanes, center, scale, shift,
                                         step.From(begin), Writer<T>(y + begin, stream, lanes)});
  });
}

// Repeats a vector of channels `fold` times; null stays null.
template <class U>
const U* Repeat(const U* from, int64_t channels, int64_t fold, U* to) {
  if (from == nullptr) return nullptr;
  for (int64_t i = 0; i < fold; ++i) {
    for (int64_t c = 0; c < channels; ++c) to[i * channels + c] = from[c];
  }
  return to;
}

// Over `size` elements in rows of lanes.
template <class T, class U = typename Simd<T>::U>
void FoldedLanesAffine(const T* x, int64_t size, int64_t lanes, const U* center, const U* scale,
                       const U* shift, const Finish<T>& finish, T* y) {
  if (finish.activation == Activation::kNone) {
    using Plain = PlainStep<T>;
    const auto run = center ? (shift ? PlainLanesAffine<true, true, Plain, T>
                                     : PlainLanesAffine<true, false, Plain, T>)
                            : (shift ? PlainLanesAffine<false, true, Plain, T>
                                     : PlainLanesAffine<false, false, Plain, T>);
    return run(x, size, lanes, center, scale, shift, Plain(), finish.stream, y);
  }
  WithStep(finish, [&](auto step) {
    PlainLanesAffine<true, true>(x, size, lanes, center, scale, shift, step, finish.stream, y);
  });
}

template <class T, class U = typename Simd<T>::U>
void LanesAffine(const T* x, int64_t rows, int64_t channels, const U* center, const U* scale,
                 const U* shift, const Finish<T>& finish, T* y) {
  const int64_t fold = FoldOf<T>(rows, channels);
  if (fold == 1) {
    return FoldedLanesAffine(x, rows * channels, channels, center, scale, shift, finish, y);
  }
  U wide[3][kWidestLanes];
  FoldedLanesAffine(x, rows * channels, fold * channels, Repeat(center, channels, fold, wide[0]),
                    Repeat(scale, channels, fold, wide[1]), Repeat(shift, channels, fold, wide[2]),
                    finish, y);
}

template <class T>
struct SumsTile {
  using U = typename Simd<T>::U;
  const T *dy, *x;
  int64_t rows, stride;
  const U* center;
  double *sum_dy, *sum_dy_xc, *sum_xc;
  template <int kVectors, bool kPart>
  void Run(int64_t lane, int64_t count) const {
    using S = Simd<T>;
    using V = typename S::V;
    constexpr int L = S::kLanes;
    V middle[kVectors] = {};
    if (center != nullptr) {
      for (int v = 0; v < kVectors; ++v) {
        const U* p = center + lane + v * L;
        middle[v] = kPart ? S::LoadParameterPart(p, count) : S::LoadParameter(p);
      }
    }
    V g[kVectors] = {}, g_xc[kVectors] = {}, xc[kVectors] = {};
    const bool jumps = stride > kVectors * L;
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = r * stride + lane + v * L;
        if (jumps) {
          PrefetchAhead(dy + at, stride);
          PrefetchAhead(x + at, stride);
        }
        const V d = kPart ? S::LoadPart(dy + at, count) : S::Load(dy + at);
        const V c = (kPart ? S::LoadPart(x + at, count) : S::Load(x + at)) - middle[v];
        g[v] += d;
        g_xc[v] += d * c;
        xc[v] += c;
      }
    }
    const int lanes = kPart ? static_cast<int>(count) : L;
    for (int v = 0; v < kVectors; ++v) {
      for (int i = 0; i < lanes; ++i) {
        const int64_t at = lane + v * L + i;
        sum_dy[at] += g[v][i];
        sum_dy_xc[at] += g_xc[v][i];
        sum_xc[at] += xc[v][i];
      }
    }
  }
};

template <class T, class U = typename Simd<T>::U>
void PlainLanesSums(const T* dy, const T* x, int64_t rows, int64_t lanes, const U* center,
                    double* sum_dy, double* sum_dy_xc, double* sum_xc) {
  for (int64_t i = 0; i < lanes; ++i) sum_dy[i] = sum_dy_xc[i] = sum_xc[i] = 0;
  for (int64_t row = 0; row < rows; row += kTileRows) {
    const int64_t count = rows - row < kTileRows ? rows - row : kTileRows;
    ForLanes<Simd<T>::kLanes>(lanes, SumsTile<T>{dy + row * lanes, x + row * lanes, count, lanes,
                                                 center, sum_dy, sum_dy_xc, sum_xc});
  }
}

template <class T, class U = typename Simd<T>::U>
void LanesSums(const T* dy, const T* x, int64_t rows, int64_t channels, const U* center,
               double* sum_dy, double* sum_dy_xc, double* sum_xc) {
  const int64_t fold = FoldOf<T>(rows, channels);
  if (fold == 1) return PlainLanesSums(dy, x, rows, channels, center, sum_dy, sum_dy_xc, sum_xc);
  U wide_center[kWidestLanes];
  double wide[3][kWidestLanes];
  const int64_t folded = rows / fold, rest = rows - folded * fold;
  PlainLanesSums(dy, x, folded, fold * channels, Repeat(center, channels, fold, wide_center),
                 wide[0], wide[1], wide[2]);
  double* sums[3] = {sum_dy, sum_dy_xc, sum_xc};
  for (int k = 0; k < 3; ++k) {
    for (int64_t c = 0; c < channels; ++c) {
      sums[k][c] = 0;
      for (int64_t i = 0; i < fold; ++i) sums[k][c] += wide[k][i * channels + c];
    }
  }
  if (rest == 0) return;
  const int64_t done = folded * fold * channels;
  PlainLanesSums(dy + done, x + done, rest, channels, center, wide[0], wide[1], wide[2]);
  for (int k = 0; k < 3; ++k) {
    for (int64_t c = 0; c < channels; ++c) sums[k][c] += wide[k][c];
  }
}

template <class T>
struct GradientTile {
  using S = Simd<T>;
  using U = typename S::U;
  const T *dy, *x;
  int64_t rows, stride;
  LaneGradient<U> k;
  Writer<T> out;

  template <int kVectors, bool kPart>
  void Run(int64_t lane, int64_t count) const {
    using V = typename S::V;
    constexpr int L = S::kLanes;
    const auto parameter = [&](const U* p, int v) {
      p += lane + v * L;
      return kPart ? S::LoadParameterPart(p, count) : S::LoadParameter(p);
    };
    V gamma[kVectors], center[kVectors], rstd[kVectors], mean_g[kVectors], slope[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      gamma[v] = parameter(k.gamma, v);
      center[v] = parameter(k.center, v);
      rstd[v] = parameter(k.rstd, v);
      slope[v] = parameter(k.slope, v);
      mean_g[v] = parameter(k.mean_g, v) - parameter(k.residual, v) * slope[v];
    }
    const bool jumps = stride > kVectors * L;
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t i = r * stride + lane + v * L;
        if (jumps) {
          PrefetchAhead(dy + i, stride);
          PrefetchAhead(x + i, stride);
        }
        const V g = kPart ? S::LoadPart(dy + i, count) : S::Load(dy + i);
        const V xc = (kPart ? S::LoadPart(x + i, count) : S::Load(x + i)) - center[v];
        const V d = rstd[v] * (S::Rounded(g * gamma[v]) - mean_g[v] - xc * slope[v]);
        if constexpr (kPart) {
          S::StorePart(out.y + i, d, count);
        } else {
          out.Store(i, d);
        }
      }
    }
  }
};

template <class T, class U = typename Simd<T>::U>
void PlainLanesGradient(const T* dy, const T* x, int64_t size, int64_t lanes,
                        const LaneGradient<U>& k, bool stream, T* dx) {
  ForTiles(size, lanes, [&](int64_t begin, int64_t rows, int64_t width) {
    ForLanes<Simd<T>::kLanes>(width, GradientTile<T>{dy + begin, x + begin, rows, lanes, k,
                                                     Writer<T>(dx + begin, stream, lanes)});
  });
}

template <class T, class U = typename Simd<T>::U>
void LanesGradient(const T* dy, const T* x, int64_t rows, int64_t channels,
                   const LaneGradient<U>& k, bool stream, T* dx) {
  const int64_t fold = FoldOf<T>(rows, channels);
  if (fold == 1) return PlainLanesGradient(dy, x, rows * channels, channels, k, stream, dx);
  U wide[6][kWidestLanes];
  const LaneGradient<U> repeated = {
      Repeat(k.center, channels, fold, wide[0]), Repeat(k.residual, channels, fold, wide[1]),
      Repeat(k.rstd, channels, fold, wide[2]),   Repeat(k.mean_g, channels, fold, wide[3]),
      Repeat(k.slope, channels, fold, wide[4]),  Repeat(k.gamma, channels, fold, wide[5])};
  PlainLanesGradient(dy, x, rows * channels, fold * channels, repeated, stream, dx);
}

template <class T>
constexpr Kernels<T> Table() {
  return {SegmentMoments<T>,  SegmentAffine<T>, RowAffine<T>, SegmentSums<T>,
          SegmentGradient<T>, RowsGradient<T>,  ShortRows<T>, ShortRowsGradient<T>,
          LanesMoments<T>,    LanesAffine<T>,   LanesSums<T>, LanesGradient<T>};
}

}  // namespace

namespace KERAS_NORMS_TARGET {
const Kernels<float> kFloat = Table<float>();
const Kernels<double> kDouble = Table<double>();
const Kernels<bfloat16> kBfloat16 = Table<bfloat16>();
const Kernels<float16> kFloat16 = Table<float16>();
}  // namespace KERAS_NORMS_TARGET

}  // namespace keras_norms
