// Reads and writes the safetensors file of one pattern, strictly.
#include "patterns/pattern_file.h"

#include <algorithm>

#include <fmt/format.h>

#include "checkpoint/json_file.h"
#include "moetrim/error.h"
#include "moetrim/json_fields.h"
#include "patterns/head.h"
#include "statistics/tensor_file.h"

namespace moetrim {
namespace {

constexpr const char* kFormat = "pattern-1";  // name and version
constexpr int kMostPrototypes = 4096;
constexpr std::int64_t kMostPrompts = std::int64_t{1} << 53;

std::string tensor_of(std::string_view kind, std::size_t stat) {
  return fmt::format("{}.{}", kind, signature_stat_name(static_cast<SignatureStat>(stat)));
}

struct Sizes {
  std::int64_t layers, experts, depth, prototypes;

  explicit Sizes(const PatternFacts& facts)
      : layers(std::ssize(facts.manifest.moe_layers)), experts(facts.manifest.experts), depth(facts.signature.depth),
        prototypes(facts.signature.prototypes) {}
};

/// What the file holds, in the order of its bytes.
class Fields {
 public:
  /// @param pattern  whose memory is to be filled, or written; null: only shapes are wanted
  Fields(const PatternFacts& facts, Pattern* pattern) : pattern_(pattern) {
    const Sizes size(facts);
    add("tokens", {size.layers}, pattern ? &pattern->tokens : nullptr);
    for (std::size_t i = 0; i < kStatCount; ++i) {
      const auto stat = static_cast<Stat>(i);
      add(std::string(stat_name(stat)), {size.layers, size.experts}, pattern ? &pattern->values[i] : nullptr,
          stat_can_be_negative(stat));
    }
    if (facts.second_order) add_atoms(facts.manifest);
    for (std::size_t i = 0; i < kSignatureStats && facts.signature.prompts > 0; ++i) {
      add(tensor_of("radius", i), {size.depth}, pattern ? &pattern->signature.radius[i] : nullptr);
    }
    for (std::size_t i = 0; i < kSignatureStats; ++i) {
      fields_.push_back({{tensor_of("signature", i), Dtype::f32, {size.depth, size.prototypes, size.experts}}, {}});
      if (!pattern) continue;
      auto& rows = pattern->signature.rows[i];
      rows.resize(static_cast<std::size_t>(size.depth * size.prototypes * size.experts));
      fields_.back().floats = rows;
    }
  }

  const std::vector<StatisticsField>& list() const { return fields_; }

 private:
  void add(std::string name, std::vector<std::int64_t> shape, std::vector<double>* values, bool negative = false) {
    std::size_t count = 1;
    for (const std::int64_t length : shape) count *= static_cast<std::size_t>(length);
    fields_.push_back({{std::move(name), Dtype::f64, std::move(shape)}, {}, negative});
    if (!values) return;
    values->resize(count);
    fields_.back().values = *values;
  }

  void add_atoms(const StatisticsManifest& manifest) {
    const std::int64_t experts = manifest.experts, width = manifest.expert_width;
    for (std::size_t l = 0; l < manifest.moe_layers.size(); ++l) {
      if (pattern_ && pattern_->atoms.size() == l) {
        pattern_->atoms.emplace_back(manifest.moe_layers[l], 1, manifest.experts, manifest.expert_width);
      }
      AtomStatistics* atoms = pattern_ ? &pattern_->atoms[l] : nullptr;
      const auto of = [&](const char* name, std::vector<std::int64_t> shape, std::vector<double> AtomStatistics::*member) {
        add(fmt::format("atoms.{:05d}.{}", manifest.moe_layers[l], name), std::move(shape),
            atoms ? &(atoms->*member) : nullptr, member == &AtomStatistics::taylor);
      };
      of("tokens", {experts}, &AtomStatistics::tokens);
      of("activation", {experts, width}, &AtomStatistics::activation);
      of("gradient", {experts, width}, &AtomStatistics::gradient);
      of("joint", {experts, width}, &AtomStatistics::joint);
      of("taylor", {kSlices, experts}, &AtomStatistics::taylor);
      of("fisher", {kSlices, experts}, &AtomStatistics::fisher);
      of("down_squares", {experts, width}, &AtomStatistics::down_squares);
      of("gate_up_squares", {experts, width}, &AtomStatistics::gate_up_squares);
    }
  }

