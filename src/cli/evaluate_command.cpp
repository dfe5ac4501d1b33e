// moetrim evaluate: loss, KL, agreement and exact match of a checkpoint, of plans, and against another checkpoint.

#include <cmath>

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/progress.h"
#include "cli/ranks.h"
#include "cli/stages.h"
#include "moetrim/error.h"
#include "moetrim/forward.h"

namespace moetrim::cli {

void EvaluateFlags::add(CLI::App& command) {
  task.add(command);
  run.add(command);
  command.add_flag("--exact-match", exact_match, "Also generate answers greedily and compare them; the model must fit into memory");
  command.add_option("--max-new-tokens", max_new_tokens, "Longest answer that is generated")
      ->check(CLI::PositiveNumber)->capture_default_str();
  command.add_option("--batch", batch, "Answers generated together")->check(CLI::PositiveNumber)->capture_default_str();
}

GenerateOptions EvaluateFlags::generate_options(const Session& session, const Checkpoint& checkpoint) const {
  GenerateOptions options;
  run.apply(options, session, "generate");
  const auto line = std::make_shared<Progress>("generate", "answers", session.quiet);
  options.progress = [line](std::int64_t done, std::int64_t total) {
    line->update(static_cast<double>(done), static_cast<double>(total));
  };
  options.max_new_tokens = max_new_tokens;
  options.batch = batch;
  options.stop_tokens = stop_tokens(checkpoint);
  return options;
}

std::vector<Task> EvaluateFlags::prompts(const std::filesystem::path& checkpoint, std::int64_t vocabulary) const {
  TaskOptions options = task.task_options(vocabulary);
  options.generation_prompt_only = true;
  options.max_tokens = 0;  // a prompt that is cut asks another question
  return read_tasks(task, checkpoint, options);
}

LossSums total(const std::vector<EvaluateTask>& tasks, const std::function<LossSums(const EvaluateTask&)>& pick) {
  LossSums sum;
  for (const EvaluateTask& task : tasks) sum.add(pick(task));
  return sum;
}

nlohmann::ordered_json loss_json(const LossSums& sums, bool with_reference) {
  const auto count = static_cast<double>(sums.tokens);
  nlohmann::ordered_json json{
      {"tokens", sums.tokens}, {"loss", sums.loss / count}, {"perplexity", std::exp(sums.loss / count)}};
  if (with_reference) {
    json["kl"] = sums.kl / count;
    json["top1_agreement"] = static_cast<double>(sums.agree) / count;
  }
  return json;
}

namespace {

struct Flags : EvaluateFlags {
  std::string checkpoint, against;
  bool dry_run = false;
  std::vector<std::string> plans;
};

/// What the ranks have found, one after the other as JSON; on rank 0.
void add_ranks(RankGroup& ranks, ExactMatch& match) {
  nlohmann::ordered_json own{{"samples", match.samples}, {"correct", match.correct}, {"misses", nlohmann::ordered_json::array()}};
  for (const auto& miss : match.misses) {
    own["misses"].push_back({{"demonstration", miss.demonstration}, {"line", miss.line}, {"expected", miss.expected}, {"got", miss.got}});
  }
  const auto all = ranks.gather(own.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    const auto json = nlohmann::ordered_json::parse(all[rank]);
    ExactMatch other{.samples = json.at("samples"), .correct = json.at("correct"), .misses = {}};
    for (const auto& miss : json.at("misses")) {
      other.misses.push_back({.demonstration = miss.at("demonstration"), .line = miss.at("line"), .expected = miss.at("expected"), .got = miss.at("got")});
    }
    match.add(other);
  }
}

nlohmann::ordered_json match_json(const ExactMatch& match) {
  nlohmann::ordered_json misses = nlohmann::ordered_json::array();
  for (const auto& miss : match.misses) misses.push_back({{"line", miss.line}, {"expected", miss.expected}, {"got", miss.got}});
  return {{"exact_match", static_cast<double>(match.correct) / static_cast<double>(match.samples)},
          {"samples", match.samples},
          {"correct", match.correct},
          {"misses", misses}};
}

/// The object that --json prints, without exact match.
nlohmann::ordered_json results_json(const std::vector<EvaluateTask>& tasks, const Flags& flags) {
  const bool against = !flags.against.empty();
  nlohmann::ordered_json json = loss_json(total(tasks, &EvaluateTask::model_against), against);
  if (against) {
    json["against"] = loss_json(total(tasks, [](const EvaluateTask& task) { return *task.against; }), false);
    json["against"]["checkpoint"] = flags.against;
  }
  json["tasks"] = nlohmann::ordered_json::array();
  for (const EvaluateTask& task : tasks) {
    nlohmann::ordered_json entry{{"task", task.name}};
    entry.update(loss_json(task.model_against(), against));
    json["tasks"].push_back(entry);
  }
  if (flags.plans.empty()) return json;
  json["plans"] = nlohmann::ordered_json::array();
  for (std::size_t p = 0; p < flags.plans.size(); ++p) {
    nlohmann::ordered_json entry{{"plan", flags.plans[p]}};
    entry.update(loss_json(total(tasks, [p](const EvaluateTask& task) { return task.plans[p]; }), true));
    entry["tasks"] = nlohmann::ordered_json::array();
    for (const EvaluateTask& task : tasks) {
      nlohmann::ordered_json row{{"task", task.name}};
      row.update(loss_json(task.plans[p], true));
      entry["tasks"].push_back(row);
    }
    json["plans"].push_back(entry);
  }
  return json;
}

/// What exact match needs, read before the expensive pass.
struct Questions {
  Tokenizer tokenizer;
  std::vector<Task> prompts;
};

/// Adds exact match to an object that has "tasks".
void add_exact_match(const Questions& questions, GenerateOptions options, const Model& model, const Plan* plan, RankGroup* ranks,
                     nlohmann::ordered_json& json) {
  options.plan = plan;
  std::int64_t samples = 0;
  std::int64_t correct = 0;
  std::size_t row = 0;
  for (const Task& task : questions.prompts) {
    ExactMatch match = exact_match(model, questions.tokenizer, task, options);
    if (ranks != nullptr) add_ranks(*ranks, match);
    json["tasks"][row++].update(match_json(match));
    samples += match.samples;
    correct += match.correct;
  }
  json["exact_match"] = static_cast<double>(correct) / static_cast<double>(samples);
}

std::string table_row(const std::string& name, const nlohmann::ordered_json& json) {
  std::string row = fmt::format("{:<24} loss {:.4f}  perplexity {:.3f}", name, json.at("loss").get<double>(),
                                json.at("perplexity").get<double>());
  if (json.contains("kl")) {
    row += fmt::format("  KL {:.4f}  top-1 {:.1f}%", json.at("kl").get<double>(), 100 * json.at("top1_agreement").get<double>());
  }
  if (json.contains("exact_match")) row += fmt::format("  exact match {:.1f}%", 100 * json.at("exact_match").get<double>());
  return row + "\n";
}

void print_estimate(const Session& session, const EvaluateEstimate& e, const MachineRates& rates) {
  nlohmann::ordered_json json{{"tokens", e.tokens},
                                    {"passes", e.groups},
                                    {"copies", e.copies},
                                    {"peak_memory_bytes", e.peak_memory_bytes},
                                    {"read_bytes", e.read_bytes},
                                    {"disk_bytes", 0}};
  const std::string time = add_time(e.operations, e.read_bytes, rates, json);
  session.print(json, fmt::format("tokens   {}\npasses   {} over the weights\ncopies   {:.2f} of the tokens, since plans share layers until they differ\n"
                                  "memory   {} at most\nread     {} at most\ndisk     none\n{}",
                                  e.tokens, e.groups, e.copies, human_bytes(e.peak_memory_bytes), human_bytes(e.read_bytes), time));
}

void run_evaluate(const Session& session, const Flags& flags, RankGroup* ranks) {
  std::vector<Plan> plans;
  for (const auto& file : flags.plans) plans.push_back(read_plan(file));
  const Checkpoint checkpoint = Checkpoint::open(flags.checkpoint);
  const Model model = describe(checkpoint);
  std::optional<Checkpoint> other_checkpoint;
  std::optional<Model> other;
  if (!flags.against.empty()) {
    other_checkpoint.emplace(Checkpoint::open(flags.against));
    other.emplace(describe(*other_checkpoint));
  }
  const auto tasks = read_tasks(flags.task, flags.checkpoint, flags.task.task_options(model.vocabulary));
  std::optional<Questions> questions;
  if (flags.exact_match) {
    questions.emplace(Questions{Tokenizer::open(flags.checkpoint), flags.prompts(flags.checkpoint, model.vocabulary)});
  }
  EvaluateOptions options;
  flags.run.apply(options, session, "evaluate");
  if (ranks != nullptr) {
    take_share(options, ranks->place());
    options.add_up = [ranks](std::span<double> sums) { ranks->add_up(sums); };
  }
  if (flags.dry_run) {
    const EvaluateEstimate estimate = estimate_evaluation(model, tasks, options, plans, other ? &*other : nullptr);
    if (reports(ranks)) print_estimate(session, estimate, measure_rates(model, options));
    return;
  }
  const auto results = evaluate(model, tasks, flags.task.count_value(), options, plans, other ? &*other : nullptr);
  nlohmann::ordered_json json = results_json(results, flags);
  if (questions) {
    GenerateOptions generate = flags.generate_options(session, checkpoint);
    if (ranks != nullptr) take_share(generate, ranks->place());
    add_exact_match(*questions, generate, model, nullptr, ranks, json);
    for (std::size_t p = 0; p < plans.size(); ++p) add_exact_match(*questions, generate, model, &plans[p], ranks, json["plans"][p]);
  }
  if (!reports(ranks)) return;
  std::string text = table_row("checkpoint", json);
  for (std::size_t p = 0; p < plans.size(); ++p) text += table_row(flags.plans[p], json["plans"][p]);
  session.print(json, text);
}

}  // namespace

void add_evaluate(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "evaluate", "Measure loss, KL and exact match of a checkpoint and of plans",
                                  "moetrim evaluate demo/model --plan plan.json --task calibration/arithmetic.test.jsonl --exact-match");
  auto flags = std::make_shared<Flags>();
  command->add_option("checkpoint", flags->checkpoint, "Checkpoint folder")->required();
  command->add_option("--against", flags->against, "Reference checkpoint for KL and agreement");
  command->add_option("--plan", flags->plans, "Plan that is not yet written; repeat for several, they share one pass")
      ->allow_extra_args(false);
  flags->add(*command);
  command->add_flag("--dry-run", flags->dry_run, "Say tokens, memory, bytes and time, without --exact-match; run nothing");
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      with_ranks(session, [&](RankGroup* ranks) { run_evaluate(session, *flags, ranks); });
    };
  });
}

}  // namespace moetrim::cli
