// The ranks of one run at a c10d store: who lives, and values from one to another.

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include <fmt/format.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <unistd.h>

#include "moetrim/distributed.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

using Clock = std::chrono::steady_clock;
using Bytes = std::vector<std::uint8_t>;

constexpr std::chrono::minutes kMostWaitAtStart{5};
constexpr std::chrono::seconds kMostWaitAtEnd{10};
/// The store refuses values above 8 MiB.
constexpr std::size_t kPieceBytes = 4U << 20;
/// How a loss begins in the store.
const std::string kFailed = "failed ";
const std::string kEnded = "ended  ";

Bytes bytes_of(std::string_view text) { return {text.begin(), text.end()}; }
std::string text_of(const Bytes& bytes) { return {bytes.begin(), bytes.end()}; }

std::string own_host() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

/// The first line of what c10d says; the rest is a stack trace.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

struct RankGroup::State {
  State(const RankPlace& p, std::function<void(const RankLoss&)> on_lost, const std::atomic<bool>* s)
      : place(p), lost(std::move(on_lost)), stop(s), answered(Clock::now().time_since_epoch().count()) {}

  std::string where() const {
    return fmt::format("the store at {}:{}, which {} holds", place.host, place.port, place.store_is_given ? "torchrun" : "rank 0");
  }
  std::string key(std::string_view name) const { return fmt::format("moetrim/{}/{}", place.attempt, name); }
  std::string key(std::string_view name, int rank) const { return key(fmt::format("{}/{}", name, rank)); }
  std::vector<std::string> keys(std::string_view name, int first = 0) const {
    std::vector<std::string> all;
    for (int rank = first; rank < place.ranks; ++rank) all.push_back(key(name, rank));
    return all;
  }

  void open();
  void set(const std::string& name, std::string_view value) { store->set(name, bytes_of(value)); }
  std::string take(const std::string& name);
  bool wait_for(const std::vector<std::string>& names, std::optional<Clock::duration> most = {});
  template <class Work>
  auto guarded(const Work& work);

  void beat_until_end();
  void watch_until_end();
  void look_at_neighbour();
  bool sleep(Clock::duration time);
  void post_loss(const RankLoss& found);
  void report_loss(const RankLoss& found);
  std::string named(int rank);

  const RankPlace place;
  const std::function<void(const RankLoss&)> lost;
  const std::atomic<bool>* stop;
  c10::intrusive_ptr<c10d::TCPStore> store;
  std::vector<std::uint64_t> sent, received;   // messages so far, by rank
  int meetings = 0;

  mutable std::mutex mutex;
  std::condition_variable changed;
  bool ended = false;
  std::optional<RankLoss> loss;
  std::atomic<Clock::rep> answered;            // when the store last did
  std::string neighbour_beat;
  Clock::time_point neighbour_seen = Clock::now();
  std::thread beating, watching;
};

void RankGroup::State::open() {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(place.port);
  options.isServer = !place.store_is_given && place.rank == 0;
  options.waitWorkers = false;
  options.timeout = kMostWaitAtStart;
  try {
    store = c10::make_intrusive<c10d::TCPStore>(place.host, options);
  } catch (const std::exception& error) {
    throw Error(fmt::format("rank {}: cannot {} {}:{} within five minutes: {}", place.rank, options.isServer ? "open a store at" : "reach the store at",
                            place.host, place.port, first_line(error.what())));
  }
}

/// Turns what c10d throws when the connection is gone into a sentence, or into the one that another thread has found.
template <class Work>
auto RankGroup::State::guarded(const Work& work) {
  try {
    return work();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    report_loss({.sentence = fmt::format("{}, is gone: {}", where(), first_line(error.what()))});
    const std::lock_guard lock(mutex);
    throw Error(loss->sentence);
  }
}

/// Asks instead of blocking, so that a lost rank or a signal ends the wait. @return false when the time is over.
bool RankGroup::State::wait_for(const std::vector<std::string>& names, std::optional<Clock::duration> most) {
  const auto begin = Clock::now();
  auto pause = std::chrono::milliseconds(1);
  while (!store->check(names)) {
    {
      const std::lock_guard lock(mutex);
      if (loss) throw Error(loss->sentence);
    }
    if (stop != nullptr && *stop) throw Interrupted("stopped while waiting for other ranks; repeat the command on all of them to go on");
    if (most && Clock::now() - begin > *most) return false;
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, std::chrono::milliseconds(100));
  }
  return true;
}

std::string RankGroup::State::take(const std::string& name) {
  wait_for({name});
  std::string value = text_of(store->get(name));
  store->deleteKey(name);
  return value;
}

std::string RankGroup::State::named(int rank) {
  return fmt::format("rank {} of {} ({})", rank, place.ranks, text_of(store->get(key("here", rank))));
}

/// For all ranks to see; the first counts.
void RankGroup::State::post_loss(const RankLoss& found) {
  store->compareSet(key("lost"), {}, bytes_of((found.failed ? kFailed : kEnded) + found.sentence));
}

void RankGroup::State::report_loss(const RankLoss& found) {
  {
    const std::lock_guard lock(mutex);
    if (loss || ended) return;
    loss = found;
  }
  lost(found);
}

/// @return false when the group has ended.
bool RankGroup::State::sleep(Clock::duration time) {
  std::unique_lock lock(mutex);
  return !changed.wait_for(lock, time, [this] { return ended; });
}