  Pattern* pattern_;
  std::vector<StatisticsField> fields_;
};

nlohmann::ordered_json metadata_json(const SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) fail(file, fmt::format("metadata {} is missing", key));
  return checkpoint_detail::parse_json(fmt::format("{}: metadata {}", file.path().string(), key), found->second, false);
}

Signature signature_from_json(JsonFields fields, int layers) {
  Signature out;
  out.source = fields.choice("source", {"task", "statistics", "prompts"});
  out.depth = fields.whole("depth", 1, std::min(layers, kMostSignatureLayers));
  out.prototypes = fields.whole("prototypes", 1, kMostPrototypes);
  if (out.source == "prompts") out.prompts = fields.integer("prompts", 1, kMostPrompts);
  fields.finish();
  return out;
}

/// No more routed than counted, and as many counted as the manifest says; multi-token-prediction blocks count fewer.
void check_counts(const SafetensorsFile& file, const Pattern& pattern) {
  const StatisticsManifest& manifest = pattern.manifest;
  const auto counted = static_cast<double>(manifest.tasks.front().counted_tokens);
  const auto experts = static_cast<std::size_t>(manifest.experts);
  for (std::size_t l = 0; l < pattern.tokens.size(); ++l) {
    const bool block = manifest.moe_layers[l] >= manifest.layers;
    if (block ? pattern.tokens[l] > counted : pattern.tokens[l] != counted) {
      fail(file, fmt::format("tensor tokens, element {}: {}, the manifest counts {}", l, pattern.tokens[l], counted));
    }
    const auto routed =
        std::span(pattern.values[static_cast<std::size_t>(Stat::routed_count)]).subspan(l * experts, experts);
    if (*std::max_element(routed.begin(), routed.end()) > pattern.tokens[l]) {
      fail(file,
           fmt::format("tensor routed_count, row {}: more tokens were routed to an expert than the {} that were counted", l,
                       pattern.tokens[l]));
    }
  }
}

}  // namespace

PatternFile::PatternFile(const std::filesystem::path& path) : file_(SafetensorsFile::open(path)) {
  const auto format = file_.metadata().find("moetrim_format");
  if (format == file_.metadata().end() || format->second != kFormat) {
    fail(file_, fmt::format("no pattern: metadata moetrim_format is not \"{}\"", kFormat));
  }
  read_metadata();
  check_fields(file_, Fields(facts_, nullptr).list());
}

void PatternFile::read_metadata() {
  const auto manifest = metadata_json(file_, "manifest");
  facts_.manifest = manifest_from_json(manifest, file_.path().string() + ": metadata manifest");
  head_ = library_head(manifest);
  facts_.bytes = file_.file_bytes();
  if (facts_.manifest.tasks.size() != 1) {
    fail(file_, fmt::format("metadata manifest: expected one task, got {}", facts_.manifest.tasks.size()));
  }
  const auto signature = metadata_json(file_, "signature");
  facts_.signature = signature_from_json(JsonFields(signature, file_.path(), "metadata signature"),
                                         static_cast<int>(facts_.manifest.moe_layers.size()));
  facts_.second_order = facts_.manifest.expert_width > 0;
}

PatternFacts PatternFile::facts() const {
  PatternFacts facts = facts_;
  facts.name = file_.path().stem().string();
  return facts;
}

Pattern PatternFile::read() const {
  Pattern pattern{.manifest = facts_.manifest, .signature = facts_.signature};
  read_fields(file_, Fields(facts_, &pattern).list());
  check_counts(file_, pattern);
  return pattern;
}

