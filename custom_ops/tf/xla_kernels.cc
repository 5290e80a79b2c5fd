// The ops inside XLA on the CPU: each lowers to one custom call that runs the core.
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "custom_ops/core/normalize.h"
#include "custom_ops/tf/attributes.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/compiler/tf2xla/xla_op_registry.h"
#include "xla/ffi/api/ffi.h"
#include "xla/hlo/builder/xla_builder.h"
#include "xla/shape_util.h"

// Both wheels, tensorflow and tensorflow-cpu, export this; its header needs others that they lack.
namespace xla::ffi {
const XLA_FFI_Api* GetXlaFfiApi();
}

namespace keras_norms {
namespace {

namespace ffi = xla::ffi;
using tensorflow::OpKernelConstruction;
using tensorflow::XlaOpKernel;
using tensorflow::XlaOpKernelContext;

// ---- When it runs: from buffers to the core -------------------------------------------------

// What every handler is given.
struct Call {
  Geometry k;
  Pool pool;
  std::vector<void*> in, out;
  double epsilon;
  bool subtract_mean, has_gamma, has_beta, has_center, has_shift;
  Activation activation;
  void* scratch;

  bool activates() const { return activation != Activation::kNone; }

  template <class V>
  V* Out(int i) const {
    return static_cast<V*>(out[i]);
  }
  template <class V>
  const V* In(int i, bool there = true) const {
    return there ? static_cast<const V*>(in[i]) : nullptr;
  }
};

template <class T>
struct Runner {
  using U = Parameter<T>;
  static void RunNormalize(const Call& c) {
    Normalize<T>(c.pool, c.k, c.In<T>(0), c.In<U>(1, c.has_gamma), c.In<U>(2, c.has_beta),
                 c.epsilon, c.subtract_mean, c.activation, c.Out<T>(0), c.Out<U>(1), c.Out<U>(2),
                 c.scratch);
  }
  static void RunNormalizeGrad(const Call& c) {
    NormalizeGrad<T>(c.pool, c.k, c.In<T>(0), c.In<T>(1), c.In<U>(2, c.has_gamma),
                     c.In<U>(3, c.has_beta && c.activates()), c.In<U>(4), c.In<U>(5), c.epsilon,
                     c.subtract_mean, c.activation, c.Out<T>(0),
                     c.has_gamma ? c.Out<U>(1) : nullptr, c.has_beta ? c.Out<U>(2) : nullptr,
                     c.scratch);
  }
  static void RunMoments(const Call& c) {
    Moments<T>(c.pool, c.k, c.In<T>(0), c.subtract_mean, c.Out<U>(0), c.Out<U>(1), c.Out<U>(2),
               c.scratch);
  }
  static void RunMomentsGrad(const Call& c) {
    MomentsGrad<T>(c.pool, c.k, c.In<T>(0), c.In<U>(1), c.In<U>(2), c.In<U>(3), c.In<U>(4),
                   c.Out<T>(0), c.scratch);
  }
  static void RunScaleShift(const Call& c) {
    ScaleShift<T>(c.pool, c.k, c.In<T>(0), c.In<U>(1, c.has_center), c.In<U>(2),
                  c.In<U>(3, c.has_shift), c.activation, c.Out<T>(0));
  }
  static void RunScaleShiftGrad(const Call& c) {
    ScaleShiftGrad<T>(c.pool, c.k, c.In<T>(0), c.In<T>(1), c.In<U>(2, c.has_center), c.In<U>(3),
                      c.In<U>(4, c.has_shift && c.activates()), c.activation, c.Out<T>(0),
                      c.Out<U>(1), c.Out<U>(2), c.scratch);
  }
};

template <void (*kFloat)(const Call&), void (*kDouble)(const Call&), void (*kBfloat16)(const Call&),
          void (*kFloat16)(const Call&)>
ffi::Error Handle(ffi::ThreadPool threads, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  ffi::Dictionary attributes) {
  const auto integer = [&](const char* name) {
    const auto value = attributes.get<int64_t>(name);
    return value.has_value() ? *value : int64_t{-1};
  };
  const auto low = attributes.get<float>("epsilon_low"), high = attributes.get<float>("epsilon");
  Call call;
  call.k = {integer("n"), integer("s"), integer("g"), integer("d"), integer("t")};
  const int64_t flags = integer("flags"), activation = integer("activation");
  if (call.k.n < 0 || call.k.s < 0 || call.k.g < 0 || call.k.d < 0 || call.k.t < 0 || flags < 0 ||
      activation < 0 || !low.has_value() || !high.has_value()) {
    return ffi::Error::InvalidArgument("keras_norms: a custom call without its attributes");
  }
  call.epsilon = static_cast<double>(*high) + *low;
  call.subtract_mean = flags & 1;
  call.has_gamma = flags & 2;
  call.has_beta = flags & 4;
  call.has_center = flags & 8;
  call.has_shift = flags & 16;
  call.activation = static_cast<Activation>(activation);
  call.pool.threads = static_cast<int>(threads.num_threads());
  call.pool.schedule = [&threads](std::function<void()> task) {
    threads.Schedule(std::move(task));
  };
  auto type = ffi::DataType::INVALID;
  for (size_t i = 0; i < args.size(); ++i) {
    const auto buffer = args.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value()) return buffer.error();
    if (i == 0) type = buffer->element_type();
    call.in.push_back(buffer->untyped_data());
  }
  for (size_t i = 0; i < rets.size(); ++i) {
    auto buffer = rets.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value()) return buffer.error();
    call.out.push_back((*buffer)->untyped_data());
  }
  constexpr size_t kAlignment = 64;
  const size_t bytes = (ScratchBytes(call.k) + kAlignment - 1) / kAlignment * kAlignment;
  const std::unique_ptr<void, void (*)(void*)> scratch(
      bytes == 0 ? nullptr : std::aligned_alloc(kAlignment, bytes), std::free);
  if (bytes != 0 && scratch == nullptr) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "keras_norms: no memory for scratch");
  }
  call.scratch = scratch.get();
  switch (type) {
    case ffi::DataType::F32:
      kFloat(call);
      break;
    case ffi::DataType::F64:
      kDouble(call);
      break;
    case ffi::DataType::BF16:
      kBfloat16(call);
      break;
    case ffi::DataType::F16:
      kFloat16(call);
      break;
    default:
      return ffi::Error::InvalidArgument("keras_norms: unknown element type");
  }
  return ffi::Error::Success();
}

