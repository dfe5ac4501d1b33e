// moetrim patterns retrieve, materialize, delta: from a query to its pattern, to a checkpoint, and from one pattern to another.

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/patterns.h"
#include "cli/rewrite_flags.h"
#include "moetrim/error.h"
#include "moetrim/expert_delta.h"
#include "moetrim/suggest.h"

namespace moetrim::cli {

namespace {

using Json = nlohmann::ordered_json;

SignatureStat signature_stat(const RetrieveFlags& flags) {
  if (flags.variant == "official") return SignatureStat::tcess_logit_sum;
  const std::string name = flags.signature_of.value_or("routed_count");
  return name == "gate_sum"      ? SignatureStat::gate_sum
         : name == "router_mass" ? SignatureStat::router_mass
                                 : SignatureStat::routed_count;
}

Json result_json(const RetrieveFlags& flags, const std::optional<std::string>& text, const Retrieval& result) {
  Json nearest = Json::array();
  for (const Match& match : result.nearest) nearest.push_back({{"name", match.name}, {"distance", match.distance}});
  Json json{{"query", text ? Json(*text) : Json()},
            {"nearest", nearest},
            {"confidence", result.confidence},
            {"fits", result.fits}};
  if (result.fits) {
    json["pattern"] = result.nearest.front().name;
  } else {
    json["message"] = "no pattern fits";
    json["pattern"] = flags.fallback.empty() ? Json() : Json(flags.fallback);
  }
  return json;
}

std::string describe_result(const RetrieveFlags& flags, const std::optional<std::string>& text, const Retrieval& result) {
  std::string out = text ? in_quotes(*text) : "token ids";
  std::vector<std::string> nearest;
  for (const Match& match : result.nearest) nearest.push_back(fmt::format("{} ({:.4f})", match.name, match.distance));
  out +=
      fmt::format("\n  {}  confidence {:.2f}, nearest {}\n", result.fits ? result.nearest.front().name : "no pattern fits",
                  result.confidence, fmt::join(nearest, ", "));
  if (!result.fits && !flags.fallback.empty()) out += fmt::format("  falls back to {}\n", flags.fallback);
  return out;
}

/// Whether a pattern is there, before anything is computed.
void check_known(const PatternLibrary& library, const std::string& name) {
  if (!name.empty()) library.facts(name);
}

}  // namespace

void RetrieveFlags::add(CLI::App& command) {
  command.add_option("--query", queries, "What is asked; repeatable")->allow_extra_args(false);
  command.add_option("--queries", queries_file, "File of queries: a task file, whose answers are left out, or a .txt file with a query a line");
  command.add_option("--depth", depth, "Compare the first MoE layers, so many; each costs reading and running one more")
      ->check(CLI::Range(1, kMostSignatureLayers))->capture_default_str();
  command
      .add_option("--signature-of", signature_of,
                  "What is compared: routed_count, gate_sum or router_mass, per token; default: routed_count")
      ->check(CLI::IsMember({"routed_count", "gate_sum", "router_mass"}));
  command.add_option("--threshold", options.threshold, "Confidence below which no pattern fits, from 0 to 1")
      ->check(CLI::Range(0.0, 1.0))->capture_default_str();
  command
      .add_option("--limit", options.limit,
                  "Distance beyond which no pattern fits; default: each pattern's own, see docs/patterns.md")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--fallback", fallback, "Pattern to use where none fits");
  run.add(command);
}

void RetrieveFlags::check() const {
  if (queries.empty() == queries_file.empty()) throw UsageError("say what is asked: --query TEXT, or --queries FILE");
  if (variant != "official") return;
  if (signature_of) throw UsageError("--variant official compares raw logits; leave out --signature-of");
  if (depth != 1) throw UsageError("--variant official compares the first MoE layer; leave out --depth");
}

Retrieved retrieve_patterns(const Session& session, const PatternLibrary& library, const RetrieveFlags& flags) {
  const SignatureTable table = library.signatures(signature_stat(flags), flags.depth);
  if (table.names.empty()) throw InvalidInput(fmt::format("{} holds no pattern", flags.library));
  const StatisticsManifest manifest = library.facts(table.names.front()).manifest;
  const bool official = flags.variant == "official";
  if (official && manifest.tcess_top_k < 1) {
    throw InvalidInput("--variant official: the patterns hold no marks on raw logits (tcess_top_k is 0)");
  }
  const Checkpoint checkpoint = Checkpoint::open(flags.checkpoint);
  const Model model = describe(checkpoint);
  check_model(library, manifest, model);
  const QueryForm form = official ? QueryForm::raw : QueryForm::prompt;
  Retrieved out{.queries = flags.queries.empty() ? read_query_file(flags.queries_file, model, form)
                                                 : read_query_texts(flags.queries, model, form),
                .results = {},
                .checkpoint_bytes = checkpoint.total_bytes()};
  const auto routed = route_texts(session, flags.run, model, out.queries.task, manifest, flags.depth);
  out.results = retrieve(table, routed, flags.options);
  out.bytes_read = session.reading->bytes;
  return out;
}

Json retrieved_json(const RetrieveFlags& flags, const Retrieved& retrieved) {
  Json results = Json::array();
  for (std::size_t i = 0; i < retrieved.results.size(); ++i) {
    results.push_back(result_json(flags, retrieved.queries.texts[i], retrieved.results[i]));
  }
  return {{"results", results},
          {"variant", flags.variant},
          {"signature_of", signature_stat_name(signature_stat(flags))},
          {"depth", flags.depth},
          {"bytes_read", retrieved.bytes_read},
          {"checkpoint_bytes", retrieved.checkpoint_bytes}};
}

std::string describe_retrieved(const RetrieveFlags& flags, const Retrieved& retrieved) {
  std::string text;
  for (std::size_t i = 0; i < retrieved.results.size(); ++i) {
    text += describe_result(flags, retrieved.queries.texts[i], retrieved.results[i]);
  }
  return text +
         fmt::format("read {} of {} ({:.2f}%)\n", human_bytes(retrieved.bytes_read), human_bytes(retrieved.checkpoint_bytes),
                     100 * static_cast<double>(retrieved.bytes_read) / static_cast<double>(retrieved.checkpoint_bytes));
}

void add_pattern_retrieve(CLI::App& patterns, Session& session) {
  CLI::App* command =
      add_command(patterns, session, "retrieve", "Find the patterns nearest to what is asked, by its first routers",
                  "moetrim patterns retrieve lib --checkpoint demo/model --query \"Sort ascending: 81,47,95\"");
  auto flags = std::make_shared<RetrieveFlags>();
  command->add_option("library", flags->library, "Folder of the library")->required();
  command->add_option("--checkpoint", flags->checkpoint, "The checkpoint that the patterns are of")->required();
  command->add_option("--nearest", flags->options.nearest, "Patterns to name, at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--variant", flags->variant,
                   "executed: cosine distance of routing; official: PreMoe as published, squared distance of raw logits, "
                   "text without template")
      ->check(CLI::IsMember({"executed", "official"}))
      ->capture_default_str();
  flags->add(*command);
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      flags->check();
      const auto library = PatternLibrary::open(flags->library);
      check_known(library, flags->fallback);
      const Retrieved retrieved = retrieve_patterns(session, library, *flags);
      session.print(retrieved_json(*flags, retrieved), describe_retrieved(*flags, retrieved));
    };
  });
}