std::vector<float> PatternFile::signature_rows(SignatureStat stat, int depth) const {
  const Signature& signature = facts_.signature;
  if (depth > signature.depth) {
    fail(file_,
         fmt::format(
             "its signature covers {} MoE layers, not the {} asked for; lower --depth, or add the pattern again with a "
             "deeper one",
             signature.depth, depth));
  }
  const auto experts = static_cast<std::size_t>(facts_.manifest.experts);
  const auto rows = static_cast<std::size_t>(signature.prototypes);
  const auto layers = static_cast<std::size_t>(depth);
  std::vector<float> read(layers * rows * experts);
  const Tensor* tensor = file_.find(tensor_of("signature", static_cast<std::size_t>(stat)));
  file_.read(*tensor, 0, std::as_writable_bytes(std::span(read)));
  std::vector<float> out(read.size());  // from [depth, rows, experts]
  for (std::size_t i = 0; i < read.size(); ++i) {
    if (!(read[i] >= 0) || read[i] > 1e30F) {
      fail(file_, fmt::format("tensor {}, element {}: expected a finite number that is not "
                              "negative, got {}",
                              tensor->name, i, read[i]));
    }
    const std::size_t expert = i % experts, row = i / experts % rows, layer = i / experts / rows;
    out[(row * layers + layer) * experts + expert] = read[i];
  }
  return out;
}

std::optional<double> PatternFile::radius(SignatureStat stat, int depth) const {
  const Tensor* tensor = file_.find(tensor_of("radius", static_cast<std::size_t>(stat)));
  if (tensor == nullptr) return std::nullopt;
  double value = 0;
  file_.read(*tensor, static_cast<std::uint64_t>(depth - 1) * sizeof(double), std::as_writable_bytes(std::span(&value, 1)));
  if (!(value >= 0 && value <= 2)) {
    fail(file_, fmt::format("tensor {}: {} is no distance, from 0 to 2", tensor->name, value));
  }
  return value;
}

std::vector<float> PatternFile::published_row() const {
  double tokens = 0;
  file_.read(*file_.find("tokens"), 0, std::as_writable_bytes(std::span(&tokens, 1)));
  if (!(tokens > 0)) fail(file_, fmt::format("tensor tokens: expected a number above 0, got {}", tokens));
  std::vector<double> sums(static_cast<std::size_t>(facts_.manifest.experts));
  file_.read(*file_.find(stat_name(Stat::tcess_logit_sum)), 0, std::as_writable_bytes(std::span(sums)));
  std::vector<float> row;
  for (const double sum : sums) row.push_back(static_cast<float>(sum / tokens));
  if (std::any_of(row.begin(), row.end(), [](float value) { return !(value > -1e30F && value < 1e30F); })) {
    fail(file_, "tensor tcess_logit_sum: expected finite numbers");
  }
  return row;
}

void write_pattern(const std::filesystem::path& target, const Pattern& pattern) {
  Pattern copy = pattern;  // fields are writable spans
  const Fields fields(
      {.name = {}, .manifest = pattern.manifest, .signature = pattern.signature, .second_order = !pattern.atoms.empty()},
      &copy);
  std::vector<TensorSpec> specs;
  for (const auto& field : fields.list()) specs.push_back(field.spec);
  SafetensorsWriter writer(target, specs, {{"moetrim_format", kFormat},
                                           {"manifest", manifest_to_json(pattern.manifest).dump()},
                                           {"signature", signature_to_json(pattern.signature).dump()}});
  for (const auto& field : fields.list()) {
    writer.write(field.spec.dtype == Dtype::f32 ? std::as_bytes(field.floats) : std::as_bytes(field.values));
  }
  writer.finish();
}

Pattern read_pattern(const std::filesystem::path& file) { return PatternFile(file).read(); }

}  // namespace moetrim
