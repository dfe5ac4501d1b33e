// moetrim patterns: a library of what calibration measured on one task each.

#include <algorithm>

#include <fmt/format.h>

#include "cli/patterns.h"
#include "moetrim/error.h"

namespace moetrim::cli {

RouteTexts route_texts = nullptr;

namespace {

using Json = nlohmann::ordered_json;

void add_pattern_list(CLI::App& patterns, Session& session) {
  CLI::App* command =
      add_command(patterns, session, "list", "Say what patterns a library holds", "moetrim patterns list lib");
  auto library = std::make_shared<std::string>();
  command->add_option("library", *library, "Folder of the library")->required();
  command->callback([&session, library] {
    session.run = [&session, library] {
      Json list = Json::array();
      std::string text;
      for (const PatternFacts& facts : PatternLibrary::open(*library).list()) {
        list.push_back(facts_json(facts));
        text += describe_facts(facts);
      }
      text += fmt::format("{} patterns in {}\n", list.size(), *library);
      session.print({{"library", *library}, {"patterns", list}}, text);
    };
  });
}

struct NameFlags {
  std::string library, name;

  void add(CLI::App& command) {
    command.add_option("library", library, "Folder of the library")->required();
    command.add_option("name", name, "Name of the pattern")->required();
  }
};

/// How even the load is, and who carries most of it, per MoE layer.
Json layers_json(const Pattern& pattern) {
  const auto experts = static_cast<std::size_t>(pattern.manifest.experts);
  const auto& routed = pattern.values[static_cast<std::size_t>(Stat::routed_count)];
  Json layers = Json::array();
  for (std::size_t l = 0; l < pattern.tokens.size(); ++l) {
    std::vector<double> shares;
    for (std::size_t e = 0; e < experts; ++e) {
      shares.push_back(pattern.tokens[l] > 0 ? routed[l * experts + e] / pattern.tokens[l] : 0);
    }
    layers.push_back({{"layer", pattern.manifest.moe_layers[l]}, {"tokens", pattern.tokens[l]}, {"routed_share", shares}});
  }
  return layers;
}

std::string describe_layers(const Json& layers) {
  constexpr std::size_t kShown = 6;
  std::string text;
  for (const Json& layer : layers) {
    const auto shares = layer.at("routed_share").get<std::vector<double>>();
    std::vector<std::size_t> order(shares.size());
    for (std::size_t e = 0; e < order.size(); ++e) order[e] = e;
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return shares[a] > shares[b]; });
    text += fmt::format("layer {:3}  share of tokens", layer.at("layer").get<int>());
    for (std::size_t i = 0; i < std::min(kShown, order.size()); ++i) {
      text += fmt::format("  {}: {:.3f}", order[i], shares[order[i]]);
    }
    const auto unseen = std::count(shares.begin(), shares.end(), 0.0);
    text += unseen > 0 ? fmt::format("   never used: {}\n", unseen) : "\n";
  }
  return text;
}

void add_pattern_show(CLI::App& patterns, Session& session) {
  CLI::App* command =
      add_command(patterns, session, "show", "Say what is known of one pattern", "moetrim patterns show lib math");
  auto flags = std::make_shared<NameFlags>();
  flags->add(*command);
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      const auto library = PatternLibrary::open(flags->library);
      const PatternFacts facts = library.facts(flags->name);
      Json json = facts_json(facts);
      json["manifest"] = manifest_to_json(facts.manifest);
      json["layers"] = layers_json(library.read(flags->name));
      session.print(json, describe_facts(facts) + describe_layers(json["layers"]));
    };
  });
}

void add_pattern_remove(CLI::App& patterns, Session& session) {
  CLI::App* command =
      add_command(patterns, session, "remove", "Take a pattern out of a library", "moetrim patterns remove lib math");
  auto flags = std::make_shared<NameFlags>();
  flags->add(*command);
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      PatternLibrary::open(flags->library).remove(flags->name);
      session.print({{"library", flags->library}, {"removed", flags->name}}, "removed " + flags->name + "\n");
    };
  });
}

