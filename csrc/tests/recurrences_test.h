// gla, gated_scan and short_conv against plain loops.
#pragma once

#include "../blocks.h"
#include "../gated_scan.h"
#include "../gla.h"
#include "../short_conv.h"
#include "testing.h"

namespace {

// gla

template <typename T>
void test_gla(int64_t N, int64_t T_, int64_t H, int64_t K, int64_t V, int64_t spacing, int64_t workers,
              const std::vector<int64_t>& bounds = {}) {
  const int64_t tokens = bounds.empty() ? N * T_ : bounds.back();
  GlaSizes sizes{N, T_, H, K, V, bounds.empty() ? nullptr : bounds.data(), spacing, workers, run_parallel};
  const auto q = signed_numbers<T>(tokens * H * K), k = signed_numbers<T>(tokens * H * K);
  const auto v = signed_numbers<T>(tokens * H * V), log_forget = log_gates<T>(tokens * H * K);
  const auto initial = signed_numbers<T>(N * H * K * V), dfinal = signed_numbers<T>(N * H * K * V);
  const auto dout = signed_numbers<T>(tokens * H * V);

  const auto view = [&](const T* data, int64_t width) { return GlaTokens<T>{data, T_ * H * width, H * width, width}; };
  const auto run = [&] {
    Numbers<T> out(tokens * H * V), final(N * H * K * V), states(tokens / spacing * H * K * V);
    Numbers<T> scratch(workers * LONGSTREAM_PICK(gla_forward_scratch)(sizes));
    GlaForward<T> forward{sizes,   view(q, K), view(k, K), view(v, V), view(log_forget, K),
                          initial, out,        final,      states,     scratch};
    LONGSTREAM_PICK_AS(void (*)(const GlaForward<T>&), gla_forward)(forward);

    GlaSizes plain_sizes = sizes;  // a forward pass that keeps nothing
    plain_sizes.spacing = 0;
    Numbers<T> again(tokens * H * V), again_final(N * H * K * V);
    Numbers<T> other(workers * LONGSTREAM_PICK(gla_forward_scratch)(plain_sizes));
    GlaForward<T> plain{plain_sizes, view(q, K), view(k, K),  view(v, V), view(log_forget, K),
                        initial,     again,      again_final, nullptr,    other};
    LONGSTREAM_PICK_AS(void (*)(const GlaForward<T>&), gla_forward)(plain);
    if (out.size() && std::memcmp(out, again, size_t(out.size()) * sizeof(T))) fail("out", "depends on keeping states");

    Numbers<T> dq(q.size()), dk(k.size()), dv(v.size()), dlog(q.size()), dinitial(initial.size());
    Numbers<T> backward_scratch(workers * LONGSTREAM_PICK(gla_backward_scratch)(sizes));
    GlaBackward<T> backward{
        sizes, view(q, K), view(k, K), view(v, V), view(log_forget, K), view(dout, V), initial, states, dfinal, dq,
        dk,    dv,         dlog,       dinitial,   backward_scratch};
    LONGSTREAM_PICK_AS(void (*)(const GlaBackward<T>&), gla_backward)(backward);
    Results<T> results;
    for (const auto& result : {std::make_pair("out", &out),
                               {"final", &final},
                               {"dq", &dq},
                               {"dk", &dk},
                               {"dv", &dv},
                               {"dlog_forget", &dlog},
                               {"dinitial", &dinitial}}) {
      results.add(result.first, *result.second);
    }
    return results;
  };

  std::vector<double> out(size_t(tokens * H * V)), final = wide(initial), dstate = wide(dfinal);
  std::vector<double> dq(size_t(q.size())), dk(size_t(q.size())), dv(size_t(v.size())), dlog(size_t(q.size()));
  for (int64_t n = 0; n < N; ++n) {
    const int64_t first = bounds.empty() ? n * T_ : bounds[size_t(n)];
    const int64_t length = bounds.empty() ? T_ : bounds[size_t(n + 1)] - first;
    for (int64_t h = 0; h < H; ++h) {
      double* S = final.data() + (n * H + h) * K * V;
      double* dS = dstate.data() + (n * H + h) * K * V;
      std::vector<std::vector<double>> before;
      for (int64_t t = first; t < first + length; ++t) {
        before.emplace_back(S, S + K * V);
        for (int64_t i = 0; i < K; ++i) {
          const int64_t at = (t * H + h) * K + i;
          for (int64_t j = 0; j < V; ++j) {
            S[i * V + j] = std::exp(double(log_forget[at])) * S[i * V + j] + double(k[at]) * v[(t * H + h) * V + j];
            out[size_t((t * H + h) * V + j)] += q[at] * S[i * V + j];
          }
        }
      }
      before.emplace_back(S, S + K * V);
      for (int64_t t = first + length - 1; t >= first; --t) {
        const std::vector<double>&old = before[size_t(t - first)], &next = before[size_t(t - first + 1)];
        for (int64_t i = 0; i < K; ++i) {
          const int64_t at = (t * H + h) * K + i;
          const double forget = std::exp(double(log_forget[at]));
          for (int64_t j = 0; j < V; ++j) {
            const int64_t ij = i * V + j, column = (t * H + h) * V + j;
            dq[size_t(at)] += next[size_t(ij)] * dout[column];
            dS[ij] += double(q[at]) * dout[column];
            dk[size_t(at)] += dS[ij] * v[column];
            dv[size_t(column)] += dS[ij] * k[at];
            dlog[size_t(at)] += forget * dS[ij] * old[size_t(ij)];
            dS[ij] *= forget;
          }
        }
      }
    }
  }
  check<T>(run, Exact{{{"out", out},
                       {"final", final},
                       {"dq", dq},
                       {"dk", dk},
                       {"dv", dv},
                       {"dlog_forget", dlog},
                       {"dinitial", dstate}}});
}

// gated_scan

template <typename T>
void test_gated_scan(const std::vector<int64_t>& bounds, int64_t D, bool is_complex, bool reverse, bool past_cache) {
  const int64_t N = int64_t(bounds.size()) - 1, tokens = bounds.back(), P = is_complex ? 2 : 1;
  const ScanShape shape{N, D, bounds.data(), reverse};
  const auto x = signed_numbers<T>(tokens * P * D), log_forget = log_gates<T>(tokens * D);
  const auto initial = signed_numbers<T>(N * P * D), dout = signed_numbers<T>(tokens * P * D);
  const auto dfinal = signed_numbers<T>(N * P * D);
  Numbers<T> turn(4 * D);
  std::vector<double> cosine(size_t(D), 1.0), sine(size_t(D), 0.0);
  for (int64_t d = 0; d < D; ++d) {
    const double theta = uniform(-3.2, 3.2);
    turn[d] = T(std::cos(theta));
    turn[D + d] = T(std::sin(theta));
    turn[2 * D + d] = T(std::cos(theta) - double(turn[d]));
    turn[3 * D + d] = T(std::sin(theta) - double(turn[D + d]));
    if (is_complex) cosine[size_t(d)] = std::cos(theta), sine[size_t(d)] = std::sin(theta);
  }
  const T* turn_given = is_complex ? static_cast<const T*>(turn) : nullptr;

  const auto run = [&] {
    Numbers<T> out(x.size()), final(initial.size()), dx(x.size()), dlog(log_forget.size()), dinitial(initial.size());
    Numbers<double> dtheta(N * D);
    const GatedScan<T> forward{shape, x, log_forget, initial, turn_given, out, final, past_cache};
    LONGSTREAM_PICK_AS(void (*)(const GatedScan<T>&, ParallelFor), gated_scan)(forward, run_parallel);
    const GatedScanBackward<T> backward{shape,
                                        dout,
                                        dfinal,
                                        log_forget,
                                        initial,
                                        turn_given,
                                        out,
                                        dx,
                                        dlog,
                                        dinitial,
                                        is_complex ? static_cast<double*>(dtheta) : nullptr,
                                        past_cache};
    LONGSTREAM_PICK_AS(void (*)(const GatedScanBackward<T>&, ParallelFor), gated_scan_backward)(backward, run_parallel);
    Results<T> results;
    results.add("out", out);
    results.add("final", final);
    results.add("dx", dx);
    results.add("dlog_forget", dlog);
    results.add("dinitial", dinitial);
    if (is_complex) {
      Numbers<T> narrow(N * D);
      for (int64_t i = 0; i < N * D; ++i) narrow[i] = T(dtheta[i]);
      results.add("dtheta", narrow);
    }
    return results;
  };

  std::vector<double> out(size_t(x.size())), final = wide(initial), dx(size_t(x.size())),
                                             dlog(size_t(log_forget.size()));
  std::vector<double> dinitial = wide(dfinal), dtheta(size_t(N * D));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t d = 0; d < D; ++d) {
      double c = cosine[size_t(d)], s = sine[size_t(d)];
      double h[2] = {0, 0}, g[2] = {0, 0};
      for (int64_t p = 0; p < P; ++p) h[p] = initial[(n * P + p) * D + d], g[p] = dfinal[(n * P + p) * D + d];
      std::vector<double> turned;  // exp(i theta) h_{t-1} of every step
      const int64_t length = bounds[size_t(n + 1)] - bounds[size_t(n)];
      const auto token = [&](int64_t step) { return bounds[size_t(n)] + (reverse ? length - 1 - step : step); };
      for (int64_t step = 0; step < length; ++step) {
        const int64_t t = token(step);
        const double forget = std::exp(double(log_forget[t * D + d])),
                     old[2] = {c * h[0] - s * h[1], s * h[0] + c * h[1]};
        for (int64_t p = 0; p < P; ++p) {
          turned.push_back(old[p]);
          h[p] = forget * old[p] + x[(t * P + p) * D + d];
          out[size_t((t * P + p) * D + d)] = h[p];
        }
      }
      for (int64_t step = length - 1; step >= 0; --step) {
        const int64_t t = token(step);
        const double forget = std::exp(double(log_forget[t * D + d]));
        double old[2] = {turned[size_t(step * P)], is_complex ? turned[size_t(step * P + 1)] : 0};
        for (int64_t p = 0; p < P; ++p) {
          g[p] += dout[(t * P + p) * D + d];
          dx[size_t((t * P + p) * D + d)] = g[p];
        }
        dlog[size_t(t * D + d)] = forget * (g[0] * old[0] + g[1] * old[1]);
        dtheta[size_t(n * D + d)] += forget * (g[1] * old[0] - g[0] * old[1]);
        const double back[2] = {forget * (c * g[0] + s * g[1]), forget * (-s * g[0] + c * g[1])};
        g[0] = back[0], g[1] = is_complex ? back[1] : 0;
      }
      for (int64_t p = 0; p < P; ++p)
        final[size_t((n * P + p) * D + d)] = h[p], dinitial[size_t((n * P + p) * D + d)] = g[p];
    }
  }
  Exact exact{{{"out", out}, {"final", final}, {"dx", dx}, {"dlog_forget", dlog}, {"dinitial", dinitial}}};
  if (is_complex) exact.all.emplace_back("dtheta", dtheta);
  check<T>(run, exact);
}

