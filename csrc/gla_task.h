// What a task of the backward pass of gla has in memory, and what goes before and after the walk of its tiles: see
// gla_backward_kernels.cpp.
#pragma once

#include "gla_group.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

constexpr int kKeys = 64;  // of a task at a time: what a block of tokens needs then fits the second-level cache
// A tile is kRows values times kColumns vectors of keys: it takes half of the registers, 16 or 32.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif
constexpr int kColumns = 4;
template <typename T>
constexpr int kTogether = kRows > kLanes<T> ? kRows : kLanes<T>;  // values of a token that lie together
constexpr int kTokenRows = kGroup * kRows;  // what a row tile has of a group: 4 tokens of each of its rows

int64_t half_of(const GlaSizes& sizes) {  // keys of a task
  return sizes.K <= 16 ? sizes.K : round_up(parts(sizes.K, 2), 16);
}

template <typename T>
struct Scratch {      // of one worker; groups = spacing / 4, keys = kKeys at most, rows = V rounded up
  T* records;         // (tiles, groups, kRecord, kColumns * kLanes) of a block
  T* drecords;        // the same: their gradients
  T* forget;          // (spacing, keys)
  T *pairs, *dpairs;  // (groups, kPairsPlace)
  T* values;          // (rows / kTogether, groups, 2, kGroup, kTogether): do and v of a block
  T* dvalues;         // (rows / kRows, groups, kGroup, kRows)
  T* state;           // (rows, keys): S before the block
  T* dstate;          // (rows, K): dS, some keys after the others
  T* stack;           // (groups, kRows, kColumns * kLanes): a tile of S before each group
  T* apart;           // (longest, V): dv of the second half of the keys
};

int64_t longest(const GlaSizes& sizes) {
  int64_t most = 0;
  for (int64_t n = 0; n < sizes.N; ++n) most = larger(most, length_of(sizes, n));
  return most;
}

// Lays the parts out behind `base`; returns how many numbers they take.
template <typename T>
int64_t lay_out(const GlaSizes& sizes, T* base, Scratch<T>& s) {
  const int64_t groups = sizes.spacing / kGroup, rows = round_up(sizes.V, 16), keys = round_up(kKeys, 16);
  int64_t used = 0;
  const auto take = [&](T*& part, int64_t count) {
    part = base + used;
    used += round_up(count, 16);
  };
  take(s.records, groups * kRecord * keys);
  take(s.drecords, groups * kRecord * keys);
  take(s.forget, sizes.spacing * keys);
  take(s.pairs, groups * kPairsPlace);
  take(s.dpairs, groups * kPairsPlace);
  take(s.values, groups * 2 * kGroup * rows);
  take(s.dvalues, groups * kGroup * rows);
  take(s.state, rows * keys);
  take(s.dstate, rows * 2 * round_up(half_of(sizes), 16));
  take(s.stack, groups * kRows * kColumns * kLanes<float>);
  take(s.apart, half_of(sizes) < sizes.K ? larger(longest(sizes), sizes.spacing) * sizes.V : 0);
  return used;
}

// One head of one sequence, and some of its keys.
template <typename T>
struct Task {
  const GlaBackward<T>& x;
  Scratch<T>& s;
  T* dstate;  // (rows, keys)
  int64_t n, h, first_key, keys;
  int64_t length, row;            // tokens of the sequence, and the first one's place among all
  int64_t vectors, stride, rows;  // vectors of keys, their lanes, V rounded up to tiles

  const T* tokens(const GlaTokens<T>& tensor, int64_t t) const {
    return start_of(tensor, x.sizes, n, h) + t * tensor.token;
  }
  int64_t lanes_left(int64_t vector) const { return smaller(kLanes<T>, keys - vector * kLanes<T>); }
  // Where a vector of keys has its record of a group. The last tile may be narrower than the others.
  int64_t record(int64_t groups, int64_t vector, int64_t group) const {
    const int64_t tile = vector / kColumns, columns = smaller(kColumns, vectors - tile * kColumns);
    return (tile * kColumns * groups * kRecord + group * kRecord * columns + vector % kColumns) * kLanes<T>;
  }
  int64_t record_stride(int64_t vector) const {
    return smaller(kColumns, vectors - vector / kColumns * kColumns) * kLanes<T>;
  }
};

template <typename T>
int64_t values_place(int64_t j, int64_t groups) {
  return j / kTogether<T> * kTogether<T> * groups * 2 * kGroup + j % kTogether<T>;
}

