// The program `moetrim`, which starts at once: LibTorch's libraries alone take half a second and 460 MB. For a command that
// computes with them, and for whatever else is not one of its own (--help, a misspelt word), it becomes `moetrim-torch`.

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <string_view>
#include <system_error>

#include <unistd.h>

#include <fmt/format.h>

#include "cli/program.h"

namespace {

using namespace moetrim::cli;

#define MOETRIM_TORCH_COMMAND(name, add)
#define MOETRIM_PLAIN_COMMAND(name, add) std::string_view(name),
constexpr std::array kNames = {
#include "cli/commands.def"
};
#undef MOETRIM_PLAIN_COMMAND
#define MOETRIM_PLAIN_COMMAND(name, add) AddCommand{add},
constexpr std::array kCommands = {
#include "cli/commands.def"
};

/// Gives process, arguments and all, to the program beside this one. Returns only when there is none.
int become_torch_program(char** argv) {
  std::error_code problem;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", problem);
  if (problem) return fail(fmt::format("/proc/self/exe cannot be read: {}", problem.message()), 1);
  const std::filesystem::path program = self.parent_path() / "moetrim-torch";
  ::execv(program.c_str(), argv);
  return fail(fmt::format("{} cannot be started: {}; it belongs beside moetrim and has the commands that compute with LibTorch",
                          program.string(), std::generic_category().message(errno)), 1);
}

/// Of `patterns`, what runs texts through a model.
bool routes_texts(int argc, char** argv) {
  return argc > 1 && argv[1] == std::string_view("patterns") && std::any_of(argv + 2, argv + argc, [](std::string_view word) {
           return word == "retrieve" || word.starts_with("--quer") || word.starts_with("--prompts");
         });
}

}  // namespace

int main(int argc, char** argv) {
  const bool own = argc > 1 && std::find(kNames.begin(), kNames.end(), argv[1]) != kNames.end() && !routes_texts(argc, argv);
  return own ? run_program(argc, argv, kCommands) : become_torch_program(argv);
}
