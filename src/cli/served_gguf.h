// What runtimes would serve of a GGUF file.
#pragma once

#include <filesystem>
#include <vector>

#include "moetrim/gguf_rewrite.h"
#include "moetrim/runtimes.h"

namespace moetrim::cli {

/// Rules about how weights are stored are about files that are made, not about one that there is.
ServedModel served_model(const GgufMoe& model);
ServedModel served_model(const GgufMoe& model, const Plan& plan, Mtp mtp);
/// @throws UsageError for a runtime that is not llama.cpp.
void check_targets_of_gguf(const std::vector<RuntimeTarget>& targets, const std::filesystem::path& file);

}  // namespace moetrim::cli