template <typename T>
void join_block(const Task<T>& task, int64_t t0, int64_t tokens) {
  constexpr int lanes = kLanes<T>;
  const GlaBackward<T>& x = task.x;
  const T *q = task.tokens(x.q, t0) + task.first_key, *k = task.tokens(x.k, t0) + task.first_key;
  const T* log_forget = task.tokens(x.log_forget, t0) + task.first_key;
  const int64_t groups = parts(tokens, kGroup);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t t = g * kGroup, left = tokens - t;
    Vector<T> products[kPairs] = {};
    for (int64_t i = 0; i < task.vectors; ++i) {
      const int64_t count = task.lanes_left(i);
      Vector<T> q_[kGroup], k_[kGroup], f[kGroup], record[kRecord];
      prefetch_rows(q + t * x.q.token + i * lanes, x.q.token);
      prefetch_rows(k + t * x.k.token + i * lanes, x.k.token);
      prefetch_rows(log_forget + t * x.log_forget.token + i * lanes, x.log_forget.token);
      load_rows(q + t * x.q.token + i * lanes, x.q.token, left, count, q_);
      load_rows(k + t * x.k.token + i * lanes, x.k.token, left, count, k_);
      load_rows(log_forget + t * x.log_forget.token + i * lanes, x.log_forget.token, left, count, f);
#pragma GCC unroll 4
      for (int r = 0; r < kGroup; ++r) {
        f[r] = exp<T>(f[r]);
        store(task.s.forget + (t + r) * task.stride + i * lanes, f[r]);
      }
      join_group<T>(q_, k_, f, record, products);
      T* to = task.s.records + task.record(groups, i, g);
#pragma GCC unroll 9
      for (int r = 0; r < kRecord; ++r) store(to + r * task.record_stride(i), record[r]);
    }
    store_pairs<T>(task.s.pairs + g * kPairsPlace, products);
  }
}

// do and v of a block as the tiles will read them, and the dot products do_t . v_s of each group.
template <typename T>
void join_values(const Task<T>& task, int64_t t0, int64_t tokens) {
  constexpr int lanes = kLanes<T>;
  const GlaBackward<T>& x = task.x;
  const int64_t V = x.sizes.V, groups = parts(tokens, kGroup);
  const T *dout = task.tokens(x.dout, t0), *v = task.tokens(x.v, t0);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t t = g * kGroup, left = tokens - t;
    Vector<T> products[kPairs] = {};
    for (int64_t j = 0; j < task.rows; j += lanes) {
      Vector<T> do_[kGroup], v_[kGroup];
      prefetch_rows(dout + t * x.dout.token + j, x.dout.token);
      prefetch_rows(v + t * x.v.token + j, x.v.token);
      load_rows(dout + t * x.dout.token + j, x.dout.token, left, larger(0, V - j), do_);
      load_rows(v + t * x.v.token + j, x.v.token, left, larger(0, V - j), v_);
#pragma GCC unroll 4
      for (int r = 0; r < kGroup; ++r) {
#pragma GCC unroll 4
        for (int s = 0; s <= r; ++s) products[pair(r, s)] += do_[r] * v_[s];
        T* to = task.s.values + values_place<T>(j, groups) + (g * 2 * kGroup + r) * kTogether<T>;
        store(to, do_[r]);
        store(to + kGroup * kTogether<T>, v_[r]);
      }
    }
    store_pairs<T>(task.s.dpairs + g * kPairsPlace, products);
  }
}

// From the gradients of the records and of the dot products to those of q, k and log_forget: `join_group` backwards.
template <typename T>
void split_block(const Task<T>& task, int64_t t0, int64_t tokens) {
  constexpr int lanes = kLanes<T>;
  const GlaBackward<T>& x = task.x;
  const T *q = task.tokens(x.q, t0) + task.first_key, *k = task.tokens(x.k, t0) + task.first_key;
  const int64_t groups = parts(tokens, kGroup), stride = x.sizes.H * x.sizes.K;
  const int64_t out = ((task.row + t0) * x.sizes.H + task.h) * x.sizes.K + task.first_key;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t t = g * kGroup, left = tokens - t;
    const T* dpairs = task.s.dpairs + g * kPairsPlace;
    for (int64_t i = 0; i < task.vectors; ++i) {
      const int64_t count = task.lanes_left(i);
      Vector<T> q_[kGroup], k_[kGroup], f[kGroup], dq[kGroup], dk[kGroup], df[kGroup] = {}, decay[kGroup];
      load_rows(q + t * x.q.token + i * lanes, x.q.token, left, count, q_);
      load_rows(k + t * x.k.token + i * lanes, x.k.token, left, count, k_);
      const T* drecord = task.s.drecords + task.record(groups, i, g);
      const int64_t width = task.record_stride(i);
#pragma GCC unroll 4
      for (int r = 0; r < kGroup; ++r) {
        f[r] = load(task.s.forget + (t + r) * task.stride + i * lanes);
        decay[r] = r ? decay[r - 1] * f[r] : f[r];
      }
      Vector<T> ddecay = load(drecord + 2 * kGroup * width);
#pragma GCC unroll 4
      for (int r = kGroup - 1; r >= 0; --r) {
        const Vector<T> drecord_q = load(drecord + r * width);
        ddecay += drecord_q * q_[r];
        dq[r] = drecord_q * decay[r];
        df[r] += r ? ddecay * decay[r - 1] : ddecay;
        ddecay *= f[r];
      }
#pragma GCC unroll 4
      for (int s = 0; s < kGroup; ++s) {
        Vector<T> decayed[kGroup];  // k_s D_ts
        decayed[s] = k_[s];
#pragma GCC unroll 4
        for (int r = s + 1; r < kGroup; ++r) decayed[r] = decayed[r - 1] * f[r];
        Vector<T> gradient = load(drecord + (kGroup + s) * width);
#pragma GCC unroll 4
        for (int r = kGroup - 1; r >= s; --r) {
          const Vector<T> dpair = broadcast<T>(dpairs[pair(r, s)]);
          gradient += dpair * q_[r];
          dq[r] += dpair * decayed[r];
          if (r > s) {
            df[r] += gradient * decayed[r - 1];
            gradient *= f[r];
          }
        }
        dk[s] = gradient;
      }
#pragma GCC unroll 4
      for (int r = 0; r < kGroup; ++r) {
        if (r >= left) break;
        const int64_t to = out + (t + r) * stride + i * lanes;
        if (count == lanes) {
          store(x.dq + to, dq[r]);
          store(x.dk + to, dk[r]);
          store(x.dlog_forget + to, df[r] * f[r]);
        } else {
          store_part(x.dq + to, dq[r], count);
          store_part(x.dk + to, dk[r], count);
          store_part<T>(x.dlog_forget + to, df[r] * f[r], count);
        }
      }
    }
  }
}

