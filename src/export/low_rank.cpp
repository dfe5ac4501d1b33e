// Matrices of experts as factors of low rank, and the rows that stay whole.

#include "export/low_rank.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "export/computed_slab.h"
#include "export/jobs.h"
#include "moetrim/error.h"
#include "moetrim/matrix.h"
#include "moetrim/row_statistics.h"

namespace moetrim::export_detail {

namespace {

/// Rows of matrices by the number of their columns: there are two, of H and of F.
void add_rows(std::vector<RowImportance>& to, const std::vector<RowImportance>& from) {
  for (const RowImportance& rows : from) {
    const auto as_wide = [&](const RowImportance& other) { return other.columns == rows.columns; };
    const auto found = std::find_if(to.begin(), to.end(), as_wide);
    if (found == to.end()) {
      to.push_back(rows);
    } else {
      found->of_row.insert(found->of_row.end(), rows.of_row.begin(), rows.of_row.end());
    }
  }
}

/// a b / c, rounded down, without overflow.
std::uint64_t times(std::uint64_t a, std::int64_t b, std::int64_t c) {
  const auto product = static_cast<unsigned __int128>(a) * static_cast<std::uint64_t>(b);
  return static_cast<std::uint64_t>(product / static_cast<std::uint64_t>(c));
}

/// Importance of all rows, all tasks together.
void read_row_importance(const ExportRequest& request) {
  const StatisticsManifest manifest = read_statistics_manifest(request.row_importance);
  for (const int layer : manifest.moe_layers) {
    const RowStatistics rows = read_row_statistics(request.row_importance, manifest, layer);
    auto& out = request.low_rank->measured[layer];
    out.clear();
    const auto add = [&](const std::vector<double>& values, int length, int expert) {
      const std::size_t per_task = static_cast<std::size_t>(rows.experts) * static_cast<std::size_t>(length);
      for (int i = 0; i < length; ++i) {
        double sum = 0;
        for (int task = 0; task < rows.tasks; ++task) {
          sum += values[static_cast<std::size_t>(task) * per_task + static_cast<std::size_t>(expert * length + i)];
        }
        out.push_back(static_cast<float>(std::min<double>(sum, std::numeric_limits<float>::max())));
      }
    };
    for (int expert = 0; expert < rows.experts; ++expert) {
      add(rows.gate, rows.width, expert);
      add(rows.up, rows.width, expert);
      add(rows.down, rows.hidden, expert);
    }
  }
}

}  // namespace

std::vector<const Piece*> factored_pieces(const ExportRequest& request) {
  std::vector<const Piece*> out;
  for (const OutputTensor& tensor : request.tensors) {
    if (tensor.computation && tensor.computation->result == Computation::Result::fp8_scale) continue;  // of the same matrices
    for (const Piece& piece : tensor.pieces) {
      if (!piece.recipe || !piece.recipe->low_rank) continue;
      // Where experts are listed, gate and up are two pieces of one slab.
      const bool again = !out.empty() && out.back()->source == piece.source && out.back()->recipe == piece.recipe;
      if (!again) out.push_back(&piece);
    }
  }
  return out;
}

std::vector<MatrixView> matrices_of(const Model& model, const Weight& weight) {
  const auto shape = slab_shape(model, weight);
  const auto lines = static_cast<std::size_t>(shape[0]), columns = static_cast<std::size_t>(shape[1]);
  const Role role = weight.rule->role;
  const bool down = role == Role::expert_down || role == Role::fused_down;
  const AtomRows atoms = *atom_rows_of(model, weight);
  const bool outputs_first = (atoms.dim == 0) != down;  // atomic experts are the outputs of gate and up, and the inputs of down
  const auto halves = static_cast<std::size_t>(atoms.runs * atoms.entries);
  std::vector<MatrixView> out;
  for (std::size_t half = 0; half < halves; ++half) {
    MatrixView view{.first = 0, .rows = outputs_first ? lines : columns, .columns = outputs_first ? columns : lines,
                    .row_step = outputs_first ? columns : 1, .column_step = outputs_first ? 1 : columns};
    view.rows /= halves;
    view.first = half * (atoms.paired ? view.row_step : view.rows * view.row_step);
    if (atoms.paired) view.row_step *= 2;
    out.push_back(view);
  }
  return out;
}

void factor_slab(std::span<double> slab, std::span<const MatrixView> matrices, const LowRank& low_rank,
                 std::vector<RowImportance>* importance, std::span<const RowImportance> measured) {
  std::vector<double> product;
  for (std::size_t m = 0; m < matrices.size(); ++m) {
    const MatrixView& matrix = matrices[m];
    const auto at = [&](std::size_t row, std::size_t column) -> double& {
      return slab[matrix.first + row * matrix.row_step + column * matrix.column_step];
    };
    product.clear();
    for (std::size_t row = 0; row < matrix.rows; ++row) {
      for (std::size_t column = 0; column < matrix.columns; ++column) product.push_back(at(row, column));
    }
    nearest_of_rank(product, matrix.rows, matrix.columns, static_cast<std::size_t>(low_rank.rank));
    RowImportance rows{.columns = matrix.columns, .of_row = {}};
    for (std::size_t row = 0; row < matrix.rows; ++row) {
      const double* factors = product.data() + row * matrix.columns;
      double left = 0;
      for (std::size_t column = 0; column < matrix.columns; ++column) left += std::abs(at(row, column) - factors[column]);
      const auto mean = static_cast<float>(left / static_cast<double>(matrix.columns));
      rows.of_row.push_back(measured.empty() ? mean : measured[m].of_row[row]);
      if (importance != nullptr || rows.of_row.back() >= low_rank.threshold) continue;
      for (std::size_t column = 0; column < matrix.columns; ++column) at(row, column) = factors[column];
    }
    if (importance != nullptr) importance->push_back(std::move(rows));
  }
}

float row_threshold(std::span<const RowImportance> rows, const Share& share) {
  struct Row {
    float importance = 0;
    std::size_t columns = 0;
  };
  std::vector<Row> sorted;
  std::uint64_t entries = 0;
  for (const RowImportance& some : rows) {
    entries += some.of_row.size() * some.columns;
    for (const float importance : some.of_row) sorted.push_back({importance, some.columns});
  }
  const std::uint64_t kth = times(entries, share.whole - share.part, share.whole);
  if (kth == 0) return -std::numeric_limits<float>::infinity();
  std::sort(sorted.begin(), sorted.end(), [](const Row& a, const Row& b) { return a.importance < b.importance; });
  std::uint64_t passed = 0;
  for (const Row& row : sorted) {
    passed += row.columns;
    if (passed >= kth) return row.importance;
  }
  throw Error("more rows were asked for than there are");
}

std::vector<RowImportance> measured_rows(const Model& model, const LowRank& low_rank, const Piece& piece) {
  const TensorPlace& place = place_of(model, *piece.source);
  const auto width = static_cast<std::size_t>(model.expert_width);
  const auto per_expert = 2 * width + static_cast<std::size_t>(model.hidden);
  const Role role = place.rule->role;
  const bool down = role == Role::expert_down || role == Role::fused_down;
  const auto expert = static_cast<std::size_t>(piece.recipe->parts.front().expert);
  const float* row = low_rank.measured.at(place.layer).data() + expert * per_expert;
  row += down ? 2 * width : role == Role::expert_up ? width : 0;
  std::vector<RowImportance> out;
  for (const MatrixView& matrix : matrices_of(model, weight_of(model, place, place.expert))) {
    out.push_back({.columns = matrix.columns, .of_row = {row, row + matrix.rows}});
    row += matrix.rows;
  }
  return out;
}

void check_row_importance(const Model& model, const Plan& plan, const ExportRequest& request) {
  const std::string folder = request.row_importance.string();
  if (changes_values(plan)) {
    throw UsageError("--row-importance was measured on the experts as they are, and the plan changes them; write that checkpoint "
                     "first, measure it, and give a plan that keeps it");
  }
  const StatisticsManifest manifest = read_statistics_manifest(request.row_importance);
  if (manifest.row_rank != request.low_rank->rank) {
    const std::string there = manifest.row_rank == 0 ? "holds no row importance"
                                                     : fmt::format("rows were measured beside factors of rank {}", manifest.row_rank);
    throw InvalidInput(fmt::format("{}: {}; calibrate with --statistics row-importance --low-rank {}", folder, there,
                                   request.low_rank->rank));
  }
  const bool fits = manifest.experts == model.experts && manifest.expert_width == model.expert_width &&
                    manifest.sizes.hidden == model.hidden;
  if (manifest.checkpoint_fingerprint != request.source_fingerprint || !fits) {
    throw InvalidInput(fmt::format("{}: is of another checkpoint than {}; the importance of rows is that of these weights", folder,
                                   model.checkpoint->folder().string()));
  }
  for (const Piece* piece : factored_pieces(request)) {
    const int layer = place_of(model, *piece->source).layer;
    if (std::binary_search(manifest.moe_layers.begin(), manifest.moe_layers.end(), layer)) continue;
    throw InvalidInput(fmt::format("{}: layer {} was not measured, since the loss does not pass through it; keep or drop "
                                   "multi-token-prediction blocks", folder, layer));
  }
}

nlohmann::ordered_json row_importance_record(const ExportRequest& request) {
  nlohmann::ordered_json tasks = nlohmann::ordered_json::array();
  for (const auto& task : read_statistics_manifest(request.row_importance).tasks) {
    tasks.push_back({{"name", task.name}, {"digest", task.digest}});
  }
  return tasks;
}

std::vector<std::vector<RowImportance>> find_row_importance(const Checkpoint& source, const ExportRequest& request,
                                                            const ExportOptions& options) {
  if (!request.row_importance.empty()) read_row_importance(request);
  const Model& model = *request.model;
  const auto pieces = factored_pieces(request);
  Alignments alignments(source, model, request.sources.statistics);
  std::vector<std::vector<RowImportance>> out(pieces.size());
  Jobs jobs(pieces.size(), options.stop, "stopped by a signal; repeat the command to go on");
  jobs.run(options.writers, [&] {
    ComputedSlab slabs(source, model, alignments);
    while (const auto i = jobs.take()) {
      const bool known = !request.low_rank->measured.empty();
      out[*i] = known ? measured_rows(model, *request.low_rank, *pieces[*i]) : slabs.row_importance(*pieces[*i]);
    }
  });
  return out;
}

float row_threshold(std::span<const std::vector<RowImportance>> pieces, const Share& share) {
  std::vector<RowImportance> rows;
  for (const auto& piece : pieces) add_rows(rows, piece);
  return row_threshold(rows, share);
}

std::uint64_t low_rank_bytes(const ExportRequest& request, int writers) {
  const Model& model = *request.model;
  std::uint64_t rows = 0, largest = 0;
  for (const Piece* piece : factored_pieces(request)) {
    const TensorPlace& place = place_of(model, *piece->source);
    for (const MatrixView& matrix : matrices_of(model, weight_of(model, place, place.expert))) {
      const std::uint64_t side = std::min(matrix.rows, matrix.columns);
      rows += matrix.rows;
      // Its copy, and the Gram matrix with what its eigenvectors take.
      largest = std::max(largest, (2 * matrix.rows * matrix.columns + 4 * side * side) * sizeof(double));
    }
  }
  constexpr std::uint64_t kPerRow = 3 * sizeof(float) + 2 * sizeof(std::size_t);  // kept, and sorted with its columns
  std::uint64_t measured = 0;  // of all layers, and as the file of one has it
  if (!request.row_importance.empty()) {
    const auto of_layer = static_cast<std::uint64_t>(model.experts * (2 * model.expert_width + model.hidden));
    const auto tasks = read_statistics_manifest(request.row_importance).tasks.size();
    measured = of_layer * (model.moe_layers().size() * sizeof(float) + tasks * sizeof(double));
  }
  return measured + rows * kPerRow + static_cast<std::uint64_t>(writers) * largest;
}

}  // namespace moetrim::export_detail
