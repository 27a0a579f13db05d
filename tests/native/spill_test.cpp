// What busy readers hold up travels beside the slots: whole, in order, and its memory is used again
// or given back only when every reader has taken it. Writer, readers and who gives back are
// threads, to be run under ThreadSanitizer.
//
//     spill_test [scale]
#include "ring/spill.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "arena/mapping.hpp"
#include "check.hpp"
#include "layout.hpp"
#include "ring/message.hpp"
#include "ring/reader.hpp"
#include "ring/spill_area.hpp"
#include "ring/writer.hpp"
#include "ring_ends.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"

namespace shmcast {
namespace {

constexpr std::uint64_t kCapacity = 256;
constexpr std::uint64_t kSpillBytes = 64 * kPage;
constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();
constexpr std::int64_t kLongAfter = std::numeric_limits<std::int64_t>::max();

// A ring in ordinary memory, and its spill in a file.
class Shared {
 public:
  Shared(std::uint32_t readers, std::uint32_t slots)
      : memory_({readers, slots, kCapacity, 0, kSpillBytes}),
        fd_(memfd_create("spill_test", MFD_CLOEXEC)) {
    CHECK(fd_ >= 0);
    CHECK(ftruncate(fd_, static_cast<off_t>(kOffset + kSpillBytes)) == 0);
    MappingOptions options;
    options.offset = kOffset;
    mapping_.emplace(fd_, kSpillBytes, Access::write, options);
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { ::close(fd_); }

  Segment format() { return memory_.format(); }
  Segment attach() { return memory_.attach(); }
  // One mapping for all threads: the sanitizer tells memory apart by its address.
  Mapping& mapping() { return *mapping_; }
  bool has_memory() const {
    struct stat status;
    CHECK(fstat(fd_, &status) == 0);
    return status.st_blocks != 0;
  }

 private:
  static constexpr std::uint64_t kOffset = 3 * kPage;

  Memory memory_;
  int fd_;
  std::optional<Mapping> mapping_;
};

// A writer and its spill, as the Python binding has them.
class Sender final : public Spill {
 public:
  explicit Sender(Shared& shared, std::uint64_t room = kUnlimited)
      : segment_(shared.format()), ring_(segment_, kPark), area_(shared.mapping(), segment_) {
    room_ = room;
    ring_.set_spill(*this, 2 * kCapacity);
  }

  SpillPlace take(std::uint64_t bytes) override {
    return area_.take(bytes, [this] { return room_; });
  }
  void settle(std::uint64_t end) override { area_.settle(end); }

  // Publish a message, now and then after several attempts that are given up half-way.
  void send(const Message& message, std::mt19937_64& random) {
    for (;;) {
      ring_.begin(pieces_of(message));
      // One that is over has no patience with readers.
      const std::int64_t deadline = random() % 2 == 0 ? 1 : kForever;
      Outcome outcome;
      do {
        outcome = ring_.advance(deadline, kNoStop);
      } while (outcome == Outcome::interrupted);
      if (outcome == Outcome::ready && random() % 8 != 0) return ring_.commit();
      ring_.abandon();
      ++given_up_;
    }
  }

  RingWriter& ring() { return ring_; }
  SpillArea& area() { return area_; }
  const Segment& segment() const { return segment_; }
  std::uint64_t spilled() const { return peek(ring_.figures().spilled); }
  std::uint64_t full() const { return peek(ring_.figures().spill_full); }
  std::uint64_t given_up() const { return given_up_; }

