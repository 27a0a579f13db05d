// Python bindings of the ring (nanobind). What is Python about the ring is here: buffers, the GIL,
// signals, fork, and that an endpoint is used by one thread at a time. _core.pyi documents it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>

#include "arena/arena.hpp"
#include "arena/wide_copy.hpp"
#include "bindings/arena_objects.hpp"
#include "pickle/plain.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace shmcast {
namespace {

struct TimedOut : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct EndpointClosed : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct ConcurrentUse : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Forked : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct BadTimeout : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct SeatTaken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::int64_t timeout_ns(nb::handle timeout) {
  if (timeout.is_none()) return kForever;
  const double seconds = PyFloat_AsDouble(timeout.ptr());  // -1 where it is no number
  if (!(seconds >= 0)) {
    PyErr_Clear();
    throw BadTimeout("timeout must be None or a number of seconds >= 0");
  }
  return seconds < 9e9 ? static_cast<std::int64_t>(seconds * 1e9) : kForever;
}

nb::dict as_dict(const Figures& now) {
  nb::dict figures;
  figures["messages"] = peek(now.messages);
  figures["payload_bytes"] = peek(now.bytes);
  figures["fragments"] = peek(now.fragments);
  figures["abandoned"] = peek(now.abandoned);
  figures["spins"] = peek(now.spins);
  figures["parks"] = peek(now.parks);
  figures["wakeups"] = peek(now.wakeups);
  figures["wakes"] = peek(now.wakes);
  figures["preemptions"] = peek(now.preemptions);
  figures["spun_seconds"] = static_cast<double>(peek(now.spun_ns)) / 1e9;
  figures["parked_seconds"] = static_cast<double>(peek(now.parked_ns)) / 1e9;
  figures["gap_seconds"] = static_cast<double>(peek(now.gap_ns)) / 1e9;
  figures["tensor_sets"] = peek(now.tensor_sets);
  figures["arena_frames"] = peek(now.arena_frames);
  figures["arena_full"] = peek(now.arena_full);
  return figures;
}

const char* name_of(SeatState state) {
  switch (state) {
    case SeatState::vacant: return "vacant";
    case SeatState::attached: return "attached";
    case SeatState::left: return "left";
    case SeatState::dropped: return "dropped";
    case SeatState::claimed: return "claimed";
    case SeatState::rejoining: return "rejoining";
  }
  throw SegmentCorrupted("a seat's state is " + std::to_string(static_cast<unsigned>(state)));
}

// Who is told of an endpoint's peers while it waits; the protocol `Watch` in _core.pyi.
struct Watch {
  // How often it looks whether somebody has come, and how often in any case.
  static constexpr std::int64_t kLookNs = 10 * kMillisecond;
  static constexpr std::int64_t kRoundNs = 1'000 * kMillisecond;

  explicit Watch(nb::object told)
      : callee(std::move(told)),
        patience_ns(callee.is_none() ? kForever : timeout_ns(callee.attr("patience"))) {}

  nb::object callee;
  std::int64_t patience_ns;
  std::int64_t look_ns = 0;  // the next look is due
  std::int64_t round_ns = 0;
  std::uint32_t arrivals = 0;  // as of the last round
};

// What the two endpoints share: the mapping's buffer, and who may use it now.
class Endpoint {
 public:
  Endpoint(nb::handle memory, nb::object is_crowded, nb::object watch)
      : is_crowded_(std::move(is_crowded)), watch_(std::move(watch)) {
    if (PyObject_GetBuffer(memory.ptr(), &view_, PyBUF_WRITABLE) != 0) throw nb::python_error();
  }
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;
  virtual ~Endpoint() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }

  // Figures for observers: any thread, any time, also after close().
  std::uint32_t attached() const { return attached_readers(segment()); }
  std::vector<std::uint64_t> tensor_sets() const { return shmcast::tensor_sets(segment()); }
  nb::dict figures() const { return as_dict(own_figures()); }
  std::vector<Peer> look_at_peers() const { return peers(segment()); }

  // Idempotent. A call that waits in another thread ends with EndpointClosed and tells the peers.
  void close() {
    if (is_forked() || closing_.exchange(true, std::memory_order_seq_cst)) return;
    interrupt();
    leave_if_idle();
  }

  void wait_ready(nb::handle timeout) {
    const Use use(*this);
    wait(timeout_ns(timeout), [this](std::int64_t deadline) { return wait_attached(deadline); });
  }

  void begin_tensor_set() {
    const Use use(*this);
    count_tensor_set();
  }

  // A peer has died: from another thread. The wait, or the next one, looks into it.
  void alarm() {
    // seq_cst: a waiter looks at it between announce() and park(), see Gate.
    alarmed_.store(true, std::memory_order_seq_cst);
    interrupt();
  }

