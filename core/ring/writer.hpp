// The ring protocol: one writer, N readers, lossless, in order.
//
// A message is a list of frames. Its bytes (a frame table, then the frames) are cut into fragments;
// fragment f lies in slot f mod n, and `seq` = f + 1 tells that it is complete. A message may be
// larger than the whole ring: readers copy its first fragments out while the writer fills the next.
//
//   writer: wait until every reader has consumed fragment f - n   (acquire Member::consumed)
//           copy the payload, store seq = f + 1                   (release)
//   reader: wait until seq = f + 1                                (acquire)
//           copy the payload, store consumed = f + 1              (release)
//
// Both classes are state machines that can be interrupted in any wait and resumed, so that a
// caller can handle signals. Neither is thread-safe, and neither knows what is in a frame.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <numeric>
#include <span>
#include <vector>

#include "layout.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

template <class Byte>
struct Piece {
  Byte* data;
  std::size_t size;
};
using ConstPiece = Piece<const std::byte>;
using MutablePiece = Piece<std::byte>;

// A message that asks for more than a Descriptor can say.
struct MessageTooLarge : std::length_error {
  using std::length_error::length_error;
};

// The segment holds what no endpoint of this layout writes.
struct SegmentCorrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// `got` does not fit `known`. Not inlined: its making of a text would slow messages down.
[[noreturn, gnu::cold, gnu::noinline]] inline void misfit(const char* got_name, std::uint64_t got,
                                                          const char* known_name,
                                                          std::uint64_t known) {
  throw SegmentCorrupted(std::string(got_name) + " is " + std::to_string(got) +
                         ", which does not fit " + known_name + ", " + std::to_string(known));
}

// How many readers have attached so far.
inline std::uint32_t attached_readers(const Segment& segment) {
  std::uint32_t count = 0;
  for (std::uint32_t i = 0; i < segment.geometry().readers; ++i) {
    // seq_cst: looked at between announce() and park(); pairs with RingReader::attach().
    const auto seat = std::atomic_ref(segment.member(i).seat).load(std::memory_order_seq_cst);
    if (Seat::state(seat) != SeatState::vacant) ++count;
  }
  return count;
}

// Changes whenever somebody takes a seat.
inline std::uint32_t arrivals_so_far(const Segment& segment) {
  // relaxed: a hint.
  return std::atomic_ref(segment.lobby().arrivals).load(std::memory_order_relaxed);
}

// Bytes of all frames in a frame table.
inline std::uint64_t payload_bytes(std::span<const std::uint64_t> entries) {
  return std::accumulate(
      entries.begin(), entries.end(), std::uint64_t{0},
      [](std::uint64_t sum, std::uint64_t entry) { return sum + FrameEntry::bytes(entry); });
}

// A member as its peers see it.
struct Peer {
  std::uint32_t index;   // of a reader; for the writer the number of readers
  std::uint64_t seat;    // a Seat
  Identity identity;     // start time 0: not told yet
  std::uint64_t behind;  // fragments published and not yet consumed
};

// All members: the readers by index, then the writer.
inline std::vector<Peer> peers(const Segment& segment) {
  const std::uint64_t published = peek(segment.writer_figures().fragments);
  std::vector<Peer> all;
  for (std::uint32_t i = 0; i < segment.geometry().readers; ++i) {
    Member& member = segment.member(i);
    // acquire: pairs with RingReader::attach() and leave().
    const auto seat = std::atomic_ref(member.seat).load(std::memory_order_acquire);
    // acquire: pairs with RingReader::attach(), first of the two.
    const auto start = std::atomic_ref(member.identity.start_time).load(std::memory_order_acquire);
    const Identity identity{start, peek(member.identity.pid_namespace), Seat::pid(seat)};
    const std::uint64_t consumed = peek(member.consumed);
    all.push_back({i, seat, identity, consumed >= published ? 0 : published - consumed});
  }
  // acquire: pairs with RingWriter::close().
  const bool is_closed =
      std::atomic_ref(segment.lobby().closed).load(std::memory_order_acquire) != 0;
  const Identity& writer = segment.header().writer;
  const auto state = is_closed ? SeatState::left : SeatState::attached;
  all.push_back({segment.geometry().readers, Seat::pack(writer.pid, state), writer, 0});
  return all;
}

