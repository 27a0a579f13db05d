// Writer and readers as threads over one ring and its arena, to be run under ThreadSanitizer.
//
// The arena's words are filled by plain stores and read by plain loads: an extent that is used
// again while somebody may look at it is a data race, which the sanitizer sees whatever the values
// are. Exits with 1 at the first thing that is not as promised.
#include "arena/arena.hpp"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"

namespace shmcast {
namespace {

constexpr std::byte kNonce[kNonceBytes] = {std::byte{1}, std::byte{2}};
constexpr Identity kWho{1, 1, 1};
constexpr auto kNoStop = [] { return false; };
constexpr WaitPolicy kPark{WaitPolicy::Mode::park, 0};
constexpr std::size_t kArenaBytes = 64 * kPage;

// A file in memory, its arena's mapping, and a ring in ordinary memory.
class Shared {
 public:
  explicit Shared(const Geometry& geometry)
      : geometry_(geometry),
        fd_(memfd_create("arena_test", MFD_CLOEXEC)),
        ring_(static_cast<std::byte*>(std::aligned_alloc(kPage, ring_bytes())), &std::free) {
    CHECK(fd_ >= 0);
    CHECK(ftruncate(fd_, kArenaBytes) == 0);
    std::memset(ring_.get(), 0, ring_bytes());
    mapping_.emplace(fd_, kArenaBytes, Access::write);
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { ::close(fd_); }

  Segment format() { return Segment::format(span(), geometry_, Segment::Nonce(kNonce), kWho); }
  Segment attach() { return Segment::attach(span(), geometry_, Segment::Nonce(kNonce)); }
  // One for all threads: the sanitizer knows memory by its address.
  Mapping& mapping() { return *mapping_; }
  int fd() const { return fd_; }

 private:
  std::size_t ring_bytes() const { return round_up(geometry_.segment_bytes(), kPage); }
  std::span<std::byte> span() { return {ring_.get(), geometry_.segment_bytes()}; }

  Geometry geometry_;
  int fd_;
  std::unique_ptr<std::byte, decltype(&std::free)> ring_;
  std::optional<Mapping> mapping_;
};

Geometry geometry_of(std::uint32_t readers, std::uint32_t slots) {
  return {readers, slots, 128, Arena::kExtents};
}

// Sends as the Python binding does: extents that are full, and a frame that says the number.
class Sender {
 public:
  explicit Sender(Shared& shared)
      : segment_(shared.format()), ring_(segment_, kPark), arena_(shared.mapping(), segment_) {}

  // The message of a number, with up to so many extents; those that there is no room for are left
  // out. False: abandoned after `patience_ns`.
  bool send(std::uint64_t number, std::size_t frames, std::mt19937_64& random,
            std::int64_t patience_ns = kForever) {
    std::vector<std::uint32_t> ids;
    std::vector<ArenaOffset> offsets;
    std::vector<std::uint64_t> entries{sizeof number};
    for (std::size_t i = 0; i < frames; ++i) {
      const std::size_t bytes = 1 + random() % (24 * kPage);
      const auto id = arena_.allocate(bytes);
      full_ += !id;
      if (!id) continue;
      std::byte* const data = arena_.data(*id);
      CHECK(arena_.offset(data) % kPage == 0);
      CHECK(arena_.find(data, bytes) == id);
      std::memset(data, static_cast<int>(number), bytes);
      ids.push_back(*id);
      offsets.push_back(arena_.offset(data));
      entries.push_back(FrameEntry::in_arena(*id, bytes));
    }
    entries.push_back(filler_.size());
    std::vector<ConstPiece> pieces{{reinterpret_cast<std::byte*>(&number), sizeof number}};
    for (ArenaOffset& offset : offsets) {
      pieces.push_back({reinterpret_cast<std::byte*>(&offset), sizeof offset});
    }
    pieces.push_back({filler_.data(), filler_.size()});
    ring_.begin(pieces, entries);
    for (const std::uint32_t reader : ring_.admitted()) arena_.mark_alive(reader);
    const std::int64_t deadline = deadline_after(patience_ns);
    Outcome outcome;
    do {
      outcome = ring_.advance(deadline, kNoStop);
    } while (outcome == Outcome::interrupted);
    if (outcome != Outcome::ready) ring_.abandon();
    for (const std::uint32_t id : ids) {
      arena_.sent(id, ring_.published());
      arena_.give_back(id);
    }
    return outcome == Outcome::ready;
  }

