// Long convolution by FFT: y_i = sum_s taps_{first + i - s} x_s, with lanes of a vector across channels.
//
// Real signals of `2 M` numbers are taken as polynomials modulo z^{2M} + 1, where z^{2M} is -1: what wraps round comes
// back negated, and is kept out of the outputs that are asked for, as with any FFT. Real and modulo z^{2M} + 1 is
// complex and modulo z^M - i: number n + i times number n + M. So a real signal is a complex one of half the length, and
// unlike with a cyclic FFT the products need no partners k and -k (Nussbaumer's "right-angle" convolution).
#pragma once

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
  const T* twiddles;  // of nodes 0 .. 3 * 4^(levels - 1) - 1, see fft.h
  int64_t B, D;
  LongConvRows<const T> x;
  const T* taps;  // (D, K), rows taps_stride apart
  int64_t taps_stride, K;
  const T* skip;              // (D,) or null: y_i += skip * x_{skip_at + i}
  int64_t skip_at;
  int64_t first;
  // forward
  const T* spectrum;          // what long_conv_spectrum made of the taps, or null
  LongConvRows<T> out[2];
  // backward
  LongConvRows<const T> d_out[2];
  LongConvRows<T> d_x;        // each null if it is not wanted
  T *d_taps, *d_skip;         // (parts, D, K) and (parts, D), of which the first part becomes the sum
  // Tasks are groups of channels times parts of the rows; workers share them, each with scratch of its own.
  int64_t parts, workers;
  T* scratch;
  int64_t scratch_stride;
};

}  // namespace longstream

LONGSTREAM_KERNELS(
    int64_t long_conv_lanes(int64_t bytes);  // channels in a group
    void long_conv_forward(const LongConvArguments<float>&, ParallelFor);
    void long_conv_forward(const LongConvArguments<double>&, ParallelFor);
    void long_conv_backward(const LongConvArguments<float>&, ParallelFor);
    void long_conv_backward(const LongConvArguments<double>&, ParallelFor);
    void long_conv_spectrum(const LongConvArguments<float>&, float* to, ParallelFor);
    void long_conv_spectrum(const LongConvArguments<double>&, double* to, ParallelFor);)
