// JSON text as a tree: see json_file.h.
#include "json_file.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "json_nesting.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "posix_file.h"
#include "quote.h"

namespace moetrim {
namespace checkpoint_detail {
namespace {

using nlohmann::ordered_json;

/// "line 3, column 7" of a byte position, both counted from 1.
std::string line_and_column(std::string_view text, std::size_t position) {
  const std::string_view before = text.substr(0, position);
  const std::size_t line_break = before.rfind('\n');
  const std::size_t column = line_break == before.npos ? before.size() : before.size() - line_break - 1;
  return fmt::format("line {}, column {}", 1 + std::ranges::count(before, '\n'), column + 1);
}

/// Builds the tree itself: nlohmann's builder looks a key of an ordered object up by walking over all others, which
/// takes minutes for the weight map of a large model, and keeps the last of two equal keys silently.
class TreeBuilder final : public nlohmann::json_sax<ordered_json> {
 public:
  TreeBuilder(const std::filesystem::path& file, std::string_view text) : file_(file.string()), text_(text) {}

  ordered_json take() { return std::move(root_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t&) override { return put(value); }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t& value) override { return put(std::move(value)); }
  bool start_object(std::size_t) override { return open(); }
  bool start_array(std::size_t) override { return open(); }
  bool key(string_t& name) override;
  bool end_object() override;
  bool end_array() override;
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override;

 private:
  /// An open object or array. Its members move into the tree when it closes, each once.
  struct Open {
    std::vector<std::string> keys;
    std::vector<ordered_json> values;
  };

  bool open();
  bool put(ordered_json value) {
    (open_.empty() ? root_ : open_.back().values.emplace_back()) = std::move(value);
    return true;
  }
  Open close() {
    nesting_.close();
    Open closed = std::move(open_.back());
    open_.pop_back();
    return closed;
  }

  std::string file_;
  std::string_view text_;
  JsonNesting nesting_{kMaxJsonDepth};
  std::vector<Open> open_;
  ordered_json root_;
};

bool TreeBuilder::open() {
  if (!nesting_.open()) {
    throw InvalidInput(fmt::format("{}: the JSON nests deeper than {} levels", file_, nesting_.limit()));
  }
  open_.emplace_back();
  return true;
}

bool TreeBuilder::key(string_t& name) {
  if (!nesting_.add_key(name)) {
    throw InvalidInput(fmt::format("{}: the key {} appears twice in one object; remove one of them", file_,
                                   in_quotes(name)));
  }
  open_.back().keys.push_back(std::move(name));
  return true;
}

bool TreeBuilder::end_object() {
  Open closed = close();
  ordered_json::object_t members;
  members.reserve(closed.keys.size());
  for (std::size_t i = 0; i < closed.keys.size(); ++i) {
    members.emplace_back(std::move(closed.keys[i]), std::move(closed.values[i]));
  }
  return put(std::move(members));
}

bool TreeBuilder::end_array() {
  return put(ordered_json::array_t(std::move(close().values)));
}

bool TreeBuilder::parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) {
  const std::string_view what = error.what();
  const std::size_t prose = what.find(": ");
  // The position counts the characters read, the wrong one among them.
  throw InvalidInput(fmt::format("{}: not valid JSON at {}: {}", file_,
                                 line_and_column(text_, position - std::min<std::size_t>(position, 1)),
                                 ascii_only(prose == what.npos ? what : what.substr(prose + 2))));
}

}  // namespace

ordered_json parse_json(const std::filesystem::path& file, const std::string& text, bool comments) {
  // nlohmann takes a NUL for the end of the text and would not look behind it.
  if (const std::size_t nul = text.find('\0'); nul != text.npos) {
    throw InvalidInput(fmt::format("{}: not valid JSON at {}: a NUL byte", file.string(), line_and_column(text, nul)));
  }
  TreeBuilder builder(file, text);
  ordered_json::sax_parse(text, &builder, ordered_json::input_format_t::json, /*strict=*/true, comments);
  return builder.take();
}

}  // namespace checkpoint_detail

nlohmann::ordered_json read_json_file(const std::filesystem::path& file, bool comments) {
  constexpr std::uint64_t kMaxBytes = std::uint64_t{256} << 20;
  return checkpoint_detail::parse_json(file, checkpoint_detail::read_text(file, kMaxBytes), comments);
}

}  // namespace moetrim
