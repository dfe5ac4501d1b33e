// A weight for tests, put together part by part.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "moetrim/quantised.h"

namespace moetrim::given {

using Shape = std::vector<std::int64_t>;

/// Parts of the module "m". Not copied: the parts point into it.
class Weight {
 public:
  Weight() = default;
  Weight(const Weight&) = delete;
  Weight& operator=(const Weight&) = delete;

  /// Adds the tensor "m" + ending with these elements, or with zeros when there are none.
  template <class Element = std::uint8_t>
  Weight& with(const std::string& ending, Dtype dtype, Shape shape, const std::vector<Element>& elements = {}) {
    TensorSpec spec{"m" + ending, dtype, shape};
    auto& bytes = bytes_.emplace_back(spec.bytes());
    if (!elements.empty()) {
      if (elements.size() * sizeof(Element) != bytes.size()) throw std::runtime_error("wrong count for " + spec.name);
      std::memcpy(bytes.data(), elements.data(), bytes.size());
    }
    weight[split_part(spec.name).value().part] = StoredPart{spec.name, dtype, std::move(shape), bytes.data()};
    return *this;
  }

  PackedWeight weight;

 private:
  std::deque<std::vector<std::byte>> bytes_;
};

inline Quantisation meaning(const std::string& quantization_config) {
  return read_quantisation({{"quantization_config", nlohmann::ordered_json::parse(quantization_config)}}, "config.json");
}

inline std::vector<float> values(const PackedWeight& weight, const Quantisation& quantisation, std::int64_t rows,
                                 std::int64_t cols) {
  std::vector<float> out(static_cast<std::size_t>(rows * cols));
  dequantise(weight, packing_of(weight, quantisation, rows, cols), out);
  return out;
}

}  // namespace moetrim::given
