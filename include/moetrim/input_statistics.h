// Statistics on request: sums of squares of what linear layers read. One safetensors file per layer, dense ones too, beside
// layer-NNNNN.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "moetrim/linear_inputs.h"
#include "moetrim/statistics.h"

namespace moetrim {

/// Whether `calibrate --statistics inputs` was asked for: `settings.inputs` of the manifest.
bool has_inputs(const StatisticsManifest& manifest);
void announce_inputs(StatisticsManifest& manifest);
/// For sums without their inputs.
void forget_inputs(StatisticsManifest& manifest);
/// Layers that have a file, ascending: all decoder layers, and multi-token-prediction blocks that were measured; none where
/// inputs were not. @throws InvalidInput for more layers than any model has
std::vector<int> input_layers(const StatisticsManifest& manifest);

/// All zeros, for a layer of the manifest.
LinearInputs empty_inputs(const StatisticsManifest& manifest, int layer);
/// Adds one task's sums, whose place may differ in the two. @throws InvalidInput on another layer or size.
void add_inputs(LinearInputs& to, int task, const LinearInputs& from, int from_task);

/// Name of a layer's file inside the folder, for example "inputs-00003.safetensors".
std::string input_file_name(int layer);
/// Equal sums give equal bytes.
void write_input_statistics(const std::filesystem::path& file, const LinearInputs& inputs);
/// @param manifest  of the folder: layer, tasks, experts and counts are held against it.
/// @throws InvalidInput naming file and tensor.
LinearInputs read_input_statistics(const std::filesystem::path& file, const StatisticsManifest& manifest);
/// One layer of a statistics folder, whose manifest was read already.
/// @throws InvalidInput naming the file, or saying how to calibrate when inputs were not measured.
LinearInputs read_input_statistics(const std::filesystem::path& folder, const StatisticsManifest& manifest, int layer);

/// The parts of a sum, and where a layer of a part is read from.
struct InputParts {
  std::vector<StatisticsManifest> manifests;
  std::function<LinearInputs(std::size_t part, int layer)> read;
};
/// One layer's sum, added in the order of shares, or else of parts.
/// @param sum  the manifest of the whole, which has the tasks of all parts
LinearInputs merge_inputs(const StatisticsManifest& sum, const InputParts& parts, int layer);
/// write_merged_statistics for parts that may have inputs; they are read after everything else, layer by layer.
void write_merged_statistics(const std::filesystem::path& folder, const StatisticsMerge& merge, const PartReader& read,
                             const InputParts& inputs);
/// The inputs of folders, checked against their manifests.
InputParts read_input_parts(const std::vector<std::filesystem::path>& folders);

}  // namespace moetrim
