// Which tensors a file gets, and where their values come from.

#include "gguf/export/plan_tensors.h"

#include <algorithm>
#include <array>
#include <numeric>

#include <fmt/format.h>

#include "gguf/export/mxfp4_blocks.h"
#include "gguf/export/operations.h"
#include "moetrim/error.h"

namespace moetrim::gguf_detail {

namespace {

std::size_t expert_axis_of(const TensorRule& rule) {
  return static_cast<std::size_t>(std::ranges::find(rule.axes, Axis::E) - rule.axes.begin());
}

/// Whether every expert has a matrix, or a vector, of its own in the weight.
bool is_stacked(const Weight& weight) {
  return weight.fused() || (where_of(weight.rule->role) == Where::experts && weight.rule->axes.front() == Axis::E);
}

/// One weight per expert.
bool is_expert_matrix(Role role) {
  return role == Role::expert_gate || role == Role::expert_up || role == Role::expert_down;
}

/// Slots in their order, of a weight with one row for every expert.
RowList slot_rows(const GgufSource& source, int layer) {
  const auto slots = source.slots(layer);
  return slots.empty() ? nullptr : std::make_shared<const std::vector<std::uint32_t>>(slots.begin(), slots.end());
}

class Planner {
 public:
  Planner(const GgufSource& source, const GgufMapping& mapping, GgmlType type)
      : source_(source), mapping_(mapping), type_(type) {}

  std::vector<GgufPlannedTensor> run() {
    add_layer(-1);
    for (int layer = 0; layer < source_.blocks(); ++layer) add_layer(layer);
    return std::move(out_);
  }

 private:
  const Model& model() const { return *source_.model; }

  void add_layer(int layer) {
    check_roles(layer);
    for (const GgufTensorRule& rule : mapping_.tensors) {
      if ((where_of(rule.role) == Where::model) != (layer < 0)) continue;
      if (is_expert_matrix(rule.role)) {
        add_experts(rule, layer);
      } else if (const Weight& weight = weight_of(rule.role, layer); weight) {
        add(rule, weight, layer);
      } else if (rule.role == Role::head && mapping_.needs_head) {
        add(rule, model()[Role::embedding], layer);
      }
    }
  }

  const Weight& weight_of(Role role, int layer) const {
    return layer < 0 ? model()[role] : model().layer[static_cast<std::size_t>(layer)][role];
  }

  /// Every tensor of the layer must go somewhere.
  void check_roles(int layer) const {
    const auto check = [&](Role role, const Weight& weight) {
      if (weight && std::ranges::find(mapping_.tensors, role, &GgufTensorRule::role) == mapping_.tensors.end()) {
        throw InvalidInput(fmt::format("{}: tensor {}: llama.cpp's {} has none like it, so it cannot compute this model",
                                       model().checkpoint->folder().string(), weight.values()->name, mapping_.architecture));
      }
    };
    for (std::size_t i = 0; i < kRoleCount; ++i) {
      const auto role = static_cast<Role>(i);
      check(role, weight_of(role, layer));
    }
    if (layer < 0) return;
    for (const auto& matrices : model().layer[static_cast<std::size_t>(layer)].experts) {
      constexpr std::array kRoles{Role::expert_gate, Role::expert_up, Role::expert_down};
      for (std::size_t i = 0; i < matrices.size(); ++i) check(kRoles[i], matrices[i]);
    }
  }

  void add_experts(const GgufTensorRule& rule, int layer) {
    const auto& experts = model().layer[static_cast<std::size_t>(layer)].experts;
    if (experts.empty()) return;
    const std::size_t matrix = rule.role == Role::expert_gate ? 0 : rule.role == Role::expert_up ? 1 : 2;
    GgufPlannedTensor tensor;
    for (const int expert : slots(layer)) tensor.slabs.push_back({&experts[static_cast<std::size_t>(expert)][matrix]});
    const MatrixShape shape = matrix_shape(model(), *tensor.slabs.front().weight);
    finish(std::move(tensor), rule, layer, shape.outputs, shape.inputs,
           {tensor_extent(shape.inputs), tensor_extent(shape.outputs)});
  }

  std::vector<int> slots(int layer) const {
    const auto slots = source_.slots(layer);
    if (!slots.empty()) return {slots.begin(), slots.end()};
    std::vector<int> all(static_cast<std::size_t>(model().experts_in(layer)));
    std::iota(all.begin(), all.end(), 0);
    return all;
  }

