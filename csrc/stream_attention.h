// Attention of one query to a ring of keys and values. For stream_kernels.cpp.
#pragma once

#include "stream_elementwise.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

constexpr int64_t kScores = 64;  // keys between two looks at the largest score

int64_t attention_chunks(const stream::attention_op& op, const StreamRows& rows) { return rows.B * op.kv_heads; }

// <turn(q), k>, q's pairs (i, i + half) turned by the angles of a distance.
inline float turned_product(const float* q, const float* k, const float* turn, int64_t size) {
  const int64_t half = size / 2;
  Floats sums = {};
  if (turn == nullptr) {
    for_vectors<float>(size, [&](int64_t d, int64_t count) { sums += take(q + d, count) * take(k + d, count); });
    return sum_lanes<float>(sums);
  }
  for_vectors<float>(half, [&](int64_t d, int64_t count) {
    const Floats a = take(q + d, count), b = take(q + half + d, count), c = take(turn + d, count);
    const Floats s = take(turn + half + d, count);
    sums += (a * c - b * s) * take(k + d, count) + (a * s + b * c) * take(k + half + d, count);
  });
  return sum_lanes<float>(sums);
}

inline float exp_of(float x) { return exp<float>(broadcast(x))[0]; }

// Softmax over keys as they come: what is summed so far is taken down when a larger score turns up.
struct Softmax {
  float most = -INFINITY, total = 0;
  float* out;

  // `count` scores, and the values they weigh: value(i).
  template <typename F>
  void add(float* scores, int64_t count, int64_t size, const F& value) {
    float next = most;
    for (int64_t i = 0; i < count; ++i) next = scores[i] > next ? scores[i] : next;
    const float factor = exp_of(most - next);
    Floats sums = {};
    for_vectors<float>(count, [&](int64_t i, int64_t width) {
      Floats weight = exp<float>(take(scores + i, width) - next);
      for (int64_t lane = width; lane < kLanes<float>; ++lane) weight[lane] = 0;
      put(scores + i, weight, width);
      sums += weight;
    });
    total = total * factor + sum_lanes<float>(sums);
    most = next;
    for_vectors<float>(size, [&](int64_t d, int64_t width) {
      Floats y = take(out + d, width) * factor;
      for (int64_t i = 0; i < count; ++i) y += scores[i] * take(value(i) + d, width);
      put(out + d, y, width);
    });
  }
};

void attention_chunk(const stream::attention_op& op, const StreamRows& rows, int64_t chunk) {
  const int64_t b = chunk / op.kv_heads, group = chunk % op.kv_heads, size = op.size, past = op.window - 1;
  const int64_t t = rows.position[b], seen = smaller(t, past), step = op.kv_heads * size;
  const float *k = at(rows, b, op.k + group * size), *v = at(rows, b, op.v + group * size);
  const float *from = rows.from[b] + op.state + group * size, *turns = constant<float>(rows, op.turns);
  float* to = rows.to[b] + op.state + group * size;
  for (int64_t i = 0; i < 2 * past; ++i) std::memcpy(to + i * step, from + i * step, size_t(size) * sizeof(float));
  if (past > 0) {
    std::memcpy(to + t % past * step, k, size_t(size) * sizeof(float));
    std::memcpy(to + (past + t % past) * step, v, size_t(size) * sizeof(float));
  }
  // Keys by distance, the farthest first; distance 0 is the token itself.
  const auto key = [&](int64_t distance) { return distance ? from + (t - distance) % past * step : k; };
  const auto value = [&](int64_t distance) { return distance ? from + (past + (t - distance) % past) * step : v; };
  const float scale = float(1 / ::sqrt(double(size)));
  const int64_t queries = op.heads / op.kv_heads;
  for (int64_t head = group * queries; head < (group + 1) * queries; ++head) {
    const float* q = at(rows, b, op.q + head * size);
    Softmax softmax;
    softmax.out = at(rows, b, op.out + head * size);
    for (int64_t d = 0; d < size; ++d) softmax.out[d] = 0;
    for (int64_t first = seen; first >= 0; first -= kScores) {
      const int64_t count = smaller(kScores, first + 1);
      float scores[kScores];
      for (int64_t i = 0; i < count; ++i) {
        const float* turn = turns == nullptr ? nullptr : turns + (first - i) * (size / 2 * 2);
        scores[i] = turned_product(q, key(first - i), turn, size) * scale;
      }
      softmax.add(scores, count, size, [&](int64_t i) { return value(first - i); });
    }
    for (int64_t d = 0; d < size; ++d) softmax.out[d] /= softmax.total;
  }
}

}  // namespace
}  // namespace longstream::LONGSTREAM_ISA
