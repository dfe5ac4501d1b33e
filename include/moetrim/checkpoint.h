// Checkpoints as named byte ranges: safetensors files, the Hugging Face folder around them, and config.json.
// Nothing here knows what a tensor means, and nothing here needs LibTorch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace moetrim {

/// Element types of the safetensors format.
enum class Dtype : std::uint8_t {
  boolean, u8, i8, f8_e4m3, f8_e5m2, f8_e8m0, f8_e4m3fnuz, f8_e5m2fnuz, f4, f6_e2m3, f6_e3m2,
  i16, u16, f16, bf16, i32, u32, f32, i64, u64, f64, c64,
};

/// Spelling in a safetensors header, for example "BF16".
std::string_view dtype_name(Dtype dtype);
/// Width of one element. 4 and 6 bit types pack without padding.
int dtype_bits(Dtype dtype);
/// The type spelled `name`, or nothing when the format has no such type.
std::optional<Dtype> dtype_from_name(std::string_view name);

/// What a tensor is, without its bytes.
struct TensorSpec {
  std::string name;
  Dtype dtype = Dtype::u8;
  std::vector<std::int64_t> shape;  ///< empty for a scalar

  /// Bytes of the whole tensor.
  /// @throws InvalidInput when the size overflows or a sub-byte type does not end on a byte.
  std::uint64_t bytes() const;
};

/// A tensor of a file: what it is and where its bytes lie.
struct Tensor : TensorSpec {
  std::uint32_t file = 0;    ///< index into Checkpoint::files(); 0 in a single SafetensorsFile
  std::uint64_t offset = 0;  ///< first byte, counted from the start of the file
  std::uint64_t size = 0;    ///< bytes, equal to bytes()
};

/// One safetensors file, read with pread. Thread-safe after construction; move only.
///
/// The header is checked whole before anything is believed: length, nesting, UTF-8, duplicate names, control
/// characters in names, shapes against offsets, overlaps, holes and tails. See docs/file_formats.md.
class SafetensorsFile {
 public:
  /// @throws InvalidInput naming the file, and the tensor or byte that is wrong.
  static SafetensorsFile open(const std::filesystem::path& file);
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t file_bytes() const { return file_bytes_; }
  /// In the order of their bytes.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Reads bytes [begin, begin + out.size()) of a tensor.
  /// @throws InvalidInput when the file became shorter meanwhile; Error on an I/O error.
  void read(const Tensor& tensor, std::uint64_t begin, std::span<std::byte> out) const;
  /// The whole tensor.
  std::vector<std::byte> read(const Tensor& tensor) const;
  /// Tells the kernel that the page cache need not keep these bytes.
  void drop_cache(const Tensor& tensor) const;
  void drop_cache(std::uint64_t offset, std::uint64_t size) const;
  /// Lets the kernel begin to read these bytes. A hint.
  void read_soon(std::uint64_t offset, std::uint64_t size) const;
  /// For readers with ways of their own. It stays the file's, and is open for reading.
  int descriptor() const { return descriptor_; }

 private:
  SafetensorsFile() = default;
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t file_bytes_ = 0;
  std::vector<Tensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
  std::map<std::string, std::string> metadata_;
};

/// Writes one safetensors file, holding no tensor in memory: front to back, or in any order and by several threads.
///
/// The header is known before the first byte of data, in the order given; its end is padded with spaces so that the
/// data starts at a multiple of 64. Metadata always has {"format": "pt"}. The bytes go to `FILE.partial`, which
/// finish() flushes to disk and renames; a writer that is destroyed before that removes it.
class SafetensorsWriter {
 public:
  /// @param tag  of the temporary name, `FILE.TAG.partial`, where several writers may be at the same file
  /// @throws InvalidInput on a duplicate or malformed name; Error or OutOfResources when the file cannot be made.
  SafetensorsWriter(std::filesystem::path file, std::vector<TensorSpec> tensors,
                    std::map<std::string, std::string> metadata = {}, const std::string& tag = {});
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  /// Appends data. The pieces, joined, are the tensors in the order of the constructor.
  /// @throws OutOfResources when the disk is full; Error on more bytes than announced.
  void write(std::span<const std::byte> data);
  /// Gives the data from byte `begin` on, of all data; from any thread, and not together with write(). Every byte must be
  /// given once. @throws as write
  void write_at(std::uint64_t begin, std::span<const std::byte> data);
  /// The same with bytes of a file from its byte `offset` on, which the kernel moves by itself where it can.
  /// @throws InvalidInput when that file became shorter; else as write
  void copy_at(std::uint64_t begin, const SafetensorsFile& from, std::uint64_t offset, std::uint64_t size);
  /// @throws Error when fewer bytes were written than announced.
  void finish();

