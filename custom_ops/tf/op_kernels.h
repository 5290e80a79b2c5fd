// The ops, whatever they run on: check, allocate, call the functions of core/normalize.h or of
// cuda/plan.h. A `Device` has
//
//   explicit Device(OpKernelContext*)
//   absl::Status Run(f)       calls f with what these functions take first: the Pool, the Launcher
//   ScratchBytes<T>(geometry)
//   Allocated(Tensor*)        is told of outputs as large as x
#ifndef KERAS_NORMS_TF_OP_KERNELS_H_
#define KERAS_NORMS_TF_OP_KERNELS_H_

#include <cstdint>
#include <vector>

#include "custom_ops/core/normalize.h"
#include "custom_ops/tf/attributes.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace keras_norms {

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

inline absl::Span<const int64_t> Dims(const Tensor& tensor, std::vector<int64_t>* storage) {
  storage->clear();
  for (int i = 0; i < tensor.dims(); ++i) storage->push_back(tensor.dim_size(i));
  return *storage;
}

// What the six kernels share: the inputs as arrays, the outputs, the view and scratch.
template <class Device, class E>
class NormKernel : public OpKernel {
 public:
  using T = typename CoreType<E>::type;
  using U = Parameter<T>;

  explicit NormKernel(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, attributes_.Read(c));
  }

 protected:
  struct Call {
    OpKernelContext* const c;
    Device device;
    std::vector<int64_t> dims;
    Geometry k;
    Tensor scratch_tensor;
    void* scratch = nullptr;

    explicit Call(OpKernelContext* c) : c(c), device(c) {}

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
      if (tensor->data() != like.data()) Device::Allocated(tensor);
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

  absl::Status Begin(int x_input, bool per_channel, Call* call) const {
    Dims(call->c->input(x_input), &call->dims);
    return attributes_.View(call->dims, per_channel, &call->k);
  }
  static absl::Status TakeScratch(Call* call) {
    const int64_t bytes = Device::template ScratchBytes<T>(call->k);
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

#define KERAS_NORMS_USE_BASE          \
  using Base = NormKernel<Device, E>; \
  using typename Base::Call;          \
  using typename Base::T;             \
  using typename Base::U;             \
  using Base::attributes_

template <class Device, class E>
class NormalizeKernel : public NormKernel<Device, E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call(c);
    TF_RETURN_IF_ERROR(this->Begin(0, false, &call));
    const Attributes& a = attributes_;
    TF_RETURN_IF_ERROR(call.Check(1, "gamma", a.Channels(call.dims), a.has_gamma));
    TF_RETURN_IF_ERROR(call.Check(2, "beta", a.Channels(call.dims), a.has_beta));
    T* y;
    U *mean, *variance;
    TF_RETURN_IF_ERROR(call.OutX(0, 0, &y));
    TF_RETURN_IF_ERROR(call.Out(1, a.Statistics(call.dims), &mean));
    TF_RETURN_IF_ERROR(call.Out(2, a.Statistics(call.dims), &variance));
    TF_RETURN_IF_ERROR(this->TakeScratch(&call));
    return call.device.Run([&](const auto& on) {
      return Normalize<T>(on, call.k, call.template In<T>(0), call.InIf(a.has_gamma, 1),
                          call.InIf(a.has_beta, 2), a.epsilon(), a.subtract_mean, a.activation, y,
                          mean, variance, call.scratch);
    });
  }

 public:
  using Base::Base;
};

template <class Device, class E>
class NormalizeGradKernel : public NormKernel<Device, E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call(c);
    TF_RETURN_IF_ERROR(this->Begin(1, false, &call));
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
    return call.device.Run([&](const auto& on) {
      return NormalizeGrad<T>(on, call.k, call.template In<T>(0), call.template In<T>(1),
                              call.InIf(a.has_gamma, 2), call.InIf(reads_beta, 3),
                              call.template In<U>(4), call.template In<U>(5), a.epsilon(),
                              a.subtract_mean, a.activation, dx, a.has_gamma ? dgamma : nullptr,
                              a.has_beta ? dbeta : nullptr, call.scratch);
    });
  }

 public:
  using Base::Base;
};

