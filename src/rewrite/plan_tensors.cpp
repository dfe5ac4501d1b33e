// Every tensor of the new checkpoint as byte ranges of the old one.

#include <algorithm>
#include <numeric>
#include <optional>

#include <fmt/format.h>

#include "family/name_pattern.h"
#include "moetrim/error.h"
#include "moetrim/rewrite.h"
#include "rewrite/edited_tensors.h"
#include "rewrite/module_lists.h"
#include "rewrite/renumbering.h"
#include "rewrite/slim_tensors.h"

namespace moetrim {

std::uint64_t AtomCut::row_bytes_after() const {
  std::int64_t units = 0;
  for (const AtomRange& range : *atoms) units += (range.end + step - 1) / step - range.begin / step;
  return static_cast<std::uint64_t>(units) * kept_bytes + zero_bytes;
}

std::uint64_t Piece::bytes() const {
  if (!cut.atoms) return end - begin;
  return (end - begin) / cut.row_bytes * cut.row_bytes_after();
}

namespace {

OutputTensor whole(const Tensor& tensor, std::string name) {
  OutputTensor out;
  out.spec = tensor;
  out.spec.name = std::move(name);
  if (tensor.size > 0) out.pieces.push_back({&tensor, 0, tensor.size});
  return out;
}

/// Appends a range, joining it to the one before where they touch: fewer and longer reads.
void append(std::vector<Piece>& pieces, const Piece& piece) {
  if (piece.begin == piece.end) return;
  if (!pieces.empty() && pieces.back().end == piece.begin) {
    pieces.back().end = piece.end;
  } else {
    pieces.push_back(piece);
  }
}

/// Bytes of one expert's slice, in one of the `outer` blocks before the expert axis.
std::uint64_t slice_bytes(const Tensor& tensor, std::uint64_t slices) {
  const std::uint64_t elements =
      std::accumulate(tensor.shape.begin(), tensor.shape.end(), std::uint64_t{1}, [](std::uint64_t product, std::int64_t n) {
        return product * static_cast<std::uint64_t>(n);
      });
  const std::uint64_t bits = elements / slices * static_cast<std::uint64_t>(dtype_bits(tensor.dtype));
  if (bits % 8 != 0) {
    throw InvalidInput(fmt::format("tensor {}: the part of one expert has {} bits and does not end on a byte, so it cannot be "
                                   "moved unchanged", tensor.name, bits));
  }
  return bits / 8;
}

/// Rows of the expert axis, which need not be the first one.
OutputTensor slice(const Tensor& tensor, std::size_t axis, const std::vector<int>& keep) {
  const auto outer = std::accumulate(tensor.shape.begin(), tensor.shape.begin() + static_cast<std::ptrdiff_t>(axis),
                                     std::uint64_t{1}, [](std::uint64_t product, std::int64_t n) {
                                       return product * static_cast<std::uint64_t>(n);
                                     });
  const auto experts = static_cast<std::uint64_t>(tensor.shape[axis]);
  OutputTensor out;
  out.spec = tensor;
  out.spec.shape[axis] = static_cast<std::int64_t>(keep.size());
  if (outer == 0 || experts == 0) return out;
  const std::uint64_t bytes = slice_bytes(tensor, outer * experts);
  for (std::uint64_t block = 0; block < outer; ++block) {
    for (const int expert : keep) {
      const std::uint64_t begin = (block * experts + static_cast<std::uint64_t>(expert)) * bytes;
      append(out.pieces, {&tensor, begin, begin + bytes});
    }
  }
  return out;
}

/// Also tensors of a block that the family does not know.
bool is_mtp(const Model& model, const Tensor& tensor, const TensorPlace& place) {
  if (place.rule != nullptr) return place.layer >= model.layers;
  return model.mtp_layers > 0 && names_mtp(tensor.name, model);
}

/// Appends the tensor as often as the new checkpoint has it: not at all when its expert is dropped.
void append_moved(const Tensor& tensor, const TensorPlace& place, const Renumbering& numbers, std::vector<OutputTensor>& out) {
  if (place.rule == nullptr || !numbers.covers(place.layer)) {
    out.push_back(whole(tensor, tensor.name));
    return;
  }
  if (place.expert >= 0) {
    for (const int slot : numbers.slots_of(place.layer, place.expert)) {
      out.push_back(whole(tensor, with_expert(place.rule->name, tensor.name, slot)));
    }
    return;
  }
  const auto& axes = place.rule->axes;
  const auto axis = std::find(axes.begin(), axes.end(), Axis::E);
  if (axis == axes.end()) {
    out.push_back(whole(tensor, tensor.name));
    return;
  }
  // A scale that all experts share has no expert axis.
  const auto index = static_cast<std::size_t>(axis - axes.begin());
  if (place.part != Part::values && (index >= tensor.shape.size() || tensor.shape == std::vector<std::int64_t>{1})) {
    out.push_back(whole(tensor, tensor.name));
    return;
  }
  const bool of_expert = where_of(place.rule->role) == Where::experts;
  out.push_back(slice(tensor, index, of_expert ? numbers.keep(place.layer) : numbers.router_rows(place.layer)));
}

}  // namespace

std::vector<OutputTensor> plan_tensors(const Model& model, const Plan& plan, Mtp mtp, const RewriteSources& sources) {
  const Renumbering numbers(model, plan, mtp);
  const EditedTensors edited(model, plan, numbers, sources);
  const Slimming slimming = slimming_of(model, plan, mtp);
  const SlimTensors slim(model, slimming, numbers);
  const auto& tensors = model.checkpoint->tensors();
  std::vector<OutputTensor> out;
  out.reserve(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (mtp == Mtp::drop && is_mtp(model, tensors[i], model.places.at(i))) continue;
    if (edited.append(tensors[i], model.places[i], out) || slim.append(tensors[i], model.places[i], out)) continue;
    append_moved(tensors[i], model.places[i], numbers, out);
  }
  return out;
}

}  // namespace moetrim
