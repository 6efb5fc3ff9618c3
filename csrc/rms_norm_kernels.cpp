// A row is read several times, but only the first time from memory.
#include <math.h>

#include "rms_norm.h"
#include "rows.h"
#include "vector_math.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

template <typename T>
inline T scale_of(const T* x, int64_t D, double eps) {
  Vector<T> squares = {};
  for_vectors<T>(D, [&](int64_t d, int64_t count) {
    const Vector<T> part = take(x + d, count);
    squares += part * part;
  });
  return T(1 / ::sqrt(double(sum_lanes<T>(squares)) / double(D) + eps));
}

template <typename T>
void norm_row(const RmsNormArguments<T>& a, int64_t row) {
  const T* x = a.x + row * a.D;
  const T scale = scale_of(x, a.D, a.eps);
  for_vectors<T>(a.D, [&](int64_t d, int64_t count) {
    Vector<T> y = take(x + d, count) * scale;
    if (a.weight != nullptr) y *= take(a.weight + d, count);
    if (a.gate != nullptr) {
      const Vector<T> gate = take(a.gate + row * a.D + d, count);
      y *= gate * sigmoids<T>(gate).plus;
    }
    put(a.y + row * a.D + d, y, count);
  });
}

// With n = x * scale and dn the gradient of n: dx = scale * (dn - n * mean(dn * n)). dx holds dn in between.
template <typename T>
void norm_row_backward(const RmsNormBackwardArguments<T>& a, int64_t row, T* d_weight) {
  const T* x = a.x + row * a.D;
  const T scale = scale_of(x, a.D, a.eps);
  T* dx = a.dx + row * a.D;
  Vector<T> products = {};
  for_vectors<T>(a.D, [&](int64_t d, int64_t count) {
    const int64_t at = row * a.D + d;
    const Vector<T> n = take(x + d, count) * scale;
    Vector<T> dn = take(a.dy + at, count), weight = {};
    if (a.weight != nullptr) weight = take(a.weight + d, count);
    if (a.gate != nullptr) {
      const Vector<T> gate = take(a.gate + at, count);
      const Sigmoids<T> s = sigmoids<T>(gate);
      const Vector<T> silu = gate * s.plus;
      put(a.d_gate + at, dn * (a.weight != nullptr ? n * weight : n) * (silu * s.minus + s.plus), count);
      dn *= silu;
    }
    if (a.weight != nullptr) {
      put(d_weight + d, take(d_weight + d, count) + dn * n, count);
      dn *= weight;
    }
    products += dn * n;
    put(dx + d, dn, count);
  });
  const T mean = sum_lanes<T>(products) / T(a.D);
  for_vectors<T>(a.D, [&](int64_t d, int64_t count) {
    const Vector<T> n = take(x + d, count) * scale;
    put(dx + d, (take(dx + d, count) - n * mean) * scale, count);
  });
}

template <typename T>
void norm(const RmsNormArguments<T>& a, ParallelFor threads) {
  parallel_for(threads, a.rows, grain_of(a.D), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) norm_row(a, row);
  });
}

template <typename T>
void norm_backward(const RmsNormBackwardArguments<T>& a, ParallelFor threads) {
  const int64_t blocks = block_count(a.rows);
  parallel_for(threads, blocks, grain_of(kBlockRows * a.D), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      T* sums = a.partial == nullptr ? nullptr : a.partial + block * a.D;
      for (int64_t d = 0; sums != nullptr && d < a.D; ++d) sums[d] = 0;
      const int64_t end = smaller(a.rows, (block + 1) * kBlockRows);
      for (int64_t row = block * kBlockRows; row < end; ++row) norm_row_backward(a, row, sums);
    }
  });
  if (a.weight != nullptr) add_up(a.partial, blocks, a.D, a.D, a.d_weight, threads);
}

}  // namespace

void rms_norm(const RmsNormArguments<float>& arguments, ParallelFor threads) { norm(arguments, threads); }
void rms_norm(const RmsNormArguments<double>& arguments, ParallelFor threads) { norm(arguments, threads); }
void rms_norm_backward(const RmsNormBackwardArguments<float>& arguments, ParallelFor threads) {
  norm_backward(arguments, threads);
}
void rms_norm_backward(const RmsNormBackwardArguments<double>& arguments, ParallelFor threads) {
  norm_backward(arguments, threads);
}

}  // namespace longstream::LONGSTREAM_ISA
