// Forget gates: f = bound + complement * sigmoid(z), as log f and complement * sigmoid(-z). Plain C++, no torch.
#pragma once

#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace longstream {

// Elements 0 .. count - 1 in rows of D. Without a bound D is any number: rows are then only what threads share.
template <typename T>
struct GateArguments {
  int64_t count, D;
  const T* z;
  const T* bound;       // (D,), or null: f = sigmoid(z)
  const T* complement;  // (D,), or null
  const T* candidate;   // or null; input_gate is multiplied by SiLU of it
  T* log_forget;
  T* input_gate;
};

template <typename T>
struct GateBackwardArguments {
  int64_t count, D;
  const T* z;
  const T* bound;
  const T* complement;
  const T* candidate;
  const T* d_log_forget;
  const T* d_input_gate;
  T* d_z;
  T* d_candidate;  // null without candidate
  T* partial;      // (block_count(rows), 2, D) of scratch, null without bound
  T* d_bound;      // (D,), null without bound
  T* d_complement;
};

}  // namespace longstream

LONGSTREAM_KERNELS(void forget_gate(const GateArguments<float>& arguments, ParallelFor threads);
                   void forget_gate(const GateArguments<double>& arguments, ParallelFor threads);
                   void forget_gate_backward(const GateBackwardArguments<float>& arguments, ParallelFor threads);
                   void forget_gate_backward(const GateBackwardArguments<double>& arguments, ParallelFor threads);)
