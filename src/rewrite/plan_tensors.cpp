// Every tensor of the new checkpoint as byte ranges of the old one.

#include <algorithm>

#include <fmt/format.h>

#include "family/expert_slabs.h"
#include "family/name_pattern.h"
#include "moetrim/error.h"
#include "moetrim/rewrite.h"
#include "rewrite/edited_slabs.h"
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
void join(std::vector<Piece>& pieces, const Piece& piece) {
  if (piece.begin == piece.end) return;
  if (!pieces.empty() && pieces.back().end == piece.begin) {
    pieces.back().end = piece.end;
  } else {
    pieces.push_back(piece);
  }
}

/// Also tensors of a block that the family does not know.
bool is_mtp(const Model& model, const Tensor& tensor, const TensorPlace& place) {
  if (place.rule != nullptr) return place.layer >= model.layers;
  return model.mtp_layers > 0 && names_mtp(tensor.name, model);
}

/// Tensors whose bytes follow whole experts.
class MovedTensors {
 public:
  MovedTensors(const Renumbering& numbers, const EditedSlabs& edited) : numbers_(numbers), edited_(edited) {}

  /// Appends the tensor as often as the new checkpoint has it: not at all when its expert is dropped.
  void append(const Tensor& tensor, const TensorPlace& place, std::vector<OutputTensor>& out) const {
    if (place.rule == nullptr || !numbers_.covers(place.layer)) {
      out.push_back(whole(tensor, tensor.name));
    } else if (place.expert >= 0) {
      for (const int slot : numbers_.slots_of(place.layer, place.expert)) {
        out.push_back(edited(tensor, place, with_expert(place.rule->name, tensor.name, slot), slot));
      }
    } else if (const auto axis = expert_axis(tensor, place)) {
      out.push_back(slice(tensor, place, *axis));
    } else {
      out.push_back(edited(tensor, place, tensor.name, -1));
    }
  }

 private:
  OutputTensor edited(const Tensor& tensor, const TensorPlace& place, std::string name, int slot) const {
    OutputTensor out = whole(tensor, std::move(name));
    for (Piece& piece : out.pieces) piece.recipe = edited_.recipe(tensor, place, slot, place.expert);
    edited_.requantise(out, place, {});
    return out;
  }

  /// Entries of the expert axis, which need not be the first one.
  OutputTensor slice(const Tensor& tensor, const TensorPlace& place, std::size_t axis) const {
    const bool of_expert = where_of(place.rule->role) == Where::experts;
    const auto& keep = of_expert ? numbers_.keep(place.layer) : numbers_.router_rows(place.layer);
    const ExpertSlabs slabs = expert_slabs(tensor, axis, "moved unchanged");
    OutputTensor out;
    out.spec = tensor;
    out.spec.shape[axis] = static_cast<std::int64_t>(keep.size());
    if (slabs.outer == 0 || slabs.experts == 0) return out;
    std::vector<std::shared_ptr<const SlabRecipe>> recipes;
    for (std::size_t slot = 0; slot < keep.size(); ++slot) {
      recipes.push_back(edited_.recipe(tensor, place, static_cast<int>(slot), keep[slot]));
    }
    const bool any = std::any_of(recipes.begin(), recipes.end(), [](const auto& recipe) { return recipe != nullptr; });
    if (any && slabs.outer > 1) throw Error(fmt::format("tensor {}: an expert's values do not lie side by side", tensor.name));
    for (std::uint64_t block = 0; block < slabs.outer; ++block) {
      for (std::size_t slot = 0; slot < keep.size(); ++slot) {
        const std::uint64_t begin = slabs.begin(block, keep[slot]);
        Piece piece{.source = &tensor, .begin = begin, .end = begin + slabs.bytes, .cut = {}, .recipe = recipes[slot]};
        if (any) out.pieces.push_back(std::move(piece));  // a slab a piece
        else join(out.pieces, piece);
      }
    }
    edited_.requantise(out, place, keep);
    return out;
  }

  const Renumbering& numbers_;
  const EditedSlabs& edited_;
};

}  // namespace

std::vector<OutputTensor> plan_tensors(const Model& model, const Plan& plan, Mtp mtp, const RewriteSources& sources) {
  const Renumbering numbers(model, plan, mtp);
  const EditedSlabs edited(model, plan, numbers, sources);
  const MovedTensors moved(numbers, edited);
  const Slimming slimming = slimming_of(model, plan, mtp, sources);
  const SlimTensors slim(model, slimming, numbers, edited);
  const auto& tensors = model.checkpoint->tensors();
  std::vector<OutputTensor> out;
  out.reserve(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (mtp == Mtp::drop && is_mtp(model, tensors[i], model.places.at(i))) continue;
    if (!slim.append(tensors[i], model.places[i], out)) moved.append(tensors[i], model.places[i], out);
  }
  return out;
}

}  // namespace moetrim
