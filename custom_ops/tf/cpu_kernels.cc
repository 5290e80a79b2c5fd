// The ops on the CPU: check, allocate, call the core.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

#include "custom_ops/core/normalize.h"
#include "custom_ops/tf/attributes.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace keras_norms {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// TensorFlow's element type to the core's.
template <class E>
struct CoreType {
  using type = E;
};
template <>
struct CoreType<Eigen::half> {
  using type = float16;
};
template <>
struct CoreType<Eigen::bfloat16> {
  using type = bfloat16;
};

// A large output of malloc is fresh memory, mapped page by page as it is first written: ask for
// huge pages, so that this happens 512 times less often.
void AdviseHugePages(Tensor* tensor) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor->data());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t last = (begin + tensor->TotalBytes()) / kPage * kPage;
  if (last > first + 3 * kPage)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

absl::Span<const int64_t> Dims(const Tensor& tensor, std::vector<int64_t>* storage) {
  storage->clear();
  for (int i = 0; i < tensor.dims(); ++i) storage->push_back(tensor.dim_size(i));
  return *storage;
}

Pool PoolOf(OpKernelContext* c) {
  const auto* workers = c->device()->tensorflow_cpu_worker_threads();
  tensorflow::thread::ThreadPool* threads = workers->workers;
  return {workers->num_threads,
          [threads](std::function<void()> task) { threads->Schedule(std::move(task)); }};
}

// What the six kernels share: the inputs as arrays, the outputs, the view and scratch.
template <class E>
class NormKernel : public OpKernel {
 public:
  using T = typename CoreType<E>::type;
  using U = Parameter<T>;

  explicit NormKernel(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, attributes_.Read(c));
  }

 protected:
  struct Call {
    OpKernelContext* c;
    std::vector<int64_t> dims;
    Geometry k;
    Pool pool;
    Tensor scratch_tensor;
    void* scratch = nullptr;

    template <class V>
    const V* In(int i) const {
      return static_cast<const V*>(static_cast<const void*>(c->input(i).data()));
    }
    const U* InIf(bool there, int i) const { return there ? In<U>(i) : nullptr; }

    absl::Status Check(int i, const char* name, const std::vector<int64_t>& want,
                       bool there = true) const {
      std::vector<int64_t> got;
      return CheckShape(name, Dims(c->input(i), &got), want, there);
    }
    // A large tensor shaped as x, over input `reuse` where nobody else holds that.
    absl::Status OutX(int i, int reuse, T** data) const {
      Tensor* tensor = nullptr;
      const Tensor& like = c->input(reuse);
      TF_RETURN_IF_ERROR(c->forward_input_or_allocate_output({reuse}, i, like.shape(), &tensor));
      if (tensor->data() != like.data()) AdviseHugePages(tensor);
      *data = static_cast<T*>(tensor->data());
      return absl::OkStatus();
    }
    absl::Status Out(int i, const std::vector<int64_t>& shape, U** data) const {
      TensorShape checked;
      TF_RETURN_IF_ERROR(TensorShape::BuildTensorShape(shape, &checked));
      Tensor* tensor = nullptr;
      TF_RETURN_IF_ERROR(c->allocate_output(i, checked, &tensor));
      *data = static_cast<U*>(tensor->data());
      return absl::OkStatus();
    }
  };

  absl::Status Begin(OpKernelContext* c, int x_input, bool per_channel, Call* call) const {
    call->c = c;
    Dims(c->input(x_input), &call->dims);
    TF_RETURN_IF_ERROR(attributes_.View(call->dims, per_channel, &call->k));
    call->pool = PoolOf(c);
    return absl::OkStatus();
  }
  static absl::Status TakeScratch(Call* call) {
    const int64_t bytes = ScratchBytes(call->k);
    if (bytes == 0) return absl::OkStatus();
    TF_RETURN_IF_ERROR(
        call->c->allocate_temp(tensorflow::DT_INT8, TensorShape({bytes}), &call->scratch_tensor));
    call->scratch = call->scratch_tensor.data();
    return absl::OkStatus();
  }
  // Lets the derived classes return a status instead of testing each step.
  virtual absl::Status Run(OpKernelContext* c) = 0;
  void Compute(OpKernelContext* c) override { OP_REQUIRES_OK(c, Run(c)); }

  Attributes attributes_;
};

