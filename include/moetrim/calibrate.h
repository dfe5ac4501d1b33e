// Calibration: demonstrations through a checkpoint, layer by layer, to statistics.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/family.h"
#include "moetrim/run_options.h"
#include "moetrim/statistics.h"
#include "moetrim/text.h"

namespace moetrim {

/// Sequential calibration: every layer is measured with all its experts, on what the layers before it put out with those that
/// stay. Published as REAM's layer order (arXiv 2604.04356) and as the propagating pass of llm-compressor's REAP.
struct SequentialCalibration {
  /// The experts of a layer that stay: [experts]. Called once for each layer, in order, with the manifest of the run and what
  /// was measured of the layer; not for the last layer, nor for multi-token-prediction blocks.
  std::function<std::vector<bool>(const StatisticsManifest& manifest, const LayerStatistics& layer)> choose;
  int keep = 0;           ///< experts that stay, for estimates
  bool regroup = false;   ///< pruned routers forget their groups
  nlohmann::ordered_json facts = nlohmann::ordered_json::object();  ///< what `choose` goes by: settings.sequential of the manifest
};

struct CalibrateOptions : RunOptions {
  Count count = Count::all;         ///< which tokens are measured; all are run
  int tcess_top_k = 1;              ///< k of PreMoe's marks on raw logits (published: 1)
  double tcess_threshold = -1;      ///< r of PreMoe's marks: the least share that counts, -1 for none (published: -1)
  bool mtp = false;                 ///< also measure multi-token-prediction blocks, as layers after the last one
  bool second_order = false;        ///< also run the reverse sweep: sums per atomic expert, see AtomStatistics
  /// Also measure these, see ExpertVectors; width and hidden are filled in.
  std::optional<StatisticsManifest::Vectors> vectors;
  bool inputs = false;              ///< also measure LinearInputs
  /// With second order, also measure RowStatistics: rank of the factors; 0: not.
  int row_rank = 0;
  /// First order only, in one process, and all tokens must fit at once: experts are chosen from all of them.
  std::optional<SequentialCalibration> sequential;
  std::uint64_t max_disk = 0;       ///< for hidden states between layers, second order only; 0: nine tenths of what is free
  std::int64_t trace_tokens = 0;    ///< record the routing of that many tokens one by one; 0: none
  nlohmann::ordered_json settings = nlohmann::ordered_json::object();  ///< further facts for the manifest (samples, max_tokens, …)
  std::string tool_version;
};

/// What a calibration will take; nothing is run.
struct CalibrateEstimate {
  std::int64_t tokens = 0;            ///< of all demonstrations
  int groups = 1;                     ///< passes over the weights, because the hidden states of all tokens do not fit
  std::uint64_t peak_memory_bytes = 0;
  std::uint64_t read_bytes = 0;       ///< weights, all passes
  std::uint64_t reread_bytes = 0;     ///< of these, experts that found no room in memory between the two runs of their block
  std::uint64_t disk_bytes = 0;       ///< at most: statistics, trace and the state to resume from
  std::uint64_t boundary_bytes = 0;   ///< of these, hidden states between layers; second order only
  int boundary_step = 0;              ///< every how many layers they are kept; those between are computed again
  double operations = 0;              ///< multiply-adds times two; see MachineRates
};

/// @param output  where calibrate() would write: what is free there bounds the hidden states kept on disk.
CalibrateEstimate estimate_calibration(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options,
                                       const std::filesystem::path& output);

/// The manifest that calibrate() would write: what tells whether statistics that exist are those that are wanted.
StatisticsManifest calibration_manifest(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options);

/// Measures the tasks and writes `output` (a folder, conventionally NAME.stats). Work goes on in `output.partial`; after a
/// kill the same call goes on after the last finished layer and ends with the same bytes.
/// @throws InvalidInput when `output` exists, a partial folder belongs to another run, or a value becomes NaN;
///         OutOfResources when not even one demonstration fits into the memory (of a sequential calibration: all of them), or
///         its hidden states onto the disk;
///         Interrupted after `stop`.
StatisticsManifest calibrate(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options,
                             const std::filesystem::path& output);

/// The same forward pass without measuring or writing anything: what the statistics are timed against.
void run_forward_only(const Model& model, const std::vector<Task>& tasks, const CalibrateOptions& options);

}  // namespace moetrim
