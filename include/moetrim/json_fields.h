// Reads one JSON object strictly: typed fields with bounds, and an error for every field that nobody asked for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim {

/// One object of a JSON file. Ask for every field that there may be, then call finish().
///
/// Every error is an InvalidInput that names the file and the field, for example
/// `plan.json: layers[2].keep: expected an array, got 3`. The object must outlive this reader.
class JsonFields {
 public:
  using Json = nlohmann::ordered_json;

  /// @param where  path of the object inside the file, for example "layers[2]"; empty for the root.
  JsonFields(const Json& object, std::filesystem::path file, std::string where = {})
      : object_(object), file_(std::move(file)), where_(std::move(where)) {
    if (!object_.is_object()) fail("", "expected an object, got " + shown(object_));
  }

  /// Marks the field as known and says whether it is there.
  bool has(std::string_view name) {
    known_.emplace_back(name);
    return object_.contains(name);
  }

  const Json& at(std::string_view name) {
    known_.emplace_back(name);
    const auto field = object_.find(name);
    if (field == object_.end()) fail(name, "is missing");
    return *field;
  }

  /// A string that is not empty.
  std::string text(std::string_view name) {
    const Json& value = at(name);
    if (!value.is_string() || value.get_ref<const std::string&>().empty()) expected(name, "a non-empty string", value);
    return value.get<std::string>();
  }

  std::string choice(std::string_view name, std::initializer_list<std::string_view> allowed) {
    const std::string value = text(name);
    std::string list;
    for (const std::string_view option : allowed) {
      if (option == value) return value;
      list += (list.empty() ? "" : ", ") + std::string(option);
    }
    fail(name, "expected one of " + list + ", got " + in_quotes(value) + did_you_mean(value, allowed));
  }

  std::int64_t integer(std::string_view name, std::int64_t least, std::int64_t most) {
    return checked_integer(name, at(name), least, most);
  }

  /// An integer that fits an int.
  int whole(std::string_view name, int least, int most = std::numeric_limits<int>::max()) {
    return static_cast<int>(integer(name, least, most));
  }

  double number(std::string_view name, double least, double most) {
    const Json& value = at(name);
    const double got = value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
    if (!(got >= least && got <= most)) {
      expected(name, "a number from " + Json(least).dump() + " to " + Json(most).dump(), value);
    }
    return got;
  }

  bool flag(std::string_view name) {
    const Json& value = at(name);
    if (!value.is_boolean()) expected(name, "true or false", value);
    return value.get<bool>();
  }

  const Json& array(std::string_view name) {
    const Json& value = at(name);
    if (!value.is_array()) expected(name, "an array", value);
    return value;
  }

  const Json& object(std::string_view name) {
    const Json& value = at(name);
    if (!value.is_object()) expected(name, "an object", value);
    return value;
  }

  /// Integers in strictly ascending order.
  std::vector<int> ascending(std::string_view name, int least, int most) {
    std::vector<int> values;
    for (const Json& item : array(name)) {
      const std::string path = std::string(name) + "[" + std::to_string(values.size()) + "]";
      const int value = static_cast<int>(checked_integer(path, item, least, most));
      if (!values.empty() && value <= values.back()) {
        fail(path, "expected more than the " + std::to_string(values.back()) + " before it, got " +
                       std::to_string(value) + "; ids are ascending and not doubled");
      }
      values.push_back(value);
    }
    return values;
  }

  /// Integers in any order.
  std::vector<int> whole_numbers(std::string_view name, int least, int most) {
    std::vector<int> values;
    for (const Json& item : array(name)) {
      const std::string path = std::string(name) + "[" + std::to_string(values.size()) + "]";
      values.push_back(static_cast<int>(checked_integer(path, item, least, most)));
    }
    return values;
  }

  /// Numbers in any order.
  std::vector<double> numbers(std::string_view name, double least, double most) {
    std::vector<double> values;
    for (const Json& item : array(name)) {
      const double got = item.is_number() ? item.get<double>() : std::numeric_limits<double>::quiet_NaN();
      if (!(got >= least && got <= most)) {
        expected(std::string(name) + "[" + std::to_string(values.size()) + "]",
                 "a number from " + Json(least).dump() + " to " + Json(most).dump(), item);
      }
      values.push_back(got);
    }
    return values;
  }

  /// Refuses fields that were never asked for, with the known name that is nearest.
  void finish() const {
    for (const auto& item : object_.items()) {
      const std::string& name = item.key();
      if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
      fail("", "unknown field " + in_quotes(name) + did_you_mean(name, known_));
    }
  }

  /// `file: field: problem`.
  [[noreturn]] void fail(std::string_view name, const std::string& problem) const {
    const std::string field = where_ + (where_.empty() || name.empty() ? "" : ".") + std::string(name);
    throw InvalidInput(file_.string() + ": " + (field.empty() ? "" : field + ": ") + problem);
  }

 private:
  static std::string shown(const Json& value) {
    if (value.is_structured()) return value.is_array() ? "an array" : "an object";
    constexpr std::size_t kMost = 60;
    std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > kMost) text.replace(kMost, std::string::npos, "...");
    return text;
  }

  [[noreturn]] void expected(std::string_view name, const std::string& what, const Json& value) const {
    fail(name, "expected " + what + ", got " + shown(value));
  }

  std::int64_t checked_integer(std::string_view name, const Json& value, std::int64_t least, std::int64_t most) const {
    const bool fits = value.is_number_unsigned()
                          ? value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}
                          : value.is_number_integer();
    const std::int64_t got = fits ? value.get<std::int64_t>() : 0;
    if (!fits || got < least || got > most) {
      expected(name, "an integer from " + std::to_string(least) + " to " + std::to_string(most), value);
    }
    return got;
  }

  const Json& object_;
  std::filesystem::path file_;
  std::string where_;
  std::vector<std::string> known_;
};

}  // namespace moetrim