// What the tiles have left for the tokens of a group and values j .. j + kLanes - 1; `tile` numbers lie between tiles.
template <typename T>
inline void collect(const T* from, int64_t tile, int64_t j, Vector<T> (&x)[kGroup]) {
  constexpr int lanes = kLanes<T>, tokens = lanes / kRows;  // of a tile in a vector
  from += j / kRows * tile + j % kRows;
  if constexpr (tokens <= 1) {
#pragma GCC unroll 4
    for (int t = 0; t < kGroup; ++t) x[t] = load(from + t * kRows);
  } else if constexpr (tokens == 2) {
    constexpr std::make_integer_sequence<int, lanes> all{};
#pragma GCC unroll 4
    for (int t = 0; t < kGroup; t += 2) {
      const Vector<T> a = load(from + t * kRows), b = load(from + tile + t * kRows);
      x[t] = interleave<T, kRows, false>(a, b, all);
      x[t + 1] = interleave<T, kRows, true>(a, b, all);
    }
  } else {
    static_assert(tokens == kGroup);
    constexpr std::make_integer_sequence<int, lanes> all{};
    constexpr int second = 2 * kRows * int(sizeof(T)) <= 16 ? 2 : 1;  // where interleave takes the halves of 16 bytes
    const Vector<T> a = load(from), b = load(from + tile), c = load(from + 2 * tile), d = load(from + 3 * tile);
    const Vector<T> low = interleave<T, kRows, false>(a, b, all), low2 = interleave<T, kRows, false>(c, d, all);
    const Vector<T> high = interleave<T, kRows, true>(a, b, all), high2 = interleave<T, kRows, true>(c, d, all);
    x[0] = interleave<T, 2 * kRows, false>(low, low2, all);
    x[second] = interleave<T, 2 * kRows, true>(low, low2, all);
    x[3 - second] = interleave<T, 2 * kRows, false>(high, high2, all);
    x[3] = interleave<T, 2 * kRows, true>(high, high2, all);
  }
}

// The gradient of v of a block, into rows that lie `stride` numbers apart.
template <typename T>
void split_values(const Task<T>& task, int64_t t0, int64_t tokens, T* dv, int64_t stride, bool add) {
  constexpr int lanes = kLanes<T>;
  const GlaBackward<T>& x = task.x;
  const int64_t V = x.sizes.V, groups = parts(tokens, kGroup);
  const T* dout = task.tokens(x.dout, t0);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t t = g * kGroup, left = tokens - t;
    const T* pairs = task.s.pairs + g * kPairsPlace;
    for (int64_t j = 0; j < V; j += lanes) {
      Vector<T> do_[kGroup], direct[kGroup];
      load_rows(dout + t * x.dout.token + j, x.dout.token, left, V - j, do_);
      collect(task.s.dvalues + g * kTokenRows, groups * kTokenRows, j, direct);
#pragma GCC unroll 4
      for (int s = 0; s < kGroup; ++s) {
        if (s >= left) break;
        Vector<T> sum = direct[s];
#pragma GCC unroll 4
        for (int r = s; r < kGroup; ++r) sum += broadcast<T>(pairs[pair(r, s)]) * do_[r];
        T* to = dv + (t + s) * stride + j;
        if (V - j >= lanes) {
          store(to, add ? load(to) + sum : sum);
        } else {
          store_part<T>(to, add ? load_part(to, V - j) + sum : sum, V - j);
        }
      }
    }
  }
}

}  // namespace
}  // namespace longstream::LONGSTREAM_ISA
