// What the instruction long_conv has in memory: sizes and places, for who makes it, checks it and runs it. Plain C++.
//
// The tiles are those of longstream/ops/long_conv/state.py: the set bits of the number of full blocks of 64 tokens cut
// the past into runs, and the run of 2^m blocks has prepared (`pending`) what it contributes to as many outputs right
// after it. A row's tape holds, each row of it `width` numbers of neighboring channels:
//
//   inputs   longest rows: in_t at row t, written when token t comes. Recent inputs and runs are stretches of it.
//   pending  64 << levels rows, none if levels is 0. That of level m, (64 << m) rows, begins at row 64 << m of these;
//            that of level 0 at row 64 or, every other time, at row 0.
//   before   one row: what row 0 of the inputs was before the row began anew, for a step that is not kept after all.
//
// Any number on a tape that a state needs is still there when up to 127 tokens were taken in, or begun, after it; so a
// state can be returned to, with no copy of the tape:
//   - A step of token t writes row t of the inputs. A state of s tokens reads rows before s, and every row from s on is
//     written by the step of its token before it is read.
//   - When a token completes block b, level z is written, where 2^z is the largest power of two that divides b. A state
//     with c full blocks reads the levels whose bit is set in c. Of 127 tokens after it and one more that was begun, at
//     most two complete a block, c + 1 and c + 2. Let b = c + k, k = 1 or 2, write level z. If z >= 1, then k <= 2^z,
//     so bit z of c = b - k is not set: it is set in b, with zeros below, and taking 1 .. 2^z away clears it. If z = 0
//     and k = 1, c is even and its bit 0 is not set. If z = 0 and k = 2, c is odd and reads level 0; c and b differ by
//     2, so they have it in different places.
//   - A step at position 0 writes nothing but row 0, which was kept `before`.
//   - What was written into levels after the state means nothing to it, and is written again before it is read.
#pragma once

#include <cstdint>
#include <cstring>

#include "long_conv.h"
#include "stream.h"

namespace longstream {

constexpr int64_t kTileBlock = 64;     // tokens
constexpr int64_t kTileLanes = 16;     // `width` is a multiple of it: whole vectors in every instruction set
constexpr int64_t kTileChannels = 64;  // of a chunk
constexpr int64_t kTileTaps = 2 * kTileBlock;
constexpr int64_t kTileHistory = 127;  // tokens that can be taken back

// static: no instruction set may end up with another's copy

static inline int64_t tile_width(int64_t n) { return (n + kTileLanes - 1) / kTileLanes * kTileLanes; }

// Levels that are of use to a token: after longest - 1 of them.
static inline int64_t tile_levels(int64_t longest) {
  int64_t levels = 0;
  while ((longest - 1) / kTileBlock >> levels) ++levels;
  return levels;
}

static inline int64_t tile_pending_rows(int64_t levels) { return levels ? kTileBlock << levels : 0; }

// Where level m begins among the pending rows after `blocks` full blocks, the last of which completed it.
static inline int64_t tile_pending_row(int64_t m, int64_t blocks) {
  return m ? kTileBlock << m : kTileBlock * (blocks >> 1 & 1);
}

static inline int64_t tile_before_row(int64_t longest) { return longest + tile_pending_rows(tile_levels(longest)); }

static inline int64_t tile_tape(int64_t n, int64_t longest) {  // numbers
  return (tile_before_row(longest) + 1) * tile_width(n);
}

// For a row whose step at position 0 is not kept, though the row was further before: the tape as it was then.
static inline void tile_take_back(const stream::long_conv_op& op, float* tape) {
  const int64_t width = tile_width(op.n);
  std::memcpy(tape + op.tape, tape + op.tape + tile_before_row(op.longest) * width, size_t(width) * sizeof(float));
}

static inline int64_t tile_chunks(int64_t n) { return (n + kTileChannels - 1) / kTileChannels; }

// The transform of level m >= 1: 64 << m inputs meet taps 1 .. 2 * (64 << m) - 1.
static inline FftSize tile_transform(int64_t m) {
  FftSize size = {m & 1 ? 2 : 1, 3 + m / 2, kTileBlock << m};
  return size;
}

// Scratch of all chunks, which run at the same time: a transform of one group of channels each.
static inline int64_t tile_work(int64_t n, int64_t longest, int64_t lanes) {  // numbers
  const int64_t levels = tile_levels(longest);
  return levels > 1 ? tile_chunks(n) * tile_transform(levels - 1).M * 2 * lanes : 0;
}

// The spectra of levels 1, 2, ... one after another; where that of level m begins.
static inline int64_t tile_spectrum(int64_t n, int64_t m) {  // numbers
  return ((kTileBlock << m) - 2 * kTileBlock) * 2 * tile_width(n);
}

static inline int64_t tile_twiddles(int64_t levels) {  // numbers
  return levels > 1 ? 6 * long_conv_nodes(tile_transform(levels - 1)) : 0;
}

// Whether an instruction keeps to its memory. Constants, with K = 2 * 64: taps (K, width), lag 0 first, zeros past the
// filter's end; skip (width,) or none; spectra and twiddles, none where levels < 2. constants: bytes; others: numbers.
static inline bool tile_fits(const stream::long_conv_op& op, int64_t constants, int64_t tape, int64_t scratch) {
  constexpr int64_t kMost = int64_t(1) << 24;  // products of two of these and a few more do not overflow
  if (op.n < 1 || op.n > kMost || op.longest < 1 || op.longest > kMost) return false;
  if (op.levels != tile_levels(op.longest)) return false;
  const auto within = [](int64_t at, int64_t count, int64_t size) { return at >= 0 && at <= size - count; };
  const auto constant = [&](int64_t at, int64_t count) {
    return at % 64 == 0 && within(at, count * int64_t(sizeof(float)), constants);
  };
  const int64_t width = tile_width(op.n);
  bool fits = within(op.in, op.n, scratch) && within(op.out, op.n, scratch);
  fits = fits && within(op.tape, tile_tape(op.n, op.longest), tape);
  fits = fits && constant(op.taps, kTileTaps * width) && (op.skip == -1 || constant(op.skip, width));
  if (op.levels < 2) return fits;
  fits = fits && (op.lanes == 4 || op.lanes == 8 || op.lanes == 16);
  fits = fits && within(op.work, tile_work(op.n, op.longest, op.lanes), scratch);
  return fits && constant(op.spectra, tile_spectrum(op.n, op.levels)) &&
         constant(op.twiddles, tile_twiddles(op.levels));
}

}  // namespace longstream
