// Values packed into words of 32 bits. First codes become bytes in the order of the matrix, a tile at a time, which is
// where the packings differ; then one loop, the same for all, makes numbers of them.
#include <algorithm>
#include <array>
#include <cstring>

#include "decode.h"
#include "layout.h"
#include "small_float.h"

namespace moetrim::quantised_detail {
namespace {

constexpr std::size_t kTileRows = static_cast<std::size_t>(kRowsAtOnce);
constexpr std::size_t kTileCols = 256;  // a multiple of the 32 columns that a run of words holds

/// Codes of a tile, one per byte, [kTileRows, kTileCols].
using Codes = std::array<std::uint8_t, kTileRows * kTileCols>;

/// Columns [first_col, first_col + cols) of rows [first_row, first_row + rows).
struct Tile {
  std::size_t first_row, rows, first_col, cols;
};

/// Eight nibbles to eight bytes.
std::uint64_t spread(std::uint32_t word) {
  std::uint64_t x = word;
  x = (x | x << 16U) & 0x0000FFFF0000FFFFULL;
  x = (x | x << 8U) & 0x00FF00FF00FF00FFULL;
  return (x | x << 4U) & 0x0F0F0F0F0F0F0F0FULL;
}

/// Codes of `bits` words (32 codes), low bits first, written to `out`.
void unpack_32(const std::uint32_t* words, int bits, std::uint8_t* out) {
  if (bits == 8) {
    std::memcpy(out, words, 32);
  } else if (bits == 4) {
    for (std::size_t i = 0; i < 4; ++i) {
      const std::uint64_t eight = spread(words[i]);
      std::memcpy(out + 8 * i, &eight, sizeof eight);
    }
  } else {
    const auto width = static_cast<std::size_t>(bits);
    for (std::size_t i = 0; i < 32; ++i) {
      const std::size_t shift = i * width % 32;
      std::uint64_t two = words[i * width / 32];
      if (shift + width > 32) two |= std::uint64_t{words[i * width / 32 + 1]} << 32U;
      out[i] = static_cast<std::uint8_t>(two >> shift & ((1U << width) - 1U));
    }
  }
}

/// gptq: words run down the columns of [K·bits/32, N]; K is a multiple of 32.
void unpack_gptq(const std::byte* values, const Packing& packing, const Tile& tile, Codes& codes) {
  const auto bits = static_cast<std::size_t>(packing.bits);
  const auto stride = static_cast<std::size_t>(packing.rows);
  std::array<std::uint32_t, 8> words{};
  for (std::size_t k = 0; k < tile.cols; k += 32) {
    const std::size_t word_row = (tile.first_col + k) / 32 * bits;
    for (std::size_t n = 0; n < tile.rows; ++n) {
      for (std::size_t b = 0; b < bits; ++b) {
        words[b] = load<std::uint32_t>(values, (word_row + b) * stride + tile.first_row + n);
      }
      unpack_32(words.data(), packing.bits, codes.data() + n * kTileCols + k);
    }
  }
}

/// Byte r of word c becomes byte c of word r: halves, then quarters, then eighths change places.
void transpose_bytes(std::array<std::uint64_t, 8>& words) {
  const auto exchange = [&](std::size_t distance, std::uint64_t low) {
    for (std::size_t i = 0; i < 8; ++i) {
      if (i & distance) continue;
      const std::uint64_t moved = ((words[i] >> 8 * distance) ^ words[i + distance]) & low;
      words[i + distance] ^= moved;
      words[i] ^= moved << 8 * distance;
    }
  };
  exchange(4, 0x00000000FFFFFFFFULL);
  exchange(2, 0x0000FFFF0000FFFFULL);
  exchange(1, 0x00FF00FF00FF00FFULL);
}

/// awq: a word of [K, N/8] holds one column of eight rows. Eight such words are an eight by eight square.
void unpack_awq(const std::byte* values, const Packing& packing, const Tile& tile, Codes& codes) {
  const auto stride = static_cast<std::size_t>(packing.rows / 8);
  for (std::size_t k = 0; k < tile.cols; k += 8) {
    for (std::size_t n = 0; n < tile.rows; n += 8) {
      std::array<std::uint64_t, 8> square{};
      for (std::size_t i = 0; i < std::min<std::size_t>(8, tile.cols - k); ++i) {
        square[i] = spread(load<std::uint32_t>(values, (tile.first_col + k + i) * stride + (tile.first_row + n) / 8));
      }
      transpose_bytes(square);
      for (std::size_t i = 0; i < 8; ++i) {
        std::memcpy(codes.data() + (n + kAwqOrder[i]) * kTileCols + k, &square[i], sizeof square[i]);
      }
    }
  }
}

/// packed_int: words run along the rows; the last ones of a row may be filled in part.
void unpack_rows(const std::byte* values, const Packing& packing, const Tile& tile, Codes& codes) {
  const auto bits = static_cast<std::size_t>(packing.bits);
  const auto row_words = static_cast<std::size_t>(words_for(packing.cols, packing.bits));
  for (std::size_t n = 0; n < tile.rows; ++n) {
    for (std::size_t k = 0; k < tile.cols; k += 32) {
      std::array<std::uint32_t, 8> words{};
      const std::size_t first = (tile.first_col + k) / 32 * bits;
      std::memcpy(words.data(), values + ((tile.first_row + n) * row_words + first) * sizeof(std::uint32_t),
                  std::min(bits, row_words - first) * sizeof(std::uint32_t));
      unpack_32(words.data(), packing.bits, codes.data() + n * kTileCols + k);
    }
  }
}

MOETRIM_VECTOR_CODE void value_run(const std::uint8_t* codes, std::size_t count, float zero, float scale, float* out) {
  for (std::size_t i = 0; i < count; ++i) out[i] = (static_cast<float>(codes[i]) - zero) * scale;
}

/// Codes of a tile to numbers, row by row. `out` is the tile's corner in [rows, K].
void scale_tile(const Packing& packing, const Scales& scales, const Tile& tile, const Codes& codes, float* out) {
  const auto group = static_cast<std::size_t>(packing.scale_cols);
  for (std::size_t n = 0; n < tile.rows; ++n, out += packing.cols) {
    const std::uint8_t* row = codes.data() + n * kTileCols;
    const std::size_t grid_row = (tile.first_row + n) / static_cast<std::size_t>(packing.scale_rows);
    const float* scale = scales.scale.data() + grid_row * static_cast<std::size_t>(scales.row_groups);
    const float* zero = scales.zero.data() + grid_row * static_cast<std::size_t>(scales.row_groups);
    if (!scales.order.empty()) {
      const std::int32_t* order = scales.order.data() + tile.first_col;
      for (std::size_t k = 0; k < tile.cols; ++k) out[k] = (static_cast<float>(row[k]) - zero[order[k]]) * scale[order[k]];
      continue;
    }
    for (std::size_t k = 0; k < tile.cols;) {
      const std::size_t g = (tile.first_col + k) / group;
      const std::size_t end = std::min((g + 1) * group - tile.first_col, tile.cols);
      value_run(row + k, end - k, zero[g], scale[g], out + k);
      k = end;
    }
  }
}

}  // namespace

void decode_words(const PackedWeight& weight, const Packing& packing, const Scales& scales, std::int64_t first,
                  std::int64_t count, float* out) {
  Codes codes;
  const std::byte* values = weight[Part::values]->bytes;
  const auto cols = static_cast<std::size_t>(packing.cols);
  for (std::size_t k = 0; k < cols; k += kTileCols) {
    const Tile tile{static_cast<std::size_t>(first), static_cast<std::size_t>(count), k, std::min(kTileCols, cols - k)};
    switch (packing.kind) {
      case PackingKind::gptq: unpack_gptq(values, packing, tile, codes); break;
      case PackingKind::awq: unpack_awq(values, packing, tile, codes); break;
      default: unpack_rows(values, packing, tile, codes);
    }
    scale_tile(packing, scales, tile, codes, out + k);
  }
}

}  // namespace moetrim::quantised_detail
