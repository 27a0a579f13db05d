// Who counts as a member that may need the CPUs of this thread.
#include <sched.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <thread>
#include <vector>

#include "check.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"
#include "ring_ends.hpp"
#include "settings.hpp"
#include "wait/cpus.hpp"

namespace shmcast {
namespace {

constexpr std::uint32_t kReaders = 3;
constexpr std::uint32_t kWriter = kReaders;  // its place among the members

// Put a member on other CPUs than this thread's.
void put_elsewhere(CpuMask& mask) {
  const Affinity mine = Affinity::of_this_thread();
  for (std::size_t i = 0; i < std::size(mask.words); ++i) put(mask.words[i], ~mine.mask.words[i]);
}

void members_are_counted_against_the_cpus() {
  Memory memory({kReaders, 4, 128});
  const Segment segment = memory.format();
  const std::uint32_t cpus = Affinity::of_this_thread().count;
  // None has attached yet: all are expected.
  CHECK(is_crowded(segment, kWriter, kNoQuota) == (cpus < 4));
  CHECK(!is_crowded(segment, kWriter, 4) || cpus < 4);
  CHECK(is_crowded(segment, kWriter, 3.5));
  CHECK(is_crowded(segment, 0, 3.5));

  CHECK(take_seat(segment, 0, kWho));
  RingReader reader(segment, 0, kPark);
  CHECK(is_crowded(segment, kWriter, 3.5));
  reader.leave();
  CHECK(is_crowded(segment, kWriter, 2.5));
  CHECK(!is_crowded(segment, kWriter, 3.5) || cpus < 3);
}

void who_can_not_run_here_does_not_count() {
  Memory memory({kReaders, 4, 128});
  RingWriter writer(memory.format(), kPark);
  const Segment segment = memory.attach();
  CHECK(is_crowded(segment, 0, 1));
  for (const std::uint32_t other : {1u, 2u, kWriter}) {
    CHECK(is_crowded(segment, 0, 1));
    put_elsewhere(segment.cpus(other));
  }
  CHECK(!is_crowded(segment, 0, 1));
  // Each tells the others what it knows of itself.
  CHECK(is_crowded(segment, 1, 1));
  CHECK(is_crowded(segment, 0, 1));
  put_elsewhere(segment.cpus(1));
  put_elsewhere(segment.cpus(2));
  put_elsewhere(segment.cpus(0));
  CHECK(!is_crowded(segment, kWriter, 1));
  CHECK(is_crowded(segment, 2, 1));  // the writer is here, too
  writer.close();
  CHECK(!is_crowded(segment, 2, 1));
  CHECK(is_crowded(segment, 2, 0.5));  // not even one CPU
}

// While others look, members may tell.
void all_may_look_at_any_time() {
  Memory memory({kReaders, 4, 128});
  const Segment segment = memory.format();
  std::vector<std::thread> members;
  for (std::uint32_t me = 0; me <= kReaders; ++me) {
    members.emplace_back([&, me] {
      LastCpu cpu(me == kWriter ? segment.writer_seat().cpu : segment.member(me).cpu);
      for (int k = 0; k < 1'000; ++k) {
        is_crowded(segment, me, kNoQuota);
        cpu.note();
        LastCpu::is_shared_with(segment.writer_seat().cpu);
        if (k % 10 == 0) put_elsewhere(segment.cpus(me));
      }
    });
  }
  for (std::thread& member : members) member.join();
}

}  // namespace
}  // namespace shmcast

int main() {
  using namespace shmcast;
  members_are_counted_against_the_cpus();
  who_can_not_run_here_does_not_count();
  all_may_look_at_any_time();
  std::printf("ok  crowds\n");
}
