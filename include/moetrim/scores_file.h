// Scores read back from the file that write_scores (score.h) makes.
#pragma once

#include <filesystem>

#include "moetrim/score.h"

namespace moetrim {

/// Scores of experts.
/// @throws InvalidInput naming the file for scores of atomic experts, layers that are not ascending, shapes that do not go
///         together, and scores that are not finite.
Scores read_expert_scores(const std::filesystem::path& file);

}  // namespace moetrim
