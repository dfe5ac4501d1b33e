// What runtimes would serve of a GGUF file, one that there is or one that would be made.
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

/// Adds to a check for llama.cpp what `moetrim export` would refuse of the checkpoint, or of what a plan makes of it: llama.cpp
/// gets no other file. Other runtimes' checks stay as they are.
/// @param plan  null: none. Of one that does more than move whole experts only its source is looked at.
void check_export(RuntimeCheck& check, const Model& model, const Plan* plan, Mtp mtp);

}  // namespace moetrim::cli