// How many sets of device tensors each member has begun: the readers by index, then the writer.
inline std::vector<std::uint64_t> tensor_sets(const Segment& segment) {
  std::vector<std::uint64_t> sets;
  for (std::uint32_t i = 0; i < segment.geometry().readers; ++i) {
    sets.push_back(peek(segment.reader_figures(i).tensor_sets));
  }
  sets.push_back(peek(segment.writer_figures().tensor_sets));
  return sets;
}

// Waits until all readers have attached, parking on the endpoint's own gate.
template <class Stop>
Outcome wait_all_attached(const Segment& segment, Waiter& waiter, Gate gate,
                          std::int64_t deadline_ns, Stop stop) {
  const auto ready = [&] { return attached_readers(segment) == segment.geometry().readers; };
  const std::uint64_t& nearby = segment.lobby().gate;  // `arrivals` lies in the same line
  return waiter.wait(gate, deadline_ns, nearby, Beat::no, ready, stop);
}

class RingWriter {
 public:
  RingWriter(Segment segment, const WaitPolicy& policy)
      : waiter(policy, segment.writer_figures()),
        segment_(segment),
        figures_(segment.writer_figures()),
        is_dropped_(segment.geometry().readers) {}

  Waiter waiter;

  // Sets the message to publish. The pieces' memory must stay until advance() or abandon() ends it.
  // With a frame in the arena, whose piece is an ArenaOffset, the frame table is given.
  void begin(std::span<const ConstPiece> frames, std::span<const std::uint64_t> entries = {}) {
    const std::uint64_t payload =
        std::accumulate(frames.begin(), frames.end(), std::uint64_t{0},
                        [](std::uint64_t sum, const ConstPiece& f) { return sum + f.size; });
    const std::uint64_t table = table_bytes(frames.size());
    if (frames.size() > Descriptor::kMaxFrames || payload + table > Descriptor::kMaxBytes) {
      throw MessageTooLarge("a message of " + std::to_string(frames.size()) + " frames and " +
                            std::to_string(payload) + " bytes is over the limit of " +
                            std::to_string(Descriptor::kMaxFrames) + " frames and " +
                            std::to_string(Descriptor::kMaxBytes) + " bytes");
    }
    // Nobody is admitted to a message that is refused: the caller would not learn of it.
    admitted_.clear();
    // acquire: pairs with RingReader::attach().
    const auto rejoins = std::atomic_ref(segment_.lobby().rejoins).load(std::memory_order_acquire);
    if (rejoins != rejoins_) admit(rejoins);
    pieces_.clear();
    payload_ = payload;
    if (table != 0) {
      entries_.assign(entries.begin(), entries.end());
      if (entries.empty()) {
        for (const ConstPiece& frame : frames) entries_.push_back(frame.size);
      } else {
        payload_ = payload_bytes(entries);
      }
      pieces_.push_back({reinterpret_cast<const std::byte*>(entries_.data()), table});
    }
    std::copy_if(frames.begin(), frames.end(), std::back_inserter(pieces_),
                 [](const ConstPiece& frame) { return frame.size != 0; });
    descriptor_ = Descriptor::pack(frames.size(), payload + table);
    remaining_ = payload + table;
    piece_ = 0;
    offset_ = 0;
    first_ = next_;
  }

  // The message set by begin() fits a slot that is free now: advance() will not wait.
  bool is_immediate() { return remaining_ <= capacity() && has_credit(); }

  // Publishes what is left of the message. ready: all of it is out. Otherwise call again, or
  // abandon(). closed: every reader has left, or stop() said so in a wait.
  template <class Stop>
  Outcome advance(std::int64_t deadline_ns, Stop stop) {
    if (nobody_is_left()) return Outcome::closed;
    do {
      if (!has_credit()) {
        wake_readers();  // they may sleep over fragments that were not reported yet
        const Outcome outcome = wait_for_credit(deadline_ns, stop);
        if (outcome != Outcome::ready) return outcome;
        if (nobody_is_left()) return Outcome::closed;  // that is why there is room
      }
      publish_fragment();
    } while (remaining_ != 0);
    add(figures_.messages, 1);
    add(figures_.bytes, payload_);
    return Outcome::ready;
  }

  // Brings the lines that the next publish will touch into this core's cache: the slot's for
  // writing, with the one after it, and the lobby's. A hint, nothing more.
  void fetch_ahead() const {
    Slot& slot = segment_.slot_of(next_);
    __builtin_prefetch(&slot, 1);
    __builtin_prefetch(reinterpret_cast<const std::byte*>(&slot) + kLine, 1);
    __builtin_prefetch(&segment_.lobby(), 0);
  }

