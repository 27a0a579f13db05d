// Python bindings of the ring (nanobind). What is Python about the ring is here: buffers, the GIL,
// signals, fork, and that an endpoint is used by one thread at a time. _core.pyi documents it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>

#include <memory>
#include <optional>

#include "ring.hpp"

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

// Counts the forks that led to this process; an endpoint made before one must not be used after.
// relaxed: the child of a fork has one thread.
std::atomic<unsigned> fork_generation{0};

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
         const WaitPolicy& policy, nb::object is_crowded, nb::object watch, const Identity& who)
      : Endpoint(memory, std::move(is_crowded), std::move(watch)),
        segment_(Segment::format(checked(geometry), geometry, nonce_of(nonce), who)),
        ring_(segment_, policy) {}
  ~Writer() override { close(); }

  void publish(nb::handle frames, nb::handle timeout) {
    const Use use(*this);
    const std::int64_t patience = timeout_ns(timeout);
    const Buffers buffers(*this, frames);
    ring_.begin(pieces_);
    if (ring_.is_immediate()) {
      if (ring_.advance(0, stop()) != Outcome::ready) throw EndpointClosed("closed");
    } else {
      try {
        wait(patience, [this](std::int64_t deadline) { return ring_.advance(deadline, stop()); });
      } catch (...) {
        ring_.abandon();
        throw;
      }
    }
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
  void drop(std::uint32_t index, std::uint64_t seat) override { ring_.drop(index, seat); }

  Segment segment_;
  RingWriter ring_;
  std::vector<Py_buffer> views_;
  std::vector<ConstPiece> pieces_;
};

class Reader final : public Endpoint {
 public:
  Reader(nb::handle memory, const Geometry& geometry, const nb::bytes& nonce, std::uint32_t index,
         const WaitPolicy& policy, nb::object is_crowded, nb::object rehearsal, nb::object watch,
         const Identity& who, std::uint64_t found)
      : Endpoint(memory, std::move(is_crowded), std::move(watch)),
        rehearsal_(std::move(rehearsal)),
        segment_(Segment::attach(this->memory(), geometry, nonce_of(nonce))),
        ring_(seated(segment_, index, who, found), index, policy, found) {}
  ~Reader() override { close(); }

