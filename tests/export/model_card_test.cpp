// The model card.

#include "testing.h"

#include "moetrim/export.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;
using Catch::Matchers::Contains;

namespace {

std::string card(const TempFolder& folder, const TinyModel& tiny, const std::string& name_or_path, const std::string& readme,
                 const std::function<void(Plan&)>& edit = [](Plan&) {}) {
  write_tiny_checkpoint(folder / "tiny model", tiny);
  auto config = tiny::config(tiny);
  if (!name_or_path.empty()) config["_name_or_path"] = name_or_path;
  write_text(folder / "tiny model/config.json", config.dump());
  if (!readme.empty()) write_text(folder / "tiny model/README.md", readme);
  const Checkpoint source = Checkpoint::open(folder / "tiny model");
  const Model model = describe(source);
  Plan plan = plan_keeping(model, {{0, 1, 2}});
  edit(plan);
  return prepare_export(model, plan, "1.2.3").card;
}

}  // namespace

TEST_CASE("the card says what was removed, by which method, on which tasks", "[export]") {
  TempFolder folder;
  const std::string text = card(folder, {}, "org/Tiny-7x", "", [](Plan& plan) {
    plan.method = "easy-ep";
    plan.layers[0].unseen = 3;
    plan.layers[0].unseen_kept = 1;
    plan.protect.push_back({0, 1, "super"});
    plan.source["tasks"] = {{{"name", "gsm|8k"}, {"counted_tokens", 1234}, {"weight", 1.5}}, "plain"};
  });
  for (const char* part : {"base_model: org/Tiny-7x\n", "library_name: transformers\n", "- moetrim\n",
                           "| experts per MoE layer | 7 | 3 |", "Method: easy-ep (executed routing)",
                           "- gsm 8k, counted tokens: 1234, weight: 1.5", "- plain\n", "3 of 14 experts were reached by no",
                           "1 of them are kept", "Protected experts: 1 (super)", "vllm serve", "AutoModelForCausalLM",
                           "expected to fall", "moetrim 1.2.3"}) {
    CHECK_THAT(text, Contains(part));
  }
  CHECK(text.find("Router drift") == std::string::npos);
}

TEST_CASE("the card says what a plan does to experts that stay", "[export]") {
  TempFolder folder;
  const std::string repeated = card(folder, {}, "org/Tiny-7x", "", [](Plan& plan) {
    plan.order = SlotOrder::free;
    plan.keep = 8;
    for (PlanLayer& layer : plan.layers) layer.keep = {0, 1, 2, 3, 4, 5, 6, 6};
  });
  CHECK_THAT(repeated, Contains("were repeated") && Contains("compete") && Contains("trained further") && !Contains("expected to fall"));
  const std::string scaled = card(folder, {}, "org/Tiny-7x", "", [](Plan& plan) {
    plan.keep = 7;
    for (PlanLayer& layer : plan.layers) layer.keep = {0, 1, 2, 3, 4, 5, 6};
    plan.layers[0].scale = {{1, 2.0}};
  });
  CHECK_THAT(scaled, Contains("The outputs of 1 experts are multiplied") && !Contains("were removed") && !Contains("expected to fall"));
}

TEST_CASE("the card has commands for the checkpoint it belongs to", "[export]") {
  TempFolder folder;
  const std::string plain = card(folder, {}, "org/Tiny-7x", "");
  CHECK_THAT(plain, Contains("--tensor-parallel-size 1\nvllm serve FOLDER\n") &&
                        Contains("python -m sglang.launch_server --model-path FOLDER\n") &&
                        Contains("moetrim export FOLDER --format gguf --dtype bf16 -o model.gguf\nllama-server -m model.gguf\n") &&
                        Contains("lm_eval --model vllm --model_args pretrained=FOLDER --tasks gsm8k,mmlu --batch_size auto") &&
                        Contains("pretrained=org/Tiny-7x --tasks") && !Contains("chat_template") && !Contains("trust") &&
                        Contains("moetrim evaluate FOLDER --against BASE --task"));
  const std::string listed = card(folder, {}, "org/Tiny-7x", "", [](Plan& plan) {
    plan.counts = LayerCounts::listed;
    plan.layers[1].keep = {3, 4};
  });
  CHECK_THAT(listed, !Contains("vllm serve") && !Contains("sglang.launch") && !Contains("llama-server") &&
                         Contains("- vLLM 0.33.0 does not take it: ") && Contains("- llama.cpp 0.5.0 does not take it: ") &&
                         Contains("lm_eval --model hf --model_args pretrained=FOLDER,dtype=auto,trust_remote_code=True --tasks") &&
                         Contains("lm_eval --model hf --model_args pretrained=org/Tiny-7x,dtype=auto --tasks"));
}

