// Room: bindings. The writer of a ring, for Python.
// Knows: buffers to send, and which of them go through the arena.
// Does not know: what is in them, or how waiting and closing work.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "arena/arena.hpp"
#include "arena/filling.hpp"
#include "bindings/ahead.hpp"
#include "bindings/arena_objects.hpp"
#include "bindings/convert.hpp"
#include "bindings/endpoint.hpp"
#include "bindings/errors.hpp"
#include "bindings/gil.hpp"
#include "bindings/spill.hpp"
#include "copy/vanishing.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "ring/message.hpp"
#include "ring/remains.hpp"
#include "ring/writer.hpp"
#include "wait/gate.hpp"
#include "wait/pace.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

namespace nb = nanobind;

class PyRingWriter : public Endpoint {
 public:
  PyRingWriter(nb::handle memory, const Geometry& geometry, const nb::bytes& nonce,
               const WaitPolicy& policy, nb::object cpu_quota, nb::object watch,
               const Identity& who, nb::object arena, nb::object spill, const std::string& label,
               std::uint32_t nodes, const std::string& name)
      : Endpoint(memory, std::move(cpu_quota), std::move(watch)),
        segment_(Segment::format(checked(geometry), geometry, nonce_of(nonce), who,
                                 {label, nodes, arena_bytes_of(arena), realtime_ns()})),
        ring_(segment_, policy),
        mapping_(std::move(arena)) {
    write_text(segment_.name(geometry.readers).text, name);
    if (!spill.is_none()) {
      spill_ = std::make_unique<WriterSpill>(std::move(spill), segment_);
      ring_.set_spill(*spill_);
    }
    open_arena();
  }
  ~PyRingWriter() override { destroy(); }

  // A message: frames, or the bytes of its only one.
  struct Message {
    nb::handle frames;
    std::span<const std::byte> bytes;
  };

  // Publish a message to all readers or, if this throws, to none.
  void publish(const Message& message, nb::handle timeout) {
    const Call call(*this);
    is_sent_ = false;
    Deadline end(timeout_ns(timeout));
    attend(*company_);
    const Buffers buffers(*this, message);
    const Settling settling(*this);
    if (arena_ != nullptr && pieces_.size() > 1) {
      end.ns();  // before the copies, which may take long
      put_in_arena();
    }
    if (!storages_.empty()) check_storages();
    ring_.begin(pieces_, entries_);
    for (const std::uint32_t reader : ring_.admitted()) {
      if (arena_ != nullptr) arena_->mark_alive(reader);
      note_admitted(reader);
    }
    try {
      if (ring_.is_immediate()) {
        if (ring_.advance(0, stop()) != Outcome::ready) throw EndpointClosed("closed");
      } else if (storages_.empty() || ring_.advance(0, stop()) != Outcome::ready) {
        // (With the GIL no other thread resizes a storage: what finds room is copied fast.)
        ring_.hold_memory(storages_.empty());
        wait(end, [this](std::int64_t deadline) { return advance(deadline); });
      }
      // What a signal's handler raises from here on comes too late: the message is sent.
      handle_signals();
      throw_if_stopped();
      if (!storages_.empty()) check_storages();  // with the GIL, which is held to the end
    } catch (...) {
      ring_.abandon();
      settle();
      throw;
    }
    ring_.commit();
    is_sent_ = true;
    settle();
  }

  // The same, where each message may need leave.
  virtual void send(const Message& message, nb::handle timeout) { publish(message, timeout); }

  // Return whether the last publish() did publish its message. A call that a signal's handler ends
  // may have: the signal came between its last look and its return.
  bool is_sent() const { return is_sent_; }
  // Forget that of the last one: the next did not come as far as publish().
  void forget_sent() { is_sent_ = false; }

  // Return memory of the arena for the caller to fill. None: no room.
  nb::object loan(std::size_t size) {
    const Use use(*this);
    const auto id = arena_ == nullptr ? std::nullopt : allocate(size);
    if (!id) {
      ring_.count_arena(0, 1, 0);
      return nb::none();
    }
    return nb::cast(new Loan(arena_, mapping_, *id, size), nb::rv_policy::take_ownership);
  }

  // Return whether every reader is done with all messages that refer to the extent. `look`: also
  // find out whose process has exited. Needs no turn: loans are looked after while another thread
  // sends, and after close().
  bool is_done(std::uint32_t extent, bool look) {
    refuse_fork();
    if (arena_ == nullptr || extent >= Arena::kExtents) throw nb::index_error("no such extent");
    if (arena_->is_done(extent)) return true;
    return look && mark_exited_dead() && arena_->is_done(extent);
  }