#define KERAS_NORMS_USE_BASE  \
  using Base = NormKernel<E>; \
  using typename Base::Call;  \
  using typename Base::T;     \
  using typename Base::U;     \
  using Base::attributes_

template <class E>
class NormalizeKernel : public NormKernel<E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call;
    TF_RETURN_IF_ERROR(this->Begin(c, 0, false, &call));
    const Attributes& a = attributes_;
    TF_RETURN_IF_ERROR(call.Check(1, "gamma", a.Channels(call.dims), a.has_gamma));
    TF_RETURN_IF_ERROR(call.Check(2, "beta", a.Channels(call.dims), a.has_beta));
    T* y;
    U *mean, *variance;
    TF_RETURN_IF_ERROR(call.OutX(0, 0, &y));
    TF_RETURN_IF_ERROR(call.Out(1, a.Statistics(call.dims), &mean));
    TF_RETURN_IF_ERROR(call.Out(2, a.Statistics(call.dims), &variance));
    TF_RETURN_IF_ERROR(this->TakeScratch(&call));
    Normalize<T>(call.pool, call.k, call.template In<T>(0), call.InIf(a.has_gamma, 1),
                 call.InIf(a.has_beta, 2), a.epsilon(), a.subtract_mean, a.activation, y, mean,
                 variance, call.scratch);
    return absl::OkStatus();
  }

 public:
  using Base::Base;
};

template <class E>
class NormalizeGradKernel : public NormKernel<E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call;
    TF_RETURN_IF_ERROR(this->Begin(c, 1, false, &call));
    const Attributes& a = attributes_;
    TF_RETURN_IF_ERROR(call.Check(0, "dy", call.dims));
    TF_RETURN_IF_ERROR(call.Check(2, "gamma", a.Channels(call.dims), a.has_gamma));
    const bool reads_beta = a.has_beta && a.activates();
    TF_RETURN_IF_ERROR(call.Check(3, "beta", a.Channels(call.dims), reads_beta));
    TF_RETURN_IF_ERROR(call.Check(4, "mean", a.Statistics(call.dims)));
    TF_RETURN_IF_ERROR(call.Check(5, "variance", a.Statistics(call.dims)));
    T* dx;
    U *dgamma, *dbeta;
    const std::vector<int64_t> channels = a.Channels(call.dims), nothing = {0};
    TF_RETURN_IF_ERROR(call.OutX(0, 0, &dx));
    TF_RETURN_IF_ERROR(call.Out(1, a.has_gamma ? channels : nothing, &dgamma));
    TF_RETURN_IF_ERROR(call.Out(2, a.has_beta ? channels : nothing, &dbeta));
    TF_RETURN_IF_ERROR(this->TakeScratch(&call));
    NormalizeGrad<T>(call.pool, call.k, call.template In<T>(0), call.template In<T>(1),
                     call.InIf(a.has_gamma, 2), call.InIf(reads_beta, 3), call.template In<U>(4),
                     call.template In<U>(5), a.epsilon(), a.subtract_mean, a.activation, dx,
                     a.has_gamma ? dgamma : nullptr, a.has_beta ? dbeta : nullptr, call.scratch);
    return absl::OkStatus();
  }

 public:
  using Base::Base;
};

template <class E>
class MomentsKernel : public NormKernel<E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call;
    TF_RETURN_IF_ERROR(this->Begin(c, 0, false, &call));
    U* outputs[3];
    for (int i = 0; i < 3; ++i) {
      TF_RETURN_IF_ERROR(call.Out(i, attributes_.Statistics(call.dims), &outputs[i]));
    }
    TF_RETURN_IF_ERROR(this->TakeScratch(&call));
    Moments<T>(call.pool, call.k, call.template In<T>(0), attributes_.subtract_mean, outputs[0],
               outputs[1], outputs[2], call.scratch);
    return absl::OkStatus();
  }

 public:
  using Base::Base;
};

