// The files that a GGUF model is written to.
#pragma once

#include <filesystem>
#include <vector>

#include "moetrim/gguf_rewrite.h"

namespace moetrim::gguf_detail {

/// Names of the new files, absolute: the target, or of several files TARGET-00001-of-0000N.gguf.
struct Targets {
  std::filesystem::path target;              ///< what the working folder is named after
  std::vector<std::filesystem::path> files;
};
/// @throws UsageError as estimate_gguf
Targets resolve_targets(const GgufRewrite& rewrite, const std::filesystem::path& target, bool overwrite);

/// Moves finished files from `folder` to their names, the first one last, so that no moment has a first file beside others than
/// its own.
void publish(const std::filesystem::path& folder, const Targets& targets);

}  // namespace moetrim::gguf_detail
