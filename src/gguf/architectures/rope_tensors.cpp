// Rotary embedding whose scaling is a tensor: by what every frequency is divided.

#include "gguf/architectures/rope_tensors.h"

#include <algorithm>
#include <array>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace moetrim::gguf_list {

void add_llama3_factors(const gguf_detail::GgufSource& source, gguf_detail::GgufKeys& keys) {
  const Rope& rope = source.model->rope;
  if (rope.kind != RopeKind::llama3) return;
  Rope plain = rope;
  plain.kind = RopeKind::standard;
  const std::vector<float> scaled = inverse_frequencies(rope, rope.max_positions);
  const std::vector<float> base = inverse_frequencies(plain, rope.max_positions);
  gguf_detail::GgufLiteral factors{.name = "rope_freqs.weight", .values = {}};
  for (std::size_t i = 0; i < base.size(); ++i) factors.values.push_back(base[i] / scaled[i]);
  keys.tensors.push_back(std::move(factors));
}

void add_longrope_factors(const gguf_detail::GgufSource& source, gguf_detail::GgufKeys& keys) {
  const Rope& rope = source.model->rope;
  if (rope.kind != RopeKind::longrope) return;
  // One factor for both lengths is all that a file can say.
  if (rope.attention_factor != rope.long_attention_factor) {
    source.refuse(fmt::format("rope scaling multiplies cosine and sine by {} up to the original length and by {} beyond it; "
                              "llama.cpp has one factor", rope.attention_factor, rope.long_attention_factor));
  }
  keys.whole("rope.scaling.original_context_length", rope.original_max_positions);
  keys.real("rope.scaling.attn_factor", rope.attention_factor);
  for (const auto& [name, factors] : {std::pair("rope_factors_long.weight", &rope.long_factors),
                                      std::pair("rope_factors_short.weight", &rope.short_factors)}) {
    keys.tensors.push_back({.name = name, .values = {factors->begin(), factors->end()}});
  }
}

void add_rope_sections(const gguf_detail::GgufSource& source, gguf_detail::GgufKeys& keys, std::vector<std::int32_t> usual) {
  constexpr std::size_t kSections = 4;  // pairs of the last one are not rotated
  const auto* rope = source.find(std::array<std::string_view, 2>{"rope_parameters", "rope_scaling"});
  const auto found = rope == nullptr || !rope->is_object() ? nlohmann::ordered_json()
                                                           : rope->value("mrope_section", nlohmann::ordered_json());
  const auto is_count = [](const auto& n) { return n.is_number_unsigned() && n.template get<std::uint64_t>() < 65536; };
  if (found.is_array() && found.size() < kSections && std::ranges::all_of(found, is_count)) {
    usual = found.get<std::vector<std::int32_t>>();
  } else if (!found.is_null() || usual.empty()) {
    source.refuse("rope_scaling: expected mrope_section, up to three whole numbers");
  }
  const std::int64_t pairs = source.model->rope.dimensions / 2;
  if (std::accumulate(usual.begin(), usual.end(), std::int64_t{0}) != pairs) {
    source.refuse(fmt::format("mrope_section {} does not add up to the {} pairs that are rotated", fmt::join(usual, ", "),
                              pairs));
  }
  usual.resize(kSections);
  keys.wholes("rope.dimension_sections", usual);
}

}  // namespace moetrim::gguf_list
