// DriverLauncher, through fake_driver.cc, and the choice of images. Run with the argument "absent"
// where there is no libcuda.so.1.
#include "custom_ops/cuda/driver.h"

#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "custom_ops/cuda/arguments.h"
#include "custom_ops/cuda/images.h"
#include "tests/cpp/check.h"

namespace keras_norms {

// check.h prints this beside each test.
const char* SimdTarget() { return "driver"; }

namespace {

template <class F>
F* InDriver(const char* name) {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  void* const found = driver == nullptr ? nullptr : dlsym(driver, name);
  if (found == nullptr) check::Fail(std::string("the fake driver has no ") + name);
  return reinterpret_cast<F*>(found);
}
int Calls(const char* function) { return InDriver<int(const char*)>("fake_cuda_calls")(function); }
int Contexts() { return InDriver<int()>("fake_cuda_contexts")(); }

// For the time of a test.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    setenv(name, value.c_str(), 1);
  }
  ~Setting() { before_.empty() ? unsetenv(name_) : setenv(name_, before_.c_str(), 1); }

 private:
  const char* const name_;
  std::string before_;
};

// In a context of its own on a device of this compute capability.
void* StreamOn(const std::string& capability) {
  const Setting devices("FAKE_CUDA_DEVICES", capability);
  void *context = nullptr, *stream = nullptr;
  InDriver<int(void**, unsigned, int)>("cuCtxCreate_v2")(&context, 0, 0);
  InDriver<int(void**, unsigned)>("cuStreamCreate")(&stream, 0);
  InDriver<int(void**)>("cuCtxPopCurrent_v2")(&context);
  return stream;
}

// One group of each sample; whether the launches succeed, and then whether y is right.
bool Normalize(gpu::DriverLauncher* launcher, const Geometry& k) {
  const int64_t count = k.count();
  std::vector<float> x(k.size()), y(k.size(), NAN), mean(k.n), variance(k.n);
  for (int64_t i = 0; i < k.size(); ++i) x[i] = static_cast<float>(i * i % 7);
  std::vector<char> workspace(gpu::WorkspaceBytes<float>(k) + 16);
  if (!gpu::Normalize<float>(launcher, k, x.data(), nullptr, nullptr, 0.5, true, Activation::kNone,
                             y.data(), mean.data(), variance.data(), workspace.data())) {
    return false;
  }
  for (int64_t n = 0; n < k.n; ++n) {
    const float *const from = &x[n * count], *const to = &y[n * count];
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < count; ++i) sum += from[i];
    for (int64_t i = 0; i < count; ++i) squares += std::pow(from[i] - sum / count, 2);
    for (int64_t i = 0; i < count; ++i) {
      const double want = (from[i] - sum / count) / std::sqrt(squares / count + 0.5);
      check::Expect(std::fabs(to[i] - want) < 4e-6, "y is right");
    }
  }
  return true;
}
bool NormalizeRows(gpu::DriverLauncher* launcher) { return Normalize(launcher, {3, 1, 1, 5, 1}); }

// The message of what fails in a launch on a fresh context.
std::string Failure(const std::string& capability) {
  const Setting devices("FAKE_CUDA_DEVICES", capability);
  gpu::DriverLauncher launcher(StreamOn(capability));
  check::Expect(!NormalizeRows(&launcher), "the launch fails");
  check::Expect(Contexts() == 1, "the stream's context is current");
  return launcher.error();
}

void ExpectFailure(const std::string& got, const std::string& want) {
  if (got != want) check::Fail("expected the message\n    " + want + "\n  got\n    " + got);
  check::Expect(Contexts() == 0, "the contexts are as before");
}

TEST(EveryGeneration) {
  for (const char* capability : {"7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "12.1"}) {
    check::Context() = std::string("compute capability ") + capability;
    const Setting devices("FAKE_CUDA_DEVICES", capability);
    gpu::DriverLauncher launcher(StreamOn(capability));
    const bool launched = NormalizeRows(&launcher);
    check::Expect(launched, launched ? "" : "success. Received: " + launcher.error());
  }
  check::Expect(Contexts() == 0, "the contexts are as before");
}

TEST(OneModuleForEachContext) {
  void* const streams[] = {StreamOn("9.0"), StreamOn("9.0")};
  const int before = Calls("cuModuleLoadData"), functions = Calls("cuModuleGetFunction");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int j = 0; j < 5; ++j) {
        gpu::DriverLauncher launcher(streams[i % 2]);
        check::Expect(NormalizeRows(&launcher), "a launch from thread " + std::to_string(i));
        check::Expect(Contexts() == 1, "the stream's context is current");
      }
      check::Expect(Contexts() == 0, "and then no longer");
    });
  }
  for (std::thread& thread : threads) thread.join();
  check::Expect(Calls("cuModuleLoadData") == before + 2, "each context loads the kernels once");
  check::Expect(Calls("cuModuleGetFunction") == functions + 4,
                "and finds each kernel once, with the one that is asked for clusters");
}

