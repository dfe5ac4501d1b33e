// The file of ranked experts: JSON, read strictly and written one expert a line.
#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/contrast.h"
#include "moetrim/json_fields.h"

namespace moetrim {
namespace {

constexpr std::string_view kFormat = "moetrim-contrast";
constexpr int kVersion = 1;
constexpr double kMostTokens = 0x1p53;

using Json = nlohmann::ordered_json;

Json entry_to_json(const RankedExpert& entry) {
  Json json = {{"layer", entry.layer}, {"expert", entry.expert}, {"score", entry.score}, {"count", entry.count},
               {"against_count", entry.against_count}};
  if (entry.standard_error) json["standard_error"] = *entry.standard_error;
  if (entry.agreement) json["agreement"] = *entry.agreement;
  if (entry.pmi) json["pmi"] = *entry.pmi;
  return json;
}

std::optional<double> optional_number(JsonFields& fields, std::string_view name, double least, double most) {
  if (!fields.has(name)) return std::nullopt;
  return fields.number(name, least, most);
}

RankedExpert entry_from_json(JsonFields fields, const Contrast& contrast) {
  RankedExpert entry;
  entry.layer = fields.whole("layer", 0);
  if (std::find(contrast.layers.begin(), contrast.layers.end(), entry.layer) == contrast.layers.end()) {
    fields.fail("layer", fmt::format("layer {} is not in layers", entry.layer));
  }
  entry.expert = fields.whole("expert", 0, contrast.experts - 1);
  entry.score = fields.number("score", -1, 1);
  entry.count = fields.number("count", 0, kMostTokens);
  entry.against_count = fields.number("against_count", 0, kMostTokens);
  entry.standard_error = optional_number(fields, "standard_error", 0, 2);
  entry.agreement = optional_number(fields, "agreement", 0, 1);
  entry.pmi = optional_number(fields, "pmi", -53, 53);  // shares of at most 2^53 tokens
  fields.finish();
  return entry;
}

void read_ranked(JsonFields& fields, const std::filesystem::path& file, Contrast& contrast) {
  std::set<std::pair<int, int>> seen;
  for (const Json& item : fields.array("ranked")) {
    const std::string where = fmt::format("ranked[{}]", contrast.ranked.size());
    RankedExpert entry = entry_from_json(JsonFields(item, file, where), contrast);
    if (!seen.emplace(entry.layer, entry.expert).second) {
      fields.fail(where, fmt::format("expert {} of layer {} is there twice", entry.expert, entry.layer));
    }
    if (!contrast.ranked.empty() && entry.score > contrast.ranked.back().score) {
      fields.fail(where + ".score", "expected no more than the score before it; experts are ranked by descending score");
    }
    contrast.ranked.push_back(entry);
  }
}

}  // namespace

nlohmann::ordered_json contrast_to_json(const Contrast& contrast) {
  Json json = {{"format", kFormat},
               {"version", kVersion},
               {"measure", contrast_measure_name(contrast.measure)},
               {"checkpoint_fingerprint", contrast.checkpoint_fingerprint},
               {"family", contrast.family},
               {"experts", contrast.experts},
               {"layers", contrast.layers},
               {"source", contrast.source},
               {"ranked", Json::array()}};
  for (const RankedExpert& entry : contrast.ranked) json["ranked"].push_back(entry_to_json(entry));
  return json;
}

void write_contrast(const std::filesystem::path& file, const Contrast& contrast) {
  const Json json = contrast_to_json(contrast);
  std::string text = "{";
  for (const auto& field : json.items()) {
    text += (text.size() > 1 ? ",\n  " : "\n  ") + Json(field.key()).dump() + ": ";
    const bool rows = field.key() == "ranked" && !field.value().empty();
    if (!rows) {
      text += field.value().dump();
      continue;
    }
    for (std::size_t i = 0; i < field.value().size(); ++i) {
      text += (i == 0 ? "[\n    " : ",\n    ") + field.value()[i].dump();
    }
    text += "\n  ]";
  }
  write_file_atomically(file, text + "\n}\n");
}

Contrast read_contrast(const std::filesystem::path& file) {
  const Json json = read_json_file(file);
  JsonFields fields(json, file);
  fields.choice("format", {kFormat});
  fields.whole("version", kVersion, kVersion);
  Contrast contrast;
  contrast.measure = fields.choice("measure", {"ftri", "npmi"}) == "ftri" ? ContrastMeasure::ftri : ContrastMeasure::npmi;
  contrast.checkpoint_fingerprint = fields.text("checkpoint_fingerprint");
  contrast.family = fields.text("family");
  contrast.experts = fields.whole("experts", 1);
  contrast.layers = fields.ascending("layers", 0, std::numeric_limits<int>::max());
  contrast.source = fields.object("source");
  read_ranked(fields, file, contrast);
  fields.finish();
  return contrast;
}

}  // namespace moetrim
