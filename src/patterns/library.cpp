// A folder of pattern files that any number of processes use at the same time.
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <limits>
#include <system_error>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/json_fields.h"
#include "moetrim/patterns.h"
#include "moetrim/suggest.h"
#include "patterns/head.h"
#include "patterns/pattern_file.h"

namespace moetrim {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLibraryName = "library.json";
constexpr std::string_view kWriting = ".writing";  // in the names of files that are not whole
constexpr std::size_t kLongestName = 128;
constexpr auto kLeftOverAge = std::chrono::hours(24);

/// Single prompts of a task stayed within this distance of a signature made from statistics, those of other tasks did not, but
/// for one in a hundred: measured in docs/patterns.md.
constexpr double kUnmeasuredLimit = 0.12;
/// Prompts that nobody saw, and those worded differently, lie farther out than those that the radius was taken from.
constexpr double kRadiusMargin = 2;
constexpr double kLeastLimit = 1e-4;  // a task whose prompts are all alike; products are rounded to 1e-7

/// A name beside the target that no other writer has, on any machine.
fs::path temporary_name(const fs::path& target) {
  std::uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) throw Error("the system gives no random numbers");
  return target.parent_path() / fmt::format(".{}.{:016x}{}", target.stem().string(), number, kWriting);
}

/// Removes a file on destruction.
struct Temporary {
  fs::path path;

  explicit Temporary(fs::path file) : path(std::move(file)) {}
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  ~Temporary() {
    std::error_code ignored;
    fs::remove(path, ignored);
  }
};

/// Gives a whole file its name, unless the name is taken. @return whether it was free
bool publish(const fs::path& file, const fs::path& target) {
  if (::link(file.c_str(), target.c_str()) == 0) return true;
  const bool no_links = errno == EPERM || errno == ENOTSUP || errno == ENOSYS;
  if (no_links && ::renameat2(AT_FDCWD, file.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE) == 0) return true;
  if (errno == EEXIST) return false;
  throw Error(fmt::format("{}: cannot be made: {}", target.string(), std::generic_category().message(errno)));
}

nlohmann::ordered_json read_library(const fs::path& folder) {
  const fs::path file = folder / kLibraryName;
  if (!fs::exists(file)) {
    throw InvalidInput(fmt::format("{}: no pattern library ({} is missing); moetrim patterns add makes one", folder.string(),
                                   kLibraryName));
  }
  const auto json = read_json_file(file);
  JsonFields fields(json, file);
  fields.choice("format", {"moetrim-patterns"});
  fields.integer("version", 1, 1);
  auto head = fields.object("checkpoint");
  fields.finish();
  JsonFields(head, file, "checkpoint").text("checkpoint_fingerprint");
  return head;
}

void write_library(const fs::path& folder, const StatisticsManifest& manifest) {
  const fs::path target = folder / kLibraryName;
  const nlohmann::ordered_json json{{"format", "moetrim-patterns"}, {"version", 1}, {"checkpoint", library_head(manifest)}};
  const Temporary written(temporary_name(target));
  write_file_atomically(written.path, json.dump(2) + "\n");
  publish(written.path, target);  // whoever came first wrote the same, or is checked against
}

bool is_left_over(const fs::directory_entry& entry) {
  const std::string name = entry.path().filename().string();
  if (!name.starts_with('.') || name.find(kWriting) == std::string::npos) return false;
  std::error_code gone;
  const auto written = entry.last_write_time(gone);
  return !gone && fs::file_time_type::clock::now() - written > kLeftOverAge;
}

bool is_name(std::string_view name) {
  const auto allowed = [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-' ||
           c == '+';
  };
  return !name.empty() && name.size() <= kLongestName && name.front() != '.' && name.front() != '-' &&
         std::all_of(name.begin(), name.end(), allowed);
}

double limit_of(const PatternFile& file, SignatureStat stat, int depth) {
  if (stat == SignatureStat::tcess_logit_sum) return std::numeric_limits<double>::infinity();
  const auto radius = file.radius(stat, depth);
  return radius ? std::max(kLeastLimit, kRadiusMargin * *radius) : kUnmeasuredLimit;
}

}  // namespace

void check_pattern_name(std::string_view name) {
  if (is_name(name)) return;
  throw UsageError(
      fmt::format("{} cannot name a pattern: expected 1 to {} letters, digits and . _ - +, not beginning with . or -",
                  in_quotes(name), kLongestName));
}

PatternLibrary::PatternLibrary(fs::path folder, nlohmann::ordered_json head)
    : folder_(std::move(folder)),
      head_(std::move(head)),
      fingerprint_(head_.at("checkpoint_fingerprint").get<std::string>()) {}

PatternLibrary PatternLibrary::open(const fs::path& folder) { return {folder, read_library(folder)}; }

