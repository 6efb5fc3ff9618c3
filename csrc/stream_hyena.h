// The instructions of Hyena in a step: modal, and long_conv in tiles, laid out as stream_tiles.h says. A chunk is one
// row and a group of channels; chunks of an instruction share nothing that is written. For *_kernels.cpp.
#pragma once

#include "stream_elementwise.h"
#include "stream_tiles.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

// The channels of a chunk of one row.
struct TileChunk {
  int64_t row, index, begin, end;  // index among the chunks of the row

  TileChunk(int64_t chunk, int64_t n)
      : row(chunk / tile_chunks(n)), index(chunk % tile_chunks(n)), begin(index * kTileChannels), end(n) {
    if (end > begin + kTileChannels) end = begin + kTileChannels;
  }
};

int64_t modal_chunks(const stream::modal_op& op, const StreamRows& rows) { return rows.B * tile_chunks(op.n); }

void modal_chunk(const stream::modal_op& op, const StreamRows& rows, int64_t chunk) {
  const TileChunk c(chunk, op.n);
  const float *in = at(rows, c.row, op.in), *from = rows.from[c.row] + op.state;
  float *out = at(rows, c.row, op.out), *to = rows.to[c.row] + op.state;
  const float *poles = constant<float>(rows, op.poles), *residues = constant<float>(rows, op.residues);
  const float* direct = constant<float>(rows, op.direct);
  for_vectors<float>(c.end - c.begin, [&](int64_t offset, int64_t count) {
    const int64_t d = c.begin + offset;
    const Floats x = take(in + d, count);
    Floats y = take(direct + d, count) * x;
    for (int64_t m = 0; m < op.modes; ++m) {
      const int64_t re = 2 * m * op.n + d, im = re + op.n;
      const Floats s_re = take(from + re, count), s_im = take(from + im, count);
      const Floats p_re = take(poles + re, count), p_im = take(poles + im, count);
      const Floats next_re = s_re * p_re - s_im * p_im + x, next_im = s_re * p_im + s_im * p_re;
      put(to + re, next_re, count);
      put(to + im, next_im, count);
      y += take(residues + re, count) * next_re - take(residues + im, count) * next_im;
    }
    put(out + d, y, count);
  });
}

int64_t long_conv_chunks(const stream::long_conv_op& op, const StreamRows& rows) { return rows.B * tile_chunks(op.n); }

// One row's tape, as stream_tiles.h says.
struct Tape {
  float* data;
  int64_t longest, width;

  float* input(int64_t t) const { return data + t * width; }
  float* before() const { return data + tile_before_row(longest) * width; }
  float* pending(int64_t m, int64_t blocks) const { return data + (longest + tile_pending_row(m, blocks)) * width; }
};

// `vectors` neighboring vectors at d: taps[0] inputs[t] + taps[1] inputs[t - 1] + .. of the present block, plus what
// the runs have prepared.
template <int vectors>
inline void long_conv_token(const stream::long_conv_op& op, const Tape& tape, const float* taps, const float* skip,
                            int64_t t, int64_t d, float* out) {
  constexpr int V = kLanes<float>;
  Floats y[vectors];
  for (int i = 0; i < vectors; ++i) {
    const Floats x = load(tape.input(t) + d + i * V);
    y[i] = load(taps + d + i * V) * x;
    if (skip) y[i] += load(skip + d + i * V) * x;
  }
  const int64_t blocks = t / kTileBlock;
  for (int64_t lag = 1; lag <= t - blocks * kTileBlock; ++lag) {
    const float *tap = taps + lag * tape.width + d, *x = tape.input(t - lag) + d;
#pragma GCC unroll 4
    for (int i = 0; i < vectors; ++i) y[i] += load(tap + i * V) * load(x + i * V);
  }
  for (int64_t m = 0; blocks >> m; ++m) {
    if (!(blocks >> m & 1)) continue;
    const float* prepared = tape.pending(m, blocks) + t % (kTileBlock << m) * tape.width + d;
    for (int i = 0; i < vectors; ++i) y[i] += load(prepared + i * V);
  }
  for (int i = 0; i < vectors; ++i) {
    const int64_t left = op.n - d - i * V;
    if (left >= V) {
      store(out + d + i * V, y[i]);
    } else if (left > 0) {
      store_part(out + d + i * V, y[i], left);
    }
  }
}

