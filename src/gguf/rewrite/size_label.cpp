// general.size_label by the rule of llama.cpp's converter: gguf-py's utility.py, and the counts of its gguf_writer.py.

#include <algorithm>
#include <cctype>
#include <cmath>

#include <fmt/format.h>

#include "gguf/rewrite/names.h"
#include "moetrim/gguf_rewrite.h"

namespace moetrim {

namespace {

/// Parameters by whether all tokens use them. As the rule has it, biases and scales of experts count as shared.
struct Parameters {
  double shared = 0, of_an_expert = 0;
};

Parameters count(const std::vector<GgufOutputFile>& files) {
  Parameters out;
  for (const GgufOutputFile& file : files) {
    for (const GgufOutputTensor& tensor : file.tensors) {
      double elements = 1;
      for (const auto extent : tensor.spec.shape) elements *= static_cast<double>(extent);
      const auto name = gguf_detail::block_tensor(tensor.spec.name);
      const auto* known = name ? gguf_detail::find_expert_tensor(name->name) : nullptr;
      if (known != nullptr && known->extents == 3) out.of_an_expert += elements / static_cast<double>(tensor.spec.shape.back());
      else out.shared += elements;
    }
  }
  return out;
}

/// Two digits at least: "1.8B", "30B", "0.60K".
std::string rounded(double parameters) {
  struct Unit {
    double size;
    char letter;
  };
  Unit unit{1e3, 'K'};
  for (const Unit larger : {Unit{1e6, 'M'}, Unit{1e9, 'B'}, Unit{1e12, 'T'}}) {
    if (parameters > larger.size) unit = larger;
  }
  const double scaled = parameters / unit.size;
  const double whole = std::nearbyint(scaled);
  const int digits = whole >= 10 ? 2 : whole >= 1 ? 1 : 0;
  return fmt::format("{:.{}f}{}", scaled, 2 - digits, unit.letter);
}

/// "30B-A3B": where the part begins that tells what a token uses; npos for other forms.
std::size_t active_part(std::string_view label) {
  const auto at = label.find("-A");
  const bool number = at != std::string_view::npos && at > 0 && at + 2 < label.size() &&
                      std::isdigit(static_cast<unsigned char>(label[0])) != 0 && std::isdigit(static_cast<unsigned char>(label[at + 2])) != 0;
  return number ? at : std::string_view::npos;
}

}  // namespace

std::string gguf_size_label(std::string_view before, const std::vector<GgufOutputFile>& files, int experts, int experts_per_token,
                            bool active_changed) {
  const Parameters parameters = count(files);
  const auto active = active_part(before);
  if (active == std::string_view::npos) return fmt::format("{}x{}", experts, rounded(parameters.shared + parameters.of_an_expert));
  const std::string total = rounded(parameters.shared + parameters.of_an_expert * experts);
  if (!active_changed) return total + std::string(before.substr(active));
  return fmt::format("{}-A{}", total, rounded(parameters.shared + parameters.of_an_expert * experts_per_token));
}

}  // namespace moetrim
