// Element types of the safetensors format, and the size of a tensor.
#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "quote.h"
#include "tensor_size.h"

namespace moetrim {
namespace {

struct DtypeRow {
  Dtype dtype;
  std::string_view name;
  int bits;
};

// Source: the Dtype enumeration of the safetensors format, release 0.8.
constexpr std::array kDtypes{
    DtypeRow{Dtype::boolean, "BOOL", 8},         DtypeRow{Dtype::u8, "U8", 8},
    DtypeRow{Dtype::i8, "I8", 8},                DtypeRow{Dtype::f8_e4m3, "F8_E4M3", 8},
    DtypeRow{Dtype::f8_e5m2, "F8_E5M2", 8},      DtypeRow{Dtype::f8_e8m0, "F8_E8M0", 8},
    DtypeRow{Dtype::f8_e4m3fnuz, "F8_E4M3FNUZ", 8}, DtypeRow{Dtype::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
    DtypeRow{Dtype::f4, "F4", 4},                DtypeRow{Dtype::f6_e2m3, "F6_E2M3", 6},
    DtypeRow{Dtype::f6_e3m2, "F6_E3M2", 6},      DtypeRow{Dtype::i16, "I16", 16},
    DtypeRow{Dtype::u16, "U16", 16},             DtypeRow{Dtype::f16, "F16", 16},
    DtypeRow{Dtype::bf16, "BF16", 16},           DtypeRow{Dtype::i32, "I32", 32},
    DtypeRow{Dtype::u32, "U32", 32},             DtypeRow{Dtype::f32, "F32", 32},
    DtypeRow{Dtype::i64, "I64", 64},             DtypeRow{Dtype::u64, "U64", 64},
    DtypeRow{Dtype::f64, "F64", 64},             DtypeRow{Dtype::c64, "C64", 64},
};

constexpr bool rows_follow_the_enumeration() {
  for (std::size_t i = 0; i < kDtypes.size(); ++i) {
    if (static_cast<std::size_t>(kDtypes[i].dtype) != i) return false;
  }
  return true;
}
static_assert(rows_follow_the_enumeration());

const DtypeRow& row(Dtype dtype) { return kDtypes.at(static_cast<std::size_t>(dtype)); }

}  // namespace

std::string_view dtype_name(Dtype dtype) { return row(dtype).name; }

int dtype_bits(Dtype dtype) { return row(dtype).bits; }

std::optional<Dtype> dtype_from_name(std::string_view name) {
  const auto found = std::ranges::find(kDtypes, name, &DtypeRow::name);
  if (found == kDtypes.end()) return std::nullopt;
  return found->dtype;
}

std::uint64_t checkpoint_detail::tensor_bytes(const TensorSpec& tensor, std::string_view where) {
  const auto refuse = [&](std::string_view why) -> InvalidInput {
    return InvalidInput(fmt::format("{}tensor {}: {} (type {}, shape [{}])", where, in_quotes(tensor.name), why,
                                    dtype_name(tensor.dtype), shown_shape(tensor.shape)));
  };
  std::uint64_t count = 1;
  for (const std::int64_t extent : tensor.shape) {
    if (extent < 0) throw refuse("an extent of the shape is negative");
    if (__builtin_mul_overflow(count, static_cast<std::uint64_t>(extent), &count)) {
      throw refuse("the product of the shape does not fit into 64 bits");
    }
  }
  std::uint64_t bits = 0;
  if (__builtin_mul_overflow(count, static_cast<std::uint64_t>(dtype_bits(tensor.dtype)), &bits)) {
    throw refuse("the size of the shape in bits does not fit into 64 bits");
  }
  if (bits % 8 != 0) {
    throw refuse(fmt::format("{} elements of {} bits do not end on a byte; the count must be a multiple of {}", count,
                             dtype_bits(tensor.dtype), dtype_bits(tensor.dtype) == 4 ? 2 : 4));
  }
  return bits / 8;
}

std::string checkpoint_detail::shown_shape(std::span<const std::int64_t> shape) {
  constexpr std::size_t kShownExtents = 8;
  const auto shown = shape.first(std::min(shape.size(), kShownExtents));
  std::string text = fmt::format("{}", fmt::join(shown, ", "));
  if (shown.size() < shape.size()) text += fmt::format(", ... {} in all", shape.size());
  return text;
}

std::uint64_t TensorSpec::bytes() const { return checkpoint_detail::tensor_bytes(*this, ""); }

}  // namespace moetrim
