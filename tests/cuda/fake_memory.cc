// What a program of its own needs of libcuda.so.1 beside fake_driver.cc: device memory, which is
// the CPU's, filled with NaN when it is new.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

extern "C" {

int cuCtxCreate_v2(void** context, unsigned flags, int device);
int cuCtxPopCurrent_v2(void** context);

int cuDeviceGet(int* device, int number) {
  *device = number;
  return 0;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  void* popped = nullptr;
  const int result = cuCtxCreate_v2(context, 0, device);
  return result != 0 ? result : cuCtxPopCurrent_v2(&popped);
}

int cuMemAlloc_v2(uint64_t* address, size_t size) {
  void* const memory = std::aligned_alloc(256, (size + 255) / 256 * 256);
  std::memset(memory, 0xff, size);
  *address = reinterpret_cast<uint64_t>(memory);
  return 0;
}

int cuMemFree_v2(uint64_t address) {
  std::free(reinterpret_cast<void*>(address));
  return 0;
}

int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t size) {
  std::memcpy(reinterpret_cast<void*>(to), from, size);
  return 0;
}

int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t size) {
  std::memcpy(to, reinterpret_cast<const void*>(from), size);
  return 0;
}

}  // extern "C"
