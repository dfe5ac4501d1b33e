// Which part of which weight a tensor is, by the endings that the published formats give their tensors.
#include <array>

#include "moetrim/quantised.h"

namespace moetrim {
namespace {

struct Ending {
  std::string_view text;
  Part part;
};

// An ending that is part of a longer one never hides it: the character before must be the separator itself.
constexpr std::array kEndings{
    Ending{".weight", Part::values},
    Ending{".weight_packed", Part::values},         // compressed-tensors
    Ending{".qweight", Part::values},               // gptq, awq
    Ending{".weight_scale", Part::scale},
    Ending{".weight_scale_inv", Part::scale},       // fp8 in blocks: the inverse of what quantising multiplied by
    Ending{".scales", Part::scale},                 // gptq, awq
    Ending{".weight_global_scale", Part::global_scale},  // compressed-tensors
    Ending{".weight_scale_2", Part::global_scale},       // modelopt
    Ending{".input_scale", Part::input_scale},
    Ending{".input_global_scale", Part::input_scale},
    Ending{".activation_scale", Part::input_scale},
    Ending{".weight_zero_point", Part::zeros},      // compressed-tensors
    Ending{".qzeros", Part::zeros},                 // gptq, awq
    Ending{".weight_shape", Part::shape},
    Ending{".g_idx", Part::order},                  // gptq
    Ending{".weight_g_idx", Part::order},           // compressed-tensors
};

// Fused experts are parameters of their own, without ".weight": these follow "..._proj".
constexpr std::array kFusedEndings{
    Ending{"_blocks", Part::values},  // mxfp4
    Ending{"_scales", Part::scale},
    Ending{"_scale_inv", Part::scale},
    Ending{"_scale", Part::scale},
    Ending{"_activation_scale", Part::input_scale},
    Ending{"_input_scale", Part::input_scale},
};
constexpr std::string_view kFusedStem = "_proj";

std::optional<PartName> split_at(std::string_view name, const Ending& ending) {
  if (name.size() <= ending.text.size() || !name.ends_with(ending.text)) return std::nullopt;
  const std::size_t cut = name.size() - ending.text.size();
  return PartName{name.substr(0, cut), ending.part, name.substr(cut)};
}

}  // namespace

std::optional<PartName> split_part(std::string_view tensor_name) {
  for (const Ending& ending : kEndings) {
    if (const auto found = split_at(tensor_name, ending)) return found;
  }
  for (const Ending& ending : kFusedEndings) {
    const auto found = split_at(tensor_name, ending);
    if (found && found->module.ends_with(kFusedStem)) return found;
  }
  return std::nullopt;
}

std::string_view part_name(Part part) {
  constexpr std::array<std::string_view, kPartCount> kNames{"values",     "scale", "global scale", "scale of inputs",
                                                            "zero point", "shape", "column order"};
  return kNames.at(static_cast<std::size_t>(part));
}

}  // namespace moetrim
