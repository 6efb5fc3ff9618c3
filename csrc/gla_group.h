// Four tokens at a time. With S the state before them, P_t = f_1 .. f_t and D_ts = f_{s+1} .. f_t (products of gates),
//
//   o_t = S^T (q_t P_t) + sum_{s <= t} (q_t . k_s D_ts) v_s        S' = diag(P_4) S + sum_s (k_s D_4s) v_s^T
//
// so the state is read by four multiply-adds and moved on by one product and four multiply-adds: 9 operations an
// element where four plain steps take 12. Eight tokens would take 17 for two times four, but twice the dot products.
// Nothing is divided by a gate and no logarithm of a product is formed. Missing tokens have q = k = v = 0 and f = 1.
#pragma once

#include <utility>

#include "gla.h"
#include "simd.h"

namespace longstream::LONGSTREAM_ISA {

constexpr int kGroup = 4;
constexpr int kPairs = 10;               // of t and s <= t, in the order (0, 0) (1, 0) (1, 1) (2, 0) ...
constexpr int kPairsPlace = 16;          // numbers that the pairs of a group take in memory
constexpr int kRecord = 2 * kGroup + 1;  // q_t P_t, k_s D_4s and P_4 of one key

constexpr int pair(int t, int s) { return t * (t + 1) / 2 + s; }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }
inline int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }
inline int64_t round_up(int64_t n, int64_t size) { return parts(n, size) * size; }

// The first row of sequence n among all tokens, and how many it has.
inline int64_t first_of(const GlaSizes& sizes, int64_t n) { return sizes.bounds ? sizes.bounds[n] : n * sizes.T; }
inline int64_t length_of(const GlaSizes& sizes, int64_t n) {
  return sizes.bounds ? sizes.bounds[n + 1] - sizes.bounds[n] : sizes.T;
}
// Where the state before token b * spacing of sequence n is kept, b >= 1, among (tokens / spacing) states: sequences
// do not overlap, because one of L tokens needs ceil(L / spacing) - 1 places.
inline int64_t place_of(const GlaSizes& sizes, int64_t n, int64_t b) {
  return first_of(sizes, n) / sizes.spacing + b - 1;
}

template <typename T>
const T* start_of(const GlaTokens<T>& x, const GlaSizes& sizes, int64_t n, int64_t h) {
  return x.data + (sizes.bounds ? sizes.bounds[n] * x.token : n * x.sequence) + h * x.head;
}

// Asks for the rows of the next group. They are short and far apart, which the processor does not see coming.
template <typename T>
inline void prefetch_rows(const T* from, int64_t stride) {
#pragma GCC unroll 4
  for (int t = kGroup; t < 2 * kGroup; ++t) __builtin_prefetch(from + t * stride);
}

// The same of rows that will be read after thousands of other numbers: into the second-level cache.
template <typename T>
inline void ask_for_rows(const T* from, int64_t stride) {
#pragma GCC unroll 4
  for (int t = 0; t < kGroup; ++t) __builtin_prefetch(from + t * stride, 0, 2);
}
template <typename T>
constexpr int kLine = 64 / int(sizeof(T));  // numbers of a line of the cache

// Some lanes of rows first .. first + 3 of a matrix; rows past `rows` are 0.
template <typename T>
inline void load_rows(const T* from, int64_t stride, int64_t rows, int64_t count, Vector<T> (&x)[kGroup]) {
#pragma GCC unroll 4
  for (int t = 0; t < kGroup; ++t) {
    x[t] = Vector<T>{};
    if (t < rows) x[t] = count >= kLanes<T> ? load(from + t * stride) : load_part(from + t * stride, count);
  }
}

// One vector of keys of a group: the record, and its part of the dot products.
template <typename T>
inline void join_group(const Vector<T> (&q)[kGroup], const Vector<T> (&k)[kGroup], const Vector<T> (&f)[kGroup],
                       Vector<T> (&record)[kRecord], Vector<T> (&products)[kPairs]) {
  Vector<T> decay = f[0];
#pragma GCC unroll 4
  for (int t = 0; t < kGroup; ++t) {
    if (t > 0) decay *= f[t];
    record[t] = q[t] * decay;
  }
  record[2 * kGroup] = decay;
#pragma GCC unroll 4
  for (int s = 0; s < kGroup; ++s) {
    Vector<T> decayed = k[s];
#pragma GCC unroll 4
    for (int t = s; t < kGroup; ++t) {
      if (t > s) decayed *= f[t];
      products[pair(t, s)] += q[t] * decayed;
    }
    record[kGroup + s] = decayed;
  }
}

