// What all kernels of long_conv share: rows of tensors by groups of channels, and how tasks are shared out. For
// *_kernels.cpp.
#pragma once

#include <type_traits>

#include "fft.h"
#include "long_conv.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

// Rows of a tensor are far apart, often on another page: the processor does not fetch them ahead by itself.
constexpr int64_t kAhead = 8;

// One row of a LongConvRows, for one group of channels.
template <typename T, bool full>
struct Row {
  T* data;
  int64_t stride, begin, end, lanes;

  Row(const LongConvRows<T>& rows, int64_t b, int64_t channel, int64_t lanes)
      : data(rows.data ? rows.data + b * rows.batch_stride + channel : nullptr),
        stride(rows.stride),
        begin(rows.at),
        end(rows.data ? rows.at + rows.count : rows.at),
        lanes(lanes) {}
  bool has(int64_t n) const { return begin <= n && n < end; }
  T* at(int64_t n) const { return data + (n - begin) * stride; }
  void prefetch(int64_t n) const {
    if (has(n)) __builtin_prefetch(at(n), !std::is_const_v<T>);
  }
};

template <typename T, bool full>
inline Vector<T> read(const Row<const T, full>& row, int64_t n) {  // zero where the row has no number
  if (!row.has(n)) return Vector<T>{};
  return full ? load(row.at(n)) : load_part(row.at(n), row.lanes);
}

template <typename T, bool full>
inline void write(const Row<T, full>& row, int64_t n, Vector<T> value) {
  if (full) {
    store(row.at(n), value);
  } else {
    store_part(row.at(n), value, row.lanes);
  }
}

// What is transformed, and into what: rows of up to two tensors that do not overlap.
template <typename T, bool full>
struct Source {
  Row<const T, full> first, second;
  T scale = 1;
  int64_t end() const { return first.end > second.end ? first.end : second.end; }
  void prefetch(int64_t n) const { first.has(n) ? first.prefetch(n) : second.prefetch(n); }
  Vector<T> read_at(int64_t n) const { return first.has(n) ? read<T, full>(first, n) : read<T, full>(second, n); }
};

// Where a transform back goes: value, plus factor * addend of `shift` numbers later.
template <typename T, bool full>
struct Target {
  Row<T, full> first, second;
  Row<const T, full> addend;
  int64_t shift = 0;
  Vector<T> factor = {};
  T scale = 1;
  int64_t end() const { return first.end > second.end ? first.end : second.end; }
  void prefetch(int64_t n) const {
    first.has(n) ? first.prefetch(n) : second.prefetch(n);
    addend.prefetch(n + shift);
  }
  void write_at(int64_t n, Vector<T> value) const {
    value *= scale;
    if (addend.has(n + shift)) value += factor * read<T, full>(addend, n + shift);
    if (first.has(n)) {
      write<T, full>(first, n, value);
    } else if (second.has(n)) {
      write<T, full>(second, n, value);
    }
  }
};

// taps (lanes, K) -> (K, all lanes)
template <typename T>
void read_taps(const T* taps, int64_t stride, int64_t K, int64_t lanes, T* rows) {
  constexpr int V = kLanes<T>;
  int64_t k = 0;
  if (lanes == V) {
    for (; k + V <= K; k += V) transpose(taps + k, stride, rows + k * V, V);
  }
  for (; k < K; ++k) {
    for (int lane = 0; lane < V; ++lane) rows[k * V + lane] = lane < lanes ? taps[lane * stride + k] : T(0);
  }
}

template <typename T>
void write_taps(const T* rows, int64_t K, int64_t lanes, T* taps) {
  constexpr int V = kLanes<T>;
  int64_t k = 0;
  if (lanes == V) {
    for (; k + V <= K; k += V) transpose(rows + k * V, V, taps + k, K);
  }
  for (; k < K; ++k) {
    for (int lane = 0; lane < lanes; ++lane) taps[lane * K + k] = rows[k * V + lane];
  }
}

template <typename T>
LongConvRows<T> group_rows(T* data, int64_t count) {
  return {data, 0, kLanes<T>, 0, count};
}

// Rows b of this task: an equal share of all, by shapes alone.
struct Task {
  int64_t channel, lanes, part, begin, end;
  template <typename A>
  Task(const A& a, int64_t index, int64_t V)
      : channel(index / a.parts * V),
        lanes(a.D - channel < V ? a.D - channel : V),
        part(index % a.parts),
        begin(part * a.B / a.parts),
        end((part + 1) * a.B / a.parts) {}
};

template <typename T, bool full>
Vector<T> skip_of(const LongConvArguments<T>& a, const Task& task) {
  if (!a.skip) return Vector<T>{};
  return full ? load(a.skip + task.channel) : load_part(a.skip + task.channel, task.lanes);
}

template <typename T, bool full>
Target<T, full> forward_target(const LongConvArguments<T>& a, const Task& task, int64_t b) {
  const int64_t c = task.channel, lanes = task.lanes;
  const LongConvRows<const T> addend = a.skip ? a.x : LongConvRows<const T>();
  return {{a.out[0], b, c, lanes},
          {a.out[1], b, c, lanes},
          {addend, b, c, lanes},
          a.skip_at - a.first,
          skip_of<T, full>(a, task)};
}

template <typename T, bool full>
Target<T, full> backward_target(const LongConvArguments<T>& a, const Task& task, int64_t b) {
  const int64_t c = task.channel, lanes = task.lanes;
  const LongConvRows<const T> addend = a.skip ? a.d_out[0] : LongConvRows<const T>();
  return {
      {a.d_x, b, c, lanes}, {{}, b, c, lanes}, {addend, b, c, lanes}, a.first - a.skip_at, skip_of<T, full>(a, task)};
}

// The sum over rows of d_out * x, in blocks of numbers, so that rounding does not grow with T.
template <typename T, bool full>
void skip_gradient(const LongConvArguments<T>& a, const Task& task) {
  constexpr int64_t block = 64;
  Vector<T> total = {};
  for (int64_t b = task.begin; b < task.end; ++b) {
    const Row<const T, full> x(a.x, b, task.channel, task.lanes);
    const Row<const T, full> g(a.d_out[0], b, task.channel, task.lanes);
    for (int64_t n = g.begin; n < g.end; n += block) {
      Vector<T> sum = {};
      for (int64_t i = n; i < n + block && i < g.end; ++i) {
        sum += read<T, full>(g, i) * read<T, full>(x, i - a.first + a.skip_at);
      }
      total += sum;
    }
  }
  T* to = a.d_skip + task.part * a.D + task.channel;
  store_part(to, total, task.lanes);
}

template <typename T, typename F>
void for_tasks(const LongConvArguments<T>& a, ParallelFor run, const F& task) {
  const int64_t tasks = (a.D + kLanes<T> - 1) / kLanes<T> * a.parts;
  parallel_for(run, a.workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i = worker; i < tasks; i += a.workers) {
        task(Task(a, i, kLanes<T>), a.scratch + worker * a.scratch_stride);
      }
    }
  });
}

template <typename T>
void add_parts(T* data, int64_t parts, int64_t size, ParallelFor run) {
  if (!data || parts == 1) return;
  parallel_for(run, size, int64_t(1) << 14, [&](int64_t begin, int64_t end) {
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t i = begin; i < end; ++i) data[i] += data[part * size + i];
    }
  });
}

}  // namespace
}  // namespace longstream::LONGSTREAM_ISA
