// long_conv against plain sums.
#pragma once

#include "../long_conv.h"
#include "testing.h"

namespace {

// Rows (B, count, D) with a gap after each, from number `at` of a signal on.
template <typename T>
struct Signal {
  int64_t D, at, count, stride;
  Numbers<T> data;

  Signal(int64_t B, int64_t at, int64_t count, int64_t D, int64_t gap, bool random)
      : D(D), at(at), count(count), stride(D + gap), data(B * count > 0 ? (B * count - 1) * stride + D : 0) {
    for (int64_t i = 0; random && i < data.size(); ++i) {
      if (i % stride < D) data[i] = T(uniform(-1, 1));
    }
  }
  T* row(int64_t i) { return static_cast<T*>(data) + i * stride; }
  double number(int64_t b, int64_t n, int64_t d) const {  // zero outside
    return at <= n && n < at + count ? double(data[(b * count + n - at) * stride + d]) : 0.0;
  }
  LongConvRows<T> rows() { return {count ? row(0) : nullptr, count * stride, stride, at, count}; }
  LongConvRows<const T> const_rows() const {
    return {count ? static_cast<const T*>(data) : nullptr, count * stride, stride, at, count};
  }
  Numbers<T> dense(int64_t B) {
    Numbers<T> all(B * count * D);
    for (int64_t i = 0; i < all.size(); ++i) all[i] = row(i / D)[i % D];
    return all;
  }
};

struct LongConvCase {
  int64_t B, S, D, K, first, count, tail, skip_at, leaf, workers;  // skip_at < 0: no skip; leaf 0: sums as written
  bool all_wishes = false;  // every choice of gradients, and of what they are gradients of
};

template <typename T>
void test_long_conv(const LongConvCase& c) {
  const int64_t B = c.B, S = c.S, D = c.D, K = c.K, first = c.first, meeting = S + K - 1;
  const auto cut = [&](int64_t at, int64_t count) {  // numbers from there on of which not all are zero by themselves
    return at + count < meeting ? count : meeting > at ? meeting - at : 0;
  };
  const int64_t counts[] = {cut(first, c.count), cut(first + c.count, c.tail)}, ats[] = {first, first + c.count};
  const int64_t end = ats[1] + counts[1], needed[] = {meeting - first, K, S, first + c.count < meeting ? end : meeting};
  FftSize size{0, 0, 0};
  if (c.leaf) {
    size = {c.leaf, 2, 16 * c.leaf};
    for (int64_t numbers : needed) {
      while (2 * size.M < numbers) size = {c.leaf, size.levels + 1, 4 * size.M};
    }
  }
  const int64_t lanes = LONGSTREAM_PICK(long_conv_lanes)(sizeof(T));
  const Signal<T> x(B, 0, S, D, 3, true);
  const Signal<T> given[] = {Signal<T>(B, ats[0], counts[0], D, 0, true), Signal<T>(B, ats[1], counts[1], D, 2, true)};
  const int64_t taps_stride = K + 2;
  Numbers<T> taps((D - 1) * taps_stride + K), twiddles(c.leaf ? 6 * long_conv_nodes(size) : 0);
  for (int64_t i = 0; i < taps.size(); ++i) {
    if (i % taps_stride < K) taps[i] = T(uniform(-1, 1) / std::sqrt(double(K)));
  }
  const auto skip = signed_numbers<T>(D);
  if (c.leaf) fill_long_conv_twiddles<T>(twiddles, long_conv_nodes(size));

  LongConvArguments<T> common = {};
  common.size = size, common.twiddles = twiddles, common.B = B, common.D = D, common.x = x.const_rows();
  common.taps = taps, common.taps_stride = taps_stride, common.K = K, common.first = first;
  if (c.skip_at >= 0) common.skip = skip, common.skip_at = c.skip_at;
  common.parts = long_conv_parts(B, D, lanes), common.workers = c.workers;

  using Wishes = std::vector<std::pair<int, int>>;  // bits of (d_x, d_taps, d_skip), of (d_out, d_tail)
  Wishes wishes = {{7, 3}};
  if (c.all_wishes) wishes = {{7, 3}, {1, 3}, {2, 3}, {4, 3}, {3, 1}, {5, 2}, {6, 1}, {7, 2}};
  for (auto& wish : wishes) wish.first &= c.skip_at < 0 ? 3 : 7;
  const auto run = [&] {
    Results<T> results;
    Numbers<T> spectrum(c.leaf ? long_conv_spectrum_size(size, D, lanes) : 0);
    if (c.leaf) {
      LongConvArguments<T> a = common;
      a.scratch_stride = long_conv_spectrum_scratch(a, lanes);
      Numbers<T> scratch(a.workers * a.scratch_stride);
      a.scratch = scratch, a.parts = 1;
      LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, T*, ParallelFor), long_conv_spectrum)
      (a, spectrum, run_parallel);
    }
    for (int kept = 0; kept <= (c.leaf ? 1 : 0); ++kept) {
      Signal<T> out(B, ats[0], counts[0], D, 0, false), tail(B, ats[1], counts[1], D, 1, false);
      LongConvArguments<T> a = common;
      if (kept) a.spectrum = spectrum;
      a.out[0] = out.rows(), a.out[1] = tail.rows();
      a.scratch_stride = long_conv_forward_scratch(a, lanes);
      Numbers<T> scratch(a.workers * a.scratch_stride);
      a.scratch = scratch;
      LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, ParallelFor), long_conv_forward)(a, run_parallel);
      results.add("out", out.dense(B));
      results.add("tail", tail.dense(B));
    }
    for (const auto& wish : wishes) {
      Signal<T> dx(B, 0, S, D, 1, false);
      Numbers<T> dtaps(common.parts * D * K), dskip(common.parts * D);
      LongConvArguments<T> a = common;
      for (int i = 0; i < 2; ++i) {
        if (wish.second >> i & 1) a.d_out[i] = given[i].const_rows();
      }
      if (wish.first & 1) a.d_x = dx.rows();
      if (wish.first & 2) a.d_taps = dtaps;
      if (wish.first & 4) a.d_skip = dskip;
      a.scratch_stride = long_conv_backward_scratch(a, lanes);
      Numbers<T> scratch(a.workers * a.scratch_stride);
      a.scratch = scratch;
      LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, ParallelFor), long_conv_backward)(a, run_parallel);
      if (wish.first & 1) results.add("d_x", dx.dense(B));
      if (wish.first & 2) results.add("d_taps", dtaps, D * K);
      if (wish.first & 4) results.add("d_skip", dskip, D);
    }
    return results;
  };

  const auto tap = [&](int64_t d, int64_t k) { return 0 <= k && k < K ? double(taps[d * taps_stride + k]) : 0.0; };
  std::vector<double> outs[2];
  for (int i = 0; i < 2; ++i) {
    for (int64_t bn = 0; bn < B * counts[i]; ++bn) {
      const int64_t b = bn / counts[i], n = ats[i] + bn % counts[i];
      for (int64_t d = 0; d < D; ++d) {
        double y = i == 0 && c.skip_at >= 0 ? double(skip[d]) * x.number(b, n - first + c.skip_at, d) : 0.0;
        for (int64_t s = n < K ? 0 : n - K + 1; s < S && s <= n; ++s) y += tap(d, n - s) * x.number(b, s, d);
        outs[i].push_back(y);
      }
    }
  }
  Exact exact;
  for (int kept = 0; kept <= (c.leaf ? 1 : 0); ++kept) {
    exact.all.emplace_back("out", outs[0]);
    exact.all.emplace_back("tail", outs[1]);
  }
  for (const auto& wish : wishes) {
    std::vector<double> dx(size_t(B * S * D)), dtaps(size_t(D * K)), dskip(size_t(D), 0.0);
    for (int i = 0; i < 2; ++i) {
      for (int64_t bn = 0; (wish.second >> i & 1) && bn < B * counts[i]; ++bn) {
        const int64_t b = bn / counts[i], n = ats[i] + bn % counts[i], beside = n - first + c.skip_at;
        for (int64_t d = 0; d < D; ++d) {
          const double g = given[i].number(b, n, d);
          for (int64_t s = n < K ? 0 : n - K + 1; s < S && s <= n; ++s) {
            dx[size_t((b * S + s) * D + d)] += g * tap(d, n - s);
            dtaps[size_t(d * K + n - s)] += g * x.number(b, s, d);
          }
          if (i == 1 || beside >= S) continue;
          dskip[size_t(d)] += g * x.number(b, beside, d);
          if (c.skip_at >= 0) dx[size_t((b * S + beside) * D + d)] += g * skip[d];
        }
      }
    }
    if (wish.first & 1) exact.all.emplace_back("d_x", dx);
    if (wish.first & 2) exact.all.emplace_back("d_taps", dtaps);
    if (wish.first & 4) exact.all.emplace_back("d_skip", dskip);
  }
  check<T>(run, exact);
}

}  // namespace