 private:
  Segment segment_;
  RingWriter ring_;
  SpillArea area_;
  std::uint64_t room_;
  std::uint64_t given_up_ = 0;
};

// Compute until the writer has spilled something more, or can go no further, or has ended.
void be_busy(const Segment& segment, std::uint32_t index) {
  const std::uint64_t before = peek(segment.writer_figures().spilled);
  while (peek(segment.writer_figures().spilled) == before) {
    const std::uint64_t behind =
        peek(segment.writer_figures().fragments) - peek(segment.member(index).consumed);
    if (behind >= segment.geometry().slots) return;
    if (std::atomic_ref(segment.lobby().closed).load(std::memory_order_relaxed) != 0) return;
    std::this_thread::yield();
  }
}

void read_all(Shared& shared, std::uint32_t index, std::uint64_t messages) {
  const Segment segment = shared.attach();
  CHECK(take_seat(segment, index, kWho));
  RingReader reader(segment, index, kPark);
  reader.set_spill(shared.mapping().bytes());
  std::mt19937_64 random(index);
  Message message;
  for (std::uint64_t k = 0; k < messages; ++k) {
    if (random() % 2 == 0) be_busy(segment, index);
    CHECK(receive(reader, message) == Outcome::ready);
    CHECK(message == make_message(3, k, kCapacity));
  }
  CHECK(receive(reader, message) == Outcome::closed);
  reader.leave();
}

// With `room` for so much memory. Another thread gives back whatever is free.
void whole_and_in_order(std::uint32_t readers, std::uint32_t slots, std::uint64_t messages,
                        std::uint64_t room) {
  Shared shared(readers, slots);
  Sender sender(shared, room);
  std::vector<std::thread> threads;
  for (std::uint32_t index = 0; index < readers; ++index) {
    threads.emplace_back([&, index] { read_all(shared, index, messages); });
  }
  std::atomic<bool> is_over{false};
  std::thread keeper([&] {
    while (!is_over) {
      sender.area().give_back(kLongAfter);
      std::this_thread::yield();
    }
  });
  CHECK(sender.ring().wait_ready(kForever, kNoStop) == Outcome::ready);
  std::mt19937_64 random(1);
  for (std::uint64_t k = 0; k < messages; ++k) sender.send(make_message(3, k, kCapacity), random);
  sender.ring().close();
  for (auto& thread : threads) thread.join();
  is_over = true;
  keeper.join();
  CHECK(room == 0 ? sender.spilled() == 0 : sender.spilled() != 0);
  CHECK(sender.given_up() != 0);
  while (sender.area().give_back(kLongAfter)) {
  }
  CHECK(!shared.has_memory());
  std::printf("ok  whole and in order: %u readers, %u slots, %lu spilled, %lu not, %lu given up\n",
              readers, slots, static_cast<unsigned long>(sender.spilled()),
              static_cast<unsigned long>(sender.full()),
              static_cast<unsigned long>(sender.given_up()));
}

Message large_message() {
  return {std::vector<std::byte>(4 * kCapacity, std::byte{1}),
          std::vector<std::byte>(32 * kCapacity, std::byte{2})};
}

// Send it to readers who do not look, with no patience.
Outcome send_now(Sender& sender, const Message& message) {
  return publish(sender.ring(), message, 1);
}

RingReader take_seat(Shared& shared, std::uint32_t index) {
  const Segment segment = shared.attach();
  CHECK(take_seat(segment, index, {index + 1, 1, index + 1}));
  RingReader reader(segment, index, kPark);
  reader.set_spill(shared.mapping().bytes());
  return reader;
}

// Memory is in use until the last reader has taken what is there, or is gone.
void who_is_gone_takes_nothing() {
  for (const bool is_dead : {false, true}) {
    Shared shared(2, 8);
    Sender sender(shared);
    RingReader first = take_seat(shared, 0);
    RingReader second = take_seat(shared, 1);
    Message message;
    for (int k = 0; k < 2; ++k) CHECK(send_now(sender, large_message()) == Outcome::ready);
    CHECK(sender.spilled() == 2);
    for (int k = 0; k < 2; ++k) {
      CHECK(receive(first, message) == Outcome::ready);
      CHECK(message == large_message());
    }
    CHECK(sender.area().give_back(kLongAfter));
    CHECK(shared.has_memory());
    if (is_dead) {
      sender.ring().drop(1, peers(sender.segment())[1].seat);
    } else {
      second.leave();
    }
    CHECK(!sender.area().give_back(kLongAfter));
    CHECK(!shared.has_memory());
  }
  std::printf("ok  who is gone takes nothing\n");
}

// A reader that was in the midst of a spilled message goes on, or drops it if it is given up.
void a_message_given_up_is_dropped() {
  Shared shared(1, 32);
  Sender sender(shared);
  RingReader reader = take_seat(shared, 0);
  const Message message(1, std::vector<std::byte>(20 * kCapacity, std::byte{7}));
  sender.ring().begin(pieces_of(message));
  CHECK(sender.ring().advance(1, kNoStop) == Outcome::ready);
  CHECK(sender.spilled() == 1);
  sender.ring().abandon();
  Message received;
  CHECK(receive(reader, received, 0) == Outcome::timed_out);
  CHECK(send_now(sender, large_message()) == Outcome::ready);
  CHECK(receive(reader, received) == Outcome::ready);
  CHECK(received == large_message());
  CHECK(!sender.area().give_back(kLongAfter));
  std::printf("ok  a message given up is dropped\n");
}

// What is being sent is in use, even where nobody is left to take it.
void what_is_being_sent_stays() {
  Shared shared(1, 8);
  Sender sender(shared);
  RingReader reader = take_seat(shared, 0);
  const Message message = large_message();
  sender.ring().begin(pieces_of(message));
  CHECK(sender.ring().advance(1, kNoStop) == Outcome::ready);
  reader.leave();
  CHECK(sender.area().give_back(kLongAfter));
  CHECK(shared.has_memory());
  sender.ring().commit();
  CHECK(!sender.area().give_back(kLongAfter));
  std::printf("ok  what is being sent stays\n");
}

// Nothing is spilled before all readers have come, nor if one of them could not read it.
void not_for_who_cannot_read_it() {
  Shared shared(2, 8);
  Sender sender(shared);
  RingReader first = take_seat(shared, 0);
  CHECK(send_now(sender, large_message()) == Outcome::timed_out);
  refuse_spill(shared.attach());
  RingReader second = take_seat(shared, 1);
  Message message;
  for (RingReader* reader : {&first, &second}) {
    CHECK(receive(*reader, message, 0) == Outcome::timed_out);
  }
  CHECK(send_now(sender, large_message()) == Outcome::timed_out);
  CHECK(sender.spilled() == 0 && sender.full() == 0);
  CHECK(!shared.has_memory());
  std::printf("ok  not for who cannot read it\n");
}

// Readers that move are streamed to, whatever else.
void who_moves_is_streamed_to() {
  Shared shared(1, 8);
  Sender sender(shared);
  std::thread thread([&] {
    RingReader reader = take_seat(shared, 0);
    Message message;
    while (receive(reader, message) == Outcome::ready) CHECK(message == large_message());
  });
  CHECK(sender.ring().wait_ready(kForever, kNoStop) == Outcome::ready);
  std::uint64_t streamed = 0;
  while (streamed < 20) {
    const std::uint64_t before = sender.spilled();
    CHECK(publish(sender.ring(), large_message()) == Outcome::ready);
    streamed += sender.spilled() == before;  // (its thread may have been kept from running)
  }
  sender.ring().close();
  thread.join();
  std::printf("ok  who moves is streamed to\n");
}

// Parts never overlap, are freed in order, and the lowest that fits is taken.
void parts_never_overlap(std::uint64_t rounds) {
  std::mt19937_64 random(5);
  SpillQueue queue(1000);
  std::map<std::uint64_t, std::pair<std::uint64_t, std::uint64_t>> used;  // offset: bytes, end
  std::uint64_t consumed = 0;
  std::uint64_t published = 0;
  std::uint64_t refused = 0;
  for (std::uint64_t k = 0; k < rounds; ++k) {
    if (random() % 3 == 0) consumed = published - random() % (published - consumed + 1);
    std::erase_if(used, [&](const auto& part) { return part.second.second <= consumed; });
    const std::uint64_t bytes = 1 + random() % 400;
    const auto offset = queue.take(bytes, consumed);
    if (!offset) {
      ++refused;
      CHECK(!used.empty());
      continue;
    }
    CHECK(used.empty() ? *offset == 0 : *offset + bytes <= 1000);
    const auto next = used.lower_bound(*offset);
    CHECK(next == used.end() || *offset + bytes <= next->first);
    CHECK(next == used.begin() ||
          std::prev(next)->first + std::prev(next)->second.first <= *offset);
    CHECK(!queue.is_free(kNever - 1));
    if (random() % 8 == 0) {
      queue.untake();
      continue;
    }
    queue.settle(++published);
    used[*offset] = {bytes, published};
    CHECK(queue.is_free(published) && !queue.is_free(published - 1));
  }
  CHECK(refused != 0);
  std::printf("ok  parts never overlap\n");
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  using namespace shmcast;
  const std::uint64_t scale = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  for (const std::uint32_t slots : {2, 4, 32})
    whole_and_in_order(1, slots, 200 * scale, kUnlimited);
  whole_and_in_order(3, 8, 200 * scale, kUnlimited);
  whole_and_in_order(2, 8, 100 * scale, 0);
  who_is_gone_takes_nothing();
  a_message_given_up_is_dropped();
  what_is_being_sent_stays();
  not_for_who_cannot_read_it();
  who_moves_is_streamed_to();
  parts_never_overlap(100'000 * scale);
}
