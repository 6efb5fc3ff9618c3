// Instructions that work number by number, norms among them. For stream_kernels.cpp.
#pragma once

#include <cmath>
#include <cstring>

#include "rows.h"
#include "stream.h"
#include "vector_math.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

using Floats = Vector<float>;

// Numbers of a chunk: below that, a second thread costs more than it saves.
constexpr int64_t kHeavy = 1024;  // where each takes an exp
constexpr int64_t kLight = 8192;

// How B rows of n channels are cut: a chunk is some rows, or some channels of one row.
struct Cut {
  int64_t B, n, rows, channels;
  Cut(int64_t B_, int64_t n_, int64_t numbers)
      : B(B_), n(n_), rows(n_ < numbers ? numbers / n_ : 1), channels(n_ < numbers ? n_ : numbers) {}
  int64_t across() const { return (n + channels - 1) / channels; }
  int64_t chunks() const { return (B + rows - 1) / rows * across(); }
  template <typename F>
  void each(int64_t chunk, const F& f) const {  // f(row, first channel, one after the last)
    const int64_t first = chunk / across() * rows, begin = chunk % across() * channels;
    for (int64_t b = first; b < smaller(B, first + rows); ++b) f(b, begin, smaller(n, begin + channels));
  }
};

inline double double_of(int64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline float* at(const StreamRows& rows, int64_t b, int64_t offset) { return rows.scratch + b * rows.stride + offset; }

template <typename T>
inline const T* constant(const StreamRows& rows, int64_t offset) {  // null for -1
  return offset < 0 ? nullptr : reinterpret_cast<const T*>(rows.constants + offset);
}

inline Floats silu(Floats x) { return x * sigmoids<float>(x).plus; }

// x Phi(x), Phi(-|x|) = erfc(z) / 2 with z = |x| / sqrt(2), by the Chebyshev fit of Press et al., Numerical Recipes,
// "erfcc": within 1.2e-7 of erfc everywhere.
inline Floats gelu(Floats x) {
  constexpr double series[] = {-1.26551223, 1.00002368,  0.37409196, 0.09678418,  -0.18628806,
                               0.27886807,  -1.13520398, 1.48851587, -0.82215223, 0.17087277};
  const Floats z = (x < 0.f ? -x : x) * 0.70710678f, t = 1.f / (0.5f * z + 1.f);
  Floats sum = broadcast<float>(float(series[9]));
#pragma GCC unroll 10
  for (int i = 8; i >= 0; --i) sum = sum * t + float(series[i]);
  const Floats tail = 0.5f * t * exp<float>(sum - z * z);
  return x * (x < 0.f ? tail : 1.f - tail);
}

inline Floats gelu_tanh(Floats x) {  // (1 + tanh(u)) / 2 = sigmoid(2 u)
  return x * sigmoids<float>(1.5957691216f * (x + 0.044715f * x * x * x)).plus;
}

inline Floats activate(Activation kind, Floats x) {
  switch (kind) {
    case Activation::silu:
      return silu(x);
    case Activation::sigmoid:
      return sigmoids<float>(x).plus;
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::gelu:
      return gelu(x);
    default:
      return x;
  }
}

template <typename F>
inline double sum_over(int64_t n, const F& f) {  // of f(d, count), whose lanes past count are 0
  Floats sums = {};
  for_vectors<float>(n, [&](int64_t d, int64_t count) { sums += f(d, count); });
  return double(sum_lanes<float>(sums));
}

int64_t rows_of_norm(int64_t n) { return n < kLight ? kLight / n : 1; }  // of a chunk

int64_t norm_chunks(const stream::norm_op& op, const StreamRows& rows) {
  return (rows.B + rows_of_norm(op.n) - 1) / rows_of_norm(op.n);
}

void norm_row(const stream::norm_op& op, const StreamRows& rows, int64_t b) {
  const float *in = at(rows, b, op.in), *weight = constant<float>(rows, op.weight);
  const float *bias = constant<float>(rows, op.bias), *gate = op.gate < 0 ? nullptr : at(rows, b, op.gate);
  float* out = at(rows, b, op.out);
  const double eps = double_of(op.eps), n = double(op.n);
  float mean = 0;
  if (Norm(op.kind) != Norm::rms) {
    mean = float(sum_over(op.n, [&](int64_t d, int64_t count) { return take(in + d, count); }) / n);
  }
  const double variance = sum_over(op.n,
                                   [&](int64_t d, int64_t count) {
                                     Floats x = take(in + d, count) - mean;
                                     for (int64_t i = count; i < kLanes<float>; ++i) x[i] = 0;
                                     return x * x;
                                   }) /
                          n;
  const bool is_small = Norm(op.kind) == Norm::axon && variance < eps;
  const float scale = float(1 / ::sqrt(is_small ? eps : variance + eps));
  for_vectors<float>(op.n, [&](int64_t d, int64_t count) {
    Floats y = (take(in + d, count) - mean) * scale;
    if (weight != nullptr) y *= take(weight + d, count);
    if (bias != nullptr) y += take(bias + d, count);
    if (gate != nullptr) y *= silu(take(gate + d, count));
    put(out + d, y, count);
  });
}

void norm_chunk(const stream::norm_op& op, const StreamRows& rows, int64_t chunk) {
  const int64_t some = rows_of_norm(op.n);
  for (int64_t b = chunk * some; b < smaller(rows.B, (chunk + 1) * some); ++b) norm_row(op, rows, b);
}

Cut cut_of(const stream::multiply_op& op, const StreamRows& rows) {
  return Cut(rows.B, op.n, Activation(op.activation) == Activation::none ? kLight : kHeavy);
}

int64_t multiply_chunks(const stream::multiply_op& op, const StreamRows& rows) { return cut_of(op, rows).chunks(); }

void multiply_chunk(const stream::multiply_op& op, const StreamRows& rows, int64_t chunk) {
  cut_of(op, rows).each(chunk, [&](int64_t row, int64_t begin, int64_t end) {
    const float *a = at(rows, row, op.a + begin), *b = op.b < 0 ? nullptr : at(rows, row, op.b + begin);
    float* out = at(rows, row, op.out + begin);
    for_vectors<float>(end - begin, [&](int64_t d, int64_t count) {
      const Floats x = activate(Activation(op.activation), take(a + d, count));
      put<float>(out + d, b == nullptr ? x : x * take(b + d, count), count);
    });
  });
}

int64_t affine_chunks(const stream::affine_op& op, const StreamRows& rows) {
  return Cut(rows.B, op.n, kLight).chunks();
}

void affine_chunk(const stream::affine_op& op, const StreamRows& rows, int64_t chunk) {
  const float *weight = constant<float>(rows, op.weight), *bias = constant<float>(rows, op.bias);
  Cut(rows.B, op.n, kLight).each(chunk, [&](int64_t row, int64_t begin, int64_t end) {
    const float* in = at(rows, row, op.in);
    float* out = at(rows, row, op.out);
    for_vectors<float>(end - begin, [&](int64_t d, int64_t count) {
      Floats x = take(in + begin + d, count);
      if (weight != nullptr) x *= take(weight + begin + d, count);
      if (bias != nullptr) x += take(bias + begin + d, count);
      put(out + begin + d, x, count);
    });
  });
}

int64_t normalize_chunks(const stream::normalize_op&, const StreamRows& rows) { return rows.B; }

void normalize_chunk(const stream::normalize_op& op, const StreamRows& rows, int64_t b) {
  const float *in = at(rows, b, op.in), *mean = constant<float>(rows, op.mean), *std = constant<float>(rows, op.std);
  const int64_t* index = constant<int64_t>(rows, op.index);
  float* out = at(rows, b, op.out);
  for_vectors<float>(op.n, [&](int64_t d, int64_t count) {
    const Floats x = take(in + d, count);
    put<float>(out + d, x == x ? (x - take(mean + d, count)) / take(std + d, count) : Floats{}, count);
  });
  for (int64_t i = 0; i < op.indicators; ++i) out[op.n + i] = in[index[i]] == in[index[i]] ? 1.f : 0.f;
}

int64_t pool_chunks(const stream::pool_op& op, const StreamRows& rows) { return Cut(rows.B, op.n, kLight).chunks(); }

void pool_chunk(const stream::pool_op& op, const StreamRows& rows, int64_t chunk) {
  Cut(rows.B, op.n, kLight).each(chunk, [&](int64_t b, int64_t begin, int64_t end) {
    const float *in = at(rows, b, op.in), *from = rows.from[b] + op.state;
    float *out = at(rows, b, op.out), *to = rows.to[b] + op.state;
    const bool is_mean = Pool(op.kind) == Pool::mean;
    const float tokens = is_mean ? float(rows.position[b] + 1) : 1.f;
    for (int64_t d = begin; d < end; d += kLanes<float>) {
      const int64_t count = smaller(kLanes<float>, end - d);
      const Floats x = is_mean ? take(from + d, count) + take(in + d, count) : take(in + d, count);
      put(to + d, x, count);
      put<float>(out + d, x / tokens, count);
    }
  });
}

}  // namespace
}  // namespace longstream::LONGSTREAM_ISA
