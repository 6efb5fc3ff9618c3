// The instructions of a step that carry a state, but for those of Hyena.
#pragma once

#include "stream_program.h"

namespace {

void test_stream_short_conv(int64_t n, int64_t taps) {
  StreamProgram p(n, n, n);
  const std::vector<float> weight = some(n * taps), bias = some(n);
  const int64_t places[] = {p.constant(weight), p.constant(bias)};
  p.add(stream::Code::short_conv, stream::short_conv_op{0, n, n, taps, places[0], places[1], 0});
  p.sizes.state = n * (taps - 1);
  test_program(p, 6, [&](const Past& past) {
    Row y(bias.begin(), bias.end());
    for (int64_t i = 0; i < taps && i < int64_t(past.size()); ++i) {
      const Row& x = past[past.size() - 1 - size_t(i)];
      for (int64_t d = 0; d < n; ++d) y[size_t(d)] += double(weight[size_t((taps - 1 - i) * n + d)]) * x[size_t(d)];
    }
    return y;
  });
}

struct Bounds {
  std::vector<float> bound, complement;
  explicit Bounds(int64_t n) : bound(some(n, 0, 1)) {
    for (float b : bound) complement.push_back(1 - b);
  }
};

void test_stream_hgrn(int64_t n, bool turns) {
  const int64_t parts = turns ? 2 : 1, all = parts * n;
  StreamProgram p(all + n, all, all + n);
  const Bounds bounds(n);
  std::vector<float> theta = some(4 * n);
  for (int64_t d = 0; d < 2 * n; ++d) theta[size_t(2 * n + d)] *= 1e-8f;
  const int64_t places[] = {p.constant(bounds.bound), p.constant(bounds.complement), turns ? p.constant(theta) : -1};
  p.add(stream::Code::hgrn, stream::hgrn_op{0, all, all + n, n, places[0], places[1], places[2], 0});
  p.sizes.state = all;
  test_program(p, 4, [&](const Past& past) {
    Row h(static_cast<size_t>(all));
    for (const Row& x : past) {
      for (int64_t d = 0; d < n; ++d) {
        const double rest = bounds.complement[size_t(d)], z = x[size_t(all + d)];
        const double keep = bounds.bound[size_t(d)] + rest * sigmoid(z), leave = rest * sigmoid(-z);
        const double c = turns ? theta[size_t(d)] : 1, s = turns ? theta[size_t(n + d)] : 0;
        const double re = h[size_t(d)], im = turns ? h[size_t(n + d)] : 0;
        h[size_t(d)] = keep * (c * re - s * im) + leave * act(Activation::silu, x[size_t(parts * d)]);
        if (turns) h[size_t(n + d)] = keep * (s * re + c * im) + leave * act(Activation::silu, x[size_t(2 * d + 1)]);
      }
    }
    return h;
  });
}

void test_stream_gla(int64_t heads, int64_t size) {
  const int64_t n = heads * size;
  StreamProgram p(3 * n, n, 3 * n);
  const Bounds bounds(n);
  const int64_t places[] = {p.constant(bounds.bound), p.constant(bounds.complement)}, silu = int64_t(Activation::silu);
  p.add(stream::Code::gla,
        stream::gla_op{0, n, 2 * n, 3 * n, heads, size, places[0], places[1], silu, bits_of(0.3), silu, 0});
  p.sizes.state = n * size;
  test_program(p, 3, [&](const Past& past) {
    Row S(size_t(n * size)), y(static_cast<size_t>(n));
    for (const Row& x : past) {
      std::fill(y.begin(), y.end(), 0.0);
      for (int64_t k = 0; k < n; ++k) {
        const double rest = bounds.complement[size_t(k)], z = x[size_t(n + k)];
        const double keep = bounds.bound[size_t(k)] + rest * sigmoid(z), leave = rest * sigmoid(-z);
        for (int64_t j = 0; j < size; ++j) {
          const size_t v = size_t(k / size * size + j);
          double& s = S[size_t(k * size + j)];
          s = keep * s + leave * act(Activation::silu, x[size_t(2 * n) + v]);
          y[v] += 0.3 * act(Activation::silu, x[size_t(k)]) * s;
        }
      }
    }
    return y;
  });
}

void test_stream_shared_gates(int64_t gates, int64_t neighbors) {
  const int64_t n = gates * neighbors;
  StreamProgram p(2 * gates + n, n, 2 * gates + n);
  p.add(stream::Code::shared_gates, stream::shared_gates_op{0, gates, 2 * gates, 2 * gates + n, n, gates, 0});
  p.sizes.state = n;
  test_program(p, 4, [&](const Past& past) {
    Row h(static_cast<size_t>(n));
    for (const Row& x : past) {
      for (int64_t d = 0; d < n; ++d) {
        const double u = sigmoid(x[size_t(gates + d / neighbors)]) * act(Activation::silu, x[size_t(2 * gates + d)]);
        h[size_t(d)] = sigmoid(x[size_t(d / neighbors)]) * h[size_t(d)] + u;
      }
    }
    return h;
  });
}

void test_stream_attention(int64_t heads, int64_t kv_heads, int64_t size, int64_t window, bool turned) {
  const int64_t n = heads * size, keys = kv_heads * size, half = size / 2, past_keys = window - 1;
  StreamProgram p(n + 2 * keys, n, n + 2 * keys);
  const std::vector<float> turn = some(window * half * 2);
  const int64_t turns = turned ? p.constant(turn) : -1;
  p.add(stream::Code::attention,
        stream::attention_op{0, n, n + keys, n + 2 * keys, heads, kv_heads, size, window, turns, 0});
  p.sizes.state = 2 * past_keys * keys;
  test_program(p, 2 * window + 1, [&](const Past& past) {
    Row y(static_cast<size_t>(n));
    const int64_t now = int64_t(past.size()) - 1, first = now < past_keys ? 0 : now - past_keys;
    for (int64_t head = 0; head < heads; ++head) {
      const double* q = past.back().data() + head * size;
      const int64_t at = head / (heads / kv_heads) * size;
      double total = 0;
      Row sum(static_cast<size_t>(size));
      for (int64_t t = first; t <= now; ++t) {
        const double *k = past[size_t(t)].data() + n + at, *v = k + keys;
        double score = 0;
        for (int64_t d = 0; d < size && !turned; ++d) score += q[d] * k[d];
        for (int64_t d = 0; d < half && turned; ++d) {
          const double c = turn[size_t((now - t) * 2 * half + d)], s = turn[size_t((now - t) * 2 * half + half + d)];
          score += (q[d] * c - q[half + d] * s) * k[d] + (q[d] * s + q[half + d] * c) * k[half + d];
        }
        const double weight = std::exp(score / std::sqrt(double(size)));
        total += weight;
        for (int64_t d = 0; d < size; ++d) sum[size_t(d)] += weight * v[d];
      }
      for (int64_t d = 0; d < size; ++d) y[size_t(head * size + d)] = sum[size_t(d)] / total;
    }
    return y;
  });
}

}  // namespace
