// moetrim search: the smallest checkpoint that is still good enough, or the best that is still small enough.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <tuple>

#include <fmt/format.h>

#include "cli/calibrate_step.h"
#include "cli/command.h"
#include "cli/search_arms.h"
#include "cli/search_measure.h"
#include "cli/search_recipe.h"
#include "cli/search_report.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/forward.h"
#include "moetrim/runtimes.h"

namespace moetrim::cli {

namespace fs = std::filesystem;

namespace {

using Json = nlohmann::ordered_json;

struct Flags {
  std::string recipe;
  std::optional<double> max_kl, max_loss_increase, min_exact_match;
  std::string budget_bytes;
  std::vector<std::string> runtimes;
  int plans_per_pass = 0;
  bool all = false, dry_run = false;

  void add(CLI::App& command) {
    command.add_option("recipe", recipe, "Recipe of a search, JSON with // comments allowed")->required();
    command.add_option("--max-kl", max_kl, "Most KL divergence from the whole model, nats per token")
        ->check(CLI::NonNegativeNumber);
    command.add_option("--max-loss-increase", max_loss_increase, "Most increase of the loss, nats per token")
        ->check(CLI::Number);
    command.add_option("--min-exact-match", min_exact_match,
                       "Least share of right answers; generates them, the model must fit into memory")
        ->check(CLI::Range(0.0, 1.0));
    command.add_option("--budget-bytes", budget_bytes, "Most that the new checkpoint's tensors may take, for example 12GB");
    add_runtimes(command, runtimes);
    command.add_option("--plans-per-pass", plans_per_pass, "Most plans that share a pass over the weights; default: 16")
        ->check(CLI::PositiveNumber);
    command.add_flag("--all", all, "Measure every candidate, for the whole table");
    command.add_flag("--dry-run", dry_run, "Say candidates, passes, memory, bytes and time; run nothing");
  }
  /// What the command line says of limits replaces all that the recipe says of them.
  void apply(SearchFlags& search) const {
    SearchLimits limits{.max_kl = max_kl, .max_loss_increase = max_loss_increase, .min_exact_match = min_exact_match,
                        .budget_bytes = {}};
    if (!budget_bytes.empty()) limits.budget_bytes = parse_bytes(budget_bytes);
    if (limits.quality() || limits.budget_bytes) search.limits = limits;
    if (!runtimes.empty()) search.plan.runtimes = runtimes;
    if (plans_per_pass > 0) search.plans_per_pass = plans_per_pass;
    if (!search.limits.quality() && !search.limits.budget_bytes) {
      throw UsageError("nothing says what to look for; add --max-kl, --max-loss-increase, --min-exact-match or --budget-bytes");
    }
  }
};

class Search {
 public:
  Search(const Session& session, const Flags& flags)
      : session_(session), flags_(flags), recipe_(read(flags)), checkpoint_(Checkpoint::open(recipe_.checkpoint)),
        model_(describe(checkpoint_)), limits_(router_limits(model_)), arms_(uniform_arms(restricted(), limits_)),
        tasks_(read_tasks(recipe_.calibrate.task, recipe_.checkpoint, recipe_.calibrate.task.task_options(model_.vocabulary))),
        options_(recipe_.calibrate.options(session, recipe_.checkpoint)) {
    check_first();
    if (!flags.dry_run) fs::create_directories(recipe_.output);
    const PrepareOptions written{.mtp = parse_mtp(recipe_.calibrate.mtp), .sources = {.statistics = statistics_folder()}};
    texts_.emplace(session_, model_, recipe_.evaluate, recipe_.output / "search.json", "evaluate", written);
    texts_->choose_plans_per_pass(recipe_.search.plans_per_pass);
    if (recipe_.test) test_.emplace(session_, model_, *recipe_.test, recipe_.output / "test.json", "test", written);
  }

  void execute() {
    calibrate_unless_done(session_, model_, tasks_, options_, statistics_folder());
    try {
      find();
    } catch (const Interrupted&) {
      throw Interrupted("stopped; repeat the command to go on after the last pass that was finished");
    }
    report();
  }

