// y = SiLU(gate) * up. Plain C++, no torch.
#pragma once

#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace longstream {

template <typename T>
struct SwigluArguments {
  int64_t count;
  const T* gate;
  const T* up;
  T* y;
};

template <typename T>
struct SwigluBackwardArguments {
  int64_t count;
  const T* dy;
  const T* gate;
  const T* up;
  T* d_gate;
  T* d_up;
};

}  // namespace longstream

LONGSTREAM_KERNELS(void swiglu(const SwigluArguments<float>& arguments, ParallelFor threads);
                   void swiglu(const SwigluArguments<double>& arguments, ParallelFor threads);
                   void swiglu_backward(const SwigluBackwardArguments<float>& arguments, ParallelFor threads);
                   void swiglu_backward(const SwigluBackwardArguments<double>& arguments, ParallelFor threads);)
