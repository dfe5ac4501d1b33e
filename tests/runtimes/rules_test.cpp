// The rules of runtimes: each can refuse and can be kept; numbers by hand; the nearest legal ones by brute force.
#include "testing.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "given.h"
#include "moetrim/family.h"
#include "moetrim/gguf_architecture.h"
#include "moetrim/keep_counts.h"
#include "runtimes/rule.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

using Numbers = std::vector<std::int64_t>;

ServedModel served(std::string_view family, RouterLimits router, std::int64_t width) {
  ServedModel model;
  model.family = find_family(family);
  model.model_type = model.family->name;
  model.architecture = model.family->architectures.front();
  model.experts_before = router.experts;
  model.router = std::move(router);
  model.width = model.width_before = width;
  model.hidden = 4096;
  model.heads = model.key_value_heads = 64;
  model.shared_width = model.dense_width = 0;
  model.delta_key_heads = model.delta_value_heads = 64;
  model.mtp_follows = true;
  model.quant = ServedQuantisation{.name = "as stored"};
  return model;
}

ServedModel deepseek_v3() {
  ServedModel model = served(
      "deepseek_v3",
      {.experts = 256, .experts_per_token = 8, .groups = {.count = 8, .chosen = 4, .rule = "top2"}, .router = "sigmoid"},
      2048);
  model.heads = model.key_value_heads = 128;
  model.shared_width = 2048;
  model.shared_follows_width = true;
  model.dense_width = 18432;
  return model;
}

ServedModel qwen3_30b() {
  ServedModel model = served("qwen3_moe", {.experts = 128, .experts_per_token = 8}, 768);
  model.heads = 32;
  model.key_value_heads = 4;
  return model;
}

std::vector<std::string> rules_of(const ServedModel& model, std::string_view target, RuleSeverity severity) {
  std::vector<std::string> ids;
  for (const RuntimeFinding& found : check_runtime(model, parse_runtime(target)).findings) {
    if (found.severity == severity) ids.push_back(found.rule);
  }
  return ids;
}

std::vector<std::string> refusals(const ServedModel& model, std::string_view target) {
  return rules_of(model, target, RuleSeverity::refused);
}

std::vector<int> keeps(const ServedModel& model, std::string_view target) {
  return legal_keeps(model, std::vector{parse_runtime(target)});
}

std::string refusal(const ServedModel& model, std::string_view target) {
  return given::thrown_by([&] { require_runtime(check_runtime(model, parse_runtime(target))); });
}

}  // namespace

TEST_CASE("FP8 blocks and ranks: where vLLM refines scales, SGLang refuses", "[runtimes]") {
  // 768 / 4 = 192 and 768 / 8 = 96 are no multiples of 128, but of 32; 768 / 16 = 48 is not.
  CHECK(refusals(qwen3_30b(), "vllm,tp=4,quant=fp8").empty());
  CHECK(rules_of(qwen3_30b(), "vllm,tp=4,quant=fp8", RuleSeverity::slower).front() == "vllm.fp8-whole-blocks");
  CHECK(refusals(qwen3_30b(), "vllm,tp=16,quant=fp8") == std::vector<std::string>{"vllm.fp8-block"});
  CHECK(refusals(qwen3_30b(), "vllm,tp=4,quant=fp8-compressed") == std::vector<std::string>{"vllm.fp8-compressed-block"});
  CHECK(refusals(qwen3_30b(), "sglang,tp=2,quant=fp8").empty());
  CHECK(refusals(qwen3_30b(), "sglang,tp=4,quant=fp8") == std::vector<std::string>{"sglang.fp8-block"});
  const RuntimeCheck check = check_runtime(qwen3_30b(), parse_runtime("sglang,tp=4,quant=fp8"));
  CHECK(check.findings.front().nearest == Numbers{512});
  CHECK(check.findings.front().nearest_widths);
  // Whole experts on every rank are not split.
  CHECK(refusals(qwen3_30b(), "sglang,tp=4,ep=4,quant=fp8").empty());
  CHECK(refusals(qwen3_30b(), "vllm,tp=16,ep=16,quant=fp8").empty());
}

