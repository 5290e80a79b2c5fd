#include "custom_ops/cuda/driver.h"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>

#include "custom_ops/cuda/arguments.h"
#include "custom_ops/cuda/images.h"

namespace keras_norms {
namespace gpu {
namespace {

// As in cuda.h, whose interface is stable: CUresult, CUcontext, CUstream, CUmodule, CUfunction ...
using Result = int;
using Handle = void*;
constexpr Result kSuccess = 0;
constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;
constexpr int kMultiprocessorCount = 16, kCooperativeLaunch = 95;
constexpr int kMaxSharedMemoryPerBlockOptin = 97, kClusterLaunch = 120;
constexpr int kMaxDynamicSharedSizeBytes = 8, kNonPortableClusterSizeAllowed = 14;
constexpr int kCooperative = 2, kClusterDimension = 4;
struct LaunchAttribute {
  int id;
  char pad[4];
  union {
    unsigned cluster[3];
    int cooperative;
    char room[64];
  } value;
};
struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  Handle stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

constexpr unsigned kSharedBytes = 48 << 10;  // more must be asked for
constexpr unsigned kPortableCluster = 8;     // as well

struct Driver {
  Result (*Init)(unsigned);
  Result (*GetErrorName)(Result, const char**);
  Result (*GetErrorString)(Result, const char**);
  Result (*StreamGetCtx)(Handle, Handle*);
  Result (*CtxPushCurrent)(Handle);
  Result (*CtxPopCurrent)(Handle*);
  Result (*CtxGetDevice)(int*);
  Result (*DeviceGetAttribute)(int*, int, int);
  Result (*ModuleLoadData)(Handle*, const void*);
  Result (*ModuleGetFunction)(Handle*, Handle, const char*);
  Result (*FuncSetAttribute)(Handle, int, int);
  Result (*LaunchKernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                         unsigned, Handle, void**, void**);
  Result (*LaunchKernelEx)(const LaunchConfig*, Handle, void**, void**);
  Result (*OccupancyMaxPotentialClusterSize)(int*, Handle, const LaunchConfig*);
  Result (*OccupancyMaxActiveBlocksPerMultiprocessor)(int*, Handle, int, size_t);
  std::string why_not;  // why it cannot be used; empty if it can

  Driver() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) {
      const char* const reason = dlerror();
      why_not = std::string("There is no CUDA driver: ") + (reason ? reason : "libcuda.so.1");
      return;
    }
    const auto find = [&](auto* function, const char* name) {
      *reinterpret_cast<void**>(function) = dlsym(library, name);
      if (*function == nullptr) why_not = std::string("The CUDA driver is too old: no ") + name;
    };
    find(&Init, "cuInit");
    find(&GetErrorName, "cuGetErrorName");
    find(&GetErrorString, "cuGetErrorString");
    find(&StreamGetCtx, "cuStreamGetCtx");
    find(&CtxPushCurrent, "cuCtxPushCurrent_v2");
    find(&CtxPopCurrent, "cuCtxPopCurrent_v2");
    find(&CtxGetDevice, "cuCtxGetDevice");
    find(&DeviceGetAttribute, "cuDeviceGetAttribute");
    find(&ModuleLoadData, "cuModuleLoadData");
    find(&ModuleGetFunction, "cuModuleGetFunction");
    find(&FuncSetAttribute, "cuFuncSetAttribute");
    find(&LaunchKernel, "cuLaunchKernel");
    find(&LaunchKernelEx, "cuLaunchKernelEx");
    find(&OccupancyMaxPotentialClusterSize, "cuOccupancyMaxPotentialClusterSize");
    find(&OccupancyMaxActiveBlocksPerMultiprocessor, "cuOccupancyMaxActiveBlocksPerMultiprocessor");
    if (why_not.empty()) Check(Init(0), "cuInit", &why_not);
  }

  // Whether it is a success; else `error` gets the message.
  bool Check(Result result, const std::string& what, std::string* error) const {
    if (result == kSuccess) return true;
    const char *name = nullptr, *text = nullptr;
    GetErrorName(result, &name);
    GetErrorString(result, &text);
    *error = what + " failed: " + (name ? name : "CUDA error " + std::to_string(result)) + " (" +
             (text ? text : "unknown error") + ")";
    return false;
  }
};

const Driver& TheDriver() {
  static const Driver* const driver = new Driver;  // never unloaded: others use it
  return *driver;
}

}  // namespace

// The kernels in one context.
struct DriverLauncher::Module {
  struct Function {
    Handle handle = nullptr;
    unsigned shared_bytes = kSharedBytes;  // that it may be launched with
    bool any_cluster = false;              // also of more blocks than every device can
  };
  Handle handle = nullptr;
  Capability capability;
  std::mutex mutex;
  std::map<std::string, Function> functions;

  bool Load(std::string* error) {
    const Driver& driver = TheDriver();
    int device = 0, major = 0, minor = 0;
    if (!driver.Check(driver.CtxGetDevice(&device), "cuCtxGetDevice", error) ||
        !driver.Check(driver.DeviceGetAttribute(&major, kComputeCapabilityMajor, device),
                      "cuDeviceGetAttribute", error) ||
        !driver.Check(driver.DeviceGetAttribute(&minor, kComputeCapabilityMinor, device),
                      "cuDeviceGetAttribute", error)) {
      return false;
    }
    const Images images = EmbeddedImages();
    const void* const image = ChooseImage(images.data, images.bytes, major, minor, error);
    return image != nullptr &&
           driver.Check(driver.ModuleLoadData(&handle, image), "cuModuleLoadData", error) &&
           (major < 9 || FindCapability(device, error));
  }

