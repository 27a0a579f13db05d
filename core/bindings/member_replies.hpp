// Room: bindings. The replies of one member, as its hub receives them.
// Knows: replies that were taken before anybody asked for them, and how a member's replies end.
// Does not know: how anybody waits, or for whom else.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "bindings/ahead.hpp"
#include "bindings/kept_frames.hpp"
#include "bindings/reader.hpp"
#include "hub/next_replies.hpp"
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
class MemberReplies {
 public:
  // `all`: of all members, to which this one belongs.
  MemberReplies(nb::handle memory, const Segment& messages, const Tail& tail, std::uint32_t index,
                Segment::Nonce nonce, const Identity& hub, NextReplies& all)
      : all_(all),
        reader_(std::make_unique<PyRingReader>(memory, tail.format_ring(index, nonce, hub), hub,
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
  bool is_there() const { return all_.is_there(index_); }

  enum class Found : std::uint8_t {
    reply,    // for pop()
    placed,   // a reply, see PyRingReader::consume_or_place()
    nothing,  // and it may come
    nobody,   // from whom it could come
  };

  // Return a reply or `placed`, perhaps taken now, or `nothing`.
  template <class Place>
  Found find(bool copy, Place place) {
    return taken_.is_empty() ? take(copy, place) : Found::reply;
  }
  bool has(bool copy) { return find(copy, kNowhere) == Found::reply; }

  // Take a whole reply out of the ring, if there is one.
  template <class Place>
  Found take(bool copy, Place place) {
    if (!is_there()) return Found::nothing;
    const LookingOn looking_on(*this);
    // (A death that is to be told first needs the reply in the queue behind it.)
    const std::optional<nb::object> reply = reader_->poll(
        copy, [&](std::size_t size) { return deaths_before() > told_ ? nullptr : place(size); });
    if (!reply) return Found::nothing;
    if (!reply->is_valid()) {
      taken_.set_number(asked_by_of_taken());
      return Found::placed;
    }
    if (const std::uint64_t deaths = deaths_before(); deaths > told_) {
      told_ = deaths;
      push(nb::none());
    }
    push(*reply, asked_by_of_taken());
    return Found::reply;
  }
  bool take(bool copy) { return take(copy, kNowhere) == Found::reply; }

  // Find out why there is no reply. `is_told_once`: the death of one that was told of already is
  // `nobody`; otherwise it is told again.
  template <class Place>
  Found look_again(bool copy, bool is_told_once, Place place) {
    // Before the last look at the ring: what the dead had sent before is seen.
    const std::uint64_t ended = ended_so_far();
    const SeatState state = seat_state();
    const Found found = find(copy, place);
    if (found != Found::nothing) return found;
    const bool is_dead = state == SeatState::dropped;
    if (ended > told_ || (is_dead && !is_told_once)) {
      told_ = std::max(told_, ended);
      push(nb::none());
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

  // Prefetch what the next reply will touch.
  void fetch_ahead() const {
    shmcast::fetch_ahead(this, sizeof *this);
    reader_->fetch_ahead();
  }

  // Return the next reply; null: there is none.
  nb::object pop() {
    nb::object reply = taken_.pop();
    if (reply.is_valid()) all_.add_taken(-1);
    return reply;
  }

  // Take back a reply: the next one is this one again. For any thread.
  void keep(nb::object reply) {
    taken_.put_back(std::move(reply));
    all_.add_taken(1);
  }

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

  void look_on() { all_.set(index_, reader_->ring().awaited()); }

  void push(const nb::object& reply, std::uint64_t asked_by = 0) {
    taken_.push(reply, asked_by);
    all_.add_taken(1);
  }

  // Return how many deaths are to be told before the reply that is being taken, `told_` at least:
  // it may be of who has come after one.
  std::uint64_t deaths_before() const {
    // acquire: pairs with PyReplyWriter; who sees the count sees where the replies begin.
    const auto takeovers = std::atomic_ref(lane_.takeovers).load(std::memory_order_acquire);
    return reader_->ring().first() < peek(lane_.begins_at) ? told_ : std::max(told_, takeovers);
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

  KeptFrames taken_;  // whole replies
  NextReplies& all_;
  std::unique_ptr<PyRingReader> reader_;
  Segment messages_;
  Member& member_;
  Tail tail_;
  Lane& lane_;
  std::uint32_t index_;
  std::uint64_t told_ = 0;  // so many who had the place are told to have died
};

}  // namespace shmcast
