// Room: hub. Whether any member has replied something that the hub has not given out.
// Knows: the word that changes with each member's next fragment, of all of them side by side.
// Does not know: what a reply is, or whose turn it is to take it.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "ring/members.hpp"

namespace shmcast {

// What a look for a reply of anybody compares: of each member one word in its ring, and what that
// is to become. Only those words lie apart.
//
// Written by the thread whose turn it is to receive, and right for that thread. To another one what
// it reads here is a hint: the two halves may be of two fragments.
class NextReplies {
 public:
  explicit NextReplies(std::uint32_t members) : words_(members) {}

  // Set for what a member's next fragment is awaited.
  void set(std::uint32_t member, const Awaited& next) {
    // relaxed, twice, here and below: see above. The word itself is read as Awaited does it.
    words_[member].seq.store(next.seq, std::memory_order_relaxed);
    words_[member].number.store(next.number, std::memory_order_relaxed);
  }

  bool is_there(std::uint32_t member) const { return words_[member].is_there(); }
  bool is_any_there() const {
    for (const Word& word : words_) {
      if (word.is_there()) return true;
    }
    return false;
  }

  // Count replies that are taken out of the rings and that nobody has got: while there is none, who
  // looks for one of anybody need not ask each member. For any thread.
  //
  // relaxed: a reply that another thread takes back is found by who knows of that, which orders it.
  void add_taken(std::int32_t change) { taken_.fetch_add(change, std::memory_order_relaxed); }
  bool has_taken() const { return taken_.load(std::memory_order_relaxed) != 0; }

  // Return the word of a member, for who waits near it.
  const std::uint64_t& watched(std::uint32_t member) const {
    return *words_[member].seq.load(std::memory_order_relaxed);
  }

 private:
  struct Word {
    std::atomic<const std::uint64_t*> seq;
    std::atomic<std::uint64_t> number;
    bool is_there() const {
      return Awaited{seq.load(std::memory_order_relaxed), number.load(std::memory_order_relaxed)}
          .is_there();
    }
  };
  std::vector<Word> words_;
  std::atomic<std::int32_t> taken_{0};
};

}  // namespace shmcast