TEST(DefaultStream) {
  {
    gpu::DriverLauncher launcher(nullptr);
    check::Expect(!NormalizeRows(&launcher), "without a context there is no default stream");
    ExpectFailure(launcher.error(),
                  "cuStreamGetCtx failed: CUDA_ERROR_INVALID_CONTEXT (as the test wants it)");
  }
  void* context = nullptr;
  InDriver<int(void**, unsigned, int)>("cuCtxCreate_v2")(&context, 0, 0);
  {
    gpu::DriverLauncher launcher(nullptr);
    check::Expect(NormalizeRows(&launcher), "the default stream of the current context");
  }
  check::Expect(Contexts() == 1, "the context stays current");
  InDriver<int(void**)>("cuCtxPopCurrent_v2")(&context);
}

TEST(MoreSharedMemoryIsAskedForOnce) {
  gpu::DriverLauncher launcher(StreamOn("9.0"));
  gpu::SumParts nothing = {};
  nothing.column_tiles = 1;
  void* pointers[] = {&nothing};
  constexpr unsigned kBlock = gpu::kSumColumns * gpu::kSumRows;
  const int before = Calls("cuFuncSetAttribute");
  for (unsigned bytes : {48u << 10, 64u << 10, 50u << 10, 64u << 10}) {
    check::Expect(launcher.Launch("sum_parts", {{1, 1, 1}, {kBlock, 1, 1}, bytes}, pointers),
                  "a launch with " + std::to_string(bytes) + " bytes: " + launcher.error());
  }
  check::Expect(Calls("cuFuncSetAttribute") == before + 1, "asked for once");
  check::Expect(!launcher.Launch("sum_parts", {{1, 1, 1}, {kBlock, 1, 1}, 300 << 10}, pointers),
                "more than a device has");
  check::Expect(launcher.error() ==
                    "cuFuncSetAttribute of sum_parts failed: CUDA_ERROR_INVALID_VALUE (as the test "
                    "wants it)",
                "the message. Received: " + launcher.error());
}

// Slices of 16 and of 64 KB, by blocks of 8 KB.
TEST(Clusters) {
  const Setting shared("FAKE_CUDA_SHARED", "8192"), cooperative("FAKE_CUDA_COOPERATIVE", "0");
  const Geometry small = {2, 1, 1, 4, 1024}, large = {1, 1, 1, 8, 2048};
  const std::tuple<const char*, const char*, bool, bool> devices[] = {
      {"8.6", "16", false, false}, {"9.0", "16", true, true},  {"12.1", "16", true, true},
      {"9.0", "8", true, false},   {"9.0", "2", false, false},
  };
  for (const auto& [capability, most, small_held, large_held] : devices) {
    check::Context() = std::string(capability) + " with clusters of " + most;
    const Setting device("FAKE_CUDA_DEVICES", capability), cluster("FAKE_CUDA_CLUSTER", most);
    gpu::DriverLauncher launcher(StreamOn(capability));
    for (const auto& [k, held] : {std::pair{small, small_held}, {large, large_held}}) {
      const int clusters = Calls("cuLaunchKernelEx"), all = Calls("cuLaunchKernel");
      check::Expect(Normalize(&launcher, k), "the launches succeed: " + launcher.error());
      check::Expect(Calls("cuLaunchKernelEx") == clusters + held,
                    "one launch of clusters, or none");
      check::Expect((Calls("cuLaunchKernel") == all) == held, "and no other, or others");
    }
  }
  check::Context() = "failures";
  const std::pair<const char*, const char*> failures[] = {
      {"cuLaunchKernelEx",
       "The launch of slices_forward_float32x4 failed: CUDA_ERROR_LAUNCH_FAILED"},
      {"cuOccupancyMaxPotentialClusterSize",
       "cuOccupancyMaxPotentialClusterSize failed: CUDA_ERROR_INVALID_VALUE"},
      {"cuOccupancyMaxActiveBlocksPerMultiprocessor",
       "cuOccupancyMaxActiveBlocksPerMultiprocessor failed: CUDA_ERROR_INVALID_VALUE"},
  };
  for (const auto& [function, message] : failures) {
    const Setting fail("FAKE_CUDA_FAIL", function);
    gpu::DriverLauncher launcher(StreamOn("9.0"));
    check::Expect(!Normalize(&launcher, small), "the launch fails");
    check::Expect(launcher.error() == message + std::string(" (as the test wants it)"),
                  "the message. Received: " + launcher.error());
  }
}

