// Verify: structural check of any checkpoint folder or GGUF file, also of one that moetrim did not write.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace moetrim {

enum class Severity : std::uint8_t {
  error,    ///< some loader fails, or two loaders may see two models
  warning,  ///< worth knowing; loading works
};

/// "error" or "warning".
std::string_view severity_name(Severity severity);

struct Finding {
  Severity severity = Severity::error;
  std::string where;  ///< file, tensor or config key, relative to the folder; "." is the folder
  std::string what;
};

struct VerifyOptions {
  bool deep = false;  ///< also read all weights and look for NaN and infinity
  /// Called with bytes read and bytes to read during the deep pass; what it throws ends the check.
  std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)> progress;
};

/// Checks everything that Checkpoint::open and describe refuse, and beyond them: stale and unfinished files, the index's
/// total_size, holes in the numbering of experts, a missing tokenizer.
/// A family that moetrim does not know is a warning: its files are checked, its tensors' meaning is not.
/// A GGUF file, with the others that its model is split over: its structure, keys against tensors, and in the deep pass also the
/// scales of quantised blocks.
/// @param folder  or a GGUF file
/// @return errors first; empty when nothing is wrong.
/// @throws Error or OutOfResources only when the machine fails; what is wrong with the folder is a finding.
std::vector<Finding> verify_checkpoint(const std::filesystem::path& folder, const VerifyOptions& options = {});

}  // namespace moetrim
