// Reads JSONL task files: which lines, in which order, of which tag, and what they were.

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "checkpoint/digest.h"
#include "moetrim/error.h"
#include "moetrim/split_mix.h"
#include "moetrim/suggest.h"
#include "moetrim/text.h"
#include "text/demonstrations.h"
#include "text/hostile_json.h"
#include "text/line_file.h"

namespace moetrim {
namespace {

/// The next number below `bound`. The high half of the product: its bias is below bound / 2^64.
std::uint64_t next_below(SplitMix64& numbers, std::uint64_t bound) {
  return static_cast<std::uint64_t>((static_cast<unsigned __int128>(numbers.next()) * bound) >> 64);
}

constexpr std::size_t kLongestTag = 64;
constexpr std::size_t kMostTags = 256;  // a task's co-activations alone are E x E per layer

void check_options(const TaskOptions& options) {
  if (options.samples < 0) throw UsageError(fmt::format("samples is {}, expected 0 (all) or more", options.samples));
  if (options.max_tokens < 0) {
    throw UsageError(fmt::format("max-tokens is {}, expected 0 (no cut) or more", options.max_tokens));
  }
}

/// The tag of a row; empty where it has none.
std::string tag_of(const nlohmann::ordered_json& row) {
  const auto found = row.find("tag");
  if (found == row.end() || found->is_null()) return {};
  if (!found->is_string()) throw InvalidInput(fmt::format("\"tag\" is a JSON {}, expected a string", found->type_name()));
  auto tag = found->get<std::string>();
  // A tag becomes part of a task's name, which NAME=WEIGHT and lists must be able to hold.
  const auto bad = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F || c == '/' || c == '=' || c == ','; };
  if (tag.empty() || tag.size() > kLongestTag || std::any_of(tag.begin(), tag.end(), bad)) {
    throw InvalidInput(fmt::format("\"tag\" is {}, expected 1 to {} bytes without control characters, '/', '=' and ','",
                                   in_quotes(tag), kLongestTag));
  }
  return tag;
}

/// Reads rows into one task, or into one per tag, adding file and line to every error of a row.
class TaskReader {
 public:
  TaskReader(const std::filesystem::path& file, const Tokenizer* tokenizer, const TaskOptions& options, bool by_tag)
      : file_(file), lines_(file), tokenizer_(tokenizer), options_(options), by_tag_(by_tag) {}

  /// At least one task; the rows without a tag first, then by tag.
  std::vector<Task> read() {
    if (options_.shuffle_seed) {
      read_shuffled();
    } else {
      while (!enough()) {
        const auto line = lines_.next();
        if (!line) break;
        add(*line);
      }
    }
    if (parts_.empty()) {
      throw InvalidInput(fmt::format("{}: no rows; a task file holds one JSON object a line", file_.string()));
    }
    std::vector<Task> tasks;
    for (auto& [tag, part] : parts_) {
      tasks.push_back({.name = file_.stem().string() + (tag.empty() ? "" : "/" + tag),
                       .file = file_,
                       .demonstrations = std::move(part.demonstrations),
                       .digest = part.digest.hex()});
    }
    return tasks;
  }

 private:
  /// The rows of one tag.
  struct Part {
    std::vector<Demonstration> demonstrations;
    checkpoint_detail::Digest digest;
  };

  bool enough() const { return options_.samples > 0 && rows_ >= options_.samples; }

  void read_shuffled() {
    auto places = lines_.places();
    SplitMix64 random(*options_.shuffle_seed);
    for (std::size_t left = places.size(); left > 1; --left) std::swap(places[left - 1], places[next_below(random, left)]);
    for (const auto& place : places) {
      if (enough()) break;
      add(lines_.at(place));
    }
  }

  Part& part_of(const nlohmann::ordered_json& row) {
    const std::string tag = by_tag_ ? tag_of(row) : std::string();
    Part& part = parts_[tag];
    if (parts_.size() - parts_.count("") > kMostTags) {
      throw InvalidInput(fmt::format("more than {} tags; every one is a task with statistics of its own", kMostTags));
    }
    return part;
  }

  void add(const text::Line& line) {
    try {
      const auto row = text::parse_json(line.bytes);
      auto made = text::make_demonstration(row, tokenizer_, options_);
      made.line = line.number;
      Part& part = part_of(row);
      part.demonstrations.push_back(std::move(made));
      part.digest.add(line.bytes);
      part.digest.add("\n");
      ++rows_;
    } catch (const InvalidInput& error) {
      throw InvalidInput(fmt::format("{}, line {}: {}", file_.string(), line.number, error.what()));
    }
  }

  std::filesystem::path file_;
  text::LineFile lines_;
  const Tokenizer* tokenizer_;
  const TaskOptions& options_;
  bool by_tag_;
  std::int64_t rows_ = 0;
  std::map<std::string, Part> parts_;  // in the order of their bytes; no tag is the empty string
};

}  // namespace

Task read_task(const std::filesystem::path& file, const Tokenizer* tokenizer, const TaskOptions& options) {
  check_options(options);
  return std::move(TaskReader(file, tokenizer, options, /*by_tag=*/false).read().front());
}

std::vector<Task> read_tasks_by_tag(const std::filesystem::path& file, const Tokenizer* tokenizer, const TaskOptions& options) {
  check_options(options);
  return TaskReader(file, tokenizer, options, /*by_tag=*/true).read();
}

std::pair<std::int64_t, std::int64_t> counted_range(const Demonstration& demonstration, Count count) {
  const auto tokens = static_cast<std::int64_t>(demonstration.ids.size());
  switch (count) {
    case Count::prompt: return {0, demonstration.prompt_tokens};
    case Count::response: return {demonstration.prompt_tokens, tokens};
    case Count::all: break;
  }
  return {0, tokens};
}

}  // namespace moetrim
