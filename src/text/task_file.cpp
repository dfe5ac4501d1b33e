// Reads JSONL task files: which lines, in which order, and what they were.

// Header-only xxHash: the same digest needs no library at link time.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/text.h"
#include "text/demonstrations.h"
#include "text/hostile_json.h"
#include "text/line_file.h"

namespace moetrim {
namespace {

/// SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  /// A number below `bound`. The high half of the product: its bias is below bound / 2^64.
  std::uint64_t below(std::uint64_t bound) {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
  }

 private:
  std::uint64_t state_;
};

class Digest {
 public:
  Digest() { XXH3_128bits_reset(&state_); }

  void add(const std::string& line) {
    XXH3_128bits_update(&state_, line.data(), line.size());
    XXH3_128bits_update(&state_, "\n", 1);
  }

  std::string hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(&state_);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  XXH3_state_t state_{};
};

void check_options(const TaskOptions& options) {
  if (options.samples < 0) throw UsageError(fmt::format("samples is {}, expected 0 (all) or more", options.samples));
  if (options.max_tokens < 0) {
    throw UsageError(fmt::format("max-tokens is {}, expected 0 (no cut) or more", options.max_tokens));
  }
}

/// Reads rows into one task, adding file and line to every error of a row.
class TaskReader {
 public:
  TaskReader(const std::filesystem::path& file, const Tokenizer* tokenizer, const TaskOptions& options)
      : lines_(file), tokenizer_(tokenizer), options_(options) {
    task_.file = file;
    task_.name = file.stem().string();
  }

  Task read() {
    if (options_.shuffle_seed) {
      read_shuffled();
    } else {
      while (!enough()) {
        const auto line = lines_.next();
        if (!line) break;
        add(*line);
      }
    }
    if (task_.demonstrations.empty()) {
      throw InvalidInput(fmt::format("{}: no rows; a task file holds one JSON object a line", task_.file.string()));
    }
    task_.digest = digest_.hex();
    return std::move(task_);
  }

 private:
  bool enough() const {
    return options_.samples > 0 && static_cast<std::int64_t>(task_.demonstrations.size()) >= options_.samples;
  }

  void read_shuffled() {
    auto places = lines_.places();
    SplitMix64 random(*options_.shuffle_seed);
    for (std::size_t left = places.size(); left > 1; --left) std::swap(places[left - 1], places[random.below(left)]);
    for (const auto& place : places) {
      if (enough()) break;
      add(lines_.at(place));
    }
  }

  void add(const text::Line& line) {
    try {
      auto made = text::make_demonstration(text::parse_json(line.bytes), tokenizer_, options_);
      made.line = line.number;
      task_.demonstrations.push_back(std::move(made));
    } catch (const InvalidInput& error) {
      throw InvalidInput(fmt::format("{}, line {}: {}", task_.file.string(), line.number, error.what()));
    }
    digest_.add(line.bytes);
  }

  text::LineFile lines_;
  const Tokenizer* tokenizer_;
  const TaskOptions& options_;
  Task task_;
  Digest digest_;
};

}  // namespace

Task read_task(const std::filesystem::path& file, const Tokenizer* tokenizer, const TaskOptions& options) {
  check_options(options);
  return TaskReader(file, tokenizer, options).read();
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
