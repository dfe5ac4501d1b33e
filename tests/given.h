// Builders of small statistics for tests: from tokens written out by hand, or random.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "moetrim/error.h"
#include "moetrim/statistics.h"

namespace moetrim::given {

/// One counted token in one layer: what was routed where, and what came out.
struct Token {
  std::vector<int> experts{};    ///< S(t), in rank order
  std::vector<double> gates{};   ///< g, same order
  std::vector<double> norms{};   ///< |f|2, same order
  double turn = 0;               ///< d of EASY-EP
  std::vector<double> logits{};  ///< z of every expert
  std::vector<double> peaks{};   ///< max|f|, same order as experts; empty: not measured
  int task = 0;
  int slice = 0;
};

/// PreMoe's marks, on raw logits and on executed routing.
struct Marks {
  int top_k = 1;
  double threshold = -1;
};

/// Softmax over the logits of the listed experts only.
inline std::vector<double> local_shares(const std::vector<double>& logits, const std::vector<int>& experts) {
  std::vector<double> shares;
  for (const int e : experts) shares.push_back(std::exp(logits[static_cast<std::size_t>(e)]));
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= sum;
  return shares;
}

inline std::vector<int> largest(const std::vector<double>& values, int count) {
  std::vector<int> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) {
    return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
  });
  ids.resize(static_cast<std::size_t>(count));
  return ids;
}

/// Plain double loops, so that a reader can check them against the definitions in statistics.h.
inline void add_token(LayerStatistics& layer, const Token& token, Marks marks) {
  const auto at = [&](Stat stat, int expert) -> double& { return layer.at(stat, token.task, token.slice, expert); };
  layer.token_count[static_cast<std::size_t>(token.task * kSlices + token.slice)] += 1;
  for (std::size_t i = 0; i < token.experts.size(); ++i) {
    const int e = token.experts[i];
    at(Stat::routed_count, e) += 1;
    at(Stat::gate_sum, e) += token.gates[i];
    at(Stat::gate_square_sum, e) += token.gates[i] * token.gates[i];
    at(Stat::norm_sum, e) += token.norms[i];
    at(Stat::gated_norm_sum, e) += token.gates[i] * token.norms[i];
    at(Stat::easy_ep_sum, e) += token.turn * token.gates[i] * token.norms[i];
    if (!token.peaks.empty()) at(Stat::max_abs, e) = std::max(at(Stat::max_abs, e), token.peaks[i]);
    for (const int other : token.experts) {
      layer.coactivation[static_cast<std::size_t>((token.task * layer.experts + e) * layer.experts + other)] += 1;
    }
  }
  const auto executed = local_shares(token.logits, token.experts);
  for (std::size_t i = 0; i < executed.size(); ++i) {
    if (executed[i] >= marks.threshold) at(Stat::tcess_sum, token.experts[i]) += executed[i];
  }
  const auto top = largest(token.logits, marks.top_k);
  const auto published = local_shares(token.logits, top);
  for (std::size_t i = 0; i < top.size(); ++i) {
    if (published[i] >= marks.threshold) at(Stat::tcess_logit_sum, top[i]) += token.logits[static_cast<std::size_t>(top[i])];
  }
}

inline LayerStatistics layer(int id, int tasks, int experts, const std::vector<Token>& tokens, Marks marks = {}) {
  LayerStatistics result(id, tasks, experts);
  for (const Token& token : tokens) add_token(result, token, marks);
  return result;
}

/// A softmax router over all decoder layers, tasks named "a", "b", …; statistics() fills in the tokens.
inline StatisticsManifest manifest(int layers, int experts, int experts_per_token, int tasks = 1) {
  StatisticsManifest result;
  result.checkpoint_fingerprint = "00112233445566778899aabbccddeeff";
  result.family = "toy_moe";
  result.router = "softmax";
  result.layers = layers;
  result.experts = experts;
  result.experts_per_token = experts_per_token;
  for (int i = 0; i < layers; ++i) result.moe_layers.push_back(i);
  result.tcess_top_k = 1;
  result.tcess_threshold = -1;
  result.dtype = "fp32";
  result.count = "all";
  for (int i = 0; i < tasks; ++i) {
    const std::string name(1, static_cast<char>('a' + i));
    result.tasks.push_back({.name = name, .digest = "digest-" + name, .demonstrations = 1, .tokens = 0, .counted_tokens = 0});
  }
  result.tool_version = "0.0.0-test";
  return result;
}

