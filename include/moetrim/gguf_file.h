// GGUF files (version 3, little-endian), in one file or split over several: typed metadata, and tensors as named byte
// ranges. Nothing here knows what a tensor means, or computes a value.
//
// Source: ggml's docs/gguf.md and what its reader accepts. Where the two differ the stricter one holds; see
// docs/file_formats.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace moetrim {

/// Element types of ggml, by their id in the file. An id that is not named here is refused when a file is opened.
enum class GgmlType : std::uint32_t {
  f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q5_0 = 6, q5_1 = 7, q8_0 = 8, q8_1 = 9,
  q2_k = 10, q3_k = 11, q4_k = 12, q5_k = 13, q6_k = 14, q8_k = 15,
  iq2_xxs = 16, iq2_xs = 17, iq3_xxs = 18, iq1_s = 19, iq4_nl = 20, iq3_s = 21, iq2_s = 22, iq4_xs = 23,
  i8 = 24, i16 = 25, i32 = 26, i64 = 27, f64 = 28, iq1_m = 29, bf16 = 30,
  tq1_0 = 34, tq2_0 = 35, mxfp4 = 39, nvfp4 = 40, q1_0 = 41, q2_0 = 42,
};

/// How the elements of a row lie: in blocks of `block_elements` neighbours that take `block_bytes` together.
struct GgmlLayout {
  GgmlType type;
  std::string_view name;  ///< "Q4_K"
  std::uint32_t block_elements;
  std::uint32_t block_bytes;
};
/// @return null for an id that ggml does not have, or has given up
const GgmlLayout* find_ggml_layout(GgmlType type);
/// The type's layout, which must exist.
const GgmlLayout& ggml_layout(GgmlType type);
/// The type spelled `name`, in either case, or nothing.
std::optional<GgmlType> ggml_type_from_name(std::string_view name);

/// Types of metadata, by their id in the file.
enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
std::string_view gguf_type_name(GgufType type);
/// Bytes of a number or boolean; 0 for strings and arrays.
std::size_t gguf_type_bytes(GgufType type);

/// Many numbers, booleans or strings. The format's arrays of arrays are refused, as ggml does.
struct GgufArray {
  GgufType of = GgufType::u8;
  std::vector<std::byte> numbers = {};  ///< little-endian, one behind the other; of strings none
  std::vector<std::string> texts = {};  ///< of strings

  std::size_t size() const;
  /// @throws InvalidInput naming `what` when it holds something else, or a number does not fit.
  std::vector<std::int64_t> whole_numbers(std::string_view what) const;
  static GgufArray of_texts(std::vector<std::string> texts);
  static GgufArray of_i32(std::span<const std::int32_t> values);
  static GgufArray of_u32(std::span<const std::uint32_t> values);
  static GgufArray of_f32(std::span<const float> values);
  static GgufArray of_booleans(std::span<const bool> values);

  bool operator==(const GgufArray&) const = default;
};

/// The alternatives stand in the order of GgufType. Strings are bytes, here and in arrays: nearly always UTF-8, but that is
/// not checked, because tokens need not be.
using GgufValue = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t, std::uint32_t, std::int32_t, float,
                               bool, std::string, GgufArray, std::uint64_t, std::int64_t, double>;
inline GgufType gguf_type_of(const GgufValue& value) { return static_cast<GgufType>(value.index()); }

/// Keys and values in the order of the file.
class GgufMetadata {
 public:
  GgufMetadata() = default;
  explicit GgufMetadata(std::vector<std::pair<std::string, GgufValue>> items) : items_(std::move(items)) {}

  const std::vector<std::pair<std::string, GgufValue>>& items() const { return items_; }
  const GgufValue* find(std::string_view key) const;
  /// Replaces the value where the key is, else appends it.
  void set(std::string_view key, GgufValue value);
  void erase(std::string_view key);

  /// A whole number of any width that is not negative, or nothing where the key is not.
  /// @throws InvalidInput naming `file` and the key for a value of another type, or a negative one.
  std::optional<std::uint64_t> whole(std::string_view key, const std::filesystem::path& file) const;
  /// A string, likewise.
  std::optional<std::string> text(std::string_view key, const std::filesystem::path& file) const;
  /// A float of either width, likewise.
  std::optional<double> real(std::string_view key, const std::filesystem::path& file) const;

 private:
  std::vector<std::pair<std::string, GgufValue>> items_;
};

/// What a tensor is, without its bytes.
struct GgufTensorSpec {
  std::string name;                  ///< below 64 bytes
  GgmlType type = GgmlType::f32;
  std::vector<std::uint64_t> shape;  ///< one to four extents in ggml's order: neighbours in memory first. [in, out, experts]

