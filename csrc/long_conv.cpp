// Binding of long_conv: sizes, scratch, the table of twiddles.
#include "long_conv.h"

#include <mutex>
#include <tuple>

#include "bind.h"

namespace longstream {
namespace {

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The table only grows, and a larger one begins with the smaller.
template <typename T>
Tensor twiddles(const Tensor& like, const FftSize& size) {
  static std::mutex mutex;
  static Tensor* kept = new Tensor();  // never freed: at exit torch may be gone first
  static int64_t nodes = 0;
  const int64_t needed = long_conv_nodes(size);
  std::lock_guard<std::mutex> lock(mutex);
  if (nodes < needed) {
    Tensor table = new_tensor(like, {needed, 6});
    fill_long_conv_twiddles(table.mutable_data_ptr<T>(), needed);
    *kept = table;
    nodes = needed;
  }
  return *kept;
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

// All but what is particular to forward or backward.
template <typename T>
struct Call {
  LongConvArguments<T> a = {};
  const int64_t lanes;
  Tensor table, scratch;

  explicit Call(const Sums& sums) : lanes(LONGSTREAM_PICK(long_conv_lanes)(sizeof(T))) {
    const Tensor& x = sums.x;
    STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && sums.taps.is_cpu() && sums.taps.dim() == 2,
                    "longstream: long_conv takes CPU tensors x (B, S, D) and taps (D, K)");
    const int64_t S = x.size(1);
    a.B = x.size(0), a.D = x.size(2), a.K = sums.taps.size(1);
    STD_TORCH_CHECK(sums.taps.size(0) == a.D, "longstream: taps has a wrong shape");
    const bool direct = sums.leaf == 0;
    constexpr int64_t kMost = int64_t(1) << 40;  // sums of a few of these do not overflow
    STD_TORCH_CHECK(1 <= a.B && 1 <= S && 1 <= a.D && 1 <= a.K && 0 <= sums.first && sums.first < S + a.K - 1 &&
                        0 <= sums.count && sums.count <= kMost && 0 <= sums.tail && sums.tail <= kMost &&
                        -kMost <= sums.skip_at && sums.skip_at <= kMost,
                    "longstream: long_conv has nothing to add up");
    if (!direct) {
      bool known = false;
      for (int64_t leaf : {1, 2, 3, 5, 6, 10}) known = known || sums.leaf == leaf;
      STD_TORCH_CHECK(known && 2 <= sums.levels && sums.levels <= 20,
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
    a.parts = long_conv_parts(a.B, a.D, lanes);
    a.workers = smaller(long_conv_groups(a.D, lanes) * a.parts, torch::stable::get_num_threads());
  }

  void make_scratch(const Tensor& like, int64_t numbers) {
    a.scratch_stride = numbers;
    scratch = new_tensor(like, {a.workers, numbers});
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
    Call<T> call(sums);
    LongConvArguments<T>& a = call.a;
    if (spectrum) {
      const int64_t groups = long_conv_groups(a.D, call.lanes);
      a.spectrum = input<T>(*spectrum, "spectrum", {groups, a.size.M, 2, call.lanes});
    }
    int64_t at = first;
    for (int i = 0; i < 2; at += i++ ? 0 : count) {
      const int64_t rows = i ? tail : count, end = smaller(at + rows, call.meeting());
      const int64_t met = end > at ? end - at : 0;
      outs[i] = new_tensor(x, {a.B, rows, a.D});
      if (met < rows) {
        Tensor rest = torch::stable::narrow(outs[i], 1, met, rows - met);
        torch::stable::zero_(rest);
      }
      if (met) a.out[i] = output_rows<T>(outs[i], at, met);
    }
    call.make_scratch(x, long_conv_forward_scratch(a, call.lanes));
    LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, ParallelFor), long_conv_forward)(a, torch_threads);
  });
  return {outs[0], outs[1]};
}

// (parts, ...) -> (...), which keeps no other part alive. (0, ...), which nobody wants, stays.
Tensor first_part(const Tensor& x, int64_t parts) {
  if (x.size(0) == 0) return x;
  const Tensor first = torch::stable::select(x, 0, 0);
  return parts > 1 ? torch::stable::clone(first) : first;
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
    Call<T> call(sums);
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
      STD_TORCH_CHECK(given[i].is_cpu() && given[i].dim() == 3 && given[i].size(0) == a.B && given[i].size(1) == rows &&
                          given[i].size(2) == a.D,
                      "longstream: a gradient has a wrong shape");
      a.d_out[i] = input_rows<T>(given[i], at, end - at);
    }
    call.make_scratch(x, long_conv_backward_scratch(a, call.lanes));
    LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, ParallelFor), long_conv_backward)(a, torch_threads);
    d_taps = first_part(d_taps, a.parts), d_skip = first_part(d_skip, a.parts);
  });
  return {d_x, d_taps, d_skip};
}

Tensor long_conv_spectrum(Tensor taps, int64_t leaf, int64_t levels) {
  taps = dense(taps);
  STD_TORCH_CHECK(taps.dim() == 2 && leaf != 0, "longstream: a spectrum has taps (D, K) and a transform");
  Tensor result;
  for_dtype(taps, [&](auto number) {
    using T = decltype(number);
    const Tensor x = new_tensor(taps, {1, 1, taps.size(0)});
    Call<T> call({x, taps, {}, 0, 1, 0, 0, leaf, levels});
    call.make_scratch(x, long_conv_spectrum_scratch(call.a, call.lanes));
    result = new_tensor(taps, {long_conv_groups(call.a.D, call.lanes), call.a.size.M, 2, call.lanes});
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
