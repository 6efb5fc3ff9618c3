// The backward pass of gla, by groups of four tokens as in gla_group.h. A task has some keys of a head: their
// gradients are whole then, and only that of v is a sum over tasks. Here lanes are keys and rows are values, the state transposed,
// so that the gradients of q, k and the gates need no sums over lanes. With dS the gradient of the state after a group
// and S the state before it, the direct sums are
//
//   d(q_t P_t) = S do_t     d(k_s D_4s) = dS v_s     dP_4 = sum_j dS * S     dv_s = dS^T (k_s D_4s) + sum_t a_ts do_t
//
// and the gradient of the state before it is P_4 dS + sum_t (q_t P_t) do_t^T.
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
struct Scratch {            // of one worker; groups = spacing / 4, keys = kKeys at most, rows = V rounded up
  T* records;               // (tiles, groups, kRecord, kColumns * kLanes) of a block
  T* drecords;              // the same: their gradients
  T* forget;                // (spacing, keys)
  T *pairs, *dpairs;        // (groups, kPairsPlace)
  T* values;                // (rows / kTogether, groups, 2, kGroup, kTogether): do and v of a block
  T* dvalues;               // (rows / kRows, groups, kGroup, kRows)
  T *state, *dstate;        // (rows, keys): S before the block, dS
  T* stack;                 // (groups, kRows, kColumns * kLanes): a tile of S before each group
  T* row;                   // (kGroup, rows)
  T* apart;                 // (longest, V): dv of the second half of the keys, where another worker has the first
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
  take(s.dstate, rows * keys);
  take(s.stack, groups * kRows * kColumns * kLanes<float>);
  take(s.row, kGroup * rows);
  take(s.apart, half_of(sizes) < sizes.K ? longest(sizes) * sizes.V : 0);
  return used;
}

// One head of one sequence, and some of its keys.
template <typename T>
struct Task {
  const GlaBackward<T>& x;
  Scratch<T>& s;
  int64_t n, h, first_key, keys;
  int64_t length, row;  // tokens of the sequence, and the first one's place among all
  int64_t vectors, stride, rows;  // vectors of keys, their lanes, V rounded up to tiles

  const T* tokens(const GlaTokens<T>& tensor, int64_t t) const { return start_of(tensor, x.sizes, n, h) + t * tensor.token; }
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

// A tile through a block: forward again with S, back with dS.
template <typename T, int columns>
void walk(const T* records, T* drecords, const T* values, T* dvalues, const T* state, T* dstate, int64_t stride,
          T* stack, int64_t groups) {
  constexpr int lanes = kLanes<T>, width = columns * lanes;
  Vector<T> s[kRows][columns];
#pragma GCC unroll 4
  for (int a = 0; a < kRows; ++a) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) s[a][c] = load(state + a * stride + c * lanes);
  }
  for (int64_t g = 0; g < groups; ++g) {
    const T *record = records + g * kRecord * width, *value = values + g * 2 * kGroup * kTogether<T>;
    T *drecord = drecords + g * kRecord * width, *kept = stack + g * kRows * width;
#pragma GCC unroll 4
    for (int t = 0; t < kGroup; ++t) {
      Vector<T> dq[columns];  // a sum of its own for each tile: shorter sums lose fewer digits
#pragma GCC unroll 4
      for (int a = 0; a < kRows; ++a) {
        const Vector<T> dout = broadcast<T>(value[t * kTogether<T> + a]);
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) dq[c] = a ? dq[c] + s[a][c] * dout : s[a][c] * dout;
      }
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) {
        T* to = drecord + t * width + c * lanes;
        store(to, load(to) + dq[c]);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) {
      const Vector<T> decay = load(record + 2 * kGroup * width + c * lanes);
#pragma GCC unroll 4
      for (int a = 0; a < kRows; ++a) {
        store(kept + a * width + c * lanes, s[a][c]);
        s[a][c] *= decay;
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kGroup; ++t) {
      Vector<T> k[columns];
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) k[c] = load(record + (kGroup + t) * width + c * lanes);
#pragma GCC unroll 4
      for (int a = 0; a < kRows; ++a) {
        const Vector<T> v = broadcast<T>(value[(kGroup + t) * kTogether<T> + a]);
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) s[a][c] += k[c] * v;
      }
    }
  }

  Vector<T> d[kRows][columns];
