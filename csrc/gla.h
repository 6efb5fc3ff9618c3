// S_t = diag(f_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t: what the kernels of `gla` are given.
#pragma once

#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace longstream {

template <typename T>
struct GlaTokens {  // (sequences, tokens, heads, K or V); neighbors in the last dimension are neighbors in memory
  const T* data;
  int64_t sequence, token, head;  // strides
};

struct GlaSizes {
  int64_t N, T, H, K, V;  // N sequences; T tokens in each of them, or in all where they are packed
  const int64_t* bounds;  // N + 1 numbers where sequences are packed in one row, else null
  int64_t spacing;        // tokens from one kept state to the next, a multiple of 64; 0 keeps none
  int64_t workers;        // pieces that may run at the same time; any number gives the same bits
  ParallelFor parallel;
};

template <typename T>
struct GlaForward {
  GlaSizes sizes;
  GlaTokens<T> q, k, v, log_forget;
  const T* initial;  // (N, H, K, V)
  T* out;            // (tokens, H, V)
  T* final;          // (N, H, K, V)
  T* states;         // (tokens / spacing, H, K, V)
  T* scratch;        // workers times gla_forward_scratch numbers
};

template <typename T>
struct GlaBackward {
  GlaSizes sizes;
  GlaTokens<T> q, k, v, log_forget, dout;
  const T *initial, *states, *dfinal;
  T *dq, *dk, *dv, *dlog_forget;  // (tokens, H, K or V)
  T* dinitial;
  T* scratch;  // workers times gla_backward_scratch numbers
};

}  // namespace longstream

LONGSTREAM_KERNELS(int64_t gla_forward_scratch(const GlaSizes& sizes);
                   int64_t gla_backward_scratch(const GlaSizes& sizes); void gla_forward(const GlaForward<float>& x);
                   void gla_forward(const GlaForward<double>& x); void gla_backward(const GlaBackward<float>& x);
                   void gla_backward(const GlaBackward<double>& x);)
