// Rotary position embedding: the classic `rope_theta` + `rope_scaling` spelling, the `rope_parameters` of transformers 5,
// and the inverse frequencies of every kind. The arithmetic is fp32, as in transformers, so that angles agree.

#include "family/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim {

namespace {

RopeKind kind_from_name(const std::string& name, const std::string& where) {
  if (name == "default") return RopeKind::standard;
  if (name == "linear") return RopeKind::linear;
  if (name == "dynamic") return RopeKind::dynamic;
  if (name == "yarn") return RopeKind::yarn;
  if (name == "llama3") return RopeKind::llama3;
  if (name == "longrope" || name == "su") return RopeKind::longrope;
  throw InvalidInput(fmt::format("{}: rope type {} is not supported; known are default, linear, dynamic, yarn, llama3, longrope",
                                 where, in_quotes(name)));
}

double yarn_scale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// attention_factor as given, else from mscale and mscale_all_dim, else from the factor (YaRN, arXiv 2309.00071).
double yarn_attention_factor(const ConfigReader& scaling, double factor) {
  if (scaling.has("attention_factor")) return scaling.number("attention_factor");
  const double mscale = scaling.number_or("mscale", 0.0);
  const double all_dim = scaling.number_or("mscale_all_dim", 0.0);
  if (mscale != 0.0 && all_dim != 0.0) return yarn_scale(factor, mscale) / yarn_scale(factor, all_dim);
  return yarn_scale(factor, 1.0);
}

/// Divisors of the frequencies, one per rotated pair.
std::vector<double> read_factors(const ConfigReader& scaling, std::string_view key, std::int64_t pairs) {
  const auto& list = scaling.raw(key);
  std::vector<double> out;
  for (const auto& entry : list) {
    if (!list.is_array() || !entry.is_number() || !(entry.get<double>() > 0)) break;
    out.push_back(entry.get<double>());
  }
  if (static_cast<std::int64_t>(out.size()) != pairs) {
    throw InvalidInput(fmt::format("{}: \"{}\" must be a list of {} numbers above 0", scaling.where(), key, pairs));
  }
  return out;
}

/// Phi: other divisors and another factor beyond the original length (LongRoPE, arXiv 2402.13753).
void read_longrope(Rope& rope, const ConfigReader& scaling) {
  rope.short_factors = read_factors(scaling, "short_factor", rope.dimensions / 2);
  rope.long_factors = read_factors(scaling, "long_factor", rope.dimensions / 2);
  rope.factor = scaling.number_or("factor", static_cast<double>(rope.max_positions) / static_cast<double>(rope.original_max_positions));
  const double usual = rope.factor <= 1.0 ? 1.0 : std::sqrt(1 + std::log(rope.factor) / std::log(static_cast<double>(rope.original_max_positions)));
  const double given = scaling.number_or("attention_factor", usual);
  rope.attention_factor = scaling.number_or("short_mscale", given);
  rope.long_attention_factor = scaling.number_or("long_mscale", given);
}

void read_scaling(Rope& rope, const ConfigReader& config, const ConfigReader& scaling) {
  rope.kind = kind_from_name(scaling.text_or("rope_type", scaling.text_or("type", "default")), scaling.where());
  if (rope.kind == RopeKind::standard) return;
  rope.original_max_positions = config.integer_or(
      "original_max_position_embeddings", scaling.integer_or("original_max_position_embeddings", rope.max_positions));
  if (rope.kind == RopeKind::longrope) return read_longrope(rope, scaling);
  if (rope.kind == RopeKind::dynamic && scaling.has("alpha")) {
    // Hunyuan's fixed NTK scaling carries the name of the dynamic one.
    const auto dimensions = static_cast<double>(rope.dimensions);
    rope.theta *= std::pow(scaling.number("alpha"), dimensions / (dimensions - 2));
    rope.kind = RopeKind::standard;
    return;
  }
  if (rope.kind == RopeKind::yarn && !scaling.has("factor")) {
    rope.factor = static_cast<double>(rope.max_positions) / static_cast<double>(rope.original_max_positions);
  } else {
    rope.factor = scaling.number("factor");
  }
  if (!(rope.factor > 0.0)) throw InvalidInput(fmt::format("{}: \"factor\" must be above 0", scaling.where()));
  if (rope.kind == RopeKind::yarn) {
    rope.attention_factor = yarn_attention_factor(scaling, rope.factor);
    rope.beta_fast = scaling.number_or("beta_fast", 32.0);
    rope.beta_slow = scaling.number_or("beta_slow", 1.0);
    rope.truncate = scaling.boolean_or("truncate", true);
  }
  if (rope.kind == RopeKind::llama3) {
    rope.low_freq_factor = scaling.number("low_freq_factor");
    rope.high_freq_factor = scaling.number("high_freq_factor");
  }
}

/// @param factors  of the wavelengths, one a frequency; empty: none. Multiplied first, as transformers rounds.
std::vector<float> standard_frequencies(double theta, std::int64_t dimensions, const std::vector<double>& factors = {}) {
  std::vector<float> out(static_cast<std::size_t>(dimensions / 2));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dimensions);
    const float factor = factors.empty() ? 1.0F : static_cast<float>(factors[i]);
    out[i] = 1.0F / (factor * std::pow(static_cast<float>(theta), exponent));
  }
  return out;
}