  /// @throws InvalidInput when a row is no whole number of blocks, or the size overflows.
  std::uint64_t row_bytes() const;
  std::uint64_t bytes() const;
};

struct GgufTensor : GgufTensorSpec {
  std::uint32_t file = 0;    ///< index into GgufModel::files(); 0 in a single GgufFile
  std::uint64_t offset = 0;  ///< first byte, counted from the start of the file
  std::uint64_t size = 0;    ///< bytes, equal to bytes()
};

/// One GGUF file, read with pread. Thread-safe after construction; move only. The header is checked whole before anything is
/// believed, and takes memory in proportion to its own bytes in the file.
class GgufFile {
 public:
  /// @throws InvalidInput naming the file, and the key, tensor or byte that is wrong.
  static GgufFile open(const std::filesystem::path& file);
  GgufFile(GgufFile&&) noexcept;
  GgufFile& operator=(GgufFile&&) noexcept;
  ~GgufFile();

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t file_bytes() const { return file_bytes_; }
  const GgufMetadata& metadata() const { return metadata_; }
  /// In the order of the header, which is that of their bytes.
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  std::uint64_t alignment() const { return alignment_; }

  /// Reads bytes [begin, begin + out.size()) of a tensor.
  /// @throws InvalidInput when the file became shorter meanwhile; Error on an I/O error.
  void read(const GgufTensor& tensor, std::uint64_t begin, std::span<std::byte> out) const;
  std::vector<std::byte> read(const GgufTensor& tensor) const;
  /// Tells the kernel that the page cache need not keep these bytes.
  void drop_cache(std::uint64_t offset, std::uint64_t size) const;
  /// For readers with ways of their own. It stays the file's, and is open for reading.
  int descriptor() const { return descriptor_; }

 private:
  GgufFile() = default;
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t file_bytes_ = 0;
  std::uint64_t alignment_ = 32;
  GgufMetadata metadata_;
  std::vector<GgufTensor> tensors_;
};

/// A model in one file, or in files NAME-00001-of-0000N.gguf that say so in their `split.*` keys.
class GgufModel {
 public:
  /// @param file  the file, or any of several.
  /// @throws InvalidInput as GgufFile::open does; and for a missing file, files of different models, a tensor in two of
  ///         them, or counts that do not agree.
  static GgufModel open(const std::filesystem::path& file);

  const std::vector<GgufFile>& files() const { return files_; }
  /// Of the first file, which has the model's.
  const GgufMetadata& metadata() const { return files_.front().metadata(); }
  /// All tensors, by file, then in the order of their bytes.
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find(std::string_view name) const;
  std::uint64_t total_bytes() const { return total_bytes_; }
  void read(const GgufTensor& tensor, std::uint64_t begin, std::span<std::byte> out) const;

 private:
  GgufModel() = default;
  /// @throws InvalidInput on a name that is there twice
  void index_names();

  std::vector<GgufFile> files_;
  std::vector<GgufTensor> tensors_;
  std::vector<std::size_t> by_name_;  ///< indices, sorted by name
  std::uint64_t total_bytes_ = 0;
};

/// NAME-00002-of-00005.gguf, from NAME, 1 and 5: as llama.cpp numbers them.
std::filesystem::path gguf_split_path(const std::filesystem::path& name, std::size_t index, std::size_t count);

/// Writes one GGUF file, holding no tensor in memory; bytes of tensors may come in any order and from several threads. They
/// go to a temporary file, which finish() flushes to disk and renames; a writer that is destroyed before that removes it.
class GgufWriter {
 public:
  /// @param metadata  general.alignment is honoured where it is given; tensors lie in the order given.
  /// @throws InvalidInput on a duplicate or malformed key, name or shape; Error or OutOfResources when the file cannot be
  ///         made.
  GgufWriter(std::filesystem::path file, const GgufMetadata& metadata, std::vector<GgufTensorSpec> tensors,
             const std::string& tag = {});
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  /// Bytes of the finished file.
  std::uint64_t file_bytes() const;
  /// Gives bytes of tensor `index` from its byte `begin` on. Every byte must be given once.
  /// @throws OutOfResources when the disk is full; Error on bytes beyond the tensor.
  void write_at(std::size_t index, std::uint64_t begin, std::span<const std::byte> data);
  /// The same with bytes of a file from its byte `offset` on, which the kernel moves by itself where it can.
  /// @throws InvalidInput when that file became shorter; else as write_at
  void copy_at(std::size_t index, std::uint64_t begin, const GgufFile& from, std::uint64_t offset, std::uint64_t size);
  /// @throws Error when fewer bytes were given than announced.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moetrim
