// Options of the programs were read from vLLM 0.33.0 (engine/arg_utils.py), SGLang 0.5.23 (srt/arg_groups/fields), lm-eval 0.4.13
// (_cli/run.py, models/vllm_causallms.py, models/huggingface.py) and llama.cpp v0.5.0 (common/arg.cpp).

#include "export/follow_ups.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "export/base_model.h"
#include "export/plain_text.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/runtimes.h"

namespace moetrim::export_detail {

namespace {

namespace fs = std::filesystem;

ServedModel served(const FollowUps& of) {
  ServedModel out = served_model(of.model, of.plan, of.mtp);
  if (of.listed) out.listed_widths = true;
  if (of.dequantised) out.quant = ServedQuantisation{.name = "bf16", .scheme = QuantScheme::none, .block = 1};
  return out;
}

/// Of 1, 2, 4, 8 and 16 ranks those with which no rule refuses the model.
std::vector<int> legal_ranks(const ServedModel& model, const std::string& runtime, bool experts) {
  std::vector<int> legal;
  for (const int ranks : {1, 2, 4, 8, 16}) {
    const std::string target = fmt::format("{},tp={}{}", runtime, ranks, experts ? fmt::format(",ep={}", ranks) : "");
    if (!check_runtime(model, parse_runtime(target)).refused()) legal.push_back(ranks);
  }
  return legal;
}

/// "; --tensor-parallel-size 1, 2 or 4; --tensor-parallel-size 8 with --enable-expert-parallel".
std::string ranks_comment(const ServedModel& model, const std::string& runtime, std::string_view option, std::string_view with_experts) {
  const auto joined = [](const std::vector<int>& ranks) {
    const std::string last = std::to_string(ranks.back());
    return ranks.size() == 1 ? last : fmt::format("{} or {}", fmt::join(ranks.begin(), ranks.end() - 1, ", "), last);
  };
  const std::vector<int> alone = legal_ranks(model, runtime, false);
  std::vector<int> more;
  for (const int ranks : legal_ranks(model, runtime, true)) {
    if (std::find(alone.begin(), alone.end(), ranks) == alone.end()) more.push_back(ranks);
  }
  std::string out = alone.empty() ? "" : fmt::format("; {} {}", option, joined(alone));
  if (!more.empty()) out += fmt::format("; {} {} {}", option, joined(more), with_experts);
  return out;
}

/// A runtime's commands, or why there are none.
struct Service {
  std::string name;      ///< "vLLM 0.33.0"
  RuntimeCheck check;
  std::string commands;  ///< empty: none, whatever the rules say

