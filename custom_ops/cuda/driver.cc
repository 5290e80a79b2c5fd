#include "custom_ops/cuda/driver.h"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>

#include "custom_ops/cuda/images.h"

namespace keras_norms {
namespace gpu {
namespace {

// As in cuda.h, whose interface is stable: CUresult, CUcontext, CUstream, CUmodule, CUfunction ...
using Result = int;
using Handle = void*;
constexpr Result kSuccess = 0;
constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;
constexpr int kMaxDynamicSharedSizeBytes = 8;

constexpr unsigned kSharedBytes = 48 << 10;  // more must be asked for

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
  };
  Handle handle = nullptr;
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
           driver.Check(driver.ModuleLoadData(&handle, image), "cuModuleLoadData", error);
  }

  bool Find(const char* kernel, unsigned shared_bytes, Handle* found, std::string* error) {
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

bool DriverLauncher::Launch(const char* kernel, Dim3 grid, Dim3 block, unsigned shared_bytes,
                            void** arguments) {
  if (module_ == nullptr || !error_.empty()) return false;
  Handle function = nullptr;
  if (!module_->Find(kernel, shared_bytes, &function, &error_)) return false;
  const Driver& driver = TheDriver();
  return driver.Check(driver.LaunchKernel(function, grid.x, grid.y, grid.z, block.x, block.y,
                                          block.z, shared_bytes, stream_, arguments, nullptr),
                      std::string("The launch of ") + kernel, &error_);
}

}  // namespace gpu
}  // namespace keras_norms
