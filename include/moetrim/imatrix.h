// llama.cpp's importance matrices (imatrix): for every matrix that is quantised, what its columns are multiplied with,
// squared and summed over tokens. Read, written from our own statistics, cut to a plan's experts, added up.
//
// A file is a GGUF with general.type "imatrix"; for every tensor NAME of the model it has NAME.in_sum2 [inputs, matrices]
// and NAME.counts [1, matrices], both F32. Source: llama.cpp release v0.5.0, tools/imatrix and common/imatrix-loader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "moetrim/family.h"
#include "moetrim/gguf_file.h"
#include "moetrim/plan.h"
#include "moetrim/rewrite.h"

namespace moetrim {

/// What is known of one tensor's columns.
struct ImatrixEntry {
  std::string name;            ///< of the model's tensor, "blk.0.ffn_up_exps.weight"
  std::uint64_t inputs = 0;    ///< columns of a matrix; of stacked matrices that share a count, of all of them
  std::uint64_t matrices = 1;  ///< counts: of stacked experts one each

  /// Block of `blk.N.`; -1 for the output head.
  int block() const;
  /// Whether the tensor is a layer's stacked experts.
  bool of_experts() const;
};

struct ImatrixValues {
  std::vector<float> sums;     ///< [matrices, inputs] not negative
  std::vector<float> counts;   ///< [matrices] tokens; 0: never chosen, a quantiser then weighs its columns alike
};

/// An importance matrix whose values come one tensor at a time: nothing is held but the list.
struct Imatrix {
  std::vector<std::string> datasets;    ///< what it was measured on
  std::uint32_t chunk_count = 0;        ///< chunks of tokens that were run
  std::uint32_t chunk_size = 0;         ///< tokens of a chunk
  std::vector<ImatrixEntry> entries;    ///< by name, ascending
  std::function<ImatrixValues(std::size_t entry)> values;
  std::vector<std::string> notes = {};  ///< for the user, one sentence each
};

/// @throws InvalidInput naming file and tensor: for another file than an imatrix (of the older form, which is no GGUF: how
///         llama.cpp converts it), a tensor without its pair, of another type or shape; and when values are read, for a
///         number that is not finite, or negative.
Imatrix open_imatrix(const std::filesystem::path& file);

/// Of the experts that a plan keeps, in the order of its slots; what is not an expert's stays.
/// @param mtp  prune: the plan must cover multi-token-prediction blocks that the matrix has experts of; drop: they go.
/// @throws InvalidInput when the matrix has another number of experts, or experts of a layer that the plan has not; or the
///         plan changes values. UsageError for Mtp::keep.
Imatrix slice_imatrix(Imatrix matrix, const Plan& plan, Mtp mtp = Mtp::prune);

/// Sums and counts added, as llama.cpp does. @param names  of the matrices, for errors
/// @throws InvalidInput when a tensor has different shapes, or chunks differ in size.
Imatrix merge_imatrices(std::vector<Imatrix> matrices, const std::vector<std::string>& names);

struct ImatrixRequest {
  std::filesystem::path statistics;   ///< with inputs
  std::vector<std::string> tasks;     ///< added up; empty: all
  bool output_head = false;           ///< also of output.weight, which is better quantised without
  Mtp mtp = Mtp::prune;               ///< drop: nothing of multi-token-prediction blocks, as some architectures demand
};
/// From our own statistics, for the tensors that the checkpoint is exported with; notes those that nothing was measured of.
/// @throws InvalidInput when the statistics are of another checkpoint or have no inputs, or the family cannot be exported.
Imatrix imatrix_of_statistics(const Model& model, const ImatrixRequest& request);

/// Equal matrices give equal bytes. In the memory of one tensor's values.
/// @throws UsageError when the file exists and is not to be replaced; InvalidInput for a matrix without entries.
void write_imatrix(const std::filesystem::path& file, const Imatrix& matrix, bool overwrite = false);

}  // namespace moetrim
