// The interpreter of stream.h's programs.
#include "stream.h"

#include "stream_attention.h"
#include "stream_crew.h"
#include "stream_elementwise.h"
#include "stream_hyena.h"
#include "stream_linear.h"
#include "stream_recurrent.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

template <typename Op>
inline Op fields(const int64_t* instruction) {
  static_assert(sizeof(Op) < kInstruction * sizeof(int64_t), "an instruction has too many fields");
  Op op;
  std::memcpy(&op, instruction + 1, sizeof(op));
  return op;
}

int64_t begin_chunks(const stream::begin_op&, const StreamRows&) { return 0; }  // done before the program runs
void begin_chunk(const stream::begin_op&, const StreamRows&, int64_t) {}

int64_t chunks_of(const int64_t* instruction, const StreamRows& rows) {
  switch (stream::Code(*instruction)) {
#define LONGSTREAM_CASE(name, ...) \
  case stream::Code::name:         \
    return name##_chunks(fields<stream::name##_op>(instruction), rows);
    LONGSTREAM_STREAM_OPS(LONGSTREAM_CASE)
#undef LONGSTREAM_CASE
  }
  return 0;
}

void run_chunk(const int64_t* instruction, const StreamRows& rows, int64_t chunk) {
  switch (stream::Code(*instruction)) {
#define LONGSTREAM_CASE(name, ...) \
  case stream::Code::name:         \
    return name##_chunk(fields<stream::name##_op>(instruction), rows, chunk);
    LONGSTREAM_STREAM_OPS(LONGSTREAM_CASE)
#undef LONGSTREAM_CASE
  }
}

bool all_finite(const float* x, int64_t n) {
  Floats sums = {};  // a number that is not finite makes 0 * x NaN, and the sum with it
  for_vectors<float>(n, [&](int64_t d, int64_t count) { sums += take(x + d, count) * 0.f; });
  return sum_lanes<float>(sums) == 0;
}

// So far from infinity that no difference of two is infinite.
bool all_tame(const float* x, int64_t n) {
  Floats sums = {};
  for_vectors<float>(n, [&](int64_t d, int64_t count) { sums += take(x + d, count) * 4.f * 0.f; });
  return sum_lanes<float>(sums) == 0;
}

// NaN where it is not allowed, or infinity.
inline bool is_bad(float x, bool allow_nan) { return !(x - x == 0) && !(allow_nan && x != x); }

constexpr int64_t kBadFrame = 1, kBadState = 2;

// The workspace of a step, by name.
struct Places {
  const float** from;
  float** to;
  float** tape;
  int64_t *position, *bad;
  const float* zeros;

  explicit Places(const StreamStep& s) : zeros(reinterpret_cast<const float*>(s.workspace)) {
    int64_t* next = s.workspace + stream_workspace(0, s.state_size);
    const auto take_some = [&] {
      next += s.B;
      return next - s.B;
    };
    static_assert(sizeof(float*) <= sizeof(int64_t), "a pointer does not fit");
    from = reinterpret_cast<const float**>(take_some());
    to = reinterpret_cast<float**>(take_some());
    tape = reinterpret_cast<float**>(take_some());
    position = take_some();
    bad = take_some();
  }
};

class Step {
 public:
  explicit Step(const StreamStep& s)
      : s_(s),
        begin_(fields<stream::begin_op>(s.program)),
        allow_nan_(begin_.allow_nan < 0 ? nullptr : s.constants + begin_.allow_nan),
        places_(s) {}

  int64_t run() {
    int64_t bad = 0;
    for (int64_t b = 0; b < s_.B; ++b) bad += places_.bad[b] = !is_good(frame(b));
    if (bad > 0 && s_.policy == Policy::raise) return bad;
    for (int64_t b = 0; b < s_.B; ++b) prepare(b);
    run_program();
    bad = 0;
    for (int64_t b = 0; b < s_.B; ++b) {
      const float* out = s_.scratch + b * s_.scratch_size + begin_.out;
      std::memcpy(s_.y + b * begin_.n_out, out, size_t(begin_.n_out) * sizeof(float));
      const bool from_bad = s_.policy == Policy::pass && (places_.bad[b] & kBadFrame);
      places_.bad[b] = from_bad || (places_.bad[b] & kBadState) || !all_finite(out, begin_.n_out);
      bad += places_.bad[b];
    }
    const bool none = bad > 0 && s_.policy == Policy::raise;
    for (int64_t b = 0; b < s_.B; ++b) none || places_.bad[b] ? take_back(b) : commit(b);
    return -bad;
  }

 private:
  const float* frame(int64_t b) const { return s_.x + b * begin_.n_in; }
  bool allows_nan(int64_t c) const { return allow_nan_ != nullptr && allow_nan_[c]; }

  bool is_good(const float* x) const {
    if (all_finite(x, begin_.n_in)) return true;
    for (int64_t c = 0; c < begin_.n_in; ++c) {
      if (is_bad(x[c], allows_nan(c))) return false;
    }
    return true;
  }

