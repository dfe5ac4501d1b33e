// The files that a GGUF model is written to: what they are called, what they may replace, and how they get their names.

#include "gguf/rewrite/targets.h"

#include <algorithm>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "export/staging.h"
#include "moetrim/error.h"

namespace moetrim::gguf_detail {

namespace {

namespace fs = std::filesystem;
using namespace export_detail;

constexpr std::string_view kEnding = ".gguf";

/// OUT of OUT.gguf, and of OUT-00001-of-00003.gguf.
fs::path base_of(const fs::path& target) {
  std::string name = target.filename().string();
  name.resize(name.size() - kEnding.size());
  constexpr std::size_t kDigits = 5;
  const std::string_view form = "-00001-of-00001";
  const auto digits = [](std::string_view text) { return std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; }); };
  if (name.size() > form.size()) {
    const std::string_view end = std::string_view(name).substr(name.size() - form.size());
    const bool numbered = end[0] == '-' && digits(end.substr(1, kDigits)) && end.substr(kDigits + 1, 4) == "-of-" && digits(end.substr(kDigits + 5));
    if (numbered) name.resize(name.size() - form.size());
  }
  return target.parent_path() / name;
}

bool is_there(const fs::path& file) { return fs::exists(fs::symlink_status(file)); }

/// Whether moetrim wrote the model that this is the first file of.
bool wrote(const fs::path& first) {
  if (!is_gguf_file(first)) return false;
  try {
    const GgufFile file = GgufFile::open(first);
    return file.metadata().find(kGgufPlanKey) != nullptr || file.metadata().find(kGgufSourceKey) != nullptr;
  } catch (const InvalidInput&) {
    return false;
  }
}

void check_source(const GgufRewrite& rewrite, const fs::path& file) {
  for (const GgufFile& source : rewrite.source->files()) {
    std::error_code ignored;
    if (fs::equivalent(file, source.path(), ignored)) throw UsageError(fmt::format("output {} is the source itself", file.string()));
  }
}

void check_free(const Targets& targets, bool overwrite) {
  const fs::path& first = targets.files.front();
  if (is_there(first)) {
    if (!overwrite) throw UsageError(fmt::format("output {} exists; name another, or remove it first", first.string()));
    if (wrote(first)) return;
    throw UsageError(fmt::format("output {} says neither {} nor {}, so moetrim did not write it and does not replace it; name another, or "
                                 "remove it first", first.string(), kGgufPlanKey, kGgufSourceKey));
  }
  if (is_there(staging_folder(targets.target))) return;  // what a run left that was killed at its end
  for (const fs::path& file : targets.files) {
    if (is_there(file)) throw UsageError(fmt::format("output {} exists, without the first file of its model; remove it first", file.string()));
  }
}

}  // namespace

Targets resolve_targets(const GgufRewrite& rewrite, const fs::path& target, bool overwrite) {
  Targets out{.target = absolute_target(target), .files = {}};
  const std::string name = out.target.filename().string();
  if (!name.ends_with(kEnding) || name.size() == kEnding.size()) {
    throw UsageError(fmt::format("output {}: a GGUF file becomes a GGUF file; give a name that ends in .gguf", target.string()));
  }
  const std::size_t count = rewrite.files.size();
  for (std::size_t i = 0; i < count; ++i) {
    out.files.push_back(count == 1 ? out.target : gguf_split_path(base_of(out.target), i, count));
    check_source(rewrite, out.files.back());
  }
  check_free(out, overwrite);
  return out;
}

void publish(const fs::path& folder, const Targets& targets) {
  const fs::path& first = targets.files.front();
  if (targets.files.size() > 1) fs::remove(first);
  for (auto file = targets.files.rbegin(); file != targets.files.rend(); ++file) {
    if (file + 1 == targets.files.rend()) flush_folder(first.parent_path());  // the others are there before the first is
    fs::rename(folder / file->filename(), *file);
  }
  flush_folder(first.parent_path());
}

}  // namespace moetrim::gguf_detail
