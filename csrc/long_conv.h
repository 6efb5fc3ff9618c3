// Long convolution by FFT: y_i = sum_s taps_{first + i - s} x_s, with lanes of a vector across channels.
//
// Real signals of `2 M` numbers are taken as polynomials modulo z^{2M} + 1, where z^{2M} is -1: what wraps round comes
// back negated, and is kept out of the outputs that are asked for, as with any FFT. Real and modulo z^{2M} + 1 is
// complex and modulo z^M - i: number n + i times number n + M. So a real signal is a complex one of half the length,
// and unlike with a cyclic FFT the products need no partners k and -k (Nussbaumer's "right-angle" convolution).
#pragma once

#include <cmath>
#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace longstream {

// A transform's size: M = leaf * 4^levels, leaf 1, 2, 3, 5, 6 or 10, levels >= 2. It stops at polynomials of `leaf`
// numbers, which are multiplied as they are. M = 0: no transform, the sums as they are written.
struct FftSize {
  int64_t leaf, levels, M;
};

// Rows b = 0 .. B - 1 of numbers (count, D), the first of which stands at number `at` of a signal; channels are
// neighbors in memory. Null data: none.
template <typename T>
struct LongConvRows {
  T* data = nullptr;
  int64_t batch_stride = 0, stride = 0, at = 0, count = 0;
};

template <typename T>
struct LongConvArguments {
  FftSize size;
  const T* twiddles;  // long_conv_nodes(size) of 6 numbers, by fill_long_conv_twiddles
  int64_t B, D;
  LongConvRows<const T> x;
  const T* taps;  // (D, K), rows taps_stride apart
  int64_t taps_stride, K;
  const T* skip;  // (D,) or null: y_i += skip * x_{skip_at + i}
  int64_t skip_at;
  int64_t first;
  // forward
  const T* spectrum;  // what long_conv_spectrum made of the taps, or null
  LongConvRows<T> out[2];
  // backward
  LongConvRows<const T> d_out[2];
  LongConvRows<T> d_x;  // each null if it is not wanted
  T *d_taps, *d_skip;   // (parts, D, K) and (parts, D), of which the first part becomes the sum
  // Tasks are groups of channels times parts of the rows; workers share them, each with scratch of its own: at least
  // what long_conv_forward_scratch, _backward_scratch or _spectrum_scratch says. Sums over rows are by parts, so that
  // results depend on 1 <= parts <= B, but not on workers >= 1. A spectrum has parts = 1.
  int64_t parts, workers;
  T* scratch;
  int64_t scratch_stride;
};

// What a caller needs besides: by shapes alone, with `lanes` = long_conv_lanes(sizeof(T)). static: no instruction set
// may end up with another's copy.

static inline int64_t long_conv_groups(int64_t D, int64_t lanes) { return (D + lanes - 1) / lanes; }

// Parts that make enough tasks for some threads to share them evenly.
static inline int64_t long_conv_parts(int64_t B, int64_t D, int64_t lanes) {
  constexpr int64_t tasks = 8;
  const int64_t groups = long_conv_groups(D, lanes);
  if (groups >= tasks || B < 2) return 1;
  const int64_t parts = (tasks + groups - 1) / groups;
  return parts < B ? parts : B;
}

static inline int64_t long_conv_spectrum_size(const FftSize& size, int64_t D, int64_t lanes) {  // numbers of type T
  return long_conv_groups(D, lanes) * size.M * 2 * lanes;
}

// The number after the last output that has a gradient.
template <typename T>
static inline int64_t long_conv_gradient_end(const LongConvArguments<T>& a) {
  int64_t end = a.first;
  for (const LongConvRows<const T>& rows : a.d_out) {
    if (rows.data && rows.at + rows.count > end) end = rows.at + rows.count;
  }
  return end;
}

// Transforms: a buffer of x or of the gradient, one of the taps, and for the taps' gradient x and itself. Direct sums
// hold all numbers of a signal with zeros on both sides, 8 in all.
template <typename T>
static inline int64_t long_conv_forward_scratch(const LongConvArguments<T>& a, int64_t lanes) {
  if (a.size.M == 0) return (a.K + a.x.count + 2 * 8) * lanes;
  return (a.spectrum ? 1 : 2) * a.size.M * 2 * lanes;
}

template <typename T>
static inline int64_t long_conv_backward_scratch(const LongConvArguments<T>& a, int64_t lanes) {
  if (a.size.M == 0) return (2 * a.K + a.x.count + long_conv_gradient_end(a) - a.first + 4 * 8) * lanes;
  return (1 + (a.d_x.data != nullptr) + 2 * (a.d_taps != nullptr)) * a.size.M * 2 * lanes;
}

template <typename T>
static inline int64_t long_conv_spectrum_scratch(const LongConvArguments<T>& a, int64_t lanes) {
  return a.size.M * 2 * lanes;
}

// The nodes of the tree in fft.h that a transform meets. The table of a larger one begins with that of a smaller one.
static inline int64_t long_conv_nodes(const FftSize& size) { return int64_t(3) << (2 * size.levels - 2); }

// w, w^2 and w^3 of each node, real and imaginary part, rounded once from double.
template <typename T>
static inline void fill_long_conv_twiddles(T* to, int64_t nodes) {
  for (int64_t p = 0; p < nodes; ++p) {
    double turn = 0, bit = 0.5;
    for (int64_t rest = p; rest; rest /= 2, bit /= 2) turn += double(rest % 2) * bit;
    for (int power = 1; power <= 3; ++power) {
      const double angle = 1.57079632679489661923 * turn * power;
      *to++ = T(std::cos(angle));
      *to++ = T(std::sin(angle));
    }
  }
}

}  // namespace longstream

LONGSTREAM_KERNELS(int64_t long_conv_lanes(int64_t bytes);  // channels in a group
                   void long_conv_forward(const LongConvArguments<float>&, ParallelFor);
                   void long_conv_forward(const LongConvArguments<double>&, ParallelFor);
                   void long_conv_backward(const LongConvArguments<float>&, ParallelFor);
                   void long_conv_backward(const LongConvArguments<double>&, ParallelFor);
                   void long_conv_spectrum(const LongConvArguments<float>&, float* to, ParallelFor);
                   void long_conv_spectrum(const LongConvArguments<double>&, double* to, ParallelFor);)