  // What the largest kernel can be launched with. It is asked for, as a part of a device (MIG) may
  // have room for smaller clusters and fewer blocks only.
  bool FindCapability(int device, std::string* error) {
    const Driver& driver = TheDriver();
    int clusters = 0, shared_bytes = 0, most = 0, cooperative = 0, multiprocessors = 0, blocks = 0;
    Handle function = nullptr;
    const auto get = [&](int* value, int attribute) {
      return driver.Check(driver.DeviceGetAttribute(value, attribute, device),
                          "cuDeviceGetAttribute", error);
    };
    if (!get(&clusters, kClusterLaunch) || !get(&shared_bytes, kMaxSharedMemoryPerBlockOptin) ||
        !get(&cooperative, kCooperativeLaunch) || !get(&multiprocessors, kMultiprocessorCount)) {
      return false;
    }
    if (clusters == 0) return true;
    LaunchConfig config = {};
    config.grid[0] = kMostCluster;
    config.block[0] = kSliceThreads;
    config.grid[1] = config.grid[2] = config.block[1] = config.block[2] = 1;
    config.shared_bytes = static_cast<unsigned>(shared_bytes);
    if (!Find("slices_forward_float32x4", config.shared_bytes, kMostCluster, &function, error) ||
        !driver.Check(driver.OccupancyMaxPotentialClusterSize(&most, function, &config),
                      "cuOccupancyMaxPotentialClusterSize", error) ||
        !driver.Check(driver.OccupancyMaxActiveBlocksPerMultiprocessor(
                          &blocks, function, kSliceThreads, shared_bytes / 2 - kReservedBytes),
                      "cuOccupancyMaxActiveBlocksPerMultiprocessor", error)) {
      return false;
    }
    capability = {static_cast<unsigned>(most), config.shared_bytes,
                  cooperative != 0 ? static_cast<unsigned>(multiprocessors * blocks) : 0};
    return true;
  }

  bool Find(const char* kernel, unsigned shared_bytes, unsigned cluster, Handle* found,
            std::string* error) {
    const Driver& driver = TheDriver();
    const std::lock_guard<std::mutex> lock(mutex);
    Function& function = functions[kernel];
    if (function.handle == nullptr &&
        !driver.Check(driver.ModuleGetFunction(&function.handle, handle, kernel),
                      std::string("cuModuleGetFunction of ") + kernel, error)) {
      function.handle = nullptr;
      return false;
    }
    if (shared_bytes > function.shared_bytes) {
      if (!driver.Check(driver.FuncSetAttribute(function.handle, kMaxDynamicSharedSizeBytes,
                                                static_cast<int>(shared_bytes)),
                        std::string("cuFuncSetAttribute of ") + kernel, error)) {
        return false;
      }
      function.shared_bytes = shared_bytes;
    }
    if (cluster > kPortableCluster && !function.any_cluster) {
      if (!driver.Check(driver.FuncSetAttribute(function.handle, kNonPortableClusterSizeAllowed, 1),
                        std::string("cuFuncSetAttribute of ") + kernel, error)) {
        return false;
      }
      function.any_cluster = true;
    }
    *found = function.handle;
    return true;
  }
};

// Of the context that is current. What failed once is tried again: a failure may pass.
DriverLauncher::Module* DriverLauncher::ModuleOf(void* context, std::string* error) {
  static std::mutex mutex;
  // Contexts live as long as the process, as those of the runtime and of TensorFlow do.
  static auto* const modules = new std::map<void*, std::unique_ptr<Module>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Module>& module = (*modules)[context];
  if (module == nullptr) {
    auto fresh = std::make_unique<Module>();
    if (!fresh->Load(error)) return nullptr;
    module = std::move(fresh);
  }
  return module.get();
}

DriverLauncher::DriverLauncher(void* stream) : stream_(stream) {
  const Driver& driver = TheDriver();
  if (!driver.why_not.empty()) {
    error_ = driver.why_not;
    return;
  }
  Handle context = nullptr;
  if (!driver.Check(driver.StreamGetCtx(stream, &context), "cuStreamGetCtx", &error_)) return;
  if (!driver.Check(driver.CtxPushCurrent(context), "cuCtxPushCurrent", &error_)) return;
  pushed_ = true;
  module_ = ModuleOf(context, &error_);
}

DriverLauncher::~DriverLauncher() {
  Handle context = nullptr;
  if (pushed_) TheDriver().CtxPopCurrent(&context);
}

Capability DriverLauncher::capability() {
  return module_ == nullptr ? Capability() : module_->capability;
}

bool DriverLauncher::Launch(const char* kernel, const Shape& shape, void** arguments) {
  if (module_ == nullptr || !error_.empty()) return false;
  Handle function = nullptr;
  if (!module_->Find(kernel, shape.shared_bytes, shape.cluster, &function, &error_)) return false;
  const Driver& driver = TheDriver();
  const Dim3 &grid = shape.grid, &block = shape.block;
  LaunchAttribute attribute = {};  // no launch has both
  if (shape.cooperative) {
    attribute.id = kCooperative;
    attribute.value.cooperative = 1;
  } else {
    attribute.id = kClusterDimension;
    attribute.value.cluster[0] = shape.cluster;
    attribute.value.cluster[1] = attribute.value.cluster[2] = 1;
  }
  const LaunchConfig config = {{grid.x, grid.y, grid.z},
                               {block.x, block.y, block.z},
                               shape.shared_bytes,
                               stream_,
                               &attribute,
                               1};
  const Result result =
      shape.cluster > 1 || shape.cooperative
          ? driver.LaunchKernelEx(&config, function, arguments, nullptr)
          : driver.LaunchKernel(function, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                                shape.shared_bytes, stream_, arguments, nullptr);
  return driver.Check(result, std::string("The launch of ") + kernel, &error_);
}

}  // namespace gpu
}  // namespace keras_norms
