// Tiles of a few tokens by one vector of channels; a block of channels of one sequence per task.
#include "short_conv.h"

#include "columns.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

constexpr int kTile = 8;                           // tokens: as many sums stay in registers
constexpr int64_t kCacheBytes = int64_t(1) << 23;  // with as much for each result, more than the cache holds
constexpr int64_t kGrain = 65536;                  // numbers for which a second thread is worth waking

// A sequence: its stream, its taps and the columns of a task.
template <typename T, typename Columns>
struct Stream {
  const ConvShape& shape;
  const Columns columns;
  int64_t left, length, from, width;
  const T *state, *x, *weight, *bias;  // at column `from`

  template <typename Arguments>
  Stream(const Arguments& a, Columns columns, int64_t n, int64_t from, int64_t width)
      : shape(a.shape),
        columns(columns),
        left(a.shape.bounds[n]),
        length(a.shape.bounds[n + 1] - left),
        from(from),
        width(width),
        state(a.initial_state + n * (shape.taps - 1) * shape.channels + from),
        x(a.x + left * shape.channels + from),
        weight(a.weight + from),
        bias(a.bias ? a.bias + from : nullptr) {}

  const T* row(int64_t s) const {  // of the stream
    return s < shape.taps - 1 ? state + s * shape.channels : x + (s - (shape.taps - 1)) * shape.channels;
  }

  // The sums over taps of tokens t .. t + tokens - 1, before the activation. inside: all rows are tokens.
  template <int tokens, bool inside>
  void sums(int64_t t, int64_t d, Vector<T> (&y)[tokens]) const {
    const Vector<T> first = bias ? columns.read(bias + d) : Vector<T>{};
    for (int i = 0; i < tokens; ++i) y[i] = first;
    for (int64_t j = 0; j < shape.taps; ++j) {
      const Vector<T> tap = columns.read(weight + j * shape.channels + d);
      const T* base = inside ? row(t + j) + d : nullptr;
      for (int i = 0; i < tokens; ++i) {
        y[i] += tap * columns.read(inside ? base + i * shape.channels : row(t + j + i) + d);
      }
    }
  }

  // Calls tile(t, a number of tokens, inside?) for all tokens in order, with numbers that the compiler knows.
  template <typename F>
  void walk(const F& tile) const {
    int64_t t = 0;
    for (; t < length && t < shape.taps - 1; ++t) tile(t, Number<1>(), Number<0>());
    for (; t + kTile <= length; t += kTile) tile(t, Number<kTile>(), Number<1>());
    for (; t < length; ++t) tile(t, Number<1>(), Number<1>());
  }

  template <int n>
  struct Number {
    static constexpr int value = n;
  };
};

template <typename T>
inline Vector<T> sigmoid(Vector<T> x) {
  return T(1) / (T(1) + exp<T>(-x));
}

template <typename T, typename Columns>
struct Forward {
  const ShortConv<T>& a;
  const Columns columns;

  void run(int64_t n, int64_t from, int64_t width) const {
    const Stream<T, Columns> stream(a, columns, n, from, width);
    const int64_t D = a.shape.channels, past = a.shape.taps - 1;
    stream.walk([&](int64_t t, auto count, auto inside) {
      constexpr int tokens = decltype(count)::value;
      T* out = a.out + (stream.left + t) * D + from;
      for (int64_t d = 0; d < width; d += kLanes<T>) {
        Vector<T> y[tokens];
        stream.template sums<tokens, decltype(inside)::value>(t, d, y);
        for (int i = 0; i < tokens; ++i) {
          columns.write(out + i * D + d, a.shape.silu ? y[i] * sigmoid<T>(y[i]) : y[i]);
        }
      }
    });
    T* last = a.final_state + n * past * D + from;
    for (int64_t k = 0; k < past; ++k) {
      std::memcpy(last + k * D, stream.row(stream.length + k), size_t(width) * sizeof(T));
    }
  }
};

// dy_t = dout_t silu'(y_t). Row s of the stream takes sum_j weight_j dy_{s - j}, so it is complete after dy_s. With
// silu, dy_t waits for that in the row of dx_t, which is written for good W - 1 tokens later.
template <typename T, typename Columns>
struct Backward {
  const ShortConvBackward<T>& a;
  const Columns columns;

