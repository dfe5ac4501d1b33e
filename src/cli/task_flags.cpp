// Task files on the command line. Apart from the rest: a program without these options needs no tokenizer.

#include <algorithm>
#include <filesystem>
#include <iterator>

#include "cli/command.h"

namespace moetrim::cli {

void TaskFlags::add(CLI::App& command) {
  command.add_option("--task", files, "Task file, one JSON object a line; repeat for several tasks")->required();
  command.add_option("--count", count, "Tokens that are measured: all, prompt or response")
      ->check(CLI::IsMember({"all", "prompt", "response"}))->capture_default_str();
  command.add_option("--samples", samples, "Use the first N lines of every task; 0: all")->check(CLI::NonNegativeNumber);
  command.add_option("--shuffle", shuffle, "Mix the lines with this seed before --samples takes the first");
  command.add_option("--max-tokens", max_tokens, "Cut every sample after N tokens; 0: no cut")->check(CLI::NonNegativeNumber);
  command.add_flag("--split-by-tag", split_by_tag, "Make a task NAME/TAG of the lines with that \"tag\", for figures of each");
}

Count TaskFlags::count_value() const {
  return count == "prompt" ? Count::prompt : count == "response" ? Count::response : Count::all;
}

TaskOptions TaskFlags::task_options(std::int64_t vocabulary) const {
  TaskOptions options;
  options.samples = samples;
  options.shuffle_seed = shuffle;
  options.max_tokens = max_tokens;
  options.vocabulary = vocabulary;
  return options;
}

std::vector<Task> read_tasks(const TaskFlags& flags, const std::filesystem::path& checkpoint, const TaskOptions& options) {
  std::optional<Tokenizer> tokenizer;
  if (std::filesystem::exists(checkpoint / "tokenizer.json")) tokenizer.emplace(Tokenizer::open(checkpoint));
  std::vector<Task> tasks;
  for (const auto& file : flags.files) {
    const Tokenizer* usable = tokenizer ? &*tokenizer : nullptr;
    if (!flags.split_by_tag) {
      tasks.push_back(read_task(file, usable, options));
      continue;
    }
    auto tagged = read_tasks_by_tag(file, usable, options);
    std::move(tagged.begin(), tagged.end(), std::back_inserter(tasks));
  }
  return tasks;
}

}  // namespace moetrim::cli
