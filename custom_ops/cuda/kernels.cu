// The kernels by name: step_type x width. plan.cc asks for them by these names.
#include "custom_ops/cuda/elementwise.h"
#include "custom_ops/cuda/lanes.h"
#include "custom_ops/cuda/merge.h"
#include "custom_ops/cuda/rows.h"
#include "custom_ops/cuda/segments.h"
#include "custom_ops/cuda/slices.h"

// KERNEL(name, threads, Arguments, function)
#define KERAS_NORMS_KERNELS_OF(KERNEL, type, T, width)                                             \
  KERNEL(rows_forward_##type##x##width, kRowThreads, RowsForward, (NormalizeRows<T, width>))       \
  KERNEL(rows_backward_##type##x##width, kRowThreads, RowsBackward, (NormalizeRowsGrad<T, width>)) \
  KERNEL(lanes_moments_##type##x##width, kThreads, LanesMoments, (LanesMomentsOf<T, width>))       \
  KERNEL(lanes_sums_##type##x##width, kThreads, LanesSums, (LanesSumsOf<T, width>))                \
  KERNEL(segment_moments_##type##x##width, kThreads, SegmentMoments, (SegmentMomentsOf<T, width>)) \
  KERNEL(segment_sums_##type##x##width, kThreads, SegmentSums, (SegmentSumsOf<T, width>))          \
  KERNEL(apply_##type##x##width, kThreads, Apply, (ApplyTo<T, width>))                             \
  KERNEL(gradient_##type##x##width, kThreads, Gradient, (GradientOf<T, width, false>))             \
  KERNEL(gradient_rows_##type##x##width, kThreads, Gradient, (GradientOf<T, width, true>))

#define KERAS_NORMS_KERNELS(KERNEL)                               \
  KERAS_NORMS_KERNELS_OF(KERNEL, float32, float, 1)               \
  KERAS_NORMS_KERNELS_OF(KERNEL, float32, float, 4)               \
  KERAS_NORMS_KERNELS_OF(KERNEL, bfloat16, bfloat16, 1)           \
  KERAS_NORMS_KERNELS_OF(KERNEL, bfloat16, bfloat16, 8)           \
  KERAS_NORMS_KERNELS_OF(KERNEL, float16, float16, 1)             \
  KERAS_NORMS_KERNELS_OF(KERNEL, float16, float16, 8)             \
  KERNEL(merge_moments, kThreads, MergeMoments, (MergeMomentsOf)) \
  KERNEL(merge_sums, kThreads, MergeSums, (MergeSumsOf))          \
  KERNEL(sum_parts, kThreads, SumParts, (SumPartsOf))             \
  KERNEL(moments_coefficients, kThreads, MomentsCoefficients, (MomentsCoefficientsOf))

#define KERAS_NORMS_SLICE_KERNELS_OF(KERNEL, type, T, width)                      \
  KERNEL(slices_forward_##type##x##width, kSliceThreads, SlicesForward,           \
         (NormalizeSlice<T, width>))                                              \
  KERNEL(slices_backward_##type##x##width, kSliceGradientThreads, SlicesBackward, \
         (NormalizeSliceGrad<T, width>))

#define KERAS_NORMS_SLICE_KERNELS(KERNEL)                     \
  KERAS_NORMS_SLICE_KERNELS_OF(KERNEL, float32, float, 4)     \
  KERAS_NORMS_SLICE_KERNELS_OF(KERNEL, bfloat16, bfloat16, 8) \
  KERAS_NORMS_SLICE_KERNELS_OF(KERNEL, float16, float16, 8)

namespace keras_norms {
namespace gpu {

// Of kThreads on a multiprocessor, at least: half of what its registers are made for.
constexpr int kBlocksAtOnce = 2;

#define KERAS_NORMS_DEFINE(name, threads, Arguments, function)                             \
  extern "C" __global__ void __launch_bounds__(threads, kBlocksAtOnce* kThreads / threads) \
      name(const Arguments arguments) {                                                    \
    function(arguments);                                                                   \
  }
KERAS_NORMS_KERNELS(KERAS_NORMS_DEFINE)
#undef KERAS_NORMS_DEFINE

// Only in the images for devices that can run them. Of two blocks on a multiprocessor the one
// computes while the other copies.
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
#define KERAS_NORMS_DEFINE(name, threads, Arguments, function)                               \
  extern "C" __global__ void __launch_bounds__(threads, 2) name(const Arguments arguments) { \
    function(arguments);                                                                     \
  }
KERAS_NORMS_SLICE_KERNELS(KERAS_NORMS_DEFINE)
#undef KERAS_NORMS_DEFINE
#endif

}  // namespace gpu
}  // namespace keras_norms
