// Finds llama.cpp's name of a tokenizer.json's pre-tokenizer.

#include "pretokenizer_shape.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/quote.h"
#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim::gguf_detail {
namespace {

using Json = nlohmann::ordered_json;
using checkpoint_detail::in_quotes;

constexpr std::string_view kWayOut =
    "give the name of llama.cpp's pre-tokenizer that splits alike (--pretokenizer NAME), or leave the tokenizer out "
    "(--no-tokenizer)";

/// What llama.cpp v0.5.0 takes for tokenizer.ggml.pre of a byte-level tokenizer.
constexpr std::string_view kNames[] = {
    "a.x-4.0", "afmoe", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm-bpe", "codeshell", "cohere2moe",
    "command-r", "dbrx", "deepseek-coder", "deepseek-llm", "deepseek-r1-qwen", "deepseek-v3", "default", "exaone",
    "exaone-moe", "exaone4", "f2llmv2", "falcon", "falcon-h1", "falcon3", "gigachat", "glm4", "gpt-2", "gpt-4o",
    "gpt3-finnish", "granite-docling", "granite-embed-multi-97m", "grok-2", "hunyuan", "hunyuan-dense", "hy_v4",
    "jais", "jais-2", "jina-de", "jina-es", "jina-v1-en", "jina-v2-code", "jina-v2-de", "jina-v2-es", "jina-v5-nano",
    "joyai-llm", "kanana2", "kimi-k2", "kormo", "laguna", "lfm2", "llada-moe", "llama-bpe", "llama-v3", "llama3",
    "llama4", "megrez", "mellum", "mellum2", "midm-2.0", "minerva-7b", "minicpm5", "minimax-m2", "modern-bert", "mpt",
    "olmo", "phi-2", "pixtral", "poro-chat", "qwen2", "qwen35", "refact", "roberta-bpe", "seed-coder", "smaug-bpe",
    "smollm", "solar-open", "spark2_5", "stablelm2", "starcoder", "superbpe", "talkie", "tekken", "tiny_aya",
    "trillion", "ufakzeka", "viking", "youtu"};

bool flag(const Json& step, const char* name, bool otherwise) {
  const auto found = step.find(name);
  return found != step.end() && found->is_boolean() ? found->get<bool>() : otherwise;
}

std::string text(const Json& step, const char* name) {
  const auto found = step.find(name);
  return found != step.end() && found->is_string() ? found->get<std::string>() : std::string();
}

[[noreturn]] void refuse(const std::filesystem::path& file, const Json& step) {
  throw InvalidInput(fmt::format("{}: pre_tokenizer: llama.cpp has no pre-tokenizer with the step {}; {}", file.string(),
                                 in_quotes(step.dump(-1, ' ', false, Json::error_handler_t::replace)), kWayOut));
}

/// Line breaks as \n and \r: files have them either way.
std::string with_escapes(const std::string& expression) {
  std::string escaped;
  for (const char c : expression) {
    if (c == '\r') {
      escaped += "\\r";
    } else if (c == '\n') {
      escaped += "\\n";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

/// An expression that stands alone matches every character of a text: to isolate the matches, and to keep nothing else, is
/// then the same.
std::string split_step(const Json& step, const std::filesystem::path& file, bool alone) {
  const auto pattern = step.find("pattern");
  const std::string expression = pattern != step.end() && pattern->is_object() ? text(*pattern, "Regex") : "";
  const std::string behaviour = text(step, "behavior");
  const bool inverted = flag(step, "invert", false);
  const bool isolates = behaviour == "Isolated" && !inverted;
  if (expression.empty() || !(isolates || (alone && behaviour == "Removed" && inverted))) refuse(file, step);
  return "split " + with_escapes(expression);
}

std::string step_of(const Json& step, const std::filesystem::path& file, bool alone) {
  const std::string type = step.is_object() ? text(step, "type") : "";
  if (type == "Split") return split_step(step, file, alone);
  if (type == "Digits" && flag(step, "individual_digits", false)) return "digits";
  // Older files lack use_regex, which is then true.
  if (type == "ByteLevel" && !flag(step, "add_prefix_space", true)) {
    return flag(step, "use_regex", true) ? "words and bytes" : "bytes";
  }
  refuse(file, step);
}

}  // namespace

std::vector<std::string> pretokenizer_steps(const Json& pretokenizer, const std::filesystem::path& file) {
  Json steps = Json::array({pretokenizer});
  if (pretokenizer.is_object() && text(pretokenizer, "type") == "Sequence") {
    const auto found = pretokenizer.find("pretokenizers");
    if (found == pretokenizer.end() || !found->is_array()) refuse(file, pretokenizer);
    steps = *found;
  }
  const auto is_split = [](const Json& step) { return step.is_object() && text(step, "type") == "Split"; };
  const auto splits = std::ranges::count_if(steps, is_split);
  std::vector<std::string> lines;
  for (const Json& step : steps) lines.push_back(step_of(step, file, splits == 1));
  return lines;
}

const GgufPretokenizer& pretokenizer_of(const std::vector<std::string>& steps, bool whole_words,
                                        const std::filesystem::path& file) {
  const GgufPretokenizer* alike = nullptr;
  for (const GgufPretokenizer& row : gguf_pretokenizers()) {
    if (!std::ranges::equal(row.steps, steps)) continue;
    if (row.whole_words == whole_words) return row;
    alike = &row;
  }
  if (alike != nullptr) return *alike;
  throw InvalidInput(fmt::format("{}: pre_tokenizer: llama.cpp has no pre-tokenizer of the steps: {}; {}", file.string(),
                                 fmt::join(steps, ", then "), kWayOut));
}

std::string_view known_pretokenizer(std::string_view name) {
  if (std::ranges::find(kNames, name) != std::end(kNames)) return name;
  throw UsageError(fmt::format("--pretokenizer {}: llama.cpp v0.5.0 knows no such name{}", in_quotes(name),
                               did_you_mean(name, kNames)));
}

}  // namespace moetrim::gguf_detail