  void add(const GgufTensorRule& rule, const Weight& weight, int layer) {
    const MatrixShape shape = matrix_shape(model(), weight);
    const bool by_expert = expert_axis_of(*weight.rule) < weight.rule->axes.size();
    GgufPlannedTensor tensor;
    const RowList rows =
        by_expert && !is_stacked(weight) ? slot_rows(source_, layer) : rows_of(source_, rule, shape.outputs);
    if (is_stacked(weight)) {
      for (const int expert : slots(layer)) tensor.slabs.push_back({&weight, expert, rows});
    } else {
      tensor.slabs.push_back({&weight, -1, rows});
    }
    const std::int64_t count = rows ? static_cast<std::int64_t>(rows->size()) : shape.outputs;
    tensor.columns = columns_of(source_, rule, shape.inputs);
    tensor.transposed_rows = transposed_rows(source_, rule);
    if (tensor.transposed_rows > 0) {
      const std::int64_t runs = count / tensor.transposed_rows;
      return finish(std::move(tensor), rule, layer, runs * shape.inputs, tensor.transposed_rows,
                    {tensor_extent(tensor.transposed_rows), tensor_extent(shape.inputs), tensor_extent(runs)});
    }
    finish(std::move(tensor), rule, layer, count, shape.inputs, extents(rule, weight, shape, count));
  }

  /// Of one slab, in ggml's order.
  std::vector<std::uint64_t> extents(const GgufTensorRule& rule, const Weight& weight, const MatrixShape& shape,
                                     std::int64_t rows) const {
    if (is_stacked(weight) && !weight.fused()) return {tensor_extent(rows)};
    if (rule.operation == GgufOperation::latent_value) {
      return {tensor_extent(shape.inputs), tensor_extent(model().latent.value), tensor_extent(model().heads)};
    }
    if (weight.fused() || weight.packed()) return {tensor_extent(shape.inputs), tensor_extent(rows)};
    const auto& axes = weight.rule->axes;
    const std::size_t counted = expert_axis_of(*weight.rule) < axes.size() ? expert_axis_of(*weight.rule) : 0;
    std::vector<std::uint64_t> out;
    for (std::size_t i = axes.size(); i-- > 0;) {
      if (squeezes(rule.operation) && axes[i] == Axis::one) continue;
      out.push_back(tensor_extent(i == counted ? rows : weight.values()->shape.at(i)));
    }
    return out;
  }

  static std::uint64_t tensor_extent(std::int64_t n) { return static_cast<std::uint64_t>(n); }

  void finish(GgufPlannedTensor tensor, const GgufTensorRule& rule, int layer, std::int64_t rows, std::int64_t cols,
              std::vector<std::uint64_t> shape) {
    const bool of_experts = is_stacked(*tensor.slabs.front().weight) || is_expert_matrix(rule.role);
    if (of_experts) shape.push_back(tensor.slabs.size());
    tensor.rows = rows;
    tensor.cols = cols;
    tensor.change = change_of(rule.operation);
    tensor.spec.name = layer < 0 ? std::string(rule.name) : fmt::format(fmt::runtime(rule.name), layer);
    const auto has_blocks = [&](const GgufSlab& slab) { return has_mxfp4_blocks(model(), *slab.weight); };
    const bool codes = of_experts && std::ranges::all_of(tensor.slabs, has_blocks);
    tensor.spec.type = codes ? GgmlType::mxfp4 : stored_type(tensor.spec.name, shape, type_);
    tensor.spec.shape = std::move(shape);
    out_.push_back(std::move(tensor));
  }

  const GgufSource& source_;
  const GgufMapping& mapping_;
  GgmlType type_;
  std::vector<GgufPlannedTensor> out_;
};

}  // namespace

std::vector<GgufPlannedTensor> plan_gguf_tensors(const GgufSource& source, const GgufMapping& mapping, GgmlType type) {
  return Planner(source, mapping, type).run();
}

MatrixShape matrix_shape(const Model& model, const Weight& weight) {
  const auto& axes = weight.rule->axes;
  if (weight.fused() || weight.packed()) {
    const StoredMatrix stored = stored_matrix(model, weight);
    const auto [rows, cols] = std::pair(stored.packing.rows, stored.packing.cols);
    return stored.transposed ? MatrixShape{cols, rows, true} : MatrixShape{rows, cols, false};
  }
  // A vector is a matrix with one column; so is what has an expert axis behind one of length 1.
  const auto& shape = weight.values()->shape;
  if (is_stacked(weight)) return {shape.at(1), 1, false};
  const std::size_t axis = expert_axis_of(*weight.rule) < axes.size() ? expert_axis_of(*weight.rule) : 0;
  const std::int64_t all = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  return {shape.at(axis), all / shape.at(axis), false};
}

GgmlType stored_type(std::string_view name, const std::vector<std::uint64_t>& shape, GgmlType type) {
  // Matrices that llama.cpp's operations take as f32 alone.
  constexpr std::array<std::string_view, 3> kAlways = {".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight",
                                                       ".ssm_conv1d.weight"};
  const bool single = std::ranges::any_of(kAlways, [&](std::string_view end) { return name.ends_with(end); });
  if (shape.size() <= 1 || single || !name.ends_with(".weight") || name.ends_with("_norm.weight")) return GgmlType::f32;
  const GgmlLayout& layout = ggml_layout(type);
  return shape.front() % layout.block_elements == 0 ? type : GgmlType::f16;
}

}  // namespace moetrim::gguf_detail