TEST_CASE("experts over ranks, and the nearest numbers that groups allow too", "[runtimes]") {
  CHECK(refusals(with_keep(deepseek_v3(), 184), "sglang,tp=16,ep=16") == std::vector<std::string>{"sglang.ep-even"});
  CHECK(check_runtime(with_keep(deepseek_v3(), 184), parse_runtime("sglang,tp=16,ep=16")).findings.front().nearest ==
        Numbers{176, 192});
  CHECK(refusals(with_keep(deepseek_v3(), 184), "vllm,tp=16,ep=16").empty());
  CHECK(refusals(with_keep(deepseek_v3(), 184), "vllm,tp=16,ep=16,eplb") == std::vector<std::string>{"vllm.eplb-even"});
  CHECK(refusals(with_keep(deepseek_v3(), 184), "vllm,tp=16,ep=16,eplb,redundant=8").empty());
  CHECK(refusals(deepseek_v3(), "vllm,tp=8,ep=4") == std::vector<std::string>{"vllm.ep-size"});
  CHECK(refusals(deepseek_v3(), "vllm,tp=8,ep=16,dp=2").empty());
  CHECK_THAT(refusal(with_keep(deepseek_v3(), 184), "sglang,tp=16,ep=16"),
             Contains("InvalidInput") && Contains("184") && Contains("sglang.ep-even") && Contains("0.5.23") &&
                 Contains("176 and 192"));
}

TEST_CASE("heads, groups and numbers in lists", "[runtimes]") {
  CHECK(refusals(qwen3_30b(), "vllm,tp=3").front() == "vllm.tp-heads");
  ServedModel few = qwen3_30b();
  few.key_value_heads = 6;  // 4 ranks can neither split nor copy six heads
  CHECK(refusals(few, "vllm,tp=4") == std::vector<std::string>{"vllm.tp-key-value-heads"});
  CHECK(refusals(few, "vllm,tp=2").empty());
  ServedModel odd = deepseek_v3();
  odd.router = {
      .experts = 10, .experts_per_token = 4, .groups = {.count = 4, .chosen = 2, .rule = "top2"}, .router = "sigmoid"};
  odd.experts_before = 10;
  CHECK(refusals(odd, "transformers") == std::vector<std::string>{"transformers.groups-divide"});
  CHECK(check_runtime(odd, parse_runtime("transformers")).findings.front().nearest == Numbers{8});
  ServedModel all_groups = deepseek_v3();
  all_groups.router.groups.chosen = 8;
  CHECK(refusals(all_groups, "llama.cpp").empty());
  all_groups.gguf_file = true;
  CHECK(refusals(all_groups, "llama.cpp") == std::vector<std::string>{"llama.cpp.groups-left-out"});
  ServedModel best = deepseek_v3();
  best.router.groups.rule = "max";
  CHECK(refusals(best, "llama.cpp") == std::vector<std::string>{"llama.cpp.group-score"});
  ServedModel many = qwen3_30b();
  many.router.experts = many.experts_before = 2000;
  CHECK(refusals(many, "llama.cpp") == std::vector<std::string>{"llama.cpp.most-experts"});
  CHECK(check_runtime(many, parse_runtime("llama.cpp")).findings.front().nearest == Numbers{1024});
  CHECK(rules_of(with_keep(deepseek_v3(), 192), "sglang", RuleSeverity::slower).front() == "sglang.fused-gate");
  CHECK(rules_of(deepseek_v3(), "sglang", RuleSeverity::slower).empty());
  CHECK(rules_of(qwen3_30b(), "llama.cpp,quant=Q4_K_M", RuleSeverity::slower).empty());
  CHECK(rules_of(with_width(qwen3_30b(), 640), "llama.cpp,quant=q4_k_m", RuleSeverity::slower) ==
        std::vector<std::string>{"llama.cpp.block"});
  CHECK(rules_of(with_width(qwen3_30b(), 672), "mlx,quant=affine,group=32", RuleSeverity::slower).empty());
}

TEST_CASE("what only our own code reads", "[runtimes]") {
  ServedModel listed = qwen3_30b();
  listed.listed_counts = true;
  for (const RuntimeRules* rules : runtimes()) {
    const std::string name(runtime_name(*rules));
    CHECK(refusals(listed, name) == std::vector<std::string>{name + ".one-count"});
  }
  CHECK(refusals(listed, "transformers,trust_remote_code").empty());
}

TEST_CASE("draft blocks have the layers' number of experts", "[runtimes]") {
  ServedModel model = with_keep(deepseek_v3(), 128);
  CHECK(refusals(model, "vllm,mtp") == std::vector<std::string>{"vllm.mtp-blocks"});
  model.mtp_layers = 1;
  model.mtp_experts = 256;
  CHECK(refusals(model, "vllm,mtp") == std::vector<std::string>{"vllm.mtp-experts"});
  CHECK(refusals(model, "vllm").empty());
  CHECK(refusals(with_keep(model, 128), "sglang,mtp").empty());
}