TEST_CASE("the card says where the source's own code is needed", "[export]") {
  TempFolder folder;
  const std::string text = card(folder, {.family = "PanguProMoE", .experts = 6, .experts_per_token = 2}, "org/Pangu", "");
  CHECK_THAT(text, Contains("came with the source") && Contains("from_pretrained(\"FOLDER\", trust_remote_code=True, dtype") &&
                       Contains("pretrained=org/Pangu,dtype=auto,trust_remote_code=True") && !Contains("vllm serve"));
}

TEST_CASE("the card has no commands of ours for weights whose values nobody can compute", "[export]") {
  TempFolder folder;
  write_tiny_checkpoint(folder / "m", {});
  const Checkpoint source = Checkpoint::open(folder / "m");
  Model model = describe(source);
  const Plan plan = plan_keeping(model, {{0, 1, 2}});
  model.quantisation.obstacle = "a transform rotates activations";
  CHECK_THAT(model_card(model, plan, {}, {}, "1.2.3"), Contains("vllm serve") && !Contains("moetrim e") && !Contains("llama-server"));
}

TEST_CASE("the card offers no runtime that computes something else", "[export]") {
  TempFolder folder;
  const TinyModel tiny{.family = "deepseek_v2", .experts = 6};
  write_tiny_checkpoint(folder / "m", tiny);
  auto config = tiny::config(tiny);
  for (const auto& [key, value] : {std::pair("n_group", 3), std::pair("topk_group", 2)}) config[key] = value;
  config["topk_method"] = "group_limited_greedy";
  write_text(folder / "m/config.json", config.dump());
  const Checkpoint source = Checkpoint::open(folder / "m");
  const Model model = describe(source);
  Plan plan = plan_keeping(model, {{0, 1, 2, 3, 4, 5}});
  plan.groups = {.count = 3, .chosen = 2, .rule = "max"};
  CHECK_THAT(model_card(model, plan, {}, {}, "1.2.3"),
             Contains("vllm serve") && !Contains("llama-server") && Contains("- llama.cpp 0.5.0 does not take it: "));
}

TEST_CASE("the card's commands follow tokenizer, context and type", "[export]") {
  TempFolder folder;
  const TinyModel tiny{.dtype = Dtype::f32};
  write_tiny_checkpoint(folder / "m", tiny);
  auto config = tiny::config(tiny);
  config["max_position_embeddings"] = 32768;
  write_text(folder / "m/config.json", config.dump());
  const auto made = [&](const std::string& tokenizer) {
    write_text(folder / "m/tokenizer_config.json", tokenizer);
    const Checkpoint source = Checkpoint::open(folder / "m");
    const Model model = describe(source);
    return prepare_export(model, plan_keeping(model, {{0, 1, 2}}), "1.2.3").card;
  };
  CHECK_THAT(made(R"({"chat_template": "x", "auto_map": {"AutoTokenizer": ["a.A", null]}})"),
             Contains("vllm serve FOLDER --trust-remote-code\n") && Contains("--model-path FOLDER --trust-remote-code\n") &&
                 Contains("AutoTokenizer.from_pretrained(\"FOLDER\", trust_remote_code=True)") && Contains("--dtype f32") &&
                 Contains("pretrained=BASE,max_model_len=4096,trust_remote_code=True --tasks gsm8k,mmlu --apply_chat_template"));
  CHECK_THAT(made("no JSON"), Contains("vllm serve FOLDER\n") && !Contains("chat_template"));
}

TEST_CASE("the card says where an imported plan comes from", "[export]") {
  TempFolder folder;
  const std::string text = card(folder, {}, "", "", [](Plan& plan) {
    plan.source["imported"] = {{"form", "profile"}, {"file", "a|b.json"}, {"digest", "ab"}};
  });
  CHECK_THAT(text, Contains("the file a b.json of form profile (digest ab)") && !Contains("reached by no measured token"));
}

TEST_CASE("the card names no path of this machine", "[export]") {
  TempFolder folder;
  const std::string text = card(folder, {}, "/home/someone/models/x", "");
  CHECK(text.find("/home") == std::string::npos);
  CHECK(text.find(folder.path().string()) == std::string::npos);
  CHECK_THAT(text, Contains("base_model: tiny_model\n"));
}

TEST_CASE("the licence is inherited as plain scalars only", "[export]") {
  TempFolder folder;
  const std::string text = card(folder, {}, "", "---\nlicense: other\nlicense_name: a: {b\nlicense: mit\n---\nlicense_link: no\n");
  CHECK_THAT(text, Contains("license: other\nlibrary_name"));
}

TEST_CASE("the card warns of router drift", "[export]") {
  TempFolder folder;
  CHECK_THAT(card(folder, {.family = "qwen2_moe", .normalised = false}, "", ""), Contains("- Router drift"));
}
