// The list of mappings, and what they are given to look at and to fill.

#include "gguf/export/mapping.h"

#include <algorithm>
#include <array>
#include <limits>
#include <memory>

#include <fmt/format.h>

#include "gguf/architectures/architectures.h"
#include "moetrim/error.h"

namespace moetrim::gguf_detail {

const GgufMapping* find_mapping(std::string_view architecture) {
  static constexpr std::array all{
#define MOETRIM_GGUF_MAPPING(name) &gguf_list::name,
#include "gguf/architectures/architectures.def"
#undef MOETRIM_GGUF_MAPPING
  };
  const auto found = std::ranges::find(all, architecture, &GgufMapping::architecture);
  return found == all.end() ? nullptr : *found;
}

std::span<const int> GgufSource::slots(int layer) const {
  if (plan == nullptr || (layer >= model->layers && mtp == Mtp::keep)) return {};
  const auto found = std::ranges::find(plan->layers, layer, &PlanLayer::layer);
  return found == plan->layers.end() ? std::span<const int>() : std::span<const int>(found->keep);
}

const nlohmann::ordered_json* GgufSource::find(std::span<const std::string_view> keys) const {
  for (const std::string_view key : keys) {
    const auto found = config.find(key);
    if (found != config.end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

void GgufSource::refuse(const std::string& what) const {
  throw InvalidInput(fmt::format("{}: {}", (model->checkpoint->folder() / "config.json").string(), what));
}

void GgufKeys::whole(std::string_view key, std::int64_t value) {
  if (value < 0 || value > std::numeric_limits<std::uint32_t>::max()) {
    throw InvalidInput(fmt::format("key {}{}: {} from config.json is no number of 32 bits, which llama.cpp reads", prefix_, key,
                                   value));
  }
  metadata_.set(prefix_ + std::string(key), static_cast<std::uint32_t>(value));
}

void GgufKeys::real(std::string_view key, double value) {
  metadata_.set(prefix_ + std::string(key), static_cast<float>(value));
}

void GgufKeys::flag(std::string_view key, bool value) { metadata_.set(prefix_ + std::string(key), value); }

void GgufKeys::text(std::string_view key, std::string value) { metadata_.set(prefix_ + std::string(key), std::move(value)); }

void GgufKeys::wholes(std::string_view key, std::span<const std::int32_t> values) {
  metadata_.set(prefix_ + std::string(key), GgufArray::of_i32(values));
}

void GgufKeys::flags(std::string_view key, const std::vector<bool>& values) {
  const auto flags = std::make_unique<bool[]>(values.size());
  std::ranges::copy(values, flags.get());
  metadata_.set(prefix_ + std::string(key), GgufArray::of_booleans(std::span(flags.get(), values.size())));
}

}  // namespace moetrim::gguf_detail
