// Fuzz target: whatever bytes a file has, SafetensorsFile refuses it with InvalidInput or reads it; and the header that our
// writer would make of what it read says the same.
#include <cstdlib>
#include <string>

#include "checkpoint/header.h"
#include "memory_file.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"

using namespace moetrim;

namespace {

void check_again(const SafetensorsFile& file, std::uint64_t data_bytes) {
  const std::string built = checkpoint_detail::build_header(
      file.path(), {file.tensors().begin(), file.tensors().end()}, file.metadata());
  const auto again =
      checkpoint_detail::parse_header(file.path(), built.substr(checkpoint_detail::kLengthBytes), data_bytes);
  if (again.tensors.size() != file.tensors().size()) std::abort();
  for (std::size_t i = 0; i < again.tensors.size(); ++i) {
    const Tensor& a = again.tensors[i];
    const Tensor& b = file.tensors()[i];
    if (a.name != b.name || a.dtype != b.dtype || a.shape != b.shape || a.size != b.size) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::MemoryFile memory;
  memory.fill(data, size);
  try {
    const SafetensorsFile file = SafetensorsFile::open(memory.path());
    std::uint64_t data_bytes = 0;
    for (const Tensor& tensor : file.tensors()) data_bytes += file.read(tensor).size();
    check_again(file, data_bytes);
  } catch (const InvalidInput&) {
  }
  return 0;
}
