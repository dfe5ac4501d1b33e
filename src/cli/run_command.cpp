// moetrim run: a recipe from checkpoint to report, skipping what is already done and unchanged.

#include <filesystem>
#include <optional>

#include <fmt/format.h>

#include "cli/calibrate_step.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "cli/recipe.h"
#include "cli/sequential.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/runtimes.h"

namespace moetrim::cli {

namespace fs = std::filesystem;

namespace {

/// The same limits, filled at random. As many experts as a merging plan ends with, dropped rather than merged.
PlanFlags random_twin(PlanFlags flags) {
  const bool atoms = !flags.score.method.empty() && MethodMix::parse(flags.score.method).grain() == Grain::atom;
  if (!flags.merge.empty()) {
    flags.keep = flags.merge.to;
    flags.merge = {};
  }
  flags.score.method = atoms ? "random-atoms" : "random";
  flags.expert_method.clear();
  flags.tasks = {};
  flags.score.variant = "executed";
  flags.score.library.clear();
  flags.protect.clear();
  return flags;
}

/// One recipe's run. Every step compares what it would do with what lies in the run folder.
class Run {
 public:
  Run(const Session& session, Recipe recipe)
      : session_(session), recipe_(std::move(recipe)), checkpoint_(Checkpoint::open(recipe_.checkpoint)),
        model_(describe(checkpoint_)) {
    check_first();
  }

  void execute() {
    fs::create_directories(recipe_.output);
    calibrate_step();
    plan_step();
    rewrite_step();
    nlohmann::ordered_json json{{"output", recipe_.output.string()},
                                {"checkpoint", pruned_folder().string()},
                                {"experts", {{"before", plan_.experts}, {"after", plan_.keep}}},
                                {"bytes", {{"before", checkpoint_.total_bytes()}, {"after", pruned_bytes_}}}};
    if (plan_.width > 0) {
      const auto layers = static_cast<std::int64_t>(plan_.layers.size());
      json["atoms"] = {{"before", layers * plan_.experts * plan_.width}, {"after", kept_atoms(plan_)}};
    }
    if (recipe_.evaluates) json["evaluation"] = evaluate_step();
    write_file_atomically(recipe_.output / "result.json", json.dump(2) + "\n");
    session_.print(json, table(json));
  }

 private:
  fs::path statistics_folder() const { return recipe_.output / "calibration.stats"; }
  fs::path pruned_folder() const { return recipe_.output / "checkpoint"; }

  /// What would fail after hours fails now: a keep that the router cannot work with, task files, a tokenizer.
  void check_first() {
    recipe_.plan.check(router_limits(model_));
    recipe_.plan.check_runtimes(served_model(model_));
    tasks_ = read_tasks(recipe_.calibrate.task, recipe_.checkpoint, recipe_.calibrate.task.task_options(model_.vocabulary));
    std::vector<std::string> names;
    for (const Task& task : tasks_) names.push_back(task.name);
    recipe_.plan.tasks.beside(std::move(names));
    if (!recipe_.evaluates) return;
    tests_ = read_tasks(recipe_.evaluate.task, recipe_.checkpoint, recipe_.evaluate.task.task_options(model_.vocabulary));
    if (recipe_.evaluate.exact_match) prompts_ = recipe_.evaluate.prompts(recipe_.checkpoint, model_.vocabulary);
  }

  void calibrate_step() {
    CalibrateOptions options = recipe_.calibrate.options(session_, recipe_.checkpoint);
    if (recipe_.sequential) make_sequential(recipe_.plan, model_, tasks_, options);
    calibrate_unless_done(session_, model_, tasks_, options, statistics_folder());
    statistics_ = recipe_.plan.read(statistics_folder());
  }

  void plan_step() {
    const auto make = [&](const PlanFlags& flags, const char* scores_file, const char* plan_file) {
      if (!flags.score.method.empty()) write_scores(recipe_.output / scores_file, flags.scores(statistics_));
      Plan plan = flags.make(statistics_, [&](int layer) {
        return read_vectors(statistics_folder(), statistics_.manifest, layer);
      });
      write_plan(recipe_.output / plan_file, plan);
      return plan;
    };
    plan_ = make(recipe_.plan, "scores.safetensors", "plan.json");
    random_ = make(random_twin(recipe_.plan), "scores-random.safetensors", "plan-random.json");
  }

  void rewrite_step() {
    const PrepareOptions prepare{.mtp = parse_mtp(recipe_.mtp), .sources = {.statistics = statistics_folder()}};
    for (const RuntimeTarget& target : parse_runtimes(recipe_.plan.runtimes)) {
      require_runtime(check_runtime(served_model(model_, plan_, prepare.mtp), target));
    }
    const ExportRequest request = prepare_export(model_, plan_, kVersion, prepare);
    for (const auto& tensor : request.tensors) pruned_bytes_ += tensor.spec.bytes();
    for (const auto& warning : request.warnings) session_.note("note: " + warning);
    const fs::path record = pruned_folder() / "moetrim.json";
    if (fs::exists(record) && read_json_file(record) == request.record) {
      session_.note("rewrite: unchanged, skipped");
      return;
    }
    Progress line("rewrite", "B", session_.quiet);
    const ExportOptions options{.shard_bytes = parse_bytes(recipe_.shard_size), .overwrite = true};
    export_checkpoint(checkpoint_, request, pruned_folder(), options, [&](const ExportProgress& p) {
      line.update(static_cast<double>(p.done_bytes), static_cast<double>(p.total_bytes));
      stop_if_requested();
    });
  }

