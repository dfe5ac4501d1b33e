// config.json's quantization_config as a small struct. Everything in it is foreign until it was checked here.
#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/json_fields.h"
#include "moetrim/quantised.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kMostGroup = std::int64_t{1} << 30;
constexpr std::int64_t kMostBlock = std::int64_t{1} << 20;

constexpr std::array<std::string_view, 8> kMethods{"awq",      "compressed-tensors", "fbgemm_fp8", "fp8",
                                                   "gptq",     "modelopt",           "mxfp4",      "mxfp8"};

// The formats of compressed-tensors whose tensors lie as in quantised.h. Others (marlin-24, sparse-*) shuffle them.
constexpr std::array<std::string_view, 9> kCompressedFormats{
    "dense",          "float-quantized",      "int-quantized",   "mixed-precision",     "mxfp4-pack-quantized",
    "mxfp8-quantized", "naive-quantized",     "nvfp4-pack-quantized", "pack-quantized"};

bool present(JsonFields& fields, std::string_view key) { return fields.has(key) && !fields.at(key).is_null(); }

std::string text_or(JsonFields& fields, std::string_view key, std::string_view fallback) {
  return present(fields, key) ? fields.text(key) : std::string(fallback);
}

std::string in_small_letters(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

int bits_of(JsonFields& fields, std::string_view key) { return present(fields, key) ? fields.whole(key, 1, 64) : 0; }

std::int64_t group_of(JsonFields& fields, std::string_view key) {
  return present(fields, key) ? fields.integer(key, -1, kMostGroup) : 0;
}

/// [rows, cols], or as old compressed-tensors wrote it "128x128".
std::pair<std::int64_t, std::int64_t> block_of(JsonFields& fields, std::string_view key) {
  const Json& value = fields.at(key);
  std::array<std::int64_t, 2> extents{};
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    const auto cut = text.find('x');
    const auto number = [&](std::string_view digits) -> std::int64_t {
      const bool fits = !digits.empty() && digits.size() <= 7 &&
                        std::ranges::all_of(digits, [](char c) { return c >= '0' && c <= '9'; });
      return fits ? std::stoll(std::string(digits)) : 0;
    };
    if (cut != std::string::npos) {
      extents = {number(std::string_view(text).substr(0, cut)), number(std::string_view(text).substr(cut + 1))};
    }
  } else if (value.is_array() && value.size() == 2) {
    for (std::size_t i = 0; i < 2; ++i) {
      if (value[i].is_number_unsigned()) {
        extents[i] = static_cast<std::int64_t>(
            std::min<std::uint64_t>(value[i].get<std::uint64_t>(), static_cast<std::uint64_t>(kMostBlock) + 1));
      }
    }
  }
  if (std::ranges::any_of(extents, [](std::int64_t extent) { return extent < 1 || extent > kMostBlock; })) {
    fields.fail(key, fmt::format("expected two integers from 1 to {}, rows and columns of a block", kMostBlock));
  }
  return {extents[0], extents[1]};
}

void read_gptq(JsonFields& fields, Quantisation& out) {
  out.bits = bits_of(fields, "bits");
  out.group_size = group_of(fields, "group_size");
  out.format = in_small_letters(text_or(fields, "checkpoint_format", text_or(fields, "format", "gptq")));
  if (present(fields, "is_marlin_format") && fields.flag("is_marlin_format")) out.format = "marlin";
  out.zeros_minus_one = out.format == "gptq";
  out.varies = present(fields, "dynamic") && !fields.object("dynamic").empty();
  if (out.format != "gptq" && out.format != "gptq_v2") {
    out.obstacle = fmt::format("checkpoint_format {} is not known; gptq and gptq_v2 are", in_quotes(out.format));
  }
  const std::string words = text_or(fields, "pack_dtype", "int32");
  if (words != "int32") out.obstacle = fmt::format("pack_dtype {} is not known; int32 is", in_quotes(words));
}

void read_awq(JsonFields& fields, Quantisation& out) {
  out.bits = bits_of(fields, fields.has("w_bit") ? "w_bit" : "bits");
  out.group_size = group_of(fields, fields.has("q_group_size") ? "q_group_size" : "group_size");
  out.format = in_small_letters(text_or(fields, "version", text_or(fields, "format", "gemm")));
  out.varies = present(fields, "dynamic") && !fields.object("dynamic").empty();
  if (out.format != "gemm") {
    out.obstacle = fmt::format("version {} is not known; gemm is, and AutoAWQ converts to it", in_quotes(out.format));
  } else if (text_or(fields, "backend", "") == "llm-awq") {
    out.obstacle = "backend llm-awq packs in another order; convert the model to version gemm";
  }
}

