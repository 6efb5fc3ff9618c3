// The ops short_conv and short_conv_backward of the torch library.
#include "short_conv.h"

#include <tuple>
#include <vector>

#include "bind.h"

namespace longstream {
namespace {

// What both directions are given: weight is (W, D).
template <typename T, typename Arguments>
void fill(Arguments& a, const std::vector<int64_t>& tokens, const Tensor& x, const Tensor& weight,
          const std::optional<Tensor>& bias, const Tensor& initial_state, bool silu) {
  const int64_t B = x.size(0), length = x.size(1), D = x.size(2), W = weight.size(0), N = int64_t(tokens.size()) - 1;
  a.shape = {N, D, W, tokens.data(), silu};
  a.x = input<T>(x, "x", {B, length, D});
  a.weight = input<T>(weight, "weight", {W, D});
  a.bias = bias ? input<T>(*bias, "bias", {D}) : nullptr;
  a.initial_state = input<T>(initial_state, "initial_state", {N, W - 1, D});
}

void check_dims(const Tensor& x, const Tensor& weight) {
  const bool agrees = x.dim() == 3 && weight.dim() == 2 && weight.size(0) >= 1;
  STD_TORCH_CHECK(agrees, "longstream: x or weight has a wrong shape");
}

std::tuple<Tensor, Tensor> forward(Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor initial_state, bool silu,
                                   std::vector<int64_t> bounds) {
  check_dims(x, weight);
  const int64_t B = x.size(0), length = x.size(1), D = x.size(2), W = weight.size(0);
  const std::vector<int64_t> tokens = token_bounds(bounds, B, length);
  const int64_t N = int64_t(tokens.size()) - 1;
  Tensor out = new_tensor(x, {B, length, D}), final_state = new_tensor(x, {N, W - 1, D});
  for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    ShortConv<T> a;
    fill<T>(a, tokens, x, weight, bias, initial_state, silu);
    a.out = out.mutable_data_ptr<T>();
    a.final_state = final_state.mutable_data_ptr<T>();
    LONGSTREAM_PICK_AS(void (*)(const ShortConv<T>&, ParallelFor), short_conv)(a, torch_threads);
  });
  return {out, final_state};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor dout, Tensor dfinal_state, Tensor x, Tensor weight,
                                                    std::optional<Tensor> bias, Tensor initial_state, bool silu,
                                                    std::vector<int64_t> bounds) {
  check_dims(x, weight);
  const int64_t B = x.size(0), length = x.size(1), D = x.size(2), W = weight.size(0);
  const std::vector<int64_t> tokens = token_bounds(bounds, B, length);
  const int64_t N = int64_t(tokens.size()) - 1;
  Tensor dx = new_tensor(x, {B, length, D}), dinitial_state = new_tensor(x, {N, W - 1, D});
  Tensor dweight = new_tensor(x, {W, D}), dbias = new_tensor(x, {bias ? D : 0});
  for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    ShortConvBackward<T> a;
    fill<T>(a, tokens, x, weight, bias, initial_state, silu);
    a.dout = input<T>(dout, "dout", {B, length, D});
    a.dfinal_state = input<T>(dfinal_state, "dfinal_state", {N, W - 1, D});
    a.dx = dx.mutable_data_ptr<T>();
    a.dinitial_state = dinitial_state.mutable_data_ptr<T>();
    const int64_t shape[] = {N, W + 1, D};
    const Tensor each = torch::stable::new_empty(x, {shape, 3}, ScalarType::Double);
    a.dweight = each.mutable_data_ptr<double>();
    LONGSTREAM_PICK_AS(void (*)(const ShortConvBackward<T>&, ParallelFor), short_conv_backward)(a, torch_threads);
    T *weights = dweight.mutable_data_ptr<T>(), *biases = dbias.mutable_data_ptr<T>();
    for (int64_t i = 0; i < (W + (bias ? 1 : 0)) * D; ++i) {
      double sum = 0;
      for (int64_t n = 0; n < N; ++n) sum += a.dweight[n * (W + 1) * D + i];
      (i < W * D ? weights[i] : biases[i - W * D]) = T(sum);
    }
  });
  return {dx, dweight, dbias, dinitial_state};
}

}  // namespace
}  // namespace longstream

STABLE_TORCH_LIBRARY_FRAGMENT(longstream, m) {
  m.def(
      "short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor initial_state, bool silu, int[] bounds) -> "
      "(Tensor out, Tensor final_state)");
  m.def(
      "short_conv_backward(Tensor dout, Tensor dfinal_state, Tensor x, Tensor weight, Tensor? bias, "
      "Tensor initial_state, bool silu, int[] bounds) -> "
      "(Tensor dx, Tensor dweight, Tensor dbias, Tensor dinitial_state)");
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CPU, m) {
  m.impl("short_conv", TORCH_BOX(&longstream::forward));
  m.impl("short_conv_backward", TORCH_BOX(&longstream::backward));
}