  void print_estimate() const {
    const SearchExtent extent = search_extent(recipe_.search, arms_, limits_, static_cast<int>(model_.moe_layers().size()),
                                              texts_->plans_per_pass(), flags_.all);
    const EvaluateEstimate pass = texts_->estimate(texts_->plans_per_pass());
    const std::size_t passes = extent.calls * static_cast<std::size_t>(pass.groups);
    const std::uint64_t read_bytes = pass.read_bytes * extent.calls;
    Json json{{"candidates", extent.candidates},
              {"curve_points", extent.curve_points},
              {"plans_per_pass", texts_->plans_per_pass()},
              {"passes", passes},
              {"peak_memory_bytes", pass.peak_memory_bytes},
              {"read_bytes", read_bytes}};
    const std::string time = add_time(pass.operations * static_cast<double>(extent.calls), read_bytes,
                                      measure_rates(model_, evaluate_options()), json);
    std::string curves;
    if (extent.curve_points > 0) curves = fmt::format(", and {} points of layers' curves", extent.curve_points);
    session_.print(json, fmt::format("candidates  {}{}\npasses      {} at most after calibrating, of up to {} plans\n"
                                     "memory      {} at most\nread        {} at most\n{}",
                                     extent.candidates, curves, passes, texts_->plans_per_pass(),
                                     human_bytes(pass.peak_memory_bytes), human_bytes(read_bytes), time));
  }

 private:
  static SearchRecipe read(const Flags& flags) {
    SearchRecipe recipe = SearchRecipe::read(flags.recipe);
    flags.apply(recipe.search);
    if (recipe.search.limits.min_exact_match) recipe.evaluate.exact_match = true;
    return recipe;
  }

  /// With what the runtimes would serve.
  const SearchFlags& restricted() {
    if (recipe_.search.plan.runtimes.empty()) return recipe_.search;
    recipe_.search.served = served_model(model_);
    if (recipe_.search.plan.regroup) {
      recipe_.search.served->router.groups = {.count = 1, .chosen = 1, .rule = limits_.groups.rule};
    }
    return recipe_.search;
  }

  fs::path statistics_folder() const { return recipe_.output / "calibration.stats"; }
  EvaluateOptions evaluate_options() const {
    EvaluateOptions options;
    recipe_.evaluate.run.apply(options, session_, "evaluate");
    return options;
  }

  /// What would fail after hours fails now: numbers by layer that no target takes.
  void check_first() const {
    if (recipe_.search.served) check_runtimes();
    if (!recipe_.search.by_layer) return;
    Plan plan = whole_plan(calibration_manifest(model_, tasks_, options_));
    const int fewer = curve_counts(recipe_.search, limits_).back();
    plan.counts = LayerCounts::listed;
    plan.regroup = recipe_.search.plan.regroup;
    auto& keep = plan.layers.front().keep;
    if (limits_.groups.count == 1 || plan.regroup) keep.resize(static_cast<std::size_t>(fewer));
    prepare_export(model_, plan, kVersion, {.mtp = parse_mtp(recipe_.calibrate.mtp)});
  }

  /// What no runtime would take is not measured.
  void check_runtimes() const {
    for (const PlannedArm& arm : arms_) {
      for (const SearchSize& size : arm.sizes) size.flags.check_runtimes(*recipe_.search.served);
    }
    if (!recipe_.search.by_layer) return;
    ServedModel listed = *recipe_.search.served;
    listed.listed_counts = true;
    for (const RuntimeTarget& target : parse_runtimes(recipe_.search.plan.runtimes)) require_runtime(check_runtime(listed, target));
  }

  void find() {
    statistics_ = Statistics::read(statistics_folder(), recipe_.calibrate.wants("second-order"));
    planner_.emplace(model_, statistics_, statistics_folder(), recipe_.calibrate.mtp);
    for (PlannedArm& arm : arms_) planner_->settle(arm);
    if (recipe_.search.by_layer) add_arms_by_layer();
    check_budget();
    found_ = moetrim::search(lines(), {.limits = recipe_.search.limits, .at_once = texts_->plans_per_pass(), .all = flags_.all},
                             {.measure = [&](std::span<const Candidate> request) { return measure(request); },
                              .exact_match = [&](const Candidate& c) {
                                const Plan plan = plan_of(c);
                                return texts_->exact_match(&plan);
                              }});
  }

  std::vector<SearchArm> lines() const {
    std::vector<SearchArm> lines;
    for (const PlannedArm& arm : arms_) {
      lines.push_back({.name = arm.name, .bytes = {}, .alone = arm.alone});
      for (const SearchSize& size : arm.sizes) lines.back().bytes.push_back(size.bytes);
    }
    return lines;
  }

