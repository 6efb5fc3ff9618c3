// The instructions modal and long_conv against plain sums: rows at positions of their own, that start anew, are taken
// back and go on differently.
#pragma once

#include "../stream_check.h"
#include "testing.h"

namespace {

// What a row does in one step: it starts anew, or is taken back by some tokens, and takes one number a channel in.
struct HyenaAction {
  int64_t back;  // -1: start anew
  bool commits;  // or is the step begun and not kept, for a NaN in x
  std::vector<float> x;
};

// A random play of `steps` steps of B rows, with what each output is by the sums as they are written. Rows are taken
// back by as much as `history` allows; 0: never.
struct HyenaPlay {
  int64_t B, n, steps;
  std::vector<HyenaAction> actions;  // (steps, B)
  std::vector<double> outs;          // (steps, B, n)

  template <typename Output>  // output(past of a row, channel): the last output
  HyenaPlay(int64_t B_, int64_t n_, int64_t steps_, int64_t longest, int64_t history, const Output& output)
      : B(B_), n(n_), steps(steps_) {
    std::vector<std::vector<std::vector<float>>> pasts(static_cast<size_t>(B));
    std::vector<int64_t> kept(size_t(B), 0);
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t b = 0; b < B; ++b) {
        auto& past = pasts[size_t(b)];
        HyenaAction action = {0, uniform(0, 1) < 0.95, {}};
        const bool full = int64_t(past.size()) == longest;
        if (uniform(0, 1) < 0.008 || (full && !kept[size_t(b)])) {
          const int64_t most = kept[size_t(b)];
          action.back = most && (full || uniform(0, 1) < 0.9) ? 1 + int64_t(uniform(0, double(most))) : -1;
        } else if (full) {
          action.back = 1;
        }
        if (past.empty()) action.back = -1;
        for (int64_t d = 0; d < n; ++d) action.x.push_back(float(uniform(-1, 1)));
        for (int64_t i = 0; i < action.back; ++i) past.pop_back(), --kept[size_t(b)];
        if (action.commits) {
          if (action.back < 0) past.clear(), kept[size_t(b)] = -1;
          past.push_back(action.x);
          if (kept[size_t(b)] < history) ++kept[size_t(b)];
        } else {
          action.x[size_t(uniform(0, double(n)))] = NAN;
        }
        for (int64_t d = 0; d < n; ++d) outs.push_back(action.commits ? output(past, d) : 0.0);
        actions.push_back(action);
      }
    }
  }
};

using HyenaPast = std::vector<std::vector<float>>;

// Plays a program of `begin` and one instruction, in at 0 and out at n, with memory of the exact size, NaN at first.
template <typename Op>
Results<float> play_hyena(const HyenaPlay& play, stream::Code code, const Op& op, int64_t slots, StreamSizes sizes,
                          const unsigned char* constants) {
  const int64_t B = play.B, n = play.n;
  Numbers<int64_t> program(2 * kInstruction, 0), position(slots * B, 0), slot(B, 0);
  const stream::begin_op begin = {0, n, n, n, -1};
  program[0] = int64_t(stream::Code::begin), program[kInstruction] = int64_t(code);
  std::memcpy(program + 1, &begin, sizeof(begin));
  std::memcpy(program + kInstruction + 1, &op, sizeof(op));
  const std::string problem = StreamCheck(program, 2, constants, sizes).run();
  if (!problem.empty()) fail("check", problem.c_str());
  Numbers<float> state(slots * B * sizes.state), tape(B * sizes.tape), scratch(B * sizes.scratch), x(B * n), y(B * n);
  Numbers<int64_t> workspace(stream_workspace(B, sizes.state), 0);
  Numbers<bool> reset(B, true);
  StreamStep step = {};
  step.program = program, step.instructions = 2, step.constants = constants, step.slots = slots, step.B = B;
  step.state_size = sizes.state, step.tape_size = sizes.tape, step.scratch_size = sizes.scratch;
  step.state = state, step.tape = tape, step.position = position, step.slot = slot, step.reset = reset;
  step.scratch = scratch, step.workspace = workspace, step.x = x, step.y = y;
  step.policy = Policy::pass, step.threads = thread_count, step.parallel = run_parallel;
  std::vector<float> outs;
  for (int64_t i = 0; i < play.steps; ++i) {
    const HyenaAction* actions = play.actions.data() + i * B;
    for (int64_t b = 0; b < B; ++b) {
      reset[b] = actions[b].back < 0;
      if (actions[b].back > 0) slot[b] = (slot[b] + slots - actions[b].back) % slots;
      std::memcpy(x + b * n, actions[b].x.data(), size_t(n) * sizeof(float));
    }
    int64_t bad = 0;
    for (int64_t b = 0; b < B; ++b) bad += !actions[b].commits;
    if (LONGSTREAM_PICK(stream_step)(step) != -bad) fail("step", "keeps what it must not, or not what it must");
    for (int64_t b = 0; b < B; ++b) {
      if (!actions[b].commits) std::memset(y + b * n, 0, size_t(n) * sizeof(float));
    }
    outs.insert(outs.end(), static_cast<float*>(y), y + B * n);
  }
  Results<float> results;
  results.add("out", outs.data(), int64_t(outs.size()));
  return results;
}