struct ExportFlags : PlanFlags {
  NameFlags of;
  std::string output, form = "pattern";
};

void run_export(const Session& session, const ExportFlags& flags) {
  const auto library = PatternLibrary::open(flags.of.library);
  const WeightedPatterns patterns{{flags.of.name, 1.0}};
  if (flags.form == "pattern") {
    write_pattern(flags.output, library.read(flags.of.name));
  } else if (flags.form == "scores") {
    if (flags.score.method.empty()) throw UsageError("--as scores needs --method");
    const PlanFlags mine = with_patterns(flags, patterns);
    write_scores(flags.output, mine.scores(pattern_statistics(library, mine, patterns)));
  } else {
    write_plan(flags.output, plan_patterns(library, flags, patterns));
  }
  session.print({{"pattern", flags.of.name}, {"form", flags.form}, {"file", flags.output}},
                fmt::format("{} of {} in {}\n", flags.form, flags.of.name, flags.output));
}

void add_pattern_export(CLI::App& patterns, Session& session) {
  CLI::App* command = add_command(patterns, session, "export", "Write a pattern, its scores or its plan to a file",
                                  "moetrim patterns export lib math --as plan --method easy-ep --keep 0.5 -o plan.json");
  auto flags = std::make_shared<ExportFlags>();
  flags->of.add(*command);
  command
      ->add_option("--as", flags->form,
                   "pattern: for the library of somebody else (patterns add --pattern); scores: safetensors, by --method; "
                   "plan: as moetrim "
                   "plan would make it")
      ->check(CLI::IsMember({"pattern", "scores", "plan"}))
      ->capture_default_str();
  command->add_option("-o,--output", flags->output, "File to write")->required();
  flags->add(*command, /*merging=*/false);
  command->callback([&session, flags, command] {
    if (flags->form == "pattern") {
      refuse_others(*command, {"--as", "--output"}, "is for --as scores and --as plan; a pattern goes as it is");
    }
    session.run = [&session, flags] { run_export(session, *flags); };
  });
}

std::string describe_signature(const Signature& signature) {
  const std::string rows = signature.prototypes == 1 ? "one row" : fmt::format("{} rows", signature.prototypes);
  if (signature.source == "prompts") {
    return fmt::format("{} from {} prompts, {} layers deep", rows, signature.prompts, signature.depth);
  }
  return fmt::format("{} from {}", rows, signature.source == "task" ? "the task's own tokens" : "other statistics");
}

}  // namespace

Json facts_json(const PatternFacts& facts) {
  const auto& task = facts.manifest.tasks.front();
  return {{"name", facts.name},
          {"task", task.name},
          {"digest", task.digest},
          {"demonstrations", task.demonstrations},
          {"tokens", task.counted_tokens},
          {"count", facts.manifest.count},
          {"dtype", facts.manifest.dtype},
          {"statistics", facts.second_order ? Json{"first-order", "second-order"} : Json{"first-order"}},
          {"signature", signature_to_json(facts.signature)},
          {"bytes", facts.bytes}};
}

std::string describe_facts(const PatternFacts& facts) {
  const auto& task = facts.manifest.tasks.front();
  return fmt::format("{:<24} task {}, {} demonstrations, {} tokens ({}){}; signature of {}; {}\n", facts.name, task.name,
                     task.demonstrations, task.counted_tokens, facts.manifest.count,
                     facts.second_order ? ", second order" : "", describe_signature(facts.signature),
                     human_bytes(facts.bytes));
}

void refuse_others(const CLI::App& command, const std::vector<std::string>& allowed, std::string_view why) {
  for (const CLI::Option* option : command.get_options()) {
    if (option->count() == 0 || option->get_lnames().empty()) continue;
    const std::string name = "--" + option->get_lnames().front();
    if (name == "--json" || name == "--quiet" || std::find(allowed.begin(), allowed.end(), name) != allowed.end()) continue;
    throw CLI::ValidationError(name, std::string(why));
  }
}