// Level 0: what the 64 inputs from `first` on contribute to the 64 outputs after them, as the sums are written.
inline void long_conv_block(const Tape& tape, const float* taps, int64_t first, int64_t begin, int64_t end, float* to) {
  constexpr int kOutputs = 4;  // at once, to have as many sums independent of each other
  for (int64_t d = begin; d < end; d += kLanes<float>) {
    for (int64_t o = 0; o < kTileBlock; o += kOutputs) {
      Floats sums[kOutputs] = {};
      for (int64_t s = 0; s < kTileBlock; ++s) {
        const Floats x = load(tape.input(first + s) + d);
        const float* tap = taps + (kTileBlock + o - s) * tape.width + d;
#pragma GCC unroll 4
        for (int i = 0; i < kOutputs; ++i) sums[i] += load(tap + i * tape.width) * x;
      }
      for (int i = 0; i < kOutputs; ++i) store(to + (o + i) * tape.width + d, sums[i]);
    }
  }
}

inline void run_serially(int64_t n, int64_t, RangeFunction function, void* context) { function(0, n, context); }

// After `blocks` full blocks: their runs of levels 0 .. z - 1 and the last block become one of level z.
inline void long_conv_merge(const stream::long_conv_op& op, const StreamRows& rows, const Tape& tape,
                            const TileChunk& c, int64_t end, int64_t blocks) {
  int64_t z = 0;
  while (!(blocks >> z & 1)) ++z;
  const int64_t size = kTileBlock << z, first = blocks * kTileBlock - size;
  float* pending = tape.pending(z, blocks);
  if (z == 0) return long_conv_block(tape, constant<float>(rows, op.taps), first, c.begin, end, pending);
  LongConvArguments<float> a = {};
  a.size = tile_transform(z);
  a.twiddles = constant<float>(rows, op.twiddles);
  a.B = 1, a.D = end - c.begin;
  a.x = {tape.input(first) + c.begin, 0, tape.width, 0, size};
  a.K = 2 * size - 1, a.first = size - 1;  // taps 1 .. 2 size - 1
  a.spectrum = constant<float>(rows, op.spectra) + tile_spectrum(op.n, z) + 2 * size * c.begin;
  a.out[0] = {pending + c.begin, 0, tape.width, size - 1, size};
  a.parts = 1, a.workers = 1;
  a.scratch_stride = long_conv_forward_scratch(a, kLanes<float>);
  const int64_t most = tile_transform(op.levels - 1).M * 2 * kLanes<float>;
  a.scratch = at(rows, c.row, op.work + c.index * most);
  long_conv_forward(a, run_serially);
}

void long_conv_chunk(const stream::long_conv_op& op, const StreamRows& rows, int64_t chunk) {
  const TileChunk c(chunk, op.n);
  const Tape tape = {rows.tape[c.row] + op.tape, op.longest, tile_width(op.n)};
  const float *in = at(rows, c.row, op.in), *taps = constant<float>(rows, op.taps);
  const float* skip = constant<float>(rows, op.skip);
  float* out = at(rows, c.row, op.out);
  const int64_t t = rows.position[c.row], end = tile_width(c.end);  // whole vectors from here on, zeros past op.n
  if (t == 0) std::memcpy(tape.before() + c.begin, tape.input(0) + c.begin, size_t(end - c.begin) * sizeof(float));
  for (int64_t d = c.begin; d < end; ++d) tape.input(t)[d] = d < c.end ? in[d] : 0.f;
  constexpr int kAtOnce = 4;
  int64_t d = c.begin;
  for (; d + kAtOnce * kLanes<float> <= end; d += kAtOnce * kLanes<float>) {
    long_conv_token<kAtOnce>(op, tape, taps, skip, t, d, out);
  }
  for (; d < end; d += kLanes<float>) long_conv_token<1>(op, tape, taps, skip, t, d, out);
  if ((t + 1) % kTileBlock == 0 && t + 1 < op.longest) {
    long_conv_merge(op, rows, tape, c, end, (t + 1) / kTileBlock);
  }
}

}  // namespace
}  // namespace longstream::LONGSTREAM_ISA
