// The custom op for TensorFlow Lite with a host that is none: results against plain loops, every
// kind of wrong node, hostile options, threads, the delegate. tests/test_tflite_custom_op.py runs
// it in the real ones.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "custom_ops/core/geometry.h"
#include "tests/cpp/check.h"
#include "tests/tflite/flexbuffer_writer.h"
#include "tests/tflite/host.h"

namespace keras_norms {
namespace tflite {
namespace {

using check::Context;
using check::Expect;

struct Norm {
  std::vector<int> shape;
  int samples, before, channels, after, groups;
  double epsilon = 1e-3;
  bool subtract_mean = true, gamma = true, beta = true;
  std::string activation = "none";
  double mean = 0;

  std::vector<int> Parameters() const {
    const auto first = shape.begin() + samples + before;
    return std::vector<int>(first, first + channels);
  }
  Geometry View() const {
    int64_t sizes[4] = {1, 1, 1, 1};
    const int counts[4] = {samples, before, channels, after};
    for (int part = 0, axis = 0; part < 4; ++part) {
      for (int i = 0; i < counts[part]; ++i) sizes[part] *= shape[axis++];
    }
    return {sizes[0], sizes[1], groups, sizes[2] / groups, sizes[3]};
  }
  FlexbufferWriter Options(int width = 4) const {
    FlexbufferWriter options(width);
    options.Int("samples", samples);
    options.Int("before", before);
    options.Int("channels", channels);
    options.Int("after", after);
    options.Int("groups", groups);
    if (width < 4) {
      options.FarFloat("epsilon", epsilon);
    } else {
      options.Float("epsilon", epsilon);
    }
    options.Bool("subtract_mean", subtract_mean);
    options.Bool("has_gamma", gamma);
    options.Bool("has_beta", beta);
    options.Text("activation", activation);
    return options;
  }
};

// A host with one node of a norm; its x, gamma and beta are random.
struct Model {
  Host host;
  int x = -1, gamma = -1, beta = -1, y = -1;
  std::vector<int> inputs;

  explicit Model(const Norm& norm) : Model(norm, norm.Options().Bytes()) {}
  Model(const Norm& norm, const std::vector<uint8_t>& options) {
    y = host.Tensor(norm.shape);  // first: so the order of inputs is not that of tensors
    if (norm.beta) beta = Random(norm.Parameters(), 0);
    if (norm.gamma) gamma = Random(norm.Parameters(), 1);
    x = Random(norm.shape, norm.mean);
    inputs = {x};
    if (norm.gamma) inputs.push_back(gamma);
    if (norm.beta) inputs.push_back(beta);
    host.Add(inputs, {y}, options, *KerasNormsRegisterNormalize());
  }