  /// Findings come in the order of their severity.
  bool works() const {
    const bool exact = check.findings.empty() || check.findings.front().severity == RuleSeverity::slower;
    return exact && !commands.empty();
  }
};

std::string gguf_type(const Model& model) {
  for (const LayerTensors& layer : model.layer) {
    if (!layer.sparse || !model.quantisation.method.empty()) continue;
    const Weight& weight = layer.fused() ? layer[Role::fused_gate_up] : layer.experts.front().front();
    if (weight.values()->dtype == Dtype::f32) return "f32";
    return weight.values()->dtype == Dtype::f16 ? "f16" : "bf16";
  }
  return "bf16";
}

std::string gguf_commands(const FollowUps& of) {
  if (!of.values_known()) return {};
  return fmt::format("\nmoetrim export FOLDER --format gguf --dtype {} -o model.gguf\nllama-server -m model.gguf\n", gguf_type(of.model));
}

std::array<Service, 3> services(const FollowUps& of) {
  const ServedModel model = served(of);
  const auto service = [&](const char* name, const char* target, std::string commands) {
    const RuntimeTarget parsed = parse_runtime(target);
    return Service{fmt::format("{} {}", name, parsed.version()), check_runtime(model, parsed), std::move(commands)};
  };
  const char* code = of.tokenizer.own_code ? " --trust-remote-code" : "";
  return {service("vLLM", "vllm",
                  fmt::format("{}\nvllm serve FOLDER{}\n", ranks_comment(model, "vllm", "--tensor-parallel-size", "with --enable-expert-parallel"), code)),
          service("SGLang", "sglang",
                  fmt::format("{}\npython -m sglang.launch_server --model-path FOLDER{}\n",
                              ranks_comment(model, "sglang", "--tp-size", "and as many with --ep-size"), code)),
          service("llama.cpp", "llama.cpp", gguf_commands(of))};
}

std::string serve(const std::array<Service, 3>& services) {
  std::string commands, notes;
  for (const Service& service : services) {
    if (service.works()) commands += fmt::format("# {}{}", service.name, service.commands);
    for (const RuntimeFinding& finding : service.check.findings) {
      if (finding.severity == RuleSeverity::slower) continue;
      notes += fmt::format("- {} does not take it: {}; {}.\n", service.name, plain(finding.text, 400), finding.why);
    }
  }
  std::string out = "## Serve\n\n";
  if (!commands.empty()) out += fmt::format("```sh\n{}```\n\n", commands);
  if (!notes.empty()) out += notes + "\n";
  return out + "What runtimes take is by the rules of `moetrim check`, which were read from the source of these versions; they were not "
               "run with this checkpoint.\n\n";
}

/// The model arguments of lm-eval.
std::string arguments(const FollowUps& of, bool vllm, const std::string& name, bool own_code) {
  constexpr int kTokens = 4096;  // of the tasks below, with their examples and answers
  std::string out = "pretrained=" + name + (vllm ? "" : ",dtype=auto");
  if (vllm && of.model.rope.max_positions > kTokens) out += fmt::format(",max_model_len={}", kTokens);
  return out + (own_code ? ",trust_remote_code=True" : "");
}

std::string evaluate(const FollowUps& of, bool vllm) {
  const std::string known = base_model(*of.model.checkpoint);
  const bool sources_code = of.runs_code() && !of.listed;
  const std::string more = fmt::format("--tasks gsm8k,mmlu{} --batch_size auto --output_path", of.tokenizer.chat_template ? " --apply_chat_template" : "");
  const auto line = [&](const std::string& name, bool own_code, const char* results) {
    return fmt::format("lm_eval --model {} --model_args {} {} {}\n", vllm ? "vllm" : "hf", arguments(of, vllm, name, own_code), more, results);
  };
  return "## Evaluate\n\nAgainst the source, whose folder is BASE:\n\n```sh\n# lm-eval 0.4.13\n" +
         line("FOLDER", of.runs_code() || of.tokenizer.own_code, "results/pruned") +
         line(known.find('/') == known.npos ? "BASE" : known, sources_code || of.tokenizer.own_code, "results/source") +
         (of.values_known() ? "# loss, KL and agreement on tasks of your own, a demonstration a line\n"
                              "moetrim evaluate FOLDER --against BASE --task TASK.jsonl\n"
                            : "") +
         "```\n\n";
}

}  // namespace

TokenizerFacts tokenizer_facts(const Checkpoint& source) {
  const auto there = [&](const char* name) {
    std::error_code problem;
    return fs::is_regular_file(source.folder() / name, problem);
  };
  TokenizerFacts facts{.own_code = false, .chat_template = there("chat_template.jinja") || there("chat_template.json")};
  if (!there("tokenizer_config.json")) return facts;
  try {
    const auto config = read_json_file(source.folder() / "tokenizer_config.json");
    facts.own_code = config.contains("auto_map");
    facts.chat_template = facts.chat_template || config.contains("chat_template");
  } catch (const InvalidInput&) {
  }
  return facts;
}

bool FollowUps::values_known() const { return dequantised || model.quantisation.obstacle.empty(); }

bool FollowUps::runs_code() const {
  return listed || check_runtime(served(*this), parse_runtime("transformers")).refused();
}

std::string FollowUps::text() const {
  const auto runtimes = services(*this);
  return serve(runtimes) + evaluate(*this, runtimes.front().works());
}

}  // namespace moetrim::export_detail
