// Binding of long_conv: sizes, scratch, the table of twiddles.
#include "long_conv.h"

#include <cmath>
#include <mutex>
#include <tuple>

#include "bind.h"

namespace longstream {
namespace {

// Tasks there should be for some threads to share them evenly: where the channels give fewer, rows are shared out too.
constexpr int64_t kTasks = 8;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// w, w^2, w^3 of each node of the tree in fft.h. Each number is rounded once from double; the table only grows, and a
// larger one begins with the smaller.
template <typename T>
Tensor twiddles(const Tensor& like, const FftSize& size) {
  static std::mutex mutex;
  static Tensor* kept = new Tensor();  // never freed: at exit torch may be gone first
  static int64_t nodes = 0;
  const int64_t needed = int64_t(3) << (2 * size.levels - 2);
  std::lock_guard<std::mutex> lock(mutex);
  if (nodes < needed) {
    Tensor table = new_tensor(like, {needed, 6});
    T* to = table.mutable_data_ptr<T>();
    for (int64_t p = 0; p < needed; ++p) {
      double turn = 0, bit = 0.5;
      for (int64_t rest = p; rest; rest /= 2, bit /= 2) turn += double(rest % 2) * bit;
      for (int power = 1; power <= 3; ++power) {
        const double angle = 1.57079632679489661923 * turn * power;
        *to++ = T(std::cos(angle));
        *to++ = T(std::sin(angle));
      }
    }
    *kept = table;
    nodes = needed;
  }
  return *kept;
}

Tensor zeros(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_zeros(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()));
}

// With neighboring channels (or taps) next to each other; rows may stand anywhere.
Tensor dense(const Tensor& x) { return x.size(-1) <= 1 || x.stride(-1) == 1 ? x : torch::stable::contiguous(x); }

template <typename T>
LongConvRows<const T> input_rows(const Tensor& x, int64_t at, int64_t count) {
  return {x.const_data_ptr<T>(), x.stride(0), x.stride(1), at, count};
}

template <typename T>
LongConvRows<T> output_rows(const Tensor& x, int64_t at, int64_t count) {
  return {x.mutable_data_ptr<T>(), x.stride(0), x.stride(1), at, count};
}

std::optional<Tensor> dense(const std::optional<Tensor>& x) {
  return x ? std::optional<Tensor>(dense(*x)) : std::nullopt;
}

// What a call is, apart from its tensors: see convolve in longstream/ops/long_conv/native.py.
struct Sums {
  Tensor x, taps;
  std::optional<Tensor> skip;
  int64_t first, count, tail, skip_at, leaf, levels;
};

// All but what is particular to forward or backward. `buffers` of M complex numbers are a worker's scratch.
template <typename T>
struct Call {
  LongConvArguments<T> a = {};
  Tensor table, scratch;

  Call(const Sums& sums, int64_t buffers, bool share_rows) {
    const Tensor& x = sums.x;
    STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && sums.taps.is_cpu() && sums.taps.dim() == 2,
                    "longstream: long_conv takes CPU tensors x (B, S, D) and taps (D, K)");
    const int64_t S = x.size(1), lanes = LONGSTREAM_PICK(long_conv_lanes)(sizeof(T));
    a.B = x.size(0), a.D = x.size(2), a.K = sums.taps.size(1);
    STD_TORCH_CHECK(sums.taps.size(0) == a.D, "longstream: taps has a wrong shape");
    const bool direct = sums.leaf == 0;
    STD_TORCH_CHECK(0 <= sums.first && 0 <= sums.count && 0 <= sums.tail && 1 <= S && 1 <= a.K,
                    "longstream: long_conv has nothing to add up");
    if (!direct) {
      STD_TORCH_CHECK(1 <= sums.leaf && sums.leaf <= 10 && 2 <= sums.levels && sums.levels <= 24,
                      "longstream: long_conv has no transform of this size");
      a.size = {sums.leaf, sums.levels, sums.leaf << (2 * sums.levels)};
      const int64_t N = 2 * a.size.M, end = smaller(sums.first + sums.count + sums.tail, S + a.K - 1);
      STD_TORCH_CHECK(N >= S + a.K - 1 - sums.first && N >= a.K && N >= S && N >= end,
                      "longstream: long_conv's transform is too small");
      table = twiddles<T>(x, a.size);
      a.twiddles = table.const_data_ptr<T>();
    }
    a.x = input_rows<T>(x, 0, S);
    a.taps = sums.taps.const_data_ptr<T>();
    a.taps_stride = sums.taps.stride(0);
    if (sums.skip) a.skip = input<T>(*sums.skip, "skip", {a.D});
    a.skip_at = sums.skip_at, a.first = sums.first;
    const int64_t groups = (a.D + lanes - 1) / lanes;
    a.parts = share_rows && groups < kTasks ? smaller(a.B, (kTasks + groups - 1) / groups) : 1;
    a.workers = smaller(groups * a.parts, torch::stable::get_num_threads());
    // Direct sums hold the taps twice, all inputs and all gradients, with zeros around each: see long_conv_direct.h.
    const int64_t numbers = direct ? 2 * a.K + S + sums.count + sums.tail + 4 * 8 : buffers * a.size.M * 2;
    a.scratch_stride = numbers * lanes;
    scratch = new_tensor(x, {a.workers, a.scratch_stride});
    a.scratch = scratch.mutable_data_ptr<T>();
  }

  int64_t meeting() const { return a.x.count + a.K - 1; }  // numbers of a signal that are not zero by themselves
};