// short_conv

template <typename T>
void test_short_conv(const std::vector<int64_t>& bounds, int64_t D, int64_t W, bool silu, bool has_bias) {
  const int64_t N = int64_t(bounds.size()) - 1, tokens = bounds.back();
  const ConvShape shape{N, D, W, bounds.data(), silu};
  const auto x = signed_numbers<T>(tokens * D), weight = signed_numbers<T>(W * D), bias = signed_numbers<T>(D);
  const auto initial = signed_numbers<T>(N * (W - 1) * D), dfinal = signed_numbers<T>(N * (W - 1) * D);
  const auto dout = signed_numbers<T>(tokens * D);
  const T* bias_given = has_bias ? static_cast<const T*>(bias) : nullptr;

  const auto run = [&] {
    Numbers<T> out(x.size()), final(initial.size()), dx(x.size()), dinitial(initial.size()), narrow(N * (W + 1) * D);
    Numbers<double> dweight(N * (W + 1) * D);
    LONGSTREAM_PICK_AS(void (*)(const ShortConv<T>&, ParallelFor), short_conv)
    (ShortConv<T>{shape, x, weight, bias_given, initial, out, final}, run_parallel);
    LONGSTREAM_PICK_AS(void (*)(const ShortConvBackward<T>&, ParallelFor), short_conv_backward)
    (ShortConvBackward<T>{shape, dout, dfinal, x, weight, bias_given, initial, dx, dinitial, dweight}, run_parallel);
    for (int64_t i = 0; i < narrow.size(); ++i) narrow[i] = T(dweight[i]);
    Results<T> results;
    results.add("out", out);
    results.add("final", final);
    results.add("dx", dx);
    results.add("dinitial", dinitial);
    for (int64_t n = 0; n < N; ++n) {  // without a bias, nothing is promised of its row
      results.add("dweight", narrow + n * (W + 1) * D, (W + has_bias) * D);
    }
    return results;
  };

  std::vector<double> out(size_t(x.size())), final(size_t(initial.size())), dx(size_t(x.size())), dinitial(final);
  std::vector<std::vector<double>> dweight;
  for (int64_t n = 0; n < N; ++n) {
    const int64_t first = bounds[size_t(n)], length = bounds[size_t(n + 1)] - first, past = W - 1;
    std::vector<double> dw(size_t((W + has_bias) * D));
    for (int64_t d = 0; d < D; ++d) {
      std::vector<double> stream, dstream(size_t(past + length));
      for (int64_t i = 0; i < past; ++i) stream.push_back(initial[(n * past + i) * D + d]);
      for (int64_t t = 0; t < length; ++t) stream.push_back(x[(first + t) * D + d]);
      for (int64_t i = 0; i < past; ++i) {
        final[size_t((n * past + i) * D + d)] = stream[size_t(length + i)];
        dstream[size_t(length + i)] += dfinal[(n * past + i) * D + d];
      }
      for (int64_t t = 0; t < length; ++t) {
        double y = has_bias ? double(bias[d]) : 0.0;
        for (int64_t j = 0; j < W; ++j) y += double(weight[j * D + d]) * stream[size_t(t + j)];
        out[size_t((first + t) * D + d)] = silu ? y * sigmoid(y) : y;
        const double slope = silu ? sigmoid(y) * (1 + y * (1 - sigmoid(y))) : 1.0;
        const double dy = slope * dout[(first + t) * D + d];
        for (int64_t j = 0; j < W; ++j) {
          dw[size_t(j * D + d)] += dy * stream[size_t(t + j)];
          dstream[size_t(t + j)] += dy * weight[j * D + d];
        }
        if (has_bias) dw[size_t(W * D + d)] += dy;
      }
      for (int64_t i = 0; i < past; ++i) dinitial[size_t((n * past + i) * D + d)] = dstream[size_t(i)];
      for (int64_t t = 0; t < length; ++t) dx[size_t((first + t) * D + d)] = dstream[size_t(past + t)];
    }
    dweight.push_back(dw);
  }
  Exact exact{{{"out", out}, {"final", final}, {"dx", dx}, {"dinitial", dinitial}}};
  for (const auto& dw : dweight) exact.all.emplace_back("dweight", dw);
  check<T>(run, exact);
}

}  // namespace
