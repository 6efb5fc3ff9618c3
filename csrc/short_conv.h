// Depthwise causal convolution with W taps, y_t = act(bias + sum_j weight_j x_{t - (W - 1) + j}), and its derivatives.
#pragma once

#include "isa.h"
#include "parallel.h"

namespace longstream {

// Tokens of all sequences lie one after another: sequence n has tokens bounds[n] .. bounds[n + 1] - 1. The W - 1 rows
// of its state and its tokens are one stream; output t meets rows t .. t + W - 1 of the stream.
struct ConvShape {
  int64_t sequences, channels, taps;
  const int64_t* bounds;
  bool silu;
};

template <typename T>
struct ShortConv {
  ConvShape shape;
  const T *x, *weight, *bias, *initial_state;  // weight: (W, D); bias: null means none
  T *out, *final_state;
};

template <typename T>
struct ShortConvBackward {
  ConvShape shape;
  const T *dout, *dfinal_state, *x, *weight, *bias, *initial_state;
  T *dx, *dinitial_state;
  double* dweight;  // (N, W + 1, D), of each sequence and, last, of bias; for the caller to add up
};

}  // namespace longstream

LONGSTREAM_KERNELS(void short_conv(const ShortConv<float>&, ParallelFor);
                   void short_conv(const ShortConv<double>&, ParallelFor);
                   void short_conv_backward(const ShortConvBackward<float>&, ParallelFor);
                   void short_conv_backward(const ShortConvBackward<double>&, ParallelFor);)
