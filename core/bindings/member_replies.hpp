// Room: bindings. The replies of one member, as its hub receives them.
// Knows: replies that were taken before anybody asked for them, and how a member's replies end.
// Does not know: how anybody waits, or for whom else.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "bindings/kept_frames.hpp"
#include "bindings/reader.hpp"
#include "hub/tail.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "ring/reader.hpp"

namespace shmcast {

namespace nb = nanobind;

// A reply is a list of frames. None in its place says that the member has died, and that all it had
// sent was received; what comes after that is of who has taken its place.
//
// For the thread whose turn it is to receive, but for what says otherwise.
class alignas(kLine) MemberReplies {
 public:
  MemberReplies(nb::handle memory, const Segment& messages, const Tail& tail, std::uint32_t index,
                Segment::Nonce nonce, const Identity& hub)
      : reader_(std::make_unique<PyRingReader>(memory, tail.format_ring(index, nonce, hub), hub,
                                               nb::none())),
        messages_(messages),
        member_(messages.member(index)),
        tail_(tail),
        lane_(tail.lane(index)),
        index_(index) {
    look_on();
  }
  MemberReplies(const MemberReplies&) = delete;
  MemberReplies& operator=(const MemberReplies&) = delete;
  PyRingReader& reader() { return *reader_; }
  const PyRingReader& reader() const { return *reader_; }

  // Return the fragments that were replied and not yet taken. For any thread.
  std::uint64_t lag() const {
    const Segment& ring = reader_->segment();
    const std::uint64_t replied = peek(ring.writer_figures().fragments);
    const std::uint64_t consumed = peek(ring.member(0).consumed);
    return consumed >= replied ? 0 : replied - consumed;
  }

  // Return whether there is something of a reply that was not taken yet. For any thread: to others
  // than that whose turn it is, it is a hint.
  bool is_there() const {
    // relaxed, twice: see above; the word itself is read as Awaited does it.
    return Awaited{seq_.load(std::memory_order_relaxed), number_.load(std::memory_order_relaxed)}
        .is_there();
  }
  // Return a word near the one that changes then.
  const std::uint64_t& watched() const { return *seq_.load(std::memory_order_relaxed); }

  // Return whether there is a reply for pop(), perhaps taken now.
  bool has(bool copy) { return !taken_.is_empty() || take(copy); }

  // Take a whole reply out of the ring, if there is one.
  bool take(bool copy) {
    if (!is_there()) return false;
    const LookingOn looking_on(*this);
    const nb::object reply = reader_->poll(copy);
    if (!reply.is_valid()) return false;
    if (is_of_another()) taken_.push(nb::none());
    taken_.push(reply, asked_by_of_taken());
    return true;
  }

  enum class Found : std::uint8_t {
    reply,
    nothing,  // and it may come
    nobody,   // from whom it could come
  };

  // Find out why there is no reply. `is_told_once`: the death of one that was told of already is
  // `nobody`; otherwise it is told again.
  Found look_again(bool copy, bool is_told_once) {
    // Before the last look at the ring: what the dead had sent before is seen.
    const std::uint64_t ended = ended_so_far();
    const SeatState state = seat_state();
    if (has(copy)) return Found::reply;
    const bool is_dead = state == SeatState::dropped;
    if (ended > told_ || (is_dead && !is_told_once)) {
      told_ = std::max(told_, ended);
      taken_.push(nb::none());
      return Found::reply;
    }
    if (is_dead || state == SeatState::left) return Found::nobody;
    reader_->ring().awaited().check(reader_->segment().geometry().slots);
    return Found::nothing;
  }

  // Return whether the member is dead, perhaps found so by another thread, and that is to be told.
  bool has_news() const { return ended_so_far() > told_; }

  // Return the number of the message that has asked for the next reply; nothing: there is none.
  std::optional<std::uint64_t> asked_by() { return taken_.number(); }
  // Return whether a death is the next that is to be told.
  bool is_death_next() { return !taken_.is_empty() && !taken_.number(); }

