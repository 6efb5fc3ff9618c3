// The ops of stream.h: the names and codes of instructions, the check of a program, and a step.
#include "stream.h"

#include <string>

#include "bind.h"
#include "stream_check.h"
#include "stream_crew.h"

namespace longstream {
namespace {

using Optional = std::optional<Tensor>;

std::string quoted(const std::string& names) {  // "a, b" -> "a", "b"
  std::string text = "\"";
  for (char c : names) text += c == ',' ? std::string("\"") + c : c == ' ' ? std::string(" \"") : std::string(1, c);
  return text + "\"";
}

std::string stream_layout() {
  std::string ops;
  const auto add = [&](const char* name, stream::Code code, const char* names) {
    ops += (ops.empty() ? "\"" : ", \"") + std::string(name) + "\": [" + std::to_string(int64_t(code)) + ", ";
    ops += quoted(names) + "]";
  };
#define LONGSTREAM_ADD(name, ...) add(#name, stream::Code::name, #__VA_ARGS__);
  LONGSTREAM_STREAM_OPS(LONGSTREAM_ADD)
#undef LONGSTREAM_ADD
  std::string groups;
  for (int64_t group : kGroups) groups += (groups.empty() ? "" : ", ") + std::to_string(group);
  return "{\"instruction\": " + std::to_string(kInstruction) + ", \"panel\": " + std::to_string(kPanel) +
         ", \"groups\": [" + groups + "], \"ops\": {" + ops + "}}";
}

int64_t instructions_of(const Tensor& program) {
  STD_TORCH_CHECK(program.dim() == 2, "longstream: program has a wrong shape");
  return program.size(0);
}

const unsigned char* constants_of(const Tensor& constants) {
  const auto* data =
      reinterpret_cast<const unsigned char*>(input<uint8_t>(constants, "constants", {constants.numel()}));
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(data) % 64 == 0, "longstream: constants must begin at a multiple of 64");
  return data;
}

void stream_check(const Tensor& program, const Tensor& constants, int64_t state_size, int64_t tape_size,
                  int64_t scratch_size) {
  const int64_t instructions = instructions_of(program);
  const int64_t* data = input<int64_t>(program, "program", {instructions, kInstruction});
  const StreamSizes sizes = {constants.numel(), state_size, tape_size, scratch_size};
  const std::string problem = StreamCheck(data, instructions, constants_of(constants), sizes).run();
  STD_TORCH_CHECK(problem.empty(), "longstream: ", problem);
}

stream::begin_op begin_of(const StreamStep& s) {
  stream::begin_op begin;
  std::memcpy(&begin, s.program + 1, sizeof(begin));
  return begin;
}

int64_t stream_workspace_size(int64_t B, int64_t state_size) { return stream_workspace(B, state_size); }

template <typename T>
T* output(const Tensor& x, const char* name, std::initializer_list<int64_t> shape) {
  return const_cast<T*>(input<T>(x, name, shape));
}

void check_places(const StreamStep& s) {
  for (int64_t b = 0; b < s.B; ++b) {
    const bool fits = s.slot[b] >= 0 && s.slot[b] < s.slots && s.position[s.slot[b] * s.B + b] >= 0;
    STD_TORCH_CHECK(fits, "longstream: slot or position of row ", b, " is out of range");
  }
  for (int64_t turn = 1; s.tape_size > 0 && turn < s.instructions; ++turn) {
    const int64_t* instruction = s.program + turn * kInstruction;
    if (*instruction != int64_t(stream::Code::long_conv)) continue;
    stream::long_conv_op op;
    std::memcpy(&op, instruction + 1, sizeof(op));
    const int64_t lanes = pick_isa<int64_t>(4, 8, 16);
    STD_TORCH_CHECK(op.levels < 2 || op.lanes == lanes, "longstream: this program was made for ", op.lanes,
                    " lanes, and this processor has ", lanes);
    for (int64_t b = 0; b < s.B; ++b) {
      const bool fits = (s.reset != nullptr && s.reset[b]) || s.position[s.slot[b] * s.B + b] < op.longest;
      STD_TORCH_CHECK(fits, "longstream: row ", b, " is at its end: its filter has ", op.longest, " taps");
    }
  }
}

// All of a step but its frame, its result, its resets and its policy.
StreamStep step_of(const Tensor& program, const Tensor& constants, const Tensor& state, const Tensor& tape,
                   const Tensor& position, const Tensor& slot, const Optional& held, const Tensor& scratch,
                   const Tensor& workspace, int64_t threads) {
  StreamStep s{};
  s.instructions = instructions_of(program);
  s.program = input<int64_t>(program, "program", {s.instructions, kInstruction});
  STD_TORCH_CHECK(s.instructions > 0 && *s.program == int64_t(stream::Code::begin), "longstream: no program");
  STD_TORCH_CHECK(state.dim() == 3 && tape.dim() == 2 && scratch.dim() == 2, "longstream: memory has a wrong shape");
  s.constants = constants_of(constants);
  s.slots = state.size(0), s.B = state.size(1), s.state_size = state.size(2);
  s.tape_size = tape.size(1), s.scratch_size = scratch.size(1);
  STD_TORCH_CHECK(s.slots >= 2, "longstream: state must have two slots or more");
  s.state = output<float>(state, "state", {s.slots, s.B, s.state_size});
  s.tape = output<float>(tape, "tape", {s.B, s.tape_size});
  s.position = output<int64_t>(position, "position", {s.slots, s.B});
  s.slot = output<int64_t>(slot, "slot", {s.B});
  s.held = held ? output<float>(*held, "held", {s.B, begin_of(s).n_in}) : nullptr;
  s.scratch = output<float>(scratch, "scratch", {s.B, s.scratch_size});
  s.workspace = output<int64_t>(workspace, "workspace", {stream_workspace(s.B, s.state_size)});
  STD_TORCH_CHECK(threads >= 1, "longstream: threads must be 1 or more");
  s.threads = threads;
  s.parallel = torch_threads;
  return s;
}

int64_t run_step(const StreamStep& s) {
  STD_TORCH_CHECK(s.policy != Policy::hold || s.held != nullptr, "longstream: this policy needs held");
  check_places(s);
  return LONGSTREAM_PICK(stream_step)(s);
}

int64_t stream_step_cpu(const Tensor& program, const Tensor& constants, const Tensor& state, const Tensor& tape,
                        const Tensor& position, const Tensor& slot, const Optional& held, const Optional& reset,
                        const Tensor& scratch, const Tensor& workspace, const Tensor& x, const Tensor& y,
                        int64_t policy, int64_t threads) {
  StreamStep s = step_of(program, constants, state, tape, position, slot, held, scratch, workspace, threads);
  const stream::begin_op begin = begin_of(s);
  s.reset = reset ? input<bool>(*reset, "reset", {s.B}) : nullptr;
  s.x = input<float>(x, "x", {s.B, begin.n_in});
  s.y = output<float>(y, "y", {s.B, begin.n_out});
  STD_TORCH_CHECK(policy >= 0 && policy <= int64_t(Policy::pass), "longstream: unknown policy");
  s.policy = Policy(policy);
  return run_step(s);
}

// A step that is got ready once, for longstream_stream_step below; whoever has it keeps the tensors alive.
Tensor stream_bind(const Tensor& program, const Tensor& constants, const Tensor& state, const Tensor& tape,
                   const Tensor& position, const Tensor& slot, const Optional& held, const Tensor& scratch,
                   const Tensor& workspace, int64_t threads) {
  const StreamStep s = step_of(program, constants, state, tape, position, slot, held, scratch, workspace, threads);
  Tensor bound = new_tensor(position, {int64_t((sizeof(s) + 7) / 8)});
  std::memcpy(bound.mutable_data_ptr<int64_t>(), &s, sizeof(s));
  return bound;
}

}  // namespace

