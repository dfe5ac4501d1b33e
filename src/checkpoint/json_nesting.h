// What nlohmann's parser does not refuse by itself: deep nesting, and the same key twice in one object.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <vector>

namespace moetrim::checkpoint_detail {

/// The open objects and arrays of a parse, with the keys seen so far in each.
class JsonNesting {
 public:
  explicit JsonNesting(std::size_t limit) : limit_(limit) {}

  /// False when that is too deep.
  bool open() {
    keys_.emplace_back();
    return keys_.size() <= limit_;
  }
  void close() { keys_.pop_back(); }
  /// False when the innermost object has that key already. A tree, because hashes can be made to collide.
  bool add_key(const std::string& key) { return keys_.back().insert(key).second; }
  std::size_t limit() const { return limit_; }

 private:
  std::size_t limit_;
  std::vector<std::set<std::string>> keys_;
};

}  // namespace moetrim::checkpoint_detail
