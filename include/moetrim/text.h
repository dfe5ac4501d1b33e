// Stage `text`: task files -> token ids. Needs neither LibTorch nor a model's weights.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace moetrim {

/// A checkpoint's tokenizer and chat template. Ids and rendered texts equal those of
/// transformers, whose own tokenizer library (Hugging Face `tokenizers`) does the work.
/// Movable; all const members may be called from several threads at once.
class Tokenizer {
 public:
  /// Opens `folder`: tokenizer.json, and where present tokenizer_config.json,
  /// special_tokens_map.json and the chat template. The template comes from, in this order,
  /// chat_template.jinja, chat_template.json, "chat_template" in tokenizer_config.json (also a
  /// list of named ones; `default` and, for conversations with tools, `tool_use` are used).
  ///
  /// @throws InvalidInput  naming the file that is missing, damaged or contradictory.
  static Tokenizer open(const std::filesystem::path& folder);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Token ids of `text`. Special tokens that are written out in it are recognised.
  /// @param add_special_tokens  adds what the tokenizer adds by default (often a BOS).
  /// @throws InvalidInput  when `text` is not UTF-8 or the tokenizer cannot encode it.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens) const;

  /// Text of `ids`; ids without a token give nothing, incomplete UTF-8 gives U+FFFD.
  /// @throws InvalidInput  when an id is negative or the tokenizer cannot decode.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const;

  /// Id of one token as it is spelt in the vocabulary, or nothing.
  std::optional<std::int32_t> token_id(std::string_view token) const;

  /// Spelling of the end-of-sequence token; empty when the files name none.
  const std::string& eos_token() const;

  bool has_chat_template() const;

  /// Renders a conversation as transformers' `apply_chat_template` does.
  ///
  /// @param messages  array of {role, content, ...}.
  /// @param extra     object of further template variables, for example `tools`.
  /// @throws InvalidInput  naming the template file: no template, a mistake in it, its own
  ///         `raise_exception`, or more than its bounds of instructions, memory and time.
  std::string render_chat(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                          const nlohmann::ordered_json& extra) const;
  std::string render_chat(const nlohmann::ordered_json& messages,
                          bool add_generation_prompt) const;

 private:
  struct Parts;
  explicit Tokenizer(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

/// Which tokens of a demonstration are measured.
enum class Count { all, prompt, response };

/// One task sample.
struct Demonstration {
  std::vector<std::int32_t> ids;   ///< [T] token ids, never empty
  std::int64_t prompt_tokens = 0;  ///< ids[0, prompt_tokens) belong to the prompt, the rest to the response
  std::string prompt;              ///< as read; empty where the row has none
  std::string response;            ///< as read; empty where the row has none
  std::string answer;              ///< exact final answer; empty where the row has none
  std::int64_t line = 0;           ///< 1-based line in the file
};

/// A named set of demonstrations: one JSONL file.
struct Task {
  std::string name;  ///< the file's name without its extension, with "/TAG" where rows are split by their tags
  std::filesystem::path file;
  std::vector<Demonstration> demonstrations;  ///< in order of use
  std::string digest;  ///< XXH3-128, in hex, of the lines used, each ended by one newline, in order of use
};

struct TaskOptions {
  std::int64_t samples = 0;                   ///< demonstrations to use from the start; 0 = all
  std::optional<std::uint64_t> shuffle_seed;  ///< mixes all lines before `samples` are taken
  std::int64_t max_tokens = 0;                ///< cuts every demonstration at its end; 0 = no cut
  bool generation_prompt_only = false;        ///< ids end where the model would start to answer
  std::int64_t vocabulary = 0;                ///< V: every id must be below it; 0 = not checked
};

/// Reads a JSONL task file: one JSON object a line, blank lines skipped, unknown fields ignored.
/// A row is the first of these forms whose first field it has, and may have a "tag" (see read_tasks_by_tag):
///
///   {"input_ids": [...]}                ids as they are; optional "prompt_tokens": n, else 0
///   {"messages": [...]}                 optional "tools". The last assistant message is the
///                                       response; messages after it are not used
///   {"prompt": ..., "response": ...}    optional "answer": the exact final answer
///   {"question": ..., "answer": ...}    as in GSM8K: prompt and response. The final answer is
///                                       what follows the last "#### ", or else the whole
///   {"text": ...}                       all of it is response
///
/// Prompt and response go through the chat template when there is one, and are concatenated,
/// with the tokenizer's default special tokens, when there is none. The prompt's tokens are the
/// common prefix of the ids of the whole and of the prompt alone. Where a template does not
/// render the whole as a continuation of the prompt with its generation prompt (it may drop
/// reasoning), the whole is that prompt, the response as written and the end-of-sequence token.
///
/// With `generation_prompt_only` only the prompt gives ids; a row without a response will do,
/// and one without a prompt is an error.
///
/// The order of `shuffle_seed` is the same on every machine: Fisher–Yates from the last row down,
/// each index the high 64 bits of (row count left × next SplitMix64 output).
///
/// @param tokenizer  may be null when every row has "input_ids".
/// @throws InvalidInput  naming file and line, what is wrong and what to do.
/// @throws UsageError    on a negative option.
Task read_task(const std::filesystem::path& file, const Tokenizer* tokenizer,
               const TaskOptions& options);

/// The same rows as one task per tag, for statistics of each: rows with `"tag": "x"` are the task NAME/x, those without one
/// the task NAME. That one comes first, then tags in the order of their bytes; only tasks with rows are there. Options mean
/// what they mean for the file: `samples` counts its rows, not those of a tag.
/// @throws as read_task; also for a tag that is no string of 1 to 64 bytes without control characters, '/', '=' and ',',
///         and for more than 256 tags.
std::vector<Task> read_tasks_by_tag(const std::filesystem::path& file, const Tokenizer* tokenizer, const TaskOptions& options);

/// Positions [begin, end) of `ids` that are measured; may be empty.
std::pair<std::int64_t, std::int64_t> counted_range(const Demonstration& demonstration,
                                                    Count count);

}  // namespace moetrim