namespace {

struct MaterializeFlags : PlanFlags {
  std::vector<std::string> names;
  int mix = 1;
  std::string plan_only;
  RetrieveFlags retrieve;
  RewriteFlags rewrite;
};

/// The patterns that a plan is made from, and how they were found.
struct Choice {
  WeightedPatterns patterns;
  Json retrieval;
  std::string text;
};

/// The best ones by 1 - distance; the fallback alone where none fits.
WeightedPatterns mixed(const MaterializeFlags& flags, const Retrieval& result) {
  if (!result.fits) {
    if (!flags.retrieve.fallback.empty()) return {{flags.retrieve.fallback, 1.0}};
    throw InvalidInput(fmt::format(
        "no pattern fits: the nearest is {} at a distance of {:.4f}; name one with --name, or what to do then with "
        "--fallback",
        result.nearest.front().name, result.nearest.front().distance));
  }
  WeightedPatterns out;
  for (const Match& match : result.nearest) {
    if (match.distance < 1) out.emplace_back(match.name, 1 - match.distance);
  }
  return out;
}

Choice choose(const Session& session, const PatternLibrary& library, const MaterializeFlags& flags) {
  if (!flags.names.empty()) return {.patterns = parse_patterns(flags.names), .retrieval = {}, .text = {}};
  check_known(library, flags.retrieve.fallback);
  const Retrieved retrieved = retrieve_patterns(session, library, flags.retrieve);
  if (retrieved.results.size() != 1) throw UsageError("a checkpoint is written for one query; give one");
  return {.patterns = mixed(flags, retrieved.results.front()),
          .retrieval = retrieved_json(flags.retrieve, retrieved),
          .text = describe_retrieved(flags.retrieve, retrieved)};
}

void check(const MaterializeFlags& flags) {
  check_plan_flags(flags);
  if (flags.names.empty() == !flags.retrieve.any()) throw UsageError("say which pattern: --name, or --query to find it");
  if (flags.names.empty()) {
    flags.retrieve.check();
  }
  if (flags.plan_only.empty() == flags.rewrite.output.empty()) {
    throw UsageError("say where to: -o for a checkpoint, or --plan-only for its plan");
  }
}

void run_materialize(const Session& session, MaterializeFlags flags) {
  check(flags);
  flags.retrieve.checkpoint = flags.rewrite.checkpoint;
  flags.retrieve.options.nearest = flags.mix;
  const auto library = PatternLibrary::open(flags.retrieve.library);
  const Choice choice = choose(session, library, flags);
  const Plan plan = plan_patterns(library, flags, choice.patterns);
  Outcome outcome;
  if (flags.plan_only.empty()) {
    outcome = flags.rewrite.run(session, plan);
  } else {
    write_plan(flags.plan_only, plan);
    outcome = {.json = {{"plan", flags.plan_only}}, .text = "plan in " + flags.plan_only + "\n"};
  }
  Json patterns = Json::array();
  std::vector<std::string> names;
  for (const auto& [name, weight] : choice.patterns) {
    patterns.push_back({{"name", name}, {"weight", weight}});
    names.push_back(choice.patterns.size() == 1 ? name : fmt::format("{} ({:.3f})", name, weight));
  }
  outcome.json["patterns"] = patterns;
  if (!choice.retrieval.is_null()) outcome.json["retrieval"] = choice.retrieval;
  session.print(outcome.json, choice.text + fmt::format("from {}: {}", fmt::join(names, ", "), outcome.text));
}

}  // namespace

