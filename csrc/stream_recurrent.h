// Recurrences of one token: short_conv, hgrn, gla, shared_gates. For stream_kernels.cpp.
//
// A gate takes 1 - f from its own sigmoid. Where f > 1/2, f h + u is written as h + (u - (1 - f) h): f next to 1 has
// lost digits of 1 - f, which are those of how long a state remembers.
#pragma once

#include "stream_elementwise.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

struct Gate {
  Floats keep;   // f
  Floats leave;  // 1 - f
};

inline Gate gate_at(const float* z, const float* bound, const float* complement, int64_t d, int64_t count) {
  const Sigmoids<float> s = sigmoids<float>(take(z + d, count));
  if (bound == nullptr) return {s.plus, s.minus};
  const Floats c = take(complement + d, count);
  return {take(bound + d, count) + c * s.plus, c * s.minus};
}

inline Floats advance(Floats h, const Gate& gate, Floats u) {
  return gate.leave < 0.5f ? h + (u - gate.leave * h) : gate.keep * h + u;
}

// short_conv

Cut cut_of(const stream::short_conv_op& op, const StreamRows& rows) { return Cut(rows.B, op.n, kLight / 4); }

int64_t short_conv_chunks(const stream::short_conv_op& op, const StreamRows& rows) { return cut_of(op, rows).chunks(); }

void short_conv_chunk(const stream::short_conv_op& op, const StreamRows& rows, int64_t chunk) {
  const float *weight = constant<float>(rows, op.weight), *bias = constant<float>(rows, op.bias);
  cut_of(op, rows).each(chunk, [&](int64_t b, int64_t begin, int64_t end) {
    const float *in = at(rows, b, op.in + begin), *from = rows.from[b] + op.state + begin;
    float *out = at(rows, b, op.out + begin), *to = rows.to[b] + op.state + begin;
    const int64_t past = op.taps - 1;
    for_vectors<float>(end - begin, [&](int64_t d, int64_t count) {
      const Floats x = take(in + d, count);
      Floats y = bias == nullptr ? Floats{} : take(bias + begin + d, count);
      for (int64_t i = 0; i < past; ++i) {
        const Floats old = take(from + i * op.n + d, count);
        y += take(weight + i * op.n + begin + d, count) * old;
        if (i > 0) put(to + (i - 1) * op.n + d, old, count);
      }
      if (past > 0) put(to + (past - 1) * op.n + d, x, count);
      put<float>(out + d, y + take(weight + past * op.n + begin + d, count) * x, count);
    });
  });
}

// hgrn

int64_t hgrn_chunks(const stream::hgrn_op& op, const StreamRows& rows) { return Cut(rows.B, op.n, kHeavy).chunks(); }

void hgrn_chunk(const stream::hgrn_op& op, const StreamRows& rows, int64_t chunk) {
  const float *bound = constant<float>(rows, op.bound), *complement = constant<float>(rows, op.complement);
  const float* theta = constant<float>(rows, op.theta);
  Cut(rows.B, op.n, kHeavy).each(chunk, [&](int64_t b, int64_t begin, int64_t end) {
    const float *c = at(rows, b, op.c), *z = at(rows, b, op.z), *from = rows.from[b] + op.state;
    float *out = at(rows, b, op.out), *to = rows.to[b] + op.state;
    for (int64_t d = begin; d < end; d += kLanes<float>) {
      const int64_t count = smaller(kLanes<float>, end - d), imaginary = op.n + d;
      const Gate gate = gate_at(z, bound, complement, d, count);
      if (theta == nullptr) {
        const Floats h = advance(take(from + d, count), gate, gate.leave * silu(take(c + d, count)));
        put(to + d, h, count);
        put(out + d, h, count);
        continue;
      }
      Floats real = {}, other = {};
      for (int64_t i = 0; i < count; ++i) real[i] = c[2 * (d + i)], other[i] = c[2 * (d + i) + 1];
      const float* rest = theta + 2 * op.n;
      const Floats cosine = take(theta + d, count), sine = take(theta + imaginary, count);
      const Floats more_cosine = take(rest + d, count), more_sine = take(rest + imaginary, count);
      const Floats x = take(from + d, count), y = take(from + imaginary, count);
      const Floats u = gate.leave * silu(real), v = gate.leave * silu(other);
      Floats re, im;
      for (int i = 0; i < kLanes<float>; ++i) {  // in double: a state of one rounding a step, not of four
        const double cos = double(cosine[i]) + double(more_cosine[i]), sin = double(sine[i]) + double(more_sine[i]);
        const double turned_x = cos * x[i] - sin * y[i], turned_y = sin * x[i] + cos * y[i];
        const double keep = gate.leave[i] < 0.5f ? 1 - double(gate.leave[i]) : double(gate.keep[i]);
        re[i] = float(keep * turned_x + u[i]);
        im[i] = float(keep * turned_y + v[i]);
      }
      put(to + d, re, count);
      put(to + imaginary, im, count);
      put(out + d, re, count);
      put(out + imaginary, im, count);
    }
  });
}

// shared_gates

Cut cut_of(const stream::shared_gates_op& op, const StreamRows& rows) { return Cut(rows.B, op.n, kHeavy); }

int64_t shared_gates_chunks(const stream::shared_gates_op& op, const StreamRows& rows) {
  return cut_of(op, rows).chunks();
}

