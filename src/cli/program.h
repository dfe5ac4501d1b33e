// What both executables do around the sub-commands: parse, run one, and turn errors into a sentence and an exit code.
#pragma once

#include <functional>
#include <span>

#include "cli/command.h"

namespace moetrim::cli {

/// Adds a sub-command, as the add_… functions of command.h do.
using AddCommand = void (*)(CLI::App& app, Session& session);

/// Runs the command line. @return the exit code
/// @param commands  in the order of --help
/// @param call      calls what it is given, and may turn foreign exceptions into those of moetrim
int run_program(int argc, char** argv, std::span<const AddCommand> commands,
                const std::function<void(const std::function<void()>&)>& call = [](const auto& work) { work(); });

/// A sentence on stderr. @return the code
int fail(const std::string& message, int code);

}  // namespace moetrim::cli
