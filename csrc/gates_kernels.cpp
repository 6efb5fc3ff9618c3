// One pass over the elements each way. Nothing is subtracted from 1: see longstream/ops/gates.py.
#include <math.h>

#include "gates.h"
#include "rows.h"
#include "vector_math.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

// f below the normal numbers: rare, so one by one and in double. Its log is that of b + c exp(z), z being far below 0.
template <typename T>
__attribute__((noinline)) T log_of_tiny(T z, T b, T c) {
  const double closed = ::log(double(c)) + double(z);
  if (!(b > 0)) return T(closed);
  const double least = ::log(double(b)), high = closed > least ? closed : least, low = closed > least ? least : closed;
  return T(high + ::log1p(::exp(low - high)));
}

// The part of c exp(z) in b + c exp(z).
template <typename T>
__attribute__((noinline)) T share_of_tiny(T z, T b, T c) {
  return b > 0 ? T(1 / (1 + ::exp(::log(double(b)) - ::log(double(c)) - double(z)))) : T(1);
}

template <typename T>
bool any_tiny(const T* bound, int64_t D) {
  bool found = false;
  for (int64_t d = 0; bound != nullptr && d < D; ++d) found = found || bound[d] < LogConstants<T>::tiny;
  return found;
}

template <typename T>
void gate_row(const GateArguments<T>& a, int64_t begin, int64_t size, bool may_vanish) {
  const T* z_row = a.z + begin;
  for_vectors<T>(size, [&](int64_t d, int64_t count) {
    const Vector<T> z = take(z_row + d, count);
    const Sigmoids<T> s = sigmoids<T>(z);
    Vector<T> log_forget, k = s.minus;
    if (a.bound == nullptr) {
      log_forget = minimum<T>(z, Vector<T>{}) - log1p_near_zero<T>(s.tail);
    } else {
      const Vector<T> b = take(a.bound + d, count), c = take(a.complement + d, count);
      const Vector<T> f = c * s.plus + b;
      k = c * s.minus;
      Vector<T> n, rest;
      split_exponent<T>(f, n, rest);
      const auto is_open = k < T(0.5);  // then log(1 - k) has more digits than log f
      n = is_open ? Vector<T>{} : n;
      const Vector<T> log_rest = log1p_near_zero<T>(is_open ? -k : rest);
      log_forget = n * ExpConstants<T>::ln2_high + (n * ExpConstants<T>::ln2_low + log_rest);
      log_forget = f == f ? log_forget : f;  // NaN has no exponent
      for (int64_t i = 0; may_vanish && i < count; ++i) {
        if (f[i] < LogConstants<T>::tiny && k[i] >= T(0.5)) {
          log_forget[i] = log_of_tiny(T(z[i]), T(b[i]), T(c[i]));
        }
      }
    }
    if (a.candidate != nullptr) {
      const Vector<T> candidate = take(a.candidate + begin + d, count);
      k *= candidate * sigmoids<T>(candidate).plus;
    }
    put(a.log_forget + begin + d, log_forget, count);
    put(a.input_gate + begin + d, k, count);
  });
}

template <typename T>
void gate(const GateArguments<T>& a, ParallelFor threads) {
  const bool may_vanish = any_tiny(a.bound, a.D);
  parallel_for(threads, rows_of(a.count, a.D), grain_of(a.D), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) gate_row(a, row * a.D, smaller(a.D, a.count - row * a.D), may_vanish);
  });
}

