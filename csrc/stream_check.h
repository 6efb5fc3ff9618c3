// Whether a program keeps to its memory: every offset and size of every instruction, before one of them runs. Plain
// C++.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "stream.h"
#include "stream_tiles.h"

namespace longstream {

struct StreamSizes {
  int64_t constants;             // bytes
  int64_t state, tape, scratch;  // floats of a row
};

class StreamCheck {
 public:
  StreamCheck(const int64_t* program, int64_t instructions, const unsigned char* constants, StreamSizes sizes)
      : program_(program), instructions_(instructions), constants_(constants), sizes_(sizes) {}

  // In words what is wrong, or nothing.
  std::string run() {
    if (instructions_ < 1 || instructions_ > kMost) return "a program has 1 to 65536 instructions";
    for (turn_ = 0; turn_ < instructions_ && problem_.empty(); ++turn_) {
      const int64_t* instruction = program_ + turn_ * kInstruction;
      const bool first = *instruction == int64_t(stream::Code::begin);
      if (first != (turn_ == 0)) refuse("program", "a program has one begin, as its first instruction");
      switch (stream::Code(*instruction)) {
#define LONGSTREAM_CASE(name, ...)                 \
  case stream::Code::name: {                       \
    stream::name##_op op;                          \
    std::memcpy(&op, instruction + 1, sizeof(op)); \
    name_ = #name;                                 \
    check(op);                                     \
    break;                                         \
  }
        LONGSTREAM_STREAM_OPS(LONGSTREAM_CASE)
#undef LONGSTREAM_CASE
        default:
          refuse("code", "is unknown");
      }
    }
    return problem_;
  }

 private:
  static constexpr int64_t kMost = 65536;
  static constexpr int64_t kLargest = int64_t(1) << 40;  // of a size; products of more are INT64_MAX

  struct Part {
    int64_t offset, count;
  };

  static int64_t times(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
  }

  void refuse(const std::string& field, const char* what) {
    if (!problem_.empty()) return;
    problem_ = "instruction " + std::to_string(turn_) + " (" + name_ + "): " + field + " " + what;
  }

  void size(const char* field, int64_t value, int64_t least = 1) {
    if (value < least || value > kLargest) refuse(field, "is out of range");
  }
  void kind(const char* field, int64_t value, int64_t last) {
    if (value < 0 || value > last) refuse(field, "is unknown");
  }
  void within(const char* field, int64_t offset, int64_t count, int64_t all) {
    if (offset < 0 || count < 0 || count > all || offset > all - count) refuse(field, "is outside of its memory");
  }
  Part scratch(const char* field, int64_t offset, int64_t count) {
    within(field, offset, count, sizes_.scratch);
    return {offset, count};
  }
  void state(int64_t offset, int64_t count) { within("state", offset, count, sizes_.state); }
  void constant(const char* field, int64_t offset, int64_t count, int64_t bytes = int64_t(sizeof(float))) {
    within(field, offset, times(count, bytes), sizes_.constants);
    if (offset % 64 != 0) refuse(field, "is no multiple of 64");
  }
  void optional(const char* field, int64_t offset, int64_t count, int64_t bytes = int64_t(sizeof(float))) {
    if (offset != -1) constant(field, offset, count, bytes);
  }
  // What is written must be apart from what is read, or, number by number, the same.
  void apart(Part out, Part in, bool same = false) {
    if (same && out.offset == in.offset) return;
    if (out.offset < in.offset + in.count && in.offset < out.offset + out.count) refuse("out", "overlaps what is read");
  }

  void check(const stream::begin_op& op) {
    size("n_in", op.n_in), size("n_out", op.n_out);
    scratch("in", op.in, op.n_in), scratch("out", op.out, op.n_out);
    optional("allow_nan", op.allow_nan, op.n_in, 1);
  }

  void check(const stream::linear_op& op) {
    size("n_in", op.n_in), size("n_out", op.n_out);
    kind("kind", op.kind, int64_t(Weights::i8)), kind("add", op.add, 1);
    if (!problem_.empty()) return;
    const Part in = scratch("in", op.in, op.n_in), out = scratch("out", op.out, op.n_out);
    const int64_t outputs = (op.n_out + kPanel - 1) / kPanel * kPanel, group = kGroups[op.kind];
    constant("weight", op.weight, times(outputs, (op.n_in + group - 1) / group), 4);
    if (Weights(op.kind) == Weights::i8) constant("scale", op.scale, op.n_out);
    optional("bias", op.bias, op.n_out);
    apart(out, in);
  }

  void check(const stream::norm_op& op) {
    size("n", op.n), kind("kind", op.kind, int64_t(Norm::axon));
    const Part in = scratch("in", op.in, op.n), out = scratch("out", op.out, op.n);
    optional("weight", op.weight, op.n), optional("bias", op.bias, op.n);
    apart(out, in, true);
    if (op.gate != -1) apart(out, scratch("gate", op.gate, op.n), true);
  }

  void check(const stream::multiply_op& op) {
    size("n", op.n), kind("activation", op.activation, int64_t(Activation::gelu));
    const Part a = scratch("a", op.a, op.n), out = scratch("out", op.out, op.n);
    apart(out, a, true);
    if (op.b != -1) apart(out, scratch("b", op.b, op.n), true);
  }