std::tuple<Tensor, Tensor> long_conv(Tensor x, Tensor taps, std::optional<Tensor> spectrum, std::optional<Tensor> skip,
                                     int64_t first, int64_t count, int64_t tail, int64_t skip_at, int64_t leaf,
                                     int64_t levels) {
  const Sums sums = {dense(x), dense(taps), dense(skip), first, count, tail, skip_at, leaf, levels};
  Tensor outs[2];
  for_dtype(x, [&](auto number) {
    using T = decltype(number);
    Call<T> call(sums, spectrum ? 1 : 2, true);
    LongConvArguments<T>& a = call.a;
    if (spectrum) {
      const int64_t lanes = LONGSTREAM_PICK(long_conv_lanes)(sizeof(T)), groups = (a.D + lanes - 1) / lanes;
      a.spectrum = input<T>(*spectrum, "spectrum", {groups, a.size.M, 2, lanes});
    }
    int64_t at = first;
    for (int i = 0; i < 2; at += i++ ? 0 : count) {
      const int64_t rows = i ? tail : count, end = smaller(at + rows, call.meeting());
      outs[i] = end < at + rows ? zeros(x, {a.B, rows, a.D}) : new_tensor(x, {a.B, rows, a.D});
      if (end > at) a.out[i] = output_rows<T>(outs[i], at, end - at);
    }
    LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, ParallelFor), long_conv_forward)(a, torch_threads);
  });
  return {outs[0], outs[1]};
}

std::tuple<Tensor, Tensor, Tensor> long_conv_backward(Tensor x, Tensor taps, std::optional<Tensor> skip,
                                                      std::optional<Tensor> d_out, std::optional<Tensor> d_tail,
                                                      int64_t first, int64_t count, int64_t tail, int64_t skip_at,
                                                      int64_t leaf, int64_t levels, bool wants_x, bool wants_taps,
                                                      bool wants_skip) {
  const Sums sums = {dense(x), dense(taps), dense(skip), first, count, tail, skip_at, leaf, levels};
  Tensor d_x, d_taps, d_skip;
  for_dtype(x, [&](auto number) {
    using T = decltype(number);
    Call<T> call(sums, 1 + wants_x + 2 * wants_taps, true);
    LongConvArguments<T>& a = call.a;
    d_x = new_tensor(x, {wants_x ? a.B : 0, x.size(1), a.D});
    d_taps = new_tensor(x, {wants_taps ? a.parts : 0, a.D, a.K});
    d_skip = new_tensor(x, {wants_skip ? a.parts : 0, a.D});
    if (wants_x) a.d_x = output_rows<T>(d_x, 0, x.size(1));
    if (wants_taps) a.d_taps = d_taps.mutable_data_ptr<T>();
    if (wants_skip) a.d_skip = d_skip.mutable_data_ptr<T>();
    Tensor given[2];
    int64_t at = first;
    for (int i = 0; i < 2; at += i++ ? 0 : count) {
      const int64_t rows = i ? tail : count, end = smaller(at + rows, call.meeting());
      if (!(i ? d_tail : d_out) || end <= at) continue;
      given[i] = dense(i ? *d_tail : *d_out);
      STD_TORCH_CHECK(given[i].is_cpu() && given[i].dim() == 3 && given[i].size(0) == a.B &&
                          given[i].size(1) == rows && given[i].size(2) == a.D,
                      "longstream: a gradient has a wrong shape");
      a.d_out[i] = input_rows<T>(given[i], at, end - at);
    }
    LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, ParallelFor), long_conv_backward)(a, torch_threads);
    d_taps = torch::stable::squeeze(torch::stable::narrow(d_taps, 0, 0, wants_taps), 0);
    d_skip = torch::stable::squeeze(torch::stable::narrow(d_skip, 0, 0, wants_skip), 0);
  });
  return {d_x, d_taps, d_skip};
}

Tensor long_conv_spectrum(Tensor taps, int64_t leaf, int64_t levels) {
  taps = dense(taps);
  STD_TORCH_CHECK(taps.dim() == 2, "longstream: taps has a wrong shape");
  Tensor result;
  for_dtype(taps, [&](auto number) {
    using T = decltype(number);
    const Tensor x = new_tensor(taps, {1, 1, taps.size(0)});
    Call<T> call({x, taps, {}, 0, 1, 0, 0, leaf, levels}, 1, false);
    const int64_t lanes = LONGSTREAM_PICK(long_conv_lanes)(sizeof(T)), groups = (call.a.D + lanes - 1) / lanes;
    result = new_tensor(taps, {groups, call.a.size.M, 2, lanes});
    LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, T*, ParallelFor), long_conv_spectrum)
    (call.a, result.mutable_data_ptr<T>(), torch_threads);
  });
  return result;
}

}  // namespace
}  // namespace longstream

STABLE_TORCH_LIBRARY_FRAGMENT(longstream, m) {
  m.def(
      "long_conv(Tensor x, Tensor taps, Tensor? spectrum, Tensor? skip, int first, int count, int tail, int skip_at, "
      "int leaf, int levels) -> (Tensor, Tensor)");
  m.def(
      "long_conv_backward(Tensor x, Tensor taps, Tensor? skip, Tensor? d_out, Tensor? d_tail, int first, int count, "
      "int tail, int skip_at, int leaf, int levels, bool wants_x, bool wants_taps, bool wants_skip) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("long_conv_spectrum(Tensor taps, int leaf, int levels) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CPU, m) {
  m.impl("long_conv", TORCH_BOX(&longstream::long_conv));
  m.impl("long_conv_backward", TORCH_BOX(&longstream::long_conv_backward));
  m.impl("long_conv_spectrum", TORCH_BOX(&longstream::long_conv_spectrum));
}
