// An importance matrix as a GGUF file.

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <span>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/imatrix.h"

namespace moetrim {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kTypeKey = "general.type";
constexpr std::string_view kType = "imatrix";
constexpr std::string_view kDatasetsKey = "imatrix.datasets";
constexpr std::string_view kChunkCountKey = "imatrix.chunk_count";
constexpr std::string_view kChunkSizeKey = "imatrix.chunk_size";
constexpr std::string_view kSums = ".in_sum2";
constexpr std::string_view kCounts = ".counts";

/// The two tensors of an entry.
struct Pair {
  const GgufTensor* sums = nullptr;
  const GgufTensor* counts = nullptr;
};

/// What a file's values are read from.
struct OpenImatrix {
  GgufFile file;
  std::vector<Pair> pairs = {};  ///< parallel to the entries
};

[[noreturn]] void fail(const GgufFile& file, const std::string& problem) {
  throw InvalidInput(file.path().string() + ": " + problem);
}

void check_magic(const fs::path& path) {
  std::array<char, 4> magic{};
  std::ifstream in(path, std::ios::binary);
  if (!in) throw InvalidInput(path.string() + ": cannot be read");
  in.read(magic.data(), magic.size());
  if (in && std::string_view(magic.data(), magic.size()) == "GGUF") return;
  throw InvalidInput(
      fmt::format("{}: not a GGUF file; an imatrix in the older form becomes one with `llama-imatrix --in-file {} -o "
                  "NEW.gguf`",
                  path.string(), path.filename().string()));
}

std::uint32_t whole_key(const GgufFile& file, std::string_view key) {
  const auto value = file.metadata().whole(key, file.path());
  if (!value) fail(file, fmt::format("key {} is missing, without which llama-quantize refuses an imatrix", key));
  if (*value > std::numeric_limits<std::uint32_t>::max()) fail(file, fmt::format("key {}: {} is too large", key, *value));
  return static_cast<std::uint32_t>(*value);
}

std::vector<std::string> datasets_of(const GgufFile& file) {
  const GgufValue* value = file.metadata().find(kDatasetsKey);
  const GgufArray* list = value != nullptr ? std::get_if<GgufArray>(value) : nullptr;
  if (list == nullptr || list->of != GgufType::string) {
    fail(file, fmt::format("key {}: expected a list of strings", kDatasetsKey));
  }
  return list->texts;
}

/// Extents without those of 1 at the end, which ggml does not write.
std::vector<std::uint64_t> trimmed(std::vector<std::uint64_t> shape) {
  while (shape.size() > 1 && shape.back() == 1) shape.pop_back();
  return shape;
}

std::map<std::string, Pair> pairs_of(const GgufFile& file) {
  std::map<std::string, Pair> pairs;
  for (const GgufTensor& tensor : file.tensors()) {
    const bool sums = tensor.name.ends_with(kSums);
    if (!sums && !tensor.name.ends_with(kCounts)) {
      fail(file, fmt::format("tensor {}: expected names that end with {} or {}", tensor.name, kSums, kCounts));
    }
    if (tensor.type != GgmlType::f32) fail(file, fmt::format("tensor {}: expected F32", tensor.name));
    Pair& pair = pairs[tensor.name.substr(0, tensor.name.size() - (sums ? kSums : kCounts).size())];
    (sums ? pair.sums : pair.counts) = &tensor;
  }
  for (const auto& [name, pair] : pairs) {
    if (pair.sums == nullptr || pair.counts == nullptr) {
      fail(file, fmt::format("tensor {}: {} is missing", name, pair.sums == nullptr ? kSums : kCounts));
    }
  }
  if (pairs.empty()) fail(file, "an imatrix without tensors");
  return pairs;
}

ImatrixEntry entry_of(const GgufFile& file, const std::string& name, const Pair& pair) {
  const auto sums = trimmed(pair.sums->shape);
  const auto counts = trimmed(pair.counts->shape);
  ImatrixEntry entry{.name = name, .inputs = sums.front(), .matrices = sums.size() > 1 ? sums[1] : 1};
  const std::vector<std::uint64_t> expected = trimmed({1, entry.matrices});
  if (name.empty() || sums.size() > 2 || entry.inputs == 0 || counts != expected) {
    fail(file,
         fmt::format("tensor {}: sums {} and counts {} do not fit together; expected [inputs, matrices] and [1, matrices]",
                     name, pair.sums->shape, pair.counts->shape));
  }
  return entry;
}

std::vector<float> floats_of(const GgufFile& file, const GgufTensor& tensor) {
  std::vector<float> values(tensor.size / sizeof(float));
  file.read(tensor, 0, std::as_writable_bytes(std::span(values)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i]) && values[i] >= 0) continue;
    fail(file, fmt::format("tensor {}, element {}: expected a finite number that is not negative, got {}", tensor.name, i,
                           values[i]));
  }
  return values;
}

