// From the op to a custom call.
#include "custom_ops/tf/xla_lowering.h"

#include <string>
#include <utility>
#include <vector>

#include "custom_ops/tf/attributes.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/compiler/tf2xla/xla_op_registry.h"
#include "xla/hlo/builder/xla_builder.h"
#include "xla/shape_util.h"

namespace keras_norms {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::XlaOpKernel;
using tensorflow::XlaOpKernelContext;

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

template <class Kernel>
void Register(const char* op, const char* device, bool float64) {
  std::vector<tensorflow::DataType> types = {tensorflow::DT_FLOAT, tensorflow::DT_HALF,
                                             tensorflow::DT_BFLOAT16};
  if (float64) types.push_back(tensorflow::DT_DOUBLE);
  tensorflow::XlaOpRegistrar(
      tensorflow::XlaOpRegistrationBuilder::Name(op)
          .Device(device)
          .TypeConstraint("T", types)
          .Build([](OpKernelConstruction* c) -> tensorflow::OpKernel* { return new Kernel(c); }));
}

}  // namespace

bool RegisterLowering(const char* device, bool float64) {
  Register<NormalizeXla>("KerasNorms>Normalize", device, float64);
  Register<NormalizeGradXla>("KerasNorms>NormalizeGrad", device, float64);
  Register<MomentsXla>("KerasNorms>Moments", device, float64);
  Register<MomentsGradXla>("KerasNorms>MomentsGrad", device, float64);
  Register<ScaleShiftXla>("KerasNorms>ScaleShift", device, float64);
  Register<ScaleShiftGradXla>("KerasNorms>ScaleShiftGrad", device, float64);
  return true;
}

}  // namespace keras_norms
