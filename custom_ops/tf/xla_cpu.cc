// The ops inside XLA on the CPU.
#include <functional>
#include <utility>

#include "custom_ops/core/normalize.h"
#include "custom_ops/tf/xla_calls.h"
#include "custom_ops/tf/xla_lowering.h"

namespace keras_norms {
namespace {

template <class Op>
ffi::Error Handle(ffi::ThreadPool threads, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  ffi::Dictionary attributes) {
  Call call;
  if (ffi::Error error = call.Read(args, rets, attributes); error.failure()) return error;
  const HostScratch scratch(ScratchBytes(call.k));
  if (scratch.failed()) return NoMemory();
  call.scratch = scratch.data();
  Pool pool;
  pool.threads = static_cast<int>(threads.num_threads());
  pool.schedule = [&threads](std::function<void()> task) { threads.Schedule(std::move(task)); };
  return ForType<float, double, bfloat16, float16>(call, [&](auto zero) {
    Op::template Run<decltype(zero)>(pool, call);
    return ffi::Error::Success();
  });
}

KERAS_NORMS_HANDLE_ALL("Host", Handle, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>());

[[maybe_unused]] const bool registered = RegisterLowering("XLA_CPU_JIT", /*float64=*/true);

}  // namespace
}  // namespace keras_norms
