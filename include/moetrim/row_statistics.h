// Statistics on request: how much the rows of experts' matrices matter that factors of low rank would lose. One safetensors file
// per MoE layer beside atoms-NNNNN.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "moetrim/statistics.h"

namespace moetrim {

/// What `calibrate --statistics row-importance --low-rank R` measures in one MoE layer.
///
/// Of a matrix W [out, in] of an expert and its nearest matrix of rank R, S = W - nearest. A batch gives every row the mean over
/// its columns of |S . dLoss/dW|, the loss summed as in AtomStatistics; these are added up over batches. A batch is up to 512 of
/// the tokens of one task that are routed to the expert, so that the sums depend on how the tokens were grouped.
/// Source: MC-SMoE, arXiv 2310.01334, after LoSparse, arXiv 2306.11222; published is a running mean over batches.
struct RowStatistics {
  int layer = 0;       ///< absolute layer id
  int tasks = 0;
  int experts = 0;     ///< E
  int width = 0;       ///< F
  int hidden = 0;      ///< H
  std::vector<double> gate, up;   ///< [tasks, E, F]
  std::vector<double> down;       ///< [tasks, E, H]

  RowStatistics() = default;
  /// All zeros. @throws InvalidInput unless layer >= 0 and the sizes are at least 1.
  RowStatistics(int layer, int tasks, int experts, int width, int hidden);
  /// @throws InvalidInput on another layer or size.
  void add(const RowStatistics& other);
  /// Adds one task's sums, whose place may differ in the two. @throws InvalidInput on another layer or size.
  void add_task(int task, const RowStatistics& other, int other_task);
};

/// Name of a layer's file inside the folder, for example "rows-00003.safetensors".
std::string row_file_name(int layer);
/// Equal sums give equal bytes.
void write_row_statistics(const std::filesystem::path& file, const RowStatistics& rows);
/// @param manifest  of the folder: every shape is held against it.
/// @throws InvalidInput naming file and tensor.
RowStatistics read_row_statistics(const std::filesystem::path& file, const StatisticsManifest& manifest);
/// One layer of a statistics folder, whose manifest was read already.
/// @throws InvalidInput naming the file, or saying how to calibrate when rows were not measured.
RowStatistics read_row_statistics(const std::filesystem::path& folder, const StatisticsManifest& manifest, int layer);

}  // namespace moetrim
