// No byte is lost on the way to a loop: one writer, a reader that parks, and two that await bytes,
// one of whom stops listening and begins again, all on one gate. Also where the writer can't open
// their pipes, and threads stand in. To be run under ThreadSanitizer.
//
//     listener_test [scale]
#include "wait/listener.hpp"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "check.hpp"
#include "layout.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"
#include "ring_ends.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"

namespace shmcast {
namespace {

constexpr std::uint32_t kReaders = 3;
constexpr Geometry kGeometry{kReaders, 4, 128};
constexpr int kHopelessMs = 20'000;

// (receive() begins a longer one anew that it has received in part.)
Message small_message(std::uint64_t k) { return {std::vector<std::byte>(k % 100, std::byte(k))}; }

std::uint64_t here() {
  struct stat found;
  CHECK(stat("/proc/self/ns/pid", &found) == 0);
  return found.st_ino;
}

// Takes what is there; awaits a byte where there is nothing. With `rests`, it is not armed at times
// and so as if cancelled.
void await_all(RingReader& reader, Listener& listener, int fd, std::uint64_t messages, bool rests) {
  Message message;
  for (std::uint64_t k = 0; k < messages;) {
    listener.drain();
    listener.arm();
    Outcome outcome = receive(reader, message, 0);
    if (outcome == Outcome::timed_out && rests && k % 5 == 0) {
      listener.disarm();
      std::this_thread::yield();
      outcome = receive(reader, message, 0);
      if (outcome == Outcome::timed_out) {
        listener.arm();
        outcome = receive(reader, message, 0);
      }
    }
    if (outcome == Outcome::timed_out) {
      pollfd readable{fd, POLLIN, 0};
      CHECK(poll(&readable, 1, kHopelessMs) == 1);
      continue;
    }
    CHECK(outcome == Outcome::ready);
    CHECK(message == small_message(k));
    ++k;
  }
}

void every_message_is_awaited(std::uint64_t messages, bool is_refused) {
  Memory memory(kGeometry);
  const Segment segment = memory.format();
  std::vector<std::unique_ptr<RingReader>> readers;
  for (std::uint32_t i = 0; i < kReaders; ++i) {
    CHECK(take_seat(segment, i, kWho));
    readers.push_back(std::make_unique<RingReader>(segment, i, kPark));
  }
  std::vector<std::thread> threads;
  std::vector<std::unique_ptr<Listener>> listeners;
  for (std::uint32_t i = 0; i + 1 < kReaders; ++i) {
    Listener& listener = *listeners.emplace_back(
        std::make_unique<Listener>(segment.readers_gate(), segment.doorbell(i)));
    const int fd = listener.listen(is_refused ? 1 : here());
    if (is_refused) {
      listener.expect_stand_in();
      threads.emplace_back([&listener] { listener.stand_in(); });
    }
    threads.emplace_back([&, i, fd] {
      await_all(*readers[i], listener, fd, messages, i == 1);
      listener.hush();
    });
  }
  threads.emplace_back([&] {
    Message message;
    for (std::uint64_t k = 0; k < messages; ++k) {
      CHECK(receive(*readers[kReaders - 1], message) == Outcome::ready);
    }
  });
  RingWriter writer(memory.attach(), kPark);
  for (std::uint64_t k = 0; k < messages; ++k) {
    CHECK(publish(writer, small_message(k)) == Outcome::ready);
    if (k % 64 == 0) std::this_thread::yield();
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& listener : listeners) {
    CHECK(listener->opened() == (is_refused ? 0 : 1));
    CHECK(listener->refused() == (is_refused ? 1 : 0));
  }
  std::printf("%llu messages are awaited%s, with %llu wake-ups\n",
              static_cast<unsigned long long>(messages), is_refused ? ", pipes refused" : "",
              static_cast<unsigned long long>(peek(writer.figures().wakes)));
}

bool is_readable(int fd) {
  pollfd readable{fd, POLLIN, 0};
  return poll(&readable, 1, 0) == 1;
}

// Who has no news for loops wakes threads only: the loop stays armed.
void who_has_no_news_leaves_loops_armed() {
  Memory memory(kGeometry);
  const Segment segment = memory.format();
  Listener listener(segment.readers_gate(), segment.doorbell(0));
  const int fd = listener.listen(here());
  Ringer ringer(segment.doorbells());
  CHECK(!wake_readers(segment, ringer, [] {}));
  listener.arm();
  CHECK(!Gate(segment.readers_gate()).wake());
  CHECK(!is_readable(fd));
  CHECK(wake_readers(segment, ringer, [] {}));
  CHECK(is_readable(fd));
  listener.drain();
  CHECK(!wake_readers(segment, ringer, [] {}));  // one byte for each time that it is armed
  CHECK(!is_readable(fd));
  listener.arm();
  listener.disarm();
  wake_readers(segment, ringer, [] {});
  CHECK(!is_readable(fd));
  listener.arm();
  wake_readers(segment);  // opens the pipe anew
  CHECK(is_readable(fd));
  CHECK(listener.opened() == 2);
  std::printf("who has no news leaves loops armed\n");
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  const std::uint64_t scale = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  shmcast::every_message_is_awaited(4000 * scale, false);
  shmcast::every_message_is_awaited(4000 * scale, true);
  shmcast::who_has_no_news_leaves_loops_armed();
  return 0;
}