  void run(int64_t n, int64_t from, int64_t width) const {
    const Stream<T, Columns> stream(a, columns, n, from, width);
    const int64_t D = a.shape.channels, W = a.shape.taps, past = W - 1, length = stream.length;
    const T* dout = a.dout + stream.left * D + from;
    T *dx = a.dx + stream.left * D + from, *dstate = a.dinitial_state + n * past * D + from;
    const T *dy = a.shape.silu ? dx : dout, *dlast = a.dfinal_state + n * past * D + from;
    double* dweight = a.dweight + n * (W + 1) * D + from;
    for (int64_t j = 0; j <= W; ++j) std::memset(dweight + j * D, 0, size_t(width) * sizeof(double));

    stream.walk([&](int64_t t, auto count, auto is_inside) {
      constexpr int tokens = decltype(count)::value;
      constexpr bool inside = decltype(is_inside)::value;
      for (int64_t d = 0; d < width; d += kLanes<T>) {
        Vector<T> grad[tokens], y[tokens];
        for (int i = 0; i < tokens; ++i) grad[i] = columns.read(dout + (t + i) * D + d);
        if (a.shape.silu) {
          stream.template sums<tokens, inside>(t, d, y);
          for (int i = 0; i < tokens; ++i) {
            const Vector<T> s = sigmoid<T>(y[i]);
            grad[i] *= s + s * (y[i] * (T(1) - s));
            columns.write(dx + (t + i) * D + d, grad[i]);
          }
        }
        for (int64_t j = 0; j < W; ++j) {
          const T* base = inside ? stream.row(t + j) + d : nullptr;
          Vector<T> sum = {};
          for (int i = 0; i < tokens; ++i) {
            sum += grad[i] * columns.read(inside ? base + i * D : stream.row(t + j + i) + d);
          }
          add(dweight + j * D + d, sum, width - d);
        }
        Vector<T> sum = {};
        for (int i = 0; i < tokens; ++i) sum += grad[i];
        add(dweight + W * D + d, sum, width - d);
        if (inside) {  // rows t .. t + tokens - 1 of the stream, which are tokens W - 1 earlier
          for (int i = 0; i < tokens; ++i) y[i] = Vector<T>{};
          for (int64_t j = 0; j < W; ++j) {
            const Vector<T> tap = columns.read(stream.weight + j * D + d);
            for (int i = 0; i < tokens; ++i) y[i] += tap * columns.read(dy + (t + i - j) * D + d);
          }
          for (int i = 0; i < tokens; ++i) columns.write(dx + (t + i - past) * D + d, y[i]);
        }
      }
      if (!inside) finish_row(stream, dy, dlast, dstate + t * D, t);
    });
    // What is after the last token: rows of the state, and the last tokens.
    for (int64_t s = length; s < length + past; ++s) {
      finish_row(stream, dy, dlast, s < past ? dstate + s * D : dx + (s - past) * D, s);
    }
  }

  void finish_row(const Stream<T, Columns>& stream, const T* dy, const T* dlast, T* to, int64_t s) const {
    const int64_t D = a.shape.channels, length = stream.length;
    const int64_t least = s < length ? 0 : s - length + 1, most = s < a.shape.taps ? s : a.shape.taps - 1;
    for (int64_t d = 0; d < stream.width; d += kLanes<T>) {
      Vector<T> sum = s < length ? Vector<T>{} : columns.read(dlast + (s - length) * D + d);
      for (int64_t j = least; j <= most; ++j) {
        sum += columns.read(stream.weight + j * D + d) * columns.read(dy + (s - j) * D + d);
      }
      columns.write(to + d, sum);
    }
  }

  static void add(double* to, Vector<T> terms, int64_t width) {
    T lanes[kLanes<T>];
    store(lanes, terms);
    if (width >= kLanes<T>) width = kLanes<T>;
    for (int64_t lane = 0; lane < width; ++lane) to[lane] += lanes[lane];
  }
};

template <typename T, template <typename, typename> class Walk, typename Arguments>
void run_blocks(const Arguments& a, ParallelFor threads) {
  const auto& shape = a.shape;
  const bool past_cache = shape.bounds[shape.sequences] * shape.channels * int64_t(sizeof(T)) > kCacheBytes;
  walk_blocks<T>(shape.sequences, shape.channels, shape.bounds, past_cache, kGrain, threads,
                 [&](auto columns, int64_t n, int64_t from, int64_t width) {
                   Walk<T, decltype(columns)>{a, columns}.run(n, from, width);
                 });
}

}  // namespace

void short_conv(const ShortConv<float>& a, ParallelFor threads) { run_blocks<float, Forward>(a, threads); }
void short_conv(const ShortConv<double>& a, ParallelFor threads) { run_blocks<double, Forward>(a, threads); }
void short_conv_backward(const ShortConvBackward<float>& a, ParallelFor threads) {
  run_blocks<float, Backward>(a, threads);
}
void short_conv_backward(const ShortConvBackward<double>& a, ParallelFor threads) {
  run_blocks<double, Backward>(a, threads);
}

}  // namespace longstream::LONGSTREAM_ISA
