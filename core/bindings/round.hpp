// Room: bindings. One reply of each member: which of them are answers to one message.
// Knows: who has come too late to be asked by it.
// Does not know: how replies are taken out of a ring, or how anybody waits for one.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "bindings/member_replies.hpp"

namespace shmcast {

namespace nb = nanobind;

// No message needs an answer, so that only who receives replies could say which one a round is for.
// What is sure: each reply tells by which message it was asked for, and the message of a round is
// the earliest of these. Who has come after it has no part in the round, and the death of who had
// its place before stands there; who has come before it has, and that death is of an earlier one.
class Round {
 public:
  explicit Round(const std::vector<std::unique_ptr<MemberReplies>>& members) : members_(members) {}

  // Take what there is, and look at the members as they are now.
  void begin(bool copy) {
    for (const auto& member : members_) member->has(copy);
    earliest_ = earliest();
  }

  // Return whether a member without a reply is to be looked at again.
  bool is_for(std::uint32_t index) const {
    MemberReplies& member = *members_[index];
    const bool has_any = member.asked_by().has_value() || member.is_death_next();
    return !has_any && !has_come_later(member) && !member.is_unasked();
  }

  // Return whether that has to be done anew. `is_over`: nobody is awaited.
  bool has_changed(bool is_over) {
    if (earliest() != earliest_) return true;
    return is_over && forget_earlier_deaths();
  }

  // Return a reply of each member, or None for a death.
  std::vector<nb::object> take() {
    std::vector<nb::object> all;
    all.reserve(members_.size());
    for (const auto& member : members_) {
      const auto asked_by = member->asked_by();
      const bool is_later = asked_by > member->joined_at() && has_come_later(*member);
      const bool has_part = member->is_death_next() || (asked_by && !is_later);
      all.push_back(has_part ? member->pop() : nb::none());
    }
    return all;
  }

 private:
  std::optional<std::uint64_t> earliest() const {
    std::optional<std::uint64_t> earliest;
    for (const auto& member : members_) {
      const auto asked_by = member->asked_by();
      if (asked_by) earliest = std::min(earliest.value_or(*asked_by), *asked_by);
    }
    return earliest;
  }

  bool has_come_later(const MemberReplies& member) const {
    const auto joined_at = member.joined_at();
    return earliest_ && joined_at && *joined_at >= *earliest_;
  }

  // Return whether there was any.
  bool forget_earlier_deaths() {
    bool has_forgotten = false;
    for (const auto& member : members_) {
      const auto joined_at = member->joined_at();
      if (!member->is_death_next() || !earliest_ || !joined_at || *joined_at >= *earliest_)
        continue;
      member->pop();
      has_forgotten = true;
    }
    return has_forgotten;
  }

  const std::vector<std::unique_ptr<MemberReplies>>& members_;
  std::optional<std::uint64_t> earliest_;  // message that has asked for a reply which is there
};

}  // namespace shmcast
