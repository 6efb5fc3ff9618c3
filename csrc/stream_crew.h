// The threads of one step: one parallel region, in which all of them take chunks of one instruction after another.
//
// Who comes first leads: it publishes the chunks of an instruction, takes them like everybody, and goes on when all are
// done. A thread that comes late, or never, is not waited for; only a chunk that somebody works on is. So ranges may
// run one after another and in any order. No result depends on who does a chunk.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#include "parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace longstream {

class StreamCrew {
 public:
  // Runs lead(crew, front) on one thread, and work(turn, chunk) for what it asks of the crew on all of them.
  template <typename Work, typename Lead>
  static void run(ParallelFor parallel, int64_t threads, const Work& work, const Lead& lead) {
    StreamCrew crew;
    if (threads <= 1) return lead(crew, true);
    crew.alone_ = false;
    parallel_for(parallel, threads, 1, [&](int64_t begin, int64_t) {
      if (!crew.led_.exchange(true, std::memory_order_relaxed)) {
        lead(crew, begin == 0);
        crew.word_.store(kOver, std::memory_order_release);
      } else {
        crew.help(work, begin == 0);
      }
    });
  }

  // For the leader: work(turn, 0 .. chunks - 1), done when it returns. Turns are below kMostTurns and never return.
  template <typename Work>
  void share(int64_t turn, int64_t chunks, bool front, const Work& work) {
    if (alone_ || chunks <= 1 || chunks > kMostChunks) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) work(turn, chunk);
      return;
    }
    const int64_t before = done_.load(std::memory_order_relaxed);  // nobody is at work
    word_.store(uint64_t(turn) << (2 * kBits) | uint64_t(chunks), std::memory_order_release);
    int64_t own = 0;
    for (int64_t chunk; (chunk = take(front)) >= 0; ++own) work(turn, chunk);
    for (int spins = 0; done_.load(std::memory_order_acquire) - before < chunks - own;) rest(spins);
  }

  static constexpr int kBits = 22;
  static constexpr int64_t kMostChunks = (int64_t(1) << kBits) - 1, kMostTurns = (int64_t(1) << (64 - 2 * kBits)) - 1;

 private:
  static constexpr uint64_t kMask = (uint64_t(1) << kBits) - 1, kOver = ~uint64_t(0) << (2 * kBits);
  static constexpr int kSpins = 2000;  // some 20 to 50 us: longer than most steps

  // The first of range 0 and the last of others, so that a thread has much the same chunks in every step, and finds
  // their weights in its own cache.
  static bool claim(std::atomic<uint64_t>& word, uint64_t& seen, bool front, int64_t& chunk) {
    const uint64_t first = seen >> kBits & kMask, last = seen & kMask;
    if (first == last) return false;
    const uint64_t next = front ? seen + (uint64_t(1) << kBits) : seen - 1;
    if (!word.compare_exchange_weak(seen, next, std::memory_order_acq_rel, std::memory_order_acquire)) return false;
    chunk = int64_t(front ? first : last - 1);
    return true;
  }

  int64_t take(bool front) {
    uint64_t seen = word_.load(std::memory_order_acquire);
    int64_t chunk = -1;
    while ((seen >> kBits & kMask) != (seen & kMask)) {
      if (claim(word_, seen, front, chunk)) return chunk;
    }
    return -1;
  }

  template <typename Work>
  void help(const Work& work, bool front) {
    for (int spins = 0;;) {
      uint64_t seen = word_.load(std::memory_order_acquire);
      int64_t chunk;
      if (seen == kOver) return;
      if (claim(word_, seen, front, chunk)) {
        work(int64_t(seen >> (2 * kBits)), chunk);
        done_.fetch_add(1, std::memory_order_release);
        spins = 0;
      } else {
        rest(spins);
      }
    }
  }

  static void rest(int& spins) {
    if (++spins > kSpins) return std::this_thread::yield();
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  alignas(64) std::atomic<uint64_t> word_{0};  // turn, first chunk that nobody has, the one after the last
  alignas(64) std::atomic<int64_t> done_{0};   // chunks that helpers have done
  alignas(64) std::atomic<bool> led_{false};
  bool alone_ = true;
};

}  // namespace longstream