  // So long that the message has more fragments than the ring has slots.
  void set_filler(std::size_t bytes) { filler_.assign(bytes, std::byte{0xee}); }

  Arena& arena() { return arena_; }
  RingWriter& ring() { return ring_; }
  std::uint64_t full() const { return full_; }

 private:
  Segment segment_;
  RingWriter ring_;
  Arena arena_;
  std::vector<std::byte> filler_;
  std::uint64_t full_ = 0;
};

// One view of a reader: counted as views.hpp does.
class View {
 public:
  View(Held& held, const std::byte* data, std::size_t size, std::uint64_t number)
      : held_(&held), data_(data), size_(size), number_(number) {}
  View(View&& other) noexcept
      : held_(std::exchange(other.held_, nullptr)),
        data_(other.data_),
        size_(other.size_),
        number_(other.number_) {}
  View& operator=(View&& other) noexcept {
    std::swap(held_, other.held_);
    data_ = other.data_;
    size_ = other.size_;
    number_ = other.number_;
    return *this;
  }
  ~View() {
    if (held_ != nullptr) std::atomic_ref(*held_).fetch_sub(1, std::memory_order_release);
  }

  // Its reader is killed: nobody takes it out of the count.
  void die() { held_ = nullptr; }

  void check() const {
    for (std::size_t i = 0; i < size_; i += 61) CHECK(data_[i] == static_cast<std::byte>(number_));
    CHECK(data_[size_ - 1] == static_cast<std::byte>(number_));
  }

 private:
  Held* held_;
  const std::byte* data_;
  std::size_t size_;
  std::uint64_t number_;
};

// Receives as the Python binding does.
class Receiver {
 public:
  Receiver(Segment segment, Mapping& mapping, std::uint32_t index,
           std::uint64_t found = RingReader::kVacant)
      : segment_(segment), mapping_(mapping), index_(index), ring_(segment, index, kPark, found) {}

  // The next message: its number, and its views. nullopt: there is none any more.
  std::optional<std::uint64_t> receive(std::vector<View>& views) {
    for (;;) {
      Outcome outcome = resumed([&] { return ring_.begin(kForever, kNoStop); });
      if (outcome == Outcome::closed) return std::nullopt;
      CHECK(outcome == Outcome::ready);
      std::vector<std::uint64_t> entries(ring_.frame_count());
      const MutablePiece table{reinterpret_cast<std::byte*>(entries.data()),
                               table_bytes(entries.size())};
      ring_.into({&table, 1});
      outcome = resumed([&] { return ring_.fetch(kForever, kNoStop); });
      if (outcome == Outcome::abandoned) continue;
      if (outcome == Outcome::closed) return std::nullopt;
      ring_.check_entries(entries);
      std::uint64_t number = 0;
      std::vector<ArenaOffset> offsets(entries.size());
      std::vector<std::byte> filler(entries.back());
      std::vector<MutablePiece> pieces{{reinterpret_cast<std::byte*>(&number), sizeof number}};
      std::vector<Held*> held;
      for (std::size_t i = 1; i + 1 < entries.size(); ++i) {
        pieces.push_back({reinterpret_cast<std::byte*>(&offsets[i]), sizeof(ArenaOffset)});
        held.push_back(&segment_.held(index_, FrameEntry::extent(entries[i])));
        // relaxed: the release of the message's last fragment comes after it.
        std::atomic_ref(*held.back()).fetch_add(1, std::memory_order_relaxed);
      }
      pieces.push_back({filler.data(), filler.size()});
      ring_.into(pieces);
      outcome = resumed([&] { return ring_.fetch(kForever, kNoStop); });
      if (outcome != Outcome::ready) {
        for (Held* one : held) std::atomic_ref(*one).fetch_sub(1, std::memory_order_release);
        if (outcome == Outcome::closed) return std::nullopt;
        continue;
      }
      ring_.end(payload_bytes(entries));
      for (std::size_t i = 1; i + 1 < entries.size(); ++i) {
        views.emplace_back(*held[i - 1], mapping_.bytes().data() + offsets[i],
                           FrameEntry::bytes(entries[i]), number);
      }
      return number;
    }
  }

  void leave() { ring_.leave(); }

