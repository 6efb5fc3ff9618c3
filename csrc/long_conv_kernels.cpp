// The kernels of long_conv: transforms of a group of channels at a time, depth first, so that a part of a signal that
// is in the cache is transformed, multiplied and transformed back before the next one.
#include "long_conv_direct.h"
#include "long_conv_rows.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

constexpr int64_t kRoot = 2;  // the node of z^M - i

template <typename T, bool full>
void first_split(const Source<T, full>& source, T* z, int64_t M, const T* twiddles) {
  const Twiddle<T> t(twiddles + kRoot * kTwiddle);
  const int64_t quarter = M / 4, step = quarter * kNumber<T>;
  const bool real = source.end() <= M;  // no number M or later: imaginary parts are zero
  for (int64_t n = 0; n < quarter; ++n, z += kNumber<T>) {
    Vector<T> re[4], im[4];
    for (int i = 0; i < 4; ++i) source.prefetch(n + i * quarter + kAhead);
    for (int i = 0; i < 4; ++i) re[i] = source.read_at(n + i * quarter) * source.scale;
    Quarters<T> y;
    if (real) {
      y = split_real<T>(re[0], re[1], re[2], re[3], t);
    } else {
      for (int i = 0; i < 4; ++i) source.prefetch(n + i * quarter + M + kAhead);
      for (int i = 0; i < 4; ++i) im[i] = source.read_at(n + i * quarter + M) * source.scale;
      y = split<T>({{re[0], im[0]}, {re[1], im[1]}, {re[2], im[2]}, {re[3], im[3]}}, t);
    }
    put(z, y.a), put(z + step, y.b), put(z + 2 * step, y.c), put(z + 3 * step, y.d);
  }
}

template <typename T, bool full>
void last_join(const T* z, const Target<T, full>& target, int64_t M, const T* twiddles) {
  const Twiddle<T> t(twiddles + kRoot * kTwiddle);
  const int64_t quarter = M / 4, step = quarter * kNumber<T>;
  const bool real = target.end() <= M;
  for (int64_t n = 0; n < quarter; ++n, z += kNumber<T>) {
    for (int i = 0; i < (real ? 4 : 8); ++i) target.prefetch(n + i * quarter + kAhead);
    const Quarters<T> y = join<T>({get(z), get(z + step), get(z + 2 * step), get(z + 3 * step)}, t);
    target.write_at(n, y.a.re);
    target.write_at(n + quarter, y.b.re);
    target.write_at(n + 2 * quarter, y.c.re);
    target.write_at(n + 3 * quarter, y.d.re);
    if (real) continue;
    target.write_at(n + M, y.a.im);
    target.write_at(n + quarter + M, y.b.im);
    target.write_at(n + 2 * quarter + M, y.c.im);
    target.write_at(n + 3 * quarter + M, y.d.im);
  }
}

// What happens between the first split and the last join. Buffers of M numbers each; null where there is none.
template <typename T>
struct Work {
  T* x = nullptr;  // becomes x * h (forward)
  T* h = nullptr;
  T* g = nullptr;    // gradient of the outputs; becomes its correlation with h
  T* d_h = nullptr;  // adds up the correlations of g with x
  bool split_h = false, begin_d_h = false, join_d_h = false;
  const T* twiddles = nullptr;
};

template <int leaf, typename T>
inline void fetch(const T* from, Complex<T>* z) {
#pragma GCC unroll 10
  for (int i = 0; i < leaf; ++i) z[i] = get(from + i * kNumber<T>);
}

template <int leaf, typename T>
inline void keep(T* to, const Complex<T>* z) {
#pragma GCC unroll 10
  for (int i = 0; i < leaf; ++i) put(to + i * kNumber<T>, z[i]);
}

template <int leaf, typename T>
inline void products(const Work<T>& work, int64_t offset, Complex<T> c) {
  Complex<T> a[leaf], b[leaf], out[leaf];
  if (!work.g) {
    fetch<leaf>(work.x + offset, a);
    fetch<leaf>(work.h + offset, b);
    multiply<false, leaf>(a, b, c, out);
    keep<leaf>(work.x + offset, out);
    return;
  }
  fetch<leaf>(work.g + offset, a);
  if (work.d_h) {
    fetch<leaf>(work.x + offset, b);
    multiply<true, leaf>(a, b, c, out);
    if (!work.begin_d_h) {
      fetch<leaf>(work.d_h + offset, b);
      for (int i = 0; i < leaf; ++i) out[i] = out[i] + b[i];
    }
    keep<leaf>(work.d_h + offset, out);
  }
  if (work.h) {
    fetch<leaf>(work.h + offset, b);
    multiply<true, leaf>(a, b, c, out);
    keep<leaf>(work.g + offset, out);
  }
}

