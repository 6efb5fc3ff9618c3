// rms_norm as torch ops; see longstream/ops/rms_norm.py for what they mean.
#include "rms_norm.h"

#include <tuple>

#include "bind.h"
#include "blocks.h"
#include "elements.h"

namespace longstream {
namespace {

using Optional = std::optional<Tensor>;

int64_t row_count(const Tensor& x, int64_t D) { return D > 0 ? x.numel() / D : 0; }

Tensor rms_norm_cpu(const Tensor& x, const Optional& weight, const Optional& gate, double eps) {
  const int64_t D = x.size(-1), rows = row_count(x, D);
  Tensor y = torch::stable::empty_like(x);
  for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    RmsNormArguments<T> a{};
    a.rows = rows, a.D = D, a.eps = eps;
    a.x = elements<T>(x, "x", x);
    a.weight = weight ? input<T>(*weight, "weight", {D}) : nullptr;
    a.gate = gate ? elements<T>(*gate, "gate", x) : nullptr;
    a.y = y.mutable_data_ptr<T>();
    LONGSTREAM_PICK_AS(void (*)(const RmsNormArguments<T>&, ParallelFor), rms_norm)(a, torch_threads);
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> rms_norm_backward_cpu(const Tensor& dy, const Tensor& x, const Optional& weight,
                                                         const Optional& gate, double eps) {
  const int64_t D = x.size(-1), rows = row_count(x, D), of_weight = weight ? D : 0;
  Tensor dx = torch::stable::empty_like(x), d_weight = new_tensor(x, {of_weight});
  Tensor d_gate = gate ? torch::stable::empty_like(x) : new_tensor(x, {0});
  Tensor partial = new_tensor(x, {block_count(rows), of_weight});
  for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    RmsNormBackwardArguments<T> a{};
    a.rows = rows, a.D = D, a.eps = eps;
    a.dy = elements<T>(dy, "dy", x);
    a.x = elements<T>(x, "x", x);
    a.weight = weight ? input<T>(*weight, "weight", {D}) : nullptr;
    a.gate = gate ? elements<T>(*gate, "gate", x) : nullptr;
    a.dx = dx.mutable_data_ptr<T>();
    a.d_gate = gate ? d_gate.mutable_data_ptr<T>() : nullptr;
    a.partial = weight ? partial.mutable_data_ptr<T>() : nullptr;
    a.d_weight = weight ? d_weight.mutable_data_ptr<T>() : nullptr;
    LONGSTREAM_PICK_AS(void (*)(const RmsNormBackwardArguments<T>&, ParallelFor), rms_norm_backward)(a, torch_threads);
  });
  return {dx, d_weight, d_gate};
}

}  // namespace
}  // namespace longstream

STABLE_TORCH_LIBRARY_FRAGMENT(longstream, m) {
  m.def("rms_norm(Tensor x, Tensor? weight, Tensor? gate, float eps) -> Tensor");
  m.def("rms_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? gate, float eps) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&longstream::rms_norm_cpu));
  m.impl("rms_norm_backward", TORCH_BOX(&longstream::rms_norm_backward_cpu));
}