  // Return the extents that the last message refers to.
  nb::list sent() const { return list_of(sent_); }

  // Return the memory of arena and spill, by the names of the fields of `Statistics`.
  nb::dict memory_figures() const {
    nb::dict figures = new_dict();
    if (!mapping_.is_none()) {
      const ArenaMapping& arena = *nb::inst_ptr<ArenaMapping>(mapping_);
      figures["arena_reserved_bytes"] = arena.reserved();
      figures["arena_huge_bytes"] = arena.huge_bytes();
    }
    if (spill_ != nullptr) {
      figures["spill_reserved_bytes"] = spill_->mapping().reserved();
      figures["spill_huge_bytes"] = spill_->mapping().huge_bytes();
    }
    return figures;
  }

  // Run `warmup`, unless it is None, and prefetch what the next publish() will touch. This is one
  // thread's turn as a whole: what warms up is no more for two threads than the ring is.
  void warm(nb::handle warmup) {
    const Use use(*this);
    if (!warmup.is_none()) call(warmup);
    shmcast::fetch_ahead(this, sizeof *this);
    const std::uint64_t largest = ring_.take_largest();
    if (largest != 0) spill_->prepare(largest);
    ring_.fetch_ahead();
    fetch_callers_ahead();
  }

  nb::list lags() const { return list_of(shmcast::lags(segment_)); }
  nb::list reader_figures() const {
    std::vector<nb::dict> readers;
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      readers.push_back(as_dict(segment_.reader_figures(i), &segment_.latencies(i)));
    }
    return list_of(readers);
  }

  const Segment& segment() const override { return *company_; }

 protected:
  // The writer of a ring that lies somewhere in `memory` and that others may have written to. Of
  // `company` are the peers.
  PyRingWriter(nb::handle memory, const Segment& segment, const Segment& company,
               const WaitPolicy& policy, nb::object cpu_quota, nb::object watch, nb::object arena)
      : Endpoint(memory, std::move(cpu_quota), std::move(watch)),
        segment_(segment),
        company_(&company),
        ring_(segment_, policy, published_in(segment_)),
        mapping_(std::move(arena)) {
    open_arena();
  }

  // Publish what is left of a message that does not find room at once, as RingWriter::advance().
  virtual Outcome advance(std::int64_t deadline_ns) { return ring_.advance(deadline_ns, stop()); }

  // Called before the first message of a reader that has come in the place of a dead one.
  virtual void note_admitted(std::uint32_t /*reader*/) {}
  std::uint32_t place() const override { return segment_.geometry().readers; }
  void interrupt() override { ring_.interrupt(); }
  void drop(std::uint32_t index, std::uint64_t seat) override {
    ring_.drop(index, seat);
    // One that failed may have views as long as its process lives: see mark_exited_dead().
    if (arena_ == nullptr || Seat::state(seat) == SeatState::failed) return;
    arena_->mark_dead(index);
  }

  RingWriter& ring() { return ring_; }
  const RingWriter& ring() const { return ring_; }

 private:
  void open_arena() {
    if (mapping_.is_none()) return;
    if (segment_.geometry().extents != Arena::kExtents) {
      throw nb::value_error("an arena has EXTENTS extents");
    }
    arena_ = std::make_shared<Arena>(nb::cast<ArenaMapping&>(mapping_), segment_);
  }

  // The frames' buffers, held during one publish().
  class Buffers {
   public:
    Buffers(PyRingWriter& writer, const Message& message) : writer_(writer) {
      const nb::handle frames = message.frames;
      if (!frames.is_valid()) {
        writer.pieces_.push_back({message.bytes.data(), message.bytes.size()});
        return;
      }
      const nb::object items = owned(stops_at_exit([frames] {
        return PySequence_Fast(frames.ptr(), "frames must be a sequence of buffers");
      }));
      const Py_ssize_t count = PySequence_Fast_GET_SIZE(items.ptr());
      for (Py_ssize_t i = 0; i < count; ++i) {
        Py_buffer view;
        PyObject* const frame = PySequence_Fast_GET_ITEM(items.ptr(), i);
        if (stops_at_exit([&] { return PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE); }) != 0) {
          release();
          throw nb::python_error();
        }
        writer.views_.push_back(view);
        const StorageView* const storage =
            count == 1 ? nullptr : storage_of(PySequence_Fast_GET_ITEM(items.ptr(), i));
        if (storage != nullptr) writer.storages_.push_back(storage);
        writer.pieces_.push_back({static_cast<const std::byte*>(view.buf),
                                  static_cast<std::size_t>(view.len), storage != nullptr});
      }
    }
    Buffers(const Buffers&) = delete;
    Buffers& operator=(const Buffers&) = delete;
    ~Buffers() { release(); }

   private:
    // Return the part of a torch storage that a frame is; null: it is none.
    static const StorageView* storage_of(PyObject* frame) {
      if (!PyMemoryView_Check(frame)) return nullptr;
      const nb::handle exporter = PyMemoryView_GET_BUFFER(frame)->obj;
      const bool is_one = exporter.is_valid() && nb::isinstance<StorageView>(exporter);
      return is_one ? nb::inst_ptr<StorageView>(exporter) : nullptr;
    }
    void release() {
      for (Py_buffer& view : writer_.views_) stops_at_exit([&] { PyBuffer_Release(&view); });
      writer_.views_.clear();
      writer_.storages_.clear();
      writer_.pieces_.clear();
    }
    PyRingWriter& writer_;
  };

  // The extents filled for one publish(): at its end the writer gives them back, and only readers
  // keep them in use.
  class Settling {
   public:
    explicit Settling(PyRingWriter& writer) : writer_(writer) {
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
    PyRingWriter& writer_;
  };

  // Keep the message's extents in use until every reader has reached its end.
  void settle() {
    for (const std::uint32_t id : sent_) arena_->sent(id, ring_.published());
  }

  // Throw MemoryChanged if a storage has lost the memory of a frame. With the GIL.
  void check_storages() const {
    const auto is_intact = [](const StorageView* storage) { return storage->is_intact(); };
    if (!std::all_of(storages_.begin(), storages_.end(), is_intact)) throw MemoryChanged();
  }

  // Copy frames of this size or larger to the arena: once, however many readers there are.
  static constexpr std::size_t kArenaFrame = 256 * 1024;
  static constexpr std::int64_t kExitCheckNs = 100 * kMillisecond;

  // Let the message carry only the place of frames that lie in the arena, and of large frames that
  // find room there.
  void put_in_arena() {
    offsets_.resize(pieces_.size());
    std::uint64_t full = 0;
    std::uint64_t non_temporal = 0;  // bytes
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
          const WithoutGil released;
          if (!piece.can_vanish) {
            non_temporal += filling_.copy(to, piece.data, piece.size, monotonic_ns);
          } else if (!copy_unless_gone(to, piece.data, piece.size)) {
            throw MemoryChanged();
          }
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
    ring_.count_arena(sent_.size(), full, non_temporal);
  }

  std::optional<std::uint32_t> allocate(std::size_t size) {
    const auto reserve = [this](std::uint64_t bytes) {
      auto& mapping = nb::cast<ArenaMapping&>(mapping_);
      const std::uint64_t room = mapping.room_bytes();
      const WithoutGil released;
      return mapping.reserve(bytes, room);
    };
    auto id = arena_->allocate(size, reserve);
    if (!id && mark_exited_dead()) id = arena_->allocate(size, reserve);
    return id;
  }

  // Free what readers hold whose processes have exited. Returns false if it is too soon to look
  // again.
  bool mark_exited_dead() {
    const std::int64_t now = monotonic_ns();
    if (now < next_exit_check_ns_) return false;
    next_exit_check_ns_ = now + kExitCheckNs;
    for (const std::uint32_t reader : exited_readers()) arena_->mark_dead(reader);
    return true;
  }

  static std::uint64_t arena_bytes_of(nb::handle arena) {
    return arena.is_none() ? 0 : nb::inst_ptr<ArenaMapping>(arena)->bytes().size();
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
  void leave(End how) override {
    ring_.close(how);
    give_back_messages(segment_);
  }

  Segment segment_;
  const Segment* company_ = &segment_;
  RingWriter ring_;
  Reference mapping_;
  std::shared_ptr<Arena> arena_;  // loans may outlive this writer; null: there is none
  Filling filling_;
  std::unique_ptr<WriterSpill> spill_;  // null: there is none
  std::int64_t next_exit_check_ns_ = 0;
  bool is_sent_ = false;
  std::vector<Py_buffer> views_;
  std::vector<const StorageView*> storages_;  // those among the views_ whose memory can vanish
  std::vector<ConstPiece> pieces_;
  std::vector<std::uint64_t> entries_;  // the frame table; empty: no frame is in the arena
  std::vector<ArenaOffset> offsets_;    // of the pieces_ that are in the arena
  std::vector<std::uint32_t> sent_;     // the extents of these
  std::vector<std::uint32_t> filled_;   // the extents among them that were allocated here
};

}  // namespace shmcast
