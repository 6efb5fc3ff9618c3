// Programs of a step for the tests: made of instructions and constants, played on random frames on all kinds of
// threads, and held against an output that is computed from all frames so far.
#pragma once

#include "../stream_check.h"
#include "testing.h"

namespace {

void run_serially_backwards(int64_t n, int64_t, RangeFunction function, void* context) {
  for (int64_t i = n - 1; i >= 0; --i) function(i, i + 1, context);
}
void run_as_one(int64_t n, int64_t, RangeFunction function, void* context) { function(0, n, context); }

using Row = std::vector<double>;
using Past = std::vector<Row>;  // the frames of a row, the last one now
using Output = std::function<Row(const Past&)>;

// A program of begin and what is added, with constants, and sizes that are exactly what it needs.
struct StreamProgram {
  int64_t n_in, n_out;
  std::vector<int64_t> lines;
  std::vector<std::vector<unsigned char>> parts;
  StreamSizes sizes = {0, 0, 0, 0};

  StreamProgram(int64_t in, int64_t out, int64_t at) : n_in(in), n_out(out) {
    sizes.scratch = at + out > in ? at + out : in;
    add(stream::Code::begin, stream::begin_op{0, in, at, out, -1});
  }
  template <typename Op>
  void add(stream::Code code, const Op& op) {
    lines.resize(lines.size() + size_t(kInstruction));
    int64_t* line = lines.data() + lines.size() - size_t(kInstruction);
    *line = int64_t(code);
    std::memcpy(line + 1, &op, sizeof(op));
  }
  template <typename T>
  int64_t constant(const std::vector<T>& x) {
    const int64_t offset = (sizes.constants + 63) / 64 * 64, bytes = int64_t(x.size() * sizeof(T));
    parts.emplace_back(size_t(offset - sizes.constants + bytes));
    std::memcpy(parts.back().data() + (offset - sizes.constants), x.data(), size_t(bytes));
    sizes.constants = offset + bytes;
    return offset;
  }
};

std::vector<float> some(int64_t n, double from = -1, double to = 1) {
  std::vector<float> x(static_cast<size_t>(n));
  for (float& value : x) value = float(uniform(from, to));
  return x;
}

// `steps` steps of B rows on random frames, by the threads of `parallel`.
std::vector<float> play_stream(const StreamProgram& p, int64_t B, int64_t steps, const std::vector<float>& frames,
                               int64_t threads, ParallelFor parallel) {
  // Constants begin at a multiple of 64 whatever the numbers of this test do, and end where they end.
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, size_t(p.sizes.constants ? p.sizes.constants : 1))) std::abort();
  auto* constants = static_cast<unsigned char*>(memory);
  for (size_t i = 0, at = 0; i < p.parts.size(); at += p.parts[i++].size()) {
    std::memcpy(constants + at, p.parts[i].data(), p.parts[i].size());
  }
  const int64_t slots = 3, count = int64_t(p.lines.size()) / kInstruction;
  Numbers<int64_t> program(int64_t(p.lines.size()), 0), position(slots * B, 0), slot(B, 0);
  std::memcpy(program, p.lines.data(), p.lines.size() * sizeof(int64_t));
  const std::string problem = StreamCheck(program, count, constants, p.sizes).run();
  if (!problem.empty()) fail("check", problem.c_str());
  Numbers<float> state(slots * B * p.sizes.state), scratch(B * p.sizes.scratch), x(B * p.n_in), y(B * p.n_out);
  Numbers<int64_t> workspace(stream_workspace(B, p.sizes.state), 0);
  Numbers<bool> reset(B, true);
  StreamStep s = {};
  s.program = program, s.instructions = count, s.constants = constants, s.slots = slots, s.B = B;
  s.state_size = p.sizes.state, s.scratch_size = p.sizes.scratch, s.state = state, s.position = position;
  s.slot = slot, s.reset = reset, s.scratch = scratch, s.workspace = workspace, s.x = x, s.y = y;
  s.policy = Policy::raise, s.threads = threads, s.parallel = parallel;
  std::vector<float> outs;
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t i = 0; i < B * p.n_in; ++i) x[i] = frames[size_t(step * B * p.n_in + i)];
    if (LONGSTREAM_PICK(stream_step)(s) != 0) fail("step", "is refused");
    outs.insert(outs.end(), static_cast<float*>(y), static_cast<float*>(y) + B * p.n_out);
    for (int64_t b = 0; b < B; ++b) reset[b] = false;
  }
  std::free(memory);
  return outs;
}

void test_program(const StreamProgram& p, int64_t steps, const Output& output) {
  for (int64_t B : {0, 1, 3, 5}) {
    const std::vector<float> frames = some(steps * B * p.n_in, -2, 2);
    Row exact(size_t(steps * B * p.n_out));
    for (int64_t b = 0; b < B; ++b) {
      Past past;
      for (int64_t step = 0; step < steps; ++step) {
        const float* frame = frames.data() + (step * B + b) * p.n_in;
        past.emplace_back(frame, frame + p.n_in);
        const Row out = output(past);
        std::copy(out.begin(), out.end(), exact.begin() + (step * B + b) * p.n_out);
      }
    }
    const auto run = [&] {
      Results<float> results;
      const std::vector<float> y = play_stream(p, B, steps, frames, thread_count, run_parallel);
      results.add("y", y.data(), int64_t(y.size()));
      for (ParallelFor other : {run_serially_backwards, run_as_one}) {
        if (thread_count > 1 && play_stream(p, B, steps, frames, thread_count, other) != y)
          fail("y", "depends on threads");
      }
      return results;
    };
    check<float>(run, Exact{{{"y", exact}}});
  }
}

double act(Activation kind, double x) {
  switch (kind) {
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::gelu_tanh:
      return x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) / 2;
    case Activation::gelu:
      return x * (1 + std::erf(x / std::sqrt(2.0))) / 2;
    default:
      return x;
  }
}

int64_t bits_of(double x) {
  int64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

}  // namespace
