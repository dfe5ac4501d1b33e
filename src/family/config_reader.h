// Typed, checked access to config.json. Every error names the file and the key.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace moetrim {

class ConfigReader {
 public:
  /// @param where  shown in errors, for example ".../config.json" or ".../config.json: rope_parameters"
  ConfigReader(const nlohmann::ordered_json& json, std::string where);

  /// True when the key is there and not null.
  bool has(std::string_view key) const;
  /// A whole number in [least, most]. @throws InvalidInput when absent, of another type or out of range.
  std::int64_t integer(std::string_view key, std::int64_t least = 1, std::int64_t most = std::int64_t{1} << 40) const;
  std::int64_t integer_or(std::string_view key, std::int64_t fallback) const;
  /// A finite number.
  double number(std::string_view key) const;
  double number_or(std::string_view key, double fallback) const;
  bool boolean_or(std::string_view key, bool fallback) const;
  std::string text(std::string_view key) const;
  std::string text_or(std::string_view key, std::string_view fallback) const;
  /// The object under a key. @throws InvalidInput when it is something else.
  ConfigReader object(std::string_view key) const;
  /// The raw value, null when absent.
  const nlohmann::ordered_json& raw(std::string_view key) const;
  const std::string& where() const { return where_; }

 private:
  [[noreturn]] void wrong(std::string_view key, std::string_view expected) const;
  const nlohmann::ordered_json* json_;
  std::string where_;
};

}  // namespace moetrim