  void check(const stream::affine_op& op) {
    size("n", op.n);
    apart(scratch("out", op.out, op.n), scratch("in", op.in, op.n), true);
    optional("weight", op.weight, op.n), optional("bias", op.bias, op.n);
  }

  void check(const stream::short_conv_op& op) {
    size("n", op.n), size("taps", op.taps);
    apart(scratch("out", op.out, op.n), scratch("in", op.in, op.n), true);
    constant("weight", op.weight, times(op.n, op.taps)), optional("bias", op.bias, op.n);
    state(op.state, times(op.n, op.taps - 1));
  }

  void check_bounds(int64_t bound, int64_t complement, int64_t n) {
    optional("bound", bound, n), optional("complement", complement, n);
    if ((bound == -1) != (complement == -1)) refuse("complement", "goes with a bound");
  }

  void check(const stream::hgrn_op& op) {
    size("n", op.n);
    if (!problem_.empty()) return;
    const int64_t parts = op.theta == -1 ? 1 : 2, all = parts * op.n;
    const Part c = scratch("c", op.c, all), z = scratch("z", op.z, op.n), out = scratch("out", op.out, all);
    check_bounds(op.bound, op.complement, op.n);
    optional("theta", op.theta, times(4, op.n));
    state(op.state, all);
    apart(out, c, parts == 1), apart(out, z, parts == 1);
  }

  void check(const stream::gla_op& op) {
    size("heads", op.heads), size("size", op.size);
    kind("act_q", op.act_q, int64_t(Activation::gelu)), kind("act_v", op.act_v, int64_t(Activation::gelu));
    const int64_t n = times(op.heads, op.size);
    const Part q = scratch("q", op.q, n), z = scratch("z", op.z, n), v = scratch("v", op.v, n);
    const Part out = scratch("out", op.out, n);
    check_bounds(op.bound, op.complement, n);
    state(op.state, times(n, op.size));
    if (!problem_.empty()) return;
    apart(out, q), apart(out, z), apart(out, v);
  }

  void check(const stream::shared_gates_op& op) {
    size("n", op.n), size("gates", op.gates);
    if (!problem_.empty()) return;
    if (op.n % op.gates != 0) refuse("gates", "does not divide n");
    const Part f = scratch("f", op.f, op.gates), i = scratch("i", op.i, op.gates), v = scratch("v", op.v, op.n);
    const Part out = scratch("out", op.out, op.n);
    state(op.state, op.n);
    apart(out, f), apart(out, i), apart(out, v, true);
  }

  void check(const stream::attention_op& op) {
    size("heads", op.heads), size("kv_heads", op.kv_heads), size("size", op.size), size("window", op.window);
    if (!problem_.empty()) return;
    if (op.heads % op.kv_heads != 0) refuse("kv_heads", "does not divide heads");
    const int64_t n = times(op.heads, op.size), of_keys = times(op.kv_heads, op.size);
    const Part q = scratch("q", op.q, n), k = scratch("k", op.k, of_keys), v = scratch("v", op.v, of_keys);
    const Part out = scratch("out", op.out, n);
    if (op.turns != -1 && op.size % 2 != 0) refuse("size", "is odd");
    optional("turns", op.turns, times(op.window, op.size));
    state(op.state, times(times(of_keys, op.window - 1), 2));
    if (!problem_.empty()) return;
    apart(out, q), apart(out, k), apart(out, v);
  }

  void check(const stream::modal_op& op) {
    size("n", op.n), size("modes", op.modes);
    const int64_t all = times(times(op.n, op.modes), 2);
    apart(scratch("out", op.out, op.n), scratch("in", op.in, op.n), true);
    constant("poles", op.poles, all), constant("residues", op.residues, all), constant("direct", op.direct, op.n);
    state(op.state, all);
  }

  void check(const stream::long_conv_op& op) {
    if (!tile_fits(op, sizes_.constants, sizes_.tape, sizes_.scratch)) return refuse("it", "is outside of its memory");
    apart({op.out, op.n}, {op.in, op.n}, true);
  }

  void check(const stream::normalize_op& op) {
    size("n", op.n), size("indicators", op.indicators, 0);
    if (!problem_.empty()) return;
    apart(scratch("out", op.out, op.n + op.indicators), scratch("in", op.in, op.n));
    constant("mean", op.mean, op.n), constant("std", op.std, op.n);
    if (op.indicators == 0) return;
    constant("index", op.index, op.indicators, int64_t(sizeof(int64_t)));
    for (int64_t i = 0; i < op.indicators && problem_.empty(); ++i) {
      int64_t channel;
      std::memcpy(&channel, constants_ + op.index + i * int64_t(sizeof(channel)), sizeof(channel));
      if (channel < 0 || channel >= op.n) refuse("index", "names a channel that is not there");
    }
  }

  void check(const stream::pool_op& op) {
    size("n", op.n), kind("kind", op.kind, int64_t(Pool::last));
    apart(scratch("out", op.out, op.n), scratch("in", op.in, op.n), true);
    state(op.state, op.n);
  }

  const int64_t* program_;
  int64_t instructions_;
  const unsigned char* constants_;
  StreamSizes sizes_;
  int64_t turn_ = 0;
  std::string name_, problem_;
};

}  // namespace longstream
