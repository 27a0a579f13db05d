// Room: bindings. Which of the messages that were received may be decoded again, for practice.
// Knows: how long that took, and how large they are.
// Does not know: what is in them.
#pragma once

#include <Python.h>

#include <algorithm>
#include <cstdint>

namespace shmcast {

#ifdef Py_GIL_DISABLED
// Threads that share a codec would change at once what it keeps for practice.
inline constexpr bool kPractises = false;
#else
inline constexpr bool kPractises = true;
#endif

// A message that takes long is given up for a while, and so are others of its size. (Three times in
// a row, because the first round meets cold caches. Not for ever, because a busy machine makes any
// message take long.)
class Practice {
 public:
  static constexpr Py_ssize_t kMostBytes = 64 * 1024;  // of a message

  // Return whether to practise a message of this size, one of those that count for a pause.
  bool takes(Py_ssize_t size) {
    if (size < too_long_) return true;
    if (left_of_pause_ > 0) {
      --left_of_pause_;
      return false;
    }
    too_long_ = kMostBytes;
    return size < too_long_;
  }

  // Count a round. Returns whether there may be another on the same message.
  bool goes_on(bool is_decoded, std::int64_t ns, Py_ssize_t size) {
    const bool is_quick = is_decoded && ns < kLongNs;
    slow_rounds_ = is_quick ? 0 : slow_rounds_ + 1;
    if (is_quick) pause_ = kShortestPause;
    if (is_decoded && slow_rounds_ < 3) return true;
    if (is_decoded) {
      too_long_ = std::min(too_long_, size);
      left_of_pause_ = pause_;
      pause_ = std::min(2 * pause_, kLongestPause);
    }
    slow_rounds_ = 0;
    return false;
  }

 private:
  static constexpr std::int64_t kLongNs = 20'000;
  static constexpr int kShortestPause = 64;  // messages
  static constexpr int kLongestPause = 4096;

  int slow_rounds_ = 0;               // in a row
  Py_ssize_t too_long_ = kMostBytes;  // messages of this size are not practised now
  int pause_ = kShortestPause;        // the next one
  int left_of_pause_ = 0;
};

}  // namespace shmcast
