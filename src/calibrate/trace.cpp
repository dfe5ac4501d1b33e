// The trace: what every recorded token did in every layer.

#include "calibrate/trace.h"

#include "moetrim/checkpoint.h"
#include "moetrim/statistics.h"

namespace moetrim {

namespace {

/// One array of a trace file.
struct Column {
  TensorSpec spec;
  std::span<const std::byte> bytes;
};

template <class T>
Column column(std::string name, Dtype dtype, const std::vector<T>& values, std::int64_t rows, std::int64_t width) {
  const auto count = static_cast<std::size_t>(rows * (width > 0 ? width : 1));
  std::vector<std::int64_t> shape{rows};
  if (width > 0) shape.push_back(width);
  return {{std::move(name), dtype, std::move(shape)}, std::as_bytes(std::span(values.data(), count))};
}

void write_columns(const std::filesystem::path& file, const std::vector<Column>& columns) {
  std::vector<TensorSpec> specs;
  for (const Column& entry : columns) specs.push_back(entry.spec);
  SafetensorsWriter writer(file, std::move(specs));
  for (const Column& entry : columns) writer.write(entry.bytes);
  writer.finish();
}

}  // namespace

void write_trace_tokens(const std::filesystem::path& folder, const TokenGroup& group, std::int64_t tokens) {
  std::filesystem::create_directories(folder);
  std::vector<std::int32_t> task, demonstration, position;
  for (const MeasuredSequence& sequence : group.sequences) {
    for (std::int64_t i = 0; i < sequence.length; ++i) {
      task.push_back(sequence.task);
      demonstration.push_back(static_cast<std::int32_t>(sequence.demonstration));
      position.push_back(static_cast<std::int32_t>(i));
    }
  }
  write_columns(folder / "tokens.safetensors", {column("ids", Dtype::i32, group.batch.ids, tokens, 0),
                                                column("task", Dtype::i32, task, tokens, 0),
                                                column("demonstration", Dtype::i32, demonstration, tokens, 0),
                                                column("position", Dtype::i32, position, tokens, 0)});
}

void write_trace_layer(const std::filesystem::path& folder, const RoutedLayer& routed, std::int64_t tokens) {
  const int k = routed.experts_per_token;
  const std::vector<float> gates(routed.gates.begin(), routed.gates.end());
  write_columns(folder / layer_file_name(routed.layer),
                {column("turns", Dtype::f64, routed.turns, tokens, 0),
                 column("logits", Dtype::f32, routed.logits, tokens, routed.experts),
                 column("ids", Dtype::i32, routed.ids, tokens, k), column("gates", Dtype::f32, gates, tokens, k),
                 column("norms", Dtype::f32, routed.norms, tokens, k),
                 column("max_abs", Dtype::f32, routed.max_abs, tokens, k)});
}

}  // namespace moetrim
