// Exact match of greedy answers, and which tokens end an answer.

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/evaluate.h"

namespace moetrim {

namespace {

constexpr std::size_t kMissesShown = 5;

/// One id, or a list of them.
std::vector<std::int32_t> ids_of(const nlohmann::ordered_json& value) {
  if (value.is_number_integer()) return {value.get<std::int32_t>()};
  std::vector<std::int32_t> ids;
  if (!value.is_array()) return ids;
  for (const auto& entry : value) {
    if (entry.is_number_integer()) ids.push_back(entry.get<std::int32_t>());
  }
  return ids;
}

}  // namespace

std::vector<std::int32_t> stop_tokens(const Checkpoint& checkpoint) {
  const auto file = checkpoint.folder() / "generation_config.json";
  if (std::filesystem::exists(file)) {
    const auto json = read_json_file(file);
    if (json.is_object() && json.contains("eos_token_id")) {
      if (auto ids = ids_of(json.at("eos_token_id")); !ids.empty()) return ids;
    }
  }
  const auto& config = checkpoint.config();
  return config.contains("eos_token_id") ? ids_of(config.at("eos_token_id")) : std::vector<std::int32_t>{};
}

std::string final_answer(std::string_view text) {
  constexpr std::string_view kMark = "#### ";
  if (const auto at = text.rfind(kMark); at != std::string_view::npos) text.remove_prefix(at + kMark.size());
  constexpr std::string_view kSpace = " \t\r\n";
  const auto begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(kSpace) - begin + 1));
}

void ExactMatch::add(const ExactMatch& other) {
  samples += other.samples;
  correct += other.correct;
  misses.insert(misses.end(), other.misses.begin(), other.misses.end());
  std::sort(misses.begin(), misses.end(), [](const Miss& a, const Miss& b) { return a.demonstration < b.demonstration; });
  misses.resize(std::min(misses.size(), kMissesShown));
}

ExactMatch exact_match(const Model& model, const Tokenizer& tokenizer, const Task& task, const GenerateOptions& options) {
  std::vector<std::vector<std::int32_t>> prompts;
  std::vector<std::int64_t> asked;   // index within the task
  for (std::size_t i = 0; i < task.demonstrations.size(); ++i) {
    if (!options.share.holds(static_cast<std::int64_t>(i))) continue;
    const Demonstration& demonstration = task.demonstrations[i];
    if (demonstration.answer.empty() && demonstration.response.empty()) {
      throw InvalidInput(fmt::format("{}:{}: no answer to compare with; exact match needs \"response\" or \"answer\"",
                                     task.file.string(), demonstration.line));
    }
    prompts.push_back(demonstration.ids);
    asked.push_back(static_cast<std::int64_t>(i));
  }
  ExactMatch result;
  if (prompts.empty()) return result;
  const auto answers = generate(model, prompts, options);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const Demonstration& demonstration = task.demonstrations[static_cast<std::size_t>(asked[i])];
    const std::string expected = final_answer(demonstration.answer.empty() ? demonstration.response : demonstration.answer);
    const std::string got = final_answer(tokenizer.decode(answers[i], /*skip_special_tokens=*/true));
    ++result.samples;
    result.correct += got == expected;
    if (got != expected && result.misses.size() < kMissesShown) {
      result.misses.push_back({.demonstration = asked[i], .line = demonstration.line, .expected = expected, .got = got});
    }
  }
  return result;
}

}  // namespace moetrim