PatternLibrary PatternLibrary::open_or_make(const fs::path& folder, const StatisticsManifest& manifest) {
  fs::create_directories(folder);
  if (!fs::exists(folder / kLibraryName)) write_library(folder, manifest);
  PatternLibrary library = open(folder);
  library.check(manifest, "the statistics");
  return library;
}

void PatternLibrary::check(const StatisticsManifest& manifest, const std::string& where) const {
  const auto head = library_head(manifest);
  for (const auto& field : head_.items()) {
    if (head.contains(field.key()) && head.at(field.key()) == field.value()) continue;
    throw InvalidInput(fmt::format("{}: {} is {}, in the library {} it is {}; a library holds patterns of one checkpoint",
                                   where, field.key(), head.value(field.key(), nlohmann::ordered_json()).dump(),
                                   folder_.string(), field.value().dump()));
  }
  if (head.size() != head_.size()) {
    throw InvalidInput(fmt::format("{}: says more of its checkpoint than the library {}", where, folder_.string()));
  }
}

std::vector<std::string> PatternLibrary::names() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const fs::path name = entry.path().filename();
    if (name.extension() == kPatternEnding && is_name(name.stem().string())) names.push_back(name.stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

fs::path PatternLibrary::file(std::string_view name) const {
  check_pattern_name(name);
  return folder_ / (std::string(name) + std::string(kPatternEnding));
}

void PatternLibrary::fail_missing(std::string_view name) const {
  throw InvalidInput(fmt::format("no pattern {} in {}{}", in_quotes(name), folder_.string(), did_you_mean(name, names())));
}

namespace {

/// A pattern's file, or nothing when there is none (any more).
std::optional<PatternFile> open_file(const PatternLibrary& library, const nlohmann::ordered_json& head,
                                     const std::string& name) {
  const fs::path path = library.file(name);
  std::optional<PatternFile> file;
  try {
    file.emplace(path);
  } catch (const InvalidInput&) {
    if (!fs::exists(path)) return std::nullopt;
    throw;
  }
  if (file->head() != head) library.check(file->manifest(), path.string());
  return file;
}

}  // namespace

PatternFacts PatternLibrary::facts(const std::string& name) const {
  const auto file = open_file(*this, head_, name);
  if (!file) fail_missing(name);
  return file->facts();
}

Pattern PatternLibrary::read(const std::string& name) const {
  const auto file = open_file(*this, head_, name);
  if (!file) fail_missing(name);
  return file->read();
}

std::vector<PatternFacts> PatternLibrary::list() const {
  std::vector<PatternFacts> out;
  for (const std::string& name : names()) {
    if (const auto file = open_file(*this, head_, name)) out.push_back(file->facts());
  }
  return out;
}

void PatternLibrary::add(const std::string& name, const Pattern& pattern, bool overwrite) const {
  const fs::path target = file(name);
  check(pattern.manifest, name);
  remove_left_overs();
  const auto taken = [&] {
    return InvalidInput(
        fmt::format("{}: there is a pattern of that name; choose another, or add --overwrite", target.string()));
  };
  if (!overwrite && fs::exists(target)) throw taken();
  const Temporary written(temporary_name(target));
  write_pattern(written.path, pattern);
  if (overwrite) {
    fs::rename(written.path, target);
  } else if (!publish(written.path, target)) {
    throw taken();
  }
}

void PatternLibrary::remove(const std::string& name) const {
  remove_left_overs();
  if (!fs::remove(file(name))) fail_missing(name);
}

void PatternLibrary::remove_left_overs() const {
  std::vector<fs::path> old;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (is_left_over(entry)) old.push_back(entry.path());
  }
  std::error_code gone;
  for (const fs::path& path : old) fs::remove(path, gone);
}

SignatureTable PatternLibrary::signatures(SignatureStat stat, int depth) const {
  const bool published = stat == SignatureStat::tcess_logit_sum;
  if (published && depth != 1) throw UsageError("--variant official compares the first MoE layer alone; leave out --depth");
  SignatureTable table{.stat = stat, .depth = depth};
  for (const std::string& name : names()) {
    const auto file = open_file(*this, head_, name);
    if (!file) continue;
    const auto rows = published ? file->published_row() : file->signature_rows(stat, depth);
    const std::size_t count = published ? 1 : static_cast<std::size_t>(file->signature().prototypes);
    table.experts = file->manifest().experts;  // the same in all of them
    table.owner.insert(table.owner.end(), count, table.names.size());
    table.names.push_back(name);
    table.limits.push_back(limit_of(*file, stat, depth));
    table.rows.insert(table.rows.end(), rows.begin(), rows.end());
  }
  return table;
}

}  // namespace moetrim