// Constants one after another, each at a multiple of 64 bytes.
class HyenaConstants {
 public:
  int64_t add(const std::vector<float>& numbers) {
    const size_t at = bytes_.size();
    bytes_.resize(at + (numbers.size() * sizeof(float) + 63) / 64 * 64);
    if (!numbers.empty()) std::memcpy(bytes_.data() + at, numbers.data(), numbers.size() * sizeof(float));
    return int64_t(at);
  }
  int64_t size() const { return int64_t(bytes_.size()); }
  const unsigned char* data() const { return bytes_.data(); }

 private:
  std::vector<unsigned char> bytes_;
};

// taps (n, K) of channels side by side -> constants of a long_conv of so many tokens.
inline stream::long_conv_op long_conv_constants(HyenaConstants& constants, const std::vector<float>& taps, int64_t n,
                                                int64_t K, int64_t longest) {
  const int64_t width = tile_width(n), lanes = LONGSTREAM_PICK(long_conv_lanes)(sizeof(float));
  stream::long_conv_op op = {};
  op.in = 0, op.out = n, op.n = n, op.longest = longest, op.levels = tile_levels(longest), op.lanes = lanes;
  op.work = 2 * n, op.spectra = op.twiddles = -1;
  std::vector<float> near(size_t(kTileTaps * width), 0.f);
  for (int64_t k = 0; k < kTileTaps && k < K; ++k) {
    for (int64_t d = 0; d < n; ++d) near[size_t(k * width + d)] = taps[size_t(d * K + k)];
  }
  op.taps = constants.add(near);
  if (op.levels < 2) return op;
  std::vector<float> twiddles(size_t(tile_twiddles(op.levels))), spectra(size_t(tile_spectrum(n, op.levels)));
  fill_long_conv_twiddles(twiddles.data(), tile_twiddles(op.levels) / 6);
  std::vector<float> padded(size_t(width * K), 0.f);
  std::memcpy(padded.data(), taps.data(), taps.size() * sizeof(float));
  for (int64_t m = 1; m < op.levels; ++m) {
    LongConvArguments<float> a = {};
    a.size = tile_transform(m), a.twiddles = twiddles.data(), a.B = 1, a.D = width;
    a.taps = padded.data() + 1, a.taps_stride = K, a.K = 2 * a.size.M - 1 < K - 1 ? 2 * a.size.M - 1 : K - 1;
    a.parts = 1, a.workers = 1, a.scratch_stride = long_conv_spectrum_scratch(a, lanes);
    Numbers<float> scratch(a.scratch_stride);
    a.scratch = scratch;
    LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<float>&, float*, ParallelFor), long_conv_spectrum)
    (a, spectra.data() + tile_spectrum(n, m),
     [](int64_t count, int64_t, RangeFunction f, void* context) { f(0, count, context); });
  }
  op.twiddles = constants.add(twiddles), op.spectra = constants.add(spectra);
  return op;
}