  // Gives up the message set by begin(). No reader has all of it, so no reader will deliver it:
  // the next message's start tells them to drop what they have.
  void abandon() {
    if (next_ != first_) wake_readers();
    remaining_ = 0;
    add(figures_.abandoned, 1);
  }

  // Readers drain what is published, then see the end. Wakes those who wait for a message.
  void close() {
    // seq_cst: a waiter loads it between announce() and park(), as it loads `seq` (see Gate).
    std::atomic_ref(segment_.lobby().closed).store(1, std::memory_order_seq_cst);
    wake_readers();
  }

  // Goes on without a reader that has died (the caller knows), in whose seat `found` was seen.
  void drop(std::uint32_t index, std::uint64_t found) {
    Member& member = segment_.member(index);
    // acq_rel, relaxed on failure: as in RingReader::attach(). Fails if its place was taken.
    if (!std::atomic_ref(member.seat)
             .compare_exchange_strong(found, Seat::pack(Seat::pid(found), SeatState::dropped),
                                      std::memory_order_acq_rel, std::memory_order_relaxed)) {
      return;
    }
    // relaxed: only this writer waits for it; a replacement stores the same, until admit().
    put(member.consumed, kNever);
    if (!is_dropped_[index]) ++dropped_;
    is_dropped_[index] = true;
  }

  // Fragments published so far: who has consumed so many has all messages.
  std::uint64_t published() const { return next_; }

  // Readers that begin() has attached in the place of dead ones.
  std::span<const std::uint32_t> admitted() const { return admitted_; }

