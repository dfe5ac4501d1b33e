// Fuzz target: whatever bytes a file has, GgufFile refuses it with InvalidInput or reads it; and what it read is enough to
// build the same header again.
#include <cstdlib>
#include <string_view>

#include "checkpoint/gguf_header.h"
#include "memory_file.h"
#include "moetrim/error.h"
#include "moetrim/gguf_file.h"

using namespace moetrim;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::MemoryFile file;
  file.fill(data, size);
  try {
    const GgufModel model = GgufModel::open(file.path());
    for (const GgufTensor& tensor : model.tensors()) {
      if (model.files().front().read(tensor).size() != tensor.bytes()) std::abort();
    }
    const auto built = checkpoint_detail::build_gguf_header(file.path(), model.metadata(),
                                                            {model.tensors().begin(), model.tensors().end()});
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    if (!bytes.starts_with(built.bytes) || size > built.file_bytes) std::abort();
  } catch (const InvalidInput&) {
  }
  return 0;
}
