// A step of a program: each instruction against a plain loop in double over all frames so far, whatever the batch, the
// threads and the order in which they come; and what a check refuses.
#pragma once

#include "stream_mixers_test.h"
#include "stream_program.h"

namespace {

void test_stream_linear(int64_t n_in, int64_t n_out, Weights kind) {
  StreamProgram p(n_in, n_out, n_in);
  const int64_t group = kGroups[int64_t(kind)], groups = (n_in + group - 1) / group;
  std::vector<double> w(size_t(n_in * n_out));
  std::vector<uint32_t> words(size_t((n_out + kPanel - 1) / kPanel * kPanel * groups));
  const std::vector<float> scale = some(n_out, 0.01, 0.02), bias = some(n_out);
  for (int64_t o = 0; o < n_out; ++o) {
    for (int64_t i = 0; i < n_in; ++i) {
      uint32_t& word = words[size_t((o / kPanel * groups + i / group) * kPanel + o % kPanel)];
      const int steps = int(uniform(-127, 127.999));
      float value = kind == Weights::i8 ? float(steps) : float(uniform(-1, 1));
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof(bits));
      if (kind == Weights::bf16) bits &= 0xFFFF0000, std::memcpy(&value, &bits, sizeof(bits));
      word += kind == Weights::f32    ? bits
              : kind == Weights::bf16 ? bits >> (i % 2 ? 0 : 16)
                                      : uint32_t(steps) << 8 * (i % 4);
      w[size_t(o * n_in + i)] = kind == Weights::i8 ? double(value) * double(scale[size_t(o)]) : double(value);
    }
  }
  const int64_t weight = p.constant(words), scales = kind == Weights::i8 ? p.constant(scale) : -1;
  p.add(stream::Code::linear, stream::linear_op{0, n_in, n_in, n_out, weight, int64_t(kind), scales, -1, 0});
  p.add(stream::Code::linear,
        stream::linear_op{0, n_in, n_in, n_out, weight, int64_t(kind), scales, p.constant(bias), 1});
  test_program(p, 1, [&](const Past& past) {
    Row y;
    for (int64_t o = 0; o < n_out; ++o) {
      y.push_back(bias[size_t(o)]);
      for (int64_t i = 0; i < n_in; ++i) y.back() += 2 * w[size_t(o * n_in + i)] * past.back()[size_t(i)];
    }
    return y;
  });
}

void test_stream_norm(int64_t n, Norm kind, bool is_gated) {
  StreamProgram p(2 * n, n, 2 * n);
  const std::vector<float> weight = some(n), bias = some(n);
  const int64_t places[] = {p.constant(weight), p.constant(bias)};
  p.add(stream::Code::norm,
        stream::norm_op{0, 2 * n, n, int64_t(kind), bits_of(0.5), places[0], places[1], is_gated ? n : -1});
  test_program(p, 1, [&](const Past& past) {
    const double* x = past.back().data();
    double mean = 0, variance = 0;
    for (int64_t d = 0; d < n && kind != Norm::rms; ++d) mean += x[d] / double(n);
    for (int64_t d = 0; d < n; ++d) variance += (x[d] - mean) * (x[d] - mean) / double(n);
    const double scale = 1 / std::sqrt(kind == Norm::axon && variance < 0.5 ? 0.5 : variance + 0.5);
    Row y;
    for (int64_t d = 0; d < n; ++d) {
      const double out = (x[d] - mean) * scale * weight[size_t(d)] + bias[size_t(d)];
      y.push_back(is_gated ? out * act(Activation::silu, x[n + d]) : out);
    }
    return y;
  });
}

void test_stream_elementwise(int64_t n, Activation kind) {
  StreamProgram p(2 * n, n, 0);
  const std::vector<float> weight = some(n), bias = some(n);
  const int64_t places[] = {p.constant(weight), p.constant(bias)};
  p.add(stream::Code::multiply, stream::multiply_op{0, int64_t(kind), n, 0, n});
  p.add(stream::Code::affine, stream::affine_op{0, 0, n, places[0], places[1]});
  p.add(stream::Code::pool, stream::pool_op{0, 0, n, int64_t(Pool::mean), 0});
  p.sizes.state = n;
  test_program(p, 3, [&](const Past& past) {
    Row y(static_cast<size_t>(n));
    for (const Row& x : past) {
      for (size_t d = 0; d < y.size(); ++d) {
        y[d] += (act(kind, x[d]) * x[d + y.size()] * weight[d] + bias[d]) / double(past.size());
      }
    }
    return y;
  });
}

