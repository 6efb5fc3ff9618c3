// swiglu as torch ops; see longstream/ops/swiglu.py.
#include "swiglu.h"

#include <tuple>

#include "bind.h"
#include "elements.h"

namespace longstream {
namespace {

Tensor swiglu_cpu(const Tensor& gate, const Tensor& up) {
  Tensor y = torch::stable::empty_like(gate);
  for_dtype(gate, [&](auto zero) {
    using T = decltype(zero);
    const SwigluArguments<T> a{gate.numel(), elements<T>(gate, "gate", gate), elements<T>(up, "up", gate),
                               y.mutable_data_ptr<T>()};
    LONGSTREAM_PICK_AS(void (*)(const SwigluArguments<T>&, ParallelFor), swiglu)(a, torch_threads);
  });
  return y;
}

std::tuple<Tensor, Tensor> swiglu_backward_cpu(const Tensor& dy, const Tensor& gate, const Tensor& up) {
  Tensor d_gate = torch::stable::empty_like(gate), d_up = torch::stable::empty_like(gate);
  for_dtype(gate, [&](auto zero) {
    using T = decltype(zero);
    const SwigluBackwardArguments<T> a{gate.numel(),
                                       elements<T>(dy, "dy", gate),
                                       elements<T>(gate, "gate", gate),
                                       elements<T>(up, "up", gate),
                                       d_gate.mutable_data_ptr<T>(),
                                       d_up.mutable_data_ptr<T>()};
    LONGSTREAM_PICK_AS(void (*)(const SwigluBackwardArguments<T>&, ParallelFor), swiglu_backward)(a, torch_threads);
  });
  return {d_gate, d_up};
}

}  // namespace
}  // namespace longstream

STABLE_TORCH_LIBRARY_FRAGMENT(longstream, m) {
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def("swiglu_backward(Tensor dy, Tensor gate, Tensor up) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CPU, m) {
  m.impl("swiglu", TORCH_BOX(&longstream::swiglu_cpu));
  m.impl("swiglu_backward", TORCH_BOX(&longstream::swiglu_backward_cpu));
}
