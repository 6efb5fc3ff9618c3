// Linear maps of packed weights. For stream_kernels.cpp.
//
// A lane has one output, and its sum runs over the inputs in order, whatever the rows and panels that are worked on
// together: so a row's numbers depend neither on the batch nor on the threads.
#pragma once

#include <utility>

#include "stream_elementwise.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

constexpr int64_t kPanelVectors = kPanel / kLanes<float>;
// Sums that are held in registers: independent ones hide that each waits for itself. For one row 8, in 4 panels at most
// (4 streams of weights); for several rows, as many as leave registers for what they are made of.
constexpr int64_t kPanelsOfOne = kPanelVectors == 4 ? 2 : 4;
constexpr int64_t kPanelsOfSome = kPanelVectors == 1 ? 4 : 1;
constexpr int64_t kSomeRows = kPanelVectors == 4 ? 2 : 4;
constexpr int64_t kChunkPanels = 4;  // of a chunk; divisible by the numbers above
constexpr int64_t kChunkRows = 32;   // the same

typedef int32_t Words __attribute__((vector_size(kVectorBytes)));

inline Floats floats_of(Words bits) {
  Floats x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// A word has the weights of `group` neighboring inputs.
//
// bf16: the first weight in the lower half.
// i8: the word is w0 + 256 w1 + 256^2 w2 + 256^3 w3. Its lowest 8, 16, 24 and 32 bits are, as signed numbers,
//     f0 = w0,  256 f1 = 256 (w1 + f0 / 256),  256^2 f2 = 256^2 (w2 + f1 / 256),  256^3 f3 = 256^3 (w3 + f2 / 256)
// and w0 x0 + .. + w3 x3 = f0 (x0 - x1 / 256) + f1 (x1 - x2 / 256) + f2 (x2 - x3 / 256) + f3 x3. No byte is cut out: to
// widen bytes takes longer than all the rest. Of 8 and 16 bits a float is made by putting them into 2^23, whose last
// digit is 1, and taking 2^23 away; of more by a conversion, of which Zen 4 begins one in two cycles.
template <Weights kind>
struct Packed;
template <>
struct Packed<Weights::f32> {
  static constexpr int group = 1;
  static Floats weight(Words words, int) { return floats_of(words); }
};
template <>
struct Packed<Weights::bf16> {
  static constexpr int group = 2;
  static Floats weight(Words words, int i) { return floats_of(i == 0 ? words << 16 : words & int32_t(0xFFFF0000)); }
};
template <>
struct Packed<Weights::i8> {
  static constexpr int group = 4;
  static Floats weight(Words words, int i) {  // times 1, 2^8, 2^24, 2^24
    if (i == 0) return floats_of((words & 0xFF) ^ 0x4B000080) - (0x1p23f + 128);
    if (i == 1) return floats_of((words & 0xFFFF) ^ 0x4B008000) - (0x1p23f + 32768);
    return __builtin_convertvector(i == 2 ? words << 8 : words, Floats);
  }
};

constexpr int64_t kInputs = 256;  // that are prepared at a time

template <int... i>
inline Floats next_in_group(Floats x, std::integer_sequence<int, i...>) {  // of 4; the last one comes out as anything
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(x, x, (i / 4 * 4 + (i + 1) % 4)...);
#else
  return __builtin_shuffle(x, Words{(i / 4 * 4 + (i + 1) % 4)...});
#endif
}

// What the weights of `n` inputs are multiplied with, and zeros up to a whole group.
template <Weights kind>
inline void prepare_inputs(const float* in, int64_t n, float* to) {
  Floats share = {}, unit = {};
  for (int i = 0; i < kLanes<float>; ++i) {
    share[i] = i % 4 == 3 ? 0.f : -0x1p-8f;
    unit[i] = i % 4 == 0 ? 1.f : i % 4 == 1 ? 0x1p-8f : 0x1p-24f;
  }
  for_vectors<float>(n, [&](int64_t d, int64_t count) {
    const Floats x = take(in + d, count);
    constexpr std::make_integer_sequence<int, kLanes<float>> all{};
    store<float>(to + d, kind == Weights::i8 ? unit * (x + share * next_in_group(x, all)) : x);
  });
}

// `panels` panels of `count` rows, from row b on.
template <Weights kind, int count, int panels>
void linear_tile(const stream::linear_op& op, const StreamRows& rows, int64_t b, int64_t panel) {
  constexpr int vectors = panels * int(kPanelVectors), lanes = kLanes<float>, group = Packed<kind>::group;
  const int64_t groups = (op.n_in + group - 1) / group;
  const int32_t* weight = constant<int32_t>(rows, op.weight) + panel * groups * kPanel;
  Floats sums[count][vectors] = {};
  for (int64_t first = 0; first < op.n_in; first += kInputs) {
    const int64_t inputs = smaller(kInputs, op.n_in - first);
    const float* in = at(rows, b, op.in + first);
    int64_t stride = rows.stride;
    alignas(kVectorBytes) float prepared[group > 1 ? count * kInputs : 1];
    if (kind == Weights::i8 || inputs % group != 0) {
      for (int r = 0; r < count; ++r) prepare_inputs<kind>(in + r * stride, inputs, prepared + r * kInputs);
      in = prepared, stride = kInputs;
    }
    const int32_t* from = weight + first / group * kPanel;
    for (int64_t g = 0; g * group < inputs; ++g) {
      Words words[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        words[v] = load(from + (v / kPanelVectors * groups + g) * kPanel + v % kPanelVectors * lanes);
      }
#pragma GCC unroll 4
      for (int i = 0; i < group; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
          const Floats w = Packed<kind>::weight(words[v], i);
#pragma GCC unroll 4
          for (int r = 0; r < count; ++r) sums[r][v] += w * in[r * stride + g * group + i];
        }
      }
    }
  }
  const float *scale = constant<float>(rows, op.scale), *bias = constant<float>(rows, op.bias);
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) {
    const int64_t first = panel * kPanel + v * lanes, left = smaller(lanes, op.n_out - first);
    if (left <= 0) break;
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r) {
      float* out = at(rows, b + r, op.out + first);
      Floats y = sums[r][v];
      if (kind == Weights::i8) y *= take(scale + first, left);
      if (bias != nullptr) y += take(bias + first, left);
      if (op.add) y += take(out, left);
      put(out, y, left);
    }
  }
}