  const Figures& figures() const { return figures_; }
  void begin_tensor_set() { add(figures_.tensor_sets, 1); }
  void count_arena(std::uint64_t frames, std::uint64_t full) {
    add(figures_.arena_frames, frames);
    add(figures_.arena_full, full);
  }
  // Fragments published and not yet consumed, by reader; 0 for one that has left. Any thread.
  std::vector<std::uint64_t> lags() const {
    const std::uint64_t published = peek(figures_.fragments);  // next_, for any thread
    std::vector<std::uint64_t> lags;
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      // relaxed: a figure for people.
      const auto consumed =
          std::atomic_ref(segment_.member(i).consumed).load(std::memory_order_relaxed);
      lags.push_back(consumed >= published ? 0 : published - consumed);
    }
    return lags;
  }

  template <class Stop>
  Outcome wait_ready(std::int64_t deadline_ns, Stop stop) {
    return wait_all_attached(segment_, waiter, Gate(segment_.writer_seat().gate), deadline_ns,
                             stop);
  }

  // Wakes this writer's own wait, from another thread.
  void interrupt() { Gate(segment_.writer_seat().gate).wake(); }

 private:
  bool nobody_is_left() const {
    // acquire: pairs with RingReader::leave(), so that room made by the last leave is not taken
    // for consumption.
    const auto left = std::atomic_ref(segment_.lobby().left).load(std::memory_order_acquire);
    if (left + dropped_ < segment_.geometry().readers) return false;
    // A seat whose owners died or left one after the other was counted more than once.
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      const Member& member = segment_.member(i);
      const auto state = Seat::state(peek(member.seat));
      if (state == SeatState::vacant) return false;
      // Who is attached and waited for; not who is about to leave.
      if (state == SeatState::attached && peek(member.consumed) != kNever) return false;
    }
    return true;
  }

  // Attaches those who rejoin: they begin with the next fragment, which starts a message.
  void admit(std::uint32_t rejoins) {
    rejoins_ = rejoins;
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      Member& member = segment_.member(i);
      // acquire: pairs with RingReader::attach(), whose store of `consumed` is over.
      std::uint64_t seat = std::atomic_ref(member.seat).load(std::memory_order_acquire);
      if (Seat::state(seat) != SeatState::rejoining) continue;
      put(member.consumed, next_);
      // seq_cst: release, so that who finds itself attached finds where to begin; and a parked
      // reader looks at it between announce() and park(), before the wake-up of the message.
      if (std::atomic_ref(member.seat)
              .compare_exchange_strong(seat, Seat::pack(Seat::pid(seat), SeatState::attached),
                                       std::memory_order_seq_cst, std::memory_order_relaxed)) {
        if (is_dropped_[i]) --dropped_;
        is_dropped_[i] = false;
        admitted_.push_back(i);
      } else {
        put(member.consumed, kNever);  // it has left in this moment
      }
    }
  }

  // In the middle of a long message sleeping readers are woken at its first fragment, then only
  // now and then: where members share cores, each wake-up should find work for a while.
  static constexpr std::uint64_t kFragmentsPerWake = 16;

  std::uint64_t capacity() const { return segment_.geometry().slot_capacity; }
  std::uint64_t slots() const { return segment_.geometry().slots; }

  bool has_credit() {
    if (next_ - consumed_by_all_ < slots()) return true;  // the cached minimum will do
    refresh_consumed_by_all();
    return next_ - consumed_by_all_ < slots();
  }

  void refresh_consumed_by_all() {
    std::uint64_t least = next_;  // a reader that has left counts as having consumed all
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      // seq_cst: acquire pairs with the reader's store (its copy is over before we overwrite the
      // slot), and in wait_for_credit() it is the waiter's second look after wake_at was stored.
      const auto consumed =
          std::atomic_ref(segment_.member(i).consumed).load(std::memory_order_seq_cst);
      if (next_ - consumed > slots() && consumed != kNever) {  // in the future, too
        misfit("a reader's count of fragments", consumed, "the writer's", next_);
      }
      if (consumed < least) {
        least = consumed;
        slowest_ = i;
      }
    }
    consumed_by_all_ = least;
  }

  // Waits for one free slot but asks to be woken when half the ring is free: a sleeping writer is
  // then woken once per half ring. No deadlock: readers can always consume up to next_.
  template <class Stop>
  Outcome wait_for_credit(std::int64_t deadline_ns, Stop stop) {
    WriterSeat& seat = segment_.writer_seat();
    const auto wake_at = std::atomic_ref(seat.wake_at);
    // seq_cst: the waiter's announcement; pairs with RingReader::release_slot().
    wake_at.store(next_ - slots() / 2, std::memory_order_seq_cst);
    const Outcome outcome = waiter.wait(
        Gate(seat.gate), deadline_ns, segment_.member(slowest_).consumed, Beat::yes,
        [this] { return has_credit(); }, stop);
    if (outcome == Outcome::ready) waiter.arrived(kForever);  // as of now
    // relaxed: a reader that still sees the old value makes one needless system call.
    wake_at.store(kNever, std::memory_order_relaxed);
    return outcome;
  }

  void publish_fragment() {
    Slot& slot = segment_.slot_of(next_);
    const bool is_start = next_ == first_;
    std::byte* to = slot.payload();
    std::size_t room = std::min(capacity(), remaining_);
    remaining_ -= room;
    while (room != 0) {
      const ConstPiece& piece = pieces_[piece_];
      const std::size_t n = std::min(room, piece.size - offset_);
      std::memcpy(to, piece.data + offset_, n);
      to += n;
      room -= n;
      offset_ += n;
      if (offset_ == piece.size) {
        ++piece_;
        offset_ = 0;
      }
    }
    slot.descriptor = is_start ? descriptor_ : 0;
    if (is_start) slot.sent_ns = monotonic_ns();
    ++next_;
    add(figures_.fragments, 1);
    // seq_cst: release pairs with the acquire in RingReader::readable(), and the total order with
    // the Gate's load in wake_readers(), here or before a wait, is what loses no wake-up (see
    // Gate).
    std::atomic_ref(slot.seq).store(next_, std::memory_order_seq_cst);
    if (is_start || remaining_ == 0 || (next_ - first_) % kFragmentsPerWake == 0) wake_readers();
  }

  void wake_readers() {
    if (Gate(segment_.lobby().gate).wake()) add(figures_.wakes, 1);
  }

  Segment segment_;
  Figures& figures_;
  std::uint64_t next_ = 0;             // the fragment to publish next
  std::uint64_t consumed_by_all_ = 0;  // a lower bound, refreshed when the ring looks full
  std::uint32_t slowest_ = 0;          // a reader that was the last then
  std::uint32_t rejoins_ = 0;          // Lobby::rejoins, as of the last admit()
  std::uint32_t dropped_ = 0;          // readers that were dropped and not replaced
  std::vector<bool> is_dropped_;

  std::vector<std::uint32_t> admitted_;
  std::vector<std::uint64_t> entries_;  // the frame table
  std::vector<ConstPiece> pieces_;      // table and frames, none of them empty
  std::size_t piece_ = 0;               // what is being copied: pieces_[piece_] from offset_
  std::size_t offset_ = 0;
  std::uint64_t first_ = 0;      // the message's first fragment
  std::uint64_t remaining_ = 0;  // bytes of it still to publish
  std::uint64_t payload_ = 0;
  std::uint64_t descriptor_ = 0;
};