template <class Device, class E>
class MomentsKernel : public NormKernel<Device, E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call(c);
    TF_RETURN_IF_ERROR(this->Begin(0, false, &call));
    U* outputs[3];
    for (int i = 0; i < 3; ++i) {
      TF_RETURN_IF_ERROR(call.Out(i, attributes_.Statistics(call.dims), &outputs[i]));
    }
    TF_RETURN_IF_ERROR(this->TakeScratch(&call));
    return call.device.Run([&](const auto& on) {
      return Moments<T>(on, call.k, call.template In<T>(0), attributes_.subtract_mean, outputs[0],
                        outputs[1], outputs[2], call.scratch);
    });
  }

 public:
  using Base::Base;
};

template <class Device, class E>
class MomentsGradKernel : public NormKernel<Device, E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call(c);
    TF_RETURN_IF_ERROR(this->Begin(0, false, &call));
    const char* names[] = {"x", "mean", "residual", "dmean", "dvariance"};
    for (int i = 1; i < 5; ++i) {
      TF_RETURN_IF_ERROR(call.Check(i, names[i], attributes_.Statistics(call.dims)));
    }
    T* dx;
    TF_RETURN_IF_ERROR(call.OutX(0, 0, &dx));
    TF_RETURN_IF_ERROR(this->TakeScratch(&call));
    return call.device.Run([&](const auto& on) {
      return MomentsGrad<T>(on, call.k, call.template In<T>(0), call.template In<U>(1),
                            call.template In<U>(2), call.template In<U>(3), call.template In<U>(4),
                            dx, call.scratch);
    });
  }

 public:
  using Base::Base;
};

template <class Device, class E>
class ScaleShiftKernel : public NormKernel<Device, E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call(c);
    TF_RETURN_IF_ERROR(this->Begin(0, true, &call));
    const Attributes& a = attributes_;
    const std::vector<int64_t> want = a.Coefficients(call.dims);
    TF_RETURN_IF_ERROR(call.Check(1, "center", want, a.has_center));
    TF_RETURN_IF_ERROR(call.Check(2, "scale", want));
    TF_RETURN_IF_ERROR(call.Check(3, "shift", want, a.has_shift));
    T* y;
    TF_RETURN_IF_ERROR(call.OutX(0, 0, &y));
    return call.device.Run([&](const auto& on) {
      return ScaleShift<T>(on, call.k, call.template In<T>(0), call.InIf(a.has_center, 1),
                           call.template In<U>(2), call.InIf(a.has_shift, 3), a.activation, y);
    });
  }

 public:
  using Base::Base;
};

template <class Device, class E>
class ScaleShiftGradKernel : public NormKernel<Device, E> {
  KERAS_NORMS_USE_BASE;
  absl::Status Run(OpKernelContext* c) override {
    Call call(c);
    TF_RETURN_IF_ERROR(this->Begin(1, true, &call));
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
    return call.device.Run([&](const auto& on) {
      return ScaleShiftGrad<T>(on, call.k, call.template In<T>(0), call.template In<T>(1),
                               call.InIf(a.has_center, 2), call.template In<U>(3),
                               call.InIf(reads_shift, 4), a.activation, dx, dscale, dshift,
                               call.scratch);
    });
  }

 public:
  using Base::Base;
};

#undef KERAS_NORMS_USE_BASE

// `Where` is a Device, and `device` TensorFlow's name for it.
#define KERAS_NORMS_REGISTER(Where, device, E)                                                 \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>Normalize", NormalizeKernel, Where, device, E);         \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>NormalizeGrad", NormalizeGradKernel, Where, device, E); \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>Moments", MomentsKernel, Where, device, E);             \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>MomentsGrad", MomentsGradKernel, Where, device, E);     \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>ScaleShift", ScaleShiftKernel, Where, device, E);       \
  KERAS_NORMS_REGISTER_ONE("KerasNorms>ScaleShiftGrad", ScaleShiftGradKernel, Where, device, E)
#define KERAS_NORMS_REGISTER_ONE(op, Kernel, Where, device, E)                                     \
  REGISTER_KERNEL_BUILDER(                                                                         \
      Name(op).Device(device).TypeConstraint<E>("T").TypeConstraint<Parameter<CoreType<E>::type>>( \
          "U"),                                                                                    \
      Kernel<Where, E>)

}  // namespace keras_norms

#endif  // KERAS_NORMS_TF_OP_KERNELS_H_