// With p = sigmoid(z) and m = sigmoid(-z): d log f / d z = m * (c p / f) and d k / d z = -c p m, k = c m. An open
// gate's log f is log(1 - c m), a closed one's log(b + c p): only the second sees b.
template <typename T>
void gate_row_backward(const GateBackwardArguments<T>& a, int64_t begin, int64_t size, bool may_vanish, T* d_bound,
                       T* d_complement) {
  for_vectors<T>(size, [&](int64_t d, int64_t count) {
    const int64_t at = begin + d;
    const Vector<T> z = take(a.z + at, count), d_log = take(a.d_log_forget + at, count);
    Vector<T> d_k = take(a.d_input_gate + at, count);
    const Sigmoids<T> s = sigmoids<T>(z);
    Vector<T> b = {}, c = broadcast<T>(1);
    if (a.bound != nullptr) b = take(a.bound + d, count), c = take(a.complement + d, count);
    if (a.candidate != nullptr) {
      const Vector<T> candidate = take(a.candidate + at, count);
      const Sigmoids<T> t = sigmoids<T>(candidate);
      const Vector<T> silu = candidate * t.plus;
      put(a.d_candidate + at, d_k * c * s.minus * (silu * t.minus + t.plus), count);
      d_k *= silu;
    }
    if (a.bound == nullptr) {
      put(a.d_z + at, (d_log - d_k * s.plus) * s.minus, count);
      return;
    }
    const Vector<T> open = c * s.plus, f = open + b, inverse = T(1) / f;
    const Vector<T> k = c * s.minus;
    const auto is_open = k < T(0.5);
    Vector<T> d_z = (d_log * (open * inverse) - d_k * open) * s.minus;
    Vector<T> d_b = is_open ? Vector<T>{} : d_log * inverse;
    Vector<T> d_c = (is_open ? -(d_log * inverse * s.minus) : d_log * (s.plus * inverse)) + d_k * s.minus;
    for (int64_t i = 0; may_vanish && i < count; ++i) {
      if (f[i] < LogConstants<T>::tiny && k[i] >= T(0.5)) {
        const T share = share_of_tiny(T(z[i]), T(b[i]), T(c[i]));
        d_z[i] = (d_log[i] * share - d_k[i] * open[i]) * s.minus[i];
        d_b[i] = b[i] > 0 ? d_log[i] * ((1 - share) / b[i]) : T(0);
        d_c[i] = d_log[i] * (share / c[i]) + d_k[i] * s.minus[i];
      }
    }
    put(a.d_z + at, d_z, count);
    put(d_bound + d, take(d_bound + d, count) + d_b, count);
    put(d_complement + d, take(d_complement + d, count) + d_c, count);
  });
}

template <typename T>
void gate_backward(const GateBackwardArguments<T>& a, ParallelFor threads) {
  const int64_t rows = rows_of(a.count, a.D), blocks = block_count(rows), D = a.D;
  const bool may_vanish = any_tiny(a.bound, D);
  parallel_for(threads, blocks, grain_of(kBlockRows * D), [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      T* sums = a.partial == nullptr ? nullptr : a.partial + block * 2 * D;
      for (int64_t i = 0; sums != nullptr && i < 2 * D; ++i) sums[i] = 0;
      for (int64_t row = block * kBlockRows; row < smaller(rows, (block + 1) * kBlockRows); ++row) {
        T* more = sums == nullptr ? nullptr : sums + D;
        gate_row_backward(a, row * D, smaller(D, a.count - row * D), may_vanish, sums, more);
      }
    }
  });
  if (a.bound != nullptr) {
    add_up(a.partial, blocks, 2 * D, D, a.d_bound, threads);
    add_up(a.partial + D, blocks, 2 * D, D, a.d_complement, threads);
  }
}

}  // namespace

void forget_gate(const GateArguments<float>& arguments, ParallelFor threads) { gate(arguments, threads); }
void forget_gate(const GateArguments<double>& arguments, ParallelFor threads) { gate(arguments, threads); }
void forget_gate_backward(const GateBackwardArguments<float>& arguments, ParallelFor threads) {
  gate_backward(arguments, threads);
}
void forget_gate_backward(const GateBackwardArguments<double>& arguments, ParallelFor threads) {
  gate_backward(arguments, threads);
}

}  // namespace longstream::LONGSTREAM_ISA
