// A libcuda.so.1 that has the part of the CUDA driver which custom_ops/cuda/driver.cc uses, and
// runs kernels on the CPU (shim.h). It refuses what a driver refuses: images for another device,
// kernels that are not in the image, handles of another context, blocks and shared memory beyond
// the limits.
//
// FAKE_CUDA_DEVICES     compute capability of each device, as "9.0,8.6" (default: one, 9.0)
// FAKE_CUDA_FAIL        a function that fails, as "cuLaunchKernel"
// FAKE_CUDA_SHARED      bytes of shared memory that a block can have (default: 232448)
// FAKE_CUDA_CLUSTER     most blocks of a cluster (default: 16)
// FAKE_CUDA_MULTIPROCESSORS  (default: 132; each has room for blocks of FAKE_CUDA_SHARED and 1 KB)
// FAKE_CUDA_COOPERATIVE whether there are cooperative launches (default: 1)
// FAKE_CUDA_PRIMARY     if set, a thread without a context finds that of the first device current
#include <elf.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/cuda/kernels.h"
#include "tests/cuda/shim.h"

namespace {

enum Result {
  kSuccess = 0,
  kInvalidValue = 1,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kNoBinaryForGpu = 209,
  kInvalidPtx = 218,
  kNotFound = 500,
  kLaunchFailed = 719,
  kCooperativeLaunchTooLarge = 720,
  kInvalidClusterSize = 912,
};

struct Context {
  int device;
};
struct Stream {
  Context* context;
};
struct Module {
  Context* context;
  std::string image;
  bool is_ptx;
};
struct Function {
  Module* module;
  keras_norms::gpu::Kernel kernel;
  unsigned shared_bytes = 48 << 10;  // that it may be launched with
  unsigned cluster = 8;
};
// As in cuda.h.
struct LaunchAttribute {
  int id, pad;
  union {
    unsigned cluster[3];
    int cooperative;
  };
  char room[52];
};
struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  Stream* stream;
  const LaunchAttribute* attributes;
  unsigned attribute_count;
};
static_assert(sizeof(LaunchAttribute) == 72 && sizeof(LaunchConfig) == 56, "as on 64 bits");

std::mutex mutex;  // of all below, and of the shim, which runs one kernel at a time
std::map<std::string, int> calls;
thread_local std::vector<Context*> current;

std::string Setting(const char* name, const char* otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

// Compute capabilities as 10 * major + minor.
std::vector<int> Devices() {
  std::vector<int> devices;
  const std::string list = Setting("FAKE_CUDA_DEVICES", "9.0");
  for (size_t at = 0; at < list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    const size_t dot = list.find('.', at);
    devices.push_back(10 * std::atoi(&list[at]) + std::atoi(&list[dot + 1]));
    at = end + 1;
  }
  return devices;
}

int SharedBytes() { return std::atoi(Setting("FAKE_CUDA_SHARED", "232448").c_str()); }
unsigned MostCluster() { return std::atoi(Setting("FAKE_CUDA_CLUSTER", "16").c_str()); }
int Multiprocessors() { return std::atoi(Setting("FAKE_CUDA_MULTIPROCESSORS", "132").c_str()); }
bool Cooperative() { return Setting("FAKE_CUDA_COOPERATIVE", "1") == "1"; }

// On a multiprocessor: of its threads and of its shared memory, of which each block costs 1 KB
// more.
int BlocksAtOnce(unsigned threads, unsigned shared_bytes) {
  constexpr int kReserved = 1 << 10, kThreads = 2048;
  return std::min((SharedBytes() + kReserved) / (static_cast<int>(shared_bytes) + kReserved),
                  kThreads / static_cast<int>(threads));
}

Result Called(const char* function, Result failure) {
  ++calls[function];
  return Setting("FAKE_CUDA_FAIL", "") == function ? failure : kSuccess;
}

Context* Current() {
  static Context primary = {0};
  if (!current.empty()) return current.back();
  return Setting("FAKE_CUDA_PRIMARY", "").empty() ? nullptr : &primary;
}

// The bytes of an ELF file: up to the end of its tables and sections.
size_t ElfBytes(const char* data) {
  Elf64_Ehdr head;
  std::memcpy(&head, data, sizeof(head));
  size_t end = std::max(head.e_phoff + size_t{head.e_phnum} * head.e_phentsize,
                        head.e_shoff + size_t{head.e_shnum} * head.e_shentsize);
  for (int i = 0; i < head.e_shnum; ++i) {
    Elf64_Shdr section;
    std::memcpy(&section, data + head.e_shoff + i * size_t{head.e_shentsize}, sizeof(section));
    if (section.sh_type != SHT_NOBITS) end = std::max(end, section.sh_offset + section.sh_size);
  }
  return end;
}

}  // namespace

