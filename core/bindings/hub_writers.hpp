// Room: bindings. The two writers of a hub's segment, for Python: of messages, and of a member's
// replies.
// Knows: what a hub has to do while it waits for room, and how a member's ring is taken over.
// Does not know: how a message is published, or how replies are received.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstdint>
#include <utility>

#include "bindings/convert.hpp"
#include "bindings/endpoint.hpp"
#include "bindings/errors.hpp"
#include "bindings/gil.hpp"
#include "bindings/reader.hpp"
#include "bindings/writer.hpp"
#include "hub/barrier.hpp"
#include "hub/tail.hpp"
#include "layout.hpp"
#include "ring/writer.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

namespace nb = nanobind;

// What else is to be done while a message waits for room: its readers may be waiting themselves.
class Relief {
 public:
  // Called before the first message of who has taken the place of a dead member.
  virtual void note_admitted(std::uint32_t member) = 0;
  // Say whether a message waits for room now.
  virtual void set_needed(bool is_needed) = 0;
  // Return whether relieve() would do something. Called without the GIL.
  virtual bool is_due() const = 0;
  // Called by the thread that waits, with the GIL. Never waits.
  virtual void relieve() = 0;

 protected:
  ~Relief() = default;
};

// The writer of a hub's messages. While it waits for room, the replies that members wait to get rid
// of are taken out of their rings: neither side can wait for the other without end.
class PyHubWriter final : public PyRingWriter {
 public:
  using PyRingWriter::PyRingWriter;
  ~PyHubWriter() override { destroy(); }

  // nullptr: none. To be called while nobody publishes.
  void set_relief(Relief* relief) { relief_ = relief; }

  // Continue without a member, as drop(): for another thread, which has found it dead.
  void drop_member(std::uint32_t index, std::uint64_t found) { ring().drop(index, found); }

 private:
  class Waiting {
   public:
    explicit Waiting(Relief& relief) : relief_(relief) { relief_.set_needed(true); }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;
    ~Waiting() { relief_.set_needed(false); }

   private:
    Relief& relief_;
  };

  Outcome advance(std::int64_t deadline_ns) override {
    if (relief_ == nullptr) return PyRingWriter::advance(deadline_ns);
    const Waiting waiting(*relief_);
    bool is_due = false;
    const auto stops = [&] {
      if (stop()()) return true;
      is_due = relief_->is_due();
      return is_due;
    };
    const Outcome outcome = ring().advance(deadline_ns, stops);
    // The caller then looks for signals and peers, has rest() called, and goes on.
    return outcome == Outcome::closed && is_due ? Outcome::interrupted : outcome;
  }
  void note_admitted(std::uint32_t reader) override {
    if (relief_ != nullptr) relief_->note_admitted(reader);
  }
  void rest(std::int64_t /*now*/) override {
    if (relief_ != nullptr) relief_->relieve();
  }

  Relief* relief_ = nullptr;
};

// The writer of a member's replies, beside its reader of messages, whose peers are the hub and the
// other members. Alarms are for both.
class PyReplyWriter final : public PyRingWriter {
 public:
  PyReplyWriter(nb::handle memory, const nb::object& reader, const Geometry& replies,
                const nb::bytes& nonce, const WaitPolicy& policy, nb::object cpu_quota,
                nb::object watch)
      : PyReplyWriter(memory, reader, Tail(reader_of(reader).segment(), replies), nonce, policy,
                      std::move(cpu_quota), std::move(watch)) {}
  ~PyReplyWriter() override { destroy(); }

  // Publish a reply to a message that was received and not answered yet.
  void send(const Message& message, nb::handle timeout) override {
    if (unanswered() == 0) {
      const Use use(*this);  // that it is closed, say, comes first
      throw NothingToAnswer("every message that was received has its reply");
    }
    note_asked();
    publish(message, timeout);
  }

  // Wait until all other members and the hub have come, too. Whatever ends this call, the next one
  // is in the same barrier.
  void pass_barrier(nb::handle timeout) {
    const Call call(*this);
    Deadline end(timeout_ns(timeout));
    barrier_.enter();
    const auto is_over = [this] { return barrier_.all_have_come() || barrier_.is_void(); };
    if (!barrier_.all_have_come()) {
      wait(end, [&](std::int64_t deadline) {
        return barrier_.wait(ring().waiter, deadline, is_over, stop());
      });
      if (!barrier_.all_have_come()) throw EndpointClosed("somebody has closed");
    }
    barrier_.leave();
  }
  std::uint64_t barriers_passed() const { return barrier_.passed(); }
  // Return who had not come to the last barrier when it was looked at.
  nb::list absent() const { return list_of(barrier_.absent()); }

  // Return how many messages the member has received and not answered. For any thread.
  std::uint64_t unanswered() const {
    return peek(reader_.ring().figures().messages) - received_before_ -
           (peek(ring().figures().messages) - replied_before_);
  }

  void alarm() override {
    reader_.alarm();
    Endpoint::alarm();
  }

  // End the calls that wait, or the next one that waits for a message.
  void interrupt_calls() {
    const bool is_replying = is_busy();
    if (is_replying) interrupt_call();
    if (!is_replying || reader_.is_busy()) reader_.interrupt_call();
  }

 private:
  PyReplyWriter(nb::handle memory, const nb::object& reader, const Tail& tail,
                const nb::bytes& nonce, const WaitPolicy& policy, nb::object cpu_quota,
                nb::object watch)
      : PyRingWriter(memory, tail.attach_ring(reader_of(reader).place(), nonce_of(nonce)),
                     reader_of(reader).segment(), policy, std::move(cpu_quota), std::move(watch),
                     nb::none()),
        reader_object_(reader),
        reader_(reader_of(reader)),
        tail_(tail),
        barrier_(reader_.segment(), tail, reader_.place()),
        received_before_(peek(reader_.ring().figures().messages)),
        replied_before_(peek(ring().figures().messages)) {
    Lane& lane = tail.lane(reader_.place());
    put(lane.begins_at, ring().published());
    // release: pairs with MemberReplies::deaths_before(). Before this member can answer anything.
    std::atomic_ref(lane.takeovers)
        .store(peek(segment().member(reader_.place()).takeovers), std::memory_order_release);
  }

  // Say what the next reply answers: the message that was received last. It is published with it.
  void note_asked() {
    const std::uint64_t received = peek(reader_.ring().figures().messages) - received_before_;
    put(tail_.asked_by(place(), ring().published()),
        peek(tail_.lane(place()).joined_at) + received);
  }

  static PyRingReader& reader_of(const nb::object& reader) {
    return *nb::inst_ptr<PyRingReader>(reader);
  }

  std::uint32_t place() const override { return reader_.place(); }
  void drop(std::uint32_t, std::uint64_t) override {}  // is the hub's business
  void interrupt() override {
    PyRingWriter::interrupt();
    Gate(reader_.segment().readers_gate()).wake();  // it may be in a barrier
  }

  Reference reader_object_;
  PyRingReader& reader_;
  Tail tail_;
  Barrier barrier_;
  std::uint64_t received_before_;  // by those who had this place before
  std::uint64_t replied_before_;
};

}  // namespace shmcast