// The last split, the products and the first join of 4 * leaf numbers.
template <int leaf, typename T>
inline void bottom(const Work<T>& work, int64_t offset, const T* twiddle) {
  constexpr int64_t n = 4 * leaf, step = leaf * kNumber<T>;
  if (work.split_h) split_all(work.h + offset, n, twiddle);
  if (leaf == 1 && work.x && !work.g) {  // all of it in registers
    const Twiddle<T> t(twiddle);
    T *x = work.x + offset, *h = work.h + offset;
    Quarters<T> y = split<T>({get(x), get(x + step), get(x + 2 * step), get(x + 3 * step)}, t);
    y = join<T>({y.a * get(h), y.b * get(h + step), y.c * get(h + 2 * step), y.d * get(h + 3 * step)}, t);
    put(x, y.a), put(x + step, y.b), put(x + 2 * step, y.c), put(x + 3 * step, y.d);
    return;
  }
  if (work.x) split_all(work.x + offset, n, twiddle);
  if (work.g) split_all(work.g + offset, n, twiddle);
  if (work.x || work.g) {
    const Complex<T> w = {broadcast(twiddle[0]), broadcast(twiddle[1])};
    products<leaf>(work, offset, w);
    products<leaf>(work, offset + step, Complex<T>{-w.re, -w.im});
    products<leaf>(work, offset + 2 * step, Complex<T>{-w.im, w.re});
    products<leaf>(work, offset + 3 * step, Complex<T>{w.im, -w.re});
  }
  if (work.x && !work.g) join_all(work.x + offset, n, twiddle);
  if (work.g && work.h) join_all(work.g + offset, n, twiddle);
  if (work.join_d_h) join_all(work.d_h + offset, n, twiddle);
}

// The n numbers at `offset`, modulo the polynomial of node p.
template <int leaf, typename T>
void middle(const Work<T>& work, int64_t offset, int64_t n, int64_t p) {
  const T* twiddle = work.twiddles + p * kTwiddle;
  if (n == 4 * leaf) return bottom<leaf>(work, offset, twiddle);
  if (work.x) split_all(work.x + offset, n, twiddle);
  if (work.split_h) split_all(work.h + offset, n, twiddle);
  if (work.g) split_all(work.g + offset, n, twiddle);
  const int64_t step = n / 4 * kNumber<T>;
  for (int i = 0; i < 4; ++i) {
    if (n == 16 * leaf) {
      bottom<leaf>(work, offset + i * step, work.twiddles + (4 * p + i) * kTwiddle);
    } else {
      middle<leaf>(work, offset + i * step, n / 4, 4 * p + i);
    }
  }
  if (work.x && !work.g) join_all(work.x + offset, n, twiddle);
  if (work.g && work.h) join_all(work.g + offset, n, twiddle);
  if (work.join_d_h) join_all(work.d_h + offset, n, twiddle);
}

template <typename T>
void transform(const Work<T>& work, const FftSize& size) {
  for (int i = 0; i < 4; ++i) {
    const int64_t n = size.M / 4, offset = i * n * kNumber<T>, p = 4 * kRoot + i;
    switch (size.leaf) {
      case 1:
        middle<1>(work, offset, n, p);
        break;
      case 2:
        middle<2>(work, offset, n, p);
        break;
      case 3:
        middle<3>(work, offset, n, p);
        break;
      case 5:
        middle<5>(work, offset, n, p);
        break;
      case 6:
        middle<6>(work, offset, n, p);
        break;
      default:
        middle<10>(work, offset, n, p);
    }
  }
}

// First split of the taps of a group; `rows` is room for K vectors. One join leaves a factor of 4.
template <typename T>
void split_taps(const LongConvArguments<T>& a, int64_t channel, int64_t lanes, T* rows, T* h) {
  read_taps(a.taps + channel * a.taps_stride, a.taps_stride, a.K, lanes, rows);
  const Row<const T, true> all(group_rows<const T>(rows, a.K), 0, 0, kLanes<T>), none({}, 0, 0, 0);
  first_split<T, true>({all, none, T(a.size.leaf) / T(a.size.M)}, h, a.size.M, a.twiddles);
}

