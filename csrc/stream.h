// One step of a whole model in one call: a program of a few kinds of instructions over packed weights, the states of B
// rows and scratch, all of it memory that the caller made. Plain C++, no torch.
//
// A program is int64 numbers, kInstruction of them for each instruction: its code, then its fields in the order of
// LONGSTREAM_STREAM_OPS. Offsets are: `weight`, `bias`, ... in bytes into the constants (multiples of 64); `in`, `out`,
// ... in floats into a row's scratch; `state` in floats into a row's state; `tape` in floats into a row's tape. -1:
// none.
//
// A row's state is read from one place and written to another (`from` and `to`), every number of it, so that the state
// before a step stays what it was: that is what history, rollback and a step that is taken back are made of. A tape is
// for what only grows, the inputs of a long convolution: it is written in place, at the row's position only, and what
// stands beyond the position means nothing.
//
// The numbers of a row do not depend on B, on the other rows or on the threads.
#pragma once

#include <cstdint>

#include "isa.h"
#include "parallel.h"

namespace longstream {

constexpr int64_t kInstruction = 16;
constexpr int64_t kPanel = 16;  // outputs of a linear map that stand side by side in packed weights

// Kinds of weights: float32; bfloat16; int8 with a float32 scale for each output.
enum class Weights : int64_t { f32, bf16, i8 };
constexpr int64_t kGroups[] = {1, 2, 4};  // of each kind: weights in a word, see linear
enum class Activation : int64_t { none, silu, sigmoid, gelu_tanh, gelu };
enum class Norm : int64_t { rms, layer, axon };  // axon: layer with 1 / sqrt(eps) where the variance is below eps
enum class Pool : int64_t { mean, last };

// X(name, fields...). What each computes, for each row:
//   begin         the first instruction: the frame, n_in numbers, to `in`; the result is n_out numbers at `out`.
//                 allow_nan: bytes (n_in,), 1 where NaN is a missing value and no error.
//   linear        out = W in + bias, or out += W in + bias where add is 1. W in panels, (ceil(n_out / kPanel),
//                 ceil(n_in / group), kPanel, group), zeros past n_out and n_in: the weights of a `group` of
//                 neighboring inputs are one word of 4 bytes. A word of i8 is the number w0 + 256 w1 + 256^2 w2 + 256^3
//                 w3, whose bytes are those of the weights but for what is carried. scale: floats (n_out,), of i8.
//                 bias: floats (n_out,).
//   norm          out = weight * in / sqrt(mean(in^2) + eps), or with the mean and bias of layer norms; times
//   SiLU(gate)
//                 where there is a gate. eps is the bits of a double.
//   multiply      out = activation(a) * b; b -1: out = activation(a).
//   affine        out = in * weight + bias; either may be -1.
//   short_conv    out_t = bias + sum_i weight[i] in_{t - taps + 1 + i}; weight (taps, n), oldest first, and so is state
//                 (taps - 1, n).
//   hgrn          f = bound + complement sigmoid(z); h = f h + complement sigmoid(-z) SiLU(c); out = h. With theta, h
//   is
//                 complex and turns by theta: c has 2 n numbers, real and imaginary part of each channel side by side;
//                 state and out are (2, n), real parts first. theta: floats (2, 2, n), cosines and sines, then what
//                 float32 lacks of them: a turn that is no turn by 1e-8 is one by 1e-4 after 10,000 steps. bound and
//                 complement: floats (n,), or -1 for 0 and 1.
//   gla           f as in hgrn; per head S = diag(f) S + (1 - f) act_v(v)^T, out = S^T (scale act_q(q)); q, z, v (H,
//   K),
//                 state (H, K, K). scale is the bits of a double.
//   shared_gates  h = sigmoid(f) h + sigmoid(i) SiLU(v), out = h; n channels, `gates` of f and i, each for n / gates
//                 neighboring channels.
//   attention     softmax attention of one query to the last `window` keys, itself included, products over sqrt(size).
//                 q (heads, size), k and v (kv_heads, size), not turned; turns: floats (window, 2, size / 2), cosines
//                 and sines of the angles by which a query turns its pairs (i, i + size / 2) for a key so far back, or
//                 -1. state: keys, then values, each (window - 1, kv_heads, size): a ring, that of position t at t mod
//                 (window - 1).
//   modal         s = pole s + in; out = direct in + sum of Re(residue s); poles, residues floats (modes, 2, n), real
//                 parts before imaginary ones, as is the state (modes, 2, n); direct floats (n,).
//   long_conv     out_t = skip in_t + sum_s taps[., t - s] in_s, of at most `longest` tokens, in tiles; the layout of
//   its
//                 constants, tape and work is in stream_tiles.h.
//   normalize     out = (in - mean) / std, 0 where in is NaN; then for each of `indicators` channels (int64 numbers at
//                 index) 1 where its number is there and 0 where it is NaN.
//   pool          mean: state += in, out = state / tokens so far; last: state = in, out = in.
#define LONGSTREAM_STREAM_OPS(X)                                                              \
  X(begin, in, n_in, out, n_out, allow_nan)                                                   \
  X(linear, in, n_in, out, n_out, weight, kind, scale, bias, add)                             \
  X(norm, in, out, n, kind, eps, weight, bias, gate)                                          \
  X(multiply, a, activation, b, out, n)                                                       \
  X(affine, in, out, n, weight, bias)                                                         \
  X(short_conv, in, out, n, taps, weight, bias, state)                                        \
  X(hgrn, c, z, out, n, bound, complement, theta, state)                                      \
  X(gla, q, z, v, out, heads, size, bound, complement, act_q, scale, act_v, state)            \
  X(shared_gates, f, i, v, out, n, gates, state)                                              \
  X(attention, q, k, v, out, heads, kv_heads, size, window, turns, state)                     \
  X(modal, in, out, n, modes, poles, residues, direct, state)                                 \
  X(long_conv, in, out, n, longest, taps, skip, spectra, twiddles, levels, lanes, tape, work) \
  X(normalize, in, out, n, mean, std, indicators, index)                                      \
  X(pool, in, out, n, kind, state)

#define LONGSTREAM_STREAM_STRUCT(name, ...) \
  struct name##_op {                        \
    int64_t __VA_ARGS__;                    \
  };