 protected:
  // One thread's turn with the endpoint.
  //
  // Its flags are seq_cst, because closer and user each write one and read the other's: the closer
  // sets `closing` and then finds `busy`, or the user clears `busy` and then finds `closing`. One
  // of them must see the other, and be the one to leave().
  class Use {
   public:
    explicit Use(Endpoint& endpoint) : endpoint_(endpoint) {
      if (endpoint.is_forked()) throw Forked("created before a fork");
      if (endpoint.is_closing()) throw EndpointClosed("closed");
      if (endpoint.busy_.exchange(true, std::memory_order_seq_cst)) {
        throw ConcurrentUse("in use by another thread");
      }
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use() {
      endpoint_.busy_.store(false, std::memory_order_seq_cst);
      if (endpoint_.is_closing()) endpoint_.leave_if_idle();
    }

   private:
    Endpoint& endpoint_;
  };

  // Runs step(deadline_ns) without the GIL until it is through. In between, with it: signals, a
  // review of how crowded it is here, the rehearsal while spinning, and a look after the peers.
  template <class Step>
  Outcome wait(std::int64_t timeout, Step step) {
    const std::int64_t deadline = deadline_after(timeout);
    Vigil vigil{monotonic_ns(), watch_.patience_ns};
    for (;;) {
      if (waiter().review_is_due()) review();
      Outcome outcome;
      {
        nb::gil_scoped_release release;
        outcome = step(deadline);
      }
      if (outcome == Outcome::interrupted) {
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
        if (waiter().is_spinning()) rehearse();
      }
      if (outcome != Outcome::ready && outcome != Outcome::abandoned) {
        look_after_peers(vigil);
        // relaxed: stop() has looked in earnest.
        if (alarmed_.load(std::memory_order_relaxed) && !is_closing()) {
          if (const auto last = heed_alarm(step)) {
            outcome = *last;
          } else if (outcome == Outcome::closed) {
            outcome = Outcome::interrupted;  // by the alarm
          }
        }
      }
      switch (outcome) {
        case Outcome::interrupted: break;
        case Outcome::timed_out: throw TimedOut("timed out");
        case Outcome::closed: throw EndpointClosed("closed");
        default:
          if (vigil.is_told) watch_.callee.attr("went_on")(vigil.seconds(monotonic_ns()));
          return outcome;
      }
    }
  }

