// Opens libmoetrim_cuda.so when a device is asked for.

#include "forward/cuda_library.h"

#include <dlfcn.h>

#include <charconv>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim::cuda {

namespace {

#ifdef MOETRIM_CUDA
constexpr const char* kLibrary = "libmoetrim_cuda.so";  // found by the program's run path: its own folder

const Table& load() {
  // Never closed: LibTorch keeps pointers into what it brings along.
  void* const handle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    throw InvalidInput(fmt::format("cannot load the CUDA library: {}; it belongs into the folder of the program, and needs "
                                   "the CUDA libraries of LibTorch", dlerror()));
  }
  const auto find = reinterpret_cast<decltype(&moetrim_cuda_table)>(dlsym(handle, "moetrim_cuda_table"));
  const Table* const table = find == nullptr ? nullptr : find();
  if (table == nullptr || table->size != sizeof(Table)) {
    throw InvalidInput(fmt::format("{} is of another build than the program; build both again", kLibrary));
  }
  return *table;
}
#else
const Table& load() {
  throw InvalidInput("this program was built without CUDA; build it with -DMOETRIM_CUDA=ON, or use --device cpu");
}
#endif

int number_of(const std::string& name) {
  if (name == "cuda") return 0;
  int number = -1;
  const char* const end = name.data() + name.size();
  const bool prefixed = name.starts_with("cuda:");
  const auto [last, error] = prefixed ? std::from_chars(name.data() + 5, end, number)
                                      : std::from_chars_result{end, std::errc::invalid_argument};
  if (error != std::errc{} || last != end || number < 0 || number > 127) {
    throw UsageError(fmt::format("unknown device \"{}\"; expected cpu or cuda:0", name));
  }
  return number;
}

}  // namespace

const Table& library() {
  static const Table& table = load();
  return table;
}

at::Device open_device(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  const int number = number_of(name);
  const std::string problem = library().problem(number);
  if (!problem.empty()) throw InvalidInput(fmt::format("device {} cannot be used: {}", name, problem));
  return {at::kCUDA, static_cast<at::DeviceIndex>(number)};
}

}  // namespace moetrim::cuda
