// Structural check of a checkpoint folder, or of a GGUF file.

#include <algorithm>

#include "moetrim/error.h"
#include "moetrim/gguf_rewrite.h"
#include "verify/check_gguf.h"
#include "verify/checks.h"

namespace moetrim {

namespace verify_detail {

void add_error(Findings& findings, std::string where, std::string what) {
  findings.push_back({Severity::error, std::move(where), std::move(what)});
}

void add_warning(Findings& findings, std::string where, std::string what) {
  findings.push_back({Severity::warning, std::move(where), std::move(what)});
}

}  // namespace verify_detail

namespace {

using namespace verify_detail;

std::optional<Checkpoint> open(const std::filesystem::path& folder, Findings& findings) {
  try {
    return Checkpoint::open(folder);
  } catch (const InvalidInput& problem) {
    add_error(findings, ".", problem.what());
    return std::nullopt;
  }
}

void check_config(const Checkpoint& checkpoint, Findings& findings) {
  try {
    if (const auto slim = read_slim_widths(checkpoint.config(), "config.json")) check_slim(checkpoint, *slim, findings);
    else check_family(checkpoint, findings);
  } catch (const InvalidInput& problem) {
    add_error(findings, "config.json", problem.what());
  }
}

Findings check_folder(const std::filesystem::path& folder, const VerifyOptions& options) {
  Findings findings;
  std::error_code ignored;
  const auto checkpoint = open(folder, findings);
  if (std::filesystem::is_directory(folder, ignored)) check_files(folder, checkpoint ? &*checkpoint : nullptr, findings);
  if (checkpoint) {
    check_index(*checkpoint, findings);
    check_expert_numbers(*checkpoint, findings);
    check_config(*checkpoint, findings);
    if (options.deep) check_values(*checkpoint, options, findings);
  }
  return findings;
}

}  // namespace

std::string_view severity_name(Severity severity) { return severity == Severity::error ? "error" : "warning"; }

std::vector<Finding> verify_checkpoint(const std::filesystem::path& folder, const VerifyOptions& options) {
  Findings findings = is_gguf_file(folder) ? check_gguf_file(folder, options) : check_folder(folder, options);
  std::stable_sort(findings.begin(), findings.end(),
                   [](const Finding& a, const Finding& b) { return a.severity < b.severity; });
  return findings;
}

}  // namespace moetrim
