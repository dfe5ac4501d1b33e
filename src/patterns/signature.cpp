// What a pattern is recognised by: from a task's sums, or from single prompts in a few clusters.
#include "moetrim/patterns.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "patterns/cosine.h"

namespace moetrim {
namespace {

constexpr double kHeld = 0.99;       // of the prompts lie within the radius
constexpr int kMostRounds = 100;     // of k-means, which ends by itself long before

Stat stat_of(SignatureStat stat) {
  constexpr std::array kStats{Stat::routed_count, Stat::gate_sum, Stat::router_mass, Stat::tcess_logit_sum};
  return kStats.at(static_cast<std::size_t>(stat));
}

using Vectors = std::vector<std::vector<double>>;

std::size_t nearest_row(const Vectors& rows, const std::vector<double>& text) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < rows.size(); ++i) {
    if (cosine_distance(rows[i], text) < cosine_distance(rows[best], text)) best = i;
  }
  return best;
}

/// Means of the unit vectors of every cluster; an empty one keeps its row.
Vectors means(const Vectors& texts, const std::vector<std::size_t>& cluster, Vectors rows) {
  Vectors sums(rows.size(), std::vector<double>(texts.front().size(), 0.0));
  std::vector<bool> used(rows.size(), false);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    used[cluster[i]] = true;
    for (std::size_t j = 0; j < texts[i].size(); ++j) sums[cluster[i]][j] += texts[i][j];
  }
  for (std::size_t c = 0; c < rows.size(); ++c) {
    if (used[c]) rows[c] = unit(std::move(sums[c]));
  }
  return rows;
}

std::vector<std::size_t> assign(const Vectors& texts, const Vectors& rows) {
  std::vector<std::size_t> cluster;
  for (const auto& text : texts) cluster.push_back(nearest_row(rows, text));
  return cluster;
}

/// The text that is farthest from all rows.
const std::vector<double>& farthest(const Vectors& texts, const Vectors& rows) {
  std::size_t best = 0;
  double most = -1;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const double distance = cosine_distance(rows[nearest_row(rows, texts[i])], texts[i]);
    if (distance <= most) continue;
    most = distance;
    best = i;
  }
  return texts[best];
}

/// Of unit vectors. @return for every text its cluster
std::vector<std::size_t> spherical_k_means(const Vectors& texts, int clusters) {
  const std::vector<std::size_t> together(texts.size(), 0);
  Vectors rows = means(texts, together, Vectors(1, texts.front()));
  while (std::ssize(rows) < clusters) rows.push_back(farthest(texts, rows));
  std::vector<std::size_t> cluster = assign(texts, rows);
  for (int round = 0; round < kMostRounds; ++round) {
    rows = means(texts, cluster, std::move(rows));
    auto next = assign(texts, rows);
    if (next == cluster) break;
    cluster = std::move(next);
  }
  return cluster;
}

/// Clusters without texts leave no row: numbers close up.
int close_up(std::vector<std::size_t>& cluster, int clusters) {
  std::vector<int> number(static_cast<std::size_t>(clusters), -1);
  int used = 0;
  for (std::size_t& c : cluster) {
    if (number[c] < 0) number[c] = used++;
    c = static_cast<std::size_t>(number[c]);
  }
  return used;
}

std::vector<float> mean_rows(std::span<const TextRouting> prompts, std::size_t stat, const std::vector<std::size_t>& cluster,
                             const Signature& signature, std::size_t experts) {
  const auto depth = static_cast<std::size_t>(signature.depth);
  const auto rows = static_cast<std::size_t>(signature.prototypes);
  std::vector<double> sums(depth * rows * experts, 0.0);
  std::vector<double> counts(rows, 0.0);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    counts[cluster[i]] += 1;
    for (std::size_t l = 0; l < depth; ++l) {
      for (std::size_t e = 0; e < experts; ++e) {
        sums[(l * rows + cluster[i]) * experts + e] += prompts[i].shares[stat][l * experts + e];
      }
    }
  }
  std::vector<float> out(sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i) out[i] = static_cast<float>(sums[i] / counts[i / experts % rows]);
  return out;
}

/// A row over the first layers, as retrieval sees it.
std::vector<double> row_of(const Signature& signature, std::size_t stat, std::size_t row, std::size_t depth,
                           std::size_t experts) {
  std::vector<double> out;
  for (std::size_t l = 0; l < depth; ++l) {
    const auto begin = signature.rows[stat].begin() +
                       static_cast<std::ptrdiff_t>((l * static_cast<std::size_t>(signature.prototypes) + row) * experts);
    out.insert(out.end(), begin, begin + static_cast<std::ptrdiff_t>(experts));
  }
  return unit(std::move(out));
}

std::vector<double> text_of(const TextRouting& text, std::size_t stat, std::size_t length) {
  return unit({text.shares[stat].begin(), text.shares[stat].begin() + static_cast<std::ptrdiff_t>(length)});
}

