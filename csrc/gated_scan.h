// h_t = exp(log_forget_t + i theta) h_{t-1} + x_t for every channel, and its derivatives; real where there is no theta.
#pragma once

#include "isa.h"
#include "parallel.h"

namespace longstream {

// Tokens of all sequences lie one after another: sequence n has tokens bounds[n] .. bounds[n + 1] - 1. Every token has
// one row of `channels` gates, and one row of numbers or, with theta, two: of real and of imaginary parts.
struct ScanShape {
  int64_t sequences, channels;
  const int64_t* bounds;
  bool reverse;
};

template <typename T>
struct GatedScan {
  ScanShape shape;
  const T *x, *log_forget, *initial_state;
  const T* turn;  // null, or 4 rows: cos theta and sin theta, then what rounding took from them
  T *out, *final_state;
  // Who reads out will not find it in the cache: write around the cache. It must start at a multiple of 64 bytes then.
  bool past_cache;
};

template <typename T>
struct GatedScanBackward {
  ScanShape shape;
  const T *dout, *dfinal_state, *log_forget, *initial_state, *turn, *out;
  T *dx, *dlog_forget, *dinitial_state;
  double* dtheta;   // a row of each sequence, for the caller to add up; not used where turn is null
  bool past_cache;  // as above, of dx and dlog_forget
};

}  // namespace longstream

LONGSTREAM_KERNELS(void gated_scan(const GatedScan<float>&, ParallelFor);
                   void gated_scan(const GatedScan<double>&, ParallelFor);
                   void gated_scan_backward(const GatedScanBackward<float>&, ParallelFor);
                   void gated_scan_backward(const GatedScanBackward<double>&, ParallelFor);)