  // What ends a step early. seq_cst: see is_closing(); pairs with alarm().
  auto stop() const {
    return [this] {
      return is_closing() || (alarmed_.load(std::memory_order_seq_cst) && !is_heeding_);
    };
  }
  nb::object memory_owner() const { return nb::borrow(nb::handle(view_.obj)); }
  // The watch is asked which readers' processes have ended, whatever they did before.
  nb::object ended_readers() {
    if (watch_.callee.is_none()) return nb::list();
    return watch_.callee.attr("ended")(peers(segment()));
  }
  std::span<std::byte> memory() const {
    return {static_cast<std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  // A wait that may last too long.
  struct Vigil {
    std::int64_t began_ns;
    std::int64_t patience_ns;
    bool is_told = false;
    double seconds(std::int64_t now) const { return static_cast<double>(now - began_ns) / 1e9; }
  };

  // Whoever has come is watched from now on, and a wait that lasts long is told.
  void look_after_peers(Vigil& vigil) {
    const std::int64_t now = monotonic_ns();
    if (now < watch_.look_ns || watch_.callee.is_none()) return;
    watch_.look_ns = now + Watch::kLookNs;
    const std::uint32_t arrivals = arrivals_so_far(segment());
    if (arrivals != watch_.arrivals || now >= watch_.round_ns) {
      watch_.arrivals = arrivals;
      watch_.round_ns = now + Watch::kRoundNs;
      // relaxed: for this thread.
      if (nb::cast<bool>(watch_.callee.attr("meet")(peers(segment())))) {
        alarmed_.store(true, std::memory_order_relaxed);
      }
    }
    if (now - vigil.began_ns >= vigil.patience_ns) {
      vigil.patience_ns = timeout_ns(
          watch_.callee.attr("tell_slow")(vigil.seconds(now), !vigil.is_told, peers(segment())));
      vigil.is_told = true;
    }
  }

  // While the alarm is on, and a step is to go on in spite of it.
  class Heeding {
   public:
    explicit Heeding(bool& is_heeding) : is_heeding_(is_heeding) { is_heeding_ = true; }
    Heeding(const Heeding&) = delete;
    Heeding& operator=(const Heeding&) = delete;
    ~Heeding() { is_heeding_ = false; }

   private:
    bool& is_heeding_;
  };

  // A peer has died: what it did before comes first, then the watch judges. Returns how the step
  // ended if it did; the alarm then goes on for the next wait, as after a judgement that throws.
  template <class Step>
  std::optional<Outcome> heed_alarm(Step step) {
    // What the dead have stored was there before anybody could know of their death.
    const Outcome last = [&] {
      const Heeding heeding(is_heeding_);
      return step(0);
    }();
    if (last != Outcome::timed_out) return last;
    // relaxed: find_dead() looks at all, so that an alarm which is overwritten here is not lost.
    alarmed_.store(false, std::memory_order_relaxed);
    try {
      // First who is dead, then the seats: who left in order before it ended has not died.
      watch_.callee.attr("find_dead")();
      const std::vector<Peer> all = peers(segment());
      for (const nb::handle index : watch_.callee.attr("judge")(all)) {
        const Peer& dead = all.at(nb::cast<std::size_t>(index));
        drop(dead.index, dead.seat);
      }
    } catch (...) {
      alarmed_.store(true, std::memory_order_relaxed);
      throw;
    }
    return std::nullopt;
  }

  void review() { waiter().set_crowded(nb::cast<bool>(is_crowded_(attached()))); }
  virtual const Segment& segment() const = 0;
  virtual void drop(std::uint32_t, std::uint64_t) {}
  virtual void rehearse() {}  // called now and then while this endpoint spins
  virtual Waiter& waiter() = 0;
  virtual const Figures& own_figures() const = 0;
  virtual void count_tensor_set() = 0;
  virtual Outcome wait_attached(std::int64_t deadline_ns) = 0;
  virtual void interrupt() = 0;  // ends this endpoint's wait in another thread
  virtual void leave() = 0;      // tells the peers, in shared memory

  bool is_forked() const { return generation_ != fork_generation.load(std::memory_order_relaxed); }
  // seq_cst: see Use; and a waiter looks at it between announce() and park(), see Gate.
  bool is_closing() const { return closing_.load(std::memory_order_seq_cst); }
  void leave_if_idle() {
    // seq_cst: see Use. If somebody is inside, it is they who will leave(); busy for ever after.
    if (!busy_.exchange(true, std::memory_order_seq_cst)) leave();
  }

  Py_buffer view_{};  // held until the end, so that observers need no turn
  nb::object is_crowded_;
  Watch watch_;
  const unsigned generation_ = fork_generation.load(std::memory_order_relaxed);
  std::atomic<bool> busy_{false};
  std::atomic<bool> closing_{false};
  std::atomic<bool> alarmed_{false};
  bool is_heeding_ = false;  // see Heeding
};

Segment::Nonce nonce_of(const nb::bytes& nonce) {
  if (nonce.size() != kNonceBytes) throw nb::value_error("a nonce has 16 bytes");
  return Segment::Nonce(static_cast<const std::byte*>(nonce.data()), kNonceBytes);
}

class Writer final : public Endpoint {
 public:
  Writer(nb::handle memory, const Geometry& geometry, const nb::bytes& nonce,
         const WaitPolicy& policy, nb::object is_crowded, nb::object watch, const Identity& who,
         nb::object arena)
      : Endpoint(memory, std::move(is_crowded), std::move(watch)),
        segment_(Segment::format(checked(geometry), geometry, nonce_of(nonce), who)),
        ring_(segment_, policy),
        mapping_(std::move(arena)) {
    if (mapping_.is_none()) return;
    if (geometry.extents != Arena::kExtents) throw nb::value_error("an arena has EXTENTS extents");
    arena_ = std::make_shared<Arena>(nb::cast<ArenaMapping&>(mapping_), segment_);
  }
  ~Writer() override { close(); }

  void publish(nb::handle frames, nb::handle timeout) {
    const Use use(*this);
    const std::int64_t patience = timeout_ns(timeout);
    const Buffers buffers(*this, frames);
    const Settling settling(*this);
    if (arena_ != nullptr && pieces_.size() > 1) put_in_arena();
    ring_.begin(pieces_, entries_);
    for (const std::uint32_t reader : ring_.admitted()) {
      if (arena_ != nullptr) arena_->welcome(reader);
    }
    if (ring_.is_immediate()) {
      if (ring_.advance(0, stop()) != Outcome::ready) throw EndpointClosed("closed");
    } else {
      try {
        wait(patience, [this](std::int64_t deadline) { return ring_.advance(deadline, stop()); });
      } catch (...) {
        ring_.abandon();
        settle();  // it may be out all the same, if what was thrown came after the wait
        throw;
      }
    }
    settle();
  }

  // Memory of the arena for the caller to fill; None: no room.
  nb::object loan(std::size_t size) {
    const Use use(*this);
    const auto id = arena_ == nullptr ? std::nullopt : allocate(size);
    if (!id) {
      ring_.count_arena(0, 1);
      return nb::none();
    }
    return nb::cast(new Loan(arena_, mapping_, *id, size), nb::rv_policy::take_ownership);
  }

  // Whether every reader is through with all messages that had this extent. `look`: find out who
  // has died, too.
  bool is_done(std::uint32_t extent, bool look) {
    const Use use(*this);
    if (arena_ == nullptr || extent >= Arena::kExtents) throw nb::index_error("no such extent");
    if (arena_->is_done(extent)) return true;
    return look && bury_ended() && arena_->is_done(extent);
  }

  // The extents that the last message speaks of.
  const std::vector<std::uint32_t>& sent() const { return sent_; }

  std::uint64_t arena_reserved() const {
    return mapping_.is_none() ? 0 : nb::cast<ArenaMapping&>(mapping_).reserved();
  }

  void fetch_ahead() {
    const Use use(*this);
    ring_.fetch_ahead();
  }

  std::vector<std::uint64_t> lags() const { return ring_.lags(); }
  nb::list reader_figures() const {
    nb::list readers;
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      readers.append(as_dict(segment_.reader_figures(i)));
    }
    return readers;
  }

 private:
  // The frames' memory, held for the time of one publish().
  class Buffers {
   public:
    Buffers(Writer& writer, nb::handle frames) : writer_(writer) {
      const nb::object items =
          nb::steal(PySequence_Fast(frames.ptr(), "frames must be a sequence of buffers"));
      if (!items.is_valid()) throw nb::python_error();
      const Py_ssize_t count = PySequence_Fast_GET_SIZE(items.ptr());
      for (Py_ssize_t i = 0; i < count; ++i) {
        Py_buffer view;
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(items.ptr(), i), &view, PyBUF_SIMPLE) !=
            0) {
          release();
          throw nb::python_error();
        }
        writer.views_.push_back(view);
        writer.pieces_.push_back(
            {static_cast<const std::byte*>(view.buf), static_cast<std::size_t>(view.len)});
      }
    }
    Buffers(const Buffers&) = delete;
    Buffers& operator=(const Buffers&) = delete;
    ~Buffers() { release(); }

