// The ops gla and gla_backward: checks, casts and memory around the kernels.
#include "gla.h"

#include <algorithm>
#include <tuple>

#include "bind.h"

namespace longstream {
namespace {

using torch::stable::get_num_threads;

Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  const torch::headeronly::IntHeaderOnlyArrayRef sizes(shape.begin(), shape.size());
  const Tensor x = torch::stable::new_empty(like, sizes, dtype);
  ask_for_large_pages(x);
  return x;
}

Tensor cast(const Tensor& x, ScalarType dtype) { return x.scalar_type() == dtype ? x : torch::stable::to(x, dtype); }

// In the dtype of the sums, neighbors in the last dimension side by side.
Tensor prepare(const Tensor& x, ScalarType dtype) {
  const Tensor wide = cast(x, dtype);
  return wide.size(3) < 2 || wide.stride(3) == 1 ? wide : torch::stable::contiguous(wide);
}

Tensor packed(const Tensor& x, ScalarType dtype) {
  const Tensor wide = cast(x, dtype);
  return wide.is_contiguous() ? wide : torch::stable::contiguous(wide);
}

template <typename T>
GlaTokens<T> tokens(const Tensor& x, const char* name, int64_t B, int64_t T_, int64_t H, int64_t size) {
  STD_TORCH_CHECK(
      x.is_cpu() && x.dim() == 4 && x.size(0) == B && x.size(1) == T_ && x.size(2) == H && x.size(3) == size,
      "longstream::gla: ", name, " must be a CPU tensor of the right shape");
  return {x.const_data_ptr<T>(), x.stride(0), x.stride(1), x.stride(2)};
}

bool is_double(const Tensor& x) { return x.scalar_type() == ScalarType::Double; }

ScalarType sum_dtype(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_forget, const Tensor& s) {
  const bool any = is_double(q) || is_double(k) || is_double(v) || is_double(log_forget) || is_double(s);
  return any ? ScalarType::Double : ScalarType::Float;
}

GlaSizes sizes_of(const Tensor& q, const Tensor& v, const std::optional<Tensor>& cu_seqlens, int64_t spacing) {
  STD_TORCH_CHECK(q.dim() == 4 && v.dim() == 4, "longstream::gla: q and v must have 4 dimensions");
  STD_TORCH_CHECK(spacing >= 0 && spacing % 64 == 0, "longstream::gla: spacing must be a multiple of 64");
  GlaSizes sizes{q.size(0), q.size(1), q.size(2), q.size(3), v.size(3), nullptr, spacing, 1, torch_threads};
  if (cu_seqlens) {
    const int64_t* bounds = input<int64_t>(*cu_seqlens, "cu_seqlens", {cu_seqlens->numel()});
    sizes.N = cu_seqlens->numel() - 1;
    STD_TORCH_CHECK(q.size(0) == 1 && sizes.N > 0 && bounds[0] == 0 && bounds[sizes.N] == sizes.T,
                    "longstream::gla: cu_seqlens must rise from 0 to T");
    for (int64_t n = 0; n < sizes.N; ++n) {
      STD_TORCH_CHECK(bounds[n] <= bounds[n + 1], "longstream::gla: cu_seqlens must rise from 0 to T");
    }
    sizes.bounds = bounds;
  }
  return sizes;
}

// A worker has at least this many elements of the state to move on, else waking a thread takes longer than it saves.
constexpr int64_t kLeastWork = 1 << 16;

int64_t workers_for(int64_t tokens, const GlaSizes& sizes, int64_t tasks) {
  const int64_t work = tokens * sizes.H * sizes.K * sizes.V / kLeastWork, threads = get_num_threads();
  return std::max<int64_t>(1, std::min(std::min(work, threads), tasks));
}

// Zeros where no state is kept: what lies there would differ from call to call.
template <typename N>
void clear_rest(const GlaSizes& sizes, N* states, int64_t places) {
  const int64_t state = sizes.H * sizes.K * sizes.V;
  int64_t filled = 0;
  for (int64_t n = 0; n <= sizes.N; ++n) {
    const bool end = n == sizes.N;
    const int64_t first = sizes.bounds ? sizes.bounds[n] : n * sizes.T, place = end ? places : first / sizes.spacing;
    if (place > filled) std::fill(states + filled * state, states + place * state, N(0));
    const int64_t length = end ? 0 : sizes.bounds ? sizes.bounds[n + 1] - first : sizes.T;
    filled = std::max(filled, place + std::max<int64_t>(0, (length + sizes.spacing - 1) / sizes.spacing - 1));
  }
}

std::tuple<Tensor, Tensor, Tensor> gla(Tensor q, Tensor k, Tensor v, Tensor log_forget, Tensor initial_state,
                                       std::optional<Tensor> cu_seqlens, int64_t spacing) {
  GlaSizes sizes = sizes_of(q, v, cu_seqlens, spacing);
  const int64_t B = q.size(0), T = sizes.T, H = sizes.H, K = sizes.K, V = sizes.V;
  const ScalarType dtype = sum_dtype(q, k, v, log_forget, initial_state), out_dtype = v.scalar_type();
  q = prepare(q, dtype);
  k = prepare(k, dtype);
  v = prepare(v, dtype);
  log_forget = prepare(log_forget, dtype);
  initial_state = packed(initial_state, dtype);
  const Tensor out = empty(v, {B, T, H, V}, dtype), final = empty(v, {sizes.N, H, K, V}, dtype);
  const Tensor states = empty(v, {spacing > 0 ? B * T / spacing : 0, H, K, V}, dtype);
  sizes.workers = workers_for(B * T, sizes, sizes.N * H * ((V + 15) / 16));
  // A decoding step needs none, and asking for memory is much of what it costs.
  const Tensor scratch =
      T == 1 ? states : empty(v, {sizes.workers * LONGSTREAM_PICK(gla_forward_scratch)(sizes)}, dtype);
  for_dtype(q, [&](auto number) {
    using N = decltype(number);
    if (spacing > 0) clear_rest(sizes, states.mutable_data_ptr<N>(), B * T / spacing);
    LONGSTREAM_PICK_AS(void (*)(const GlaForward<N>&), gla_forward)(
        {sizes, tokens<N>(q, "q", B, T, H, K), tokens<N>(k, "k", B, T, H, K), tokens<N>(v, "v", B, T, H, V),
         tokens<N>(log_forget, "log_forget", B, T, H, K), input<N>(initial_state, "initial_state", {sizes.N, H, K, V}),
         out.mutable_data_ptr<N>(), final.mutable_data_ptr<N>(), states.mutable_data_ptr<N>(),
         scratch.mutable_data_ptr<N>()});
  });
  return {cast(out, out_dtype), final, states};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gla_backward(Tensor q, Tensor k, Tensor v, Tensor log_forget,
                                                                Tensor initial_state, std::optional<Tensor> cu_seqlens,
                                                                int64_t spacing, Tensor states, Tensor dout,
                                                                Tensor dfinal) {
  STD_TORCH_CHECK(spacing > 0, "longstream::gla_backward: spacing must be that of the forward pass");
  GlaSizes sizes = sizes_of(q, v, cu_seqlens, spacing);
  const int64_t B = q.size(0), T = sizes.T, H = sizes.H, K = sizes.K, V = sizes.V;
  const ScalarType dtype = sum_dtype(q, k, v, log_forget, initial_state);
  const Tensor given[] = {q, k, v, log_forget, initial_state};
  q = prepare(q, dtype);
  k = prepare(k, dtype);
  v = prepare(v, dtype);
  log_forget = prepare(log_forget, dtype);
  dout = prepare(dout, dtype);
  initial_state = packed(initial_state, dtype);
  dfinal = packed(dfinal, dtype);
  const Tensor dq = empty(v, {B, T, H, K}, dtype), dk = empty(v, {B, T, H, K}, dtype);
  const Tensor dlog_forget = empty(v, {B, T, H, K}, dtype), dinitial = empty(v, {sizes.N, H, K, V}, dtype);
  Tensor dv = empty(v, {B, T, H, V}, dtype);
  if (K == 0) torch::stable::zero_(dv);
  sizes.workers = workers_for(B * T, sizes, sizes.N * H * 2);
  const Tensor scratch = empty(v, {sizes.workers * LONGSTREAM_PICK(gla_backward_scratch)(sizes)}, dtype);
  for_dtype(q, [&](auto number) {
    using N = decltype(number);
    LONGSTREAM_PICK_AS(void (*)(const GlaBackward<N>&), gla_backward)(
        {sizes, tokens<N>(q, "q", B, T, H, K), tokens<N>(k, "k", B, T, H, K), tokens<N>(v, "v", B, T, H, V),
         tokens<N>(log_forget, "log_forget", B, T, H, K), tokens<N>(dout, "dout", B, T, H, V),
         input<N>(initial_state, "initial_state", {sizes.N, H, K, V}),
         input<N>(states, "states", {B * T / spacing, H, K, V}), input<N>(dfinal, "dfinal", {sizes.N, H, K, V}),
         dq.mutable_data_ptr<N>(), dk.mutable_data_ptr<N>(), dv.mutable_data_ptr<N>(),
         dlog_forget.mutable_data_ptr<N>(), dinitial.mutable_data_ptr<N>(), scratch.mutable_data_ptr<N>()});
  });
  return {cast(dq, given[0].scalar_type()), cast(dk, given[1].scalar_type()), cast(dv, given[2].scalar_type()),
          cast(dlog_forget, given[3].scalar_type()), cast(dinitial, given[4].scalar_type())};
}

}  // namespace
}  // namespace longstream

STABLE_TORCH_LIBRARY_FRAGMENT(longstream, m) {
  m.def(
      "gla(Tensor q, Tensor k, Tensor v, Tensor log_forget, Tensor initial_state, Tensor? cu_seqlens, SymInt spacing)"
      " -> (Tensor out, Tensor final_state, Tensor states)");
  m.def(
      "gla_backward(Tensor q, Tensor k, Tensor v, Tensor log_forget, Tensor initial_state, Tensor? cu_seqlens, "
      "SymInt spacing, Tensor states, Tensor dout, Tensor dfinal) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CPU, m) {
  m.impl("gla", TORCH_BOX(&longstream::gla));
  m.impl("gla_backward", TORCH_BOX(&longstream::gla_backward));
}
