// CUDA as far as custom_ops/cuda knows it, on the CPU, for g++ -include: a kernel runs block after
// block, each thread as a fiber of its own.
//
// Fibers change at barriers, at __shfl_xor_sync and where they await arrivals only, and in an order
// shuffled by a seed, so a missing barrier shows as a wrong result. A barrier that not all threads
// of a block reach, or of a cluster, or not all lanes of a warp, ends the process. So do misaligned
// vectors. The blocks of a cluster run together; the shared memory of one that ended is NaN for the
// others. Asynchronous copies are made when they are awaited. All blocks of a cooperative launch
// run together, too; what they tell each other in memory is there once a thread has arrived, and
// only what was told before a barrier that it has passed.
//
// With KERAS_NORMS_MUTATE=i (defined for shim.cc, counted from 0) the i-th barrier of the sources
// is left out: the tests must then fail, whichever it is.
#ifndef KERAS_NORMS_TESTS_CUDA_SHIM_H_
#define KERAS_NORMS_TESTS_CUDA_SHIM_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __device__
#define __global__
#define __launch_bounds__(threads, blocks)

struct uint3 {
  unsigned x, y, z;
};

namespace shim {

// Of the thread that runs.
extern uint3 thread_index, block_index, block_size;

// Runs `kernel` in all threads of all blocks, of which `cluster` neighbours are a cluster, or which
// run all at once.
void Run(const std::function<void()>& kernel, uint3 grid, uint3 block, unsigned shared_bytes,
         unsigned cluster, bool cooperative, uint64_t seed);

// Of the block: `shared_bytes` filled with NaN at its beginning. And where p, which is in it, is in
// that of another block of the cluster.
void* SharedMemory();
const void* SharedMemoryOf(int rank, const void* p);

// Of 16 bytes.
void CopyAsync(const void* from, void* to);
void AwaitCopies();

// `site` tells the calls in the sources apart.
void Synchronize(int site);
void SynchronizeCluster(int site);
void Tell(float* p, float value);
void Arrive(unsigned* arrived);
void Await(int site, const unsigned* arrived, unsigned all);
float ShuffleXor(float value, int mask);

[[noreturn]] void Abort(const char* why);
inline void ExpectAligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) Abort("a vector is not aligned");
}

}  // namespace shim

#define threadIdx shim::thread_index
#define blockIdx shim::block_index
#define blockDim shim::block_size
#define __syncthreads() shim::Synchronize(__COUNTER__)
#define ClusterSynchronize() shim::SynchronizeCluster(__COUNTER__)
#define AwaitArrivals(arrived, all) shim::Await(__COUNTER__, arrived, all)

inline float __shfl_xor_sync(unsigned lanes, float value, int mask) {
  if (lanes != 0xffffffffu) shim::Abort("a shuffle of part of a warp");
  return shim::ShuffleXor(value, mask);
}

inline float __uint_as_float(unsigned bits) {
  float f;
  std::memcpy(&f, &bits, sizeof(f));
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned bits;
  std::memcpy(&bits, &f, sizeof(f));
  return bits;
}
// Out of line, for it must not become part of a fused multiply-add.
__attribute__((noinline)) inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
using std::sqrt;

#endif  // KERAS_NORMS_TESTS_CUDA_SHIM_H_
