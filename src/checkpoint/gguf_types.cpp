// Types of tensors in GGUF files, and the sizes that follow from them.
#include <algorithm>
#include <array>
#include <cctype>
#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "gguf_header.h"
#include "moetrim/error.h"
#include "moetrim/gguf_file.h"

namespace moetrim {
namespace {

using enum GgmlType;

// Source: ggml's type traits and blocks, llama.cpp 0.5.0. In the order of the ids.
constexpr std::array kLayouts{
    GgmlLayout{f32, "F32", 1, 4},            GgmlLayout{f16, "F16", 1, 2},           GgmlLayout{q4_0, "Q4_0", 32, 18},
    GgmlLayout{q4_1, "Q4_1", 32, 20},        GgmlLayout{q5_0, "Q5_0", 32, 22},       GgmlLayout{q5_1, "Q5_1", 32, 24},
    GgmlLayout{q8_0, "Q8_0", 32, 34},        GgmlLayout{q8_1, "Q8_1", 32, 36},       GgmlLayout{q2_k, "Q2_K", 256, 84},
    GgmlLayout{q3_k, "Q3_K", 256, 110},      GgmlLayout{q4_k, "Q4_K", 256, 144},     GgmlLayout{q5_k, "Q5_K", 256, 176},
    GgmlLayout{q6_k, "Q6_K", 256, 210},      GgmlLayout{q8_k, "Q8_K", 256, 292},     GgmlLayout{iq2_xxs, "IQ2_XXS", 256, 66},
    GgmlLayout{iq2_xs, "IQ2_XS", 256, 74},   GgmlLayout{iq3_xxs, "IQ3_XXS", 256, 98}, GgmlLayout{iq1_s, "IQ1_S", 256, 50},
    GgmlLayout{iq4_nl, "IQ4_NL", 32, 18},    GgmlLayout{iq3_s, "IQ3_S", 256, 110},   GgmlLayout{iq2_s, "IQ2_S", 256, 82},
    GgmlLayout{iq4_xs, "IQ4_XS", 256, 136},  GgmlLayout{i8, "I8", 1, 1},             GgmlLayout{i16, "I16", 1, 2},
    GgmlLayout{i32, "I32", 1, 4},            GgmlLayout{i64, "I64", 1, 8},           GgmlLayout{f64, "F64", 1, 8},
    GgmlLayout{iq1_m, "IQ1_M", 256, 56},     GgmlLayout{bf16, "BF16", 1, 2},         GgmlLayout{tq1_0, "TQ1_0", 256, 54},
    GgmlLayout{tq2_0, "TQ2_0", 256, 66},     GgmlLayout{mxfp4, "MXFP4", 32, 17},     GgmlLayout{nvfp4, "NVFP4", 64, 36},
    GgmlLayout{q1_0, "Q1_0", 128, 18},       GgmlLayout{q2_0, "Q2_0", 64, 18},
};

bool same_letters(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, [](unsigned char x, unsigned char y) { return std::toupper(x) == std::toupper(y); });
}

bool multiply(std::uint64_t& product, std::uint64_t factor) { return !__builtin_mul_overflow(product, factor, &product); }

std::string shown(const std::vector<std::uint64_t>& shape) { return fmt::format("{}", fmt::join(shape, ", ")); }

}  // namespace

const GgmlLayout* find_ggml_layout(GgmlType type) {
  const auto found = std::ranges::lower_bound(kLayouts, type, {}, &GgmlLayout::type);
  return found == kLayouts.end() || found->type != type ? nullptr : &*found;
}

const GgmlLayout& ggml_layout(GgmlType type) {
  if (const GgmlLayout* found = find_ggml_layout(type)) return *found;
  throw Error(fmt::format("ggml has no type {}", static_cast<std::uint32_t>(type)));
}

std::optional<GgmlType> ggml_type_from_name(std::string_view name) {
  const auto found = std::ranges::find_if(kLayouts, [&](const auto& layout) { return same_letters(layout.name, name); });
  return found == kLayouts.end() ? std::nullopt : std::optional(found->type);
}

std::uint64_t checkpoint_detail::gguf_bytes(const GgufTensorSpec& tensor, std::string_view where) {
  const GgmlLayout* layout = find_ggml_layout(tensor.type);
  if (layout == nullptr) {
    throw InvalidInput(fmt::format("{}its type {} is none of ggml's, or one that ggml has given up", where,
                                   static_cast<std::uint32_t>(tensor.type)));
  }
  if (tensor.shape.empty() || tensor.shape.size() > 4) {
    throw InvalidInput(fmt::format("{}it has {} dimensions, expected one to four", where, tensor.shape.size()));
  }
  std::uint64_t elements = 1;
  bool fits = true;
  for (const std::uint64_t extent : tensor.shape) {
    if (extent == 0) throw InvalidInput(fmt::format("{}its shape [{}] has an extent of 0", where, shown(tensor.shape)));
    fits = fits && multiply(elements, extent) && elements <= std::numeric_limits<std::int64_t>::max();
  }
  if (tensor.shape[0] % layout->block_elements != 0) {
    throw InvalidInput(fmt::format("{}its rows of {} elements are no whole number of {} blocks, which have {}", where,
                                   tensor.shape[0], layout->name, layout->block_elements));
  }
  std::uint64_t bytes = elements / layout->block_elements;
  if (!fits || !multiply(bytes, layout->block_bytes) || bytes > std::numeric_limits<std::int64_t>::max()) {
    throw InvalidInput(fmt::format("{}its shape [{}] has more elements or bytes than 63 bits can count", where,
                                   shown(tensor.shape)));
  }
  return bytes;
}

std::uint64_t GgufTensorSpec::bytes() const {
  return checkpoint_detail::gguf_bytes(*this, fmt::format("tensor '{}': ", name));
}

std::uint64_t GgufTensorSpec::row_bytes() const {
  std::uint64_t rows = 1;
  const std::uint64_t all = bytes();
  for (std::size_t i = 1; i < shape.size(); ++i) rows *= shape[i];
  return all / rows;
}

}  // namespace moetrim
