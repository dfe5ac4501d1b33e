// 128 bit hashes (XXH3), of what comes piece by piece and of whole texts.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace moetrim::checkpoint_detail {

class Digest {
 public:
  Digest();
  ~Digest();
  Digest(Digest&&) noexcept;
  Digest& operator=(Digest&&) noexcept;

  void add(std::span<const std::byte> bytes);
  void add(std::string_view text) { add(std::as_bytes(std::span(text))); }
  /// The length before the text, so that two texts cannot be mistaken for one.
  void add_text(std::string_view text);
  /// 32 hex digits of everything so far.
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// 32 hex digits of a text.
std::string digest_of(std::string_view text);

}  // namespace moetrim::checkpoint_detail
