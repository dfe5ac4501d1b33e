// Recipes: a whole run as a JSON file whose fields are the command line's options.

#include "cli/recipe.h"

#include <fmt/format.h>

#include "moetrim/json_fields.h"

namespace moetrim::cli {

namespace fs = std::filesystem;

namespace {

constexpr std::int64_t kMany = std::int64_t{1} << 40;

/// Reads the fields of one part; paths become relative to the working directory.
class Part {
 public:
  Part(const nlohmann::ordered_json& json, const fs::path& file, const std::string& where)
      : fields_(json, file, where), folder_(file.parent_path()) {}

  JsonFields& fields() { return fields_; }
  const JsonFields& fields() const { return fields_; }
  fs::path path(const char* name) { return resolve(fields_.text(name)); }
  fs::path resolve(const std::string& text) const { return (folder_ / text).lexically_normal(); }

  void text(const char* name, std::string& out) {
    if (fields_.has(name)) out = fields_.text(name);
  }
  void choice(const char* name, std::initializer_list<std::string_view> allowed, std::string& out) {
    if (fields_.has(name)) out = fields_.choice(name, allowed);
  }
  template <class Integer>
  void integer(const char* name, std::int64_t least, Integer& out) {
    if (fields_.has(name)) out = static_cast<Integer>(fields_.integer(name, least, sizeof(Integer) == 4 ? 1 << 30 : kMany));
  }
  void flag(const char* name, bool& out) {
    if (fields_.has(name)) out = fields_.flag(name);
  }
  std::vector<std::string> texts(const char* name, bool required) {
    std::vector<std::string> out;
    if (!required && !fields_.has(name)) return out;
    for (const auto& item : fields_.array(name)) {
      if (!item.is_string()) fields_.fail(name, "expected a list of strings");
      out.push_back(item.get<std::string>());
    }
    if (required && out.empty()) fields_.fail(name, "must not be empty");
    return out;
  }

  void tasks(TaskFlags& out) {
    for (const auto& file : texts("task", true)) out.files.push_back(resolve(file).string());
    choice("count", {"all", "prompt", "response"}, out.count);
    integer("samples", 0, out.samples);
    if (fields_.has("shuffle")) out.shuffle = static_cast<std::uint64_t>(fields_.integer("shuffle", 0, kMany));
    integer("max-tokens", 0, out.max_tokens);
    flag("split-by-tag", out.split_by_tag);
  }
  void run(RunFlags& out) {
    choice("dtype", {"fp32", "bf16", "fp64"}, out.dtype);
    text("device", out.device);
    integer("threads", 0, out.threads);
    text("max-memory", out.max_memory);
  }

 private:
  JsonFields fields_;
  fs::path folder_;
};

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

/// A number, a ratio, or a share such as "50%", as on the command line; empty where the field is absent.
std::string number_or_text(JsonFields& fields, const char* name) {
  if (!fields.has(name)) return "";
  const auto& value = fields.at(name);
  if (value.is_string()) return fields.text(name);
  if (!value.is_number()) fields.fail(name, "expected a number, a ratio, or a share such as \"50%\"");
  return value.dump();
}

void read_merging(Part& part, const fs::path& checkpoint, MergeFlags& out) {
  part.text("merge", out.method);
  out.to = number_or_text(part.fields(), "merge-to");
  part.choice("merge-counts", {"uniform", "adaptive"}, out.counts);
  part.choice("merge-features", {"outputs", "logits", "weights"}, out.features);
  if (out.features == "weights") out.checkpoint = checkpoint.string();
  part.choice("linkage", {"average", "complete", "single", "ward"}, out.linkage);
  out.group_size = number_or_text(part.fields(), "group-size");
  part.choice("router", {"centroid", "map", "duplicate"}, out.router);
  part.choice("merge-align", {"weights", "activations", "none"}, out.align);
}

void read_plan_part(Part& part, const fs::path& checkpoint, PlanFlags& out) {
  read_merging(part, checkpoint, out.merge);
  if (out.merge.empty() || part.fields().has("method")) {
    out.score.method = part.fields().text("method");
    find_scoring_method(out.score.method);
  }
  part.choice("variant", {"executed", "official"}, out.score.variant);
  part.choice("library-version", {"4.56", "4.51"}, out.score.library);
  part.integer("seed", 0, out.score.seed);
  out.score.tasks = part.texts("task", false);
  out.keep = number_or_text(part.fields(), "keep");
  part.text("expert-method", out.expert_method);
  out.keep_atoms = number_or_text(part.fields(), "keep-atoms");
  out.budget_bytes = number_or_text(part.fields(), "budget-bytes");
  out.budget_flops = number_or_text(part.fields(), "budget-flops");
  part.choice("scope", {"global", "layer", "expert"}, out.scope);
  out.align = number_or_text(part.fields(), "align");
  out.atom_blocks = number_or_text(part.fields(), "atom-blocks");
  out.protect = part.texts("protect", false);
  part.flag("regroup", out.regroup);
  part.flag("correct-drift", out.correct_drift);
  part.fields().finish();
  out.check();
}

void read_evaluate(Part& part, EvaluateFlags& out) {
  part.tasks(out.task);
  part.run(out.run);
  part.flag("exact-match", out.exact_match);
  part.integer("max-new-tokens", 1, out.max_new_tokens);
  part.integer("batch", 1, out.batch);
  part.fields().finish();
}

/// What a plan that merges needs is measured in the same run.
void check_vectors(const Recipe& recipe, const Part& calibrate) {
  if (recipe.plan.merge.empty()) return;
  const MergeRequest request = recipe.plan.merge.request(recipe.plan.score);
  const CalibrateFlags& flags = recipe.calibrate;
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

}  // namespace

Recipe Recipe::read(const fs::path& file) {
  const auto json = read_json_file(file, /*comments=*/true);
  Part root(json, file, "");
  Recipe recipe;
  if (root.fields().has("$schema")) root.fields().text("$schema");
  recipe.checkpoint = root.path("checkpoint");
  recipe.output = root.path("output");
  Part calibrate(root.fields().object("calibrate"), file, "calibrate");
  read_calibrate(calibrate, recipe.calibrate);
  Part plan(root.fields().object("plan"), file, "plan");
  read_plan_part(plan, recipe.checkpoint, recipe.plan);
  if (recipe.plan.needs_second_order() && !recipe.calibrate.wants("second-order")) {
    calibrate.fields().fail("statistics", "expected \"second-order\" among them, which the plan's methods need");
  }
  check_vectors(recipe, calibrate);
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
