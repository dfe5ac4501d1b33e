// What files take on disk.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "export/shards.h"
#include "export/side_files.h"
#include "moetrim/export.h"

namespace moetrim::export_detail {

/// Text of a JSON file as it is written: indented, non-ASCII kept, a newline at the end.
std::string json_text(const nlohmann::ordered_json& json);

/// An upper bound for these shards and all other files of the folder.
std::uint64_t disk_need(std::span<const Shard> shards, std::span<const SideFile> side_files, const ExportRequest& request);

}  // namespace moetrim::export_detail