  const SearchSize& size_of(const Candidate& c) const { return arms_[c.arm].sizes[c.size]; }
  Plan plan_of(const Candidate& c) const { return planner_->plan(size_of(c)); }
  std::string name_of(const Candidate& c) const { return fmt::format("{}, {}", arms_[c.arm].name, describe_size(size_of(c))); }

  std::vector<LossSums> losses(const std::vector<const SearchSize*>& sizes) {
    std::vector<Measurements::MakePlan> plans;
    for (const SearchSize* size : sizes) plans.emplace_back([this, size] { return planner_->plan(*size); });
    return texts_->losses(plans);
  }

  std::vector<Quality> measure(std::span<const Candidate> request) {
    std::vector<const SearchSize*> sizes;
    for (const Candidate& c : request) sizes.push_back(&size_of(c));
    const auto sums = losses(sizes);
    std::vector<Quality> qualities;
    for (std::size_t i = 0; i < sums.size(); ++i) {
      sums_[request[i]] = sums[i];
      qualities.push_back(texts_->quality(sums[i]));
    }
    return qualities;
  }

  /// Curves of every method's layers, then the allocations that follow from them.
  void add_arms_by_layer() {
    const auto counts = curve_counts(recipe_.search, limits_);
    const auto tried = tried_counts(recipe_.search, limits_);
    Json file = Json::array();
    for (const auto& method : expert_methods(recipe_.search)) {
      std::vector<LayerCurve> curves;
      std::vector<SearchSize> sizes;
      for (const int layer : planner_->evaluated_layers()) {
        curves.push_back({.layer = layer, .counts = counts, .costs = {}});
        for (auto& size : planner_->curve_sizes(recipe_.search, method, curves.back())) sizes.push_back(std::move(size));
      }
      std::vector<const SearchSize*> wanted;
      for (const SearchSize& size : sizes) wanted.push_back(&size);
      const auto sums = losses(wanted);
      Json layers = Json::array();
      for (std::size_t l = 0; l < curves.size(); ++l) {
        Json increases = Json::array();
        for (std::size_t i = 0; i < counts.size(); ++i) {
          const Quality quality = texts_->quality(sums[l * counts.size() + i]);
          curves[l].costs.push_back(std::isnan(quality.kl) ? std::numeric_limits<double>::infinity() : quality.kl);
          increases.push_back(quality.loss_increase);
        }
        layers.push_back({{"layer", curves[l].layer}, {"counts", counts}, {"kl", curves[l].costs}, {"loss_increase", increases}});
        curves[l].counts.push_back(model_.experts);
        curves[l].costs.push_back(0);
      }
      file.push_back({{"method", method}, {"layers", layers}});
      arms_.push_back(planner_->by_layer_arm(recipe_.search, method, curves, tried));
      planner_->settle(arms_.back());
    }
    const Json json{{"experts", model_.experts}, {"methods", file}};
    write_file_atomically(recipe_.output / "sensitivity.json", json.dump(1) + "\n");
  }

  void check_budget() const {
    if (!recipe_.search.limits.budget_bytes) return;
    const SearchSize* least = nullptr;
    for (const PlannedArm& arm : arms_) {
      if (!arm.sizes.empty() && (least == nullptr || arm.sizes.front().bytes < least->bytes)) least = &arm.sizes.front();
    }
    if (least == nullptr || least->bytes <= *recipe_.search.limits.budget_bytes) return;
    throw InvalidInput(fmt::format("budget-bytes {}: the smallest candidate, {}, has {} bytes; raise it, or let smaller sizes be "
                                   "tried", *recipe_.search.limits.budget_bytes, describe_size(*least), least->bytes));
  }

  Json candidate_json(const Candidate& c) const {
    const LossSums& sums = sums_.at(c);
    Json json{{"arm", arms_[c.arm].name}};
    json.update(size_json(size_of(c)));
    json["keeps"] = describe_size(size_of(c));
    json["bytes"] = size_of(c).bytes;
    json.update(loss_json(sums, true));
    json["loss_increase"] = texts_->quality(sums).loss_increase;
    if (const auto match = found_.exact_match.find(c); match != found_.exact_match.end()) json["exact_match"] = match->second;
    return json;
  }

