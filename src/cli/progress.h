// Progress on stderr: a bar with rate and time left on a terminal, a plain line now and then otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace moetrim::cli {

class Progress {
 public:
  /// @param unit  what `done` counts, for example "tokens" or "bytes"
  Progress(std::string label, std::string unit, bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(double done, double total);

 private:
  using Clock = std::chrono::steady_clock;
  void draw(double done, double total, double seconds) const;

  std::string label_, unit_;
  bool quiet_, terminal_;
  bool drawn_ = false;
  Clock::time_point start_, last_;
};

}  // namespace moetrim::cli