   private:
    void release() {
      for (Py_buffer& view : writer_.views_) PyBuffer_Release(&view);
      writer_.views_.clear();
      writer_.pieces_.clear();
    }
    Writer& writer_;
  };

  // The extents that were filled for one publish(): nobody's but the readers' once it is over.
  class Settling {
   public:
    explicit Settling(Writer& writer) : writer_(writer) {
      writer_.entries_.clear();
      writer_.sent_.clear();
      writer_.filled_.clear();
    }
    Settling(const Settling&) = delete;
    Settling& operator=(const Settling&) = delete;
    ~Settling() {
      for (const std::uint32_t id : writer_.filled_) writer_.arena_->give_back(id);
    }

   private:
    Writer& writer_;
  };

  // No extent of this message is free before every reader has met the message's end.
  void settle() {
    for (const std::uint32_t id : sent_) arena_->sent(id, ring_.published());
  }

  // Frames of so many bytes are copied to the arena: once, for whatever number of readers.
  static constexpr std::size_t kArenaFrame = 256 * 1024;
  static constexpr std::int64_t kBuryNs = 100 * kMillisecond;

  // Of frames in the arena, and of large ones that find room there, the message has the place only.
  void put_in_arena() {
    offsets_.resize(pieces_.size());
    std::uint64_t full = 0;
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      ConstPiece& piece = pieces_[i];
      entries_.push_back(piece.size);
      auto id = arena_->find(piece.data, piece.size);
      if (id) {
        offsets_[i] = arena_->offset(piece.data);
      } else if (piece.size >= kArenaFrame) {
        id = allocate(piece.size);
        if (!id) {
          ++full;
          continue;
        }
        filled_.push_back(*id);
        std::byte* const to = arena_->data(*id);
        {
          const nb::gil_scoped_release release;
          wide_copy(to, piece.data, piece.size);
        }
        offsets_[i] = arena_->offset(to);
      } else {
        continue;
      }
      entries_[i] = FrameEntry::in_arena(*id, piece.size);
      piece = {reinterpret_cast<const std::byte*>(&offsets_[i]), sizeof(ArenaOffset)};
      sent_.push_back(*id);
    }
    if (sent_.empty()) entries_.clear();
    ring_.count_arena(sent_.size(), full);
  }

  std::optional<std::uint32_t> allocate(std::size_t size) {
    const auto reserve = [this](std::uint64_t bytes) {
      auto& mapping = nb::cast<ArenaMapping&>(mapping_);
      const nb::gil_scoped_release release;
      return mapping.reserve(bytes);
    };
    auto id = arena_->allocate(size, reserve);
    if (!id && bury_ended()) id = arena_->allocate(size, reserve);
    return id;
  }

  // True if a look was taken who of the readers has ended, and frees what it held.
  bool bury_ended() {
    const std::int64_t now = monotonic_ns();
    if (now < bury_ns_) return false;
    bury_ns_ = now + kBuryNs;
    for (const nb::handle reader : ended_readers()) {
      arena_->bury(nb::cast<std::uint32_t>(reader));
    }
    return true;
  }

  std::span<std::byte> checked(const Geometry& geometry) const {
    if (geometry.segment_bytes() > memory().size()) {
      throw nb::value_error("the memory is smaller than the geometry asks for");
    }
    return memory();
  }
  Waiter& waiter() override { return ring_.waiter; }
  const Figures& own_figures() const override { return ring_.figures(); }
  void count_tensor_set() override { ring_.begin_tensor_set(); }
  Outcome wait_attached(std::int64_t deadline_ns) override {
    return ring_.wait_ready(deadline_ns, stop());
  }
  void interrupt() override { ring_.interrupt(); }
  void leave() override { ring_.close(); }
  const Segment& segment() const override { return segment_; }
  void drop(std::uint32_t index, std::uint64_t seat) override {
    ring_.drop(index, seat);
    if (arena_ != nullptr) arena_->bury(index);
  }

  Segment segment_;
  RingWriter ring_;
  nb::object mapping_;
  std::shared_ptr<Arena> arena_;  // loans may outlive this writer; null: there is none
  std::int64_t bury_ns_ = 0;
  std::vector<Py_buffer> views_;
  std::vector<ConstPiece> pieces_;
  std::vector<std::uint64_t> entries_;  // the frame table; empty: no frame is in the arena
  std::vector<ArenaOffset> offsets_;    // of pieces_ that are in the arena
  std::vector<std::uint32_t> sent_;     // their extents
  std::vector<std::uint32_t> filled_;   // those of them that were allocated for them
};

