// The ops' signatures and shape functions.
#include <vector>

#include "custom_ops/tf/attributes.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace keras_norms {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// InferenceContext has GetAttr but no HasAttr.
struct Context {
  InferenceContext* c;
  bool HasAttr(const char* name) const { return c->GetAttr(name) != nullptr; }
  template <class V>
  absl::Status GetAttr(const char* name, V* value) const {
    return c->GetAttr(name, value);
  }
};

// Shapes that follow from x's, as far as it is known.
struct Shapes {
  InferenceContext* c;
  Attributes attributes;
  ShapeHandle x, statistics, channels, coefficients, nothing;

  absl::Status Infer(InferenceContext* context, int x_input) {
    c = context;
    Context construction{c};
    TF_RETURN_IF_ERROR(attributes.Read(&construction));
    nothing = c->Vector(0);
    statistics = channels = coefficients = c->UnknownShape();
    x = c->input(x_input);
    if (!c->RankKnown(x)) return absl::OkStatus();
    const int64_t rank = c->Rank(x);
    const int64_t first = attributes.sample_axes + attributes.before_axes;
    // 0 fits any groups and, beside it, any sizes: what an unknown one decides is the kernel's.
    std::vector<int64_t> sizes(rank);
    for (int64_t i = 0; i < rank; ++i) {
      const auto size = c->Dim(x, i);
      sizes[i] = c->ValueKnown(size) ? c->Value(size) : 0;
    }
    Geometry view;
    TF_RETURN_IF_ERROR(attributes.View(sizes, /*per_channel=*/false, &view));
    ShapeHandle samples;
    TF_RETURN_IF_ERROR(c->Subshape(x, 0, attributes.sample_axes, &samples));
    TF_RETURN_IF_ERROR(c->Subshape(x, first, first + attributes.channel_axes, &channels));
    TF_RETURN_IF_ERROR(c->Concatenate(samples, c->Vector(attributes.groups), &statistics));
    return c->Concatenate(samples, channels, &coefficients);
  }
  absl::Status Check(int input, ShapeHandle want) const {
    ShapeHandle merged;
    return c->Merge(c->input(input), want, &merged);
  }
};

absl::Status NormalizeShape(InferenceContext* c) {
  Shapes shapes;
  TF_RETURN_IF_ERROR(shapes.Infer(c, 0));
  const Attributes& a = shapes.attributes;
  TF_RETURN_IF_ERROR(shapes.Check(1, a.has_gamma ? shapes.channels : shapes.nothing));
  TF_RETURN_IF_ERROR(shapes.Check(2, a.has_beta ? shapes.channels : shapes.nothing));
  c->set_output(0, shapes.x);
  c->set_output(1, shapes.statistics);
  c->set_output(2, shapes.statistics);
  return absl::OkStatus();
}

absl::Status NormalizeGradShape(InferenceContext* c) {
  Shapes shapes;
  TF_RETURN_IF_ERROR(shapes.Infer(c, 1));
  const Attributes& a = shapes.attributes;
  TF_RETURN_IF_ERROR(shapes.Check(0, shapes.x));
  TF_RETURN_IF_ERROR(shapes.Check(2, a.has_gamma ? shapes.channels : shapes.nothing));
  const bool reads_beta = a.has_beta && a.activates();
  TF_RETURN_IF_ERROR(shapes.Check(3, reads_beta ? shapes.channels : shapes.nothing));
  TF_RETURN_IF_ERROR(shapes.Check(4, shapes.statistics));
  TF_RETURN_IF_ERROR(shapes.Check(5, shapes.statistics));
  c->set_output(0, shapes.x);
  c->set_output(1, a.has_gamma ? shapes.channels : shapes.nothing);
  c->set_output(2, a.has_beta ? shapes.channels : shapes.nothing);
  return absl::OkStatus();
}

absl::Status MomentsShape(InferenceContext* c) {
  Shapes shapes;
  TF_RETURN_IF_ERROR(shapes.Infer(c, 0));
  for (int i = 0; i < 3; ++i) c->set_output(i, shapes.statistics);
  return absl::OkStatus();
}

absl::Status MomentsGradShape(InferenceContext* c) {
  Shapes shapes;
  TF_RETURN_IF_ERROR(shapes.Infer(c, 0));
  for (int i = 1; i < 5; ++i) TF_RETURN_IF_ERROR(shapes.Check(i, shapes.statistics));
  c->set_output(0, shapes.x);
  return absl::OkStatus();
}

absl::Status ScaleShiftShape(InferenceContext* c) {
  Shapes shapes;
  TF_RETURN_IF_ERROR(shapes.Infer(c, 0));
  const Attributes& a = shapes.attributes;
  TF_RETURN_IF_ERROR(shapes.Check(1, a.has_center ? shapes.coefficients : shapes.nothing));
  TF_RETURN_IF_ERROR(shapes.Check(2, shapes.coefficients));
  TF_RETURN_IF_ERROR(shapes.Check(3, a.has_shift ? shapes.coefficients : shapes.nothing));
  c->set_output(0, shapes.x);
  return absl::OkStatus();
}

