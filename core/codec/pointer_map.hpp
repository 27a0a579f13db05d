// Room: codec. Numbers by pointer: what a message has met so far.
// Knows: addresses.
// Does not know: whose they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace shmcast::codec {

// An open hash table that is emptied by counting up: most messages need few of its entries.
class PointerMap {
 public:
  struct Entry {
    const void* key = nullptr;
    std::uint32_t era = 0;
    std::uint32_t number = 0;
  };

  void clear() {
    used_ = 0;
    if (++era_ == 0) {
      entries_.assign(entries_.size(), {});
      era_ = 1;
    }
  }
  // Return the key's entry or, if it has none, the place for it.
  Entry& at(const void* key) {
    const std::size_t mask = entries_.size() - 1;
    std::size_t i = (reinterpret_cast<std::uintptr_t>(key) >> 4) * 0x9E3779B97F4A7C15U >> shift_;
    while (entries_[i].era == era_ && entries_[i].key != key) i = (i + 1) & mask;
    return entries_[i];
  }
  bool has(const Entry& entry) const { return entry.era == era_; }
  // Fill a place that at() has returned just now.
  void put(Entry& place, const void* key, std::uint32_t number) {
    place = {key, era_, number};
    if (++used_ * 2 > entries_.size()) grow();
  }

 private:
  [[gnu::cold, gnu::noinline]] void grow() {
    std::vector<Entry> before(entries_.size() * 2);
    before.swap(entries_);
    --shift_;
    for (const Entry& entry : before) {
      if (entry.era == era_) at(entry.key) = entry;
    }
  }

  unsigned shift_ = 64 - 7;
  std::vector<Entry> entries_ = std::vector<Entry>(128);
  std::uint32_t era_ = 1;
  std::size_t used_ = 0;
};

}  // namespace shmcast::codec
