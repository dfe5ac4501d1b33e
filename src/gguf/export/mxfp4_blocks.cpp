// Weights stored in MXFP4, as ggml's blocks of the same name: codes and scales stay, only their places change.
//
// 32 neighbours along a row share the scale 2^(byte - 127). Checkpoints have two neighbours in a byte, the first in its low
// half, and the scales apart; ggml has the scale first, and then in byte i the values i and i + 16 (ggml-common.h, block_mxfp4).

#include "gguf/export/mxfp4_blocks.h"

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim::gguf_detail {

namespace {

constexpr std::size_t kCodeBytes = 16, kBlockBytes = 1 + kCodeBytes;

void put_block(const std::byte* codes, std::byte scale, std::byte* out) {
  constexpr std::size_t kHalf = kCodeBytes / 2;
  out[0] = scale;
  for (std::size_t i = 0; i < kHalf; ++i) {
    const std::byte first = codes[i], second = codes[i + kHalf];
    out[1 + 2 * i] = (first & std::byte{0x0F}) | second << 4U;
    out[2 + 2 * i] = first >> 4U | (second & std::byte{0xF0});
  }
}

}  // namespace

bool has_mxfp4_blocks(const Model& model, const Weight& weight) {
  if (!weight.packed()) return false;
  const StoredMatrix stored = stored_matrix(model, weight);
  return stored.packing.kind == PackingKind::mxfp4 && !stored.transposed;
}

void read_mxfp4_blocks(const Model& model, const GgufSlab& slab, export_detail::SlabReader& slabs,
                       std::vector<std::byte>& out) {
  StoredMatrix stored = stored_matrix(model, *slab.weight);
  slabs.read_parts(*slab.weight, slab.expert, stored.parts);
  const std::byte* codes = stored.parts[Part::values]->bytes;
  const std::byte* scales = stored.parts[Part::scale]->bytes;
  const auto rows = slab.rows ? slab.rows->size() : static_cast<std::size_t>(stored.packing.rows);
  const auto blocks = static_cast<std::size_t>(stored.packing.cols) / (2 * kCodeBytes);
  out.resize(rows * blocks * kBlockBytes);
  std::byte* to = out.data();
  for (std::size_t row = 0; row < rows; ++row) {
    const std::size_t first = (slab.rows ? (*slab.rows)[row] : row) * blocks;
    for (std::size_t block = first; block < first + blocks; ++block, to += kBlockBytes) {
      if (scales[block] == std::byte{0xFF}) {
        throw InvalidInput(fmt::format("tensor {}: number {} of this scale is no number (NaN); the file is damaged, download "
                                       "it again", stored.parts[Part::scale]->name, block));
      }
      put_block(codes + block * kCodeBytes, scales[block], to);
    }
  }
}

}  // namespace moetrim::gguf_detail