/// Blends interpolated and extrapolated frequencies over YaRN's correction range.
void apply_yarn(const Rope& rope, std::vector<float>& frequencies) {
  const auto dimensions = static_cast<double>(rope.dimensions);
  const auto correction = [&](double rotations) {
    return dimensions * std::log(static_cast<double>(rope.original_max_positions) / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  };
  double low = correction(rope.beta_fast);
  double high = correction(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dimensions - 1);
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const auto ramp = static_cast<float>(std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
    const float interpolated = frequencies[i] / static_cast<float>(rope.factor);
    frequencies[i] = interpolated * ramp + frequencies[i] * (1.0F - ramp);
  }
}

/// Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between blended.
void apply_llama3(const Rope& rope, std::vector<float>& frequencies) {
  const auto context = static_cast<float>(rope.original_max_positions);
  const auto low = static_cast<float>(rope.low_freq_factor);
  const auto high = static_cast<float>(rope.high_freq_factor);
  const auto factor = static_cast<float>(rope.factor);
  for (float& frequency : frequencies) {
    const float wavelength = 2 * std::numbers::pi_v<float> / frequency;
    if (wavelength < context / high) continue;
    if (wavelength > context / low) {
      frequency /= factor;
      continue;
    }
    const float smooth = (context / wavelength - low) / (high - low);
    frequency = (1 - smooth) * frequency / factor + smooth * frequency;
  }
}

}  // namespace

Rope read_rope(const ConfigReader& config, std::int64_t head_dim, double default_theta, double default_part) {
  Rope rope;
  rope.max_positions = config.integer("max_position_embeddings");
  rope.original_max_positions = rope.max_positions;
  const char* key = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const bool scaled = config.has(key);
  rope.theta = config.number_or("rope_theta", default_theta);
  if (scaled) rope.theta = config.object(key).number_or("rope_theta", rope.theta);
  if (!(rope.theta > 0.0)) throw InvalidInput(fmt::format("{}: \"rope_theta\" must be above 0", config.where()));
  double rotated = config.number_or("partial_rotary_factor", default_part);
  if (scaled) rotated = config.object(key).number_or("partial_rotary_factor", rotated);
  rope.dimensions = static_cast<std::int64_t>(static_cast<double>(head_dim) * rotated);
  if (config.has("rotary_dim")) rope.dimensions = config.integer("rotary_dim", 1);  // MiniMax
  if (rope.dimensions < 2 || rope.dimensions > head_dim || rope.dimensions % 2 != 0) {
    throw InvalidInput(fmt::format("{}: rope would rotate {} of {} head dimensions; expected an even number from 2 to {}",
                                   config.where(), rope.dimensions, head_dim, head_dim));
  }
  if (scaled) read_scaling(rope, config, config.object(key));
  return rope;
}

double latent_rope_scale(const ConfigReader& config) {
  const char* key = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!config.has(key)) return 1.0;
  const ConfigReader scaling = config.object(key);
  if (scaling.text_or("rope_type", scaling.text_or("type", "default")) == "default") return 1.0;
  const double all_dim = scaling.number_or("mscale_all_dim", 0.0);
  if (all_dim == 0.0) return 1.0;
  const double mscale = yarn_scale(scaling.number("factor"), all_dim);
  return mscale * mscale;
}

double rope_attention_factor(const Rope& rope, std::int64_t sequence_length) {
  const bool beyond = rope.kind == RopeKind::longrope && sequence_length > rope.original_max_positions;
  return beyond ? rope.long_attention_factor : rope.attention_factor;
}

std::vector<float> inverse_frequencies(const Rope& rope, std::int64_t sequence_length) {
  if (rope.kind == RopeKind::dynamic) {
    const auto dimensions = static_cast<double>(rope.dimensions);
    const auto longest = static_cast<double>(rope.max_positions);
    const auto length = std::max(static_cast<double>(sequence_length), longest);
    const double stretch = rope.factor * length / longest - (rope.factor - 1);
    return standard_frequencies(rope.theta * std::pow(stretch, dimensions / (dimensions - 2)), rope.dimensions);
  }
  if (rope.kind == RopeKind::longrope) {
    const bool beyond = sequence_length > rope.original_max_positions;
    return standard_frequencies(rope.theta, rope.dimensions, beyond ? rope.long_factors : rope.short_factors);
  }
  auto frequencies = standard_frequencies(rope.theta, rope.dimensions);
  if (rope.kind == RopeKind::linear) {
    for (float& frequency : frequencies) frequency /= static_cast<float>(rope.factor);
  }
  if (rope.kind == RopeKind::yarn) apply_yarn(rope, frequencies);
  if (rope.kind == RopeKind::llama3) apply_llama3(rope, frequencies);
  return frequencies;
}

}  // namespace moetrim
