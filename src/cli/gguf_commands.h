// What sub-commands do where a GGUF file is given in the place of a checkpoint folder.
#pragma once

#include <filesystem>

#include "cli/command.h"

namespace moetrim::cli {

void inspect_gguf(const Session& session, const std::filesystem::path& file);

}  // namespace moetrim::cli
