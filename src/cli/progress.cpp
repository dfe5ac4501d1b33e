// Progress on stderr.

#include "cli/progress.h"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>
#include <unistd.h>

namespace moetrim::cli {

namespace {

std::string human_time(double seconds) {
  const auto whole = static_cast<long>(std::max(0.0, seconds) + 0.5);
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

/// 12.3k, 4.5M, 6.7G.
std::string human_number(double value) {
  for (const char* suffix : {"", "k", "M", "G", "T"}) {
    if (value < 1000) return fmt::format("{:.3g}{}", value, suffix);
    value /= 1000;
  }
  return fmt::format("{:.3g}P", value);
}

}  // namespace

Progress::Progress(std::string label, std::string unit, bool quiet)
    : label_(std::move(label)), unit_(std::move(unit)), quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1),
      start_(Clock::now()), last_(start_) {}

Progress::~Progress() {
  if (drawn_ && terminal_) std::fputc('\n', stderr);
}

void Progress::update(double done, double total) {
  if (quiet_) return;
  const auto now = Clock::now();
  const double since = std::chrono::duration<double>(now - last_).count();
  const bool complete = done >= total;
  if (!complete && since < (terminal_ ? 0.1 : 10.0)) return;
  last_ = now;
  draw(done, total, std::chrono::duration<double>(now - start_).count());
  drawn_ = true;
}

void Progress::draw(double done, double total, double seconds) const {
  const double part = total > 0 ? std::min(1.0, done / total) : 1.0;
  const double rate = seconds > 0 ? done / seconds : 0;
  const std::string left = part < 1.0 && rate > 0 ? ", " + human_time((total - done) / rate) + " left" : "";
  const std::string tail = fmt::format("{:3.0f}%  {} {}/s{}", part * 100, human_number(rate), unit_, left);
  if (terminal_) {
    const auto filled = static_cast<std::size_t>(part * 24);
    fmt::print(stderr, "\r{} [{}{}] {}\033[K", label_, std::string(filled, '#'), std::string(24 - filled, '.'), tail);
  } else {
    fmt::print(stderr, "{}: {}\n", label_, tail);
  }
  std::fflush(stderr);
}

}  // namespace moetrim::cli
