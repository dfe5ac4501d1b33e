// Plans in the forms of other tools: what is written, that it comes back, and what a broken file says.
#include "testing.h"

#include <functional>

#include "moetrim/error.h"
#include "moetrim/plan_exchange.h"
#include "moetrim/scores_file.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;
using Catch::Matchers::Contains;

namespace {

struct Source {
  TempFolder folder;
  Checkpoint checkpoint;
  Model model;

  explicit Source(const TinyModel& tiny = {}, const std::function<void(nlohmann::ordered_json&)>& edit = {})
      : checkpoint(made(folder, tiny, edit)), model(describe(checkpoint)) {}

  static Checkpoint made(const TempFolder& folder, const TinyModel& tiny, const std::function<void(nlohmann::ordered_json&)>& edit) {
    write_tiny_checkpoint(folder / "m", tiny);
    auto config = tiny::config(tiny);
    if (edit) edit(config);
    write_text(folder / "m/config.json", config.dump());
    return Checkpoint::open(folder / "m");
  }

  Plan import(const std::string& text, PlanForm form, const ImportOptions& options = {}) const {
    write_text(folder / "file", text);
    return import_plan(model, folder / "file", form, options);
  }
};

/// Of two layers with seven experts.
Scores scores_of(const Plan& plan) {
  Scores scores;
  scores.method = "by-hand";
  scores.variant = "executed";
  scores.layers = {0, 1};
  scores.values = {{1, 5, 3, 5, 0, 2, 9}, {0.5, 0, 0, 2, 0, 0, -1}};
  scores.source = {{"checkpoint_fingerprint", plan.checkpoint_fingerprint}};
  return scores;
}

std::string refusal(const std::function<void()>& act) {
  try {
    act();
  } catch (const UsageError& error) {
    return std::string("usage: ") + error.what();
  } catch (const InvalidInput& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("a plan in the forms of other tools", "[plan]") {
  const Source source;
  const Plan plan = plan_keeping(source.model, {{0, 3, 6}, {1, 2, 5}});
  const Scores scores = scores_of(plan);
  // Kept experts by score, ties to the lower id; then the others.
  CHECK(export_plan(plan, PlanForm::vllm_ascend, &scores) == "{\"0\":[6,3,0,1,2,5,4]}\n{\"1\":[1,2,5,3,0,4,6]}\n");
  CHECK(nlohmann::json::parse(export_plan(plan, PlanForm::profile)) ==
        nlohmann::json::parse(R"({"version": 1, "pruned_experts": [[0,1],[0,2],[0,4],[0,5],[1,0],[1,3],[1,4],[1,6]]})"));
  CHECK(nlohmann::json::parse(export_plan(plan, PlanForm::llm_compressor)) ==
        nlohmann::json::parse(R"({"model.layers.0.mlp": [0,3,6], "model.layers.1.mlp": [1,2,5]})"));
}

TEST_CASE("every form comes back as the plan that was written", "[plan]") {
  const Source source;
  const Plan plan = plan_keeping(source.model, {{0, 3, 6}, {1, 2, 5}});
  const Scores scores = scores_of(plan);
  for (const PlanForm form : {PlanForm::vllm_ascend, PlanForm::profile, PlanForm::llm_compressor}) {
    CAPTURE(plan_form_name(form));
    const bool ranked = form == PlanForm::vllm_ascend;
    const ImportOptions options{.expert_prune_ratio = ranked ? std::optional(expert_prune_ratio(plan)) : std::nullopt};
    Plan back = source.import(export_plan(plan, form, ranked ? &scores : nullptr), form, options);
    CHECK(back.method == "imported");
    CHECK(back.source["imported"]["form"] == plan_form_name(form));
    CHECK(back.source["imported"]["file"] == "file");
    CHECK(back.source["imported"]["digest"].get<std::string>().size() == 32);
    back.method = plan.method;
    back.source = plan.source;
    CHECK(plan_to_json(back) == plan_to_json(plan));
    write_plan(source.folder / "plan.json", back);  // which reads it again
  }
}

TEST_CASE("the prune ratio keeps exactly as many experts as the plan, for every number", "[plan]") {
  for (const int experts : {60, 64, 128, 160, 384}) {
    for (int keep = 1; keep <= experts; ++keep) {
      Plan plan;
      plan.experts = experts;
      plan.keep = keep;
      const double ratio = expert_prune_ratio(plan);
      if (!(ratio >= 0 && ratio < 1) || kept_at_prune_ratio(experts, ratio) != keep) FAIL_CHECK(experts << " " << keep << " " << ratio);
    }
  }
  CHECK(kept_at_prune_ratio(60, 35.0 / 60) == 24);  // why the obvious ratio does not do
}

TEST_CASE("layers that keep other numbers come back only where that is wanted", "[plan]") {
  const Source source;
  const std::string uneven = R"({"version": 1, "model": "x", "pruned_experts": [[0, 1], [0, 2]]})";
  CHECK_THAT(refusal([&] { source.import(uneven, PlanForm::profile); }), Contains("layer 0 keeps 5 experts and layer 1 7") && Contains("--by-layer"));
  const Plan plan = source.import(uneven, PlanForm::profile, {.expert_prune_ratio = {}, .by_layer = true});
  CHECK((plan.counts == LayerCounts::listed && plan.keep == 7 && plan.layers[0].keep == std::vector<int>{0, 3, 4, 5, 6}));
  CHECK(nlohmann::json::parse(export_plan(plan, PlanForm::profile))["pruned_experts"].size() == 2);
  const Scores scores = scores_of(plan);
  CHECK_THAT(refusal([&] { export_plan(plan, PlanForm::vllm_ascend, &scores); }), Contains("5 to 7 experts, by layer"));
}

TEST_CASE("broken files of other tools are refused by what is wrong with them", "[plan]") {
  const Source source;  // 7 experts, 2 a token, layers 0 and 1
  struct Broken {
    PlanForm form;
    const char* text;
    const char* expected;
  };
  using enum PlanForm;
  const Broken kBroken[] = {
      {vllm_ascend, "", "it names no layer"},
      {vllm_ascend, "{\"0\":[0,1,2]}\n", "MoE layer 1 is missing"},
      {vllm_ascend, "{\"0\":[0,1,2]}\n{\"0\":[0,1,2]}\n", "layer 0 is there twice"},
      {vllm_ascend, "\n{\"0\":[0,1,2],\"1\":[0,1,2]}\n", "line 2: expected an object with one layer"},
      {vllm_ascend, "[0,1,2]\n", "line 1: expected an object"},
      {vllm_ascend, "{\"layer0\":[0,1,2]}\n", "expected a layer id, got \"layer0\""},
      {vllm_ascend, "{\"-1\":[0,1,2]}\n", "expected a layer id"},
      {vllm_ascend, "{\"00\":[0,1,2]}\n", "expected a layer id"},
      {vllm_ascend, "{\"0\":[0,1,1,2]}\n", "layer 0 names expert 1 twice"},
      {vllm_ascend, "{\"0\":[0,1]}\n", "ranks 2 experts, and 3 are to stay"},
      {vllm_ascend, "{\"0\":[0,1,7]}\n", "0[2]: expected an integer from 0 to 6, got 7"},
      {vllm_ascend, "{\"0\":[0,1,\"2\"]}\n", "0[2]: expected an integer"},
      {vllm_ascend, "{\"0\":[0,1,2]}\n{\"9\":[0,1,2]}\n", "layer 9 is no MoE layer"},
      {vllm_ascend, "{\"0\":[0,1,2]\n", "line 1: not valid JSON"},
      {profile, "[]", "expected an object"},
      {profile, R"({"pruned_experts": []})", "version: is missing"},
      {profile, R"({"version": 2, "routing_mode": "post_topk_drop", "pruned_experts": []})", "version: expected an integer from 1 to 1"},
      {profile, R"({"version": 1, "routing_mode": "post_topk_drop", "pruned_experts": []})", "unknown field \"routing_mode\""},
      {profile, R"({"version": 1, "pruned_experts": [[0]]})", "pruned_experts[0]: expected [layer, expert]"},
      {profile, R"({"version": 1, "pruned_experts": [[0, 1], [0, 7]]})", "pruned_experts[1].expert"},
      {profile, R"({"version": 1, "pruned_experts": [[0, 1], [0, 1]]})", "layer 0 names expert 1 twice"},
      {profile, R"({"version": 1, "pruned_experts": [[2, 1]]})", "layer 2 is no MoE layer"},
      {profile, R"({"version": 1, "pruned_experts": [[0,0],[0,1],[0,2],[0,3],[0,4],[0,5]]})", "layer 0 keeps 1 experts, which does not work"},
      {llm_compressor, R"({"model.layers.0.mlp": [0,1,2]})", "MoE layer 1 is missing"},
      {llm_compressor, R"({"model.layers.0.mlp": [0,1,2], "model.language_model.layers.0.mlp": [0,1,2]})", "layer 0 is there twice"},
      {llm_compressor, R"({"lm_head": [0,1,2]})", "\"lm_head\" is no module of a decoder layer"},
      {llm_compressor, R"({"mtp.layers.0.mlp": [0,1,2]})", "is no module of a decoder layer"},
      {llm_compressor, R"({"model.layers.0.mlp": {"0": 1}})", "expected an array"},
      {llm_compressor, R"({"model.layers.0.mlp": [0, 1.5]})", "model.layers.0.mlp[1]"},
      {llm_compressor, R"({"model.layers.0.mlp": [], "model.layers.1.mlp": []})", "layer 0 keeps 0 experts"},
      {llm_compressor, R"({"a": 1, "a": 2})", "appears twice"},
  };
  for (const Broken& broken : kBroken) {
    CAPTURE(broken.text);
    const ImportOptions options{.expert_prune_ratio = broken.form == vllm_ascend ? std::optional(0.5) : std::nullopt};
    CHECK_THAT(refusal([&] { source.import(broken.text, broken.form, options); }), Contains(broken.expected));
  }
  CHECK_THAT(refusal([&] { source.import("{}", vllm_ascend); }), Contains("usage:"));
  CHECK_THAT(refusal([&] { source.import("{}", profile, {.expert_prune_ratio = 0.5}); }), Contains("usage:"));
  for (const double ratio : {-0.1, 1.0, std::nan("")}) {
    CHECK_THAT(refusal([&] { source.import("{}", vllm_ascend, {.expert_prune_ratio = ratio}); }), Contains("usage:"));
  }
}

TEST_CASE("an imported plan keeps the router's groups alike", "[plan]") {
  const Source source({.family = "deepseek_v3", .experts = 6}, [](auto& config) {
    config["n_group"] = 3;
    config["topk_group"] = 1;
  });
  const auto report = [&](const std::string& first) {
    return source.import(R"({"model.layers.0.mlp": )" + first + R"(, "model.layers.1.mlp": [0,1,2,3,4,5]})", PlanForm::llm_compressor,
                         {.expert_prune_ratio = {}, .by_layer = true});
  };
  CHECK(report("[5,4,3,2,1,0]").groups.count == 3);
  CHECK_THAT(refusal([&] { report("[0,1,2]"); }), Contains("layer 0 keeps 3 experts, which does not work"));
}

TEST_CASE("what such files cannot say is not written", "[plan]") {
  const Source source;
  const auto refused = [&](const std::function<void(Plan&)>& edit) {
    Plan plan = plan_keeping(source.model, {{0, 3, 6}});
    edit(plan);
    return refusal([&] { export_plan(plan, PlanForm::profile); });
  };
  CHECK(refused([](Plan&) {}) == "accepted");
  CHECK_THAT(refused([](Plan& p) { p.layers[0].merge = {{0, {0, 1}, {0.5, 0.5}}}; }), Contains("merges experts"));
  CHECK_THAT(refused([](Plan& p) { p.width = 5; }), Contains("chooses atomic experts"));
  CHECK_THAT(refused([](Plan& p) { p.regroup = true; }), Contains("groups"));
  CHECK_THAT(refused([](Plan& p) { p.order = SlotOrder::free; }), Contains("an order of its own"));
  CHECK_THAT(refused([](Plan& p) { p.correct_drift = true; }), Contains("scales the gates"));
  CHECK_THAT(refused([](Plan& p) { p.layers[0].scale = {{3, 2.0}}; }), Contains("scales experts"));

  const Plan plan = plan_keeping(source.model, {{0, 3, 6}});
  CHECK_THAT(refusal([&] { export_plan(plan, PlanForm::vllm_ascend); }), Contains("usage:") && Contains("scores"));
  Scores scores = scores_of(plan);
  CHECK_THAT(refusal([&] { export_plan(plan, PlanForm::profile, &scores); }), Contains("needs no scores"));
  scores.values[1].pop_back();
  CHECK_THAT(refusal([&] { export_plan(plan, PlanForm::vllm_ascend, &scores); }), Contains("layer 1 has 6 of 7 experts"));
  scores.source = {};
  CHECK_THAT(refusal([&] { export_plan(plan, PlanForm::vllm_ascend, &scores); }), Contains("fingerprint"));
}

TEST_CASE("scores of experts are read as they were written", "[plan]") {
  const TempFolder folder;
  Scores scores = scores_of({});
  write_scores(folder / "scores", scores);
  const Scores back = read_expert_scores(folder / "scores");
  CHECK((back.values == scores.values && back.layers == scores.layers && back.method == "by-hand" && back.source == scores.source));
  scores.values[1][2] = std::numeric_limits<double>::infinity();
  write_scores(folder / "scores", scores);
  CHECK_THAT(refusal([&] { read_expert_scores(folder / "scores"); }), Contains("a score of layer 1 is not finite"));
  scores.grain = Grain::atom;
  scores.width = 7;
  write_scores(folder / "scores", scores);
  CHECK_THAT(refusal([&] { read_expert_scores(folder / "scores"); }), Contains("atomic experts"));
}
