// moetrim inspect: what a checkpoint is.

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/gguf_commands.h"
#include "moetrim/error.h"
#include "moetrim/family.h"
#include "moetrim/gguf_rewrite.h"
#include "moetrim/plan.h"
#include "moetrim/rewrite.h"
#include "moetrim/suggest.h"

namespace moetrim::cli {

namespace {

/// Bytes by what they are for.
struct Parts {
  std::uint64_t experts = 0, routers = 0, attention = 0, embeddings = 0, rest = 0;
};

Parts count_parts(const Model& model) {
  Parts parts;
  const auto& tensors = model.checkpoint->tensors();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorRule* rule = model.places[i].rule;
    const Role role = rule == nullptr ? Role::count_ : rule->role;
    if (role == Role::embedding || role == Role::head) parts.embeddings += tensors[i].size;
    else if (rule == nullptr) parts.rest += tensors[i].size;
    else if (where_of(role) == Where::attention || where_of(role) == Where::delta_net) parts.attention += tensors[i].size;
    else if (role >= Role::router && role <= Role::router_scale) parts.routers += tensors[i].size;
    else if (where_of(role) == Where::experts) parts.experts += tensors[i].size;
    else parts.rest += tensors[i].size;
  }
  return parts;
}

std::string_view router_name(const Model& model) {
  switch (model.family->router.score) {
    case RouterScore::softmax: return "softmax";
    case RouterScore::sigmoid: return "sigmoid";
    case RouterScore::sparsemixer: return "sparsemixer";
  }
  return "";
}

/// The lines that only some models have.
std::string special(const Model& model) {
  std::string out;
  if (model.groups > 1) {
    out += fmt::format("groups      {} of {} experts, {} per token (rule {})\n", model.groups, model.experts / model.groups,
                       model.groups_chosen, group_rule_name(model.group_rule));
  }
  if (model.mtp_layers > 0) out += fmt::format("MTP         {} block(s) after the layers\n", model.mtp_layers);
  if (!model.quantisation.method.empty()) {
    out += fmt::format("quantised   {}{}\n", model.quantisation.method,
                       model.quantisation.obstacle.empty() ? "" : ": can be pruned, not calibrated, since " + model.quantisation.obstacle);
  }
  return out;
}

/// The smallest number of experts that a plan may keep.
int least_keep(const Model& model) {
  const RouterLimits limits = router_limits(model);
  for (int keep = limits.experts_per_token; keep < limits.experts; ++keep) {
    try {
      return legal_keep(limits, {.experts = keep, .ratio = {}}, false);
    } catch (const InvalidInput&) {  // the next one, then
    }
  }
  return limits.experts;
}

/// The largest number that follows `part` in a tensor's name, plus one; 0 when no name has one.
int count_numbered(const Checkpoint& checkpoint, std::string_view part) {
  int count = 0;
  for (const Tensor& tensor : checkpoint.tensors()) {
    const auto at = tensor.name.find(part);
    if (at == std::string::npos) continue;
    int number = -1;
    const char* begin = tensor.name.data() + at + part.size();
    std::from_chars(begin, tensor.name.data() + tensor.name.size(), number);
    count = std::max(count, number + 1);
  }
  return count;
}

/// What names and sizes tell about a checkpoint of a family that is not known.
void inspect_unknown(const Session& session, const Checkpoint& checkpoint, const std::string& model_type) {
  std::map<std::string, std::uint64_t> by_type;
  std::uint64_t expert_bytes = 0;
  for (const Tensor& tensor : checkpoint.tensors()) {
    by_type[std::string(dtype_name(tensor.dtype))] += tensor.size;
    if (tensor.name.find(".experts.") != std::string::npos) expert_bytes += tensor.size;
  }
  const int layers = count_numbered(checkpoint, "layers.");
  const int experts = count_numbered(checkpoint, ".experts.");
  const nlohmann::ordered_json json{{"family", nullptr},          {"model_type", model_type},
                                    {"layers", layers},           {"experts", experts},
                                    {"tensors", checkpoint.tensors().size()}, {"total_bytes", checkpoint.total_bytes()},
                                    {"bytes_by_type", by_type},   {"bytes", {{"experts", expert_bytes}}},
                                    {"files", checkpoint.files().size()},     {"fingerprint", checkpoint.fingerprint()}};
  std::string types;
  for (const auto& [type, bytes] : by_type) types += fmt::format("  {:<10}  {}\n", type, human_bytes(bytes));
  session.print(json, fmt::format(
      "family      unknown (model_type {}); it can be verified, not calibrated or pruned. docs/add-a-family.md tells how to add it\n"
      "layers      {} by the names of its tensors\nexperts     {} by the names of its tensors, {}\nsize        {} in {} tensors, {} file(s)\n{}",
      in_quotes(model_type), layers, experts, human_bytes(expert_bytes), human_bytes(checkpoint.total_bytes()),
      checkpoint.tensors().size(), checkpoint.files().size(), types));
}

/// "8 to 20", or "8".
std::string range_text(std::int64_t least, std::int64_t most) {
  return least == most ? std::to_string(most) : fmt::format("{} to {}", least, most);
}

/// A checkpoint whose config.json lists the width of every expert, or their number in every layer, which only its own class
/// computes.
void inspect_slim(const Session& session, const Checkpoint& checkpoint, const SlimWidths& slim) {
  std::int64_t least = std::numeric_limits<std::int64_t>::max(), most = 0, sum = 0, count = 0;
  nlohmann::ordered_json widths = nlohmann::ordered_json::object();
  for (const auto& [layer, list] : slim.widths) {
    widths[std::to_string(layer)] = list;
    for (const auto width : list) {
      least = std::min(least, width);
      most = std::max(most, width);
      sum += width;
      ++count;
    }
  }
  std::uint64_t expert_bytes = 0;
  for (const Tensor& tensor : checkpoint.tensors()) {
    const std::string_view part = slim.widths.empty() ? ".experts." : ".experts.slim_";
    if (tensor.name.find(part) != std::string::npos) expert_bytes += tensor.size;
  }
  std::map<int, std::int64_t> counts = slim.experts;
  if (counts.empty()) {
    for (const auto& [layer, list] : slim.widths) counts[layer] = std::ssize(list);
  }
  nlohmann::ordered_json by_layer = nlohmann::ordered_json::object();
  for (const auto& [layer, experts] : counts) by_layer[std::to_string(layer)] = experts;
  const auto fewer = [](const auto& a, const auto& b) { return a.second < b.second; };
  const auto [fewest, greatest] = std::minmax_element(counts.begin(), counts.end(), fewer);
  const auto named = checkpoint.config().find("model_type");
  const std::string type = named != checkpoint.config().end() && named->is_string() ? named->get<std::string>() : "unknown";
  const int layers = count_numbered(checkpoint, "layers.");
  std::string of_widths;
  if (count > 0) {
    const double mean = static_cast<double>(sum) / static_cast<double>(count);
    of_widths = fmt::format(" of widths {} to {}, mean {:.1f}", least, most, mean);
  }
  session.print({{"family", type}, {"layers", layers}, {"moe_layers", counts.size()}, {"experts", greatest->second},
                 {"layout", "slim"}, {"experts_by_layer", std::move(by_layer)}, {"expert_widths", std::move(widths)},
                 {"total_bytes", checkpoint.total_bytes()}, {"bytes", {{"experts", expert_bytes}}},
                 {"files", checkpoint.files().size()}, {"fingerprint", checkpoint.fingerprint()}},
                fmt::format("family      {}\nlayers      {} ({} MoE)\n"
                            "experts     {}{}, listed in config.json\n"
                            "size        {} in {} file(s)\n  experts     {}\n"
                            "loads in transformers 5 with trust_remote_code=True; moetrim verifies it, and does not "
                            "compute it\n",
                            type, layers, counts.size(), range_text(fewest->second, greatest->second), of_widths,
                            human_bytes(checkpoint.total_bytes()), checkpoint.files().size(), human_bytes(expert_bytes)));
}

void inspect(const Session& session, const std::string& folder) {
  if (is_gguf_file(folder)) return inspect_gguf(session, folder);
  const Checkpoint checkpoint = Checkpoint::open(folder);
  if (const auto slim = read_slim_widths(checkpoint.config(), (checkpoint.folder() / "config.json").string())) {
    return inspect_slim(session, checkpoint, *slim);
  }
  const auto type = checkpoint.config().find("model_type");
  if (type != checkpoint.config().end() && type->is_string() && find_family(type->get_ref<const std::string&>()) == nullptr) {
    return inspect_unknown(session, checkpoint, type->get<std::string>());
  }
  const Model model = describe(checkpoint);
  const Parts parts = count_parts(model);
  const auto moe_layers = model.moe_layers();
  const bool fused = model.layer[static_cast<std::size_t>(moe_layers.empty() ? 0 : moe_layers[0])].fused();
  const nlohmann::ordered_json json{
      {"family", model.family->name},
      {"layers", model.layers},
      {"moe_layers", moe_layers.size()},
      {"experts", model.experts},
      {"experts_per_token", model.experts_per_token},
      {"expert_width", model.expert_width},
      {"hidden", model.hidden},
      {"vocabulary", model.vocabulary},
      {"layout", fused ? "fused" : "per-expert"},
      {"attention", model.family->attention.latent ? "latent" : model.family->attention.delta_net ? "gated delta net and grouped-query" : "grouped-query"},
      {"router", router_name(model)},
      {"groups", model.groups},
      {"groups_per_token", model.groups_chosen},
      {"mtp_layers", model.mtp_layers},
      {"quantisation", model.quantisation.method.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(model.quantisation.method)},
      {"gates_sum_to_one", model.normalise_gates},
      {"total_bytes", checkpoint.total_bytes()},
      {"bytes", {{"experts", parts.experts}, {"routers", parts.routers}, {"attention", parts.attention},
                 {"embeddings", parts.embeddings}, {"rest", parts.rest}}},
      {"files", checkpoint.files().size()},
      {"fingerprint", checkpoint.fingerprint()}};
  const std::uint64_t one = moe_layers.empty() ? 0 : parts.experts / static_cast<std::uint64_t>(model.experts);
  session.print(json, fmt::format(
      "family      {}\nlayers      {} ({} MoE)\nexperts     {} of width {}, {} per token, {} layout\n{}hidden      {}, vocabulary {}\n"
      "size        {} in {} file(s)\n  experts     {}\n  attention   {}\n  embeddings  {}\n  routers     {}\n  rest        {}\n"
      "an expert in every layer less saves {}; keep at least {}\n",
      model.family->name, model.layers, moe_layers.size(), model.experts, model.expert_width, model.experts_per_token,
      fused ? "fused" : "per-expert", special(model), model.hidden, model.vocabulary, human_bytes(checkpoint.total_bytes()),
      checkpoint.files().size(), human_bytes(parts.experts), human_bytes(parts.attention), human_bytes(parts.embeddings),
      human_bytes(parts.routers), human_bytes(parts.rest), human_bytes(one), least_keep(model)));
}

}  // namespace

void add_inspect(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "inspect", "Say what a checkpoint is: family, layers, experts, bytes",
                                  "moetrim inspect demo/model");
  auto folder = std::make_shared<std::string>();
  command->add_option("checkpoint", *folder, "Checkpoint folder, or a GGUF file")->required();
  command->callback([&session, folder] { session.run = [&session, folder] { inspect(session, *folder); }; });
}

}  // namespace moetrim::cli
