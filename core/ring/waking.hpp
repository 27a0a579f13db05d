// Room: ring. Waking whoever waits at the gates of a segment: threads that sleep, and loops.
// Knows: which doorbells there are at a gate.
// Does not know: what there is to see, or how a loop is rung.
#pragma once

#include <cstdint>

#include "layout.hpp"
#include "wait/gate.hpp"
#include "wait/ringer.hpp"

namespace shmcast {

// Wake the readers, for who does so again and again: `ringer` has the segment's doorbells. Returns
// whether that took a system call, before which it calls before_call().
template <class BeforeCall>
bool wake_readers(const Segment& segment, Ringer& ringer, BeforeCall before_call) {
  return Gate(segment.readers_gate()).wake(before_call, [&] {
    for (std::uint32_t i = 0; i < segment.doorbells(); ++i) ringer.ring(segment.doorbell(i), i);
  });
}

// The same for who does so once.
inline void wake_readers(const Segment& segment) {
  Gate(segment.readers_gate())
      .wake([] {},
            [&] {
              for (std::uint32_t i = 0; i < segment.doorbells(); ++i) {
                Ringer::ring_once(segment.doorbell(i));
              }
            });
}

// Wake the writer. A hub, whose loop awaits replies there, too.
inline void wake_writer(const Segment& segment) {
  Gate(segment.writer_gate())
      .wake([] {},
            [&] {
              if (Doorbell* const doorbell = segment.writer_doorbell())
                Ringer::ring_once(*doorbell);
            });
}

}  // namespace shmcast
