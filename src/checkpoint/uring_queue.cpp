// Reads by io_uring, through liburing.
#include "read_queue.h"

#ifdef MOETRIM_URING

#include <liburing.h>

#include <cerrno>
#include <vector>

#include "moetrim/error.h"

namespace moetrim::checkpoint_detail {
namespace {

class UringQueue final : public ReadQueue {
 public:
  UringQueue(const io_uring& ring, std::size_t slots) : ring_(ring), slots_(slots) {}
  UringQueue(const UringQueue&) = delete;
  UringQueue& operator=(const UringQueue&) = delete;

  ~UringQueue() override {
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
      if (slots_[slot].state == State::reading) wait_for(slot);
    }
    io_uring_queue_exit(&ring_);
  }

  void start(std::size_t slot, int descriptor, std::uint64_t offset, std::span<std::byte> out) override {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);  // there is one per slot
    io_uring_prep_read(entry, descriptor, out.data(), static_cast<unsigned>(out.size()), offset);
    io_uring_sqe_set_data(entry, &slots_[slot]);
    // Else the kernel copies what is cached while we submit, one read after the other.
    io_uring_sqe_set_flags(entry, IOSQE_ASYNC);
    slots_[slot] = {.state = State::reading};
    int done = 0;
    do {
      done = io_uring_submit(&ring_);
    } while (done == -EINTR || done == -EAGAIN || done == -EBUSY);
    if (done < 0) slots_[slot] = {.state = State::there, .value = done};
  }

  ssize_t finish(std::size_t slot) override {
    if (slots_[slot].state == State::reading) wait_for(slot);
    slots_[slot].state = State::free;
    return slots_[slot].value;
  }

 private:
  enum class State : std::uint8_t { free, reading, there };
  struct Slot {
    State state = State::free;
    ssize_t value = 0;
  };

  void wait_for(std::size_t slot) {
    while (slots_[slot].state == State::reading) {
      io_uring_cqe* entry = nullptr;
      if (io_uring_wait_cqe(&ring_, &entry) < 0) continue;  // a signal
      auto* done = static_cast<Slot*>(io_uring_cqe_get_data(entry));
      *done = {.state = State::there, .value = entry->res};
      io_uring_cqe_seen(&ring_, entry);
    }
  }

  io_uring ring_;
  std::vector<Slot> slots_;
};

bool can_read(io_uring& ring) {
  io_uring_probe* probe = io_uring_get_probe_ring(&ring);
  if (probe == nullptr) return false;
  const bool can = io_uring_opcode_supported(probe, IORING_OP_READ) != 0;
  io_uring_free_probe(probe);
  return can;
}

}  // namespace

std::unique_ptr<ReadQueue> make_uring_queue(std::size_t slots) {
  io_uring ring{};
  if (io_uring_queue_init(static_cast<unsigned>(slots), &ring, 0) < 0) return nullptr;
  if (!can_read(ring)) {
    io_uring_queue_exit(&ring);
    return nullptr;
  }
  return std::make_unique<UringQueue>(ring, slots);
}

}  // namespace moetrim::checkpoint_detail

#else

namespace moetrim::checkpoint_detail {
std::unique_ptr<ReadQueue> make_uring_queue(std::size_t) { return nullptr; }
}  // namespace moetrim::checkpoint_detail

#endif
