// From a request to that of its dequantised twin.

#include <algorithm>
#include <map>
#include <string>

#include <fmt/format.h>

#include "export/twin_tensors.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/suggest.h"

namespace moetrim {

namespace {

constexpr const char* kBf16 = "bf16";
constexpr const char* kQuantization = "quantization_config";

/// Both spellings, at the top and where multi-modal models keep the language model's keys.
void remove_quantisation(nlohmann::ordered_json& config) {
  const auto remove = [](nlohmann::ordered_json& object) {
    for (const char* key : {kQuantization, "compression_config"}) object.erase(key);
  };
  remove(config);
  const auto text = config.find("text_config");
  if (text != config.end() && text->is_object()) remove(*text);
}

/// The dtype that most bytes of a checkpoint have, for messages.
std::string main_dtype(const Checkpoint& checkpoint) {
  std::map<std::string_view, std::uint64_t> bytes;
  for (const Tensor& tensor : checkpoint.tensors()) bytes[dtype_name(tensor.dtype)] += tensor.size;
  const auto most = std::max_element(bytes.begin(), bytes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return std::string(most == bytes.end() ? "" : most->first);
}

nlohmann::ordered_json twin_record(const Model& model, const TwinRequest& twin, const ExportRequest& pruned, std::size_t weights) {
  nlohmann::ordered_json record;
  for (const auto& [key, value] : pruned.record.items()) {
    if (key == "warnings") {
      record["dequantised"] = {{"dtype", kBf16}, {"weights", weights}, {"quant_method", model.quantisation.method}};
      record[key] = twin.warnings;
    } else {
      record[key] = value;
    }
  }
  if (record.contains("slim")) record["slim"]["quantised_again"] = 0;
  return record;
}

}  // namespace

Dtype parse_twin_dtype(std::string_view text) {
  if (text == kBf16) return Dtype::bf16;
  throw UsageError(fmt::format("--also-dtype {}: expected one of {}, what quantised weights can be dequantised to",
                               in_quotes(text), kBf16));
}

TwinRequest prepare_twin(const Model& model, const Plan& plan, const ExportRequest& pruned, Dtype dtype,
                         std::string_view tool_version, const PrepareOptions& options) {
  if (dtype != Dtype::bf16) throw UsageError(fmt::format("a twin is {}, not {}", kBf16, dtype_name(dtype)));
  const Quantisation& quantisation = model.quantisation;
  if (!quantisation.obstacle.empty()) {
    throw InvalidInput(fmt::format("{}: {}: {}; so the weights cannot be dequantised, only moved: leave --also-dtype out",
                                   quantisation.where, quantisation.method, quantisation.obstacle));
  }
  TwinRequest twin;
  twin.model = &model;
  export_detail::add_twin_tensors(twin, pruned.tensors, plan, options.mtp);
  const auto is_computed = [](const OutputTensor& tensor) { return tensor.computation != nullptr; };
  const auto weights = std::count_if(twin.tensors.begin(), twin.tensors.end(), is_computed);
  if (weights == 0) {
    throw UsageError(fmt::format("{}: no weight is quantised, so there is nothing to dequantise to {}: it is already in {}; leave "
                                 "--also-dtype out", model.checkpoint->folder().string(), kBf16, main_dtype(*model.checkpoint)));
  }
  twin.config = pruned.config;
  remove_quantisation(twin.config);
  twin.source_fingerprint = pruned.source_fingerprint;
  twin.sources = pruned.sources;
  twin.low_rank = pruned.low_rank;
  twin.sparse_rows = pruned.sparse_rows;
  twin.row_importance = pruned.row_importance;
  for (const auto& warning : rewrite_warnings(model, plan, options.mtp)) {
    if (!warning.starts_with(kQuantization)) twin.warnings.push_back(warning);  // the twin has no such key
  }
  twin.record = twin_record(model, twin, pruned, static_cast<std::size_t>(weights));
  twin.card = model_card(model, plan, twin.tensors, twin.warnings, tool_version, kBf16, options.mtp);
  return twin;
}

std::filesystem::path twin_target(const std::filesystem::path& target) {
  std::filesystem::path folder = std::filesystem::absolute(target).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "out/"
  return folder.parent_path() / fmt::format("{}-{}", folder.filename().string(), kBf16);
}

}  // namespace moetrim