class RingReader {
 public:
  static constexpr std::uint64_t kVacant = Seat::pack(0, SeatState::vacant);

  // Takes the seat `index`, in which `found` was seen: a vacant one, or that of a reader which has
  // died (the caller knows) and whose place is taken. False if it is not like that any more.
  static bool attach(const Segment& segment, std::uint32_t index, const Identity& who,
                     std::uint64_t found = kVacant) {
    Member& member = segment.member(index);
    Lobby& lobby = segment.lobby();
    const auto seat = std::atomic_ref(member.seat);
    const bool is_first = found == kVacant;
    const auto taken = is_first ? SeatState::attached : SeatState::claimed;
    // seq_cst: pairs with attached_readers(), looked at between announce() and park(); acquire: of
    // two who want the seat one gets it, and what its last owner did is over. relaxed on failure:
    // nothing is read.
    if (!seat.compare_exchange_strong(found, Seat::pack(who.pid, taken), std::memory_order_seq_cst,
                                      std::memory_order_relaxed)) {
      return false;
    }
    put(member.identity.pid_namespace, who.pid_namespace);
    // release: pairs with peers(); who sees the start time sees the rest.
    std::atomic_ref(member.identity.start_time).store(who.start_time, std::memory_order_release);
    if (!is_first) {
      // What the dead one held in the arena is free now, even if we leave before we are attached.
      // relaxed: ordered by the store below.
      for (std::uint32_t extent = 0; extent < segment.geometry().extents; ++extent) {
        std::atomic_ref(segment.held(index, extent)).store(0, std::memory_order_relaxed);
      }
      // seq_cst: the writer does not wait for the dead one any longer, as after leave(). Over
      // before the writer can attach us, in RingWriter::admit().
      std::atomic_ref(member.consumed).store(kNever, std::memory_order_seq_cst);
      // release: who sees the state sees all this.
      seat.store(Seat::pack(who.pid, SeatState::rejoining), std::memory_order_release);
      // release: pairs with the acquire in RingWriter::begin().
      std::atomic_ref(lobby.rejoins).fetch_add(1, std::memory_order_release);
    }
    // relaxed: a hint that there is somebody to look at.
    std::atomic_ref(lobby.arrivals).fetch_add(1, std::memory_order_relaxed);
    Gate(segment.writer_seat().gate).wake();
    Gate(lobby.gate).wake();
    return true;
  }

  // The seat was taken by attach(), with the same `found`.
  RingReader(Segment segment, std::uint32_t index, const WaitPolicy& policy,
             std::uint64_t found = kVacant)
      : waiter(policy, segment.reader_figures(index)),
        segment_(segment),
        figures_(segment.reader_figures(index)),
        index_(index),
        next_(found == kVacant ? 0 : kNotAdmitted) {}

  Waiter waiter;

  // A message's start lies ready: begin() will not wait.
  bool has_message() const {
    return readable() && Descriptor::starts(peek(segment_.slot_of(next_).descriptor));
  }

  // Waits for the next message. After `ready`, frame_count() and its table tell what it holds.
  template <class Stop>
  Outcome begin(std::int64_t deadline_ns, Stop stop) {
    for (;;) {
      if (next_ == kNotAdmitted) {
        const Outcome outcome = wait_admitted(deadline_ns, stop);
        if (outcome != Outcome::ready) return outcome;
      }
      const Outcome outcome = wait_readable(deadline_ns, stop, Beat::yes);
      if (outcome != Outcome::ready) return outcome;
      const Slot& slot = segment_.slot_of(next_);
      const std::uint64_t word = peek(slot.descriptor);  // once: what is checked is what is used
      if (Descriptor::starts(word)) {
        waiter.arrived(slot.sent_ns);
        frames_ = Descriptor::frames(word);
        remaining_ = Descriptor::bytes(word);
        if (table_bytes(frames_) > remaining_) corrupted(word);
        one_slot_ = remaining_ <= capacity();
        first_ = next_;
        cursor_ = 0;
        return Outcome::ready;
      }
      release_slot();  // the rest of a message that was drop()ped
    }
  }