/// Puts layers under a manifest and makes ids and token counts agree.
inline Statistics statistics(StatisticsManifest manifest, std::vector<LayerStatistics> layers) {
  manifest.moe_layers.clear();
  for (const auto& layer : layers) manifest.moe_layers.push_back(layer.layer);
  for (std::size_t task = 0; task < manifest.tasks.size(); ++task) {
    const auto tokens = static_cast<std::int64_t>(layers.front().task_tokens(static_cast<int>(task)));
    manifest.tasks[task].tokens = manifest.tasks[task].counted_tokens = tokens;
  }
  return {std::move(manifest), std::move(layers)};
}

/// Tokens with random logits, norms and turns, softmax top-K routed; 3 more than slices, so that slices differ.
inline std::vector<Token> random_tokens(int experts, int experts_per_token, unsigned seed, int task = 0) {
  std::mt19937_64 bits(seed);
  const auto uniform = [&] { return static_cast<double>(bits() >> 11U) * 0x1p-53; };
  std::vector<Token> tokens;
  for (int t = 0; t < kSlices + 3; ++t) {
    Token token{.task = task, .slice = t % kSlices};
    for (int e = 0; e < experts; ++e) token.logits.push_back(4 * uniform() - 2);
    token.experts = largest(token.logits, experts_per_token);
    token.gates = local_shares(token.logits, token.experts);
    for (int i = 0; i < experts_per_token; ++i) token.norms.push_back(0.5 + uniform());
    for (int i = 0; i < experts_per_token; ++i) token.peaks.push_back(0.5 + uniform());
    token.turn = uniform();
    tokens.push_back(token);
  }
  return tokens;
}

inline LayerStatistics random_layer(int id, int tasks, int experts, int experts_per_token, unsigned seed) {
  std::vector<Token> tokens;
  for (int task = 0; task < tasks; ++task) {
    const auto more = random_tokens(experts, experts_per_token, seed + 1000U * static_cast<unsigned>(task), task);
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  return layer(id, tasks, experts, tokens);
}

inline Statistics random_statistics(int layers, int experts, int experts_per_token, int tasks = 1, unsigned seed = 1) {
  std::vector<LayerStatistics> list;
  for (int i = 0; i < layers; ++i) {
    list.push_back(random_layer(i, tasks, experts, experts_per_token, seed + static_cast<unsigned>(i)));
  }
  return statistics(manifest(layers, experts, experts_per_token, tasks), std::move(list));
}

/// Expert i of the result is expert order[i] of the source; per-expert values only.
inline LayerStatistics reordered(const LayerStatistics& source, const std::vector<int>& order) {
  LayerStatistics result = source.first_slices(kSlices);
  for (int stat = 0; stat < kStatCount; ++stat) {
    for (int task = 0; task < source.tasks; ++task) {
      for (int slice = 0; slice < kSlices; ++slice) {
        for (int e = 0; e < source.experts; ++e) {
          result.at(static_cast<Stat>(stat), task, slice, e) =
              source.at(static_cast<Stat>(stat), task, slice, order[static_cast<std::size_t>(e)]);
        }
      }
    }
  }
  return result;
}

/// A folder of its own under the system's temporary one; gone at the end of the test.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "moetrim-test-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw std::runtime_error("no temporary folder");
    path_ = pattern;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string bytes_of(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

inline void write_text(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file, std::ios::binary) << text;
}

/// What an action throws, as text: the type's name, then the message. Empty: it threw nothing.
template <class Action>
std::string thrown_by(Action action) {
  try {
    action();
  } catch (const InvalidInput& error) {
    return std::string("InvalidInput: ") + error.what();
  } catch (const UsageError& error) {
    return std::string("UsageError: ") + error.what();
  } catch (const std::exception& error) {
    return std::string("other: ") + error.what();
  }
  return {};
}

}  // namespace moetrim::given
