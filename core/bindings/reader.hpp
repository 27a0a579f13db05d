// Room: bindings. A reader of a ring, for Python.
// Knows: the frame table, and which messages its caller has not got.
// Does not know: what is in frames or what memory they need, or how waiting and closing work.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arena/mapping.hpp"
#include "bindings/ahead.hpp"
#include "bindings/arena_objects.hpp"
#include "bindings/awaitable.hpp"
#include "bindings/convert.hpp"
#include "bindings/endpoint.hpp"
#include "bindings/errors.hpp"
#include "bindings/gil.hpp"
#include "bindings/kept_frames.hpp"
#include "bindings/received_frames.hpp"
#include "layout.hpp"
#include "ring/message.hpp"
#include "ring/reader.hpp"
#include "ring/remains.hpp"
#include "wait/gate.hpp"
#include "wait/listener.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

namespace nb = nanobind;

// See PyRingReader::consume_or_place().
inline constexpr auto kNowhere = [](std::size_t) { return static_cast<std::byte*>(nullptr); };

class PyRingReader final : public Awaitable {
 public:
  PyRingReader(nb::handle memory, const Geometry& geometry, const nb::bytes& nonce,
               std::uint32_t index, const WaitPolicy& policy, nb::object cpu_quota,
               nb::object warmup, nb::object watch, const Identity& who, std::uint64_t found,
               nb::object arena, bool may_hold, nb::object spill, const std::string& name)
      : Awaitable(memory, std::move(cpu_quota), std::move(watch)),
        warmup_(std::move(warmup)),
        mapping_(std::move(arena)),
        spill_(std::move(spill)),
        index_(index),
        segment_(Segment::attach(this->memory(), geometry, nonce_of(nonce))),
        ring_(seated(segment_, index, who, found, may_hold, !spill_.is_none()), index, policy,
              found) {
    write_text(segment_.name(index).text, name);
    if (!spill_.is_none()) ring_.set_spill(nb::inst_ptr<ArenaMapping>(spill_)->bytes());
  }
  // The only reader of a ring that lies somewhere in `memory`, for who waits for many of them.
  PyRingReader(nb::handle memory, const Segment& segment, const Identity& who, nb::object arena)
      : Awaitable(memory, nb::none(), nb::none()),
        warmup_(nb::none()),
        mapping_(std::move(arena)),
        spill_(nb::none()),
        index_(0),
        segment_(segment),
        ring_(seated(segment_, 0, who, kVacantSeat, false, false), 0,
              WaitPolicy{WaitPolicy::Mode::park, 0}) {}
  ~PyRingReader() override { destroy(); }

  // Return the frames of the next message. A call that ends in TimedOut, Interrupted or a signal
  // keeps its place: the next call resumes it, or returns what this one could not. For kLook, see
  // there.
  nb::object consume(nb::handle timeout, bool copy) {
    nb::object frames;
    if (!is_look(timeout)) {
      frames = consume_or_place(timeout, copy, kNowhere);
    } else {
      const Call call(*this, true);
      frames = kept_.pop();
      if (!frames.is_valid()) frames = look(copy);
      if (!frames.is_valid()) return nothing();
    }
    // A signal that came meanwhile would be handled on the way back, where its handler's error
    // would take the place of the frames.
    if (signal_handler_raised()) {
      keep(std::move(frames));
      throw nb::python_error();
    }
    return frames;
  }

  // Do the same, but copy a message of one frame that lies in one slot to where `place` says, which
  // is given its size, and return null then; unless that is null. Here the caller handles signals.
  template <class Place>
  nb::object consume_or_place(nb::handle timeout, bool copy, Place place) {
    const Call call(*this);
    Deadline end_of_call(timeout_ns(timeout));
    nb::object frames = kept_.pop();
    return frames.is_valid() ? frames : take(end_of_call, copy, place);
  }

