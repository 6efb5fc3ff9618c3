// Elementwise kernels on rows: vectors with a rest, and sums over rows in an order that threads do not change. For
// *_kernels.cpp only, as simd.h is.
#pragma once

#include <cstdint>

#include "blocks.h"
#include "parallel.h"
#include "simd.h"

namespace longstream::LONGSTREAM_ISA {

constexpr int64_t kTaskElements = 16384;  // below that a second thread costs more than it saves

template <typename T>
inline Vector<T> take(const T* from, int64_t count) {
  return count == kLanes<T> ? load(from) : load_part(from, count);
}

template <typename T>
inline void put(T* to, Vector<T> x, int64_t count) {
  if (count == kLanes<T>) {
    store(to, x);
  } else {
    store_part(to, x, count);
  }
}

// body(d, count) for the vectors of a row: count is a constant in all but the last.
template <typename T, typename F>
inline void for_vectors(int64_t size, const F& body) {
  int64_t d = 0;
  for (; d + kLanes<T> <= size; d += kLanes<T>) body(d, int64_t(kLanes<T>));
  if (d < size) body(d, size - d);
}

inline int64_t rows_of(int64_t count, int64_t D) { return D > 0 ? (count + D - 1) / D : 0; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t grain_of(int64_t elements) {
  return elements > 0 && elements < kTaskElements ? kTaskElements / elements : 1;
}

// sums[d] = partial[0][d] + partial[1][d] + ..., rows `stride` apart.
template <typename T>
void add_up(const T* partial, int64_t blocks, int64_t stride, int64_t D, T* sums, ParallelFor threads) {
  parallel_for(threads, D, grain_of(blocks), [&](int64_t first, int64_t last) {
    for (int64_t d = first; d < last; ++d) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block) sum += double(partial[block * stride + d]);
      sums[d] = T(sum);
    }
  });
}

}  // namespace longstream::LONGSTREAM_ISA