 private:
  /// Notes bytes of data that are given.
  void count(std::uint64_t begin, std::uint64_t size);

  struct State;
  std::unique_ptr<State> state_;
};

/// A folder in Hugging Face layout: config.json, and the weights as one model.safetensors or as shards with an index.
///
/// Shards are found through the index by name, never by pattern. A folder in which two readers could see two different
/// models (a single file beside an index, a tensor in a shard that the index does not assign it to) is refused.
class Checkpoint {
 public:
  /// @throws InvalidInput naming the file and what is wrong with it.
  static Checkpoint open(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  /// config.json, keys in the order of the file.
  const nlohmann::ordered_json& config() const { return config_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }
  /// All tensors, in reading order: by file name, then by offset.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(std::string_view name) const;
  /// @throws InvalidInput when there is no such tensor.
  const Tensor& at(std::string_view name) const;
  /// Sum of the tensors' bytes.
  std::uint64_t total_bytes() const { return total_bytes_; }

  void read(const Tensor& tensor, std::uint64_t begin, std::span<std::byte> out) const;
  std::vector<std::byte> read(const Tensor& tensor) const;
  void drop_cache(const Tensor& tensor) const;

  /// 32 hex digits (XXH3, 128 bits) that change when the model does: hashes the bytes of config.json, and every
  /// tensor's name, type, shape and sample (its first and last 2 KiB). How the tensors are spread over files, and in
  /// which order, does not matter. Costs two small reads per tensor, not a pass over the weights.
  std::string fingerprint() const;

 private:
  void add_file(SafetensorsFile file);

  std::filesystem::path folder_;
  std::string config_text_;
  nlohmann::ordered_json config_;
  std::vector<SafetensorsFile> files_;
  std::vector<Tensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
  std::uint64_t total_bytes_ = 0;
};

/// Bytes [begin, begin + size) of a tensor of a checkpoint.
struct ByteRange {
  const Tensor* tensor = nullptr;
  std::uint64_t begin = 0;
  std::uint64_t size = 0;
};

/// What is to become of the page cache.
enum class PageCache : std::uint8_t {
  use,     ///< bytes that are there are taken from it, and what is read stays
  bypass,  ///< for more bytes than it can hold: read around it (O_DIRECT) where the file system can, else dropped after use
};

/// What reading for a computation took. Counted up by any number of passes.
struct ReadingTime {
  std::atomic<std::uint64_t> bytes{0};
  std::atomic<std::int64_t> reading_ns{0};  ///< while something was being read
  std::atomic<std::int64_t> waited_ns{0};   ///< while the computation waited for it
};

/// Reads ranges in the order they are asked for, through a fixed ring of blocks, several of which are under way at a time:
/// by io_uring where the kernel offers it, else by threads in pread. Ranges that touch in a file are read as one. Not for
/// several threads at once; the checkpoint must outlive it.
class BlockReader {
 public:
  static constexpr std::size_t kBlockBytes = std::size_t{4} << 20;
  static constexpr std::size_t kBlocks = 8;   ///< 32 MiB in all, taken as they are first used

  BlockReader(const Checkpoint& checkpoint, PageCache cache);
  ~BlockReader();
  BlockReader(const BlockReader&) = delete;
  BlockReader& operator=(const BlockReader&) = delete;

  /// Asks for a range, after those asked for before. An empty one is nothing.
  void add(const ByteRange& range);
  /// True while less is asked for than can be under way at once: time to add more.
  bool hungry() const;
  /// The next bytes of what was asked for, at most to the end of a range; empty when there is no more. Valid until the next
  /// call. Waits for them.
  /// @throws InvalidInput when a file became shorter meanwhile; Error on an I/O error.
  std::span<const std::byte> next();
  /// Bytes read so far; whole pages, so a little more than was asked for.
  std::uint64_t bytes_read() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Reads a JSON file of up to 256 MiB and 512 levels. Invalid UTF-8 and a key twice in one object are refused.
/// @param comments  accept `//` and `/* */` comments (recipes).
/// @throws InvalidInput naming the file, and line and column of a syntax error.
nlohmann::ordered_json read_json_file(const std::filesystem::path& file, bool comments = false);

/// Writes text to FILE by way of a temporary name, flush and rename, so that FILE is always whole.
/// @throws OutOfResources when the disk is full; Error otherwise.
void write_file_atomically(const std::filesystem::path& file, std::string_view text);

}  // namespace moetrim