void read_fp8(JsonFields& fields, Quantisation& out) {
  constexpr std::int64_t kPublishedBlock = 128;  // what transformers takes where the key is missing; null means none
  if (!fields.has("weight_block_size")) {
    out.block_rows = out.block_cols = kPublishedBlock;
  } else if (present(fields, "weight_block_size")) {
    std::tie(out.block_rows, out.block_cols) = block_of(fields, "weight_block_size");
  }
}

QuantisationGroup read_weights(JsonFields fields) {
  QuantisationGroup group;
  group.bits = bits_of(fields, "num_bits");
  group.type = in_small_letters(text_or(fields, "type", "int"));
  group.strategy = in_small_letters(text_or(fields, "strategy", ""));
  group.group_size = group_of(fields, "group_size");
  if (present(fields, "symmetric")) group.symmetric = fields.flag("symmetric");
  if (present(fields, "block_structure")) {
    std::tie(group.block_rows, group.block_cols) = block_of(fields, "block_structure");
  }
  return group;
}

void read_groups(JsonFields& fields, Quantisation& out) {
  if (!present(fields, "config_groups")) return;
  for (const auto& item : fields.object("config_groups").items()) {
    const std::string where = out.where + ": config_groups." + item.key();
    if (item.value().is_array()) {
      out.obstacle = "config_groups names presets instead of saying what they are; write the model with llm-compressor";
      continue;
    }
    JsonFields group(item.value(), where);
    if (present(group, "weights")) out.groups.push_back(read_weights(JsonFields(group.object("weights"), where, "weights")));
  }
}

void read_modelopt(JsonFields& fields, Quantisation& out) {
  out.format = in_small_letters(text_or(fields, "quant_algo", ""));
  read_groups(fields, out);
  // Both multiply activations by tensors of their own (pre_quant_scale, low-rank parts) before the weight.
  if (out.format.find("awq") != std::string::npos || out.format.find("svd") != std::string::npos) {
    out.obstacle = fmt::format("quant_algo {} changes activations too, so that weights alone do not say what the model "
                               "computes",
                               in_quotes(out.format));
  }
}

void read_compressed_tensors(JsonFields& fields, Quantisation& out) {
  out.format = in_small_letters(text_or(fields, "format", "dense"));
  if (std::ranges::find(kCompressedFormats, out.format) == kCompressedFormats.end()) {
    out.obstacle = fmt::format("format {} is not known; expected one of {}", in_quotes(out.format),
                               fmt::join(kCompressedFormats, ", "));
  }
  read_groups(fields, out);
  if (present(fields, "sparsity_config") && !fields.object("sparsity_config").empty()) {
    JsonFields sparsity(fields.object("sparsity_config"), out.where, "sparsity_config");
    if (text_or(sparsity, "format", "dense") != "dense") {
      out.obstacle = "sparsity_config leaves out zeros of the weights; decompress the model first";
    }
  }
  if (present(fields, "transform_config") && !fields.object("transform_config").empty()) {
    JsonFields transform(fields.object("transform_config"), out.where, "transform_config");
    if (!present(transform, "config_groups") || !transform.at("config_groups").empty()) {
      out.obstacle = "transform_config rotates activations, so that weights alone do not say what the model computes";
    }
  }
}

/// The place in config.json that says how weights are stored, or null.
const Json* find_quantisation(const Json& config, const std::string& where) {
  const Json* found = nullptr;
  const auto look = [&](const Json& object, const char* key) {
    const auto field = object.is_object() ? object.find(key) : object.end();
    if (!object.is_object() || field == object.end() || field->is_null()) return;
    if (found && *found != *field) {
      throw InvalidInput(fmt::format("{}: two quantization_config that differ; leave only the one that is true", where));
    }
    found = &*field;
  };
  look(config, "quantization_config");
  if (config.is_object() && config.contains("text_config")) look(config.at("text_config"), "quantization_config");
  if (!found) look(config, "compression_config");
  return found;
}

/// Some writers leave the method out; what only they write tells who it was.
std::string method_of(JsonFields& fields) {
  if (present(fields, "quant_method")) return in_small_letters(fields.text("quant_method"));
  if (present(fields, "config_groups")) return "compressed-tensors";
  return present(fields, "quant_algo") ? "modelopt" : "(no quant_method)";
}

}  // namespace

std::span<const std::string_view> known_quantisation_methods() { return kMethods; }

Quantisation read_quantisation(const nlohmann::ordered_json& config, std::string where) {
  Quantisation out;
  out.where = where;
  const Json* found = find_quantisation(config, where);
  if (!found) return out;
  out.where += ": quantization_config";
  JsonFields fields(*found, out.where);
  out.method = method_of(fields);
  if (out.method == "gptq") read_gptq(fields, out);
  if (out.method == "awq") read_awq(fields, out);
  if (out.method == "fp8") read_fp8(fields, out);
  if (out.method == "compressed-tensors") read_compressed_tensors(fields, out);
  if (out.method == "modelopt") read_modelopt(fields, out);
  return out;
}

}  // namespace moetrim
