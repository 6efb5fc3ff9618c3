// The ops gated_scan and gated_scan_backward of the torch library.
#include "gated_scan.h"

#include <cmath>
#include <tuple>
#include <vector>

#include "bind.h"

namespace longstream {
namespace {

// Tensors larger than this in sum are gone from the cache before they are read again.
constexpr int64_t kCacheBytes = int64_t(1) << 25;

// cos and sin in float64, each as a number of type T and what rounding to it took.
template <typename T>
std::optional<Tensor> turns(const std::optional<Tensor>& theta, int64_t D) {
  if (!theta) return std::nullopt;
  const T* angles = input<T>(*theta, "theta", {D});
  Tensor rows = new_tensor(*theta, {4, D});
  T* to = rows.mutable_data_ptr<T>();
  for (int64_t d = 0; d < D; ++d) {
    const double cos = std::cos(double(angles[d])), sin = std::sin(double(angles[d]));
    to[d] = T(cos);
    to[D + d] = T(sin);
    to[2 * D + d] = T(cos - double(T(cos)));
    to[3 * D + d] = T(sin - double(T(sin)));
  }
  return rows;
}

// An input of one row a token or a sequence, of two with theta.
template <typename T>
const T* rows_of(const Tensor& x, const char* name, std::initializer_list<int64_t> leading, bool pair, int64_t D) {
  const int64_t* size = leading.begin();
  if (leading.size() == 1) return pair ? input<T>(x, name, {size[0], 2, D}) : input<T>(x, name, {size[0], D});
  return pair ? input<T>(x, name, {size[0], size[1], 2, D}) : input<T>(x, name, {size[0], size[1], D});
}

Tensor like(const Tensor& x) {
  const auto sizes = x.sizes();
  Tensor result = torch::stable::new_empty(x, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()));
  ask_for_large_pages(result);
  return result;
}

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor log_forget, Tensor initial_state, std::optional<Tensor> theta,
                                   bool reverse, std::vector<int64_t> bounds) {
  STD_TORCH_CHECK(log_forget.dim() == 3, "longstream: log_forget has a wrong shape");
  const int64_t B = log_forget.size(0), T = log_forget.size(1), D = log_forget.size(2);
  const std::vector<int64_t> tokens = token_bounds(bounds, B, T);
  const int64_t N = int64_t(tokens.size()) - 1;
  Tensor out = like(x), final_state = like(initial_state);
  for_dtype(x, [&](auto zero) {
    using Number = decltype(zero);
    const std::optional<Tensor> turn = turns<Number>(theta, D);
    GatedScan<Number> a;
    a.shape = {N, D, tokens.data(), reverse};
    a.x = rows_of<Number>(x, "x", {B, T}, turn.has_value(), D);
    a.log_forget = input<Number>(log_forget, "log_forget", {B, T, D});
    a.initial_state = rows_of<Number>(initial_state, "initial_state", {N}, turn.has_value(), D);
    a.turn = turn ? turn->template const_data_ptr<Number>() : nullptr;
    a.out = out.mutable_data_ptr<Number>();
    a.final_state = final_state.mutable_data_ptr<Number>();
    const int64_t bytes = int64_t(sizeof(Number)) * (2 * out.numel() + log_forget.numel());
    a.past_cache = bytes > kCacheBytes && reinterpret_cast<uintptr_t>(a.out) % 64 == 0;
    LONGSTREAM_PICK_AS(void (*)(const GatedScan<Number>&, ParallelFor), gated_scan)(a, torch_threads);
  });
  return {out, final_state};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor dout, Tensor dfinal_state, Tensor log_forget,
                                                    Tensor initial_state, std::optional<Tensor> theta, Tensor out,
                                                    bool reverse, std::vector<int64_t> bounds) {
  STD_TORCH_CHECK(log_forget.dim() == 3, "longstream: log_forget has a wrong shape");
  const int64_t B = log_forget.size(0), T = log_forget.size(1), D = log_forget.size(2);
  const std::vector<int64_t> tokens = token_bounds(bounds, B, T);
  const int64_t N = int64_t(tokens.size()) - 1;
  Tensor dx = like(out), dlog_forget = like(log_forget), dinitial_state = like(initial_state);
  Tensor dtheta = new_tensor(out, {theta ? D : 0});
  for_dtype(out, [&](auto zero) {
    using Number = decltype(zero);
    const std::optional<Tensor> turn = turns<Number>(theta, D);
    GatedScanBackward<Number> a;
    a.shape = {N, D, tokens.data(), reverse};
    a.dout = rows_of<Number>(dout, "dout", {B, T}, turn.has_value(), D);
    a.dfinal_state = rows_of<Number>(dfinal_state, "dfinal_state", {N}, turn.has_value(), D);
    a.log_forget = input<Number>(log_forget, "log_forget", {B, T, D});
    a.initial_state = rows_of<Number>(initial_state, "initial_state", {N}, turn.has_value(), D);
    a.turn = turn ? turn->template const_data_ptr<Number>() : nullptr;
    a.out = rows_of<Number>(out, "out", {B, T}, turn.has_value(), D);
    a.dx = dx.mutable_data_ptr<Number>();
    a.dlog_forget = dlog_forget.mutable_data_ptr<Number>();
    a.dinitial_state = dinitial_state.mutable_data_ptr<Number>();
    const int64_t shape[] = {N, turn ? D : 0};
    const Tensor each = torch::stable::new_empty(out, {shape, 2}, ScalarType::Double);
    a.dtheta = each.mutable_data_ptr<double>();
    const int64_t bytes = int64_t(sizeof(Number)) * (3 * out.numel() + 2 * log_forget.numel());
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(a.dx) | reinterpret_cast<uintptr_t>(a.dlog_forget);
    a.past_cache = bytes > kCacheBytes && addresses % 64 == 0;
    LONGSTREAM_PICK_AS(void (*)(const GatedScanBackward<Number>&, ParallelFor), gated_scan_backward)(a, torch_threads);
    for (int64_t d = 0; d < dtheta.numel(); ++d) {
      double sum = 0;
      for (int64_t n = 0; n < N; ++n) sum += a.dtheta[n * D + d];
      dtheta.mutable_data_ptr<Number>()[d] = Number(sum);
    }
  });
  return {dx, dlog_forget, dinitial_state, dtheta};
}

}  // namespace
}  // namespace longstream

STABLE_TORCH_LIBRARY_FRAGMENT(longstream, m) {
  m.def(
      "gated_scan(Tensor x, Tensor log_forget, Tensor initial_state, Tensor? theta, bool reverse, int[] bounds) -> "
      "(Tensor out, Tensor final_state)");
  m.def(
      "gated_scan_backward(Tensor dout, Tensor dfinal_state, Tensor log_forget, Tensor initial_state, Tensor? theta, "
      "Tensor out, bool reverse, int[] bounds) -> "
      "(Tensor dx, Tensor dlog_forget, Tensor dinitial_state, Tensor dtheta)");
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CPU, m) {
  m.impl("gated_scan", TORCH_BOX(&longstream::forward));
  m.impl("gated_scan_backward", TORCH_BOX(&longstream::backward));
}
