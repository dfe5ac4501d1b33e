// Queries as tokens: what a user asks, read as calibration reads the prompts of its demonstrations.

#include <fmt/format.h>

#include "cli/patterns.h"
#include "moetrim/error.h"
#include "text/demonstrations.h"
#include "text/hostile_json.h"
#include "text/line_file.h"

namespace moetrim::cli {

namespace {

using Json = nlohmann::ordered_json;

/// Whether a row is a query as a whole: text without an answer, or ids without a mark where the prompt ends.
bool is_whole(const Json& row) {
  if (!row.is_object()) return false;
  if (row.contains("input_ids")) return !row.contains("prompt_tokens") || row["prompt_tokens"] == 0;
  return row.contains("text") && !row.contains("messages") && !row.contains("prompt") && !row.contains("question");
}

/// Rows to queries, one after another.
class QueryReader {
 public:
  QueryReader(const Model& model, QueryForm form) : form_(form) {
    const auto& folder = model.checkpoint->folder();
    if (std::filesystem::exists(folder / "tokenizer.json")) tokenizer_.emplace(Tokenizer::open(folder));
    options_.vocabulary = model.vocabulary;
  }

  void add(const Json& row) {
    TaskOptions options = options_;
    const bool whole = is_whole(row);
    options.generation_prompt_only = !whole;
    const Tokenizer* tokenizer = tokenizer_ ? &*tokenizer_ : nullptr;
    Demonstration query = text::make_demonstration(row, tokenizer, options);
    std::optional<std::string> text;
    if (!row.contains("input_ids")) text = whole ? query.response : query.prompt;
    if (form_ == QueryForm::raw && text && !whole) {
      options.generation_prompt_only = false;
      query = text::make_demonstration({{"text", *text}}, tokenizer, options);
    }
    queries_.task.demonstrations.push_back(std::move(query));
    queries_.texts.push_back(std::move(text));
  }

  QueryTexts take() {
    queries_.task.name = "queries";
    return std::move(queries_);
  }

 private:
  QueryForm form_;
  std::optional<Tokenizer> tokenizer_;
  TaskOptions options_;
  QueryTexts queries_;
};

}  // namespace

QueryTexts read_query_file(const std::filesystem::path& file, const Model& model, QueryForm form) {
  QueryReader reader(model, form);
  text::LineFile lines(file);
  const bool plain = file.extension() == ".txt";
  std::int64_t rows = 0;
  while (const auto line = lines.next()) {
    try {
      if (plain) text::check_utf8(line->bytes);
      reader.add(plain ? Json{{"prompt", line->bytes}} : text::parse_json(line->bytes));
    } catch (const InvalidInput& error) {
      throw InvalidInput(fmt::format("{}, line {}: {}", file.string(), line->number, error.what()));
    }
    ++rows;
  }
  if (rows == 0) {
    throw InvalidInput(
        fmt::format("{}: no rows; expected {}", file.string(),
                    plain ? "a query a line" : "one JSON object a line, for example {\"prompt\": …}"));
  }
  return reader.take();
}

QueryTexts read_query_texts(const std::vector<std::string>& texts, const Model& model, QueryForm form) {
  QueryReader reader(model, form);
  for (const std::string& text : texts) reader.add({{"prompt", text}});
  return reader.take();
}

}  // namespace moetrim::cli
