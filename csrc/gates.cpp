// forget_gate as torch ops; see longstream/ops/gates.py for what they mean.
#include "gates.h"

#include <tuple>

#include "bind.h"
#include "blocks.h"
#include "elements.h"

namespace longstream {
namespace {

using Optional = std::optional<Tensor>;

template <typename T>
const T* optional_input(const Optional& x, const char* name, std::initializer_list<int64_t> shape) {
  return x ? input<T>(*x, name, shape) : nullptr;
}

// Without a bound a row is what one thread takes at a time.
int64_t row_size(const Tensor& z, const Optional& bound) { return bound ? z.size(-1) : 1024; }

std::tuple<Tensor, Tensor> forget_gate_cpu(const Tensor& z, const Optional& bound, const Optional& complement,
                                           const Optional& candidate) {
  Tensor log_forget = torch::stable::empty_like(z), input_gate = torch::stable::empty_like(z);
  for_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    GateArguments<T> a{};
    a.count = z.numel(), a.D = row_size(z, bound);
    a.z = elements<T>(z, "z", z);
    a.bound = optional_input<T>(bound, "bound", {a.D});
    a.complement = optional_input<T>(complement, "complement", {a.D});
    STD_TORCH_CHECK(bool(bound) == bool(complement), "longstream: bound and complement go together");
    a.candidate = candidate ? elements<T>(*candidate, "candidate", z) : nullptr;
    a.log_forget = log_forget.mutable_data_ptr<T>();
    a.input_gate = input_gate.mutable_data_ptr<T>();
    LONGSTREAM_PICK_AS(void (*)(const GateArguments<T>&, ParallelFor), forget_gate)(a, torch_threads);
  });
  return {log_forget, input_gate};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forget_gate_backward_cpu(const Tensor& d_log_forget,
                                                                    const Tensor& d_input_gate, const Tensor& z,
                                                                    const Optional& bound, const Optional& complement,
                                                                    const Optional& candidate) {
  const int64_t D = row_size(z, bound), rows = D > 0 ? (z.numel() + D - 1) / D : 0, of_bound = bound ? D : 0;
  Tensor d_z = torch::stable::empty_like(z);
  Tensor d_candidate = candidate ? torch::stable::empty_like(z) : new_tensor(z, {0});
  Tensor d_bound = new_tensor(z, {of_bound}), d_complement = new_tensor(z, {of_bound});
  Tensor partial = new_tensor(z, {block_count(rows), 2, of_bound});
  for_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    GateBackwardArguments<T> a{};
    a.count = z.numel(), a.D = D;
    a.z = elements<T>(z, "z", z);
    a.bound = optional_input<T>(bound, "bound", {D});
    a.complement = optional_input<T>(complement, "complement", {D});
    a.candidate = candidate ? elements<T>(*candidate, "candidate", z) : nullptr;
    a.d_log_forget = elements<T>(d_log_forget, "d_log_forget", z);
    a.d_input_gate = elements<T>(d_input_gate, "d_input_gate", z);
    a.d_z = d_z.mutable_data_ptr<T>();
    a.d_candidate = candidate ? d_candidate.mutable_data_ptr<T>() : nullptr;
    if (bound) {
      a.partial = partial.mutable_data_ptr<T>();
      a.d_bound = d_bound.mutable_data_ptr<T>();
      a.d_complement = d_complement.mutable_data_ptr<T>();
    }
    LONGSTREAM_PICK_AS(void (*)(const GateBackwardArguments<T>&, ParallelFor), forget_gate_backward)(a, torch_threads);
  });
  return {d_z, d_bound, d_complement, d_candidate};
}

}  // namespace
}  // namespace longstream

STABLE_TORCH_LIBRARY_FRAGMENT(longstream, m) {
  m.def("forget_gate(Tensor z, Tensor? bound, Tensor? complement, Tensor? candidate) -> (Tensor, Tensor)");
  m.def(
      "forget_gate_backward(Tensor d_log_forget, Tensor d_input_gate, Tensor z, Tensor? bound, Tensor? complement, "
      "Tensor? candidate) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CPU, m) {
  m.impl("forget_gate", TORCH_BOX(&longstream::forget_gate_cpu));
  m.impl("forget_gate_backward", TORCH_BOX(&longstream::forget_gate_backward_cpu));
}