  /// Everything that the evaluation's figures depend on.
  nlohmann::ordered_json evaluation_key() const {
    nlohmann::ordered_json key{{"fingerprint", checkpoint_.fingerprint()},
                               {"plan", plan_to_json(plan_)},
                               {"random", plan_to_json(random_)},
                               {"count", recipe_.evaluate.task.count},
                               {"dtype", recipe_.evaluate.run.dtype},
                               {"max_tokens", recipe_.evaluate.task.max_tokens},
                               {"exact_match", recipe_.evaluate.exact_match},
                               {"max_new_tokens", recipe_.evaluate.max_new_tokens},
                               {"version", kVersion}};
    for (const Task& task : tests_) key["tasks"].push_back({{"task", task.name}, {"digest", task.digest}});
    return key;
  }

  nlohmann::ordered_json evaluate_step() {
    const fs::path file = recipe_.output / "evaluation.json";
    const auto key = evaluation_key();
    if (fs::exists(file)) {
      const auto found = read_json_file(file);
      if (found.contains("key") && found.at("key") == key) {
        session_.note("evaluate: unchanged, skipped");
        return found.at("tasks");
      }
    }
    EvaluateOptions options;
    recipe_.evaluate.run.apply(options, session_, "evaluate");
    // A plan that changes values is measured as it was written, any other as a mask, which shares the pass.
    const bool written = changes_values(plan_);
    std::vector<Plan> masks{random_};
    if (!written) masks.push_back(plan_);
    const auto losses = moetrim::evaluate(model_, tests_, recipe_.evaluate.task.count_value(), options, masks, nullptr);
    const auto after = written ? evaluate_written(options) : std::vector<LossSums>{};
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (std::size_t t = 0; t < losses.size(); ++t) {
      const EvaluateTask& task = losses[t];
      rows.push_back({{"task", task.name},
                      {"before", loss_json(task.model, false)},
                      {"after", loss_json(written ? after[t] : task.plans[1], true)},
                      {"random", loss_json(task.plans[0], true)}});
    }
    if (recipe_.evaluate.exact_match) add_exact_match(rows);
    write_file_atomically(file, nlohmann::ordered_json{{"key", key}, {"tasks", rows}}.dump(2) + "\n");
    return rows;
  }

  /// The written checkpoint against the one that it was made from.
  std::vector<LossSums> evaluate_written(const EvaluateOptions& options) const {
    const Checkpoint checkpoint = Checkpoint::open(pruned_folder());
    const Model model = describe(checkpoint);
    std::vector<LossSums> sums;
    for (const EvaluateTask& task :
         moetrim::evaluate(model, tests_, recipe_.evaluate.task.count_value(), options, {}, &model_)) {
      sums.push_back(task.model_against());
    }
    return sums;
  }

  /// "after" is the written checkpoint itself, or the plan as a mask where only transformers computes what was written.
  void add_exact_match(nlohmann::ordered_json& rows) const {
    const Tokenizer tokenizer = Tokenizer::open(recipe_.checkpoint);
    const Checkpoint pruned_checkpoint = Checkpoint::open(pruned_folder());
    std::optional<Model> pruned;
    if (!pruned_checkpoint.config().contains("moetrim_slim")) pruned = describe(pruned_checkpoint);
    const auto measure = [&](const char* column, const Model& model, const Plan* plan) {
      GenerateOptions options = recipe_.evaluate.generate_options(session_, checkpoint_);
      options.plan = plan;
      for (std::size_t t = 0; t < prompts_.size(); ++t) {
        const ExactMatch match = exact_match(model, tokenizer, prompts_[t], options);
        rows[t][column]["exact_match"] = static_cast<double>(match.correct) / static_cast<double>(match.samples);
      }
    };
    measure("before", model_, nullptr);
    measure("after", pruned ? *pruned : model_, pruned ? nullptr : &plan_);
    measure("random", model_, &random_);
  }

  std::string table(const nlohmann::ordered_json& json) const {
    std::string text = fmt::format("\n{} of {} experts in each of {} layers", keep_text(plan_), plan_.experts, plan_.layers.size());
    if (plan_.width > 0) {
      text += fmt::format(", with {} of {} atomic experts,", kept_atoms(plan_),
                          kept_experts(plan_) * plan_.width);
    }
    text += fmt::format(" by {}; {} of {} in {}\n", plan_.method, human_bytes(pruned_bytes_),
                        human_bytes(checkpoint_.total_bytes()), pruned_folder().string());
    if (!json.contains("evaluation")) return text;
    text += fmt::format("\n{:<20} {:>28} {:>28} {:>28}\n", "task", "before", "after", "random plan");
    for (const auto& row : json.at("evaluation")) {
      text += fmt::format("{:<20}", row.at("task").get<std::string>());
      for (const char* column : {"before", "after", "random"}) {
        const auto& cell = row.at(column);
        std::string entry = fmt::format("loss {:.4f}", cell.at("loss").get<double>());
        if (cell.contains("exact_match")) entry += fmt::format(", exact {:5.1f}%", 100 * cell.at("exact_match").get<double>());
        text += fmt::format(" {:>28}", entry);
      }
      text += "\n";
    }
    return text;
  }

  const Session& session_;
  const Recipe recipe_;
  const Checkpoint checkpoint_;
  const Model model_;
  std::vector<Task> tasks_, tests_, prompts_;
  Statistics statistics_;
  Plan plan_, random_;
  std::uint64_t pruned_bytes_ = 0;
};

}  // namespace

void add_run(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "run", "Do everything that a recipe says, skipping what is done",
                                  "moetrim run recipes/demo.json");
  auto file = std::make_shared<std::string>();
  command->add_option("recipe", *file, "Recipe, JSON with // comments allowed")->required();
  command->callback([&session, file] { session.run = [&session, file] { Run(session, Recipe::read(*file)).execute(); }; });
}

}  // namespace moetrim::cli
