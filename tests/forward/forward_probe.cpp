// Logits of a checkpoint for the Python tests: forward_probe CHECKPOINT IDS.json fp32|bf16 OUT.safetensors [THREADS [DEVICE]]
// IDS.json is a list of sequences of token ids; the output has one tensor "logits" [T, V] f32, sequences one after another.
// Or what routers make of queries: forward_probe --queries CHECKPOINT TASK.jsonl fp32|bf16 DEPTH MAX_MEMORY
// Prints as JSON the bytes read and the sums of every query.

#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <string>

#include <ATen/ATen.h>

#include "moetrim/checkpoint.h"
#include "moetrim/family.h"
#include "moetrim/forward.h"
#include "moetrim/queries.h"

namespace {

using namespace moetrim;

int print_queries(char** argv) {
  const Checkpoint checkpoint = Checkpoint::open(argv[2]);
  const Model model = describe(checkpoint);
  ReadingTime reading;
  QueryOptions options;
  options.precision = argv[4];
  options.depth = std::atoi(argv[5]);
  options.max_memory = std::strtoull(argv[6], nullptr, 10);
  options.reading = &reading;
  const auto routings = route_queries(model, read_task(argv[3], nullptr, {}), Count::all, options);
  nlohmann::json queries = nlohmann::json::array();
  for (const QueryRouting& routing : routings) {
    nlohmann::json layers = nlohmann::json::array();
    for (const LayerRouting& layer : routing.layers) {
      layers.push_back({{"layer", layer.layer}, {"routed_count", layer.routed_count}, {"gate_sum", layer.gate_sum},
                        {"router_mass", layer.router_mass}, {"tcess_logit_sum", layer.tcess_logit_sum}});
    }
    queries.push_back({{"tokens", routing.tokens}, {"layers", layers}});
  }
  const nlohmann::json out{{"bytes", reading.bytes.load()}, {"queries", queries}};
  std::printf("%s\n", out.dump().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc == 7 && std::string(argv[1]) == "--queries") return print_queries(argv);
  if (argc < 5) return 2;
  const Checkpoint checkpoint = Checkpoint::open(argv[1]);
  const Model model = describe(checkpoint);
  TokenBatch batch;
  for (const auto& sequence : read_json_file(argv[2])) {
    const auto begin = static_cast<std::int64_t>(batch.ids.size());
    for (const auto& id : sequence) batch.ids.push_back(id.get<std::int32_t>());
    batch.sequences.push_back({begin, static_cast<std::int64_t>(sequence.size()), -1});
  }
  Forward forward(model, {.precision = std::string(argv[3]) == "fp32" ? Precision::fp32 : Precision::bf16,
                          .device = argc > 6 ? argv[6] : "cpu",
                          .threads = argc > 5 ? std::atoi(argv[5]) : 0,
                          .read_ahead_bytes = 1 << 20,
                          .drop_page_cache = false});
  std::vector<std::int64_t> rows(batch.ids.size());
  std::iota(rows.begin(), rows.end(), 0);
  forward.begin(std::move(batch));
  RoutedLayer routed;
  while (!forward.done()) forward.run_layer(routed);
  const at::Tensor logits = forward.logits(forward.hidden(), rows).cpu().contiguous();
  SafetensorsWriter writer(argv[4], {{"logits", Dtype::f32, logits.sizes().vec()}});
  writer.write({static_cast<const std::byte*>(logits.const_data_ptr()), logits.nbytes()});
  writer.finish();
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