// Takes alternately `width` lanes of a and of b, from the lower half of both, or from the upper.
template <typename T, int width, bool upper, int... i>
inline Vector<T> interleave(Vector<T> a, Vector<T> b, std::integer_sequence<int, i...>) {
  constexpr int in_lane = 16 / int(sizeof(T)), n = 2 * width <= in_lane ? in_lane : kLanes<T>;
#define LONGSTREAM_FROM(i) \
  ((i) / n * n + (i) % n / (2 * width) * width + (i) % width + (upper ? n / 2 : 0) + ((i) / width % 2 ? kLanes<T> : 0))
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, LONGSTREAM_FROM(i)...);
#else
  typedef typename ExpConstants<T>::Int Ints __attribute__((vector_size(kVectorBytes)));
  return __builtin_shuffle(a, b, Ints{LONGSTREAM_FROM(i)...});
#endif
#undef LONGSTREAM_FROM
}

// The sums over the lanes of `count` vectors, each in kLanes / count neighboring places; by halves, as a tree.
template <typename T, int count>
inline Vector<T> sums(const Vector<T>* x) {
  if constexpr (count == 1) {
    return x[0];
  } else {
    constexpr int width = count / 2;
    constexpr std::make_integer_sequence<int, kLanes<T>> all{};
    const Vector<T> a = sums<T, width>(x), b = sums<T, width>(x + width);
    return interleave<T, width, false>(a, b, all) + interleave<T, width, true>(a, b, all);
  }
}

// The dot products of a group, from vectors whose lanes are still to be added.
template <typename T>
inline void store_pairs(T* to, const Vector<T> (&products)[kPairs]) {
  constexpr int lanes = kLanes<T>;
  static_assert(kPairsPlace % lanes == 0);
#pragma GCC unroll 8
  for (int p = 0; p < kPairs; p += lanes) {
    Vector<T> x[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) x[i] = p + i < kPairs ? products[p + i < kPairs ? p + i : 0] : Vector<T>{};
    store(to + p, sums<T, lanes>(x));
  }
}

// Exchanges rows and columns of kLanes vectors.
template <typename T, int width = 1>
inline void transpose_square(Vector<T>* x) {
  if constexpr (width < kLanes<T>) {
    constexpr std::make_integer_sequence<int, kLanes<T>> all{};
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & width) continue;
      const Vector<T> a = x[i], b = x[i + width];
      x[i] = interleave<T, width, false>(a, b, all);
      x[i + width] = interleave<T, width, true>(a, b, all);
    }
    transpose_square<T, 2 * width>(x);
  }
}

// The column that transpose_square leaves in place i: each step exchanges with the middle of 16 bytes, or of all.
template <typename T>
constexpr int column_of(int i) {
  constexpr int in_lane = 16 / int(sizeof(T)), lanes = kLanes<T>;
  int column = 0;
  for (int width = 1; width < lanes; width *= 2) {
    if (i & width) column += width < in_lane ? in_lane / 2 / width : lanes / 2 / (width / in_lane);
  }
  return column;
}

template <typename T>
inline void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  constexpr int lanes = kLanes<T>;
  for (int64_t i = 0; i < rows; i += lanes) {
    for (int64_t j = 0; j < columns; j += lanes) {
      const T* source = from + i * from_stride + j;
      T* target = to + j * to_stride + i;
      if (i + lanes <= rows && j + lanes <= columns) {
        Vector<T> x[lanes];
#pragma GCC unroll 16
        for (int a = 0; a < lanes; ++a) x[a] = load(source + a * from_stride);
        transpose_square<T>(x);
#pragma GCC unroll 16
        for (int a = 0; a < lanes; ++a) store(target + column_of<T>(a) * to_stride, x[a]);
      } else {
        const int64_t height = smaller(lanes, rows - i), width = smaller(lanes, columns - j);
        for (int64_t a = 0; a < height; ++a) {
          for (int64_t b = 0; b < width; ++b) target[b * to_stride + a] = source[a * from_stride + b];
        }
      }
    }
  }
}

}  // namespace longstream::LONGSTREAM_ISA