  std::uint64_t frame_count() const { return frames_; }

  // The message lies in one slot: fetch() will not wait.
  bool is_immediate() const { return one_slot_; }

  // The frame table, after it was fetched; or the one frame's size.
  void check_entries(std::span<const std::uint64_t> entries) const {
    std::uint64_t left = remaining_;
    for (const std::uint64_t entry : entries) {
      const std::uint64_t size = FrameEntry::inline_bytes(entry);
      if (size > left) corrupted(size);
      left -= size;
    }
    if (left != 0) corrupted(left);
  }
  std::uint64_t remaining() const { return remaining_; }

  // Sets where the next bytes of the message go.
  void into(std::span<const MutablePiece> pieces) {
    pieces_.assign(pieces.begin(), pieces.end());
    piece_ = 0;
    offset_ = 0;
  }

  // Fills the pieces set by into(). `abandoned`: the writer gave the message up, begin() the next.
  template <class Stop>
  Outcome fetch(std::int64_t deadline_ns, Stop stop) {
    while (piece_ != pieces_.size()) {
      const MutablePiece& piece = pieces_[piece_];
      if (piece.size == offset_) {
        ++piece_;
        offset_ = 0;
        continue;
      }
      if (cursor_ == capacity()) release_slot();
      if (cursor_ == 0 && next_ != first_) {
        const Outcome outcome = wait_readable(deadline_ns, stop, Beat::no);
        if (outcome != Outcome::ready) return outcome;
        waiter.done();
        if (Descriptor::starts(segment_.slot_of(next_).descriptor)) {
          add(figures_.abandoned, 1);
          return Outcome::abandoned;
        }
      }
      const std::size_t n = std::min(piece.size - offset_, capacity() - cursor_);
      std::memcpy(piece.data + offset_, segment_.slot_of(next_).payload() + cursor_, n);
      offset_ += n;
      cursor_ += n;
      remaining_ -= n;
    }
    return Outcome::ready;
  }

  // Gives the message's last slot back, after all of it was fetched.
  void end(std::uint64_t payload) {
    release_slot();
    add(figures_.messages, 1);
    add(figures_.bytes, payload);
  }

  // Gives up on the message that begin() found: the next begin() skips the rest of it.
  void drop() { release_slot(); }

  // Leaves for good: the writer no longer waits for this reader.
  void leave() {
    Member& member = segment_.member(index_);
    const auto seat_word = std::atomic_ref(member.seat);
    std::uint64_t word = seat();
    const std::uint64_t left = Seat::pack(Seat::pid(word), SeatState::left);
    // release: pairs with RingWriter::nobody_is_left(); before the store of `consumed`, so that a
    // writer which finds room because we left can tell why.
    std::atomic_ref(segment_.lobby().left).fetch_add(1, std::memory_order_release);
    // Not admitted yet: the writer waits for nothing from us, but may admit us in this moment.
    // release: as below. acquire on failure: pairs with RingWriter::admit().
    if (Seat::state(word) != SeatState::rejoining ||
        !seat_word.compare_exchange_strong(word, left, std::memory_order_release,
                                           std::memory_order_acquire)) {
      // seq_cst: as in release_slot(); our last copy is over before slots are reused. Before the
      // seat is left: who is killed in between has died, and holds nobody up.
      std::atomic_ref(member.consumed).store(kNever, std::memory_order_seq_cst);
      // release: pairs with peers(); who finds this process gone sees that it had left.
      seat_word.store(left, std::memory_order_release);
    }
    Gate(segment_.writer_seat().gate).wake();
  }

  bool writer_closed() const {
    // seq_cst: looked at between announce() and park(); pairs with RingWriter::close(). Its
    // acquire half makes all that was published before the close visible.
    return std::atomic_ref(segment_.lobby().closed).load(std::memory_order_seq_cst) != 0;
  }

  const Figures& figures() const { return figures_; }
  void begin_tensor_set() { add(figures_.tensor_sets, 1); }
  void count_arena(std::uint64_t frames) { add(figures_.arena_frames, frames); }

