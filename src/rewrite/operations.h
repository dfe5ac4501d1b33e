// Operations: what a plan makes of the values of experts, routers and norms. One file each in operations/, one line in
// operations.def.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "moetrim/family.h"
#include "moetrim/rewrite.h"

namespace moetrim {

/// Which slab of the new checkpoint.
struct SlabPlace {
  Role role = Role::count_;
  int slot = -1;        ///< the expert of the new checkpoint, or the router's row; -1: the tensor has no expert axis
  int expert = -1;      ///< its id in the source; likewise
};

/// One operation on one plan.
class Editor {
 public:
  virtual ~Editor() = default;
  /// Changes the recipe of a slab, or leaves it.
  virtual void edit(const PlanLayer& layer, const SlabPlace& place, SlabRecipe& recipe) const = 0;
};

struct Operation {
  std::string_view name;
  /// Null when the plan asks for nothing of the kind.
  /// @throws InvalidInput when the model cannot take it, or a source is missing.
  std::unique_ptr<Editor> (*make)(const Model& model, const Plan& plan, const RewriteSources& sources);
};

/// All operations of a plan.
class Operations {
 public:
  /// All three must outlive this.
  Operations(const Model& model, const Plan& plan, const RewriteSources& sources);

  /// The values of a slab: those of its expert, or what the operations make of them.
  SlabRecipe recipe(const PlanLayer& layer, const SlabPlace& place) const;
  bool empty() const { return editors_.empty(); }

 private:
  std::vector<std::unique_ptr<Editor>> editors_;
};

namespace operations {
#define MOETRIM_OPERATION(name) extern const Operation name;
#include "rewrite/operations.def"
#undef MOETRIM_OPERATION
}  // namespace operations

}  // namespace moetrim