#define KERAS_NORMS_HANDLER(name, target)                                                       \
  XLA_FFI_DEFINE_HANDLER(                                                                       \
      k##name##Handler,                                                                         \
      (Handle<Runner<float>::Run##name, Runner<double>::Run##name, Runner<bfloat16>::Run##name, \
              Runner<float16>::Run##name>),                                                     \
      ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs());         \
  XLA_FFI_REGISTER_HANDLER(ffi::GetXlaFfiApi(), target, "Host", k##name##Handler)
KERAS_NORMS_HANDLER(Normalize, "keras_norms_normalize");
KERAS_NORMS_HANDLER(NormalizeGrad, "keras_norms_normalize_grad");
KERAS_NORMS_HANDLER(Moments, "keras_norms_moments");
KERAS_NORMS_HANDLER(MomentsGrad, "keras_norms_moments_grad");
KERAS_NORMS_HANDLER(ScaleShift, "keras_norms_scale_shift");
KERAS_NORMS_HANDLER(ScaleShiftGrad, "keras_norms_scale_shift_grad");
#undef KERAS_NORMS_HANDLER

// ---- When it compiles: from the op to a custom call -----------------------------------------

using Dims = std::vector<int64_t>;

class NormXlaKernel : public XlaOpKernel {
 public:
  NormXlaKernel(OpKernelConstruction* c, std::string target, int x_input, bool per_channel)
      : XlaOpKernel(c), target_(std::move(target)), x_input_(x_input), per_channel_(per_channel) {
    OP_REQUIRES_OK(c, attributes_.Read(c));
  }

 protected:
  struct Input {
    const char* name;
    Dims shape;
    bool there = true;
  };
  // The shapes that the inputs must have, and those of the outputs, from x's. Outputs have the
  // parameters' type, but for the first where FirstOutputIsLikeX.
  virtual std::vector<Input> Inputs(const Dims& x) const = 0;
  virtual std::vector<Dims> Outputs(const Dims& x) const = 0;
  virtual bool FirstOutputIsLikeX() const { return true; }

  void Compile(XlaOpKernelContext* c) override {
    const tensorflow::TensorShape x_shape = c->InputShape(x_input_);
    Dims x;
    for (int i = 0; i < x_shape.dims(); ++i) x.push_back(x_shape.dim_size(i));
    Geometry k;
    OP_REQUIRES_OK(c, attributes_.View(x, per_channel_, &k));
    const std::vector<Input> inputs = Inputs(x);
    std::vector<xla::XlaOp> operands;
    std::vector<xla::Shape> operand_shapes;
    for (int i = 0; i < c->num_inputs(); ++i) {
      const tensorflow::TensorShape shape = c->InputShape(i);
      Dims got;
      for (int j = 0; j < shape.dims(); ++j) got.push_back(shape.dim_size(j));
      OP_REQUIRES_OK(c, CheckShape(inputs[i].name, got, inputs[i].shape, inputs[i].there));
      const absl::StatusOr<xla::Shape> known = c->InputXlaShape(i);
      OP_REQUIRES_OK(c, known.status());
      // As tf.boolean_mask gives: the core would take what pads it for data.
      OP_REQUIRES(c, known->is_static(),
                  absl::UnimplementedError(absl::StrCat(
                      "`", inputs[i].name,
                      "` must have a shape that XLA knows when it compiles; for one of bounded "
                      "sizes use keras_norms.portable(). Received: ",
                      inputs[i].name, ".shape=", xla::ShapeUtil::HumanString(*known))));
      operands.push_back(c->Input(i));
      operand_shapes.push_back(xla::ShapeUtil::MakeShape(c->input_xla_type(i), got));
    }
    std::vector<xla::Shape> results;
    for (const Dims& shape : Outputs(x)) {
      const int i = static_cast<int>(results.size());
      xla::PrimitiveType type = c->input_xla_type(x_input_);
      if (type != xla::F64 && !(i == 0 && FirstOutputIsLikeX())) type = xla::F32;
      results.push_back(xla::ShapeUtil::MakeShape(type, shape));
    }
    const int flags = attributes_.subtract_mean | attributes_.has_gamma << 1 |
                      attributes_.has_beta << 2 | attributes_.has_center << 3 |
                      attributes_.has_shift << 4;
    const std::string opaque = absl::StrFormat(
        "{n = %d : i64, s = %d : i64, g = %d : i64, d = %d : i64, t = %d : i64, flags = %d : i64, "
        "activation = %d : i64, epsilon = %.9e : f32, epsilon_low = %.9e : f32}",
        k.n, k.s, k.g, k.d, k.t, flags, static_cast<int>(attributes_.activation),
        attributes_.epsilon_high, attributes_.epsilon_low);
    const bool one = results.size() == 1;
    const xla::XlaOp call = xla::CustomCallWithLayout(
        c->builder(), target_, operands, one ? results[0] : xla::ShapeUtil::MakeTupleShape(results),
        operand_shapes, opaque,
        /*has_side_effect=*/false, /*output_operand_aliasing=*/{}, /*literal=*/nullptr,
        xla::CustomCallSchedule::SCHEDULE_NONE, xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
    for (size_t i = 0; i < results.size(); ++i) {
      c->SetOutput(static_cast<int>(i), one ? call : xla::GetTupleElement(call, i));
    }
  }

  Attributes attributes_;

 private:
  const std::string target_;
  const int x_input_;
  const bool per_channel_;
};

class NormalizeXla : public NormXlaKernel {
 public:
  explicit NormalizeXla(OpKernelConstruction* c)
      : NormXlaKernel(c, "keras_norms_normalize", 0, false) {}
  std::vector<Input> Inputs(const Dims& x) const override {
    const Attributes& a = attributes_;
    return {{"x", x}, {"gamma", a.Channels(x), a.has_gamma}, {"beta", a.Channels(x), a.has_beta}};
  }
  std::vector<Dims> Outputs(const Dims& x) const override {
    return {x, attributes_.Statistics(x), attributes_.Statistics(x)};
  }
};

class NormalizeGradXla : public NormXlaKernel {
 public:
  explicit NormalizeGradXla(OpKernelConstruction* c)
      : NormXlaKernel(c, "keras_norms_normalize_grad", 1, false) {}
  std::vector<Input> Inputs(const Dims& x) const override {
    const Attributes& a = attributes_;
    return {{"dy", x},
            {"x", x},
            {"gamma", a.Channels(x), a.has_gamma},
            {"beta", a.Channels(x), a.has_beta && a.activates()},
            {"mean", a.Statistics(x)},
            {"variance", a.Statistics(x)}};
  }
  std::vector<Dims> Outputs(const Dims& x) const override {
    const Attributes& a = attributes_;
    return {x, a.has_gamma ? a.Channels(x) : Dims{0}, a.has_beta ? a.Channels(x) : Dims{0}};
  }
};

class MomentsXla : public NormXlaKernel {
 public:
  explicit MomentsXla(OpKernelConstruction* c)
      : NormXlaKernel(c, "keras_norms_moments", 0, false) {}
  std::vector<Input> Inputs(const Dims& x) const override { return {{"x", x}}; }
  std::vector<Dims> Outputs(const Dims& x) const override { return {3, attributes_.Statistics(x)}; }
  bool FirstOutputIsLikeX() const override { return false; }
};

class MomentsGradXla : public NormXlaKernel {
 public:
  explicit MomentsGradXla(OpKernelConstruction* c)
      : NormXlaKernel(c, "keras_norms_moments_grad", 0, false) {}
  std::vector<Input> Inputs(const Dims& x) const override {
    const Dims statistics = attributes_.Statistics(x);
    return {{"x", x},
            {"mean", statistics},
            {"residual", statistics},
            {"dmean", statistics},
            {"dvariance", statistics}};
  }
  std::vector<Dims> Outputs(const Dims& x) const override { return {x}; }
};

class ScaleShiftXla : public NormXlaKernel {
 public:
  explicit ScaleShiftXla(OpKernelConstruction* c)
      : NormXlaKernel(c, "keras_norms_scale_shift", 0, true) {}
  std::vector<Input> Inputs(const Dims& x) const override {
    const Dims want = attributes_.Coefficients(x);
    return {{"x", x},
            {"center", want, attributes_.has_center},
            {"scale", want},
            {"shift", want, attributes_.has_shift}};
  }
  std::vector<Dims> Outputs(const Dims& x) const override { return {x}; }
};

class ScaleShiftGradXla : public NormXlaKernel {
 public:
  explicit ScaleShiftGradXla(OpKernelConstruction* c)
      : NormXlaKernel(c, "keras_norms_scale_shift_grad", 1, true) {}
  std::vector<Input> Inputs(const Dims& x) const override {
    const Attributes& a = attributes_;
    const Dims want = a.Coefficients(x);
    return {{"dy", x},
            {"x", x},
            {"center", want, a.has_center},
            {"scale", want},
            {"shift", want, a.has_shift && a.activates()}};
  }
  std::vector<Dims> Outputs(const Dims& x) const override {
    return {x, attributes_.Coefficients(x), attributes_.Coefficients(x)};
  }
};

#define KERAS_NORMS_XLA(name, kernel) \
  REGISTER_XLA_OP(Name("KerasNorms>" name).Device(tensorflow::DEVICE_CPU_XLA_JIT), kernel)
KERAS_NORMS_XLA("Normalize", NormalizeXla);
KERAS_NORMS_XLA("NormalizeGrad", NormalizeGradXla);
KERAS_NORMS_XLA("Moments", MomentsXla);
KERAS_NORMS_XLA("MomentsGrad", MomentsGradXla);
KERAS_NORMS_XLA("ScaleShift", ScaleShiftXla);
KERAS_NORMS_XLA("ScaleShiftGrad", ScaleShiftGradXla);
#undef KERAS_NORMS_XLA

}  // namespace
}  // namespace keras_norms