/// Of a matrix with one count ggml writes one extent.
GgufTensorSpec spec_of(const std::string& name, std::uint64_t inputs, std::uint64_t matrices) {
  return {.name = name, .type = GgmlType::f32, .shape = trimmed({inputs, matrices})};
}

GgufMetadata metadata_of(const Imatrix& matrix) {
  GgufMetadata metadata;
  metadata.set(kTypeKey, std::string(kType));
  metadata.set(kDatasetsKey, GgufArray::of_texts(matrix.datasets));
  metadata.set(kChunkCountKey, matrix.chunk_count);
  metadata.set(kChunkSizeKey, matrix.chunk_size);
  return metadata;
}

}  // namespace

int ImatrixEntry::block() const {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return -1;
  int id = -1;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size();
  const auto [at, error] = std::from_chars(begin, end, id);
  return error == std::errc() && at != end && *at == '.' && id >= 0 ? id : -1;
}

bool ImatrixEntry::of_experts() const { return name.ends_with("_exps.weight"); }

Imatrix open_imatrix(const fs::path& path) {
  check_magic(path);
  const auto open = std::make_shared<OpenImatrix>(OpenImatrix{GgufFile::open(path)});
  const GgufFile& file = open->file;
  if (file.metadata().text(kTypeKey, path) != kType) {
    fail(file, fmt::format("key {} is not \"{}\": not an imatrix", kTypeKey, kType));
  }
  Imatrix out{.datasets = datasets_of(file),
              .chunk_count = whole_key(file, kChunkCountKey),
              .chunk_size = whole_key(file, kChunkSizeKey),
              .entries = {},
              .values = {}};
  for (const auto& [name, pair] : pairs_of(file)) {
    out.entries.push_back(entry_of(file, name, pair));
    open->pairs.push_back(pair);
  }
  out.values = [open](std::size_t entry) {
    const Pair& pair = open->pairs.at(entry);
    return ImatrixValues{floats_of(open->file, *pair.sums), floats_of(open->file, *pair.counts)};
  };
  return out;
}

void write_imatrix(const fs::path& path, const Imatrix& matrix, bool overwrite) {
  if (fs::exists(path) && !overwrite) {
    throw UsageError(fmt::format("{} exists already; choose another -o, or give --overwrite", path.string()));
  }
  if (matrix.entries.empty()) {
    throw InvalidInput(path.string() + ": there is nothing to write, the imatrix would have no tensors");
  }
  std::vector<GgufTensorSpec> specs;
  for (const ImatrixEntry& entry : matrix.entries) {
    specs.push_back(spec_of(entry.name + std::string(kSums), entry.inputs, entry.matrices));
    specs.push_back(spec_of(entry.name + std::string(kCounts), 1, entry.matrices));
  }
  GgufWriter writer(path, metadata_of(matrix), std::move(specs));
  for (std::size_t i = 0; i < matrix.entries.size(); ++i) {
    const ImatrixValues values = matrix.values(i);
    const ImatrixEntry& entry = matrix.entries[i];
    if (values.sums.size() != entry.inputs * entry.matrices || values.counts.size() != entry.matrices) {
      throw Error("an imatrix gave other values than it has announced for " + entry.name);
    }
    writer.write_at(2 * i, 0, std::as_bytes(std::span(values.sums)));
    writer.write_at(2 * i + 1, 0, std::as_bytes(std::span(values.counts)));
  }
  writer.finish();
}

}  // namespace moetrim