namespace stream {
LONGSTREAM_STREAM_OPS(LONGSTREAM_STREAM_STRUCT)
#define LONGSTREAM_STREAM_CODE(name, ...) name,
enum class Code : int64_t { LONGSTREAM_STREAM_OPS(LONGSTREAM_STREAM_CODE) };
}  // namespace stream
#undef LONGSTREAM_STREAM_STRUCT
#undef LONGSTREAM_STREAM_CODE

// What the rows of a step are; arrays of B.
struct StreamRows {
  int64_t B;
  const float* const* from;  // states before
  float* const* to;          // and after
  float* const* tape;        // null where there are none
  const int64_t* position;   // tokens taken in before this one; also the index of this one
  float* scratch;            // (B, stride)
  int64_t stride;
  const unsigned char* constants;
};

// What happens to numbers that are not finite: see stream_step below.
enum class Policy : int64_t { raise, hold, pass };

// A step of B rows. Of state[slot[b], b] it makes state[(slot[b] + 1) % slots, b], and if the row is committed, writes
// that slot and its position, and `held`. Returns 0; or the number of rows of x with a bad number, which is NaN where
// none is allowed, or infinity, and then nothing was touched; or, negative, the number of rows that were not committed.
//   raise  a bad number in x: see above. A bad one in y or in a new state: no row is committed.
//   hold   a bad number in x is replaced by held[b, c], the last good one. Rows with one in y or in their new state are
//          not committed.
//   pass   rows with a bad number in x, y or their new state are not committed.
// A tape is written whether the row is committed or not; what a row that was to begin anew and was not had there is put
// back.
struct StreamStep {
  const int64_t* program;  // (instructions, kInstruction)
  int64_t instructions;
  const unsigned char* constants;
  int64_t slots, B, state_size, tape_size, scratch_size;
  float* state;        // (slots, B, state_size)
  float* tape;         // (B, tape_size)
  int64_t* position;   // (slots, B)
  int64_t* slot;       // (B,)
  float* held;         // (B, n_in), or null
  const bool* reset;   // (B,), or null: rows that begin anew, at position 0 with a state of zeros
  float* scratch;      // (B, scratch_size)
  int64_t* workspace;  // (stream_workspace(B, state_size)), zeros when it was new
  const float* x;      // (B, n_in)
  float* y;            // (B, n_out)
  Policy policy;
  int64_t threads;
  ParallelFor parallel;
};

// A state of zeros, then for each row: from, to, tape, position, whether it is bad.
constexpr int64_t kWorkspaceArrays = 5;
static inline int64_t stream_workspace(int64_t B, int64_t state_size) {
  return (state_size + 1) / 2 + kWorkspaceArrays * B;
}

}  // namespace longstream

LONGSTREAM_KERNELS(int64_t stream_step(const StreamStep& step);)
