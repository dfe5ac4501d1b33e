// Reads the small text files beside a checkpoint's weights.

#include "text/checkpoint_text.h"

#include <cstdint>
#include <fstream>
#include <system_error>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim::text {
namespace {

// The largest published tokenizer.json is some 35 MiB.
constexpr std::uintmax_t kMaxFileBytes = std::uintmax_t{1} << 30;

}  // namespace

std::optional<std::string> read_if_present(const std::filesystem::path& file) {
  std::error_code failure;
  const auto status = std::filesystem::status(file, failure);
  if (!std::filesystem::exists(status)) return std::nullopt;
  if (!std::filesystem::is_regular_file(status)) {
    throw InvalidInput(fmt::format("{}: expected a file, found something else", file.string()));
  }
  const auto file_bytes = std::filesystem::file_size(file, failure);
  if (failure) throw InvalidInput(fmt::format("{}: {}", file.string(), failure.message()));
  if (file_bytes > kMaxFileBytes) {
    throw InvalidInput(fmt::format("{}: {} bytes, more than the {} allowed", file.string(), file_bytes, kMaxFileBytes));
  }
  std::string text(file_bytes, '\0');
  std::ifstream stream(file, std::ios::binary);
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!stream || static_cast<std::uintmax_t>(stream.gcount()) != file_bytes) {
    throw InvalidInput(fmt::format("{}: read {} of {} bytes; check permissions and the disk", file.string(),
                                   stream.gcount(), file_bytes));
  }
  return text;
}

nlohmann::ordered_json read_json_object(const std::filesystem::path& file) {
  const auto text = read_if_present(file);
  if (!text) return nlohmann::ordered_json::object();
  try {
    auto json = parse_json(*text);
    if (!json.is_object()) throw InvalidInput("not a JSON object");
    return json;
  } catch (const InvalidInput& error) {
    throw InvalidInput(fmt::format("{}: {}", file.string(), error.what()));
  }
}

}  // namespace moetrim::text