  template <class Stop>
  Outcome wait_ready(std::int64_t deadline_ns, Stop stop) {
    return wait_all_attached(segment_, waiter, Gate(segment_.lobby().gate), deadline_ns,
                             [&] { return writer_closed() || stop(); });
  }

  // Wakes this reader's own wait, from another thread (and, harmlessly, the other readers').
  void interrupt() { Gate(segment_.lobby().gate).wake(); }

 private:
  std::uint64_t capacity() const { return segment_.geometry().slot_capacity; }

  bool readable() const {
    // acquire: pairs with the store of seq in RingWriter::publish_fragment(). seq_cst because it
    // is also the waiter's second look between announce() and park() (see Gate); the same
    // instruction on x86-64 and, but for one bit, on ARM64.
    return std::atomic_ref(segment_.slot_of(next_).seq).load(std::memory_order_seq_cst) ==
           next_ + 1;
  }

  // No fragment has this number, and no slot the next one.
  static constexpr std::uint64_t kNotAdmitted = kNever - 1;

  std::uint64_t seat() const {
    // seq_cst: acquire pairs with RingWriter::admit(); and looked at between announce() and park().
    return std::atomic_ref(segment_.member(index_).seat).load(std::memory_order_seq_cst);
  }

  // Waits until the writer has attached us in the place of a dead reader, at its next message.
  template <class Stop>
  Outcome wait_admitted(std::int64_t deadline_ns, Stop stop) {
    Member& member = segment_.member(index_);
    const auto admitted = [this] { return Seat::state(seat()) == SeatState::attached; };
    if (!admitted()) {
      const Outcome outcome =
          waiter.wait(Gate(segment_.lobby().gate), deadline_ns, member.seat, Beat::no, admitted,
                      [&] { return writer_closed() || stop(); });
      if (outcome != Outcome::ready) return outcome;
      waiter.done();
    }
    next_ = peek(member.consumed);
    return Outcome::ready;
  }

  template <class Stop>
  Outcome wait_readable(std::int64_t deadline_ns, Stop stop, Beat beat) {
    if (readable()) return Outcome::ready;
    check_lap();
    return waiter.wait(
        Gate(segment_.lobby().gate), deadline_ns, segment_.slot_of(next_).seq, beat,
        [this] { return readable(); }, [&] { return writer_closed() || stop(); });
  }

  // While a fragment is awaited, its slot holds the one of a lap before, or none yet. A wait for
  // anything else would be one for ever.
  void check_lap() const {
    const std::uint64_t seq = peek(segment_.slot_of(next_).seq);
    const std::uint64_t slots = segment_.geometry().slots;
    const std::uint64_t before = next_ < slots ? 0 : next_ + 1 - slots;
    if (seq != before && seq != next_ + 1) {  // it may have come just now
      misfit("a slot's number", seq, "the one awaited", next_ + 1);
    }
  }

  void release_slot() {
    ++next_;
    cursor_ = 0;
    add(figures_.fragments, 1);
    // seq_cst: release pairs with the writer's load before it reuses the slot; and against a lost
    // wake-up of the writer, store consumed / load wake_at here faces store wake_at / load
    // consumed in RingWriter::wait_for_credit().
    std::atomic_ref(segment_.member(index_).consumed).store(next_, std::memory_order_seq_cst);
    WriterSeat& seat = segment_.writer_seat();
    if (std::atomic_ref(seat.wake_at).load(std::memory_order_seq_cst) == next_) {
      if (Gate(seat.gate).wake()) add(figures_.wakes, 1);
    }
  }

  [[noreturn, gnu::cold, gnu::noinline]] void corrupted(std::uint64_t value) const {
    throw SegmentCorrupted("fragment " + std::to_string(next_) + " holds " + std::to_string(value) +
                           ", which fits no message of " + std::to_string(frames_) +
                           " frames and " + std::to_string(remaining_) + " bytes");
  }

  Segment segment_;
  Figures& figures_;
  std::uint32_t index_;
  std::uint64_t next_;        // the fragment to consume next
  std::uint64_t cursor_ = 0;  // bytes of its payload already copied out

  std::uint64_t first_ = 0;      // the message's first fragment
  std::uint64_t frames_ = 0;     // and its frames
  std::uint64_t remaining_ = 0;  // bytes of it still to fetch
  bool one_slot_ = false;
  std::vector<MutablePiece> pieces_;
  std::size_t piece_ = 0;
  std::size_t offset_ = 0;
};

}  // namespace shmcast