  void report() {
    Json json{{"checkpoint", recipe_.checkpoint.string()}, {"output", recipe_.output.string()}, {"pick", nullptr}};
    json["whole"] = loss_json(texts_->whole(), false);
    json["whole"]["bytes"] = checkpoint_.total_bytes();
    std::optional<Plan> pick;
    if (found_.pick) {
      pick = plan_of(*found_.pick);
      write_plan(recipe_.output / "plan.json", *pick);
      if (recipe_.evaluate.exact_match) {
        found_.exact_match[*found_.pick] = texts_->exact_match(&*pick);
        json["whole"]["exact_match"] = texts_->exact_match(nullptr);
      }
      json["pick"] = candidate_json(*found_.pick);
      json["pick"]["plan"] = (recipe_.output / "plan.json").string();
    } else {
      fs::remove(recipe_.output / "plan.json");
    }
    json["candidates"] = Json::array();
    for (const Candidate& c : sorted()) json["candidates"].push_back(candidate_json(c));
    json["frontier"] = Json::array();
    for (const Candidate& c : found_.frontier) json["frontier"].push_back(candidate_json(c));
    std::size_t grid = 0;
    for (const PlannedArm& arm : arms_) grid += arm.sizes.size();
    json["grid"] = grid;
    json["plans_measured"] = texts_->plans();
    json["plans_per_pass"] = texts_->plans_per_pass();
    json["passes"] = texts_->passes();
    json["generations"] = texts_->generations();
    if (pick && test_) json["test"] = measure_test(*pick);
    write_file_atomically(recipe_.output / "result.json", json.dump(2) + "\n");
    if (const int before = texts_->remembered_passes(); before > 0) {
      session_.note(fmt::format("{} of the passes were done before", before));
    }
    if (!found_.pick) refuse();
    session_.print(json, search_table(json, recipe_.search.limits));
  }

  std::vector<Candidate> sorted() const {
    std::vector<Candidate> out;
    for (const auto& [candidate, quality] : found_.measured) out.push_back(candidate);
    std::stable_sort(out.begin(), out.end(), [&](const Candidate& a, const Candidate& b) {
      return std::tuple(size_of(a).bytes, found_.measured.at(a).kl) < std::tuple(size_of(b).bytes, found_.measured.at(b).kl);
    });
    return out;
  }

  /// The pick and the whole model on text that the pick was not chosen by.
  Json measure_test(const Plan& pick) {
    const std::vector<Measurements::MakePlan> plans{[&] { return pick; }};
    const LossSums sums = test_->losses(plans).front();
    Json json{{"whole", loss_json(test_->whole(), false)}, {"pick", loss_json(sums, true)}};
    json["pick"]["loss_increase"] = test_->quality(sums).loss_increase;
    if (recipe_.test->exact_match) {
      json["whole"]["exact_match"] = test_->exact_match(nullptr);
      json["pick"]["exact_match"] = test_->exact_match(&pick);
    }
    return json;
  }

  [[noreturn]] void refuse() const {
    std::string nearest;
    if (found_.nearest) {
      const Json json = candidate_json(*found_.nearest);
      nearest = fmt::format("; the nearest is {} with {} bytes: KL {:.4f}, loss increase {:.4f}", name_of(*found_.nearest),
                            size_of(*found_.nearest).bytes, json.at("kl").get<double>(), json.at("loss_increase").get<double>());
      if (json.contains("exact_match")) {
        nearest += fmt::format(", exact match {:.1f}%", 100 * json.at("exact_match").get<double>());
      }
    }
    throw InvalidInput(fmt::format("no candidate meets {}{}; what was measured is in {}", describe_limits(recipe_.search.limits),
                                   nearest, (recipe_.output / "result.json").string()));
  }

  const Session& session_;
  const Flags& flags_;
  SearchRecipe recipe_;
  const Checkpoint checkpoint_;
  const Model model_;
  const RouterLimits limits_;
  std::vector<PlannedArm> arms_;
  std::vector<Task> tasks_;
  CalibrateOptions options_;
  std::optional<Measurements> texts_, test_;
  Statistics statistics_;
  std::optional<Planner> planner_;
  std::map<Candidate, LossSums> sums_;
  SearchResult found_;
};

}  // namespace

void add_search(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "search",
                                  "Find the smallest checkpoint within a limit of quality, or the best within a budget of bytes",
                                  "moetrim search recipes/demo-search.json --max-kl 0.05");
  auto flags = std::make_shared<Flags>();
  flags->add(*command);
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      Search search(session, *flags);
      if (flags->dry_run) return search.print_estimate();
      search.execute();
    };
  });
}

}  // namespace moetrim::cli