  // A call that ends in TimedOut or a signal keeps its place: the next one goes on.
  nb::object consume(nb::handle timeout) {
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
          if (fetch(patience)) return end();
          break;
      }
    }
  }

 private:
  enum class Phase : std::uint8_t { idle, table, frames };
  static constexpr std::size_t kTablePart = 4096;  // sizes

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
      sizes_.clear();
      if (ring_.frame_count() > 1) {
        extend_table();
      } else {
        if (ring_.frame_count() == 1) sizes_.push_back(ring_.remaining());
        make_frames();
      }
    });
  }

  void go_on_with_table() {
    or_drop([this] {
      if (sizes_.size() < ring_.frame_count()) {
        extend_table();
      } else {
        make_frames();
      }
    });
  }

  // In parts: a table takes memory as it arrives, not as the descriptor promises.
  void extend_table() {
    const std::size_t got = sizes_.size();
    sizes_.resize(std::min<std::uint64_t>(ring_.frame_count(), got + kTablePart));
    const MutablePiece part{reinterpret_cast<std::byte*>(&sizes_[got]),
                            (sizes_.size() - got) * sizeof(std::uint64_t)};
    ring_.into({&part, 1});
    phase_ = Phase::table;
  }

  void make_frames() {
    ring_.check_sizes(sizes_);
    payload_ = ring_.remaining();
    frames_ = owned(PyList_New(static_cast<Py_ssize_t>(sizes_.size())));
    pieces_.clear();
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      // In two steps: when made with a size that there is no memory for, CPython 3.11 reports a
      // half-made bytearray on stderr.
      nb::object frame = owned(PyByteArray_FromStringAndSize(nullptr, 0));
      if (PyByteArray_Resize(frame.ptr(), static_cast<Py_ssize_t>(sizes_[i])) != 0) {
        throw nb::python_error();
      }
      pieces_.push_back(
          {reinterpret_cast<std::byte*>(PyByteArray_AS_STRING(frame.ptr())), sizes_[i]});
      PyList_SET_ITEM(frames_.ptr(), static_cast<Py_ssize_t>(i), frame.release().ptr());
    }
    ring_.into(pieces_);
    phase_ = Phase::frames;
  }

  static nb::object owned(PyObject* fresh) {
    if (fresh == nullptr) throw nb::python_error();
    return nb::steal(fresh);
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

  nb::object end() {
    nb::object frames = std::move(frames_);
    ring_.end(payload_);
    reset();
    return frames;
  }

  void reset() {
    frames_.reset();
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
  void leave() override { ring_.leave(); }
  const Segment& segment() const override { return segment_; }

  nb::object rehearsal_;
  Segment segment_;
  RingReader ring_;
  Phase phase_ = Phase::idle;
  std::vector<std::uint64_t> sizes_;
  std::vector<MutablePiece> pieces_;
  nb::object frames_;  // the list that consume() returns, while it is filled
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
  // Inherited by every later fork: a Python-level hook would miss forks made by C code.
  pthread_atfork(nullptr, nullptr, [] { fork_generation.fetch_add(1, std::memory_order_relaxed); });

  nb::exception<TimedOut>(m, "TimedOut");
  nb::exception<EndpointClosed>(m, "EndpointClosed");
  nb::exception<ConcurrentUse>(m, "ConcurrentUse");
  nb::exception<Forked>(m, "Forked");
  nb::exception<BadTimeout>(m, "BadTimeout");
  nb::exception<SeatTaken>(m, "SeatTaken");
  nb::exception<LayoutMismatch>(m, "LayoutMismatch");
  nb::exception<SegmentCorrupted>(m, "SegmentCorrupted");
  nb::exception<MessageTooLarge>(m, "MessageTooLarge");

  nb::class_<Geometry>(m, "Geometry")
      .def(nb::init<std::uint32_t, std::uint32_t, std::uint64_t>(), "readers"_a, "slots"_a,
           "slot_capacity"_a)
      .def_prop_ro("segment_bytes", &Geometry::segment_bytes);

  using Mode = WaitPolicy::Mode;
  nb::class_<WaitPolicy>(m, "WaitPolicy")
      .def_static("spin", [] { return WaitPolicy{Mode::spin, kForever}; })
      .def_static("park", [] { return WaitPolicy{Mode::park, 0}; })
      .def_static(
          "adaptive", [](std::int64_t ns) { return WaitPolicy{Mode::adaptive, ns}; },
          "max_spin_ns"_a);
  m.def("idle_hint", [] { return best_hint().name; });
  // Tensors offer no buffer: torch's own way to one, by way of numpy, takes ten times as long.
  m.def(
      "view",
      [](std::uintptr_t address, std::size_t nbytes, nb::handle owner) {
        using View = nb::ndarray<nb::memview, std::uint8_t, nb::ndim<1>>;
        return View(reinterpret_cast<std::uint8_t*>(address), {nbytes}, owner);
      },
      "address"_a, "nbytes"_a, "owner"_a);
  m.def(
      "copy",
      [](std::uintptr_t address, std::size_t nbytes) {
        return nb::bytearray(reinterpret_cast<const char*>(address), nbytes);
      },
      "address"_a, "nbytes"_a);

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
                    nb::object, const Identity&>(),
           "memory"_a, "geometry"_a, "nonce"_a, "wait"_a, "is_crowded"_a, "watch"_a.none(), "who"_a)
      .def("publish", &Writer::publish, "frames"_a, "timeout"_a = nb::none())
      .def("fetch_ahead", &Writer::fetch_ahead)
      .def("lags", &Writer::lags)
      .def("reader_figures", &Writer::reader_figures);

  nb::class_<Reader, Endpoint>(m, "RingReader")
      .def(nb::init<nb::handle, const Geometry&, const nb::bytes&, std::uint32_t, const WaitPolicy&,
                    nb::object, nb::object, nb::object, const Identity&, std::uint64_t>(),
           "memory"_a, "geometry"_a, "nonce"_a, "index"_a, "wait"_a, "is_crowded"_a,
           "rehearsal"_a.none(), "watch"_a.none(), "who"_a, "found"_a)
      .def("consume", &Reader::consume, "timeout"_a = nb::none());
}