void check_model(const PatternLibrary& library, const StatisticsManifest& manifest, const Model& model) {
  const auto expect = [&](const char* what, auto of_library, auto of_model) {
    if (of_library == of_model) return;
    throw InvalidInput(fmt::format("{} is not the checkpoint of {}: {} are {}, in the library {}",
                                   model.checkpoint->folder().string(), library.folder().string(), what, of_model,
                                   of_library));
  };
  if (manifest.family != model.family->name) {
    throw InvalidInput(fmt::format("{} is not the checkpoint of {}: its family is {}, in the library {}",
                                   model.checkpoint->folder().string(), library.folder().string(), model.family->name,
                                   manifest.family));
  }
  expect("layers", static_cast<std::int64_t>(manifest.layers), model.layers);
  expect("experts", static_cast<std::int64_t>(manifest.experts), model.experts);
  if (manifest.sizes.checkpoint_bytes == 0) return;
  expect("bytes of tensors", manifest.sizes.checkpoint_bytes, static_cast<std::int64_t>(model.checkpoint->total_bytes()));
}

WeightedPatterns parse_patterns(const std::vector<std::string>& names) {
  ScoreFlags flags;
  flags.tasks = names;
  WeightedPatterns out;
  for (auto& [name, weight] : flags.weights()) {
    check_pattern_name(name);
    out.emplace_back(name, weight);
  }
  return out;
}

void check_plan_flags(const PlanFlags& flags) {
  if (!flags.score.tasks.empty()) throw UsageError("--task: patterns are the tasks here; say with --name which");
  if (!flags.tasks.with.empty()) throw UsageError("--with: put another pattern beside with --name, once more");
  flags.check();
}

PlanFlags with_patterns(PlanFlags flags, const WeightedPatterns& patterns) {
  check_plan_flags(flags);
  for (const auto& [name, weight] : patterns) flags.score.tasks.push_back(fmt::format("{}={}", name, weight));
  return flags;
}

Statistics pattern_statistics(const PatternLibrary& library, const PlanFlags& flags, const WeightedPatterns& patterns) {
  std::vector<std::string> names;
  const auto want = [&](const std::string& name) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  };
  for (const auto& pattern : patterns) want(pattern.first);
  for (const auto* texts : {&flags.tasks.protect, &flags.tasks.drop}) {
    for (const std::string& text : *texts) want(text.substr(0, text.rfind(':')));
  }
  std::vector<Pattern> read;
  for (const std::string& name : names) {
    read.push_back(library.read(name));
    if (!flags.needs_second_order() || !read.back().atoms.empty()) continue;
    throw InvalidInput(
        fmt::format("pattern {} has no second-order statistics, which {} needs; add it again with --second-order", name,
                    flags.score.method));
  }
  return statistics_of(read, names);
}

Plan plan_patterns(const PatternLibrary& library, const PlanFlags& flags, const WeightedPatterns& patterns) {
  const PlanFlags mine = with_patterns(flags, patterns);
  return mine.make(pattern_statistics(library, mine, patterns), {});
}

void add_patterns(CLI::App& app, Session& session) {
  CLI::App* patterns =
      app.add_subcommand("patterns", "Keep what tasks use, find it again for a query, and write its checkpoint");
  patterns->require_subcommand(1);
  patterns->footer(
      "Example:\n  moetrim patterns add lib math.stats --name math\n"
      "  moetrim patterns retrieve lib --checkpoint demo/model --query \"Sort ascending: 81,47,95\"\n"
      "  moetrim patterns materialize lib --checkpoint demo/model --name math --method easy-ep --keep 0.5 -o math-half");
  add_pattern_add(*patterns, session);
  add_pattern_list(*patterns, session);
  add_pattern_show(*patterns, session);
  add_pattern_remove(*patterns, session);
  add_pattern_export(*patterns, session);
  add_pattern_retrieve(*patterns, session);
  add_pattern_materialize(*patterns, session);
  add_pattern_delta(*patterns, session);
}

}  // namespace moetrim::cli
