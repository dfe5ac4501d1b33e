// Metadata of a pruned GGUF file.
#pragma once

#include <string>
#include <vector>

#include "moetrim/gguf_rewrite.h"

namespace moetrim::gguf_detail {

/// Of a plan, as kGgufPlanKey has it: 32 hex digits.
std::string digest_of(const Plan& plan);

/// Edits the metadata of the new files, whose tensors are known, in place: counts of experts, groups and blocks, labels, and where
/// the file comes from. A key is edited in every file that has it; what is new goes into the first. Key order stays.
/// @throws InvalidInput for a list that may have an entry per block, when blocks are dropped
void edit_metadata(std::vector<GgufOutputFile>& files, const GgufMoe& model, const Plan& plan, Mtp mtp);

}  // namespace moetrim::gguf_detail
