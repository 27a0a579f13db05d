// Room: bindings. The hub's end of its members' replies, for Python.
// Knows: which of them are awaited, on one gate, and whose turn it is to receive.
// Does not know: how a member's replies are taken out of its ring, or what is in one.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/ahead.hpp"
#include "bindings/awaitable.hpp"
#include "bindings/convert.hpp"
#include "bindings/endpoint.hpp"
#include "bindings/errors.hpp"
#include "bindings/gil.hpp"
#include "bindings/hub_writers.hpp"
#include "bindings/member_replies.hpp"
#include "bindings/reliever.hpp"
#include "bindings/round.hpp"
#include "hub/barrier.hpp"
#include "hub/next_replies.hpp"
#include "hub/tail.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "wait/gate.hpp"
#include "wait/listener.hpp"
#include "wait/waiter.hpp"
#include "wait/yielding.hpp"

namespace shmcast {

namespace nb = nanobind;

// Reads a ring for each member, and waits for any number of them. Nothing tells which of them has
// something: whoever is awaited is looked at, so that there is nothing that could be told wrongly.
class PyHub final : public Awaitable, public Relief {
 public:
  static constexpr std::uint32_t kAny = UINT32_MAX;  // in place of a member's index
  static constexpr std::uint32_t kEach = UINT32_MAX - 1;

  // `writer` is that of the messages, in the same memory.
  PyHub(nb::handle memory, nb::object writer, const Geometry& replies, const nb::bytes& nonce,
        const WaitPolicy& policy, nb::object cpu_quota, nb::object warmup, nb::object watch,
        const Identity& who)
      : Awaitable(memory, std::move(cpu_quota), std::move(watch)),
        writer_object_(std::move(writer)),
        writer_(*nb::inst_ptr<PyHubWriter>(writer_object_)),
        warmup_(std::move(warmup)),
        segment_(writer_.segment()),
        tail_(segment_, replies),
        members_(segment_.geometry().readers),
        next_(members_),
        barrier_(segment_, tail_, members_),
        waiter_(policy, figures_),
        last_(members_ - 1) {
    for (std::uint32_t i = 0; i < members_; ++i) {
      replies_.push_back(
          std::make_unique<MemberReplies>(memory, segment_, tail_, i, nonce_of(nonce), who, next_));
    }
    awaited_.reserve(members_);
    writer_.set_relief(this);
  }
  ~PyHub() override {
    writer_.set_relief(nullptr);
    destroy();
  }

  // Return the next reply of a member, see MemberReplies; null: it was placed, as by a
  // PyRingReader. Whatever ends this call or one of the next two, they keep what they have
  // received. Here, too, the caller handles signals.
  template <class Place>
  nb::object receive_of(std::uint32_t index, nb::handle timeout, bool copy, Place place) {
    MemberReplies& member = replies_of(index);
    const Turn turn(*this, is_look(timeout));
    Deadline end = deadline_of(timeout);
    for (;;) {
      Found found = member.find(copy, place);
      if (found == Found::nothing) {
        begin_look(index);
        found = look_again(index, copy, false, place);
      }
      if (found == Found::reply) return member.pop();
      if (found == Found::placed) return {};
      if (found == Found::nobody) throw EndpointClosed("the member has closed");
      await(end);
    }
  }

  // Return such a reply of any member, and that member's index. The one after the last is looked at
  // first.
  template <class Place>
  std::pair<std::uint32_t, nb::object> receive_any(nb::handle timeout, bool copy, Place place) {
    const Turn turn(*this, is_look(timeout));
    Deadline end = deadline_of(timeout);
    for (;;) {
      const Found found = find_reply(copy, place);
      if (found == Found::reply) return {last_, replies_[last_]->pop()};
      if (found == Found::placed) return {last_, {}};
      if (awaited_.empty()) throw EndpointClosed("every member has closed or died");
      await(end);
    }
  }

  // Return a reply of each member, by index.
  std::vector<nb::object> receive_all(nb::handle timeout, bool copy) {
    const Turn turn(*this, is_look(timeout));
    for (Deadline end = deadline_of(timeout); !have_all_replied(copy);) await(end);
    return round_.take();
  }

  // Wait until all members have come, too, that are not dropped. Whatever ends this call, the next
  // one is in the same barrier.
  void pass_barrier(nb::handle timeout) {
    const Turn turn(*this);
    Deadline end(timeout_ns(timeout));
    barrier_.enter();
    const auto is_over = [this] {
      return barrier_.all_have_come() || barrier_.is_void() || is_relief_due();
    };
    while (!barrier_.all_have_come()) {
      wait(end, [&](std::int64_t deadline) {
        barrier_.excuse_dropped();
        return barrier_.wait(waiter_, deadline, is_over, stop());
      });
      if (is_relief_due()) take_all();
      if (barrier_.is_void()) throw EndpointClosed("a member has closed");
    }
    barrier_.leave();
  }
  std::uint64_t barriers_passed() const { return barrier_.passed(); }
  // Return who had not come to the last barrier when it was looked at.
  nb::list absent() const { return list_of(barrier_.absent()); }