absl::Status ScaleShiftGradShape(InferenceContext* c) {
  Shapes shapes;
  TF_RETURN_IF_ERROR(shapes.Infer(c, 1));
  TF_RETURN_IF_ERROR(shapes.Check(0, shapes.x));
  const Attributes& a = shapes.attributes;
  TF_RETURN_IF_ERROR(shapes.Check(2, a.has_center ? shapes.coefficients : shapes.nothing));
  TF_RETURN_IF_ERROR(shapes.Check(3, shapes.coefficients));
  const bool reads_shift = a.has_shift && a.activates();
  TF_RETURN_IF_ERROR(shapes.Check(4, reads_shift ? shapes.coefficients : shapes.nothing));
  c->set_output(0, shapes.x);
  c->set_output(1, shapes.coefficients);
  c->set_output(2, shapes.coefficients);
  return absl::OkStatus();
}

#define KERAS_NORMS_OP(name)                      \
  REGISTER_OP(name)                               \
      .Attr("T: {half, bfloat16, float, double}") \
      .Attr("U: {float, double}")                 \
      .Attr("sample_axes: int >= 0")              \
      .Attr("before_axes: int >= 0")              \
      .Attr("channel_axes: int >= 1")

#define KERAS_NORMS_ACTIVATION "activation: {'none', 'relu', 'silu', 'gelu'} = 'none'"

// y = activation((x - mean) / sqrt(variance + epsilon) * gamma + beta); core/activation.h has the
// activations, core/geometry.h the view: the first sample_axes axes of x are n, the next
// before_axes are s, the next channel_axes are the channels (g, d), the rest is t. gamma and beta
// are shaped as x's channel axes, or empty without has_gamma, has_beta. mean and variance have
// shape x.shape[:sample_axes] + (groups,); they are not differentiated (the Moments op is for
// that). epsilon as a double is epsilon + epsilon_low.
KERAS_NORMS_OP("KerasNorms>Normalize")
    .Input("x: T")
    .Input("gamma: U")
    .Input("beta: U")
    .Output("y: T")
    .Output("mean: U")
    .Output("variance: U")
    .Attr("groups: int >= 1")
    .Attr("epsilon: float")
    .Attr("epsilon_low: float = 0.0")
    .Attr("subtract_mean: bool = true")
    .Attr("has_gamma: bool = true")
    .Attr("has_beta: bool = true")
    .Attr(KERAS_NORMS_ACTIVATION)
    .SetShapeFn(NormalizeShape);

// beta is empty without an activation too, which is what it is read for.
KERAS_NORMS_OP("KerasNorms>NormalizeGrad")
    .Input("dy: T")
    .Input("x: T")
    .Input("gamma: U")
    .Input("beta: U")
    .Input("mean: U")
    .Input("variance: U")
    .Output("dx: T")
    .Output("dgamma: U")
    .Output("dbeta: U")
    .Attr("groups: int >= 1")
    .Attr("epsilon: float")
    .Attr("epsilon_low: float = 0.0")
    .Attr("subtract_mean: bool = true")
    .Attr("has_gamma: bool = true")
    .Attr("has_beta: bool = true")
    .Attr(KERAS_NORMS_ACTIVATION)
    .SetShapeFn(NormalizeGradShape);

// The exact mean is mean + residual. variance is biased.
KERAS_NORMS_OP("KerasNorms>Moments")
    .Input("x: T")
    .Output("mean: U")
    .Output("residual: U")
    .Output("variance: U")
    .Attr("groups: int >= 1")
    .Attr("subtract_mean: bool = true")
    .SetShapeFn(MomentsShape);

KERAS_NORMS_OP("KerasNorms>MomentsGrad")
    .Input("x: T")
    .Input("mean: U")
    .Input("residual: U")
    .Input("dmean: U")
    .Input("dvariance: U")
    .Output("dx: T")
    .Attr("groups: int >= 1")
    .SetShapeFn(MomentsGradShape);

// y = activation((x - center) * scale + shift); the three have shape x.shape[:sample_axes] + x's
// channel axes, or are empty without has_center, has_shift.
KERAS_NORMS_OP("KerasNorms>ScaleShift")
    .Input("x: T")
    .Input("center: U")
    .Input("scale: U")
    .Input("shift: U")
    .Output("y: T")
    .Attr("has_center: bool = true")
    .Attr("has_shift: bool = true")
    .Attr(KERAS_NORMS_ACTIVATION)
    .SetShapeFn(ScaleShiftShape);

// shift is empty without an activation too, which is what it is read for.
KERAS_NORMS_OP("KerasNorms>ScaleShiftGrad")
    .Input("dy: T")
    .Input("x: T")
    .Input("center: U")
    .Input("scale: U")
    .Input("shift: U")
    .Output("dx: T")
    .Output("dscale: U")
    .Output("dshift: U")
    .Attr("has_center: bool = true")
    .Attr("has_shift: bool = true")
    .Attr(KERAS_NORMS_ACTIVATION)
    .SetShapeFn(ScaleShiftGradShape);

#undef KERAS_NORMS_ACTIVATION
#undef KERAS_NORMS_OP

}  // namespace
}  // namespace keras_norms
