// What the sub-commands of `patterns` share.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/command.h"
#include "cli/stages.h"
#include "moetrim/family.h"
#include "moetrim/patterns.h"

namespace moetrim::cli {

/// Texts whose routing is asked for.
struct QueryTexts {
  Task task;                                     ///< a demonstration each, all of whose tokens count
  std::vector<std::optional<std::string>> texts; ///< as the user wrote them; nothing for token ids
};

/// How queries become tokens.
enum class QueryForm : std::uint8_t {
  prompt,  ///< as calibration sees a prompt: through the chat template, up to where the model would answer
  raw,     ///< the user's words alone, as PreMoe has published it
};

/// Lines of a task file, of which what answers is left out; of a .txt file, each a query. @throws InvalidInput naming file and line
QueryTexts read_query_file(const std::filesystem::path& file, const Model& model, QueryForm form);
QueryTexts read_query_texts(const std::vector<std::string>& texts, const Model& model, QueryForm form);

/// Runs texts through the first layers: needs LibTorch, and is there only in moetrim-torch, which `moetrim` becomes for
/// command lines that need it (see main.cpp).
using RouteTexts = std::vector<TextRouting> (*)(const Session& session, const RunFlags& run, const Model& model,
                                                const Task& texts, const StatisticsManifest& marks, int depth);
extern RouteTexts route_texts;
void provide_route_texts();   ///< of moetrim-torch

/// Refuses another model than the library's. What a fingerprint would say needs two reads of every tensor, too much for a quick
/// look; so it compares family, layers, experts and bytes.
void check_model(const PatternLibrary& library, const StatisticsManifest& manifest, const Model& model);

/// --checkpoint, --query, --queries and how their nearest patterns are found
struct RetrieveFlags {
  std::string library, checkpoint, queries_file, fallback;
  std::vector<std::string> queries;
  std::optional<std::string> signature_of;
  std::string variant = "executed";
  int depth = 1;
  RetrieveOptions options;
  RunFlags run;

  void add(CLI::App& command);
  bool any() const { return !queries.empty() || !queries_file.empty(); }
  /// @throws UsageError
  void check() const;
};

/// What was asked for, and what was found.
struct Retrieved {
  QueryTexts queries;
  std::vector<Retrieval> results;   ///< one per query
  std::uint64_t bytes_read = 0;     ///< of the checkpoint
  std::uint64_t checkpoint_bytes = 0;
};
Retrieved retrieve_patterns(const Session& session, const PatternLibrary& library, const RetrieveFlags& flags);
/// {"results": [{"query", "nearest", "confidence", "fits", …}], "bytes_read", …}
nlohmann::ordered_json retrieved_json(const RetrieveFlags& flags, const Retrieved& retrieved);
std::string describe_retrieved(const RetrieveFlags& flags, const Retrieved& retrieved);

/// Refuses options that a form of a command would ignore. @throws CLI::ValidationError, in a callback of the command
void refuse_others(const CLI::App& command, const std::vector<std::string>& allowed, std::string_view why);

/// Patterns and how much each counts.
using WeightedPatterns = std::vector<std::pair<std::string, double>>;

/// "NAME" or "NAME=WEIGHT". @throws UsageError
WeightedPatterns parse_patterns(const std::vector<std::string>& names);

/// What patterns give statistics for: those named, and those that --protect-task and --drop-task name.
Statistics pattern_statistics(const PatternLibrary& library, const PlanFlags& flags, const WeightedPatterns& patterns);
/// Options of plans that patterns cannot serve. @throws UsageError
void check_plan_flags(const PlanFlags& flags);
/// The flags, for the statistics of these patterns.
PlanFlags with_patterns(PlanFlags flags, const WeightedPatterns& patterns);
Plan plan_patterns(const PatternLibrary& library, const PlanFlags& flags, const WeightedPatterns& patterns);

/// {"name", "task", "tokens", "signature", …}
nlohmann::ordered_json facts_json(const PatternFacts& facts);
/// The same as a line of text.
std::string describe_facts(const PatternFacts& facts);

void add_pattern_add(CLI::App& patterns, Session& session);
void add_pattern_retrieve(CLI::App& patterns, Session& session);
void add_pattern_materialize(CLI::App& patterns, Session& session);
void add_pattern_delta(CLI::App& patterns, Session& session);

}  // namespace moetrim::cli
