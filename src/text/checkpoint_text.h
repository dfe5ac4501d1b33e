// The small text files beside a checkpoint's weights.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "text/hostile_json.h"

namespace moetrim::text {

/// Bytes of `file`, or nothing when there is no such file.
/// @throws InvalidInput  when it cannot be read or is larger than 1 GiB.
std::optional<std::string> read_if_present(const std::filesystem::path& file);

/// The JSON object in `file`; an empty object when there is no such file.
/// @throws InvalidInput  naming the file.
nlohmann::ordered_json read_json_object(const std::filesystem::path& file);

}  // namespace moetrim::text