  // Return what such a call does that is a look, see kLook. It may find something of whomever.
  template <class Receive>
  nb::object look(Receive receive) {
    for (bool is_armed = !next_.is_any_there();; is_armed = true) {
      if (is_armed) listener_.arm();
      try {
        return receive();
      } catch (const TimedOut&) {
        if (is_armed) return nothing();
      }
    }
  }

  // Take back a reply, or forget the one that was taken back last and return it.
  void keep(std::uint32_t index, nb::object reply) { replies_of(index).keep(std::move(reply)); }
  nb::object discard(std::uint32_t index) { return replies_of(index).pop(); }

  // Return whom the last call that waited has waited for.
  nb::list awaited() const { return list_of(awaited_); }
  // Return whose reply it was to return: a member's index, kAny or kEach.
  std::uint32_t asked() const { return asked_; }

  // Return the fragments that were replied and not yet taken, by member.
  nb::list lags() const {
    std::vector<std::uint64_t> lags;
    for (const auto& member : replies_) lags.push_back(member->lag());
    return list_of(lags);
  }

  nb::list member_figures() const {
    std::vector<nb::dict> figures;
    for (const auto& one : replies_) figures.push_back(one->reader().figures());
    return list_of(figures);
  }

  void alarm() override {
    writer_.alarm();
    Endpoint::alarm();
  }

  // End the calls that wait, or the next one that waits for replies.
  void interrupt_calls() {
    const bool is_sending = writer_.is_busy();
    if (is_sending) writer_.interrupt_call();
    if (!is_sending || is_busy() || is_armed()) interrupt_call();
  }

  void note_admitted(std::uint32_t member) override { replies_[member]->note_admitted(); }
  // seq_cst, here and where it is read: a receiver reads it between announce() and park(). And it
  // and `busy` are two flags, each of which a thread sets before it reads the other's.
  void set_needed(bool is_needed) override {
    is_room_needed_.store(is_needed, std::memory_order_seq_cst);
    if (is_needed && is_busy()) interrupt();
  }
  bool is_due() const override { return !is_busy() && next_.is_any_there(); }
  void relieve() override {
    if (!is_due()) return;
    try {
      const Reliever::Relieving relieving(reliever_);
      const Use use(*this);
      take_all();
    } catch (const ConcurrentUse&) {  // whoever is inside does the same
    } catch (const EndpointClosed&) {
    }
  }

 private:
  using Found = MemberReplies::Found;

  // A thread's turn to receive.
  class Turn {
   public:
    explicit Turn(PyHub& hub, bool is_look = false) : hub_(hub) {
      hub.reliever_.outlast([&] { call_.emplace(hub, is_look); });
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() {
      call_.reset();
      // From now on who sends has to take replies out of the rings.
      if (hub_.is_room_needed_.load(std::memory_order_seq_cst)) hub_.interrupt();
    }

   private:
    PyHub& hub_;
    std::optional<Call> call_;
  };

  MemberReplies& replies_of(std::uint32_t index) {
    if (index >= members_) throw nb::index_error("no such member");
    return *replies_[index];
  }

  // Find a reply of any member, which is the last one then. If there is none, those who may yet
  // reply are awaited.
  template <class Place>
  Found find_reply(bool copy, Place place) {
    const bool has_taken = next_.has_taken();
    const Found found = first_of([&](std::uint32_t index) {
      const bool may_have = has_taken || next_.is_there(index);
      return may_have ? replies_[index]->find(copy, place) : Found::nothing;
    });
    if (found != Found::nothing) return found;
    begin_look(kAny);
    return first_of([&](std::uint32_t index) { return look_again(index, copy, true, place); });
  }

  // Look at each member in turn, the one after the last first. Who has replied is the last then.
  template <class Look>
  Found first_of(Look look) {
    std::uint32_t index = last_;
    for (std::uint32_t i = 0; i < members_; ++i) {
      index = index + 1 < members_ ? index + 1 : 0;
      const Found found = look(index);
      if (found == Found::nothing || found == Found::nobody) continue;
      last_ = index;
      return found;
    }
    return Found::nothing;
  }

  // Take what there is. Those of whom there must be a reply yet are awaited.
  bool have_all_replied(bool copy) {
    do {
      begin_look(kEach);
      round_.begin(copy);
      for (std::uint32_t i = 0; i < members_; ++i) {
        if (!round_.is_for(i)) continue;
        if (look_again(i, copy, false, kNowhere) == Found::nobody)
          throw EndpointClosed("a member closed");
      }
    } while (round_.has_changed(awaited_.empty()));
    return awaited_.empty();
  }

  void begin_look(std::uint32_t whom) {
    awaited_.clear();
    asked_ = whom;
    left_ = left();
  }