double radius_of(std::span<const TextRouting> prompts, const Signature& signature, std::size_t stat, std::size_t depth,
                 std::size_t experts) {
  Vectors rows;
  for (int row = 0; row < signature.prototypes; ++row) {
    rows.push_back(row_of(signature, stat, static_cast<std::size_t>(row), depth, experts));
  }
  std::vector<double> distances;
  for (const TextRouting& prompt : prompts) {
    const auto text = text_of(prompt, stat, depth * experts);
    distances.push_back(cosine_distance(rows[nearest_row(rows, text)], text));
  }
  std::sort(distances.begin(), distances.end());
  return distances[static_cast<std::size_t>(std::ceil(kHeld * static_cast<double>(distances.size()))) - 1];
}

/// A row per kind of prompt, the most frequent first, routed counts per token. Empty where kinds were not recorded, or none is
/// met often enough.
Vectors kinds_of_prompts(const LayerStatistics& layer, int task, int experts_per_token) {
  Vectors rows, directions;
  if (layer.prompt_count.empty()) return rows;
  const auto experts = static_cast<std::ptrdiff_t>(layer.experts);
  const auto counts = layer.prompt_count.begin() + task * experts;
  std::vector<std::ptrdiff_t> kinds;
  for (std::ptrdiff_t kind = 0; kind < experts; ++kind) {
    if (counts[kind] > 0) kinds.push_back(kind);
  }
  std::stable_sort(kinds.begin(), kinds.end(), [&](auto a, auto b) { return counts[a] > counts[b]; });
  for (const std::ptrdiff_t kind : kinds) {
    const auto begin = layer.prompt_routing.begin() + (task * experts + kind) * experts;
    const std::vector<double> sum(begin, begin + experts);
    if (std::ssize(rows) < kMostKinds && counts[kind] >= kLeastPromptsPerPrototype) {
      rows.push_back(sum);
      directions.push_back(unit(sum));
    } else if (!rows.empty()) {
      auto& nearest = rows[nearest_row(directions, unit(sum))];
      std::transform(sum.begin(), sum.end(), nearest.begin(), nearest.begin(), std::plus<>());
    }
  }
  for (auto& row : rows) {
    const double total = std::accumulate(row.begin(), row.end(), 0.0);
    for (double& value : row) value *= experts_per_token / total;
  }
  return rows;
}

}  // namespace

nlohmann::ordered_json signature_to_json(const Signature& signature) {
  nlohmann::ordered_json json{
      {"source", signature.source}, {"depth", signature.depth}, {"prototypes", signature.prototypes}};
  if (signature.prompts > 0) json["prompts"] = signature.prompts;
  return json;
}

std::string_view signature_stat_name(SignatureStat stat) { return stat_name(stat_of(stat)); }

Signature signature_of_task(const Statistics& statistics, int task, std::string_view source) {
  Signature out;
  out.source = source;
  out.depth = std::min(kMostSignatureLayers, static_cast<int>(statistics.layers.size()));
  const Vectors kinds = kinds_of_prompts(statistics.layers.front(), task, statistics.manifest.experts_per_token);
  out.prototypes = std::max(1, static_cast<int>(kinds.size()));
  for (int l = 0; l < out.depth; ++l) {
    const LayerStatistics& layer = statistics.layers[static_cast<std::size_t>(l)];
    const double tokens = layer.task_tokens(task);
    if (tokens <= 0) {
      throw InvalidInput(
          fmt::format("task {}: no token of it was counted in layer {}, so nothing can tell it from other tasks",
                      in_quotes(statistics.manifest.tasks.at(static_cast<std::size_t>(task)).name), layer.layer));
    }
    for (std::size_t stat = 0; stat < out.rows.size(); ++stat) {
      const bool by_kind = l == 0 && !kinds.empty() && static_cast<SignatureStat>(stat) == SignatureStat::routed_count;
      auto mean = layer.task_total(stat_of(static_cast<SignatureStat>(stat)), task);
      for (double& value : mean) value /= tokens;
      for (int row = 0; row < out.prototypes; ++row) {
        const auto& values = by_kind ? kinds[static_cast<std::size_t>(row)] : mean;
        out.rows[stat].insert(out.rows[stat].end(), values.begin(), values.end());
      }
    }
  }
  return out;
}

Signature signature_of_prompts(std::span<const TextRouting> prompts, int depth, int experts, int prototypes) {
  const auto count = static_cast<int>(prompts.size());
  if (count < kLeastPromptsPerPrototype) {
    throw InvalidInput(fmt::format("a signature needs at least {} prompts, got {}: fewer do not show how far they spread",
                                   kLeastPromptsPerPrototype, count));
  }
  Signature out{.source = "prompts", .depth = depth, .prompts = count};
  const auto width = static_cast<std::size_t>(experts);
  Vectors texts;
  for (const TextRouting& prompt : prompts) texts.push_back(text_of(prompt, 0, static_cast<std::size_t>(depth) * width));
  const int clusters = std::clamp(count / kLeastPromptsPerPrototype, 1, prototypes);
  auto cluster = spherical_k_means(texts, clusters);
  out.prototypes = close_up(cluster, clusters);
  for (std::size_t stat = 0; stat < out.rows.size(); ++stat) {
    out.rows[stat] = mean_rows(prompts, stat, cluster, out, width);
    for (int layers = 1; layers <= depth; ++layers) {
      out.radius[stat].push_back(radius_of(prompts, out, stat, static_cast<std::size_t>(layers), width));
    }
  }
  return out;
}

}  // namespace moetrim
