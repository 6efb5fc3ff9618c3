// y = weight * x / sqrt(mean(x^2) + eps), times SiLU(gate) if there is one. Plain C++, no torch.
#pragma once

#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace longstream {

template <typename T>
struct RmsNormArguments {
  int64_t rows, D;
  double eps;
  const T* x;       // (rows, D)
  const T* weight;  // (D,), or null: ones
  const T* gate;    // (rows, D), or null
  T* y;
};

template <typename T>
struct RmsNormBackwardArguments {
  int64_t rows, D;
  double eps;
  const T* dy;
  const T* x;
  const T* weight;
  const T* gate;
  T* dx;
  T* d_gate;    // null without gate
  T* partial;   // (block_count(rows), D) of scratch, null without weight
  T* d_weight;  // (D,), null without weight
};

}  // namespace longstream

LONGSTREAM_KERNELS(void rms_norm(const RmsNormArguments<float>& arguments, ParallelFor threads);
                   void rms_norm(const RmsNormArguments<double>& arguments, ParallelFor threads);
                   void rms_norm_backward(const RmsNormBackwardArguments<float>& arguments, ParallelFor threads);
                   void rms_norm_backward(const RmsNormBackwardArguments<double>& arguments, ParallelFor threads);)
