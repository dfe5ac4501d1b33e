// The ids of a trace.
#include "report/trace_reader.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"

namespace moetrim {

TraceReader::TraceReader(std::filesystem::path folder, const StatisticsManifest& manifest)
    : folder_(std::move(folder)), experts_(manifest.experts), experts_per_token_(manifest.experts_per_token) {
  std::copy_if(manifest.moe_layers.begin(), manifest.moe_layers.end(), std::back_inserter(layers_),
               [&](int layer) { return layer < manifest.layers; });
  const auto file = SafetensorsFile::open(folder_ / "tokens.safetensors");
  const Tensor* task = file.find("task");
  if (task == nullptr || task->shape.size() != 1 || task->shape[0] < 1) {
    throw InvalidInput(fmt::format("{}: task: expected a number per token", file.path().string()));
  }
  tokens_ = task->shape[0];
  const auto tasks = column(file, "task", 0);
  const auto demonstrations = column(file, "demonstration", 0);
  for (std::int64_t t = 0; t < tokens_; ++t) {
    const auto i = static_cast<std::size_t>(t);
    if (t == 0 || tasks[i] != tasks[i - 1] || demonstrations[i] != demonstrations[i - 1]) {
      sequences_.push_back({.begin = t, .end = t});
    }
    ++sequences_.back().end;
  }
}

/// [tokens], or [tokens, width].
std::vector<std::int32_t> TraceReader::column(const SafetensorsFile& file, const char* name, std::int64_t width) const {
  std::vector<std::int64_t> shape{tokens_};
  if (width > 0) shape.push_back(width);
  const Tensor* tensor = file.find(name);
  if (tensor == nullptr || tensor->dtype != Dtype::i32 || tensor->shape != shape) {
    throw InvalidInput(fmt::format("{}: {}: expected I32 [{}], a row for each of the trace's tokens; calibrate again",
                                   file.path().string(), name, fmt::join(shape, ", ")));
  }
  const auto bytes = file.read(*tensor);
  std::vector<std::int32_t> values(bytes.size() / sizeof(std::int32_t));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

std::vector<std::int32_t> TraceReader::ids(int layer) const {
  const auto file = SafetensorsFile::open(folder_ / layer_file_name(layer));
  auto ids = column(file, "ids", experts_per_token_);
  std::vector<std::int64_t> seen(static_cast<std::size_t>(experts_), -1);  // the last token that used the expert
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto token = static_cast<std::int64_t>(i) / experts_per_token_;
    const std::int32_t id = ids[i];
    if (id >= 0 && id < experts_ && seen[static_cast<std::size_t>(id)] != token) {
      seen[static_cast<std::size_t>(id)] = token;
      continue;
    }
    throw InvalidInput(fmt::format("{}: ids: token {} has expert {}, expected {} different ones below {}",
                                   file.path().string(), token, id, experts_per_token_, experts_));
  }
  return ids;
}

}  // namespace moetrim