extern "C" {

// For tests: how often a function was called, and whether this thread's contexts are all popped.
int fake_cuda_calls(const char* function) {
  const std::lock_guard<std::mutex> lock(mutex);
  return calls[function];
}
int fake_cuda_contexts() { return static_cast<int>(current.size()); }

Result cuInit(unsigned) {
  const std::lock_guard<std::mutex> lock(mutex);
  return Called("cuInit", kNoDevice);
}

Result cuDriverGetVersion(int* version) {
  *version = 12050;
  return kSuccess;
}

Result cuGetErrorName(Result result, const char** name) {
  static const std::map<Result, const char*> names = {
      {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
      {kNoDevice, "CUDA_ERROR_NO_DEVICE"},
      {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE"},
      {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE"},
      {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
      {kNoBinaryForGpu, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
      {kInvalidPtx, "CUDA_ERROR_INVALID_PTX"},
      {kNotFound, "CUDA_ERROR_NOT_FOUND"},
      {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED"},
      {kCooperativeLaunchTooLarge, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"},
      {kInvalidClusterSize, "CUDA_ERROR_INVALID_CLUSTER_SIZE"},
  };
  const auto found = names.find(result);
  *name = found == names.end() ? nullptr : found->second;
  return found == names.end() ? kInvalidValue : kSuccess;
}

Result cuGetErrorString(Result result, const char** text) {
  *text = result == kSuccess ? "no error" : "as the test wants it";
  return kSuccess;
}

Result cuCtxCreate_v2(Context** context, unsigned, int device) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (device < 0 || device >= static_cast<int>(Devices().size())) return kInvalidDevice;
  *context = new Context{device};
  current.push_back(*context);
  return kSuccess;
}

Result cuStreamCreate(Stream** stream, unsigned) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (Current() == nullptr) return kInvalidContext;
  *stream = new Stream{Current()};
  return kSuccess;
}

Result cuStreamGetCtx(Stream* stream, Context** context) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const Result failure = Called("cuStreamGetCtx", kInvalidContext)) return failure;
  *context = stream == nullptr ? Current() : stream->context;
  return *context == nullptr ? kInvalidContext : kSuccess;
}

Result cuCtxPushCurrent_v2(Context* context) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const Result failure = Called("cuCtxPushCurrent", kInvalidContext)) return failure;
  current.push_back(context);
  return kSuccess;
}

Result cuCtxPopCurrent_v2(Context** context) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (current.empty()) return kInvalidContext;
  *context = current.back();
  current.pop_back();
  return kSuccess;
}

Result cuCtxGetDevice(int* device) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (Current() == nullptr) return kInvalidContext;
  *device = Current()->device;
  return kSuccess;
}

Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  const std::lock_guard<std::mutex> lock(mutex);
  const int capability = Devices().at(device);
  switch (attribute) {
    case 75:
      *value = capability / 10;
      return kSuccess;
    case 76:
      *value = capability % 10;
      return kSuccess;
    case 16:
      *value = Multiprocessors();
      return kSuccess;
    case 95:
      *value = Cooperative();
      return kSuccess;
    case 97:
      *value = SharedBytes();
      return kSuccess;
    case 120:
      *value = capability >= 90;
      return kSuccess;
    default:
      return kInvalidValue;
  }
}

Result cuModuleLoadData(Module** module, const char* image) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const Result failure = Called("cuModuleLoadData", kInvalidImage)) return failure;
  if (Current() == nullptr) return kInvalidContext;
  const int capability = Devices().at(Current()->device);
  auto fresh = std::make_unique<Module>();
  fresh->context = Current();
  fresh->is_ptx = std::memcmp(image, ELFMAG, SELFMAG) != 0;
  if (fresh->is_ptx) {
    fresh->image = image;
    const size_t target = fresh->image.find(".target sm_");
    if (fresh->image.find(".version ") == std::string::npos || target == std::string::npos) {
      return kInvalidImage;
    }
    if (std::atoi(&fresh->image[target + std::strlen(".target sm_")]) > capability) {
      return kInvalidPtx;
    }
  } else {
    constexpr int kCudaMachine = 190;
    Elf64_Ehdr head;
    std::memcpy(&head, image, sizeof(head));
    const int made_for = head.e_flags & 0xff;
    if (head.e_machine != kCudaMachine) return kInvalidImage;
    if (made_for / 10 != capability / 10 || made_for > capability) return kNoBinaryForGpu;
    fresh->image.assign(image, ElfBytes(image));
  }
  *module = fresh.release();
  return kSuccess;
}