// A slice of 64 KB by 32 blocks of 8 KB, two on a multiprocessor.
TEST(Cooperative) {
  const Setting shared("FAKE_CUDA_SHARED", "8192"), clusters("FAKE_CUDA_CLUSTER", "2");
  const Geometry k = {1, 1, 1, 8, 2048};
  const std::tuple<const char*, const char*, const char*, bool> devices[] = {
      {"9.0", "16", "1", true},  {"12.1", "132", "1", true}, {"9.0", "15", "1", false},
      {"9.0", "16", "0", false}, {"8.6", "132", "1", false},
  };
  for (const auto& [capability, multiprocessors, supported, taken] : devices) {
    check::Context() = std::string(capability) + " with multiprocessors: " + multiprocessors +
                       ", cooperative launches: " + supported;
    const Setting device("FAKE_CUDA_DEVICES", capability),
        size("FAKE_CUDA_MULTIPROCESSORS", multiprocessors),
        support("FAKE_CUDA_COOPERATIVE", supported);
    gpu::DriverLauncher launcher(StreamOn(capability));
    const int cooperative = Calls("cooperative"), all = Calls("cuLaunchKernel");
    check::Expect(Normalize(&launcher, k), "the launches succeed: " + launcher.error());
    check::Expect(Calls("cooperative") == cooperative + taken, "a cooperative launch, or none");
    const int others = Calls("cuLaunchKernel") - all;
    check::Expect(others == (taken ? 1 : 3), "one launch of zeros, or three of two reads");
  }
  check::Context() = "a device that has become smaller";
  const Setting size("FAKE_CUDA_MULTIPROCESSORS", "16");
  gpu::DriverLauncher launcher(StreamOn("9.0"));
  check::Expect(Normalize(&launcher, k), "the launches succeed: " + launcher.error());
  const Setting smaller("FAKE_CUDA_MULTIPROCESSORS", "15");
  check::Expect(!Normalize(&launcher, k), "the launch is refused");
  check::Expect(launcher.error() ==
                    "The launch of slices_forward_float32x4 failed: "
                    "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE (as the test wants it)",
                "the message. Received: " + launcher.error());
}

TEST(Failures) {
  ExpectFailure(Failure("7.0"),
                "There are no CUDA kernels for compute capability 7.0. Received: sm_75, sm_80, "
                "sm_86, sm_90, compute_90.");
  const std::pair<const char*, const char*> failures[] = {
      {"cuStreamGetCtx", "cuStreamGetCtx failed: CUDA_ERROR_INVALID_CONTEXT"},
      {"cuCtxPushCurrent", "cuCtxPushCurrent failed: CUDA_ERROR_INVALID_CONTEXT"},
      {"cuModuleLoadData", "cuModuleLoadData failed: CUDA_ERROR_INVALID_IMAGE"},
      {"cuModuleGetFunction",
       "cuModuleGetFunction of slices_forward_float32x4 failed: CUDA_ERROR_NOT_FOUND"},
      {"cuLaunchKernel", "The launch of rows_forward_float32x1 failed: CUDA_ERROR_LAUNCH_FAILED"},
  };
  for (const auto& [function, message] : failures) {
    check::Context() = std::string("failure of ") + function;
    void* const stream = StreamOn("9.0");
    {
      const Setting fail("FAKE_CUDA_FAIL", function);
      gpu::DriverLauncher launcher(stream);
      check::Expect(!NormalizeRows(&launcher), "the launch fails");
      check::Expect(!NormalizeRows(&launcher), "and the next");
      check::Expect(launcher.error() == message + std::string(" (as the test wants it)"),
                    "the message. Received: " + launcher.error());
    }
    gpu::DriverLauncher again(stream);
    check::Expect(NormalizeRows(&again), "what failed is tried again");
  }
  gpu::DriverLauncher launcher(StreamOn("9.0"));
  void* pointers[] = {nullptr};
  check::Expect(!launcher.Launch("no_such_kernel", {{1, 1, 1}, {32, 1, 1}}, pointers),
                "a kernel that is not there");
}

