// Which way of reading is taken.
#include "read_queue.h"

#include <cstdlib>
#include <string_view>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim::checkpoint_detail {

std::unique_ptr<ReadQueue> make_read_queue(std::size_t slots, PageCache cache) {
  const char* set = std::getenv("MOETRIM_READER");
  const std::string_view wanted = set == nullptr ? "" : set;
  if (!wanted.empty() && wanted != "uring" && wanted != "pread") {
    throw UsageError(fmt::format("MOETRIM_READER is \"{}\"; expected uring or pread, or leave it unset", wanted));
  }
  if (wanted == "pread" || (wanted.empty() && cache == PageCache::use)) return make_pread_queue(slots);
  if (auto queue = make_uring_queue(slots)) return queue;
  if (wanted == "uring") {
    throw Error("MOETRIM_READER asks for uring, which this kernel, container or build does not offer; use pread, or leave it "
                "unset");
  }
  return make_pread_queue(slots);
}

}  // namespace moetrim::checkpoint_detail