void shared_gates_chunk(const stream::shared_gates_op& op, const StreamRows& rows, int64_t chunk) {
  const int64_t neighbors = op.n / op.gates;
  cut_of(op, rows).each(chunk, [&](int64_t b, int64_t begin, int64_t end) {
    const float *f = at(rows, b, op.f), *i = at(rows, b, op.i), *v = at(rows, b, op.v), *from = rows.from[b] + op.state;
    float *out = at(rows, b, op.out), *to = rows.to[b] + op.state;
    for (int64_t d = begin; d < end; d += kLanes<float>) {
      const int64_t count = smaller(kLanes<float>, end - d);
      Floats z = {}, input = {};
      for (int64_t lane = 0; lane < count; ++lane) {
        z[lane] = f[(d + lane) / neighbors], input[lane] = i[(d + lane) / neighbors];
      }
      const Sigmoids<float> s = sigmoids<float>(z);
      const Floats u = sigmoids<float>(input).plus * silu(take(v + d, count));
      const Floats h = advance(take(from + d, count), {s.plus, s.minus}, u);
      put(to + d, h, count);
      put(out + d, h, count);
    }
  });
}

// gla

constexpr int64_t kKeyBlock = 64;                        // keys whose gates are taken together
constexpr int64_t kValues = 4 * int64_t(kLanes<float>);  // columns of a head that are worked on together
constexpr int64_t kValueChunk = 64;                      // columns of a chunk
static_assert(kValueChunk % kValues == 0, "");

int64_t gla_chunks(const stream::gla_op& op, const StreamRows& rows) {
  return rows.B * op.heads * ((op.size + kValueChunk - 1) / kValueChunk);
}

struct Keys {
  float keep[kKeyBlock], leave[kKeyBlock], query[kKeyBlock];  // S = keep S + leave (v - pull S), out += query S
  float pull[kKeyBlock];
};

// `vectors` vectors of columns, the last of them `count` lanes wide: S of a block of keys, and what they add to out.
template <int vectors, bool is_whole>
void gla_tile(const Keys& keys, int64_t block, int64_t size, const float* from, float* to, const Floats* v, Floats* out,
              int64_t count) {
  constexpr int lanes = kLanes<float>;
  for (int64_t k = 0; k < block; ++k) {
    const float *old = from + k * size, leave = keys.leave[k], query = keys.query[k], keep = keys.keep[k];
    const float pull = keys.pull[k];
    float* s = to + k * size;
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) {
      const int64_t width = is_whole || j + 1 < vectors ? lanes : count;
      const Floats before = take(old + j * lanes, width);
      const Floats x = keep * before + leave * (v[j] - pull * before);
      put(s + j * lanes, x, width);
      out[j] += query * x;
    }
  }
}

void gla_chunk(const stream::gla_op& op, const StreamRows& rows, int64_t chunk) {
  constexpr int64_t lanes = kLanes<float>;
  const int64_t size = op.size, blocks = (size + kValueChunk - 1) / kValueChunk;
  const int64_t b = chunk / blocks / op.heads, head = chunk / blocks % op.heads * size;
  const int64_t first = chunk % blocks * kValueChunk, last = smaller(size, first + kValueChunk);
  const float *q = at(rows, b, op.q + head), *z = at(rows, b, op.z + head), *v = at(rows, b, op.v + head);
  const float *bound = constant<float>(rows, op.bound), *complement = constant<float>(rows, op.complement);
  if (bound != nullptr) bound += head, complement += head;
  const float scale = float(double_of(op.scale));
  const float* from = rows.from[b] + op.state + head * size;
  float *to = rows.to[b] + op.state + head * size, *out = at(rows, b, op.out + head);
  Floats sums[kValueChunk / lanes] = {}, values[kValueChunk / lanes];
  for (int64_t j = first; j < last; j += lanes) {
    values[(j - first) / lanes] = activate(Activation(op.act_v), take(v + j, smaller(lanes, last - j)));
  }
  for (int64_t key = 0; key < size; key += kKeyBlock) {
    const int64_t block = smaller(kKeyBlock, size - key);
    Keys keys;
    for_vectors<float>(block, [&](int64_t d, int64_t count) {
      const Gate gate = gate_at(z, bound, complement, key + d, count);
      const Floats none = {}, one = none + 1.f;
      put<float>(keys.keep + d, gate.leave < 0.5f ? one : gate.keep, count);
      put<float>(keys.pull + d, gate.leave < 0.5f ? one : none, count);
      put(keys.leave + d, gate.leave, count);
      put<float>(keys.query + d, activate(Activation(op.act_q), take(q + key + d, count)) * scale, count);
    });
    for (int64_t j = first; j < last; j += kValues) {
      const int64_t vectors = smaller(4, (last - j + lanes - 1) / lanes), count = last - j - (vectors - 1) * lanes;
      const int64_t n = (j - first) / lanes, place = key * size + j;
      const auto tile = count >= lanes && vectors == 4 ? gla_tile<4, true>
                        : vectors == 4                 ? gla_tile<4, false>
                        : vectors == 3                 ? gla_tile<3, false>
                        : vectors == 2                 ? gla_tile<2, false>
                                                       : gla_tile<1, false>;
      tile(keys, block, size, from + place, to + place, values + n, sums + n, smaller(lanes, count));
    }
  }
  for (int64_t j = first; j < last; j += lanes) put(out + j, sums[(j - first) / lanes], smaller(lanes, last - j));
}

}  // namespace
}  // namespace longstream::LONGSTREAM_ISA
