// Where extents lie in the arena, and what private pages of it show.
//
//     extents_test [scale]
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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

// Nobody else sees what is written to private pages.
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
  the_lowest_gap_is_taken(5000 * scale);
  private_pages();
}