  // Find out why a member has no reply, and await it if one may come.
  template <class Place>
  Found look_again(std::uint32_t index, bool copy, bool is_told_once, Place place) {
    const Found found = replies_[index]->look_again(copy, is_told_once, place);
    if (found == Found::nothing) awaited_.push_back(index);
    return found;
  }

  std::uint32_t left() const {
    // seq_cst: read between announce() and park(); pairs with RingReader::leave().
    return std::atomic_ref(segment_.lobby().left).load(std::memory_order_seq_cst);
  }

  // Wait until there may be something of a member that is awaited.
  void await(Deadline& end) {
    const bool is_within = awaited_.size() == 1 && replies_[awaited_.front()]->reader().is_within();
    beat_ = is_within ? Beat::no : Beat::yes;
    may_yield_ = true;
    wait(end, [this](std::int64_t deadline) { return step(deadline); });
    if (is_room_needed_.load(std::memory_order_seq_cst)) take_all();
  }

  Outcome step(std::int64_t deadline_ns) {
    const bool has_news = std::any_of(awaited_.begin(), awaited_.end(),
                                      [this](std::uint32_t i) { return replies_[i]->has_news(); });
    if (has_news || is_ready()) return Outcome::ready;
    if (std::exchange(may_yield_, false) && waiter_.is_crowded() &&
        yielding_.until(deadline_ns, [this] { return is_ready(); }, stop())) {
      return Outcome::ready;
    }
    const Outcome outcome = waiter_.wait(
        Gate(tail_.bell().gate), deadline_ns, next_.watched(awaited_.front()), beat_,
        [this] { return is_ready(); }, stop());
    if (outcome == Outcome::ready) learn();
    return outcome;
  }

  // Learn from a wait that has ended.
  void learn() {
    for (const std::uint32_t i : awaited_) {
      const RingReader& ring = replies_[i]->reader().ring();
      if (beat_ == Beat::yes && next_.is_there(i) && ring.has_message()) {
        return waiter_.arrived(ring.sent_ns());
      }
    }
    waiter_.done();
  }

  bool is_ready() const {
    for (const std::uint32_t i : awaited_) {
      if (next_.is_there(i)) return true;
    }
    if (left() != left_) return true;
    return is_relief_due();
  }
  // Return whether a message waits for room, and replies that do the same can be taken.
  bool is_relief_due() const {
    return is_room_needed_.load(std::memory_order_seq_cst) && next_.is_any_there();
  }

  // Take all whole replies out of the rings, and what there is of others.
  void take_all() {
    for (const auto& member : replies_) {
      while (member->take(true)) {
      }
    }
  }

  Waiter& waiter() override { return waiter_; }
  const Figures& own_figures() const override { return figures_; }
  void count_tensor_set() override {}
  void warm_up() override {
    if (warmup_.is_none()) return;
    call(warmup_);
    // As in PyRingReader: what practice does not touch.
    shmcast::fetch_ahead(this, sizeof *this);
    for (const std::uint32_t i : awaited_) replies_[i]->fetch_ahead();
    fetch_callers_ahead();
  }
  Outcome wait_attached(std::int64_t deadline_ns) override {
    return wait_all_attached(segment_, waiter_, Gate(tail_.bell().gate), deadline_ns, stop());
  }
  void interrupt() override {
    Gate(tail_.bell().gate).wake();
    listener_.ring();
  }
  Listener& listener() override { return listener_; }
  void take_turn(std::optional<Use>& turn) override {
    reliever_.outlast([&] { turn.emplace(*this); });
  }
  bool has_news() override { return is_ready(); }
  void leave(End how) override {
    listener_.hush();
    for (const auto& member : replies_) {
      how == End::failed ? member->reader().give_up() : member->reader().close();
    }
  }
  void drop(std::uint32_t index, std::uint64_t seat) override { writer_.drop_member(index, seat); }
  const Segment& segment() const override { return segment_; }
  std::uint32_t place() const override { return members_; }

  Reference writer_object_;
  PyHubWriter& writer_;
  Reference warmup_;
  const Segment& segment_;
  Tail tail_;
  std::uint32_t members_;
  Listener listener_{tail_.bell().gate, tail_.bell().doorbell};
  NextReplies next_;
  std::vector<std::unique_ptr<MemberReplies>> replies_;
  Round round_{replies_};
  Barrier barrier_;
  Figures figures_{};
  Waiter waiter_;
  Yielding yielding_;
  Beat beat_ = Beat::yes;
  bool may_yield_ = true;  // in this wait, which has not yet
  std::vector<std::uint32_t> awaited_;
  std::uint32_t asked_ = kAny;
  std::uint32_t left_ = 0;  // members that had left when they were looked at
  std::uint32_t last_;      // the member that receive_any() returned last
  std::atomic<bool> is_room_needed_{false};
  Reliever reliever_;
};

}  // namespace shmcast
