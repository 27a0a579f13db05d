// What somebody sees of a segment who takes no part in it: latencies by size, and a segment's file
// whatever is in it.
#include "observe/observation.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "check.hpp"
#include "hub/tail.hpp"
#include "layout.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"
#include "ring_ends.hpp"
#include "settings.hpp"

namespace shmcast {
namespace {

// A file with a segment's bytes, as it was or damaged.
class File {
 public:
  explicit File(std::span<const std::byte> bytes) : fd_(memfd_create("segment", 0)) {
    CHECK(fd_ >= 0);
    CHECK(pwrite(fd_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { close(fd_); }
  int fd() const { return fd_; }
  void cut(std::size_t nbytes) const { CHECK(ftruncate(fd_, static_cast<off_t>(nbytes)) == 0); }

 private:
  int fd_;
};

// Return why there is nothing to see; "": there is.
std::string obstacle(int fd) {
  try {
    const Observation seen(fd);
    CHECK(peers(seen.segment()).size() == seen.geometry().readers + 1);
    CHECK(seen.label().size() <= kLabelBytes);
    return "";
  } catch (const LayoutMismatch& error) {
    return error.what();
  }
}

void each_latency_has_its_bucket() {
  CHECK(Latencies::bucket_of(0) == 0);
  CHECK(Latencies::bucket_of(UINT64_MAX) == Latencies::kBuckets - 1);
  CHECK(Latencies::end_of(Latencies::kBuckets - 1) == 0);
  std::uint64_t begin = 0;
  for (std::size_t bucket = 0; bucket + 1 < Latencies::kBuckets; ++bucket) {
    const std::uint64_t end = Latencies::end_of(bucket);
    CHECK(end > begin);
    CHECK(bucket == 0 || (end - begin) * Latencies::kSteps <= begin);
    CHECK(Latencies::bucket_of(begin) == bucket);
    CHECK(Latencies::bucket_of(end - 1) == bucket);
    begin = end;
  }
  CHECK(Latencies::bucket_of(begin) == Latencies::kBuckets - 1);
}

void a_quarter_of_the_messages_is_counted_whatever_their_period() {
  for (const std::uint64_t period : {1, 2, 3, 4, 5, 7, 8, 16, 100}) {
    std::uint64_t taken = 0;
    for (std::uint64_t k = 0; k < 10'000; ++k) taken += Latencies::takes(k * period) ? 1 : 0;
    CHECK(taken > 2'300);
    CHECK(taken < 2'700);
  }
}

void latencies_are_counted_by_the_reader() {
  Memory memory({1, 4, 128});
  RingWriter writer(memory.format(), kPark);
  const Segment segment = memory.attach();
  CHECK(take_seat(segment, 0, kWho));
  RingReader reader(segment, 0, kPark);
  for (std::uint64_t k = 0; k < 100; ++k) {
    publish(writer, Message(1, std::vector<std::byte>(k)));
    Message got;
    CHECK(receive(reader, got) == Outcome::ready);
  }
  std::uint64_t taken = 0;
  for (std::uint64_t k = 0; k < 100; ++k) taken += Latencies::takes(k) ? 1 : 0;
  std::uint64_t counted = 0;
  for (const std::uint64_t& count : segment.latencies(0).counts) counted += peek(count);
  CHECK(counted == taken);
  CHECK(peek(segment.latencies(0).sum_ns) > 0);
  segment.latencies(0).record(5, 0);  // a clock of another container
  CHECK(segment.latencies(0).counts[0] >= 1);
}

void what_is_seen_is_what_is_there() {
  Memory memory({2, 4, 128});
  const std::string label(kLabelBytes + 10, 'x');
  RingWriter writer(Segment::format(memory.span(), memory.geometry(), Segment::Nonce(kNonce), kWho,
                                    {label, 3, 5, 7}),
                    kPark);
  CHECK(take_seat(memory.attach(), 0, kWho));
  publish(writer, {});
  const File file(memory.span());
  const Observation seen(file.fd());
  CHECK(seen.label() == label.substr(0, kLabelBytes));
  CHECK(seen.segment().header().nodes == 3);
  CHECK(seen.segment().header().arena_bytes == 5);
  CHECK(seen.sent_ns() > 0);
  const std::vector<Peer> all = peers(seen.segment());
  CHECK(all.size() == 3);
  CHECK(all[0].behind == 1);
  CHECK(Seat::state(all[1].seat) == SeatState::vacant);
}

void a_hub_is_seen_with_its_replies() {
  const TailGeometry tail{2, {1, 4, 128}};
  Memory memory({2, 4, 128, 0, 0, tail.bytes()});
  const Segment messages = memory.format();
  const File early(memory.span());
  CHECK(Observation(early.fd()).replies().empty());
  const Tail there(messages, tail.replies);
  RingWriter first(there.format_ring(0, Segment::Nonce(kNonce), kWho), kPark);
  RingWriter second(there.format_ring(1, Segment::Nonce(kNonce), kWho), kPark);
  publish(second, {});
  const File file(memory.span());
  const Observation seen(file.fd());
  CHECK(seen.replies().size() == 2);
  CHECK(seen.replies()[0].messages == 0);
  CHECK(seen.replies()[1].messages == 1);
  CHECK(seen.replies()[1].behind == 1);
  CHECK(!seen.replies()[1].has_no_room);
  CHECK(seen.sent_ns() == Observation::kNothingSent && seen.replied_ns() > 0);
  CHECK((seen.barriers() == std::vector<std::uint64_t>{0, 0, 0}));
  CHECK(!seen.sleeps(0) && !seen.sleeps(2));
}

void it_is_seen_who_waits_in_a_hub() {
  const TailGeometry tail{2, {1, 4, 128}};
  Memory memory({2, 4, 128, 0, 0, tail.bytes()});
  const Segment messages = memory.format();
  const Tail there(messages, tail.replies);
  RingWriter full(there.format_ring(0, Segment::Nonce(kNonce), kWho), kPark);
  const Segment waiting = there.format_ring(1, Segment::Nonce(kNonce), kWho);
  for (int i = 0; i < 4; ++i) publish(full, {});
  waiting.writer_seat().wake_at = 1;
  waiting.writer_figures().parked_ns = 5;
  waiting.writer_figures().spun_ns = 2;
  there.barriers(0) = kNever;
  there.barriers(2) = 3;
  Gate(there.bell().gate).announce();
  messages.member(1).doorbell.armed = 1;
  const File file(memory.span());
  const Observation seen(file.fd());
  CHECK(seen.replies()[0].has_no_room && seen.replies()[1].has_no_room);
  CHECK(seen.replies()[1].waited_ns == 7);
  CHECK((seen.barriers() == std::vector<std::uint64_t>{kNever, 0, 3}));
  CHECK(!seen.sleeps(0) && seen.sleeps(1) && seen.sleeps(2));
}

void what_is_no_segment_is_said_to_be_none() {
  Memory memory({2, 4, 128});
  const File zeros(memory.span());
  CHECK(obstacle(zeros.fd()).find("being made") != std::string::npos);
  Segment segment = memory.format();
  const File file(memory.span());
  CHECK(obstacle(file.fd()).empty());
  for (const std::size_t nbytes :
       {std::size_t{4096}, std::size_t{700}, std::size_t{10}, std::size_t{0}}) {
    file.cut(nbytes);
    CHECK(!obstacle(file.fd()).empty());
  }
  segment.header().version = kLayoutVersion - 1;
  const File other(memory.span());
  CHECK(obstacle(other.fd()).find("layout version") != std::string::npos);
}

void damage_is_an_error_and_nothing_worse() {
  const TailGeometry tail{3, {1, 4, 128}};
  Memory memory({3, 8, 256, 5, 0, tail.bytes()});
  const Segment messages = memory.format();
  const Tail there(messages, tail.replies);
  for (std::uint32_t i = 0; i < 3; ++i) there.format_ring(i, Segment::Nonce(kNonce), kWho);
  const std::vector<std::byte> whole(memory.span().begin(), memory.span().end());
  std::mt19937_64 random(5);
  const std::uint64_t values[] = {0,    1,        2,          3,          255,
                                  4096, 1u << 31, UINT32_MAX, 1ull << 40, UINT64_MAX};
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::vector<std::byte> bytes = whole;
    const std::size_t begin =
        random() % 2 == 0 ? 0 : memory.geometry().tail_offset() + tail.ring_offset(0);
    for (int k = 0; k < 2; ++k) {
      const std::uint64_t value = random() % 4 == 0 ? random() : values[random() % 10];
      const std::size_t size = random() % 2 == 0 ? 4 : 8;
      std::memcpy(&bytes[begin + 8 + random() % 14 * 4], &value, size);
    }
    const File file(bytes);
    if (random() % 4 == 0) file.cut(random() % bytes.size());
    refused += obstacle(file.fd()).empty() ? 0 : 1;
  }
  CHECK(refused > 1000);
}

}  // namespace
}  // namespace shmcast

int main() {
  using namespace shmcast;
  each_latency_has_its_bucket();
  a_quarter_of_the_messages_is_counted_whatever_their_period();
  latencies_are_counted_by_the_reader();
  what_is_seen_is_what_is_there();
  a_hub_is_seen_with_its_replies();
  it_is_seen_who_waits_in_a_hub();
  what_is_no_segment_is_said_to_be_none();
  damage_is_an_error_and_nothing_worse();
  std::puts("ok");
}