#pragma GCC unroll 4
  for (int a = 0; a < kRows; ++a) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) d[a][c] = load(dstate + a * stride + c * lanes);
  }
  for (int64_t g = groups - 1; g >= 0; --g) {
    const T *record = records + g * kRecord * width, *value = values + g * 2 * kGroup * kTogether<T>;
    T *drecord = drecords + g * kRecord * width, *kept = stack + g * kRows * width;
    Vector<T> dv[kTokenRows];
#pragma GCC unroll 4
    for (int t = 0; t < kGroup; ++t) {
      Vector<T> dk[columns], k[columns];
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) k[c] = load(record + (kGroup + t) * width + c * lanes);
#pragma GCC unroll 4
      for (int a = 0; a < kRows; ++a) {
        const Vector<T> v = broadcast<T>(value[(kGroup + t) * kTogether<T> + a]);
        Vector<T> sum = d[a][0] * k[0];
#pragma GCC unroll 4
        for (int c = 1; c < columns; ++c) sum += d[a][c] * k[c];
        dv[t * kRows + a] = sum;
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) dk[c] = a ? dk[c] + d[a][c] * v : d[a][c] * v;
      }
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) {
        T* to = drecord + (kGroup + t) * width + c * lanes;
        store(to, load(to) + dk[c]);
      }
    }
    static_assert(kTokenRows % lanes == 0);
#pragma GCC unroll 16
    for (int i = 0; i < kTokenRows; i += lanes) {
      T* to = dvalues + g * kTokenRows + i;
      store(to, load(to) + sums<T, lanes>(dv + i));
    }
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) {
      const Vector<T> decay = load(record + 2 * kGroup * width + c * lanes);
      Vector<T> ddecay;
#pragma GCC unroll 4
      for (int a = 0; a < kRows; ++a) {
        const Vector<T> product = d[a][c] * load(kept + a * width + c * lanes);
        ddecay = a ? ddecay + product : product;
        d[a][c] *= decay;
      }
      T* to = drecord + 2 * kGroup * width + c * lanes;
      store(to, load(to) + ddecay);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kGroup; ++t) {
      Vector<T> q[columns];
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) q[c] = load(record + t * width + c * lanes);
#pragma GCC unroll 4
      for (int a = 0; a < kRows; ++a) {
        const Vector<T> dout = broadcast<T>(value[t * kTogether<T> + a]);
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) d[a][c] += q[c] * dout;
      }
    }
  }
#pragma GCC unroll 4
  for (int a = 0; a < kRows; ++a) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) store(dstate + a * stride + c * lanes, d[a][c]);
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