nb::object owned(PyObject* fresh) {
  if (fresh == nullptr) throw nb::python_error();
  return nb::steal(fresh);
}

std::byte* bytes_of(const nb::object& frame) {
  return reinterpret_cast<std::byte*>(PyByteArray_AS_STRING(frame.ptr()));
}

nb::object fresh_frame(std::size_t size) {
  // In two steps: when made with a size that there is no memory for, CPython 3.11 reports a
  // half-made bytearray on stderr.
  nb::object frame = owned(PyByteArray_FromStringAndSize(nullptr, 0));
  if (PyByteArray_Resize(frame.ptr(), static_cast<Py_ssize_t>(size)) != 0) {
    throw nb::python_error();
  }
  use_huge_pages(bytes_of(frame), size);
  return frame;
}

// Large frames that were received lately. When whatever was made of one is dropped, it is used
// again: malloc would give its memory back to the system, and page faults cost more than the copy
// does.
class FramePool {
 public:
  // A message has come.
  void tick() {
    ++now_;
    if (!kept_.empty() && now_ - kept_.front().used > kMessages) drop_oldest();
  }

  nb::object take(std::size_t size) {
    const auto found = std::find_if(kept_.begin(), kept_.end(),
                                    [size](const Kept& kept) { return kept.is_free(size); });
    if (found != kept_.end()) {
      found->used = now_;
      std::rotate(found, found + 1, kept_.end());
      return kept_.back().frame;
    }
    nb::object frame = fresh_frame(size);
    kept_.push_back({frame, size, now_});
    bytes_ += size;
    while (bytes_ > kMostBytes || kept_.size() > kMostFrames) drop_oldest();
    return frame;
  }

 private:
  static constexpr std::uint64_t kMessages = 100;
  static constexpr std::size_t kMostBytes = 512 * 1024 * 1024;
  static constexpr std::size_t kMostFrames = 16;

  struct Kept {
    nb::object frame;
    std::size_t size;
    std::uint64_t used;

    bool is_free(std::size_t wanted) const {
#ifdef Py_GIL_DISABLED
      return false;  // a count of 1 says less there
#else
      // (Its owner may have changed its size.)
      return size == wanted && Py_REFCNT(frame.ptr()) == 1 &&
             PyByteArray_GET_SIZE(frame.ptr()) == static_cast<Py_ssize_t>(size);
#endif
    }
  };

  void drop_oldest() {
    bytes_ -= kept_.front().size;
    kept_.erase(kept_.begin());
  }

  std::vector<Kept> kept_;  // what was used last comes last
  std::size_t bytes_ = 0;
  std::uint64_t now_ = 0;
};

class Reader final : public Endpoint {
 public:
  Reader(nb::handle memory, const Geometry& geometry, const nb::bytes& nonce, std::uint32_t index,
         const WaitPolicy& policy, nb::object is_crowded, nb::object rehearsal, nb::object watch,
         const Identity& who, std::uint64_t found, nb::object arena)
      : Endpoint(memory, std::move(is_crowded), std::move(watch)),
        rehearsal_(std::move(rehearsal)),
        mapping_(std::move(arena)),
        index_(index),
        segment_(Segment::attach(this->memory(), geometry, nonce_of(nonce))),
        ring_(seated(segment_, index, who, found), index, policy, found) {}
  ~Reader() override { close(); }

  // A call that ends in TimedOut or a signal keeps its place: the next one goes on.
  nb::object consume(nb::handle timeout, bool copy) {
    const Use use(*this);
    const std::int64_t patience = timeout_ns(timeout);
    for (;;) {
      switch (phase_) {
        case Phase::idle:
          // (begin() may find less than has_message() did, in a segment that others write to.)
          if (!ring_.has_message() || ring_.begin(0, stop()) != Outcome::ready) {
            wait(patience, [this](std::int64_t deadline) { return ring_.begin(deadline, stop()); });
          }
          begin_table();
          break;
        case Phase::table:
          if (fetch(patience)) go_on_with_table();
          break;
        case Phase::frames:
          if (fetch(patience)) return end(copy);
          break;
      }
    }
  }