  // Marks rows whose new state is none to go on from: a gate can be shut to what would make the output bad only later.
  // Where the new state is a mean of the old one and of what comes in, or holds just that, what comes in is looked at:
  // it is fewer numbers, and the state may be in another core's cache.
  void look_at(const int64_t* instruction) const {
    for (int64_t b = 0; b < s_.B; ++b) {
      const float* row = s_.scratch + b * s_.scratch_size;
      bool good = true;
      switch (stream::Code(*instruction)) {
        case stream::Code::short_conv: {
          const auto op = fields<stream::short_conv_op>(instruction);
          good = all_tame(row + op.in, op.n);
          break;
        }
        case stream::Code::hgrn: {
          const auto op = fields<stream::hgrn_op>(instruction);
          good = all_tame(row + op.c, op.theta < 0 ? op.n : 2 * op.n) && all_tame(row + op.z, op.n);
          break;
        }
        case stream::Code::gla: {
          const auto op = fields<stream::gla_op>(instruction);
          good = all_tame(row + op.z, op.heads * op.size) && all_tame(row + op.v, op.heads * op.size);
          break;
        }
        case stream::Code::shared_gates: {
          const auto op = fields<stream::shared_gates_op>(instruction);
          good = all_tame(places_.to[b] + op.state, op.n);
          break;
        }
        case stream::Code::attention: {
          const auto op = fields<stream::attention_op>(instruction);
          good = all_tame(row + op.k, op.kv_heads * op.size) && all_tame(row + op.v, op.kv_heads * op.size);
          break;
        }
        case stream::Code::modal: {
          const auto op = fields<stream::modal_op>(instruction);
          good = all_tame(row + op.in, op.n);
          break;
        }
        case stream::Code::long_conv: {
          const auto op = fields<stream::long_conv_op>(instruction);
          good = all_tame(row + op.in, op.n);
          break;
        }
        case stream::Code::pool: {
          const auto op = fields<stream::pool_op>(instruction);
          good = all_tame(places_.to[b] + op.state, op.n);
          break;
        }
        default:
          return;
      }
      if (!good) places_.bad[b] |= kBadState;
    }
  }

  void prepare(int64_t b) const {
    const int64_t old = s_.slot[b], size = s_.B * s_.state_size, next = old + 1 < s_.slots ? old + 1 : 0;
    const bool anew = s_.reset != nullptr && s_.reset[b];
    places_.from[b] = anew ? places_.zeros : s_.state + old * size + b * s_.state_size;
    places_.to[b] = s_.state + next * size + b * s_.state_size;
    places_.tape[b] = s_.tape_size > 0 ? s_.tape + b * s_.tape_size : nullptr;
    places_.position[b] = anew ? 0 : s_.position[old * s_.B + b];
    float* in = s_.scratch + b * s_.scratch_size + begin_.in;
    std::memcpy(in, frame(b), size_t(begin_.n_in) * sizeof(float));
    if (s_.policy != Policy::hold || !places_.bad[b]) return;
    for (int64_t c = 0; c < begin_.n_in; ++c) {
      if (is_bad(in[c], allows_nan(c))) in[c] = s_.held[b * begin_.n_in + c];
    }
  }

  void run_program() const {
    const StreamRows rows = {s_.B,       places_.from,    places_.to,  places_.tape, places_.position,
                             s_.scratch, s_.scratch_size, s_.constants};
    const auto work = [&](int64_t turn, int64_t chunk) { run_chunk(s_.program + turn * kInstruction, rows, chunk); };
    StreamCrew::run(s_.parallel, s_.threads, work, [&](StreamCrew& crew, bool front) {
      for (int64_t turn = 1; turn < s_.instructions; ++turn) {
        const int64_t* instruction = s_.program + turn * kInstruction;
        crew.share(turn, chunks_of(instruction, rows), front, work);
        look_at(instruction);
      }
    });
  }

  // A row that began anew has written where its past stands, on the tape alone: see stream_tiles.h.
  void take_back(int64_t b) const {
    if (s_.reset == nullptr || !s_.reset[b] || s_.tape_size == 0) return;
    for (int64_t turn = 1; turn < s_.instructions; ++turn) {
      const int64_t* instruction = s_.program + turn * kInstruction;
      if (*instruction != int64_t(stream::Code::long_conv)) continue;
      tile_take_back(fields<stream::long_conv_op>(instruction), places_.tape[b]);
    }
  }

  void commit(int64_t b) const {
    const int64_t next = s_.slot[b] + 1 < s_.slots ? s_.slot[b] + 1 : 0;
    s_.position[next * s_.B + b] = places_.position[b] + 1;
    s_.slot[b] = next;
    if (s_.policy != Policy::hold) return;
    for (int64_t c = 0; c < begin_.n_in; ++c) {
      const float x = frame(b)[c];
      if (x - x == 0) s_.held[b * begin_.n_in + c] = x;
    }
  }

  const StreamStep& s_;
  const stream::begin_op begin_;
  const unsigned char* allow_nan_;
  const Places places_;
};

}  // namespace

int64_t stream_step(const StreamStep& step) { return Step(step).run(); }

}  // namespace longstream::LONGSTREAM_ISA
