// Rotary embedding whose scaling is a tensor: by what every frequency is divided.

#include "gguf/architectures/rope_tensors.h"

#include <cmath>

#include <fmt/format.h>

namespace moetrim::gguf_list {

void add_llama3_factors(const gguf_detail::GgufSource& source, gguf_detail::GgufKeys& keys) {
  const Rope& rope = source.model->rope;
  if (rope.kind != RopeKind::llama3) return;
  Rope plain = rope;
  plain.kind = RopeKind::standard;
  const std::vector<float> scaled = inverse_frequencies(rope, rope.max_positions), base = inverse_frequencies(plain, rope.max_positions);
  gguf_detail::GgufLiteral factors{.name = "rope_freqs.weight", .values = {}};
  for (std::size_t i = 0; i < base.size(); ++i) factors.values.push_back(base[i] / scaled[i]);
  keys.tensors.push_back(std::move(factors));
}

void add_longrope_factors(const gguf_detail::GgufSource& source, gguf_detail::GgufKeys& keys) {
  const Rope& rope = source.model->rope;
  if (rope.kind != RopeKind::longrope) return;
  // One factor for both lengths is all that a file can say.
  if (rope.attention_factor != rope.long_attention_factor) {
    source.refuse(fmt::format("rope scaling multiplies cosine and sine by {} up to the original length and by {} beyond it; llama.cpp has "
                              "one factor", rope.attention_factor, rope.long_attention_factor));
  }
  keys.whole("rope.scaling.original_context_length", rope.original_max_positions);
  keys.real("rope.scaling.attn_factor", rope.attention_factor);
  for (const auto& [name, factors] : {std::pair("rope_factors_long.weight", &rope.long_factors),
                                      std::pair("rope_factors_short.weight", &rope.short_factors)}) {
    keys.tensors.push_back({.name = name, .values = {factors->begin(), factors->end()}});
  }
}

}  // namespace moetrim::gguf_list