 private:
  template <class Step>
  static Outcome resumed(Step step) {
    for (;;) {
      const Outcome outcome = step();
      if (outcome != Outcome::interrupted) return outcome;
    }
  }

  Segment segment_;
  Mapping& mapping_;
  std::uint32_t index_;
  RingReader ring_;
};

// All of the arena is one free extent.
void check_all_free(Arena& arena) {
  const auto id = arena.allocate(kArenaBytes);
  CHECK(id.has_value());
  arena.give_back(*id);
}

// Views are kept for a while and dropped in any order; each message's bytes
// are its number as long as any view of it lives. Some messages are abandoned.
void views_never_change(std::uint32_t readers, std::uint64_t messages) {
  Shared shared(geometry_of(readers, 8));
  Sender sender(shared);
  std::vector<std::thread> threads;
  std::atomic<std::uint64_t> viewed{0};
  for (std::uint32_t index = 0; index < readers; ++index) {
    threads.emplace_back([&, index] {
      const Segment segment = shared.attach();
      CHECK(RingReader::attach(segment, index, kWho));
      Receiver receiver(segment, shared.mapping(), index);
      std::mt19937_64 random(index);
      std::vector<View> views;
      std::uint64_t last = 0;
      while (const auto number = receiver.receive(views)) {
        CHECK(*number > last);
        last = *number;
        viewed += !views.empty();
        while (views.size() > 4 || (!views.empty() && random() % 2 == 0)) {
          std::swap(views[random() % views.size()], views.back());  // (perhaps itself)
          views.back().check();
          views.pop_back();
        }
      }
      CHECK(last == messages);
      receiver.leave();  // views outlive it
      for (const View& view : views) view.check();
    });
  }
  std::mt19937_64 random(99);
  std::uint64_t abandoned = 0;
  for (std::uint64_t number = 1; number <= messages; ++number) {
    if (number % 16 == 0) {
      sender.set_filler(100'000);
      const bool is_sent = sender.send(number, 2, random, 0);
      sender.set_filler(random() % 300);
      if (is_sent) continue;
      ++abandoned;
    }
    CHECK(sender.send(number, random() % 4, random));
  }
  sender.ring().close();
  for (auto& thread : threads) thread.join();
  check_all_free(sender.arena());
  CHECK(viewed != 0);
  std::printf(
      "ok  views never change: %u readers, %lu with views, %lu found no room, %lu given up\n",
      readers, static_cast<unsigned long>(viewed), static_cast<unsigned long>(sender.full()),
      static_cast<unsigned long>(abandoned));
}

// Seat 1 is taken by one reader after the other; each dies with views, which are then free.
void the_dead_hold_nothing(std::uint64_t lives) {
  Shared shared(geometry_of(2, 8));
  Sender sender(shared);
  std::mt19937_64 random(7);
  const Segment segment = shared.attach();
  CHECK(RingReader::attach(segment, 0, kWho));
  Receiver survivor(segment, shared.mapping(), 0);
  std::vector<View> kept;
  std::uint64_t number = 0;
  const auto send_and_receive = [&] {
    CHECK(sender.send(++number, 1, random));
    CHECK(survivor.receive(kept) == number);
    kept.clear();
  };
  for (std::uint32_t pid = 1; pid <= lives; ++pid) {
    const std::uint64_t found = peers(segment)[1].seat;
    CHECK(RingReader::attach(segment, 1, {pid, 1, pid}, found));
    Receiver mortal(segment, shared.mapping(), 1, found);
    if (random() % 4 == 0 && pid > 1) {  // dies, or leaves, before it is admitted
      check_all_free(sender.arena());
      continue;
    }
    std::thread life([&] {
      std::vector<View> views;
      CHECK(mortal.receive(views) == number + 1);
      CHECK(views.size() == 1);
      views[0].check();
      views[0].die();
    });
    CHECK(sender.send(number + 1, 1, random));
    life.join();
    ++number;
    CHECK(survivor.receive(kept) == number);
    kept.clear();
    CHECK(!sender.arena().allocate(kArenaBytes));
    switch (random() % 3) {
      case 0:  // noticed by the arena first
        sender.arena().mark_dead(1);
        check_all_free(sender.arena());
        send_and_receive();
        break;
      case 1:  // by the ring first
        sender.ring().drop(1, peers(segment)[1].seat);
        CHECK(!sender.arena().allocate(kArenaBytes));
        break;
      default: break;  // by its replacement
    }
  }
  std::printf("ok  the dead hold nothing: %lu lives\n", static_cast<unsigned long>(lives));
}

// Nobody is admitted to a message that is refused: the arena would not learn of it.
void a_refused_message_admits_nobody() {
  Shared shared(geometry_of(1, 8));
  Sender sender(shared);
  const Segment segment = shared.attach();
  CHECK(RingReader::attach(segment, 0, {1, 1, 1}));
  const std::uint64_t found = peers(segment)[0].seat;
  CHECK(RingReader::attach(segment, 0, {2, 1, 2}, found));
  const std::byte one{};
  const ConstPiece huge{&one, Descriptor::kMaxBytes + 1};
  bool refused = false;
  try {
    sender.ring().begin({&huge, 1});
  } catch (const MessageTooLarge&) {
    refused = true;
  }
  CHECK(refused);
  CHECK(sender.ring().admitted().empty());
  const ConstPiece small{&one, 1};
  sender.ring().begin({&small, 1});
  CHECK(sender.ring().admitted().size() == 1);
  std::printf("ok  a refused message admits nobody\n");
}

// By lot: extents don't overlap, the lowest fitting gap is taken, and in the end all is one again.
void the_lowest_gap_is_taken(std::uint64_t rounds) {
  Shared shared(geometry_of(1, 2));
  Arena arena(shared.mapping(), shared.format());
  std::mt19937_64 random(3);
  std::vector<std::pair<std::uint64_t, std::uint64_t>> used;  // begin and end, by address
  std::vector<std::pair<std::uint64_t, std::uint32_t>> ids;   // begin and id
  for (std::uint64_t round = 0; round < rounds; ++round) {
    const std::uint64_t bytes = 1 + random() % (16 * kPage);
    std::uint64_t at = 0;
    auto next = used.begin();
    for (; next != used.end() && next->first - at < bytes; ++next) at = next->second;
    const auto id = arena.allocate(bytes);
    CHECK(id.has_value() == (at + round_up(bytes, kPage) <= kArenaBytes));
    if (id) {
      CHECK(arena.offset(arena.data(*id)) == at);
      used.insert(next, {at, at + round_up(bytes, kPage)});
      ids.emplace_back(at, *id);
    }
    while (!ids.empty() && random() % 2 == 0) {
      std::swap(ids[random() % ids.size()], ids.back());
      arena.give_back(ids.back().second);
      std::erase_if(used, [&](const auto& one) { return one.first == ids.back().first; });
      ids.pop_back();
    }
  }
  for (const auto& [at, id] : ids) arena.give_back(id);
  check_all_free(arena);
  CHECK(!arena.allocate(kArenaBytes + 1));
  std::vector<std::uint32_t> many;
  while (const auto id = arena.allocate(0)) many.push_back(*id);
  CHECK(many.size() == kArenaBytes / kPage);
  std::printf("ok  the lowest gap is taken\n");
}

// What is written to private pages nobody else sees.
void private_pages() {
  Shared shared(geometry_of(1, 2));
  CHECK(shared.mapping().reserve(kArenaBytes));
  CHECK(!shared.mapping().reserve(kArenaBytes + 1));
  std::byte* const data = shared.mapping().bytes().data();
  std::memset(data, 5, kArenaBytes);
  PrivatePages mine(shared.fd(), kPage + 100, 2 * kPage);
  PrivatePages theirs(shared.fd(), kPage + 100, 2 * kPage);
  mine.data()[0] = std::byte{6};
  mine.data()[2 * kPage - 1] = std::byte{7};
  for (std::size_t i = 0; i < 2 * kPage; ++i) {
    CHECK(theirs.data()[i] == std::byte{5});
    CHECK(data[kPage + 100 + i] == std::byte{5});
  }
  CHECK(mine.data()[1] == std::byte{5});
  std::printf("ok  private pages\n");
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  using namespace shmcast;
  const std::uint64_t scale = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  for (const std::uint32_t readers : {1, 3}) views_never_change(readers, 1000 * scale);
  the_dead_hold_nothing(200 * scale);
  a_refused_message_admits_nobody();
  the_lowest_gap_is_taken(5000 * scale);
  private_pages();
}
