// From model and plan to everything that export_checkpoint writes.

#include <string>

#include "export/base_model.h"
#include "moetrim/export.h"

namespace moetrim {

namespace {

/// moetrim.json: enough to say what the folder is, what it was made from, and to make it again.
nlohmann::ordered_json record_of(const Model& model, const Plan& plan, const std::string& fingerprint,
                                 const std::vector<std::string>& warnings, std::string_view tool_version) {
  nlohmann::ordered_json record;
  record["format"] = "moetrim-checkpoint";
  record["version"] = 1;
  record["tool_version"] = tool_version;
  record["source"] = {{"name", export_detail::base_model(*model.checkpoint)},
                      {"fingerprint", fingerprint},
                      {"tensors", model.checkpoint->tensors().size()},
                      {"total_bytes", model.checkpoint->total_bytes()}};
  record["warnings"] = warnings;
  record["plan"] = plan_to_json(plan);
  return record;
}

}  // namespace

ExportRequest prepare_export(const Model& model, const Plan& plan, std::string_view tool_version,
                             bool allow_other_checkpoint) {
  ExportRequest request;
  check_plan(model, plan, {});  // cheap; the fingerprint reads from every tensor
  request.source_fingerprint = model.checkpoint->fingerprint();
  if (!allow_other_checkpoint) check_plan(model, plan, request.source_fingerprint);
  request.tensors = plan_tensors(model, plan);
  request.config = rewrite_config(model, plan);
  request.warnings = rewrite_warnings(model, plan);
  request.record = record_of(model, plan, request.source_fingerprint, request.warnings, tool_version);
  request.card = model_card(model, plan, request.tensors, request.warnings, tool_version);
  return request;
}

}  // namespace moetrim
