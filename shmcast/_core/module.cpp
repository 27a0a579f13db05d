// Python bindings of the ring (nanobind). What is Python about the ring is here: buffers, the GIL,
// signals, fork, and that an endpoint is used by one thread at a time. _core.pyi documents it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>

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
  return figures;
}

// What the two endpoints share: the mapping's buffer, and who may use it now.
class Endpoint {
 public:
  Endpoint(nb::handle memory, nb::object is_crowded) : is_crowded_(std::move(is_crowded)) {
    if (PyObject_GetBuffer(memory.ptr(), &view_, PyBUF_WRITABLE) != 0) throw nb::python_error();
  }
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;
  virtual ~Endpoint() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }

  // Figures for observers: any thread, any time, also after close().
  virtual std::uint32_t attached() const = 0;
  nb::dict figures() const { return as_dict(own_figures()); }

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
  // review of how crowded it is here, and the rehearsal while spinning.
  template <class Step>
  Outcome wait(std::int64_t timeout, Step step) {
    const std::int64_t deadline = deadline_after(timeout);
    for (;;) {
      if (waiter().review_is_due()) review();
      Outcome outcome;
      {
        nb::gil_scoped_release release;
        outcome = step(deadline);
      }
      switch (outcome) {
        case Outcome::interrupted:
          if (PyErr_CheckSignals() != 0) throw nb::python_error();
          if (waiter().is_spinning()) rehearse();
          break;
        case Outcome::timed_out: throw TimedOut("timed out");
        case Outcome::closed: throw EndpointClosed("closed");
        default: return outcome;
      }
    }
  }

  auto stop() const {
    return [this] { return is_closing(); };
  }
  std::span<std::byte> memory() const {
    return {static_cast<std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  void review() { waiter().set_crowded(nb::cast<bool>(is_crowded_(attached()))); }
  virtual void rehearse() {}  // called now and then while this endpoint spins
  virtual Waiter& waiter() = 0;
  virtual const Figures& own_figures() const = 0;
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
  const unsigned generation_ = fork_generation.load(std::memory_order_relaxed);
  std::atomic<bool> busy_{false};
  std::atomic<bool> closing_{false};
};

Segment::Nonce nonce_of(const nb::bytes& nonce) {
  if (nonce.size() != kNonceBytes) throw nb::value_error("a nonce has 16 bytes");
  return Segment::Nonce(static_cast<const std::byte*>(nonce.data()), kNonceBytes);
}

class Writer final : public Endpoint {
 public:
  Writer(nb::handle memory, const Geometry& geometry, const nb::bytes& nonce,
         const WaitPolicy& policy, nb::object is_crowded)
      : Endpoint(memory, std::move(is_crowded)),
        segment_(Segment::format(checked(geometry), geometry, nonce_of(nonce), getpid())),
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

  std::uint32_t attached() const override { return ring_.attached(); }
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
  Outcome wait_attached(std::int64_t deadline_ns) override {
    return ring_.wait_ready(deadline_ns, stop());
  }
  void interrupt() override { ring_.interrupt(); }
  void leave() override { ring_.close(); }

  Segment segment_;
  RingWriter ring_;
  std::vector<Py_buffer> views_;
  std::vector<ConstPiece> pieces_;
};

class Reader final : public Endpoint {
 public:
  Reader(nb::handle memory, const Geometry& geometry, const nb::bytes& nonce, std::uint32_t index,
         const WaitPolicy& policy, nb::object is_crowded, nb::object rehearsal)
      : Endpoint(memory, std::move(is_crowded)),
        rehearsal_(std::move(rehearsal)),
        ring_(seated(Segment::attach(this->memory(), geometry, nonce_of(nonce)), index), index,
              policy) {}
  ~Reader() override { close(); }

  // A call that ends in TimedOut or a signal keeps its place: the next one goes on.
  nb::object consume(nb::handle timeout) {
    const Use use(*this);
    const std::int64_t patience = timeout_ns(timeout);
    for (;;) {
      switch (phase_) {
        case Phase::idle:
          if (ring_.has_message()) {
            ring_.begin(0, stop());
          } else {
            wait(patience, [this](std::int64_t deadline) { return ring_.begin(deadline, stop()); });
          }
          begin_table();
          break;
        case Phase::table:
          if (fetch(patience)) begin_frames();
          break;
        case Phase::frames:
          if (fetch(patience)) return end();
          break;
      }
    }
  }

  std::uint32_t attached() const override { return ring_.attached(); }

 private:
  enum class Phase : std::uint8_t { idle, table, frames };

  static Segment seated(const Segment& segment, std::uint32_t index) {
    if (index >= segment.geometry().readers) throw nb::index_error("no such reader index");
    if (!RingReader::attach(segment, index, getpid())) {
      Member& member = segment.member(index);
      // relaxed: for the message only.
      const auto pid = std::atomic_ref(member.pid).load(std::memory_order_relaxed);
      const auto state = std::atomic_ref(member.state).load(std::memory_order_relaxed);
      const bool gone = state == static_cast<std::uint32_t>(MemberState::left);
      throw SeatTaken((gone ? "was taken, and left, by process " : "is taken by process ") +
                      std::to_string(pid));
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
      const std::uint64_t count = ring_.frame_count();
      sizes_.resize(count);
      if (count > 1) {
        const MutablePiece table{reinterpret_cast<std::byte*>(sizes_.data()), table_bytes(count)};
        ring_.into({&table, 1});
        phase_ = Phase::table;
      } else {
        if (count == 1) sizes_[0] = ring_.remaining();
        make_frames();
      }
    });
  }

  void begin_frames() {
    or_drop([this] { make_frames(); });
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
  void rehearse() override {
    if (!rehearsal_.is_none()) rehearsal_();
  }
  Outcome wait_attached(std::int64_t deadline_ns) override {
    return ring_.wait_ready(deadline_ns, stop());
  }
  void interrupt() override { ring_.interrupt(); }
  void leave() override { ring_.leave(); }

  nb::object rehearsal_;
  RingReader ring_;
  Phase phase_ = Phase::idle;
  std::vector<std::uint64_t> sizes_;
  std::vector<MutablePiece> pieces_;
  nb::object frames_;  // the list that consume() returns, while it is filled
  std::uint64_t payload_ = 0;
};

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

  nb::class_<Endpoint>(m, "Endpoint")
      .def("wait_ready", &Endpoint::wait_ready, "timeout"_a = nb::none())
      .def("close", &Endpoint::close)
      .def("attached", &Endpoint::attached)
      .def("figures", &Endpoint::figures);

  nb::class_<Writer, Endpoint>(m, "RingWriter")
      .def(nb::init<nb::handle, const Geometry&, const nb::bytes&, const WaitPolicy&, nb::object>(),
           "memory"_a, "geometry"_a, "nonce"_a, "wait"_a, "is_crowded"_a)
      .def("publish", &Writer::publish, "frames"_a, "timeout"_a = nb::none())
      .def("fetch_ahead", &Writer::fetch_ahead)
      .def("lags", &Writer::lags)
      .def("reader_figures", &Writer::reader_figures);

  nb::class_<Reader, Endpoint>(m, "RingReader")
      .def(nb::init<nb::handle, const Geometry&, const nb::bytes&, std::uint32_t, const WaitPolicy&,
                    nb::object, nb::object>(),
           "memory"_a, "geometry"_a, "nonce"_a, "index"_a, "wait"_a, "is_crowded"_a,
           "rehearsal"_a = nb::none())
      .def("consume", &Reader::consume, "timeout"_a = nb::none());
}