/// Every rank watches the next one.
void RankGroup::State::look_at_neighbour() {
  const int next = (place.rank + 1) % place.ranks;
  if (store->check({key("left", next)})) return;
  const std::string beat = text_of(store->get(key("beat", next)));
  if (beat != neighbour_beat) {
    neighbour_beat = beat;
    neighbour_seen = Clock::now();
  }
  if (Clock::now() - neighbour_seen < place.timeout) return;
  post_loss({.sentence = fmt::format("{} has not answered for {} s", named(next), place.timeout.count())});
}

void RankGroup::State::beat_until_end() {
  try {
    for (int count = 1; sleep(place.timeout / 15); ++count) {
      set(key("beat", place.rank), std::to_string(count));
      look_at_neighbour();
      if (store->check({key("lost")})) {
        const std::string text = text_of(store->get(key("lost")));
        return report_loss({.sentence = text.substr(kFailed.size()), .failed = text.starts_with(kFailed)});
      }
      answered = Clock::now().time_since_epoch().count();
    }
  } catch (const std::exception&) {
    report_loss({.sentence = fmt::format("{}, is gone", where())});
  }
}

/// A machine that loses its power closes no connection: the thread above would wait for an answer for ever.
void RankGroup::State::watch_until_end() {
  while (sleep(place.timeout / 15)) {
    if (Clock::now().time_since_epoch() - Clock::duration(answered.load()) < place.timeout) continue;
    return report_loss({.sentence = fmt::format("{}, has not answered for {} s", where(), place.timeout.count())});
  }
}

RankGroup::RankGroup(const RankPlace& place, std::function<void(const RankLoss&)> lost, const std::atomic<bool>* stop)
    : state_(std::make_unique<State>(place, std::move(lost), stop)) {
  State& s = *state_;
  s.sent.resize(static_cast<std::size_t>(place.ranks));
  s.received = s.sent;
  s.open();
  s.guarded([&] {
    s.set(s.key("beat", place.rank), "0");
    s.set(s.key("here", place.rank), fmt::format("{}, process {}", own_host(), getpid()));
    if (s.wait_for(s.keys("here"), kMostWaitAtStart)) return;
    for (int rank = 0; rank < place.ranks; ++rank) {
      if (!s.store->check({s.key("here", rank)})) throw Error(fmt::format("rank {} of {} has not come within five minutes", rank, place.ranks));
    }
  });
  s.answered = Clock::now().time_since_epoch().count();
  s.neighbour_seen = Clock::now();
  s.beating = std::thread([&s] { s.beat_until_end(); });
  s.watching = std::thread([&s] { s.watch_until_end(); });
}

RankGroup::~RankGroup() {
  State& s = *state_;
  {
    const std::lock_guard lock(s.mutex);
    s.ended = true;
  }
  s.changed.notify_all();
  try {
    s.set(s.key("left", s.place.rank), "");
    const auto begin = Clock::now();
    const auto all = s.keys("left");
    const bool holds_store = s.place.rank == 0 && !s.place.store_is_given;
    while (holds_store && !s.store->check(all) && Clock::now() - begin < kMostWaitAtEnd) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  } catch (const std::exception&) {
    // The store is gone, so nobody is waiting for this rank.
  }
  s.watching.join();
  s.beating.join();
}

const RankPlace& RankGroup::place() const { return state_->place; }

std::optional<RankLoss> RankGroup::loss() const {
  const std::lock_guard lock(state_->mutex);
  return state_->loss;
}

void RankGroup::give_up(const std::string& why, bool failed) noexcept {
  try {
    state_->post_loss({.sentence = fmt::format("{} {}", state_->named(state_->place.rank), why), .failed = failed});
  } catch (const std::exception&) {
    // Without a store the others find out by themselves.
  }
}

void RankGroup::send(int to, std::string_view value) {
  State& s = *state_;
  s.guarded([&] {
    const auto post = [&](std::string_view piece) {
      const std::string key = s.key(fmt::format("from {} to {}", s.place.rank, to)) + fmt::format("/{}", s.sent[static_cast<std::size_t>(to)]++);
      s.set(key, piece);
      s.take(key + "/taken");
    };
    post(std::to_string(value.size()));
    for (std::size_t at = 0; at < value.size(); at += kPieceBytes) post(value.substr(at, kPieceBytes));
  });
}

std::string RankGroup::receive(int from) {
  State& s = *state_;
  return s.guarded([&] {
    const auto fetch = [&] {
      const std::string key = s.key(fmt::format("from {} to {}", from, s.place.rank)) + fmt::format("/{}", s.received[static_cast<std::size_t>(from)]++);
      std::string piece = s.take(key);
      s.set(key + "/taken", "");
      return piece;
    };
    const std::size_t size = std::stoull(fetch());
    std::string value;
    while (value.size() < size) value += fetch();
    return value;
  });
}

std::vector<std::string> RankGroup::gather(std::string_view value) {
  if (place().rank != 0) {
    send(0, value);
    return {};
  }
  std::vector<std::string> values{std::string(value)};
  for (int rank = 1; rank < place().ranks; ++rank) values.push_back(receive(rank));
  return values;
}

void RankGroup::add_up(std::span<double> values) {
  const auto bytes = std::as_bytes(values);
  const auto all = gather({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    std::vector<double> theirs(values.size());
    if (all[rank].size() != bytes.size()) throw Error(fmt::format("rank {} has sums of another run", rank));
    std::memcpy(theirs.data(), all[rank].data(), bytes.size());
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += theirs[i];
  }
}

void RankGroup::meet() {
  State& s = *state_;
  s.guarded([&] {
    const std::string name = fmt::format("meeting {}", s.meetings++);
    s.set(s.key(name, s.place.rank), "");
    s.wait_for(s.keys(name));
  });
}

}  // namespace moetrim
