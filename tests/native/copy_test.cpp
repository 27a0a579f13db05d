// Copies are what memcpy would make, and which stores they use follows where the readers are.
//
//     copy_test [scale]
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "arena/filling.hpp"
#include "check.hpp"
#include "copy/copies.hpp"
#include "copy/stores.hpp"
#include "layout.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"
#include "ring_ends.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"

namespace shmcast {
namespace {

using Bytes = std::vector<std::byte>;

Bytes noise(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Copy between memory with these offsets to a line, and check that nothing else was written.
template <class Copy>
void check_copy(std::size_t size, std::size_t to, std::size_t from, const Bytes& source,
                Copy copy) {
  constexpr std::size_t margin = 256;
  static Bytes memory;
  memory.assign(size + 2 * margin, std::byte{0xA5});
  Bytes expected = memory;
  const auto aligned = [](const std::byte* data) {
    return -reinterpret_cast<std::uintptr_t>(data) % kLine;
  };
  const std::size_t at = aligned(memory.data()) + kLine + to;
  const std::byte* const data = source.data() + aligned(source.data()) + from;
  std::memcpy(expected.data() + at, data, size);
  copy(memory.data() + at, data, size);
  CHECK(memory == expected);
}

void copies_are_what_memcpy_would_make() {
  const Bytes source = noise(200'000, 1);
  const std::size_t sizes[] = {0,    1,    63,   64,   65,   2047,  2048,  2049,
                               2111, 2112, 2175, 2176, 4096, 16384, 65536, 70001};
  for (const std::size_t size : sizes) {
    for (const std::size_t to : {0, 1, 8, 24, 31, 32, 63}) {
      for (const std::size_t from : {0, 1, 16, 40, 63}) {
        for (const Stores stores : {Stores::ordinary, Stores::non_temporal}) {
          check_copy(size, to, from, source,
                     [stores](auto* out, const auto* in, auto n) { copy_in(out, in, n, stores); });
        }
        check_copy(size, to, from, source,
                   [](auto* out, const auto* in, auto n) { copy_out(out, in, n); });
      }
    }
  }
  std::printf("ok  copies are what memcpy would make\n");
}

// An extent is filled in parts, of which some are trials; one that no cache holds, at once.
void extents_are_filled() {
  Filling filling;
  const Bytes source = noise(9'000'000, 2);
  for (const std::size_t size : {1, 65'535, 65'537, 262'144, 8'999'000}) {
    for (const std::size_t to : {0, 5}) {
      check_copy(size, to, 3, source, [&](auto* out, const auto* in, auto n) {
        const std::uint64_t non_temporal = filling.copy(out, in, n, monotonic_ns);
        CHECK(non_temporal <= n);
        CHECK(non_temporal % 65'536 == 0 || non_temporal == n);
      });
    }
  }
  const Bytes huge(33 * 1024 * 1024 + 5, std::byte{7});
  Bytes copy(huge.size());
  CHECK(filling.copy(copy.data(), huge.data(), huge.size(), monotonic_ns) ==
        (has_non_temporal() ? huge.size() : 0));
  CHECK(copy == huge);
  std::printf("ok  extents are filled\n");
}

// A writer whose parts take so long by its clock, in ns, with ordinary stores and past the caches.
double share_past_the_caches(std::int64_t ordinary_ns, std::int64_t non_temporal_ns) {
  const Bytes source(64 * 128 * 1024, std::byte{7});  // one trial of each kind
  Bytes extent(source.size());
  Filling filling;
  std::uint64_t non_temporal = 0;
  std::int64_t now = 0;
  int looks = 0;
  const auto clock = [&] {
    const int look = looks++ % 4;
    if (look == 1) now += ordinary_ns;
    if (look == 3) now += non_temporal_ns;
    return now;
  };
  for (int k = 0; k < 4; ++k) {
    non_temporal = filling.copy(extent.data(), source.data(), source.size(), clock);
  }
  return static_cast<double>(non_temporal) / static_cast<double>(source.size());
}

void extents_go_past_the_caches_where_the_writer_gains_much() {
  const double few = has_non_temporal() ? 1.0 / 128 : 0;  // the trials
  CHECK(share_past_the_caches(1000, 1000) == few);
  CHECK(share_past_the_caches(1000, 700) == few);  // readers may lose more
  CHECK(share_past_the_caches(1000, 400) == (has_non_temporal() ? 1 - few : 0));
  std::printf("ok  extents go past the caches where the writer gains much\n");
}

void trials_are_rare() {
  std::size_t ordinary = 0;
  std::size_t non_temporal = 0;
  for (std::uint64_t number = 0; number < 12'800; ++number) {
    ordinary += trial(number) == Stores::ordinary;
    non_temporal += trial(number) == Stores::non_temporal;
  }
  CHECK(ordinary == non_temporal);
  CHECK(ordinary == (has_non_temporal() ? 100 : 0));
  std::printf("ok  trials are rare\n");
}

// What both sides measure in one state of the machine, in µs for 64 KiB, and what else happens.
class Machine {
 public:
  void take(double ordinary, double non_temporal) {
    ordinary_.record(static_cast<std::int64_t>(ordinary * 1e3));
    non_temporal_.record(static_cast<std::int64_t>(non_temporal * 1e3));
    choice_.compare(ordinary_.median(), non_temporal_.median());
  }
  Stores stores() const { return choice_.stores(); }

 private:
  StoreChoice choice_;
  RecentNs ordinary_;
  RecentNs non_temporal_;
};

void near_has_ordinary_stores() {
  Machine machine;
  CHECK(machine.stores() == Stores::ordinary);
  for (int k = 0; k < 100; ++k) {
    machine.take(2.5, 5);
    CHECK(machine.stores() == Stores::ordinary);
  }
  std::printf("ok  near has ordinary stores\n");
}

void far_has_non_temporal_ones() {
  Machine machine;
  machine.take(8, 4);
  machine.take(8, 4);
  CHECK(machine.stores() == Stores::ordinary);  // too little is known
  for (int k = 0; k < 100; ++k) {
    machine.take(8, 4);
    CHECK(machine.stores() == Stores::non_temporal);
  }
  std::printf("ok  far has non-temporal ones\n");
}

void a_move_is_noticed() {
  Machine machine;
  for (int moves = 0; moves < 10; ++moves) {
    const bool is_far = moves % 2 == 1;
    for (int k = 0; k < 10; ++k) {
      machine.take(is_far ? 8 : 2.5, is_far ? 4 : 5);
      const bool is_known = k >= 2;  // the median is that of the new state
      if (is_known) CHECK((machine.stores() == Stores::non_temporal) == is_far);
    }
  }
  std::printf("ok  a move is noticed\n");
}

// Neither a core that is lost now and then changes the choice, nor a small difference, nor both.
void noise_changes_nothing() {
  std::mt19937 random(3);
  std::uniform_real_distribution<double> jitter(0.93, 1.07);
  for (const bool is_far : {false, true}) {
    Machine machine;
    for (int k = 0; k < 5; ++k) machine.take(is_far ? 8 : 2.5, is_far ? 4 : 5);
    for (int k = 0; k < 1000; ++k) {
      const double lost = k % 5 == 0 ? 3'000 : 0;
      machine.take(4 * jitter(random) + lost, 4 * jitter(random) + (k % 10 == 5 ? 3'000 : 0));
      CHECK((machine.stores() == Stores::non_temporal) == is_far);
    }
  }
  std::printf("ok  noise changes nothing\n");
}

// A ring of one thread. All readers but the first say themselves how long they read.
class Ring {
 public:
  static constexpr Geometry kGeometry{3, 8, 16'384};

  Ring() : memory_(kGeometry), segment_(memory_.format()), writer_(segment_, kPark) {
    for (const std::uint32_t index : {0, 1, 2}) CHECK(take_seat(segment_, index, kWho));
  }

  void takes(std::uint32_t reader, std::uint64_t ordinary_ns, std::uint64_t non_temporal_ns) {
    put(segment_.member(reader).read_ns[0], ordinary_ns);
    put(segment_.member(reader).read_ns[1], non_temporal_ns);
  }
  void leaves(std::uint32_t reader) { put(segment_.member(reader).consumed, kNever); }

  // Send messages, enough for five trials of each kind, and return how much of the last ones went
  // past the caches.
  double settled_share() {
    share();
    return share();
  }

 private:
  // Each message fills its slots.
  double share() {
    const std::uint64_t before = peek(writer_.figures().non_temporal_bytes);
    const std::uint64_t bytes_before = peek(writer_.figures().bytes);
    for (int k = 0; k < 5 * 32; ++k) {
      const Message message{noise(4 * kGeometry.slot_capacity, static_cast<unsigned>(k % 3))};
      CHECK(publish(writer_, message) == Outcome::ready);
      Message received;
      CHECK(receive(reader_, received) == Outcome::ready);
      CHECK(received == message);
      for (const std::uint32_t other : {1, 2}) {
        std::uint64_t& consumed = segment_.member(other).consumed;
        if (peek(consumed) != kNever) put(consumed, writer_.published());
      }
    }
    const auto bytes = static_cast<double>(peek(writer_.figures().bytes) - bytes_before);
    return static_cast<double>(peek(writer_.figures().non_temporal_bytes) - before) / bytes;
  }

  Memory memory_;
  Segment segment_;
  RingWriter writer_;
  RingReader reader_{segment_, 0, kPark};
};

void the_slowest_reader_counts() {
  constexpr std::uint64_t slow = 1'000'000'000;
  const double few = has_non_temporal() ? 1.0 / 128 : 0;  // the trials
  const double most = has_non_temporal() ? 1 - few : 0;
  Ring ring;
  ring.takes(1, 1, slow);
  CHECK(ring.settled_share() == few);
  ring.takes(1, slow + slow / 2, slow);  // too little
  CHECK(ring.settled_share() == few);
  ring.takes(1, slow, 1);
  CHECK(ring.settled_share() == most);
  ring.takes(1, slow, slow - slow / 10);
  CHECK(ring.settled_share() == most);
  ring.takes(1, slow, slow + slow / 10);
  CHECK(ring.settled_share() == few);
  ring.takes(1, slow, 1);
  ring.takes(2, 1, 2 * slow);
  CHECK(ring.settled_share() == few);
  ring.leaves(2);
  CHECK(ring.settled_share() == most);
  std::printf("ok  the slowest reader counts\n");
}

}  // namespace
}  // namespace shmcast

int main() {
  using namespace shmcast;
  copies_are_what_memcpy_would_make();
  extents_are_filled();
  extents_go_past_the_caches_where_the_writer_gains_much();
  trials_are_rare();
  near_has_ordinary_stores();
  far_has_non_temporal_ones();
  a_move_is_noticed();
  noise_changes_nothing();
  the_slowest_reader_counts();
}