  // Return how many messages were sent before who has the place now was asked for anything;
  // nothing: it was there from the first one on, or is no more.
  std::optional<std::uint64_t> joined_at() const {
    // acquire: as in ended_so_far().
    const auto takeovers = std::atomic_ref(member_.takeovers).load(std::memory_order_acquire);
    if (takeovers == 0 || seat_state() == SeatState::dropped) return {};
    // acquire: pairs with note_admitted(). Until then, nothing has asked it.
    const auto known = std::atomic_ref(lane_.joined_takeovers).load(std::memory_order_acquire);
    return known == takeovers ? peek(lane_.joined_at) : sent();
  }
  // Return whether who has the place now has come in that of another, and was asked for nothing.
  bool is_unasked() const {
    const SeatState state = seat_state();
    return state != SeatState::left && joined_at() == sent();
  }
  // Note that who has taken the place is attached, before its first message. For who sends.
  void note_admitted() {
    put(lane_.joined_at, sent());
    // release: pairs with joined_at().
    std::atomic_ref(lane_.joined_takeovers)
        .store(peek(member_.takeovers), std::memory_order_release);
  }

  // Return the next reply, which there must be.
  nb::object pop() { return taken_.pop(); }

  // Take back a reply: the next one is this one again. For any thread.
  void keep(nb::object reply) { taken_.put_back(std::move(reply)); }

 private:
  // Looks at the next fragment when the reader has gone on, whatever it threw.
  class LookingOn {
   public:
    explicit LookingOn(MemberReplies& replies) : replies_(replies) {}
    LookingOn(const LookingOn&) = delete;
    LookingOn& operator=(const LookingOn&) = delete;
    ~LookingOn() { replies_.look_on(); }

   private:
    MemberReplies& replies_;
  };

  void look_on() {
    const Awaited next = reader_->ring().awaited();
    seq_.store(next.seq, std::memory_order_relaxed);
    number_.store(next.number, std::memory_order_relaxed);
  }

  // Return whether the reply that was just taken is of who has come after one whose death is to be
  // told first; it is from now on.
  bool is_of_another() {
    // acquire: pairs with PyReplyWriter; who sees the count sees where the replies begin.
    const auto takeovers = std::atomic_ref(lane_.takeovers).load(std::memory_order_acquire);
    if (takeovers <= told_ || reader_->ring().first() < peek(lane_.begins_at)) return false;
    told_ = takeovers;
    return true;
  }

  // Return what has asked for the reply that was just taken; 0, and no line is fetched for it, as
  // long as everybody was there from the first message on.
  std::uint64_t asked_by_of_taken() const {
    // acquire: pairs with take_seat(). Who answers what was sent after that, has seen it.
    const auto rejoins = std::atomic_ref(messages_.lobby().rejoins).load(std::memory_order_acquire);
    return rejoins == 0 ? 0 : peek(tail_.asked_by(index_, reader_->ring().first()));
  }
  std::uint64_t sent() const { return peek(messages_.writer_figures().messages); }
  SeatState seat_state() const {
    // acquire: pairs with RingWriter::drop() and RingReader::leave().
    return Seat::state(std::atomic_ref(member_.seat).load(std::memory_order_acquire));
  }
  // Return how many who had the place are known to be no more.
  std::uint64_t ended_so_far() const {
    // acquire: pairs with take_seat(). Before the seat, which may be a later one's by
    // then: that makes one too few, and never one too many.
    const auto takeovers = std::atomic_ref(member_.takeovers).load(std::memory_order_acquire);
    return takeovers + (seat_state() == SeatState::dropped ? 1 : 0);
  }

  // First what each look for a reply of anybody takes: one line of the cache.
  KeptFrames taken_;  // whole replies
  // Awaited.
  std::atomic<const std::uint64_t*> seq_;
  std::atomic<std::uint64_t> number_;
  std::unique_ptr<PyRingReader> reader_;
  Segment messages_;
  Member& member_;
  Tail tail_;
  Lane& lane_;
  std::uint32_t index_;
  std::uint64_t told_ = 0;  // so many who had the place are told to have died
};

}  // namespace shmcast
