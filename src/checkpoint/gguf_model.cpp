// A model in one GGUF file or several.
#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/gguf_file.h"
#include "quote.h"

namespace moetrim {
namespace {

using checkpoint_detail::in_quotes;

constexpr std::string_view kNo = "split.no";
constexpr std::string_view kCount = "split.count";
constexpr std::string_view kTensors = "split.tensors.count";

std::string split_ending(std::size_t index, std::size_t count) {
  return fmt::format("-{:05}-of-{:05}.gguf", index + 1, count);
}

std::uint64_t required(const GgufFile& file, std::string_view key) {
  if (const auto value = file.metadata().whole(key, file.path())) return *value;
  throw InvalidInput(fmt::format("{}: it is part of a model that is split over several files, but lacks the key '{}'",
                                 file.path().string(), key));
}

void check_place(const GgufFile& file, std::uint64_t index, std::uint64_t count) {
  const std::uint64_t no = required(file, kNo);
  const std::uint64_t of = required(file, kCount);
  if (no == index && of == count) return;
  throw InvalidInput(fmt::format("{}: its keys split.no and split.count say {} of {}, expected {} of {}",
                                 file.path().string(), no, of, index, count));
}

/// Later files have nothing to say that the first does not: what they add would be lost, what they contradict is of another
/// model.
void check_same_model(const GgufFile& first, const GgufFile& later) {
  for (const auto& [key, value] : later.metadata().items()) {
    if (key == kNo || key == "general.alignment") continue;
    const GgufValue* there = first.metadata().find(key);
    if (there != nullptr && *there == value) continue;
    throw InvalidInput(fmt::format("{}: its key {} {} in the first file, {}; these are parts of different models",
                                   later.path().string(), in_quotes(key),
                                   there == nullptr ? "is not" : "has another value", first.path().string()));
  }
}

/// All files of the model that `given` is a part of. Their names come from its own name alone.
std::vector<GgufFile> open_splits(GgufFile given, std::uint64_t count) {
  const std::uint64_t no = required(given, kNo);
  if (no >= count) {
    throw InvalidInput(fmt::format("{}: its keys split.no and split.count say that it is file {}, from 0, of {}",
                                   given.path().string(), no, count));
  }
  const std::string name = given.path().filename().string();
  const std::string ending = split_ending(no, count);
  if (!name.ends_with(ending) || name.size() == ending.size()) {
    throw InvalidInput(fmt::format("{}: it is file {} of {} of a model, so that its name must end in {}; give it and the "
                                   "others back the names under which they were published",
                                   given.path().string(), no + 1, count, ending));
  }
  const std::filesystem::path path = given.path();
  const std::filesystem::path base = path.parent_path() / name.substr(0, name.size() - ending.size());
  std::vector<GgufFile> files;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::filesystem::path part = gguf_split_path(base, i, count);
    if (i != no && !std::filesystem::exists(part)) {
      throw InvalidInput(fmt::format("{}: the file {} of the same model is missing", path.string(),
                                     part.filename().string()));
    }
    files.push_back(i == no ? std::move(given) : GgufFile::open(part));
    check_place(files.back(), i, count);
    check_same_model(files.front(), files.back());
  }
  return files;
}

}  // namespace

std::filesystem::path gguf_split_path(const std::filesystem::path& name, std::size_t index, std::size_t count) {
  std::filesystem::path path = name;
  path += split_ending(index, count);
  return path;
}

GgufModel GgufModel::open(const std::filesystem::path& file) {
  GgufFile given = GgufFile::open(file);
  const std::uint64_t count = given.metadata().whole(kCount, file).value_or(1);
  const std::uint64_t no = given.metadata().whole(kNo, file).value_or(0);
  if (count <= 1 && no > 0) {
    throw InvalidInput(fmt::format("{}: its key split.no is {}, but split.count says that there is one file", file.string(),
                                   no));
  }
  GgufModel model;
  if (count > 1) {
    model.files_ = open_splits(std::move(given), count);
  } else {
    model.files_.push_back(std::move(given));
  }
  for (std::size_t i = 0; i < model.files_.size(); ++i) {
    for (GgufTensor tensor : model.files_[i].tensors()) {
      tensor.file = static_cast<std::uint32_t>(i);
      model.total_bytes_ += tensor.size;
      model.tensors_.push_back(std::move(tensor));
    }
  }
  model.index_names();
  if (count <= 1) return model;
  if (const std::uint64_t said = required(model.files_.front(), kTensors); said != model.tensors_.size()) {
    throw InvalidInput(fmt::format("{}: its key {} says {}, but its {} files have {} tensors",
                                   model.files_.front().path().string(), kTensors, said, count, model.tensors_.size()));
  }
  return model;
}

void GgufModel::index_names() {
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), std::size_t{0});
  const auto name = [this](std::size_t i) -> const std::string& { return tensors_[i].name; };
  std::ranges::stable_sort(by_name_, {}, name);
  const auto twice = std::ranges::adjacent_find(by_name_, {}, name);
  if (twice == by_name_.end()) return;
  const GgufTensor& a = tensors_[*twice];
  const GgufTensor& b = tensors_[*std::next(twice)];
  throw InvalidInput(fmt::format("{}: tensor {} is in {} too", files_[b.file].path().string(), in_quotes(a.name),
                                 files_[a.file].path().string()));
}

const GgufTensor* GgufModel::find(std::string_view name) const {
  const auto name_of = [this](std::size_t i) -> std::string_view { return tensors_[i].name; };
  const auto found = std::ranges::lower_bound(by_name_, name, {}, name_of);
  return found == by_name_.end() || tensors_[*found].name != name ? nullptr : &tensors_[*found];
}

void GgufModel::read(const GgufTensor& tensor, std::uint64_t begin, std::span<std::byte> out) const {
  files_.at(tensor.file).read(tensor, begin, out);
}

}  // namespace moetrim
