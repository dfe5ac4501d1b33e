// moetrim plan: statistics and a budget to a plan.

#include <algorithm>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/command.h"
#include "cli/stages.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/json_fields.h"
#include "moetrim/plan.h"
#include "moetrim/runtimes.h"
#include "moetrim/sequential.h"

namespace moetrim::cli {

void PlanFlags::add(CLI::App& command, bool merging) {
  score.add(command, /*required=*/false);
  tasks.add(command);
  command.add_option("--keep", keep, "Experts of every layer that stay: a number (16), a ratio (0.5) or a share (50%)");
  command.add_option("--keep-by-layer", keep_by_layer,
                     "File with a number of experts for each layer: {\"layers\": [{\"layer\": 3, \"keep\": 12}, ...]}");
  command.add_option("--budget-bytes", budget_bytes, "Most that the new checkpoint's tensors may take, for example 12GB");
  command.add_option("--keep-atoms", keep_atoms,
                     "Atomic experts that stay of all in the kept experts: a share (0.75, 75%) or a number");
  command.add_option("--budget-flops", budget_flops,
                     "Share of the routed experts' multiply-adds per token that may stay (0.75, 75%)");
  command.add_option("--scope", scope,
                     "Where atomic experts compete: global, layer (as many in each), expert (a uniform width); default: global");
  command.add_option("--align", align, "Widths become multiples of this, for example 64; default: 1");
  command.add_option("--atom-blocks", atom_blocks,
                     "Atomic experts go and stay in blocks of this many neighbours, for block-quantised weights; default: 1");
  command.add_option("--expert-method", expert_method,
                     "With a method over atomic experts: what chooses the experts that --keep keeps; default: the method's own");
  command.add_option("--protect", protect, "Experts that stay whatever their score: super, or LAYER:EXPERT,EXPERT; repeatable")
      ->allow_extra_args(false);
  command.add_flag("--regroup", regroup, "Give up the router's groups of experts: the best of a layer stay, wherever they are");
  command.add_flag("--correct-drift", correct_drift, "Let rewrite undo the growth of kept gates that are not renormalised");
  if (merging) merge.add(command);
}

namespace {

struct LayerCount {
  int layer = 0;  ///< absolute id
  int keep = 0;
};

std::vector<LayerCount> read_layer_counts(const std::filesystem::path& file) {
  const auto json = read_json_file(file);
  JsonFields fields(json, file);
  std::vector<LayerCount> counts;
  for (const auto& item : fields.array("layers")) {
    JsonFields entry(item, file, fmt::format("layers[{}]", counts.size()));
    counts.push_back({.layer = entry.whole("layer", 0), .keep = entry.whole("keep", 1)});
    entry.finish();
    if (counts.size() > 1 && counts[counts.size() - 2].layer >= counts.back().layer) {
      entry.fail("layer", "expected a larger id than that of the layer before it");
    }
  }
  if (counts.empty()) fields.fail("layers", "must not be empty");
  fields.finish();
  return counts;
}

std::vector<int> numbers_of(const std::vector<LayerCount>& counts) {
  std::vector<int> numbers;
  for (const LayerCount& count : counts) numbers.push_back(count.keep);
  return numbers;
}

}  // namespace

PlanRequest PlanFlags::request() const {
  PlanRequest out{.protect = protect, .regroup = regroup, .correct_drift = correct_drift};
  if (!keep.empty()) out.keep = KeepBudget::parse(keep);
  if (!keep_by_layer.empty()) out.keep_by_layer = numbers_of(read_layer_counts(keep_by_layer));
  if (!budget_bytes.empty()) out.budget_bytes = parse_bytes(budget_bytes);
  if (!keep_atoms.empty()) out.keep_atoms = AtomBudget::parse(keep_atoms);
  if (!budget_flops.empty()) out.budget_flops = Share::parse(budget_flops, "--budget-flops");
  if (!scope.empty()) out.scope = atom_scope_from_name(scope);
  if (!align.empty()) out.align = parse_count(align, "--align");
  if (!atom_blocks.empty()) out.atom_blocks = parse_count(atom_blocks, "--atom-blocks");
  return out;
}

/// With what only the statistics can say.
PlanRequest PlanFlags::request(const Statistics& statistics) const {
  PlanRequest out = request();
  if (!keep_by_layer.empty()) {
    std::vector<int> layers;
    for (const LayerCount& count : read_layer_counts(keep_by_layer)) layers.push_back(count.layer);
    if (layers != statistics.manifest.moe_layers) {
      throw InvalidInput(fmt::format("{}: layers: expected the MoE layers of the statistics, {}", keep_by_layer,
                                     fmt::join(statistics.manifest.moe_layers, ", ")));
    }
  }
  if (!tasks.protect.empty()) {
    out.protect_experts = tasks.protected_experts(statistics, MethodMix::parse(score.method), score.options(),
                                                  groups(statistics.manifest));
  }
  return out;
}

bool PlanFlags::over_atoms() const {
  return !score.method.empty() && MethodMix::parse(score.method).grain() == Grain::atom;
}

/// What chooses whole experts for a method over atomic experts; nothing where nothing has to.
std::optional<MethodMix> PlanFlags::choosing_method() const {
  if (score.method.empty()) return std::nullopt;
  const MethodMix method = MethodMix::parse(score.method);
  if (method.grain() == Grain::expert || !keeps()) {
    if (expert_method.empty()) return std::nullopt;
    throw UsageError(method.grain() == Grain::expert
                         ? fmt::format("--expert-method: {} chooses the experts itself; leave it out", method.name())
                         : std::string("--expert-method chooses the experts that --keep keeps; add --keep, or leave it out"));
  }
  const std::string name = expert_method.empty() ? method.expert_method() : expert_method;
  if (name.empty()) {
    throw UsageError(fmt::format("--keep with {}: say with --expert-method what chooses the experts", method.name()));
  }
  const MethodMix chosen = MethodMix::parse(name);
  if (chosen.grain() == Grain::atom) throw UsageError(fmt::format("--expert-method {}: it scores atomic experts", name));
  return chosen;
}

bool PlanFlags::needs_second_order() const {
  if (score.method.empty()) return false;
  const auto experts = choosing_method();
  return MethodMix::parse(score.method).second_order() || (experts && experts->second_order());
}

/// Dropping before merging, and atomic experts after it, are chosen by a method; merging alone needs none.
void PlanFlags::check_merging() const {
  const MergeRequest merging = merge.request(score);
  check_merge(merging);
  if (!tasks.empty() || !keep_by_layer.empty()) {
    throw UsageError("--with, --combine, --protect-task, --drop-task and --keep-by-layer are for plans that do not merge; put "
                     "statistics together with merge-statistics, or leave --merge out");
  }
  if (over_atoms()) check_slim(merging);
  if (!score.method.empty()) {
    if (over_atoms() || !keep.empty()) return;
    throw UsageError(fmt::format("--method {} with --merge chooses the experts that --keep keeps before they are merged; "
                                 "add --keep, or leave it out", score.method));
  }
  for (const auto& [option, value] : {std::pair("--keep", &keep), std::pair("--expert-method", &expert_method),
                                      std::pair("--keep-atoms", &keep_atoms), std::pair("--budget-bytes", &budget_bytes),
                                      std::pair("--budget-flops", &budget_flops), std::pair("--scope", &scope),
                                      std::pair("--align", &align), std::pair("--atom-blocks", &atom_blocks),
                                      std::pair("--library-version", &score.library)}) {
    if (value->empty()) continue;
    const bool is_keep = std::string_view(option) == "--keep";
    throw UsageError(fmt::format("{} with --merge: say with --method what chooses experts or atomic experts, or leave it out{}",
                                 option, is_keep ? "; --merge-to says how many they become" : ""));
  }
  if (score.variant != "executed" && merge.method != "ream" && protect.empty()) {
    throw UsageError(fmt::format("--variant {}: {} has no such variant; leave it out", score.variant, merge.method));
  }
}

void PlanFlags::check() const {
  parse_runtimes(runtimes);
  if (merge.empty()) {
    merge.check_unused();
    if (score.method.empty()) throw UsageError("nothing says what chooses the experts; add --method, or --merge");
  } else {
    check_merging();
    if (score.method.empty()) return;
    if (!over_atoms() && !budget_bytes.empty()) {
      throw UsageError("--budget-bytes with --merge is for atomic experts; --merge-to says how many experts stay");
    }
  }
  const MethodMix method = MethodMix::parse(score.method);
  const auto experts = choosing_method();
  if (method.grain() == Grain::expert && !(scope.empty() && align.empty() && atom_blocks.empty())) {
    throw UsageError(fmt::format("--scope, --align and --atom-blocks are for methods over atomic experts; {} scores experts",
                                 method.name()));
  }
  tasks.check(method, score.options());
  check_limits(request(), method.name(), method.grain(), experts.has_value());
}

void PlanFlags::check(const RouterLimits& limits) const {
  check();
  const PlanRequest wanted = request();
  if (!keep.empty()) legal_keep(limits, wanted.keep, regroup);
  for (const int count : wanted.keep_by_layer) legal_keep(limits, {.experts = count, .ratio = {}}, regroup);
  if (!merge.empty()) check_merge(merge.request(score), limits, regroup);
  if (correct_drift) check_correct_drift(limits);
}

/// The experts that are merged: all, or those that --keep keeps.
Plan PlanFlags::merge_base(const Statistics& statistics) const {
  const ScoreOptions options = score.options();
  PlanRequest experts = request();
  experts = {.keep = experts.keep, .protect = protect, .regroup = regroup, .correct_drift = correct_drift};
  const std::string name = keep.empty() ? "reap" : over_atoms() ? choosing_method()->name() : score.method;
  if (keep.empty()) experts.keep.experts = statistics.manifest.experts;  // and no score decides
  const Scores scores = moetrim::score(statistics, MethodMix::parse(name),
                                       {.variant = options.variant, .seed = options.seed}, score.weights());
  return make_plan(statistics, scores, experts, options.variant);
}

Statistics PlanFlags::read(const std::filesystem::path& folder) const {
  std::vector<std::string> loaded;
  for (const auto& task : read_statistics_manifest(folder).tasks) loaded.push_back(task.name);
  std::vector<std::filesystem::path> folders = tasks.beside(std::move(loaded));
  folders.insert(folders.begin(), folder);
  return read_beside(folders, needs_second_order());
}

Scores PlanFlags::scores(const Statistics& statistics) const {
  return tasks.scores(statistics, MethodMix::parse(score.method), score.options(), score.weights(),
                      groups(statistics.manifest));
}

Plan PlanFlags::make_freely(const Statistics& statistics, const ReadVectors& vectors) const {
  check();
  const ScoreOptions options = score.options();
  if (!merge.empty()) {
    Plan plan = merge_plan(merge_base(statistics), statistics, vectors, merge.request(score, statistics.manifest));
    if (over_atoms()) {
      const Scores atoms = moetrim::score(statistics, MethodMix::parse(score.method), options, score.weights());
      slim_plan(plan, statistics, atoms, request());
    }
    return plan;
  }
  std::optional<Scores> experts;
  if (const auto choosing = choosing_method()) {
    experts = tasks.scores(statistics, *choosing, {.variant = options.variant, .seed = options.seed}, score.weights(),
                           groups(statistics.manifest));
  }
  return make_plan(statistics, scores(statistics), request(statistics), options.variant, experts ? &*experts : nullptr);
}

namespace {

std::string describe_groups(const Plan& plan) {
  if (plan.groups.count == 1) return "";
  if (plan.regroup) return fmt::format("the router's {} groups of experts become one\n", plan.groups.count);
  const std::string count = plan.counts == LayerCounts::listed ? "as many" : std::to_string(plan.keep / plan.groups.count);
  return fmt::format("{} in each of the router's {} groups of experts\n", count, plan.groups.count);
}

std::string describe_drift(const Plan& plan) {
  const auto drift = router_drift(plan);
  if (!drift) return "";
  return fmt::format("router drift: kept gate weights grow by about {:.2f} (most in layer {}: {:.2f}){}\n",
                     1 / drift->mean_mass, drift->least_layer, 1 / drift->least_mass,
                     plan.correct_drift ? "; the new checkpoint's scale undoes the mean" : "");
}

/// Widths of a layer's kept experts.
std::vector<int> widths_of(const PlanLayer& layer) {
  std::vector<int> widths;
  for (const AtomRanges& ranges : layer.atoms) widths.push_back(atom_count(ranges));
  return widths;
}

double mean(const std::vector<int>& widths) {
  return std::accumulate(widths.begin(), widths.end(), 0.0) / static_cast<double>(widths.size());
}

std::string describe_widths(const Plan& plan) {
  const auto uniform = uniform_width(plan, plan.width);
  if (uniform) return fmt::format("every expert {} wide, of {}\n", *uniform, plan.width);
  std::vector<int> all;
  for (const PlanLayer& layer : plan.layers) {
    const auto widths = widths_of(layer);
    all.insert(all.end(), widths.begin(), widths.end());
  }
  std::sort(all.begin(), all.end());
  const auto by_mean = [](const PlanLayer& a, const PlanLayer& b) { return mean(widths_of(a)) < mean(widths_of(b)); };
  const auto [narrow, wide] = std::minmax_element(plan.layers.begin(), plan.layers.end(), by_mean);
  std::string text = fmt::format("widths {} to {} of {}, median {}; on average {:.1f} (layer {}) to {:.1f} (layer {})\n",
                                 all.front(), all.back(), plan.width, all[all.size() / 2], mean(widths_of(*narrow)),
                                 narrow->layer, mean(widths_of(*wide)), wide->layer);
  const auto empty = std::upper_bound(all.begin(), all.end(), 0) - all.begin();
  if (empty > 0) text += fmt::format("{} experts keep their router row and no atomic expert\n", empty);
  return text;
}

std::string describe_atoms(const Plan& plan) {
  if (plan.width == 0) return "";
  const std::int64_t kept = kept_atoms(plan);
  std::int64_t total = 0;
  for (const PlanLayer& layer : plan.layers) total += std::ssize(layer.keep) * plan.width;
  return fmt::format("keeps {} of {} atomic experts in them ({:.2f}%) by {}\n{}", kept, total,
                     100 * static_cast<double>(kept) / static_cast<double>(total), plan.method, describe_widths(plan));
}

std::string describe_expected(const Plan& plan) {
  const auto expected = plan.source.value("expected", nlohmann::ordered_json::object());
  std::string text;
  if (expected.contains("bytes")) {
    const auto bytes = std::max<std::int64_t>(0, expected["bytes"].get<std::int64_t>());
    text += "about " + human_bytes(static_cast<std::uint64_t>(bytes)) + " of tensors";
  }
  if (expected.contains("flops")) {
    text += fmt::format("{}{:.2f}% of the routed experts' multiply-adds per token", text.empty() ? "" : ", ",
                        100 * expected["flops"].get<double>());
  }
  return text.empty() ? "" : text + "\n";
}

std::string describe_unseen(const Plan& plan) {
  int unseen = 0;
  int unseen_kept = 0;
  for (const PlanLayer& layer : plan.layers) {
    unseen += layer.unseen;
    unseen_kept += layer.unseen_kept;
  }
  if (unseen == 0) return "";
  if (plan.keep == plan.experts && plan.counts == LayerCounts::equal) {
    return fmt::format("{} experts never saw a counted token; more demonstrations would settle them\n", unseen);
  }
  return fmt::format("{} experts never saw a counted token; {} of them are kept all the same: more demonstrations, or fewer "
                     "experts, would settle it\n", unseen, unseen_kept);
}

/// Experts after merging, equal ones counted once.
int merged_experts(const Plan& plan, const PlanLayer& layer) {
  std::ptrdiff_t count = std::ssize(router_rows(plan, layer));
  if (plan.router == MergedRouter::centroid) return static_cast<int>(count);
  for (const MergeGroup& group : layer.merge) count -= std::ssize(group.members) - 1;
  return static_cast<int>(count);
}

std::string describe_merging(const Plan& plan) {
  std::vector<int> experts;
  std::vector<int> sizes;
  for (const PlanLayer& layer : plan.layers) {
    experts.push_back(merged_experts(plan, layer));
    for (const MergeGroup& group : layer.merge) sizes.push_back(static_cast<int>(group.members.size()));
  }
  const auto range = [](const std::vector<int>& values) {
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    return *least == *most ? std::to_string(*least) : fmt::format("{} to {}", *least, *most);
  };
  const PlanLayer& first = plan.layers.front();
  std::ptrdiff_t before = experts.front();
  for (const MergeGroup& group : first.merge) before += std::ssize(group.members) - 1;
  const std::string method = plan.width == 0 ? plan.method : plan.source.value("expert_method", "");
  const std::string by = before < plan.experts ? fmt::format(" that {} keeps of {}", method, plan.experts) : "";
  return fmt::format("merges the {} experts{} in each of {} layers into {} by {}: {} groups of {}; router {}, alignment {}\n",
                     before, by, plan.layers.size(), range(experts), plan.source.at("merge").value("method", ""),
                     sizes.size(), range(sizes), merged_router_name(plan.router), alignment_name(plan.align));
}

/// "keeps 16 of 32 experts in each of 24 layers".
std::string describe_keep(const Plan& plan) {
  std::string text =
      fmt::format("keeps {} of {} experts in each of {} layers", keep_text(plan), plan.experts, plan.layers.size());
  return plan.counts == LayerCounts::listed ? text + fmt::format(", {} in all", kept_experts(plan)) : text;
}

std::string describe_runtimes(const Plan& plan) {
  std::string text;
  if (const auto& keep = plan.source.value("runtimes_keep", nlohmann::ordered_json()); keep.is_object()) {
    text += fmt::format("{} experts would have been {}: the nearest number that every runtime takes\n", keep.at("taken").dump(),
                        keep.at("wanted").dump());
  }
  if (plan.source.contains("runtimes_align")) {
    text += fmt::format("widths are multiples of {}, as every runtime takes them\n", plan.source.at("runtimes_align").dump());
  }
  for (const auto& target : plan.source.value("runtimes", nlohmann::ordered_json::array())) {
    text += fmt::format("taken by {} (rules of {})\n", target.value("runtime", ""), target.value("version", ""));
  }
  return text;
}

std::string describe_plan(const Plan& plan) {
  // All experts stay where only atomic experts were asked for: no method chose them.
  const std::string by = plan.width == 0 ? plan.method : plan.source.value("expert_method", "");
  std::string text = merges(plan) ? describe_merging(plan)
                                  : describe_keep(plan) + (by.empty() ? "" : " by " + by) + "\n";
  text += describe_groups(plan) + describe_atoms(plan) + describe_expected(plan) + describe_drift(plan);
  text += describe_runtimes(plan);
  if (!plan.protect.empty()) text += fmt::format("{} protected\n", plan.protect.size());
  return text + describe_unseen(plan);
}

}  // namespace

void add_plan(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "plan",
                                  "Decide which experts stay or are merged, and which atomic experts stay",
                                  "moetrim plan arithmetic.stats --method easy-ep --keep 0.5 -o plan.json");
  struct Flags : PlanFlags {
    std::string statistics, output;
  };
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate wrote")->required();
  flags->add(*command);
  add_runtimes(*command, flags->runtimes);
  command->add_option("-o,--output", flags->output, "File for the plan")->required();
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      flags->check();  // a misspelt name before a large folder is read
      if (!flags->runtimes.empty()) flags->check_runtimes(served_model(read_statistics_manifest(flags->statistics)));
      const Statistics statistics = flags->read(flags->statistics);
      session.note_part(statistics.manifest);
      const Plan plan = flags->make(statistics, [&](int layer) {
        return read_vectors(flags->statistics, statistics.manifest, layer);
      });
      if (const std::string note = sequential_note(statistics.manifest, plan); !note.empty()) session.note("note: " + note);
      if (const std::string note = runtimes_note(*flags, statistics.manifest, plan); !note.empty()) session.note(note);
      write_plan(flags->output, plan);
      session.print(plan_to_json(plan), describe_plan(plan) + "plan in " + flags->output + "\n");
    };
  });
}

}  // namespace moetrim::cli
