// GGUF files: keys against tensors, and values that no weight can have.

#include "verify/check_gguf.h"

#include <algorithm>
#include <array>
#include <optional>
#include <span>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/gguf_rewrite.h"
#include "moetrim/suggest.h"
#include "verify/find_nan.h"

namespace moetrim::verify_detail {

namespace {

constexpr std::size_t kBufferBytes = std::size_t{8} << 20;
constexpr std::size_t kMostFindings = 20;

/// Where the blocks of a type have their fp16 scales. An infinite or undefined one spoils the whole block.
struct BlockScales {
  GgmlType type;
  std::size_t at;  ///< byte of the block
  int count = 1;   ///< neighbours
};

/// Source: the block structures of ggml (ggml/src/ggml-common.h, llama.cpp release v0.5.0).
constexpr std::array<BlockScales, 22> kScales{{
    {GgmlType::q4_0, 0},      {GgmlType::q4_1, 0, 2},   {GgmlType::q5_0, 0},    {GgmlType::q5_1, 0, 2},    {GgmlType::q8_0, 0},
    {GgmlType::q2_k, 80, 2},  {GgmlType::q3_k, 108},    {GgmlType::q4_k, 0, 2}, {GgmlType::q5_k, 0, 2},    {GgmlType::q6_k, 208},
    {GgmlType::iq2_xxs, 0},   {GgmlType::iq2_xs, 0},    {GgmlType::iq2_s, 0},   {GgmlType::iq3_xxs, 0},    {GgmlType::iq3_s, 0},
    {GgmlType::iq4_nl, 0},    {GgmlType::iq4_xs, 0},    {GgmlType::iq1_s, 0},   {GgmlType::tq1_0, 52},     {GgmlType::tq2_0, 64},
    {GgmlType::q1_0, 0},      {GgmlType::q2_0, 0},
}};

std::optional<Dtype> plain_type(GgmlType type) {
  switch (type) {
    case GgmlType::f32: return Dtype::f32;
    case GgmlType::f16: return Dtype::f16;
    case GgmlType::bf16: return Dtype::bf16;
    case GgmlType::f64: return Dtype::f64;
    default: return std::nullopt;
  }
}

/// The first value, or block, of the bytes that is no number.
using Find = std::function<std::optional<std::uint64_t>(std::span<const std::byte>)>;

/// Null for types that have no such values, or hide them among others.
Find finder_for(GgmlType type) {
  if (const auto dtype = plain_type(type)) return [dtype = *dtype](auto bytes) { return find_nan(bytes, dtype); };
  const auto scales = std::ranges::find(kScales, type, &BlockScales::type);
  if (scales == kScales.end()) return {};
  return [scales, block = ggml_layout(type).block_bytes](std::span<const std::byte> bytes) -> std::optional<std::uint64_t> {
    for (std::size_t at = 0; at + block <= bytes.size(); at += block) {
      if (find_nan(bytes.subspan(at + scales->at, 2 * static_cast<std::size_t>(scales->count)), Dtype::f16)) return at / block;
    }
    return std::nullopt;
  };
}

std::optional<std::uint64_t> find_in(const GgufModel& model, const GgufTensor& tensor, const Find& find, std::span<std::byte> buffer,
                                     const std::function<void(std::uint64_t)>& advance) {
  const std::uint64_t unit = ggml_layout(tensor.type).block_bytes;
  const std::span<std::byte> whole = buffer.first(buffer.size() / unit * unit);  // no block is in two parts
  std::optional<std::uint64_t> found;
  for (std::uint64_t at = 0; at < tensor.size && !found;) {
    const auto part = whole.first(static_cast<std::size_t>(std::min<std::uint64_t>(whole.size(), tensor.size - at)));
    model.read(tensor, at, part);
    if (const auto index = find(part)) found = (at / unit) + *index;
    at += part.size();
    advance(found ? tensor.size : at);
  }
  model.files()[tensor.file].drop_cache(tensor.offset, tensor.size);
  return found;
}

void check_values(const GgufModel& model, const VerifyOptions& options, Findings& findings) {
  std::vector<std::byte> buffer(kBufferBytes);
  std::uint64_t done = 0;
  std::size_t count = 0;
  for (const GgufTensor& tensor : model.tensors()) {
    const auto advance = [&](std::uint64_t bytes) {
      if (options.progress) options.progress(done + bytes, model.total_bytes());
    };
    if (const Find find = finder_for(tensor.type)) {
      if (const auto at = find_in(model, tensor, find, buffer, advance)) {
        const std::string_view what = ggml_layout(tensor.type).block_elements == 1 ? "element {} is NaN or infinite"
                                                                                   : "block {} has a scale that is NaN or infinite";
        add_error(findings, tensor.name, fmt::format(fmt::runtime(what), *at));
        if (++count == kMostFindings) {
          return add_error(findings, ".", fmt::format("{} tensors have NaN or infinity; the rest was not read", count));
        }
      }
    }
    done += tensor.size;
  }
}

/// Why nothing is known of what the tensors mean; empty when it is.
std::string obstacle(const GgufModel& model) {
  const auto& path = model.files().front().path();
  const std::string type = model.metadata().text("general.type", path).value_or("model");
  if (type != "model") return fmt::format("the file is no model, but of type {}", in_quotes(type));
  const auto name = model.metadata().text("general.architecture", path);
  if (!name) return {};
  if (find_gguf_architecture(*name) == nullptr) return fmt::format("moetrim does not know the architecture {}", in_quotes(*name));
  if (model.metadata().whole(*name + ".expert_count", path).value_or(0) == 0) return "the model has no experts";
  return {};
}

/// What the keys say of the tensors.
void check_keys(const GgufModel& model, Findings& findings) {
  const std::string unknown = obstacle(model);
  if (!unknown.empty()) return add_warning(findings, ".", unknown + "; its structure was checked, what its tensors mean was not");
  for (const GgufProblem& problem : check_gguf(model)) add_error(findings, problem.where, problem.what);
}

}  // namespace

Findings check_gguf_file(const std::filesystem::path& file, const VerifyOptions& options) {
  Findings findings;
  try {
    const GgufModel model = GgufModel::open(file);
    try {
      check_keys(model, findings);
    } catch (const InvalidInput& problem) {
      add_error(findings, ".", problem.what());
    }
    if (options.deep) check_values(model, options, findings);
  } catch (const InvalidInput& problem) {
    add_error(findings, ".", problem.what());
  }
  return findings;
}

}  // namespace moetrim::verify_detail
