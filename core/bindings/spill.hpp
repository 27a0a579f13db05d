// Room: bindings. A writer's spill: who says how much memory there is, and when it is given back.
// Knows: the GIL, which the mapping's `room` needs; the watcher's thread, which has a clock.
// Does not know: messages.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <utility>

#include "bindings/arena_objects.hpp"
#include "bindings/gil.hpp"
#include "layout.hpp"
#include "ring/spill.hpp"
#include "ring/spill_area.hpp"
#include "watch/watcher.hpp"

namespace shmcast {

namespace nb = nanobind;

class WriterSpill final : public Spill, public Ticker {
 public:
  WriterSpill(nb::object mapping, const Segment& segment)
      : mapping_(std::move(mapping)), area_(*nb::inst_ptr<ArenaMapping>(mapping_), segment) {}
  WriterSpill(const WriterSpill&) = delete;
  WriterSpill& operator=(const WriterSpill&) = delete;
  ~WriterSpill() { Watcher::forget_ticker(*this); }

  // Without the GIL. Throws what a signal's handler throws.
  SpillPlace take(std::uint64_t bytes) override {
    const SpillPlace place = area_.take(bytes, [this] {
      const WithGil taken;
      return mapping().room_bytes();
    });
    if (place.data != nullptr) have_it_given_back();
    return place;
  }
  void settle(std::uint64_t end) override { area_.settle(end); }

  // Take memory for a message of so many bytes, or a part of it, before there is one: the first
  // message in fresh memory takes several times as long. With the GIL.
  void prepare(std::uint64_t bytes) {
    const std::uint64_t room = mapping().room_bytes();
    const WithoutGil released;
    area_.prepare(std::min(bytes, kPrepared), room);
    have_it_given_back();
  }

  bool tick(std::int64_t now_ns) override { return area_.give_back(now_ns); }

  const ArenaMapping& mapping() const { return *nb::inst_ptr<ArenaMapping>(mapping_); }

 private:
  static constexpr std::uint64_t kPrepared = 16 * 1024 * 1024;

  void have_it_given_back() {
    try {
      Watcher::add_ticker(*this);
    } catch (const std::system_error&) {
      // There can be no thread: it is kept.
    }
  }

  Reference mapping_;
  SpillArea area_;
};

}  // namespace shmcast
