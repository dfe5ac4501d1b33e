// The program `moetrim-torch`: all commands, those that compute with LibTorch among them. `moetrim` starts it.

#include <array>
#include <string>

#include <malloc.h>

#include <c10/util/Exception.h>

#include "cli/patterns.h"
#include "cli/program.h"
#include "moetrim/error.h"

namespace {

using namespace moetrim::cli;

#define MOETRIM_PLAIN_COMMAND(name, add) AddCommand{add},
#define MOETRIM_TORCH_COMMAND(name, add) AddCommand{add},
constexpr std::array kCommands = {
#include "cli/commands.def"
};

/// Weights and tiles come and go in the same few sizes. By default the C library returns blocks of that size to the kernel at
/// once and takes them back one page fault per 4 KiB. Blocks so large that the faults no longer count are left to it: kept, they
/// would break the heap into pieces, and memory would creep up from layer to layer.
void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 8 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

void translate_torch_errors(const std::function<void()>& work) {
  try {
    work();
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    if (what.find("memory") != std::string::npos) throw moetrim::OutOfResources(what);
    throw moetrim::Error(what);
  }
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  provide_route_texts();
  return run_program(argc, argv, kCommands, translate_torch_errors);
}