Result cuModuleGetFunction(Function** function, Module* module, const char* name) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const Result failure = Called("cuModuleGetFunction", kNotFound)) return failure;
  if (module->context != Current()) return kInvalidContext;
  const std::string there =
      module->is_ptx ? std::string(".entry ") + name + "(" : std::string(".text.") + name + '\0';
  const auto kernel = keras_norms::gpu::Kernels().find(name);
  if (module->image.find(there) == std::string::npos ||
      kernel == keras_norms::gpu::Kernels().end()) {
    return kNotFound;
  }
  *function = new Function{module, kernel->second};
  return kSuccess;
}

Result cuFuncSetAttribute(Function* function, int attribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const Result failure = Called("cuFuncSetAttribute", kInvalidValue)) return failure;
  if (attribute == 8 && value >= 0 && value <= SharedBytes()) {
    function->shared_bytes = value;
  } else if (attribute == 14 && value == 1) {
    function->cluster = 16;
  } else {
    return kInvalidValue;
  }
  return kSuccess;
}

}  // extern "C"

namespace {

Result Launch(Function* function, const LaunchConfig& config, unsigned cluster, bool cooperative,
              void** arguments, void** extra) {
  const unsigned *const grid = config.grid, *const block = config.block;
  Context* const context = config.stream == nullptr ? Current() : config.stream->context;
  if (function->module->context != context || Current() != context) return kInvalidContext;
  if (grid[0] == 0 || grid[1] == 0 || grid[2] != 1 || block[0] == 0 || block[1] != 1 ||
      block[2] != 1 || grid[0] > 0x7fffffff || grid[1] > 0xffff ||
      block[0] > function->kernel.most_threads || config.shared_bytes > function->shared_bytes ||
      extra != nullptr) {
    return kInvalidValue;
  }
  if (cluster == 0 || cluster > std::min(function->cluster, MostCluster()) ||
      grid[0] % cluster != 0) {
    return kInvalidClusterSize;
  }
  if (cooperative &&
      (!Cooperative() ||
       grid[0] * grid[1] > static_cast<unsigned>(Multiprocessors() *
                                                 BlocksAtOnce(block[0], config.shared_bytes)))) {
    return kCooperativeLaunchTooLarge;
  }
  shim::Run([&] { function->kernel.run(arguments); }, {grid[0], grid[1], 1}, {block[0], 1, 1},
            config.shared_bytes, cluster, cooperative,
            calls["cuLaunchKernel"] + calls["cuLaunchKernelEx"]);
  return kSuccess;
}

}  // namespace

extern "C" {

Result cuOccupancyMaxPotentialClusterSize(int* cluster, Function* function,
                                          const LaunchConfig* config) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const Result failure = Called("cuOccupancyMaxPotentialClusterSize", kInvalidValue)) {
    return failure;
  }
  if (config->shared_bytes > function->shared_bytes) return kInvalidValue;
  *cluster = std::min(function->cluster, MostCluster());
  return kSuccess;
}

Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads,
                                                   size_t shared_bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const Result failure = Called("cuOccupancyMaxActiveBlocksPerMultiprocessor", kInvalidValue)) {
    return failure;
  }
  if (shared_bytes > function->shared_bytes) return kInvalidValue;
  *blocks = BlocksAtOnce(threads, static_cast<unsigned>(shared_bytes));
  return kSuccess;
}

Result cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                      unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                      Stream* stream, void** arguments, void** extra) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const Result failure = Called("cuLaunchKernel", kLaunchFailed)) return failure;
  const LaunchConfig config = {
      {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, stream, nullptr, 0};
  return Launch(function, config, 1, false, arguments, extra);
}

Result cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** arguments,
                        void** extra) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (const Result failure = Called("cuLaunchKernelEx", kLaunchFailed)) return failure;
  if (config->attribute_count != 1) return kInvalidValue;
  const LaunchAttribute& attribute = *config->attributes;
  if (attribute.id == 2 && attribute.cooperative == 1) {
    ++calls["cooperative"];
    return Launch(function, *config, 1, true, arguments, extra);
  }
  if (attribute.id != 4 || attribute.cluster[1] != 1 || attribute.cluster[2] != 1) {
    return kInvalidValue;
  }
  return Launch(function, *config, attribute.cluster[0], false, arguments, extra);
}

}  // extern "C"
