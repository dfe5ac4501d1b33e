// Shows the values of quantised weights to the Python tests.
//
// `quantised_probe FOLDER SHAPES.json OUT.safetensors [bf16]`: SHAPES has the modules, each [rows, cols] or, for fused
// experts, [experts, rows, cols]; OUT gets one tensor per module. Prints the kind of every module as JSON.
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/quantised.h"

namespace {

using namespace moetrim;

struct Module {
  std::map<Part, std::vector<std::byte>> bytes;
  PackedWeight weight;
};

Module read_module(const Checkpoint& checkpoint, const std::string& name) {
  Module module;
  for (const Tensor& tensor : checkpoint.tensors()) {
    const auto split = split_part(tensor.name);
    if (!split || split->module != name) continue;
    auto& bytes = module.bytes[split->part] = checkpoint.read(tensor);
    module.weight[split->part] = StoredPart{tensor.name, tensor.dtype, tensor.shape, bytes.data()};
  }
  return module;
}

/// One expert of a fused weight: every part that has the expert axis loses it.
PackedWeight expert_of(const Module& module, std::int64_t experts, std::int64_t expert) {
  PackedWeight out = module.weight;
  for (std::size_t i = 0; i < kPartCount; ++i) {
    auto& part = out[static_cast<Part>(i)];
    if (!part || part->shape.empty() || part->shape[0] != experts || static_cast<Part>(i) == Part::shape) continue;
    part->shape.erase(part->shape.begin());
    const std::size_t size = module.bytes.at(static_cast<Part>(i)).size() / static_cast<std::size_t>(experts);
    part->bytes += static_cast<std::size_t>(expert) * size;
  }
  return out;
}

template <class Value, class Decode>
std::vector<std::byte> decoded(const PackedWeight& weight, const Packing& packing, Decode decode) {
  std::vector<Value> values(static_cast<std::size_t>(packing.rows * packing.cols));
  decode(weight, packing, std::span<Value>(values));
  const auto* begin = reinterpret_cast<const std::byte*>(values.data());
  return {begin, begin + values.size() * sizeof(Value)};
}

void run(const std::vector<std::string>& arguments) {
  const Checkpoint checkpoint = Checkpoint::open(arguments[0]);
  const auto shapes = read_json_file(arguments[1]);
  const bool bf16 = arguments.size() == 4;
  const Quantisation quantisation = read_quantisation(checkpoint.config(), "config.json");
  std::vector<TensorSpec> specs;
  for (const auto& [name, shape] : shapes.items()) {
    specs.push_back({name, bf16 ? Dtype::bf16 : Dtype::f32, shape.get<std::vector<std::int64_t>>()});
  }
  SafetensorsWriter writer(arguments[2], specs);
  nlohmann::ordered_json kinds;
  for (const TensorSpec& spec : specs) {
    const Module module = read_module(checkpoint, spec.name);
    const bool fused = spec.shape.size() == 3;
    const std::int64_t experts = fused ? spec.shape[0] : 1;
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      const PackedWeight weight = fused ? expert_of(module, experts, expert) : module.weight;
      const Packing packing = packing_of(weight, quantisation, spec.shape[fused], spec.shape[fused + 1]);
      kinds[spec.name] = packing_name(packing.kind);
      writer.write(bf16 ? decoded<std::uint16_t>(weight, packing, dequantise_bf16)
                        : decoded<float>(weight, packing, dequantise));
    }
  }
  writer.finish();
  std::cout << kinds.dump() << "\n";
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    if (arguments.size() == 3 || (arguments.size() == 4 && arguments[3] == "bf16")) return run(arguments), 0;
    std::cerr << "usage: quantised_probe FOLDER SHAPES.json OUT.safetensors [bf16]\n";
    return 2;
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return error.exit_code();
  }
}