// The step of `bound` as stream_step makes it, but called as a C function, which allocates nothing: torch's own call
// makes a handle for each tensor. kStreamRefused: it was not made, and stream_step says why.
constexpr int64_t kStreamRefused = INT64_MIN;
extern "C" __attribute__((visibility("default"))) int64_t longstream_stream_step(const void* bound, const float* x,
                                                                                 float* y, const bool* reset,
                                                                                 int64_t policy) {
  try {
    StreamStep s;
    std::memcpy(&s, bound, sizeof(s));
    s.x = x, s.y = y, s.reset = reset, s.policy = Policy(policy);
    return run_step(s);
  } catch (...) {
    return kStreamRefused;
  }
}

}  // namespace longstream

STABLE_TORCH_LIBRARY_FRAGMENT(longstream, m) {
  m.def("stream_layout() -> str");
  m.def("stream_workspace(int batch_size, int state_size) -> int");
  m.def("stream_check(Tensor program, Tensor constants, int state_size, int tape_size, int scratch_size) -> ()");
  m.def(
      "stream_bind(Tensor program, Tensor constants, Tensor state, Tensor tape, Tensor position, Tensor slot, "
      "Tensor? held, Tensor scratch, Tensor workspace, int threads) -> Tensor");
  m.def(
      "stream_step(Tensor program, Tensor constants, Tensor(a!) state, Tensor(b!) tape, Tensor(c!) position, "
      "Tensor(d!) slot, Tensor(e!)? held, Tensor? reset, Tensor(f!) scratch, Tensor(g!) workspace, Tensor x, "
      "Tensor(h!) y, int policy, int threads) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CompositeExplicitAutograd, m) {
  m.impl("stream_layout", TORCH_BOX(&longstream::stream_layout));
  m.impl("stream_workspace", TORCH_BOX(&longstream::stream_workspace_size));
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CPU, m) {
  m.impl("stream_check", TORCH_BOX(&longstream::stream_check));
  m.impl("stream_bind", TORCH_BOX(&longstream::stream_bind));
  m.impl("stream_step", TORCH_BOX(&longstream::stream_step_cpu));
}
