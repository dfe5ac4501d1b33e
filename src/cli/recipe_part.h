// The parts of recipes: what the recipes of several commands have in common.
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "cli/stages.h"
#include "moetrim/json_fields.h"

namespace moetrim::cli {

/// Reads the fields of one part; paths become relative to the working directory.
class Part {
 public:
  static constexpr std::int64_t kMany = std::int64_t{1} << 40;

  Part(const nlohmann::ordered_json& json, const std::filesystem::path& file, const std::string& where)
      : fields_(json, file, where), folder_(file.parent_path()) {}

  JsonFields& fields() { return fields_; }
  const JsonFields& fields() const { return fields_; }
  std::filesystem::path path(const char* name) { return resolve(fields_.text(name)); }
  std::filesystem::path resolve(const std::string& text) const { return (folder_ / text).lexically_normal(); }

  void text(const char* name, std::string& out) {
    if (fields_.has(name)) out = fields_.text(name);
  }
  void choice(const char* name, std::initializer_list<std::string_view> allowed, std::string& out) {
    if (fields_.has(name)) out = fields_.choice(name, allowed);
  }
  template <class Integer>
  void integer(const char* name, std::int64_t least, Integer& out) {
    if (fields_.has(name)) out = static_cast<Integer>(fields_.integer(name, least, sizeof(Integer) == 4 ? 1 << 30 : kMany));
  }
  void flag(const char* name, bool& out) {
    if (fields_.has(name)) out = fields_.flag(name);
  }
  std::vector<std::string> texts(const char* name, bool required) {
    std::vector<std::string> out;
    if (!required && !fields_.has(name)) return out;
    for (const auto& item : fields_.array(name)) {
      if (!item.is_string()) fields_.fail(name, "expected a list of strings");
      out.push_back(item.get<std::string>());
    }
    if (required && out.empty()) fields_.fail(name, "must not be empty");
    return out;
  }

  void tasks(TaskFlags& out) {
    for (const auto& file : texts("task", true)) out.files.push_back(resolve(file).string());
    choice("count", {"all", "prompt", "response"}, out.count);
    integer("samples", 0, out.samples);
    if (fields_.has("shuffle")) out.shuffle = static_cast<std::uint64_t>(fields_.integer("shuffle", 0, kMany));
    integer("max-tokens", 0, out.max_tokens);
    flag("split-by-tag", out.split_by_tag);
  }
  void run(RunFlags& out) {
    choice("dtype", {"fp32", "bf16", "fp64"}, out.dtype);
    text("device", out.device);
    integer("threads", 0, out.threads);
    text("max-memory", out.max_memory);
  }

 private:
  JsonFields fields_;
  std::filesystem::path folder_;
};

/// A number, a ratio, or a share such as "50%", as on the command line; empty where the field is absent.
std::string number_or_text(JsonFields& fields, const char* name);
void read_calibrate(Part& part, CalibrateFlags& out);
void read_evaluate(Part& part, EvaluateFlags& out);
/// What belongs to a method, but neither the method nor how much stays.
void read_plan_options(Part& part, PlanFlags& out);
/// Which tasks are put together, protected and dropped.
void read_task_algebra(Part& part, TaskAlgebraFlags& out);
/// What belongs to merging, but neither the method nor the number of experts.
void read_merge_options(Part& part, const std::filesystem::path& checkpoint, MergeFlags& out);
/// What plans that merge so need is measured in the same run. @throws InvalidInput
void check_vectors(const MergeFlags& merge, const ScoreFlags& score, const CalibrateFlags& flags, const Part& calibrate);

}  // namespace moetrim::cli