 private:
  enum class Phase : std::uint8_t { idle, table, frames };
  static constexpr std::size_t kTablePart = 4096;  // sizes
  static constexpr std::size_t kPooledFrame = 256 * 1024;

  static const Segment& seated(const Segment& segment, std::uint32_t index, const Identity& who,
                               std::uint64_t found) {
    if (index >= segment.geometry().readers) throw nb::index_error("no such reader index");
    if (!RingReader::attach(segment, index, who, found)) {
      // relaxed: for the message only.
      const std::uint64_t seat = peek(segment.member(index).seat);
      const bool gone = Seat::state(seat) == SeatState::left;
      throw SeatTaken((gone ? "was taken, and left, by process " : "is taken by process ") +
                      std::to_string(Seat::pid(seat)));
    }
    return segment;
  }

  // True when all pieces are filled; false when the message was abandoned.
  bool fetch(std::int64_t patience) {
    Outcome outcome;
    if (ring_.is_immediate()) {
      outcome = ring_.fetch(0, stop());
    } else {
      outcome =
          wait(patience, [this](std::int64_t deadline) { return ring_.fetch(deadline, stop()); });
    }
    if (outcome == Outcome::ready) return true;
    reset();
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

  // In parts: a table takes memory as it arrives, not as the descriptor promises.
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
    pool_.tick();
    payload_ = payload_bytes(entries_);
    frames_ = owned(PyList_New(static_cast<Py_ssize_t>(entries_.size())));
    pieces_.clear();
    const auto in_arena = static_cast<std::size_t>(
        std::count_if(entries_.begin(), entries_.end(), FrameEntry::is_in_arena));
    offsets_.resize(in_arena);
    holds_.reserve(in_arena);
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (FrameEntry::is_in_arena(entries_[i])) {
        // Counted as held before the message's last fragment is given back.
        pieces_.push_back(
            {reinterpret_cast<std::byte*>(&offsets_[holds_.size()]), sizeof(ArenaOffset)});
        holds_.emplace_back(memory_owner(),
                            segment_.held(index_, extent_of(FrameEntry::extent(entries_[i]))));
      } else {
        nb::object frame = own_frame(entries_[i]);
        pieces_.push_back({bytes_of(frame), entries_[i]});
        set_frame(i, std::move(frame));
      }
    }
    ring_.into(pieces_);
    phase_ = Phase::frames;
  }

  // Memory for a frame, uninitialised.
  nb::object own_frame(std::size_t size) {
    return size < kPooledFrame ? fresh_frame(size) : pool_.take(size);
  }

  void set_frame(std::size_t i, nb::object frame) {
    PyList_SET_ITEM(frames_.ptr(), static_cast<Py_ssize_t>(i), frame.release().ptr());
  }

  std::uint32_t extent_of(std::uint32_t extent) const {
    const std::uint32_t extents = segment_.geometry().extents;
    if (extent >= extents) misfit("a frame's extent", extent, "the arena's count", extents);
    return extent;
  }

  // After the fetch: puts the frames that are in the arena into their places in the list.
  void make_views(bool copy) {
    const Mapping& mapping = nb::cast<ArenaMapping&>(mapping_);
    const std::uint64_t bound = mapping.bytes().size();
    std::size_t next = 0;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (!FrameEntry::is_in_arena(entries_[i])) continue;
      const ArenaOffset offset = offsets_[next];
      const std::uint64_t size = FrameEntry::bytes(entries_[i]);
      if (offset > bound || size > bound - offset) {
        misfit("a frame's end in the arena", offset + size, "the arena's size", bound);
      }
      if (copy) {
        nb::object frame = own_frame(size);
        {
          const nb::gil_scoped_release release;
          std::memcpy(bytes_of(frame), mapping.bytes().data() + offset, size);
        }
        set_frame(i, std::move(frame));
      } else {
        const nb::object lease =
            nb::cast(Lease(std::move(holds_[next]), mapping_, offset, size), nb::rv_policy::move);
        set_frame(i, owned(PyMemoryView_FromObject(lease.ptr())));
      }
      ++next;
    }
    ring_.count_arena(next);
  }

  // A message that there is no memory for is lost to this reader; the next one is not.
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
    // (A message that is consumed and can't be had is lost to this reader, as in or_drop().)
    const Resetting resetting(*this);
    ring_.end(payload_);
    if (!holds_.empty()) make_views(copy);
    return std::move(frames_);
  }

  class Resetting {
   public:
    explicit Resetting(Reader& reader) : reader_(reader) {}
    Resetting(const Resetting&) = delete;
    Resetting& operator=(const Resetting&) = delete;
    ~Resetting() { reader_.reset(); }

   private:
    Reader& reader_;
  };

  void reset() {
    frames_.reset();
    holds_.clear();
    phase_ = Phase::idle;
  }

  Waiter& waiter() override { return ring_.waiter; }
  const Figures& own_figures() const override { return ring_.figures(); }
  void count_tensor_set() override { ring_.begin_tensor_set(); }
  void rehearse() override {
    if (!rehearsal_.is_none()) rehearsal_();
  }
  Outcome wait_attached(std::int64_t deadline_ns) override {
    return ring_.wait_ready(deadline_ns, stop());
  }
  void interrupt() override { ring_.interrupt(); }
  void leave() override {
    reset();  // what it holds of a message that it will not have
    ring_.leave();
  }
  const Segment& segment() const override { return segment_; }

  nb::object rehearsal_;
  nb::object mapping_;
  std::uint32_t index_;
  Segment segment_;
  RingReader ring_;
  Phase phase_ = Phase::idle;
  std::vector<std::uint64_t> entries_;  // the frame table
  std::vector<MutablePiece> pieces_;
  std::vector<ArenaOffset> offsets_;  // of the frames that are in the arena, in their order
  std::vector<Hold> holds_;           // the same; or what of them is no lease yet
  nb::object frames_;                 // the list that consume() returns, while it is filled
  FramePool pool_;
  std::uint64_t payload_ = 0;
};