TEST_CASE("what is not known is not judged", "[runtimes]") {
  ServedModel model = qwen3_30b();
  model.heads.reset();
  model.quant.reset();
  const RuntimeCheck check = check_runtime(model, parse_runtime("vllm,tp=3"));
  CHECK(std::count(check.unchecked.begin(), check.unchecked.end(), "vllm.tp-heads") == 1);
  CHECK(std::count(check.unchecked.begin(), check.unchecked.end(), "vllm.fp8-block") == 1);
  CHECK(check_runtime(model, parse_runtime("vllm,tp=3,quant=bf16")).unchecked == std::vector<std::string>{"vllm.tp-heads"});
}

TEST_CASE("legal numbers are those that nothing refuses, and the nearest are the nearest of them", "[runtimes]") {
  const char* targets[] = {
      "vllm", "vllm,tp=8,ep=8,eplb", "sglang,tp=4,ep=4", "sglang,tp=6,ep=6", "llama.cpp", "transformers,ep=4", "mlx"};
  for (ServedModel model : {deepseek_v3(), qwen3_30b()}) {
    model.heads = model.key_value_heads = 96;
    model.shared_width = model.dense_width = 0;
    const auto by_router =
        keep_counts({.experts = model.experts_before, .experts_per_token = 8, .groups = model.router.groups}, false);
    for (const char* target : targets) {
      CAPTURE(target);
      Numbers expected;
      for (const int keep : by_router) {
        if (refusals(with_keep(model, keep), target).empty()) expected.push_back(keep);
      }
      const auto found = keeps(model, target);
      REQUIRE(Numbers(found.begin(), found.end()) == expected);
      for (const int keep : by_router) {
        const RuntimeCheck check = check_runtime(with_keep(model, keep), parse_runtime(target));
        if (!check.refused()) continue;
        Numbers nearest;
        for (const std::int64_t legal : expected) {
          if (legal < keep && (nearest.empty() || nearest.back() < keep)) nearest = {legal};
        }
        for (const std::int64_t legal : expected) {
          if (legal > keep) {
            nearest.push_back(legal);
            break;
          }
        }
        REQUIRE(check.findings.front().nearest == nearest);
      }
    }
  }
}

TEST_CASE("legal widths are those that nothing refuses", "[runtimes]") {
  for (const char* target : {"vllm,tp=2,quant=fp8", "sglang,tp=2,quant=fp8", "vllm,tp=2,quant=int4,group=64", "vllm,tp=4"}) {
    CAPTURE(target);
    Numbers expected;
    for (std::int64_t width = 1; width <= 2048; ++width) {  // the shared expert is made as wide as some of them
      if (refusals(with_width(deepseek_v3(), width), target).empty()) expected.push_back(width);
    }
    REQUIRE_FALSE(expected.empty());
    CHECK(legal_widths(deepseek_v3(), std::vector{parse_runtime(target)}) == expected);
  }
  CHECK(with_width(deepseek_v3(), 768).shared_width == 2304);
}

TEST_CASE("a ratio goes to the nearest number that all targets take, half up", "[runtimes]") {
  const std::vector targets{parse_runtime("sglang,tp=8,ep=8"), parse_runtime("sglang,tp=12,ep=12")};  // 24, 48, ...
  const auto keep = [&](const char* text) { return legal_keep(qwen3_30b(), targets, KeepBudget::parse(text)); };
  CHECK(keep("0.5") == 72);     // 64 lies between 48 and 72
  CHECK(keep("0.46875") == 72); // 60 is as near to 48
  CHECK(keep("0.4") == 48);
  CHECK(keep("0.01") == 24);
  CHECK(keep("96") == 96);
  CHECK_THAT(given::thrown_by([&] { keep("64"); }),
             Contains("InvalidInput") && Contains("sglang.ep-even") && Contains("48 and 72"));
  CHECK_THAT(given::thrown_by([&] { keep("4"); }), Contains("InvalidInput") && Contains("keep 4"));
}

TEST_CASE("targets", "[runtimes]") {
  const RuntimeTarget target = parse_runtime("vllm,tp=8,ep=8,quant=fp8");
  CHECK(target.tp == 8);
  CHECK(target.quant->block == 128);
  CHECK(parse_runtimes(std::vector<std::string>{"all"}).size() == runtimes().size());
  for (const char* bad :
       {"vlm", "vllm,tp", "vllm,tp=0", "vllm,tp=8x", "vllm,tp=2,tp=2", "vllm,quant=fp9", "llama.cpp,tp=2", "vllm,group=64",
        "vllm,quant=fp8,group=64", "vllm,eplb", "vllm,redundant=1", "vllm,eplb=1,ep=2", "", "vllm,"}) {
    CAPTURE(bad);
    CHECK_THAT(given::thrown_by([&] { parse_runtime(bad); }), Contains("UsageError") && Contains("--runtime"));
  }
  CHECK_THAT(given::thrown_by([&] { parse_runtime("sglan"); }), Contains("did you mean \"sglang\""));
}