template <typename T, bool full>
void forward_task(const LongConvArguments<T>& a, const Task& task, T* scratch) {
  if (a.size.M == 0) return forward_direct<T, full>(a, task, scratch);
  const int64_t M = a.size.M, c = task.channel, lanes = task.lanes;
  Work<T> work;
  work.twiddles = a.twiddles;
  work.x = scratch;
  work.split_h = !a.spectrum;
  if (a.spectrum) {
    work.h = const_cast<T*>(a.spectrum) + c / kLanes<T> * M * kNumber<T>;
  } else {
    work.h = scratch + M * kNumber<T>;
    split_taps(a, c, lanes, work.x, work.h);
  }
  for (int64_t b = task.begin; b < task.end; ++b) {
    const Row<const T, full> x(a.x, b, c, lanes), none({}, b, c, lanes);
    first_split<T, full>({x, none}, work.x, M, a.twiddles);
    transform(work, a.size);
    work.split_h = false;
    last_join(work.x, forward_target<T, full>(a, task, b), M, a.twiddles);
  }
}

template <typename T, bool full>
void backward_task(const LongConvArguments<T>& a, const Task& task, T* scratch) {
  const int64_t M = a.size.M, c = task.channel, lanes = task.lanes, buffer = M * kNumber<T>;
  if (a.d_skip) skip_gradient<T, full>(a, task);
  if (a.size.M == 0) return backward_direct<T, full>(a, task, scratch);
  if (!a.d_x.data && !a.d_taps) return;
  Work<T> work;
  work.twiddles = a.twiddles;
  work.g = scratch;
  scratch += buffer;
  if (a.d_x.data) {
    work.h = scratch, scratch += buffer;
    work.split_h = true;
    split_taps(a, c, lanes, work.g, work.h);
  }
  if (a.d_taps) {
    work.x = scratch, work.d_h = scratch + buffer;
    work.begin_d_h = true;
  }
  for (int64_t b = task.begin; b < task.end; ++b) {
    const Row<const T, full> d_out(a.d_out[0], b, c, lanes), d_tail(a.d_out[1], b, c, lanes), none({}, b, c, lanes);
    first_split<T, full>({d_out, d_tail}, work.g, M, a.twiddles);
    if (work.x) first_split<T, full>({{a.x, b, c, lanes}, none}, work.x, M, a.twiddles);
    work.join_d_h = a.d_taps && b + 1 == task.end;
    transform(work, a.size);
    work.split_h = work.begin_d_h = false;
    if (a.d_x.data) last_join(work.g, backward_target<T, full>(a, task, b), M, a.twiddles);
  }
  if (!a.d_taps) return;
  T* rows = work.g;
  const Row<T, true> all(group_rows(rows, a.K), 0, 0, kLanes<T>), nowhere({}, 0, 0, 0);
  const Row<const T, true> none({}, 0, 0, 0);
  Target<T, true> target = {all, nowhere, none};
  target.scale = T(a.size.leaf) / T(M);
  last_join(work.d_h, target, M, a.twiddles);
  write_taps(rows, a.K, lanes, a.d_taps + (task.part * a.D + c) * a.K);
}

template <typename T>
void forward(const LongConvArguments<T>& a, ParallelFor run) {
  for_tasks(a, run, [&](const Task& task, T* scratch) {
    task.lanes == kLanes<T> ? forward_task<T, true>(a, task, scratch) : forward_task<T, false>(a, task, scratch);
  });
}

template <typename T>
void backward(const LongConvArguments<T>& a, ParallelFor run) {
  for_tasks(a, run, [&](const Task& task, T* scratch) {
    task.lanes == kLanes<T> ? backward_task<T, true>(a, task, scratch) : backward_task<T, false>(a, task, scratch);
  });
  add_parts(a.d_taps, a.parts, a.D * a.K, run);
  add_parts(a.d_skip, a.parts, a.D, run);
}

template <typename T>
void spectrum(const LongConvArguments<T>& a, T* to, ParallelFor run) {
  for_tasks(a, run, [&](const Task& task, T* scratch) {
    Work<T> work;
    work.twiddles = a.twiddles;
    work.h = to + task.channel / kLanes<T> * a.size.M * kNumber<T>;
    work.split_h = true;
    split_taps(a, task.channel, task.lanes, scratch, work.h);
    transform(work, a.size);
  });
}

}  // namespace

int64_t long_conv_lanes(int64_t bytes) { return kVectorBytes / bytes; }

void long_conv_forward(const LongConvArguments<float>& a, ParallelFor run) { forward(a, run); }
void long_conv_forward(const LongConvArguments<double>& a, ParallelFor run) { forward(a, run); }
void long_conv_backward(const LongConvArguments<float>& a, ParallelFor run) { backward(a, run); }
void long_conv_backward(const LongConvArguments<double>& a, ParallelFor run) { backward(a, run); }
void long_conv_spectrum(const LongConvArguments<float>& a, float* to, ParallelFor run) { spectrum(a, to, run); }
void long_conv_spectrum(const LongConvArguments<double>& a, double* to, ParallelFor run) { spectrum(a, to, run); }

}  // namespace longstream::LONGSTREAM_ISA