void test_stream_normalize(int64_t n) {
  StreamProgram p(n, n + 2, n);
  const std::vector<float> mean = some(n), std = some(n, 0.5, 2);
  const std::vector<int64_t> index = {n - 1, 0};
  const int64_t places[] = {p.constant(mean), p.constant(std), p.constant(index)};
  p.add(stream::Code::normalize, stream::normalize_op{0, n, n, places[0], places[1], 2, places[2]});
  test_program(p, 1, [&](const Past& past) {
    Row y;
    for (size_t d = 0; d < mean.size(); ++d) y.push_back((past.back()[d] - mean[d]) / std[d]);
    y.insert(y.end(), 2, 1.0);
    return y;
  });
}

// Numbers out of range in a good program.
void test_stream_check() {
  StreamProgram p(8, 8, 8);
  const int64_t weight = p.constant(some(16 * 8)), n = 8;
  p.add(stream::Code::linear, stream::linear_op{0, n, n, n, weight, 0, -1, weight, 0});
  p.add(stream::Code::shared_gates, stream::shared_gates_op{0, 0, 0, n, n, 2, 0});
  p.add(stream::Code::attention, stream::attention_op{0, 0, 0, n, 2, 1, 4, 2, weight, 0});
  p.sizes.state = 8;
  const std::vector<unsigned char> constants(size_t(p.sizes.constants));
  const auto is_good = [&] {
    const int64_t count = int64_t(p.lines.size()) / kInstruction;
    return StreamCheck(p.lines.data(), count, constants.data(), p.sizes).run().empty();
  };
  if (!is_good()) fail("check", "refuses a good program");
  const std::vector<int64_t> good = p.lines;
  const int64_t fields[] = {6, 7, 8, 11};  // the code and those that any kind of weights has
  for (size_t i = 0; i < good.size(); ++i) {
    if (int64_t(i) % kInstruction >= fields[int64_t(i) / kInstruction]) continue;
    for (int64_t value : {INT64_MIN, int64_t(-2), int64_t(1) << 40, INT64_MAX - 63}) {
      p.lines = good;
      p.lines[i] = value;
      if (is_good()) fail("check", "takes what is out of range");
    }
  }
}

void test_stream(const std::string& base) {
  now = base + "stream";
  for (Weights kind : {Weights::f32, Weights::bf16, Weights::i8}) {
    for (int64_t n_in : {1, 2, 3, 17, 259}) {
      for (int64_t n_out : {1, 16, 67, 130}) {
        now = base + "stream linear " + std::to_string(n_in) + " " + std::to_string(n_out);
        test_stream_linear(n_in, n_out, kind);
      }
    }
  }
  for (int64_t n : {1, 5, 16, 37, 130, 2100}) {
    now = base + "stream of " + std::to_string(n);
    for (Norm kind : {Norm::rms, Norm::layer, Norm::axon}) test_stream_norm(n, kind, n % 2);
    for (int kind = 0; kind <= int(Activation::gelu); ++kind) test_stream_elementwise(n, Activation(kind));
    test_stream_short_conv(n, 1 + n % 4);
    test_stream_hgrn(n, false);
    test_stream_hgrn(n, true);
    test_stream_normalize(n);
  }
  for (int64_t size : {1, 4, 15, 34, 130}) {
    now = base + "stream heads of " + std::to_string(size);
    test_stream_gla(1 + size % 3, size);
    test_stream_shared_gates(size, 1 + size % 3);
    test_stream_attention(4, 2, size, 1 + size % 5, size % 2 == 0);
  }
  now = base + "stream attention to many keys";
  test_stream_attention(1, 1, 2, 70, true);
  now = base + "stream check";
  test_stream_check();
}

}  // namespace