template <class E>
class MomentsGradKernel : public NormKernel<E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call;
    TF_RETURN_IF_ERROR(this->Begin(c, 0, false, &call));
    const char* names[] = {"x", "mean", "residual", "dmean", "dvariance"};
    for (int i = 1; i < 5; ++i) {
      TF_RETURN_IF_ERROR(call.Check(i, names[i], attributes_.Statistics(call.dims)));
    }
    T* dx;
    TF_RETURN_IF_ERROR(call.OutX(0, 0, &dx));
    TF_RETURN_IF_ERROR(this->TakeScratch(&call));
    MomentsGrad<T>(call.pool, call.k, call.template In<T>(0), call.template In<U>(1),
                   call.template In<U>(2), call.template In<U>(3), call.template In<U>(4), dx,
                   call.scratch);
    return absl::OkStatus();
  }

 public:
  using Base::Base;
};

template <class E>
class ScaleShiftKernel : public NormKernel<E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call;
    TF_RETURN_IF_ERROR(this->Begin(c, 0, true, &call));
    const Attributes& a = attributes_;
    const std::vector<int64_t> want = a.Coefficients(call.dims);
    TF_RETURN_IF_ERROR(call.Check(1, "center", want, a.has_center));
    TF_RETURN_IF_ERROR(call.Check(2, "scale", want));
    TF_RETURN_IF_ERROR(call.Check(3, "shift", want, a.has_shift));
    T* y;
    TF_RETURN_IF_ERROR(call.OutX(0, 0, &y));
    ScaleShift<T>(call.pool, call.k, call.template In<T>(0), call.InIf(a.has_center, 1),
                  call.template In<U>(2), call.InIf(a.has_shift, 3), a.activation, y);
    return absl::OkStatus();
  }

 public:
  using Base::Base;
};

template <class E>
class ScaleShiftGradKernel : public NormKernel<E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call;
    TF_RETURN_IF_ERROR(this->Begin(c, 1, true, &call));
    const Attributes& a = attributes_;
    const std::vector<int64_t> want = a.Coefficients(call.dims);
    TF_RETURN_IF_ERROR(call.Check(0, "dy", call.dims));
    TF_RETURN_IF_ERROR(call.Check(2, "center", want, a.has_center));
    TF_RETURN_IF_ERROR(call.Check(3, "scale", want));
    const bool reads_shift = a.has_shift && a.activates();
    TF_RETURN_IF_ERROR(call.Check(4, "shift", want, reads_shift));
    T* dx;
    U *dscale, *dshift;
    TF_RETURN_IF_ERROR(call.OutX(0, 0, &dx));
    TF_RETURN_IF_ERROR(call.Out(1, want, &dscale));
    TF_RETURN_IF_ERROR(call.Out(2, want, &dshift));
    TF_RETURN_IF_ERROR(this->TakeScratch(&call));
    ScaleShiftGrad<T>(call.pool, call.k, call.template In<T>(0), call.template In<T>(1),
                      call.InIf(a.has_center, 2), call.template In<U>(3), call.InIf(reads_shift, 4),
                      a.activation, dx, dscale, dshift, call.scratch);
    return absl::OkStatus();
  }

 public:
  using Base::Base;
};

#undef KERAS_NORMS_USE_BASE

#define KERAS_NORMS_REGISTER(E)                                                 \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>Normalize", NormalizeKernel, E);         \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>NormalizeGrad", NormalizeGradKernel, E); \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>Moments", MomentsKernel, E);             \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>MomentsGrad", MomentsGradKernel, E);     \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>ScaleShift", ScaleShiftKernel, E);       \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>ScaleShiftGrad", ScaleShiftGradKernel, E)
#define KERAS_NORMS_REGISTER_ONE(name, kernel, E)                                 \
  REGISTER_KERNEL_BUILDER(Name(name)                                              \
                              .Device(tensorflow::DEVICE_CPU)                     \
                              .TypeConstraint<E>("T")                             \
                              .TypeConstraint<Parameter<CoreType<E>::type>>("U"), \
                          kernel<E>)
KERAS_NORMS_REGISTER(float);
KERAS_NORMS_REGISTER(double);
KERAS_NORMS_REGISTER(Eigen::half);
KERAS_NORMS_REGISTER(Eigen::bfloat16);

}  // namespace
}  // namespace keras_norms

// For `keras-norms doctor`.
extern "C" __attribute__((visibility("default"))) const char* keras_norms_simd_target() {
  return keras_norms::SimdTarget();
}
