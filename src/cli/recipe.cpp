// Recipes: a whole run as a JSON file whose fields are the command line's options.

#include "cli/recipe.h"

#include "cli/recipe_part.h"
#include "cli/sequential.h"

namespace moetrim::cli {

namespace fs = std::filesystem;

void read_calibrate(Part& part, CalibrateFlags& out) {
  part.tasks(out.task);
  part.run(out.run);
  part.text("statistics", out.statistics);
  out.markers = part.texts("marker", false);
  part.integer("all-experts-tokens", 0, out.all_experts_tokens);
  if (part.fields().has("activation-samples")) out.activation_samples = part.fields().whole("activation-samples", 0);
  part.text("max-disk", out.max_disk);
  try {
    out.check();
  } catch (const UsageError& error) {
    part.fields().fail("statistics", error.what());
  }
  if (out.wants("none")) part.fields().fail("statistics", "a recipe needs statistics to make a plan of, got \"none\"");
  part.integer("tcess-top-k", 1, out.tcess_top_k);
  if (part.fields().has("tcess-threshold")) out.tcess_threshold = part.fields().number("tcess-threshold", -1, 1);
  part.integer("trace", 0, out.trace);
  part.choice("mtp", {"prune", "keep", "drop"}, out.mtp);
  part.fields().finish();
}

std::string number_or_text(JsonFields& fields, const char* name) {
  if (!fields.has(name)) return "";
  const auto& value = fields.at(name);
  if (value.is_string()) return fields.text(name);
  if (!value.is_number()) fields.fail(name, "expected a number, a ratio, or a share such as \"50%\"");
  return value.dump();
}

void read_merge_options(Part& part, const fs::path& checkpoint, MergeFlags& out) {
  part.choice("merge-counts", {"uniform", "adaptive"}, out.counts);
  part.choice("merge-features", {"outputs", "logits", "weights"}, out.features);
  if (out.features == "weights") out.checkpoint = checkpoint.string();
  part.choice("linkage", {"average", "complete", "single", "ward"}, out.linkage);
  out.group_size = number_or_text(part.fields(), "group-size");
  part.choice("router", {"centroid", "map", "duplicate"}, out.router);
  part.choice("merge-align", {"weights", "activations", "none"}, out.align);
}

void read_plan_options(Part& part, PlanFlags& out) {
  part.choice("variant", {"executed", "official"}, out.score.variant);
  part.choice("library-version", {"4.56", "4.51"}, out.score.library);
  part.integer("seed", 0, out.score.seed);
  out.score.tasks = part.texts("task", false);
  part.text("expert-method", out.expert_method);
  out.align = number_or_text(part.fields(), "align");
  out.atom_blocks = number_or_text(part.fields(), "atom-blocks");
  out.protect = part.texts("protect", false);
  part.flag("regroup", out.regroup);
  part.flag("correct-drift", out.correct_drift);
  out.runtimes = part.texts("runtime", false);
}

void read_task_algebra(Part& part, TaskAlgebraFlags& out) {
  out.with = part.texts("with", false);
  out.protect = part.texts("protect-task", false);
  out.drop = part.texts("drop-task", false);
  part.choice("combine", {"sum", "union"}, out.combine);
  out.base = part.resolve("");
}

namespace {

void read_plan_part(Part& part, const fs::path& checkpoint, PlanFlags& out) {
  part.text("merge", out.merge.method);
  out.merge.to = number_or_text(part.fields(), "merge-to");
  read_merge_options(part, checkpoint, out.merge);
  if (out.merge.empty() || part.fields().has("method")) {
    out.score.method = part.fields().text("method");
    MethodMix::parse(out.score.method);
  }
  read_plan_options(part, out);
  read_task_algebra(part, out.tasks);
  out.keep = number_or_text(part.fields(), "keep");
  if (part.fields().has("keep-by-layer")) out.keep_by_layer = part.path("keep-by-layer").string();
  out.keep_atoms = number_or_text(part.fields(), "keep-atoms");
  out.budget_bytes = number_or_text(part.fields(), "budget-bytes");
  out.budget_flops = number_or_text(part.fields(), "budget-flops");
  part.choice("scope", {"global", "layer", "expert"}, out.scope);
  part.fields().finish();
  out.check();
}

}  // namespace

void read_evaluate(Part& part, EvaluateFlags& out) {
  part.tasks(out.task);
  part.run(out.run);
  part.flag("exact-match", out.exact_match);
  part.integer("max-new-tokens", 1, out.max_new_tokens);
  part.integer("batch", 1, out.batch);
  part.fields().finish();
}

void check_vectors(const MergeFlags& merge, const ScoreFlags& score, const CalibrateFlags& flags, const Part& calibrate) {
  if (merge.empty()) return;
  const MergeRequest request = merge.request(score);
  const bool samples = aligns_by_activations(request);
  if ((samples || needs_all_experts(request)) && !flags.wants("all-experts")) {
    calibrate.fields().fail("statistics", "expected \"all-experts\" among them, which the plan's merging needs");
  }
  if (needs_vectors(request) && !flags.wants("vectors") && !flags.wants("all-experts") && !flags.wants("quantisation")) {
    calibrate.fields().fail("statistics", "expected \"vectors\" among them, which the plan's merging needs");
  }
  if (samples && flags.activation_samples == 0) {
    calibrate.fields().fail("activation-samples", "expected a number from 1, since plan.merge-align compares them");
  }
}

namespace {

void check_sequential_part(const PlanFlags& plan, const Part& calibrate) {
  try {
    check_sequential(plan);
  } catch (const UsageError& error) {
    calibrate.fields().fail("sequential", error.what());
  }
}

}  // namespace

Recipe Recipe::read(const fs::path& file) {
  const auto json = read_json_file(file, /*comments=*/true);
  Part root(json, file, "");
  Recipe recipe;
  if (root.fields().has("$schema")) root.fields().text("$schema");
  recipe.checkpoint = root.path("checkpoint");
  recipe.output = root.path("output");
  Part calibrate(root.fields().object("calibrate"), file, "calibrate");
  calibrate.flag("sequential", recipe.sequential);
  read_calibrate(calibrate, recipe.calibrate);
  Part plan(root.fields().object("plan"), file, "plan");
  read_plan_part(plan, recipe.checkpoint, recipe.plan);
  if (recipe.plan.needs_second_order() && !recipe.calibrate.wants("second-order")) {
    calibrate.fields().fail("statistics", "expected \"second-order\" among them, which the plan's methods need");
  }
  check_vectors(recipe.plan.merge, recipe.plan.score, recipe.calibrate, calibrate);
  if (recipe.sequential) check_sequential_part(recipe.plan, calibrate);
  recipe.mtp = recipe.calibrate.mtp;
  if (root.fields().has("rewrite")) {
    Part rewrite(root.fields().object("rewrite"), file, "rewrite");
    rewrite.text("shard-size", recipe.shard_size);
    rewrite.choice("mtp", {"prune", "keep", "drop"}, recipe.mtp);
    rewrite.fields().finish();
  }
  if (root.fields().has("evaluate")) {
    Part evaluate(root.fields().object("evaluate"), file, "evaluate");
    read_evaluate(evaluate, recipe.evaluate);
    recipe.evaluates = true;
  }
  root.fields().finish();
  return recipe;
}

}  // namespace moetrim::cli
