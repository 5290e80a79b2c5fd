#include "custom_ops/cuda/images.h"

#include <cstdint>
#include <cstring>

namespace keras_norms {
namespace gpu {
namespace {

struct Header {
  char magic[8];
  uint32_t version, count;
};
struct Entry {
  uint32_t architecture, is_ptx;
  uint64_t offset, bytes;
};

}  // namespace

const void* ChooseImage(const void* images, size_t bytes, int major, int minor,
                        std::string* why_not) {
  const char* const begin = static_cast<const char*>(images);
  Header header;
  const auto damaged = [&] {
    *why_not = "The CUDA kernels inside the library are damaged.";
    return nullptr;
  };
  if (bytes < sizeof(header)) return damaged();
  std::memcpy(&header, begin, sizeof(header));
  if (std::memcmp(header.magic, "KNIMAGES", sizeof(header.magic)) != 0 || header.version != 1 ||
      header.count > (bytes - sizeof(header)) / sizeof(Entry)) {
    return damaged();
  }
  const uint32_t capability = 10 * major + minor;
  Entry best = {0, 1, 0, 0};
  std::string there;
  for (uint32_t i = 0; i < header.count; ++i) {
    Entry entry;
    std::memcpy(&entry, begin + sizeof(header) + i * sizeof(entry), sizeof(entry));
    if (entry.offset > bytes || entry.bytes > bytes - entry.offset) return damaged();
    if (entry.is_ptx && (entry.bytes == 0 || begin[entry.offset + entry.bytes - 1] != '\0')) {
      return damaged();
    }
    there += (there.empty() ? "" : ", ") + std::string(entry.is_ptx ? "compute_" : "sm_") +
             std::to_string(entry.architecture);
    const bool runs = entry.architecture <= capability &&
                      (entry.is_ptx || entry.architecture / 10 == static_cast<uint32_t>(major));
    // A cubin before PTX, which has to be compiled first.
    const bool better =
        entry.is_ptx != best.is_ptx ? best.is_ptx == 1 : entry.architecture > best.architecture;
    if (runs && better) best = entry;
  }
  if (best.architecture != 0) return begin + best.offset;
  *why_not = "There are no CUDA kernels for compute capability " + std::to_string(major) + "." +
             std::to_string(minor) + ". Received: " + there + ".";
  return nullptr;
}

}  // namespace gpu
}  // namespace keras_norms