void test_stream_long_conv(int64_t B, int64_t n, int64_t K, int64_t longest, int64_t steps, bool skips) {
  std::vector<float> taps, skip;
  for (int64_t i = 0; i < n * K; ++i) taps.push_back(float(uniform(-1, 1) / std::sqrt(double(K))));
  for (int64_t d = 0; skips && d < n; ++d) skip.push_back(float(uniform(-1, 1)));
  HyenaConstants constants;
  stream::long_conv_op op = long_conv_constants(constants, taps, n, K, longest);
  std::vector<float> padded = skip;
  padded.resize(size_t(tile_width(n)), 0.f);
  op.skip = skips ? constants.add(padded) : -1;
  const HyenaPlay play(B, n, steps, longest, kTileHistory, [&](const HyenaPast& past, int64_t d) {
    const int64_t t = int64_t(past.size()) - 1;
    double y = skips ? double(skip[size_t(d)]) * past.back()[size_t(d)] : 0.0;
    for (int64_t k = 0; k <= t && k < K; ++k) y += double(taps[size_t(d * K + k)]) * past[size_t(t - k)][size_t(d)];
    return y;
  });
  const StreamSizes sizes = {constants.size(), 0, tile_tape(n, longest), 2 * n + tile_work(n, longest, op.lanes)};
  if (tile_fits(op, sizes.constants, sizes.tape - 1, sizes.scratch)) fail("long_conv", "fits a tape too small");
  if (tile_fits(op, sizes.constants, sizes.tape, sizes.scratch - 1)) fail("long_conv", "fits a scratch too small");
  Exact exact;
  exact.all.emplace_back("out", play.outs);
  const auto code = stream::Code::long_conv;
  check<float>([&] { return play_hyena(play, code, op, kTileHistory + 2, sizes, constants.data()); }, exact);
}

void test_stream_modal(int64_t B, int64_t n, int64_t modes, int64_t steps) {
  std::vector<float> poles(size_t(2 * modes * n)), residues, direct;
  for (int64_t m = 0; m < modes; ++m) {
    for (int64_t d = 0; d < n; ++d) {
      const double size = uniform(0.5, 0.99), angle = uniform(0, 3.1);
      poles[size_t(2 * m * n + d)] = float(size * std::cos(angle));
      poles[size_t((2 * m + 1) * n + d)] = float(size * std::sin(angle));
    }
  }
  for (int64_t i = 0; i < 2 * modes * n; ++i) residues.push_back(float(uniform(-1, 1)));
  for (int64_t d = 0; d < n; ++d) direct.push_back(float(uniform(-1, 1)));
  HyenaConstants constants;
  stream::modal_op op = {};
  op.in = 0, op.out = n, op.n = n, op.modes = modes, op.state = 0;
  op.poles = constants.add(poles), op.residues = constants.add(residues), op.direct = constants.add(direct);
  constexpr int64_t history = 7;
  const HyenaPlay play(B, n, steps, 60, history, [&](const HyenaPast& past, int64_t d) {
    double y = double(direct[size_t(d)]) * past.back()[size_t(d)];
    for (int64_t m = 0; m < modes; ++m) {
      const size_t re = size_t(2 * m * n + d), im = re + size_t(n);
      double s_re = 0, s_im = 0;
      for (const auto& x : past) {
        const double next = s_re * poles[re] - s_im * poles[im] + double(x[size_t(d)]);
        s_im = s_re * poles[im] + s_im * poles[re], s_re = next;
      }
      y += residues[re] * s_re - residues[im] * s_im;
    }
    return y;
  });
  Exact exact;
  exact.all.emplace_back("out", play.outs);
  const StreamSizes sizes = {constants.size(), 2 * modes * n, 0, 2 * n};
  const auto code = stream::Code::modal;
  check<float>([&] { return play_hyena(play, code, op, history + 2, sizes, constants.data()); }, exact);
}

void test_stream_hyena(const std::string& base) {
  for (int odd = 0; odd < 2; ++odd) {
    misaligned = odd;
    const int64_t cases[][5] = {
        // B, n, taps, longest, steps
        {1, 1, 1, 1, 20},       {2, 5, 40, 60, 150},     {2, 17, 64, 64, 150},     {2, 3, 65, 65, 200},
        {3, 70, 200, 200, 300}, {2, 19, 700, 700, 1200}, {1, 4, 1100, 1100, 1500}, {1, 130, 300, 300, 400},
    };
    for (const auto& c : cases) {
      now = base + "test_stream_long_conv " + std::to_string(c[1]) + " " + std::to_string(c[3]);
      test_stream_long_conv(c[0], c[1], c[2], c[3], c[4], c[1] % 4 != 1);
    }
    now = base + "test_stream_modal";
    test_stream_modal(2, 70, 3, 100);
    test_stream_modal(3, 5, 1, 40);
  }
  misaligned = false;
}

}  // namespace
