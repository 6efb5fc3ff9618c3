// The sums of long_conv as they are written, for few pairs of an input and an output: cheaper than transforms there,
// and no output depends on later inputs, not even by rounding. For *_kernels.cpp.
#pragma once

#include "long_conv_rows.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

constexpr int64_t kOutputs = 4;  // at once, to have as many sums independent of each other

// Numbers begin .. end - 1 of a signal, a vector each, with room for reads past both ends, which are zero.
template <typename T>
struct Dense {
  T* data;
  int64_t begin, end;

  Dense(T*& scratch, int64_t begin, int64_t end) : data(scratch + kOutputs * kLanes<T>), begin(begin), end(end) {
    for (int64_t i = 0; i < kOutputs; ++i) {
      store(scratch + i * kLanes<T>, Vector<T>{});
      store(data + (end - begin + i) * kLanes<T>, Vector<T>{});
    }
    scratch += (end - begin + 2 * kOutputs) * kLanes<T>;
  }
  T* at(int64_t n) const { return data + (n - begin) * kLanes<T>; }
};

// emit(n, sum_j a_j b_{n - j}), or of a_j b_{j - n}, for begin <= n < end.
template <bool correlate, typename T, typename F>
void direct(const Dense<T>& a, const Dense<T>& b, int64_t begin, int64_t end, const F& emit) {
  for (int64_t n = begin; n < end; n += kOutputs) {
    int64_t from = correlate ? n + b.begin : n - b.end + 1;
    int64_t to = (correlate ? n + b.end : n - b.begin + 1) + kOutputs - 1;
    if (from < a.begin) from = a.begin;
    if (to > a.end) to = a.end;
    Vector<T> sums[kOutputs] = {};
    for (int64_t j = from; j < to; ++j) {
      const Vector<T> factor = load(a.at(j));
#pragma GCC unroll 4
      for (int i = 0; i < kOutputs; ++i) sums[i] += factor * load(b.at(correlate ? j - n - i : n + i - j));
    }
    for (int i = 0; i < kOutputs && n + i < end; ++i) emit(n + i, sums[i]);
  }
}

template <typename T, bool full>
void copy(const Source<T, full>& source, const Dense<T>& to) {
  for (int64_t n = to.begin; n < to.end; ++n) store(to.at(n), source.read_at(n));
}

template <typename T, bool full>
void forward_direct(const LongConvArguments<T>& a, const Task& task, T* scratch) {
  const Dense<T> taps(scratch, 0, a.K), x(scratch, 0, a.x.count);
  read_taps(a.taps + task.channel * a.taps_stride, a.taps_stride, a.K, task.lanes, taps.data);
  for (int64_t b = task.begin; b < task.end; ++b) {
    copy<T, full>({{a.x, b, task.channel, task.lanes}, {{}, b, task.channel, task.lanes}}, x);
    const Target<T, full> target = forward_target<T, full>(a, task, b);
    direct<false>(x, taps, a.first, target.end(), [&](int64_t n, Vector<T> sum) { target.write_at(n, sum); });
  }
}

template <typename T, bool full>
void backward_direct(const LongConvArguments<T>& a, const Task& task, T* scratch) {
  const int64_t c = task.channel, lanes = task.lanes;
  const Dense<T> taps(scratch, 0, a.K), x(scratch, 0, a.x.count), d_taps(scratch, 0, a.K);
  const Dense<T> g(scratch, a.first, long_conv_gradient_end(a));
  read_taps(a.taps + c * a.taps_stride, a.taps_stride, a.K, lanes, taps.data);
  for (int64_t k = 0; k < a.K; ++k) store(d_taps.at(k), Vector<T>{});
  for (int64_t b = task.begin; b < task.end; ++b) {
    copy<T, full>({{a.d_out[0], b, c, lanes}, {a.d_out[1], b, c, lanes}}, g);
    copy<T, full>({{a.x, b, c, lanes}, {{}, b, c, lanes}}, x);
    if (a.d_x.data) {
      const Target<T, full> target = backward_target<T, full>(a, task, b);
      direct<true>(g, taps, 0, a.x.count, [&](int64_t n, Vector<T> sum) { target.write_at(n, sum); });
    }
    if (a.d_taps) {
      direct<true>(g, x, 0, a.K, [&](int64_t k, Vector<T> sum) { store(d_taps.at(k), load(d_taps.at(k)) + sum); });
    }
  }
  if (a.d_taps) write_taps(d_taps.data, a.K, lanes, a.d_taps + (task.part * a.D + c) * a.K);
}

}  // namespace
}  // namespace longstream::LONGSTREAM_ISA
