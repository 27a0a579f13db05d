// Where extents lie in the arena, what private copies of it show, and whose descriptors are used.
//
//     extents_test [scale]
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "arena/arena.hpp"
#include "arena/mapping.hpp"
#include "arena_ends.hpp"
#include "check.hpp"

namespace shmcast {
namespace {

// Random extents don't overlap, each takes the lowest gap that fits, and in the end all is one
// again.
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

// Nobody else sees what is written to a private copy.
void private_copies() {
  Shared shared(geometry_of(1, 2));
  CHECK(shared.mapping().reserve(kArenaBytes));
  CHECK(!shared.mapping().reserve(kArenaBytes + 1));
  std::byte* const data = shared.mapping().bytes().data();
  std::memset(data, 5, kArenaBytes);
  PrivateCopy mine(shared.mapping(), kPage + 100, 2 * kPage);
  PrivateCopy theirs(shared.mapping(), kPage + 100, 2 * kPage);
  CHECK(mine.is_mapped());
  mine.data()[0] = std::byte{6};
  mine.data()[2 * kPage - 1] = std::byte{7};
  for (std::size_t i = 0; i < 2 * kPage; ++i) {
    CHECK(theirs.data()[i] == std::byte{5});
    CHECK(data[kPage + 100 + i] == std::byte{5});
  }
  CHECK(mine.data()[1] == std::byte{5});
  std::printf("ok  private copies\n");
}

// Where there are too many mappings, the memory is copied.
void many_private_copies() {
  Shared shared(geometry_of(1, 2));
  CHECK(shared.mapping().reserve(kPage));
  std::memset(shared.mapping().bytes().data(), 5, kPage);
  std::vector<std::unique_ptr<PrivateCopy>> copies;
  do {
    copies.push_back(std::make_unique<PrivateCopy>(shared.mapping(), 0, kPage));
    CHECK(copies.size() < 60'000);
  } while (copies.back()->is_mapped());
  CHECK(copies.size() > 1000);
  copies.back()->data()[1] = std::byte{6};
  CHECK(copies.back()->data()[0] == std::byte{5});
  CHECK(copies.front()->data()[1] == std::byte{5});
  copies.clear();
  CHECK(PrivateCopy(shared.mapping(), 0, kPage).is_mapped());
  std::printf("ok  many private copies\n");
}

// A descriptor that others have closed, and opened for a file of their own, is left alone.
void a_descriptor_of_another_file() {
  Shared shared(geometry_of(1, 2));
  const int other = memfd_create("another", MFD_CLOEXEC);
  CHECK(other >= 0);
  int number = -1;
  {
    Mapping mapping(shared.fd(), kArenaBytes, Access::write);
    CHECK(mapping.reserve(kPage, kPage));
    CHECK(dup2(other, mapping.file().number()) >= 0);
    CHECK(!mapping.reserve(kArenaBytes));
    CHECK(lseek(other, 0, SEEK_END) == 0);
    CHECK(!PrivateCopy(mapping, 0, kPage).is_mapped());
    ::close(other);
    CHECK(fcntl(mapping.file().number(), F_GETFD) >= 0);
    number = mapping.file().number();
    CHECK(number > 2);
  }
  CHECK(fcntl(number, F_GETFD) >= 0);  // not closed
  ::close(number);
  std::printf("ok  a descriptor of another file\n");
}

// No more is taken than there is room for.
void room() {
  Shared shared(geometry_of(1, 2));
  CHECK(!shared.mapping().reserve(2 * kPage, kPage));
  CHECK(shared.mapping().reserved() == 0);
  CHECK(shared.mapping().reserve(2 * kPage, 2 * kPage));
  CHECK(shared.mapping().reserved() == 2 * kPage);
  CHECK(shared.mapping().reserve(2 * kPage, 0));
  std::printf("ok  room\n");
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  using namespace shmcast;
  const std::uint64_t scale = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  the_lowest_gap_is_taken(5000 * scale);
  private_copies();
  many_private_copies();
  a_descriptor_of_another_file();
  room();
}
