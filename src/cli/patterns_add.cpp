// moetrim patterns add: statistics of tasks, or files of patterns, into a library.

#include <algorithm>

#include <fmt/format.h>

#include "cli/patterns.h"
#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim::cli {

namespace {

using Json = nlohmann::ordered_json;

struct AddFlags {
  std::string library, statistics, pattern, name, task, signature, prompts, checkpoint;
  int depth = 2, prototypes = 4;
  bool second_order = false, overwrite = false;
  RunFlags run;
};

void check(const AddFlags& flags) {
  if (flags.statistics.empty() == flags.pattern.empty()) {
    throw UsageError(
        "say what becomes a pattern: a folder that calibrate wrote, or --pattern with a file that patterns export wrote");
  }
  if (!flags.pattern.empty() &&
      (flags.name.empty() || !flags.task.empty() || !flags.signature.empty() || !flags.prompts.empty())) {
    throw UsageError(
        "--pattern brings its task and its signature along; it needs --name and none of --task, --signature, --prompts");
  }
  if (flags.prompts.empty() != flags.checkpoint.empty()) {
    throw UsageError("--prompts and --checkpoint belong together: the prompts run through the checkpoint's first layers");
  }
  if (!flags.prompts.empty() && !flags.signature.empty()) {
    throw UsageError("--prompts and --signature both make the signature; choose one");
  }
}

/// The pattern's name: that of --name, of the task, or of both where several tasks share a prefix. Slashes of tasks split by
/// tags become dots.
std::string pattern_name(const AddFlags& flags, const std::string& task, bool several) {
  std::string of_task = task;
  std::replace(of_task.begin(), of_task.end(), '/', '.');
  const std::string name = flags.name.empty() ? of_task : several ? flags.name + "." + of_task : flags.name;
  try {
    check_pattern_name(name);
  } catch (const UsageError& error) {
    if (!flags.name.empty() && !several) throw;
    throw UsageError(
        fmt::format("task {}: {}; take it alone with --task and give it a --name", in_quotes(task), error.what()));
  }
  return name;
}

/// From other statistics of the same checkpoint: the task of the same name, or the only one.
Signature signature_from(const PatternLibrary& library, const AddFlags& flags, const std::string& task) {
  const Statistics statistics = Statistics::read(flags.signature);
  library.check(statistics.manifest, flags.signature);
  return signature_of_task(statistics, statistics.manifest.tasks.size() == 1 ? 0 : statistics.task(task), "statistics");
}

Signature signature_from_prompts(const Session& session, const PatternLibrary& library, const AddFlags& flags,
                                 const StatisticsManifest& manifest) {
  const Checkpoint checkpoint = Checkpoint::open(flags.checkpoint);
  const Model model = describe(checkpoint);
  check_model(library, manifest, model);
  const auto prompts = read_query_file(flags.prompts, model, QueryForm::prompt);
  const int depth = std::min(flags.depth, static_cast<int>(manifest.moe_layers.size()));
  return signature_of_prompts(route_texts(session, flags.run, model, prompts.task, manifest, depth), depth, manifest.experts,
                              flags.prototypes);
}

struct NamedPattern {
  std::string name;
  Pattern pattern;
};

std::vector<NamedPattern> patterns_of(const Statistics& statistics, const AddFlags& flags) {
  const auto tasks = statistics.tasks(flags.task.empty() ? std::vector<std::string>() : std::vector{flags.task});
  if (tasks.size() > 1 && !flags.prompts.empty()) {
    throw UsageError("--prompts are those of one task; say with --task of which");
  }
  std::vector<NamedPattern> out;
  for (const int task : tasks) {
    const std::string& name = statistics.manifest.tasks[static_cast<std::size_t>(task)].name;
    out.push_back({pattern_name(flags, name, tasks.size() > 1), make_pattern(statistics, task)});
  }
  return out;
}

std::vector<NamedPattern> read_patterns(const Session& session, const AddFlags& flags) {
  if (!flags.pattern.empty()) return {{pattern_name(flags, {}, false), read_pattern(flags.pattern)}};
  const Statistics statistics = Statistics::read(flags.statistics, flags.second_order);
  session.note_part(statistics.manifest);
  return patterns_of(statistics, flags);
}

void run_add(const Session& session, const AddFlags& flags) {
  check(flags);
  auto patterns = read_patterns(session, flags);
  const auto library = PatternLibrary::open_or_make(flags.library, patterns.front().pattern.manifest);
  Json added = Json::array();
  std::string text;
  for (const auto& [name, pattern] : patterns) {  // all of them, before the first one is there
    if (!flags.overwrite && std::filesystem::exists(library.file(name))) {
      throw InvalidInput(
          fmt::format("{} holds a pattern {} already; choose another name, or add --overwrite", flags.library, name));
    }
  }
  for (auto& [name, pattern] : patterns) {
    const StatisticsManifest& manifest = pattern.manifest;
    if (!flags.signature.empty()) pattern.signature = signature_from(library, flags, manifest.tasks.front().name);
    if (!flags.prompts.empty()) pattern.signature = signature_from_prompts(session, library, flags, manifest);
    library.add(name, pattern, flags.overwrite);
    const PatternFacts facts = library.facts(name);
    added.push_back(facts_json(facts));
    text += describe_facts(facts);
  }
  session.print({{"library", flags.library}, {"added", added}}, text);
}

}  // namespace

void add_pattern_add(CLI::App& patterns, Session& session) {
  CLI::App* command =
      add_command(patterns, session, "add", "Put a task's statistics into a library, which the first one makes",
                  "moetrim patterns add lib math.stats --name math --prompts math.jsonl --checkpoint demo/model");
  auto flags = std::make_shared<AddFlags>();
  command->add_option("library", flags->library, "Folder of the library")->required();
  command->add_option("statistics", flags->statistics, "Folder that calibrate wrote");
  command->add_option("--pattern", flags->pattern, "Instead of statistics: a file that patterns export wrote");
  command->add_option("--name", flags->name, "Name of the pattern; with several tasks NAME.TASK; default: the task's");
  command->add_option("--task", flags->task, "Only this task of the statistics; default: all, a pattern each");
  command->add_option("--signature", flags->signature,
                      "Recognise it by these statistics of the task instead, for example those of calibrate --count prompt");
  CLI::Option* prompts = command->add_option(
      "--prompts", flags->prompts,
      "Recognise it by the single prompts of this task file, which also say how far a prompt may lie from the pattern");
  command->add_option("--checkpoint", flags->checkpoint, "With --prompts: the checkpoint that was calibrated");
  command->add_option("--depth", flags->depth, "With --prompts: the first MoE layers that the signature covers")
      ->check(CLI::Range(1, kMostSignatureLayers))->capture_default_str();
  command->add_option("--prototypes", flags->prototypes, "With --prompts: kinds of prompts that are told apart, at most")
      ->check(CLI::Range(1, 256))->capture_default_str();
  command->add_flag("--second-order", flags->second_order,
                    "Keep second-order statistics too, for scores of atomic experts; they are large");
  command->add_flag("--overwrite", flags->overwrite, "Replace a pattern of that name");
  flags->run.add(*command);
  for (const char* name : {"--checkpoint", "--depth", "--prototypes", "--dtype", "--device", "--threads", "--max-memory"}) {
    command->get_option(name)->needs(prompts);
  }
  command->callback([&session, flags] { session.run = [&session, flags] { run_add(session, *flags); }; });
}

}  // namespace moetrim::cli