  // Return the frames of the next message if all of it is there, or null if it was placed, as
  // consume_or_place(). Otherwise return nothing, and keep what is there of it. Never waits: for
  // who waits for many rings, and has the turn with this one.
  template <class Place>
  std::optional<nb::object> poll(bool copy, Place place) {
    for (;;) {
      if (phase_ == Phase::idle) {
        if (ring_.begin(0, [] { return false; }) != Outcome::ready) return {};
        if (is_placed(place)) return nb::object();
        begin_table();
        continue;
      }
      const Outcome outcome = [this] {
        if (ring_.is_immediate()) return ring_.fetch(0, [] { return false; });
        const WithoutGil released;
        return ring_.fetch(0, [] { return false; });
      }();
      if (outcome == Outcome::abandoned) {
        reset();
      } else if (outcome != Outcome::ready) {
        return {};
      } else if (phase_ == Phase::table) {
        go_on_with_table();
      } else {
        return end(copy);
      }
    }
  }
  const RingReader& ring() const { return ring_; }
  const Segment& segment() const override { return segment_; }
  std::uint32_t place() const override { return index_; }
  // Prefetch what the next message will touch.
  void fetch_ahead() const {
    shmcast::fetch_ahead(this, sizeof *this);
    shmcast::fetch_ahead(entries_.data(), kLine);
    frames_.fetch_ahead();
    ring_.fetch_ahead();
  }

  // Return whether a message was begun and is not all there.
  bool is_within() const { return phase_ != Phase::idle; }

  // Take back frames that consume() returned: the next call returns them again.
  void keep(nb::object frames) { kept_.put_back(std::move(frames)); }
  // Forget the frames that were taken back last, and return them.
  nb::object discard() {
    nb::object frames = kept_.pop();
    return frames.is_valid() ? frames : list_of(std::vector<nb::object>());
  }

 private:
  // Return the frames of the next message; null: not all of it is there, and the listener is armed.
  nb::object look(bool copy) {
    nb::object frames;
    if (ring_.has_message() || is_within()) frames = take_now(copy);
    if (frames.is_valid()) return frames;
    listener_.arm();
    return take_now(copy);
  }
  nb::object take_now(bool copy) try {
    Deadline now(0);
    return take(now, copy, kNowhere);
  } catch (const TimedOut&) {
    return {};
  }

  template <class Place>
  nb::object take(Deadline& end_of_call, bool copy, Place place) {
    for (;;) {
      switch (phase_) {
        case Phase::idle:
          // Where a foreign process writes to the segment, begin() may not find what has_message()
          // has found.
          if (!ring_.has_message() || ring_.begin(0, stop()) != Outcome::ready) {
            wait(end_of_call,
                 [this](std::int64_t deadline) { return ring_.begin(deadline, stop()); });
          }
          if (is_placed(place)) return {};
          begin_table();
          break;
        case Phase::table:
          if (fetch(end_of_call)) go_on_with_table();
          break;
        case Phase::frames:
          if (fetch(end_of_call)) return end(copy);
          break;
      }
    }
  }

  // Take the message that was begun if it can be placed, see consume_or_place().
  template <class Place>
  bool is_placed(Place place) {
    if (ring_.frame_count() != 1 || !ring_.is_immediate()) return false;
    std::byte* to = nullptr;
    const std::uint64_t size = ring_.remaining();
    or_drop([&] { to = place(size); });
    if (to == nullptr) return false;
    ring_.copy_whole(to);
    ring_.end(size);
    frames_.tick();
    return true;
  }

  enum class Phase : std::uint8_t { idle, table, frames };
  static constexpr std::size_t kTablePart = 4096;  // sizes

  static const Segment& seated(const Segment& segment, std::uint32_t index, const Identity& who,
                               std::uint64_t found, bool may_hold, bool has_spill) {
    if (index >= segment.geometry().readers) throw nb::index_error("no such reader index");
    if (!has_spill) refuse_spill(segment);
    if (!take_seat(segment, index, who, found, may_hold)) {
      // relaxed: for the text only.
      const std::uint64_t seat = peek(segment.member(index).seat);
      const bool gone = Seat::state(seat) == SeatState::left;
      throw SeatTaken((gone ? "was taken, and left, by process " : "is taken by process ") +
                      std::to_string(Seat::pid(seat)));
    }
    return segment;
  }

  // Fill all pieces. Returns false if the writer has abandoned the message and there is time for
  // the next one.
  bool fetch(Deadline& end_of_call) {
    Outcome outcome;
    if (ring_.is_immediate()) {
      outcome = ring_.fetch(0, stop());
    } else {
      outcome = wait(end_of_call,
                     [this](std::int64_t deadline) { return ring_.fetch(deadline, stop()); });
    }
    if (outcome == Outcome::ready) return true;
    reset();
    check_between_waits();
    if (ring_.is_late(end_of_call.ns())) throw TimedOut("timed out");
    return false;
  }

