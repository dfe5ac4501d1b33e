// The single checks that verify_checkpoint is made of.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "moetrim/checkpoint.h"
#include "moetrim/rewrite.h"
#include "moetrim/verify.h"

namespace moetrim::verify_detail {

using Findings = std::vector<Finding>;

void add_error(Findings& findings, std::string where, std::string what);
void add_warning(Findings& findings, std::string where, std::string what);

/// Files that do not belong: stale weights and indexes, temporary files, formats that a loader may prefer; a missing tokenizer.
/// @param checkpoint  null when it could not be opened: then the index, if it can be read, says which shards belong.
void check_files(const std::filesystem::path& folder, const Checkpoint* checkpoint, Findings& findings);

/// metadata.total_size of the index.
void check_index(const Checkpoint& checkpoint, Findings& findings);

/// Experts of a layer that are numbered with holes: loaders stack them by order, silently.
void check_expert_numbers(const Checkpoint& checkpoint, Findings& findings);

/// config.json against the tensors, by way of the family.
void check_family(const Checkpoint& checkpoint, Findings& findings);

/// Routers and experts of layers that keep different numbers of them, against the list in config.json.
void check_counts(const Checkpoint& checkpoint, const SlimWidths& slim, Findings& findings);

/// Experts of different widths, or numbers, against the list in config.json, and what it takes to load them. Takes the place of
/// check_family.
void check_slim(const Checkpoint& checkpoint, const SlimWidths& slim, Findings& findings);

/// Reads all floating-point tensors and reports the first NaN or infinity of each, up to a limit.
void check_values(const Checkpoint& checkpoint, const VerifyOptions& options, Findings& findings);

}  // namespace moetrim::verify_detail
