// The backward pass of gla, by groups of four tokens as in gla_group.h. A task has some keys of a head: their
// gradients are whole then, and only that of v is a sum over tasks. Here lanes are keys and rows are values, the state
// transposed, so that the gradients of q, k and the gates need no sums over lanes. With dS the gradient of the state
// after a group and S the state before it, the direct sums are
//
//   d(q_t P_t) = S do_t     d(k_s D_4s) = dS v_s     dP_4 = sum_j dS * S     dv_s = dS^T (k_s D_4s) + sum_t a_ts do_t
//
// and the gradient of the state before it is P_4 dS + sum_t (q_t P_t) do_t^T.
#include "gla_task.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

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

template <typename T>
void add_rows(T* to, int64_t stride, const T* from, int64_t rows, int64_t columns) {
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t j = 0; j < columns; ++j) to[t * stride + j] += from[t * columns + j];
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
           s.dvalues + j * groups * kGroup, s.state + place, task.dstate + place, task.stride, s.stack, groups);
    }
  }
}

// Some keys of a block whose values have been joined.
template <typename T>
void some_keys(const Task<T>& task, int64_t t, int64_t tokens, const T* state, T* dv, int64_t dv_stride, bool add) {
  const int64_t V = task.x.sizes.V;
  transpose(state, V, task.keys, V, task.s.state, task.stride);
  std::memset(task.s.state + V * task.stride, 0, size_t((task.rows - V) * task.stride) * sizeof(T));
  join_block(task, t, tokens);
  walk_block(task, tokens);
  split_block(task, t, tokens);
  split_values(task, t, tokens, dv, dv_stride, add);
}

// One half of a head's keys or both, block by block: their gradients, and that of v. The first half's part of it goes
// to `dv`. The second half's is added up in `apart`: of one block if both halves are here, else of the whole sequence,
// and stays there.
template <typename T>
void some_halves(const GlaBackward<T>& x, Scratch<T>& scratch, int64_t head, bool first, bool second, T* dv) {
  const GlaSizes& sizes = x.sizes;
  const int64_t V = sizes.V, n = head / sizes.H, h = head % sizes.H, length = length_of(sizes, n);
  const int64_t half = half_of(sizes), begin = first ? 0 : half, end = second ? sizes.K : half;
  const auto each_part = [&](const auto& run) {
    T* dstate = scratch.dstate;
    for (int64_t key = begin; key < end;) {
      const int64_t keys = smaller(kKeys, (key < half ? half : sizes.K) - key), vectors = parts(keys, kLanes<T>);
      const Task<T> task{x,
                         scratch,
                         dstate,
                         n,
                         h,
                         key,
                         keys,
                         length,
                         first_of(sizes, n),
                         vectors,
                         vectors * kLanes<T>,
                         round_up(V, kRows)};
      run(task, (head * sizes.K + key) * V);
      dstate += task.rows * task.stride;
      key += keys;
    }
  };
  each_part([&](const Task<T>& task, int64_t place) {
    std::memset(task.dstate, 0, size_t(task.rows * task.stride) * sizeof(T));
    transpose(x.dfinal + place, V, task.keys, V, task.dstate, task.stride);
  });
  for (int64_t block = parts(length, sizes.spacing) - 1; block >= 0; --block) {
    const int64_t t = block * sizes.spacing, tokens = smaller(sizes.spacing, length - t), row = sizes.H * V;
    T* apart = scratch.apart + (first ? 0 : t * V);
    bool joined = false;
    each_part([&](const Task<T>& task, int64_t place) {
      if (!joined) join_values(task, t, tokens);
      joined = true;
      const T* state = x.initial + place;
      if (block > 0) {
        state = x.states + ((place_of(sizes, n, block) * sizes.H + h) * sizes.K + task.first_key) * V;
      }
      const bool late = task.first_key >= half;
      some_keys(task, t, tokens, state, late ? apart : dv + t * row, late ? V : row,
                task.first_key != 0 && task.first_key != half);
    });
    if (first && second) add_rows(dv + t * row, row, apart, tokens, V);
  }
  each_part([&](const Task<T>& task, int64_t place) {
    transpose(task.dstate, task.stride, V, task.keys, x.dinitial + place, V);
  });
}

// Work is split over sequences, heads and two halves of the keys; dv is the sum over the first half plus that over the
// second, whether one worker has both or not: so no number depends on how many there are.
template <typename T>
void backward(const GlaBackward<T>& x) {
  const GlaSizes& sizes = x.sizes;
  const int64_t halves = half_of(sizes) < sizes.K ? 2 : 1, total = sizes.N * sizes.H * halves;
  const int64_t scratch_size = gla_backward_scratch(sizes), V = sizes.V, stride = sizes.H * V;
  const auto begin_of = [&](int64_t worker) { return total * worker / sizes.workers; };
  const auto dv_of = [&](int64_t head) {
    return x.dv + (first_of(sizes, head / sizes.H) * sizes.H + head % sizes.H) * V;
  };
  const auto waits = [&](int64_t worker) {  // its first task is a second half whose first half is another worker's
    return begin_of(worker) % halves == 1 && begin_of(worker) < begin_of(worker + 1);
  };
  parallel_for(sizes.parallel, sizes.workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      Scratch<T> scratch;
      lay_out(sizes, x.scratch + worker * scratch_size, scratch);
      // A worker that waits keeps `apart` for its first task, so that one goes last.
      const int64_t begin = begin_of(worker), end = begin_of(worker + 1);
      for (int64_t item = begin + waits(worker); item < end;) {
        const bool both = halves == 2 && item + 1 < end;
        some_halves(x, scratch, item / halves, true, both, dv_of(item / halves));
        item += 1 + both;
      }
      if (waits(worker)) some_halves(x, scratch, begin / halves, false, true, static_cast<T*>(nullptr));
    }
  });
  parallel_for(sizes.parallel, sizes.workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      Scratch<T> scratch;
      lay_out(sizes, x.scratch + worker * scratch_size, scratch);
      if (!waits(worker)) continue;
      const int64_t head = begin_of(worker) / halves;
      add_rows(dv_of(head), stride, scratch.apart, length_of(sizes, head / sizes.H), V);
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