// ---- Images ----

struct Image {
  uint32_t architecture, is_ptx;
  std::string content;
};

std::string Packed(const std::vector<Image>& images) {
  std::string head = "KNIMAGES", content;
  const auto put = [&](auto number) {
    head.append(reinterpret_cast<const char*>(&number), sizeof(number));
  };
  put(uint32_t{1});
  put(static_cast<uint32_t>(images.size()));
  uint64_t offset = 16 + 24 * images.size();
  for (const Image& image : images) {
    put(image.architecture);
    put(image.is_ptx);
    put(offset);
    put(uint64_t{image.content.size()});
    offset += image.content.size();
    content += image.content;
  }
  return head + content;
}

std::string Chosen(const std::string& packed, int major, int minor) {
  std::string why_not;
  const void* const image = gpu::ChooseImage(packed.data(), packed.size(), major, minor, &why_not);
  return image == nullptr ? why_not : std::string(1, *static_cast<const char*>(image));
}

TEST(ChoiceOfImages) {
  const std::vector<Image> images = {
      {90, 1, std::string("P\0", 2)}, {80, 0, "a"}, {89, 0, "c"}, {86, 0, "b"}, {75, 0, "t"},
      {70, 1, std::string("Q\0", 2)}};
  const std::string packed = Packed(images);
  const std::tuple<int, int, const char*> choices[] = {
      {7, 0, "Q"}, {7, 2, "Q"}, {7, 5, "t"}, {8, 0, "a"},  {8, 6, "b"},
      {8, 7, "b"}, {8, 9, "c"}, {9, 0, "P"}, {10, 0, "P"}, {12, 1, "P"},
  };
  for (const auto& [major, minor, want] : choices) {
    check::Context() = std::to_string(major) + "." + std::to_string(minor);
    check::Expect(Chosen(packed, major, minor) == want, want);
  }
  check::Context() = "6.1";
  check::Expect(Chosen(packed, 6, 1) ==
                    "There are no CUDA kernels for compute capability 6.1. Received: compute_90, "
                    "sm_80, sm_89, sm_86, sm_75, compute_70.",
                "all that is there. Received: " + Chosen(packed, 6, 1));
}

TEST(DamagedImages) {
  const std::string damaged = "The CUDA kernels inside the library are damaged.";
  const std::string whole = Packed({{80, 0, "abcd"}, {90, 1, std::string("ptx\0", 4)}});
  check::Expect(Chosen(whole, 8, 0) == "a", "the whole is none");
  for (size_t size = 0; size < whole.size(); ++size) {
    check::Context() = std::to_string(size) + " bytes";
    check::Expect(Chosen(std::string(whole.data(), size), 8, 0) == damaged, "it is refused");
  }
  for (size_t at : {0, 8, 12, 40 + 8 + 7}) {  // magic, version, number, an offset
    std::string changed = whole;
    changed[at] = '\x7f';
    check::Context() = "byte " + std::to_string(at);
    check::Expect(Chosen(changed, 8, 0) == damaged, "it is refused");
  }
  check::Context() = "PTX without an end";
  check::Expect(Chosen(Packed({{90, 1, "ptx"}}), 9, 0) == damaged, "it is refused");
}

}  // namespace
}  // namespace keras_norms

int main(int argc, char** argv) {
  using keras_norms::gpu::DriverLauncher;
  if (argc > 1 && argv[1] == std::string("absent")) {
    DriverLauncher launcher(nullptr);
    const std::string why = launcher.error(), want = "There is no CUDA driver: libcuda.so.1: ";
    const bool told = why.compare(0, want.size(), want) == 0;
    std::printf("%s without a driver: %s\n", told ? "ok    " : "FAILED", why.c_str());
    return told ? 0 : 1;
  }
  const check::Result result = check::RunTests(argc > 1 ? argv[1] : "");
  std::printf("%d passed, %d failed\n", result.passed, result.failed);
  return result.failed == 0 && result.passed > 0 ? 0 : 1;
}