TEST_CASE("rules are complete, and every family that llama.cpp has is among its rules", "[runtimes][every]") {
  std::set<std::string> ids;
  for (const RuntimeRules* rules : runtimes()) {
    for (const RuleText& rule : describe_rules(*rules)) {
      CAPTURE(rule.id);
      CHECK(ids.insert(rule.id).second);
      CHECK(rule.id.starts_with(std::string(runtime_name(*rules)) + "."));
      CHECK((!rule.why.empty() && !rule.source.empty() && !rule.demand.empty()));
    }
  }
  for (const GgufArchitecture& architecture : gguf_architectures()) {
    for (const std::string_view family : architecture.families) {
      CAPTURE(family);
      CHECK(refusals(served(family, {.experts = 8, .experts_per_token = 2}, 256), "llama.cpp").empty());
    }
  }
}

namespace {

/// Numbers at random, of models as they are and as they are not.
class Draws {
 public:
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return *(values.begin() + static_cast<std::ptrdiff_t>(random_() % values.size()));
  }

  ServedModel model() {
    const Family* family = families()[random_() % families().size()];
    const int groups = one_of({1, 1, 4, 8, 64});
    ServedModel out = served(family->name,
                             {.experts = one_of({1, 4, 10, 64, 96, 256, 2000}),
                              .experts_per_token = one_of({1, 4, 40}),
                              .groups = {.count = groups,
                                         .chosen = std::max(1, groups / one_of({1, 2})),
                                         .rule = one_of<const char*>({"top2", "max"})},
                              .router = one_of<const char*>({"softmax", "sigmoid"})},
                             one_of<std::int64_t>({24, 100, 768, 2048}));
    out.heads = one_of<std::int64_t>({5, 64});
    out.key_value_heads = one_of<std::int64_t>({3, 8});
    out.delta_key_heads = one_of<std::int64_t>({5, 16});
    out.delta_value_heads = one_of<std::int64_t>({5, 16});
    out.shared_width = one_of<std::int64_t>({100, 101, 2048});
    out.dense_width = one_of<std::int64_t>({100, 101, 2048});
    out.listed_counts = one_of({false, true});
    out.listed_widths = one_of({false, false, true});
    out.gguf_file = one_of({false, true});
    out.mtp_layers = one_of<std::int64_t>({0, 1, 2});
    out.mtp_experts = one_of<std::int64_t>({out.router.experts, 7});
    if (one_of({false, true})) out.architecture = out.model_type = "nothing";
    if (one_of({false, true})) out.architecture = "HunYuanMoEV1ForCausalLM";
    return out;
  }

  RuntimeTarget target(const RuntimeRules& rules) {
    RuntimeTarget out = parse_runtime(rules.name);
    if (!rules.quants.empty()) {
      const QuantName& quant = rules.quants[random_() % rules.quants.size()];
      out.quant = ServedQuantisation{.name = std::string(quant.name), .scheme = quant.scheme, .block = quant.block};
      if (quant.grouped && one_of({false, true})) out.quant->block = 48;
    }
    out.tp = one_of<std::int64_t>({1, 2, 8});
    out.ep = one_of<std::int64_t>({1, 2, 8});
    out.dp = one_of<std::int64_t>({1, 4});
    out.eplb = one_of({false, true});
    out.mtp = one_of({false, true});
    return out;
  }

 private:
  std::mt19937 random_{5};
};

}  // namespace

TEST_CASE("every rule can be broken, and kept where it applies", "[runtimes][every]") {
  Draws draws;
  std::map<std::string_view, std::pair<int, int>> seen;
  for (int draw = 0; draw < 6000; ++draw) {
    const ServedModel model = draws.model();
    for (const RuntimeRules* rules : runtimes()) {
      const RuntimeTarget target = draws.target(*rules);
      for (const Rule& rule : rules->rules) {
        auto& [broken, kept] = seen[rule.id];
        const Verdict verdict = judge(rule, model, target);
        broken += verdict == Verdict::broken;
        const bool applies =
            std::all_of(rule.when.begin(), rule.when.end(), [&](When when) { return holds(when, model, target); });
        kept += verdict == Verdict::kept && applies && fact_value(rule.fact, model, target).state == FactValue::State::known;
      }
    }
  }
  for (const auto& [id, counts] : seen) {
    CAPTURE(id, counts.first, counts.second);
    CHECK((counts.first > 0 && counts.second > 0));
  }
}