void add_pattern_materialize(CLI::App& patterns, Session& session) {
  CLI::App* command =
      add_command(patterns, session, "materialize", "Write the checkpoint of a pattern, or of the one that a query needs",
                  "moetrim patterns materialize lib --checkpoint demo/model --query \"Sort ascending: 81,47,95\" "
                  "--method easy-ep --keep 0.5 -o sorter");
  command->alias("materialise");
  auto flags = std::make_shared<MaterializeFlags>();
  command->add_option("library", flags->retrieve.library, "Folder of the library")->required();
  command->add_option("--checkpoint", flags->rewrite.checkpoint, "The checkpoint that the patterns are of")->required();
  command->add_option("--name", flags->names, "Pattern, as NAME or NAME=WEIGHT; repeat for a mixture, see --combine")
      ->allow_extra_args(false);
  command
      ->add_option("--mix", flags->mix,
                   "With --query: mix the nearest so many patterns, weighted by 1 - distance, see --combine")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  flags->retrieve.add(*command);
  flags->add(*command, /*merging=*/false);
  command->add_option("-o,--output", flags->rewrite.output, "Folder for the new checkpoint; must not exist, or be empty");
  command->add_option("--plan-only", flags->plan_only, "Write the plan to this file and no checkpoint");
  command->add_flag("--dry-run", flags->rewrite.dry_run, "Say bytes, files, disk and memory of the checkpoint; write none");
  flags->rewrite.add_common(*command);
  command->callback([&session, flags, command] {
    for (const char* name : {"--mix", "--depth", "--signature-of", "--threshold", "--limit", "--fallback", "--dtype",
                             "--device", "--threads", "--max-memory"}) {
      if (command->count(name) > 0 && !flags->retrieve.any()) {
        throw CLI::ValidationError(name, "is for --query and --queries");
      }
    }
    session.run = [&session, flags] { run_materialize(session, *flags); };
  });
}

