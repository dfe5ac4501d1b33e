// Typed, checked access to config.json.

#include "family/config_reader.h"

#include <cmath>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {
const nlohmann::ordered_json kNull;
}

ConfigReader::ConfigReader(const nlohmann::ordered_json& json, std::string where)
    : json_(&json), where_(std::move(where)) {
  if (!json.is_object()) throw InvalidInput(fmt::format("{}: expected a JSON object, got {}", where_, json.type_name()));
}

const nlohmann::ordered_json& ConfigReader::raw(std::string_view key) const {
  const auto it = json_->find(std::string(key));
  return it == json_->end() ? kNull : *it;
}

bool ConfigReader::has(std::string_view key) const { return !raw(key).is_null(); }

void ConfigReader::wrong(std::string_view key, std::string_view expected) const {
  const auto& value = raw(key);
  const std::string got = value.is_null() ? "nothing" : value.dump().substr(0, 80);
  throw InvalidInput(fmt::format("{}: \"{}\" must be {}, got {}", where_, key, expected, got));
}

std::int64_t ConfigReader::integer(std::string_view key, std::int64_t least, std::int64_t most) const {
  const auto& value = raw(key);
  const bool in_range = value.is_number_integer() && !(value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(most)) &&
                        value.get<std::int64_t>() >= least && value.get<std::int64_t>() <= most;
  if (!in_range) wrong(key, fmt::format("a whole number from {} to {}", least, most));
  return value.get<std::int64_t>();
}

std::int64_t ConfigReader::integer_or(std::string_view key, std::int64_t fallback) const {
  return has(key) ? integer(key, 0) : fallback;
}

double ConfigReader::number(std::string_view key) const {
  const auto& value = raw(key);
  if (!value.is_number() || !std::isfinite(value.get<double>())) wrong(key, "a finite number");
  return value.get<double>();
}

double ConfigReader::number_or(std::string_view key, double fallback) const { return has(key) ? number(key) : fallback; }

bool ConfigReader::boolean_or(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!raw(key).is_boolean()) wrong(key, "true or false");
  return raw(key).get<bool>();
}

std::string ConfigReader::text(std::string_view key) const {
  if (!raw(key).is_string()) wrong(key, "a string");
  return raw(key).get<std::string>();
}

std::string ConfigReader::text_or(std::string_view key, std::string_view fallback) const {
  return has(key) ? text(key) : std::string(fallback);
}

ConfigReader ConfigReader::object(std::string_view key) const {
  if (!raw(key).is_object()) wrong(key, "an object");
  return ConfigReader(raw(key), fmt::format("{}: {}", where_, key));
}

}  // namespace moetrim