// The gradient of v of a block, into rows that lie `stride` numbers apart.
template <typename T>
void split_values(const Task<T>& task, int64_t t0, int64_t tokens, T* dv, int64_t stride, bool add) {
  constexpr int lanes = kLanes<T>;
  const GlaBackward<T>& x = task.x;
  const int64_t V = x.sizes.V, groups = parts(tokens, kGroup), width = round_up(V, 16);
  const T* dout = task.tokens(x.dout, t0);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t t = g * kGroup, left = tokens - t;
    const T* pairs = task.s.pairs + g * kPairsPlace;
    for (int64_t j = 0; j < task.rows; j += kRows) {
      const T* from = task.s.dvalues + (j / kRows * groups + g) * kTokenRows;
#pragma GCC unroll 4
      for (int r = 0; r < kGroup; ++r) {
        std::memcpy(task.s.row + r * width + j, from + r * kRows, kRows * sizeof(T));
      }
    }
    for (int64_t j = 0; j < V; j += lanes) {
      Vector<T> do_[kGroup];
      load_rows(dout + t * x.dout.token + j, x.dout.token, left, V - j, do_);
#pragma GCC unroll 4
      for (int s = 0; s < kGroup; ++s) {
        if (s >= left) break;
        Vector<T> sum = load(task.s.row + s * width + j);
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

template <typename T>
void walk_block(const Task<T>& task, int64_t tokens) {
  constexpr int lanes = kLanes<T>;
  const int64_t groups = parts(tokens, kGroup);
  const Scratch<T>& s = task.s;
  std::memset(s.drecords, 0, size_t(groups * kRecord * task.stride) * sizeof(T));
  std::memset(s.dvalues, 0, size_t(groups * kGroup * task.rows) * sizeof(T));
  for (int64_t i = 0; i < task.vectors; i += kColumns) {
    const int64_t columns = smaller(kColumns, task.vectors - i), record = task.record(groups, i, 0);
    const auto tile = columns == 4 ? walk<T, 4> : columns == 3 ? walk<T, 3> : columns == 2 ? walk<T, 2> : walk<T, 1>;
    for (int64_t j = 0; j < task.rows; j += kRows) {
      const int64_t place = j * task.stride + i * lanes;
      tile(s.records + record, s.drecords + record, s.values + values_place<T>(j, groups),
           s.dvalues + j * groups * kGroup, s.state + place, s.dstate + place, task.stride, s.stack, groups);
    }
  }
}

template <typename T>
void some_keys(const GlaBackward<T>& x, Scratch<T>& scratch, int64_t n, int64_t h, int64_t first_key, int64_t keys,
               T* dv, int64_t dv_stride, bool add) {
  const GlaSizes& sizes = x.sizes;
  const int64_t V = sizes.V, length = length_of(sizes, n), vectors = parts(keys, kLanes<T>);
  const Task<T> task{x, scratch, n, h, first_key, keys, length, first_of(sizes, n), vectors, vectors * kLanes<T>,
                     round_up(V, kRows)};
  const int64_t head = ((n * sizes.H + h) * sizes.K + first_key) * V;
  std::memset(scratch.state, 0, size_t(task.rows * task.stride) * sizeof(T));
  std::memset(scratch.dstate, 0, size_t(task.rows * task.stride) * sizeof(T));
  transpose(x.dfinal + head, V, keys, V, scratch.dstate, task.stride);
  for (int64_t block = parts(length, sizes.spacing) - 1; block >= 0; --block) {
    const int64_t t = block * sizes.spacing, tokens = smaller(sizes.spacing, length - t);
    const T* state = x.initial + head;
    if (block > 0) {
      state = x.states + ((place_of(sizes, n, block) * sizes.H + h) * sizes.K + first_key) * V;
    }
    transpose(state, V, keys, V, scratch.state, task.stride);
    join_block(task, t, tokens);
    join_values(task, t, tokens);
    walk_block(task, tokens);
    split_block(task, t, tokens);
    split_values(task, t, tokens, dv + t * dv_stride, dv_stride, add);
  }
  transpose(scratch.dstate, task.stride, V, keys, x.dinitial + head, V);
}

// One of the two halves of a head's keys: its gradients, and its part of dv in `dv` or, first added up apart, in `apart`.
template <typename T>
void half_of_keys(const GlaBackward<T>& x, Scratch<T>& scratch, int64_t head, bool second, T* dv, int64_t stride) {
  const int64_t half = half_of(x.sizes), stop = second ? x.sizes.K : half, begin = second ? half : 0;
  for (int64_t key = begin; key < stop; key += kKeys) {
    some_keys(x, scratch, head / x.sizes.H, head % x.sizes.H, key, smaller(kKeys, stop - key), dv, stride, key > begin);
  }
}

// Work is split over sequences, heads and two halves of the keys; dv is the sum of the first half plus that of the
// second, which lies apart until then: so no number depends on which worker had them.
template <typename T>
void backward(const GlaBackward<T>& x) {
  const GlaSizes& sizes = x.sizes;
  const int64_t halves = half_of(sizes) < sizes.K ? 2 : 1, total = sizes.N * sizes.H * halves;
  const int64_t scratch_size = gla_backward_scratch(sizes), V = sizes.V, stride = sizes.H * V;
  const auto begin_of = [&](int64_t worker) { return total * worker / sizes.workers; };
  const auto dv_of = [&](int64_t head) {
    return x.dv + (first_of(sizes, head / sizes.H) * sizes.H + head % sizes.H) * V;
  };
  const auto join = [&](int64_t head, const T* apart) {
    T* dv = dv_of(head);
    for (int64_t t = 0; t < length_of(sizes, head / sizes.H); ++t) {
      for (int64_t j = 0; j < V; ++j) dv[t * stride + j] += apart[t * V + j];
    }
  };
  const auto waits = [&](int64_t worker) {  // its first task is a second half whose first half is another worker's
    return begin_of(worker) % halves == 1 && begin_of(worker) < begin_of(worker + 1);
  };
  parallel_for(sizes.parallel, sizes.workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      Scratch<T> scratch;
      lay_out(sizes, x.scratch + worker * scratch_size, scratch);
      // A worker that waits keeps `apart` for its first task, so that one goes last.
      const int64_t begin = begin_of(worker), end = begin_of(worker + 1), skip = waits(worker);
      for (int64_t item = begin + skip; item < end + skip; ++item) {
        const int64_t task = item < end ? item : begin, head = task / halves;
        if (task % halves == 0) {
          half_of_keys(x, scratch, head, false, dv_of(head), stride);
        } else {
          half_of_keys(x, scratch, head, true, scratch.apart, V);
          if (item < end) join(head, scratch.apart);
        }
      }
    }
  });
  parallel_for(sizes.parallel, sizes.workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      Scratch<T> scratch;
      lay_out(sizes, x.scratch + worker * scratch_size, scratch);
      if (waits(worker)) join(begin_of(worker) / halves, scratch.apart);
    }
  });
}

}  // namespace

int64_t gla_backward_scratch(const GlaSizes& sizes) {
  Scratch<float> s;
  return lay_out<float>(sizes, nullptr, s);
}

void gla_backward(const GlaBackward<float>& x) { backward(x); }
void gla_backward(const GlaBackward<double>& x) { backward(x); }

}  // namespace longstream::LONGSTREAM_ISA