// The members of a segment that this process has no endpoint in.
std::vector<Peer> peers_in(nb::handle memory, const Geometry& geometry, const nb::bytes& nonce) {
  Py_buffer view;
  if (PyObject_GetBuffer(memory.ptr(), &view, PyBUF_WRITABLE) != 0) throw nb::python_error();
  const std::unique_ptr<Py_buffer, decltype(&PyBuffer_Release)> held(&view, &PyBuffer_Release);
  const std::span<std::byte> bytes(static_cast<std::byte*>(view.buf),
                                   static_cast<std::size_t>(view.len));
  return peers(Segment::attach(bytes, geometry, nonce_of(nonce)));
}

}  // namespace
}  // namespace shmcast

NB_MODULE(_core, m) {
  using namespace shmcast;
  count_forks();
  // Arrays over the arena that a program still has when the interpreter exits are no leak.
  nb::set_leak_warnings(false);

  nb::exception<TimedOut>(m, "TimedOut");
  nb::exception<EndpointClosed>(m, "EndpointClosed");
  nb::exception<ConcurrentUse>(m, "ConcurrentUse");
  nb::exception<Forked>(m, "Forked");
  nb::exception<BadTimeout>(m, "BadTimeout");
  nb::exception<SeatTaken>(m, "SeatTaken");
  nb::exception<LayoutMismatch>(m, "LayoutMismatch");
  nb::exception<SegmentCorrupted>(m, "SegmentCorrupted");
  nb::exception<MessageTooLarge>(m, "MessageTooLarge");
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::system_error& error) {
      errno = error.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
    }
  });

  nb::class_<Geometry>(m, "Geometry")
      .def(nb::init<std::uint32_t, std::uint32_t, std::uint64_t, std::uint32_t>(), "readers"_a,
           "slots"_a, "slot_capacity"_a, "extents"_a)
      .def_prop_ro("segment_bytes", &Geometry::segment_bytes);

  using Mode = WaitPolicy::Mode;
  nb::class_<WaitPolicy>(m, "WaitPolicy")
      .def_static("spin", [] { return WaitPolicy{Mode::spin, kForever}; })
      .def_static("park", [] { return WaitPolicy{Mode::park, 0}; })
      .def_static(
          "adaptive", [](std::int64_t ns) { return WaitPolicy{Mode::adaptive, ns}; },
          "max_spin_ns"_a);
  m.def("idle_hint", [] { return best_hint().name; });
  nb::class_<View>(m, "View", nb::type_slots(buffer_slots<View>()));
  // Tensors offer no buffer: torch's own way to one, by way of numpy, takes ten times as long.
  m.def(
      "view",
      [](std::uintptr_t address, std::size_t nbytes, nb::handle owner) {
        return View(reinterpret_cast<std::byte*>(address), nbytes, nb::borrow(owner));
      },
      "address"_a, "nbytes"_a, "owner"_a);
  m.def(
      "copy",
      [](std::uintptr_t address, std::size_t nbytes) {
        return nb::bytearray(reinterpret_cast<const char*>(address), nbytes);
      },
      "address"_a, "nbytes"_a);

  m.def(
      "pickle_plain",
      [](nb::handle object) {
        PyObject* const pickle = pickle_plain(object.ptr());
        if (pickle == nullptr && PyErr_Occurred() != nullptr) throw nb::python_error();
        return pickle == nullptr ? nb::none() : nb::steal(pickle);
      },
      "obj"_a.none());
  m.def(
      "unpickle_plain",
      [](nb::handle frame, nb::handle otherwise) {
        return owned(unpickle_plain(frame.ptr(), otherwise.ptr()));
      },
      "frame"_a, "otherwise"_a);

  m.attr("EXTENTS") = Arena::kExtents;
  nb::class_<Claim>(m, "Claim");
  nb::class_<ArenaMapping>(m, "Mapping", nb::is_weak_referenceable())
      .def(
          "__init__",
          [](ArenaMapping* self, int fd, std::size_t nbytes, bool writable) {
            new (self) ArenaMapping(fd, nbytes, writable ? Access::write : Access::read);
          },
          "fd"_a, "nbytes"_a, "writable"_a)
      .def_prop_ro("address",
                   [](const ArenaMapping& mapping) {
                     return reinterpret_cast<std::uintptr_t>(mapping.bytes().data());
                   })
      .def_rw("keeper", &ArenaMapping::keeper, nb::for_setter(nb::arg().none()))
      .def(
          "reserve",
          [](ArenaMapping& mapping, std::uint64_t nbytes) {
            const nb::gil_scoped_release release;
            return mapping.reserve(nbytes);
          },
          "nbytes"_a);
  nb::class_<Lease>(m, "Lease", nb::type_slots(buffer_slots<Lease>()))
      .def_prop_ro("is_pinned", &Lease::is_pinned)
      .def_prop_ro(
          "address",
          [](const Lease& lease) { return reinterpret_cast<std::uintptr_t>(lease.data()); })
      .def_prop_ro("nbytes", &Lease::size)
      .def("copy_on_write", [](nb::handle self) {
        return nb::cast(new CopyOnWrite(nb::borrow(self), nb::cast<Lease&>(self)),
                        nb::rv_policy::take_ownership);
      });
  nb::class_<CopyOnWrite>(m, "CopyOnWrite", nb::type_slots(buffer_slots<CopyOnWrite>()));
  nb::class_<Loan>(m, "Loan", nb::type_slots(buffer_slots<Loan>()), nb::is_weak_referenceable())
      .def_prop_ro("extent", &Loan::id)
      .def_ro("views", &Loan::views)
      .def_static("covers", &Loan::covers, "address"_a);

  nb::class_<Identity>(m, "Identity")
      .def(
          "__init__",
          [](Identity* self, std::uint64_t start_time, std::uint64_t pid_namespace) {
            new (self) Identity{start_time, pid_namespace, static_cast<std::uint32_t>(getpid())};
          },
          "start_time"_a, "pid_namespace"_a);
  nb::class_<Peer>(m, "Peer")
      .def_ro("index", &Peer::index)
      .def_ro("seat", &Peer::seat)
      .def_prop_ro("state", [](const Peer& peer) { return name_of(Seat::state(peer.seat)); })
      .def_prop_ro("pid", [](const Peer& peer) { return Seat::pid(peer.seat); })
      .def_prop_ro("start_time", [](const Peer& peer) { return peer.identity.start_time; })
      .def_prop_ro("pid_namespace", [](const Peer& peer) { return peer.identity.pid_namespace; })
      .def_ro("behind", &Peer::behind);
  m.def("peers", &peers_in, "memory"_a, "geometry"_a, "nonce"_a);
  m.attr("VACANT") = RingReader::kVacant;

  nb::class_<Endpoint>(m, "Endpoint")
      .def("peers", &Endpoint::look_at_peers)
      .def("wait_ready", &Endpoint::wait_ready, "timeout"_a = nb::none())
      .def("close", &Endpoint::close)
      .def("alarm", &Endpoint::alarm)
      .def("attached", &Endpoint::attached)
      .def("figures", &Endpoint::figures)
      .def("begin_tensor_set", &Endpoint::begin_tensor_set)
      .def("tensor_sets", &Endpoint::tensor_sets);

  nb::class_<Writer, Endpoint>(m, "RingWriter")
      .def(nb::init<nb::handle, const Geometry&, const nb::bytes&, const WaitPolicy&, nb::object,
                    nb::object, const Identity&, nb::object>(),
           "memory"_a, "geometry"_a, "nonce"_a, "wait"_a, "is_crowded"_a, "watch"_a.none(), "who"_a,
           "arena"_a.none())
      .def("loan", &Writer::loan, "nbytes"_a)
      .def("is_done", &Writer::is_done, "extent"_a, "look"_a)
      .def("sent", &Writer::sent)
      .def("arena_reserved", &Writer::arena_reserved)
      .def("publish", &Writer::publish, "frames"_a, "timeout"_a = nb::none())
      .def("fetch_ahead", &Writer::fetch_ahead)
      .def("lags", &Writer::lags)
      .def("reader_figures", &Writer::reader_figures);

  nb::class_<Reader, Endpoint>(m, "RingReader")
      .def(nb::init<nb::handle, const Geometry&, const nb::bytes&, std::uint32_t, const WaitPolicy&,
                    nb::object, nb::object, nb::object, const Identity&, std::uint64_t,
                    nb::object>(),
           "memory"_a, "geometry"_a, "nonce"_a, "index"_a, "wait"_a, "is_crowded"_a,
           "rehearsal"_a.none(), "watch"_a.none(), "who"_a, "found"_a, "arena"_a.none())
      .def("consume", &Reader::consume, "timeout"_a = nb::none(), "copy"_a = true);
}
