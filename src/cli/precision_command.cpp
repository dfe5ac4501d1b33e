// moetrim precision: statistics and a budget of bits to a width for every expert.

#include <map>

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/precision.h"

namespace moetrim::cli {

namespace {

struct Flags {
  std::string statistics, output, llama_quantize, llm_compressor, gptqmodel;
  std::string scope = "layer", unit = "expert";
  double bits = 0;
  std::vector<int> levels = {1, 2, 3};
  std::vector<double> exponents = {1, 1.5, 1};

  PrecisionRequest request() const {
    PrecisionRequest out{.bits = bits, .levels = levels, .scope = precision_scope_from_name(scope),
                         .unit = precision_unit_from_name(unit)};
    if (exponents.size() != out.exponents.size()) {
      throw UsageError("--exponents: expected three numbers, for example 1,1.5,1");
    }
    std::copy(exponents.begin(), exponents.end(), out.exponents.begin());
    check_precision_request(out);
    if (!llama_quantize.empty() && out.unit != PrecisionUnit::layer) {
      throw UsageError("--llama-quantize: a GGUF file has one tensor for all experts of a layer; add --width-per layer "
                       "--scope global");
    }
    return out;
  }
};

std::string describe_precision(const PrecisionPlan& plan) {
  std::map<int, int> counts;
  for (const PrecisionLayer& layer : plan.layers) {
    for (const int bits : layer.bits) ++counts[bits];
  }
  std::string text = fmt::format("{:.4f} bits per weight of the experts on average:", plan.average);
  for (const auto& [bits, count] : counts) text += fmt::format(" {} of {} bit{}", count, bits, bits == 1 ? "" : "s");
  text += fmt::format("\nloss {:.6g}", plan.loss);
  for (std::size_t i = 0; i < plan.uniform.size(); ++i) {
    text += fmt::format("{} {:.6g} with {} bit{} for all", i == 0 ? ";" : ",", plan.uniform[i], plan.request.levels[i],
                        plan.request.levels[i] == 1 ? "" : "s");
  }
  text += "\n";
  if (plan.unseen == 0) return text;
  return text + fmt::format("{} experts never saw a counted token and get the fewest bits; more demonstrations would settle "
                            "them\n", plan.unseen);
}

void run_precision(const Session& session, const Flags& flags) {
  const PrecisionRequest request = flags.request();
  const Statistics statistics = Statistics::read(flags.statistics);
  session.note_part(statistics.manifest);
  const PrecisionPlan plan = plan_precision(precision_factors(flags.statistics, statistics), request);
  const int layers = statistics.manifest.layers;
  const auto json = precision_to_json(plan, statistics.manifest);
  // All texts before any file: what one of the programs cannot do leaves nothing behind.
  std::vector<std::pair<std::string, std::string>> files;
  const auto add = [&](const std::string& file, const auto& text) {
    if (!file.empty()) files.emplace_back(file, text());
  };
  add(flags.output, [&] { return json.dump(2) + "\n"; });
  add(flags.llama_quantize, [&] { return llama_quantize_types(plan); });
  add(flags.llm_compressor, [&] { return llm_compressor_recipe(plan, layers); });
  add(flags.gptqmodel, [&] { return gptqmodel_config(plan, layers).dump(2) + "\n"; });
  for (const auto& [file, text] : files) write_file_atomically(file, text);
  session.print(json, describe_precision(plan) + "bits in " + flags.output + "\n");
}

}  // namespace

void add_precision(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "precision", "Decide how many bits every expert is worth",
                                  "moetrim precision arithmetic.stats --bits 2.5 -o bits.json");
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate --statistics quantisation wrote")->required();
  command->add_option("--bits", flags->bits, "Most bits per weight of the experts, on average, for example 2.5")->required();
  command->add_option("--levels", flags->levels, "Widths to choose from, of 1, 2, 3 and 4")
      ->delimiter(',')->capture_default_str();
  command->add_option("--scope", flags->scope, "Where the budget is shared out: layer (as many bits in each) or global")
      ->capture_default_str();
  command->add_option("--width-per", flags->unit, "What has one width: an expert, or with --scope global a layer")
      ->capture_default_str();
  command->add_option("--exponents", flags->exponents, "Of the share of tokens, the share of gate weight, and the error")
      ->delimiter(',')->capture_default_str();
  command->add_option("-o,--output", flags->output, "File for the widths")->required();
  command->add_option("--llama-quantize", flags->llama_quantize, "Also write a file for llama-quantize --tensor-type-file");
  command->add_option("--llm-compressor", flags->llm_compressor, "Also write a recipe (YAML) of llm-compressor");
  command->add_option("--gptqmodel", flags->gptqmodel, "Also write arguments (JSON) of GPTQModel's QuantizeConfig");
  command->callback([&session, flags] { session.run = [&session, flags] { run_precision(session, *flags); }; });
}

}  // namespace moetrim::cli