namespace {

struct DeltaFlags : PlanFlags {
  std::string from, to, checkpoint, library, output;
};

/// A plan file, or the plan of a pattern.
Plan plan_of(const DeltaFlags& flags, const std::string& what) {
  const bool file = std::filesystem::exists(what);
  if (flags.library.empty()) return read_plan(what);
  const auto library = PatternLibrary::open(flags.library);
  const auto names = library.names();
  const bool pattern = std::find(names.begin(), names.end(), what) != names.end();
  if (pattern && file) throw UsageError(fmt::format("{} is a pattern and a file; write ./{} for the file", what, what));
  return file ? read_plan(what) : plan_patterns(library, flags, {{what, 1.0}});
}

std::string describe_delta(const ExpertDelta& delta) {
  std::int64_t kept = 0;
  std::string text;
  for (const LayerDelta& layer : delta.layers) {
    kept += std::ssize(layer.slots);
    if (!layer.changes.empty()) {
      text += fmt::format("layer {:3}  {} of {} slots change\n", layer.layer, layer.changes.size(), layer.slots.size());
    }
  }
  return text + fmt::format("{} of {} experts in {} layers change: {} to load in {} reads, {} to drop\n", delta.changes,
                            kept, delta.layers.size(), human_bytes(delta.load_bytes), delta.reads.size(),
                            human_bytes(delta.drop_bytes));
}

void run_delta(const Session& session, const DeltaFlags& flags) {
  const Plan from = plan_of(flags, flags.from);
  const Plan to = plan_of(flags, flags.to);
  const Checkpoint checkpoint = Checkpoint::open(flags.checkpoint);
  const Model model = describe(checkpoint);
  const ExpertDelta delta = expert_delta(model, from, to);
  const Json json = delta_to_json(model, delta);
  if (!flags.output.empty()) write_file_atomically(flags.output, json.dump(2) + "\n");
  session.print(json, describe_delta(delta));
}

}  // namespace

void add_pattern_delta(CLI::App& patterns, Session& session) {
  CLI::App* command = add_command(
      patterns, session, "delta", "Say which experts to drop and which bytes to load to go from one plan to another",
      "moetrim patterns delta math code --library lib --method easy-ep --keep 0.5 --checkpoint demo/model "
      "-o math-to-code.json");
  auto flags = std::make_shared<DeltaFlags>();
  command->add_option("from", flags->from, "Plan file, or with --library a pattern")->required();
  command->add_option("to", flags->to, "Plan file, or with --library a pattern")->required();
  command->add_option("--checkpoint", flags->checkpoint, "The checkpoint that the plans are of")->required();
  command->add_option("--library", flags->library, "Library of the patterns");
  command->add_option("-o,--output", flags->output, "Also write the JSON to this file");
  flags->add(*command, /*merging=*/false);
  command->callback([&session, flags, command] {
    if (flags->library.empty()) {
      refuse_others(*command, {"--checkpoint", "--output"}, "is for patterns; add --library, or leave it out");
    }
    session.run = [&session, flags] { run_delta(session, *flags); };
  });
}

}  // namespace moetrim::cli
