// Walks over time with a channel in every lane: how columns are read, and how sequences and blocks of channels are
// shared out among threads. For *_kernels.cpp.
#pragma once

#include "parallel.h"
#include "simd.h"

namespace longstream::LONGSTREAM_ISA {

// How a vector of columns is read and written: whole vectors, or what is left of a row.
struct Whole {
  template <typename T>
  Vector<T> read(const T* from) const {
    return load(from);
  }
  template <typename T>
  void write(T* to, Vector<T> x) const {
    store(to, x);
  }
  static void finish() {}
};

struct Rest {
  int64_t count;
  template <typename T>
  Vector<T> read(const T* from) const {
    return load_part(from, count);
  }
  template <typename T>
  void write(T* to, Vector<T> x) const {
    store_part(to, x, count);
  }
  static void finish() {}
};

constexpr int64_t kWidth = 512;  // of a block, in channels
// Narrower blocks until there are so many tasks. Past the cache only whole rows are read at full speed: of rows of 512,
// blocks of 64 channels took 6 times as long, and blocks of 256 twice as long.
constexpr int64_t kLeastWidth = 64, kTasks = 8, kLeastWidthPastCache = 256, kTasksPastCache = 2;

// Calls walk(columns, n, from, width) for every sequence n and every block of channels. Channels know nothing of one
// another, so no result depends on the blocks. `grain`: numbers for which a second thread is worth waking.
template <typename T, typename Walk>
void walk_blocks(int64_t N, int64_t D, const int64_t* bounds, bool past_cache, int64_t grain, ParallelFor threads,
                 const Walk& walk) {
  const int64_t rest = D % kLanes<T>, whole = D - rest;
  if (N == 0 || D == 0) return;
  const int64_t least = past_cache ? kLeastWidthPastCache : kLeastWidth, tasks = past_cache ? kTasksPastCache : kTasks;
  int64_t width = kWidth;
  while (width > least && N * ((whole + width - 1) / width) < tasks) width /= 2;
  const int64_t blocks = (whole + width - 1) / width + (rest > 0);
  const int64_t numbers = (bounds[N] - bounds[0]) * D / (N * blocks);
  parallel_for(threads, N * blocks, 1 + grain / (1 + numbers), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {  // block after block, so that unequal sequences share out well
      const int64_t from = task / N * width, n = task % N;
      if (from >= whole) {
        walk(Rest{rest}, n, whole, rest);
      } else {
        walk(Whole{}, n, from, whole - from < width ? whole - from : width);
      }
    }
  });
}

}  // namespace longstream::LONGSTREAM_ISA