  void begin_table() {
    or_drop([this] {
      entries_.clear();
      if (ring_.frame_count() > 1) {
        extend_table();
      } else {
        if (ring_.frame_count() == 1) entries_.push_back(ring_.remaining());
        make_frames();
      }
    });
  }

  void go_on_with_table() {
    or_drop([this] {
      if (entries_.size() < ring_.frame_count()) {
        extend_table();
      } else {
        make_frames();
      }
    });
  }

  // Fetch the next part of the frame table. In parts, so that a table takes memory as it arrives,
  // not as its descriptor promises.
  void extend_table() {
    const std::size_t got = entries_.size();
    entries_.resize(std::min<std::uint64_t>(ring_.frame_count(), got + kTablePart));
    const MutablePiece part{reinterpret_cast<std::byte*>(&entries_[got]),
                            (entries_.size() - got) * sizeof(std::uint64_t)};
    ring_.into({&part, 1});
    phase_ = Phase::table;
  }

  void make_frames() {
    ring_.check_entries(entries_);
    // Count an extent as held before the message's last fragment is released.
    const auto hold = [this](std::uint32_t extent) {
      return Hold(memory_owner(), segment_.held(index_, extent_of(extent)));
    };
    ring_.into(frames_.make(entries_, hold));
    phase_ = Phase::frames;
  }

  std::uint32_t extent_of(std::uint32_t extent) const {
    const std::uint32_t extents = segment_.geometry().extents;
    if (extent >= extents) {
      throw_corrupted("a frame's extent", extent, "the arena's count", extents);
    }
    return extent;
  }

  // Run the step, and drop the message if it throws: a message that there is no memory for is lost
  // to this reader, the next one is not.
  template <class Step>
  void or_drop(Step step) {
    try {
      step();
    } catch (...) {
      ring_.drop();
      reset();
      throw;
    }
  }

  nb::object end(bool copy) {
    // What is consumed and then can't be returned is lost to this reader, as in or_drop().
    const Resetting resetting(*this);
    ring_.end(frames_.payload());
    if (frames_.are_in_arena()) {
      ring_.count_arena(frames_.view(entries_, mapping_, copy));
    }
    return frames_.take();
  }

  class Resetting {
   public:
    explicit Resetting(PyRingReader& reader) : reader_(reader) {}
    Resetting(const Resetting&) = delete;
    Resetting& operator=(const Resetting&) = delete;
    ~Resetting() { reader_.reset(); }

   private:
    PyRingReader& reader_;
  };

  void reset() {
    frames_.clear();
    phase_ = Phase::idle;
  }

  Waiter& waiter() override { return ring_.waiter; }
  const Figures& own_figures() const override { return ring_.figures(); }
  const Latencies* own_latencies() const override { return &ring_.latencies(); }
  void count_tensor_set() override { ring_.begin_tensor_set(); }
  void warm_up() override {
    if (warmup_.is_none()) return;
    call(warmup_);
    fetch_ahead();  // what practice does not touch: it has another ring
    fetch_callers_ahead();
  }
  Outcome wait_attached(std::int64_t deadline_ns) override {
    return ring_.wait_ready(deadline_ns, stop());
  }
  void interrupt() override {
    ring_.interrupt();
    listener_.ring();
  }
  Listener& listener() override { return listener_; }
  bool has_news() override { return ring_.has_news(); }
  void leave(End how) override {
    listener_.hush();
    reset();  // release what it holds of messages that nobody has got
    kept_.drop_all();
    frames_.drop_pool();
    how == End::failed ? ring_.fail() : ring_.leave();
    give_back_messages(segment_);
  }
  void rest(std::int64_t now) override { frames_.rest(now); }

  Reference warmup_;
  Reference mapping_;
  Reference spill_;
  std::uint32_t index_;
  Segment segment_;
  RingReader ring_;
  Phase phase_ = Phase::idle;
  std::vector<std::uint64_t> entries_;  // the frame table
  ReceivedFrames frames_;
  KeptFrames kept_;  // what its caller has not got
  Listener listener_{segment_.readers_gate(), segment_.doorbell(index_)};
};

}  // namespace shmcast