template <Weights kind, int count, int panels>
void linear_panels(const stream::linear_op& op, const StreamRows& rows, int64_t b, int64_t panel, int64_t last) {
  for (; panel + panels <= last; panel += panels) linear_tile<kind, count, panels>(op, rows, b, panel);
  if constexpr (panels > 1) {
    if (panel < last) linear_panels<kind, count, panels / 2>(op, rows, b, panel, last);
  }
}

template <Weights kind>
void linear_part(const stream::linear_op& op, const StreamRows& rows, int64_t b, int64_t last_b, int64_t panel,
                 int64_t last) {
  constexpr int some = int(kSomeRows);
  for (; panel < last; panel += kPanelsOfSome) {  // panel by panel, so that weights are in the cache for further rows
    if (last_b - b < some) break;
    for (int64_t row = b; row + some <= last_b; row += some) {
      linear_panels<kind, some, kPanelsOfSome>(op, rows, row, panel, smaller(last, panel + kPanelsOfSome));
    }
    for (int64_t row = last_b - (last_b - b) % some; row < last_b; ++row) {
      linear_panels<kind, 1, kPanelsOfOne>(op, rows, row, panel, smaller(last, panel + kPanelsOfSome));
    }
  }
  for (; b < last_b && panel < last; ++b) linear_panels<kind, 1, kPanelsOfOne>(op, rows, b, panel, last);
}

inline int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

int64_t linear_chunks(const stream::linear_op& op, const StreamRows& rows) {
  return parts_of(parts_of(op.n_out, kPanel), kChunkPanels) * parts_of(rows.B, kChunkRows);
}

void linear_chunk(const stream::linear_op& op, const StreamRows& rows, int64_t chunk) {
  const int64_t panels = parts_of(op.n_out, kPanel), across = parts_of(panels, kChunkPanels);
  const int64_t panel = chunk % across * kChunkPanels, last = smaller(panels, panel + kChunkPanels);
  const int64_t b = chunk / across * kChunkRows, last_b = smaller(rows.B, b + kChunkRows);
  switch (Weights(op.kind)) {
    case Weights::f32:
      return linear_part<Weights::f32>(op, rows, b, last_b, panel, last);
    case Weights::bf16:
      return linear_part<Weights::bf16>(op, rows, b, last_b, panel, last);
    case Weights::i8:
      return linear_part<Weights::i8>(op, rows, b, last_b, panel, last);
  }
}

}  // namespace
}  // namespace longstream::LONGSTREAM_ISA
