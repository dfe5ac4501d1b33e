// Numbered jobs that threads take one after another.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>

namespace moetrim::export_detail {

class Jobs {
 public:
  /// @param stop         set by a signal handler: no other job is begun; may be null
  /// @param interrupted  what is said then
  Jobs(std::size_t count, const std::atomic<bool>* stop, std::string interrupted)
      : count_(count), stop_(stop), interrupted_(std::move(interrupted)) {}

  /// Calls `work` in as many threads, the calling one included: it does what take() gives until there is no more.
  /// @throws what a thread threw first; Interrupted
  void run(int threads, const std::function<void()>& work);
  /// From 0 on. Nothing when there are no more, or a thread has failed. @throws Interrupted once `stop` is set
  std::optional<std::size_t> take();

 private:
  void work_safely(const std::function<void()>& work);

  const std::size_t count_;
  const std::atomic<bool>* stop_;
  const std::string interrupted_;
  std::mutex mutex_;  ///< over what follows
  std::size_t next_ = 0;
  std::exception_ptr failure_;
};

}  // namespace moetrim::export_detail
