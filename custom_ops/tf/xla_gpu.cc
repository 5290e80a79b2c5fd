// The ops inside XLA on CUDA devices. There is no kernel for float64.
//
// KERAS_NORMS_CUDA_ON_CPU: as in gpu_kernels.cc.
#include "custom_ops/cuda/driver.h"
#include "custom_ops/cuda/plan.h"
#include "custom_ops/tf/xla_calls.h"
#include "custom_ops/tf/xla_lowering.h"

namespace keras_norms {
namespace {

// `allocate` gives memory of the device, or null, that lives until this returns; XLA hands it out
// again in the order of the stream.
template <class Op, class Allocate>
ffi::Error Run(void* stream, const Allocate& allocate, ffi::RemainingArgs args,
               ffi::RemainingRets rets, ffi::Dictionary attributes) {
  Call call;
  if (ffi::Error error = call.Read(args, rets, attributes); error.failure()) return error;
  return ForType<float, bfloat16, float16>(call, [&](auto zero) {
    using T = decltype(zero);
    if (const int64_t bytes = gpu::WorkspaceBytes<T>(call.k); bytes > 0) {
      call.scratch = allocate(bytes);
      if (call.scratch == nullptr) return NoMemory();
    }
    gpu::DriverLauncher launcher(stream);
    gpu::Launcher* const on = &launcher;
    if (Op::template Run<T>(on, call)) return ffi::Error::Success();
    return ffi::Error::Internal("keras_norms: " + launcher.error());
  });
}

#if defined(KERAS_NORMS_CUDA_ON_CPU)
template <class Op>
ffi::Error Handle(ffi::RemainingArgs args, ffi::RemainingRets rets, ffi::Dictionary attributes) {
  std::unique_ptr<HostScratch> scratch;
  const auto allocate = [&](int64_t bytes) {
    scratch = std::make_unique<HostScratch>(bytes);
    return scratch->data();
  };
  return Run<Op>(nullptr, allocate, args, rets, attributes);
}
KERAS_NORMS_HANDLE_ALL("Host", Handle, ffi::Ffi::Bind());
constexpr const char* kDevice = "XLA_CPU_JIT";
#else
template <class Op>
ffi::Error Handle(void* stream, ffi::ScratchAllocator scratch, ffi::RemainingArgs args,
                  ffi::RemainingRets rets, ffi::Dictionary attributes) {
  const auto allocate = [&](int64_t bytes) {
    return scratch.Allocate(bytes, 16).value_or(nullptr);
  };
  return Run<Op>(stream, allocate, args, rets, attributes);
}
KERAS_NORMS_HANDLE_ALL(
    "CUDA", Handle,
    ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*> >().Ctx<ffi::ScratchAllocator>());
constexpr const char* kDevice = "XLA_GPU_JIT";
#endif

[[maybe_unused]] const bool registered = RegisterLowering(kDevice, /*float64=*/false);

}  // namespace
}  // namespace keras_norms