 private:
  int Random(const std::vector<int>& shape, double mean) {
    const int tensor = host.Tensor(shape);
    std::normal_distribution<float> normal(static_cast<float>(mean), 1.0f);
    std::mt19937 random(static_cast<unsigned>(7 + tensor));
    const size_t count = host.context().tensors[tensor].bytes / sizeof(float);
    for (size_t i = 0; i < count; ++i) host.data(tensor)[i] = normal(random);
    return tensor;
  }
};

double Activate(const std::string& name, double z) {
  if (name == "relu") return z < 0 ? 0 : z;
  if (name == "silu") return z / (1 + std::exp(-z));
  if (name == "gelu") return z * std::erfc(-z / std::sqrt(2.0)) / 2;
  return z;
}

std::vector<double> Expected(const Norm& norm, Model* model) {
  const Geometry k = norm.View();
  const float* x = model->host.data(model->x);
  std::vector<double> y(k.size());
  const auto at = [&](int64_t n, int64_t s, int64_t g, int64_t d, int64_t t) {
    return (((n * k.s + s) * k.g + g) * k.d + d) * k.t + t;
  };
  for (int64_t n = 0; n < k.n; ++n) {
    for (int64_t g = 0; g < k.g; ++g) {
      const auto each = [&](const auto& fn) {
        for (int64_t s = 0; s < k.s; ++s) {
          for (int64_t d = 0; d < k.d; ++d) {
            for (int64_t t = 0; t < k.t; ++t) fn(at(n, s, g, d, t), g * k.d + d);
          }
        }
      };
      double mean = 0, variance = 0;
      if (norm.subtract_mean) each([&](int64_t i, int64_t) { mean += x[i] / double(k.count()); });
      each([&](int64_t i, int64_t) { variance += (x[i] - mean) * (x[i] - mean) / k.count(); });
      each([&](int64_t i, int64_t c) {
        double z = (x[i] - mean) / std::sqrt(variance + norm.epsilon);
        if (norm.gamma) z *= model->host.data(model->gamma)[c];
        if (norm.beta) z += model->host.data(model->beta)[c];
        y[i] = Activate(norm.activation, z);
      });
    }
  }
  return y;
}

std::vector<float> Output(Model* model, int64_t size) {
  const float* y = model->host.data(model->y);
  return std::vector<float>(y, y + size);
}

void ExpectRight(const Norm& norm, Model* model) {
  double largest = 1;  // of gamma
  if (norm.gamma) {
    for (int64_t c = 0; c < norm.View().channels(); ++c) {
      largest = std::fmax(largest, std::fabs(model->host.data(model->gamma)[c]));
    }
  }
  const std::vector<double> want = Expected(norm, model);
  const float* got = model->host.data(model->y);
  // As docs have it for the fused forward pass, and a rounding of the result.
  check::ExpectEach(
      "y", norm.View().size(),
      [&](int64_t i) {
        return std::fabs(got[i] - want[i]) <= 4e-6 * largest + 1.2e-7 * std::fabs(want[i]);
      },
      [&](int64_t i) { return want[i]; }, [&](int64_t i) { return got[i]; });
}

std::vector<Norm> Norms() {
  return {
      {{3, 7, 22}, 1, 1, 1, 0, 22},                           // instance
      {{2, 5, 3, 22}, 1, 2, 1, 0, 2},                         // group
      {{2, 22, 5, 13}, 1, 0, 1, 2, 11},                       // group, channels first
      {{2, 3, 61}, 2, 0, 1, 0, 1},                            // layer
      {{3, 5, 4, 7}, 1, 0, 3, 0, 1},                          // layer over several axes
      {{4, 3, 5, 17}, 0, 3, 1, 0, 17},                        // batch
      {{4, 17, 3, 5}, 0, 1, 1, 2, 17},                        // batch, channels first
      {{2, 3, 5, 6, 1}, 1, 1, 2, 1, 3},                       // channels in the middle
      {{7, 64}, 1, 0, 1, 0, 1, 1e-6, false, true, false},     // RMS
      {{3, 5, 31}, 1, 1, 1, 0, 31, 1e-6, false, true, true},  // FRN
      {{2, 37, 8}, 1, 1, 1, 0, 4, 1e-3, true, false, true},   // no gamma
      {{2, 37, 8}, 1, 1, 1, 0, 4, 1e-3, true, false, false},  // neither
      {{5, 96}, 1, 0, 1, 0, 1, 1e-3, true, true, true, "relu"},
      {{5, 96}, 1, 0, 1, 0, 1, 1e-3, true, true, true, "silu"},
      {{5, 96}, 1, 0, 1, 0, 1, 1e-3, true, true, true, "gelu"},
      {{2, 101, 12}, 1, 1, 1, 0, 3, 1e-3, true, true, true, "none", 1e4},
      {{67, 771}, 1, 0, 1, 0, 1},  // work for several threads
      {{1, 4099, 24}, 1, 1, 1, 0, 8},
      {{1, 24, 4099}, 1, 0, 1, 1, 8},
  };
}

TEST(Results) {
  for (const Norm& norm : Norms()) {
    Context() = "norm of " + std::to_string(norm.shape.size()) + " axes, the first of " +
                std::to_string(norm.shape[0]);
    for (int width : {1, 2, 4, 8}) {
      Model model(norm, norm.Options(width).Bytes());
      Expect(model.host.Prepare() == kTfLiteOk, "Prepare: " + model.host.error());
      Expect(model.host.resized() == norm.shape, "y is resized");
      Expect(model.host.Invoke() == kTfLiteOk, "Invoke: " + model.host.error());
      ExpectRight(norm, &model);
    }
  }
}

TEST(ThreadsDoNotShow) {
  for (const Norm& norm : Norms()) {
    std::vector<float> first;
    for (int threads : {-1, 1, 2, 3, 8, 1 << 30}) {
      Model model(norm);
      model.host.context().recommended_num_threads = threads;
      Expect(model.host.Prepare() == kTfLiteOk, "Prepare");
      for (int i = 0; i < 5; ++i) Expect(model.host.Invoke() == kTfLiteOk, "Invoke");
      const std::vector<float> y = Output(&model, norm.View().size());
      if (first.empty()) first = y;
      Expect(std::memcmp(first.data(), y.data(), y.size() * sizeof(float)) == 0, "the same bits");
    }
  }
}

// Interpreters on threads of their own share threads and memory.
TEST(ManyAtOnce) {
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([i, &wrong] {
      for (const Norm& norm : Norms()) {
        Model model(norm);
        model.host.context().recommended_num_threads = 1 + i % 3;
        wrong[i] += model.host.Prepare() != kTfLiteOk;
        wrong[i] += model.host.Invoke() != kTfLiteOk;
        const std::vector<float> first = Output(&model, norm.View().size());
        for (int j = 0; j < 3; ++j) wrong[i] += model.host.Invoke() != kTfLiteOk;
        wrong[i] += first != Output(&model, norm.View().size());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int count : wrong) Expect(count == 0, "right results beside others");
}

TEST(InPlace) {
  for (const Norm& norm : Norms()) {
    Model apart(norm), model(norm);
    for (Model* m : {&apart, &model}) {
      Expect(m->host.Prepare() == kTfLiteOk, "Prepare");
      if (m == &model) m->host.context().tensors[m->y].data = m->host.data(m->x);
      Expect(m->host.Invoke() == kTfLiteOk, "Invoke");
    }
    const std::vector<float> want = Output(&apart, norm.View().size());
    Expect(std::memcmp(want.data(), model.host.data(model.x), want.size() * sizeof(float)) == 0,
           "y over x has the same bits");
  }
}

TEST(Empty) {
  for (const std::vector<int>& shape : {std::vector<int>{0, 5, 6}, {2, 0, 6}, {2, 5, 0}}) {
    Norm norm = {shape, 1, 1, 1, 0, 3};
    Model model(norm);
    Expect(model.host.Prepare() == kTfLiteOk, "Prepare: " + model.host.error());
    Expect(model.host.Invoke() == kTfLiteOk, "Invoke");
  }
}

void ExpectError(Host* host, const std::string& want) {
  Expect(host->Prepare() == kTfLiteError, "Prepare refuses: " + want);
  const std::string whole = "KerasNorms>Normalize: " + want;
  Expect(host->error() == whole, "\"" + whole + "\", received \"" + host->error() + "\"");
}

TEST(WrongOptions) {
  const Norm norm = {{2, 5, 6}, 1, 1, 1, 0, 3};
  const auto with = [&](const auto& change, const std::string& want) {
    FlexbufferWriter options = norm.Options(8);
    change(&options);
    Model model(norm, options.Bytes());
    ExpectError(&model.host, want);
  };
  using W = FlexbufferWriter*;
  for (const char* name : {"samples", "before", "channels", "after", "groups"}) {
    const std::string want = std::string("the options must have an integer `") + name + "`.";
    with([&](W o) { o->Forget(name); }, want);
    with([&](W o) { o->Text(name, "1"); }, want);
    with([&](W o) { o->Float(name, 1); }, want);
    with([&](W o) { o->Uint(name, UINT64_MAX); }, want);
  }
  for (const char* name : {"subtract_mean", "has_gamma", "has_beta"}) {
    with([&](W o) { o->Text(name, "true"); },
         std::string("the options must have a bool `") + name + "`.");
  }
  with([](W o) { o->Text("epsilon", "0"); }, "the options must have a float `epsilon`.");
  with([](W o) { o->Forget("activation"); }, "the options must have a text `activation`.");
  with([](W o) { o->Text("activation", "Relu"); },
       "`activation` must be one of none, relu, silu, gelu. Received: Relu.");
  with([](W o) { o->Text("activation", std::string(5000, 'a')); },
       "`activation` must be one of none, relu, silu, gelu. Received: " + std::string(32, 'a') +
           ".");
  with([](W o) { o->Text("activation", "\xff\n%s"); },
       "`activation` must be one of none, relu, silu, gelu. Received: ??%s.");
  with([](W o) { o->Float("epsilon", NAN); },
       "`epsilon` must be finite and at least 0. Received: nan.");
  with([](W o) { o->Float("epsilon", -1); },
       "`epsilon` must be finite and at least 0. Received: -1.000000.");
  with([](W o) { o->Int("groups", 4); },
       "`groups` must divide the number of channels. Received: groups=4, channels=6, "
       "x.shape=(2, 5, 6).");
  with([](W o) { o->Int("groups", 0); }, "`groups` must be at least 1. Received: 0.");
  with([](W o) { o->Int("samples", -1); }, "`samples` must be at least 0. Received: -1.");
  for (int64_t huge : {int64_t{4}, INT64_MAX}) {
    with([&](W o) { o->Int("before", huge); },
         "`samples`, `before`, `channels` and `after` must add up to the rank of `x`. Received: "
         "samples=1, before=" +
             std::to_string(huge) + ", channels=1, after=0, x.shape=(2, 5, 6).");
  }
  with([](W o) { o->Bool("has_beta", false); },
       "a node of these options must have 2 inputs and 1 output. Received: 3 and 1.");
  // What a writer may choose.
  Norm plain = norm;
  FlexbufferWriter options = plain.Options(8);
  options.Int("subtract_mean", 1);
  options.Uint("groups", 3);
  options.FarFloat("epsilon", plain.epsilon);
  Model model(plain, options.Bytes());
  Expect(model.host.Prepare() == kTfLiteOk && model.host.Invoke() == kTfLiteOk,
         "other types of the same numbers: " + model.host.error());
  ExpectRight(plain, &model);
}

TEST(WrongTensors) {
  const Norm norm = {{2, 5, 6}, 1, 1, 1, 0, 3};
  const std::vector<uint8_t> options = norm.Options().Bytes();
  const auto with = [&](const std::vector<int>& inputs, Host* host, int y,
                        const std::string& want) {
    host->Add(inputs, {y}, options, *KerasNormsRegisterNormalize());
    ExpectError(host, want);
  };
  const auto tensors = [](Host* host) {
    return std::vector<int>{host->Tensor({2, 5, 6}), host->Tensor({6}), host->Tensor({6}),
                            host->Tensor({2, 5, 6})};
  };
  for (int bad : {-1, -2, 4, INT32_MAX}) {
    Host host;
    tensors(&host);
    with({0, bad, 2}, &host, 3, "there is no `gamma`.");
  }
  {
    Host host;
    tensors(&host);
    with({0, 1, 2}, &host, -1, "there is no `y`.");
  }
  for (int i = 0; i < 4; ++i) {
    Host host;
    tensors(&host);
    host.context().tensors[i].type = static_cast<TfLiteType>(9);
    const char* names[] = {"x", "gamma", "beta", "y"};
    with({0, 1, 2}, &host, 3,
         std::string("`") + names[i] + "` must be float32 (type 1). Received: type 9.");
  }
  for (const std::vector<int>& shape : {std::vector<int>{5}, {7}, {1, 6}, {}}) {
    Host host;
    tensors(&host);
    const int beta = host.Tensor(shape);
    std::string text;
    for (int size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
    with({0, 1, beta}, &host, 3,
         "`beta` must have shape (6) for this `x` and these options. Received: beta.shape=(" +
             text + ").");
  }
  {
    Host host;
    tensors(&host);
    Ints huge({INT32_MAX, INT32_MAX, 6});
    host.context().tensors[0].dims = huge.get();
    with({0, 1, 2}, &host, 3,
         "`x` must have at most 281474976710656 elements. Received: x.shape=(2147483647, "
         "2147483647, 6).");
  }
  {
    // Of a host that goes on after sizes were refused.
    Model model(norm);
    Expect(model.host.Prepare() == kTfLiteOk, "Prepare");
    Ints more({2, 500, 5});
    model.host.context().tensors[model.x].dims = more.get();
    Expect(model.host.Prepare() == kTfLiteError, "Prepare refuses other channels");
    Expect(model.host.Invoke() == kTfLiteError, "Invoke refuses what is not prepared");
    Expect(model.host.error() == "KerasNorms>Normalize: it runs before it was prepared.",
           "its message");
  }
  {
    Model model(norm);
    Expect(model.host.Prepare() == kTfLiteOk, "Prepare");
    model.host.context().tensors[model.x].data = nullptr;
    Expect(model.host.Invoke() == kTfLiteError, "Invoke refuses a tensor without data");
    Expect(model.host.error() == "KerasNorms>Normalize: an input has no data.", "its message");
  }
}

// Any answer will do that touches no memory but its own; the sanitizers watch.
TEST(HostileOptions) {
  const Norm norm = {{2, 5, 6}, 1, 1, 1, 0, 3};
  int64_t refused = 0, taken = 0;
  const auto offer = [&](const std::vector<uint8_t>& bytes) {
    // Memory that ends where the options end.
    std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size()]);
    std::copy(bytes.begin(), bytes.end(), exact.get());
    Model model(norm, {});
    TfLiteNode node = {};
    Ints inputs(model.inputs), outputs({model.y});
    node.inputs = inputs.get();
    node.outputs = outputs.get();
    const TfLiteRegistration& r = *KerasNormsRegisterNormalize();
    TfLiteContext* context = &model.host.context();
    node.user_data = r.init(context, reinterpret_cast<const char*>(exact.get()), bytes.size());
    if (r.prepare(context, &node) == kTfLiteOk) {
      ++taken;
      Expect(r.invoke(context, &node) == kTfLiteOk, "what is prepared runs");
    } else {
      ++refused;
      Expect(!model.host.error().empty(), "a refusal says why");
    }
    r.free(context, node.user_data);
  };
  for (int width : {1, 2, 4, 8}) {
    const std::vector<uint8_t> whole = norm.Options(width).Bytes();
    for (size_t size = 0; size < whole.size(); ++size) {
      offer(std::vector<uint8_t>(whole.begin(), whole.begin() + size));
      offer(std::vector<uint8_t>(whole.end() - size, whole.end()));
    }
    for (size_t i = 0; i < whole.size(); ++i) {
      for (int value : {0, 1, 2, 3, 4, 8, 0x7f, 0x80, 0xff, whole[i] ^ 1, whole[i] + 1}) {
        std::vector<uint8_t> changed = whole;
        changed[i] = static_cast<uint8_t>(value);
        offer(changed);
      }
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::vector<uint8_t> bytes = norm.Options(1 << i % 4).Bytes();
    if (i % 2) bytes.resize(random() % 64);
    for (unsigned j = 0; j < 1 + random() % 8 && !bytes.empty(); ++j) {
      bytes[random() % bytes.size()] = static_cast<uint8_t>(random());
    }
    if (i % 2 && bytes.size() > 2) {  // half of them claim to be maps
      bytes[bytes.size() - 1] = static_cast<uint8_t>(1 << random() % 4);
      bytes[bytes.size() - 2] = static_cast<uint8_t>(9 << 2 | random() % 4);
    }
    offer(bytes);
  }
  Expect(refused > 1000 && taken > 100, "both answers are given");
}

TEST(Delegate) {
  // Of four nodes, two of ours that follow each other and two of others.
  const Norm norm = {{2, 5, 6}, 1, 1, 1, 0, 3};
  Host host;
  const int x = host.Tensor(norm.shape), middle = host.Tensor(norm.shape);
  const int y = host.Tensor(norm.shape), beta = host.Tensor({6}), gamma = host.Tensor({6});
  for (int i = 0; i < 60; ++i) host.data(x)[i] = std::sin(static_cast<float>(i * i));
  for (int i = 0; i < 6; ++i) host.data(gamma)[i] = 1.0f + i, host.data(beta)[i] = 0.5f - i;
  TfLiteRegistration unresolved = {}, other = {}, builtin = {};
  unresolved.builtin_code = other.builtin_code = kTfLiteBuiltinCustom;
  unresolved.custom_name = "KerasNorms>Normalize";
  other.custom_name = "KerasNorms>NormalizeGrad";
  const std::vector<uint8_t> options = norm.Options().Bytes();
  const int first = host.Add({x}, {y}, {}, other);
  host.Add({x, gamma, beta}, {middle}, options, unresolved);
  host.Add({middle, gamma, beta}, {y}, options, unresolved);
  const int last = host.Add({x}, {y}, {}, builtin);

  TfLiteDelegate* delegate = tflite_plugin_create_delegate(nullptr, nullptr, 0, nullptr);
  Expect(host.Apply(delegate) == kTfLiteOk, "the delegate applies");
  const std::vector<int> plan = host.plan();
  Expect(plan.size() == 4 && plan[0] == first && plan[3] == last, "others stay");
  Expect(plan[1] > last && plan[2] > last && plan[1] != plan[2], "each of ours is claimed");

  // The others, which this host cannot run, aside: the same as two registered nodes.
  Model want(norm);
  std::memcpy(want.host.data(want.x), host.data(x), 60 * sizeof(float));
  for (const char* step : {"x", "middle"}) {
    std::memcpy(want.host.data(want.gamma), host.data(gamma), 6 * sizeof(float));
    std::memcpy(want.host.data(want.beta), host.data(beta), 6 * sizeof(float));
    Expect(want.host.Prepare() == kTfLiteOk && want.host.Invoke() == kTfLiteOk, step);
    std::memcpy(want.host.data(want.x), want.host.data(want.y), 60 * sizeof(float));
  }
  host.RunOnly({plan[1], plan[2]});
  Expect(host.Prepare() == kTfLiteOk, "Prepare: " + host.error());
  Expect(host.Invoke() == kTfLiteOk, "Invoke: " + host.error());
  Expect(std::memcmp(host.data(y), want.host.data(want.y), 60 * sizeof(float)) == 0,
         "the delegate's result is the registered kernel's");
  tflite_plugin_destroy_delegate(delegate);
}

TEST(DelegateHasNoOptions) {
  static std::string said;
  char key[] = "threads", value[] = "2";
  char *keys[] = {key}, *values[] = {value};
  Expect(tflite_plugin_create_delegate(keys, values, 1, [](const char* text) { said = text; }) ==
             nullptr,
         "options are refused");
  Expect(said == "keras-norms: the delegate has no options.", "the reason is told");
  Expect(tflite_plugin_create_delegate(keys, values, 1, nullptr) == nullptr, "to nobody as well");
}

}  // namespace
}  // namespace tflite
}  // namespace keras_norms

int main(int argc, char** argv) { return check::Main(argc, argv); }
