// The recurrence as a walk over time, vector lanes over channels, a block of channels of one sequence per task.
#include "gated_scan.h"

#include "columns.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace longstream::LONGSTREAM_ISA {
namespace {

// Gates near 1 keep all their digits: exp(x) is part + 1 where x is near 0, and part elsewhere. A float32 gate itself
// is off by up to 3e-8 at every step, which after 10,000 steps of a constant slow gate is 3e-4 of the state.
template <typename T>
struct Gate {
  using Int = typename ExpConstants<T>::Int;
  typedef Int Ints __attribute__((vector_size(kVectorBytes)));

  Vector<T> part;
  Ints near_one;  // all bits or none

  explicit Gate(Vector<T> x) {  // see exp() in simd.h
    using C = ExpConstants<T>;
    x = x < C::least ? broadcast<T>(C::least) : x;
    x = x > C::most ? broadcast<T>(C::most) : x;
    const Vector<T> shift = broadcast<T>(C::shift), shifted = x * C::log2e + shift, n = shifted - shift;
    const Vector<T> r = (x - n * C::ln2_high) - n * C::ln2_low;
    constexpr InverseFactorials<T> inverse_factorial;
    Vector<T> sum = broadcast<T>(inverse_factorial.of[C::terms]);  // (exp(r) - 1) / r
#pragma GCC unroll 16
    for (int i = C::terms - 1; i > 0; --i) sum = sum * r + inverse_factorial.of[i];
    const Ints whole = bits_of(shifted) - bits_of(shift), half = whole >> 1;
    const Vector<T> first = power_of_2(half), second = power_of_2(whole - half);
    near_one = whole == 0;
    part = near_one ? r * sum : (r * sum + T(1)) * first * second;
  }

  // exp(x) h is the sum of both. The first is kept as it is, and the second takes in what is added to exp(x) h before
  // the sum is taken, so that a step of a slow gate rounds once.
  Vector<T> kept(Vector<T> h) const { return from_bits(bits_of(h) & near_one); }
  Vector<T> moved(Vector<T> h) const { return part * h; }

  static Ints bits_of(Vector<T> x) {
    Ints bits;
    std::memcpy(&bits, &x, sizeof(x));
    return bits;
  }

  static Vector<T> from_bits(Ints bits) {
    Vector<T> x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
  }

  static Vector<T> power_of_2(Ints n) { return from_bits((n + ExpConstants<T>::bias) << ExpConstants<T>::mantissa); }
};

// exp(i theta) of a vector of channels. The low parts keep float32 from turning by a wrong angle at every step.
template <typename T>
struct Turn {
  Vector<T> cos, sin, cos_low, sin_low;

  template <typename Columns>
  Turn(const Columns& columns, const T* rows, int64_t channels)
      : cos(columns.read(rows)),
        sin(columns.read(rows + channels)),
        cos_low(columns.read(rows + 2 * channels)),
        sin_low(columns.read(rows + 3 * channels)) {}

  // Turns re and im; what the sums round off goes to the other two.
  void forth(Vector<T>& re, Vector<T>& im, Vector<T>& off_re, Vector<T>& off_im) const {
    rotate(re, im, sin, sin_low, off_re, off_im);
  }
  void back(Vector<T>& re, Vector<T>& im, Vector<T>& off_re, Vector<T>& off_im) const {
    rotate(re, im, -sin, -sin_low, off_re, off_im);
  }

 private:
  void rotate(Vector<T>& re, Vector<T>& im, Vector<T> s, Vector<T> s_low, Vector<T>& off_re, Vector<T>& off_im) const {
    const Vector<T> more_re = s * im - (cos_low * re - s_low * im), more_im = s * re + (cos_low * im + s_low * re);
    const Vector<T> new_re = cos * re - more_re, new_im = cos * im + more_im;
    off_re = (cos * re - new_re) - more_re;
    off_im = (cos * im - new_im) + more_im;
    re = new_re;
    im = new_im;
  }
};

struct Around : Whole {  // around the cache: to aligned addresses
#if defined(__AVX512F__)
  static void write(float* to, Vector<float> x) { _mm512_stream_ps(to, x); }
  static void write(double* to, Vector<double> x) { _mm512_stream_pd(to, x); }
  static void finish() { _mm_sfence(); }
#elif defined(__AVX__)
  static void write(float* to, Vector<float> x) { _mm256_stream_ps(to, x); }
  static void write(double* to, Vector<double> x) { _mm256_stream_pd(to, x); }
  static void finish() { _mm_sfence(); }
#endif
};

constexpr int64_t kGrain = 32768;  // gates for which a second thread is worth waking
constexpr int64_t kAhead = 8;      // rows to fetch before they are needed: 1.5 to 2 times as fast past the cache
constexpr int kSumSteps = 64;      // terms of dtheta added in T before they go to float64

template <typename T, int parts, typename Columns>
struct Forward {
  const GatedScan<T>& a;
  const Columns columns;

  void run(int64_t n, int64_t from, int64_t width) const {
    const int64_t D = a.shape.channels, left = a.shape.bounds[n], right = a.shape.bounds[n + 1];
    T h[parts][kWidth];
    for (int part = 0; part < parts; ++part) {
      std::memcpy(h[part], a.initial_state + (n * parts + part) * D + from, size_t(width) * sizeof(T));
    }
    for (int64_t i = left; i < right; ++i) {
      const int64_t token = a.shape.reverse ? left + right - 1 - i : i;
      const T *forget = a.log_forget + token * D + from, *x = a.x + token * parts * D + from;
      T* out = a.out + token * parts * D + from;
      const int64_t ahead = i + kAhead < right ? (a.shape.reverse ? -kAhead : kAhead) * D : 0;
      for (int64_t d = 0; d < width; d += kLanes<T>) {
        __builtin_prefetch(forget + ahead + d);
        for (int part = 0; part < parts; ++part) __builtin_prefetch(x + ahead * parts + part * D + d);
        const Gate<T> gate(columns.read(forget + d));
        Vector<T> now[parts];
        for (int part = 0; part < parts; ++part) now[part] = columns.read(h[part] + d);
        Vector<T> off[parts] = {};
        if constexpr (parts == 2) Turn<T>(columns, a.turn + from + d, D).forth(now[0], now[1], off[0], off[1]);
        for (int part = 0; part < parts; ++part) {
          const Vector<T> added = columns.read(x + part * D + d) + gate.kept(off[part]);
          now[part] = gate.kept(now[part]) + (gate.moved(now[part]) + added);
          store(h[part] + d, now[part]);
          columns.write(out + part * D + d, now[part]);
        }
      }
    }
    for (int part = 0; part < parts; ++part) {
      std::memcpy(a.final_state + (n * parts + part) * D + from, h[part], size_t(width) * sizeof(T));
    }
    columns.finish();
  }
};

// With g_t the gradient of h_t and r_t = conj(a_t) g_t, a_t = exp(log_forget_t + i theta):
//     g_t = dout_t + r_{t+1},  dx_t = g_t,  dlog_forget_t = Re(conj(h_{t-1}) r_t),
//     dtheta = sum_t Im(conj(h_{t-1}) r_t).
template <typename T, int parts, typename Columns>
struct Backward {
  const GatedScanBackward<T>& a;
  const Columns columns;

  void run(int64_t n, int64_t from, int64_t width) const {
    const int64_t D = a.shape.channels, left = a.shape.bounds[n], right = a.shape.bounds[n + 1];
    T kept[parts][kWidth], moved[parts][kWidth], sums[parts == 2 ? kWidth : 1] = {};  // r = kept + moved
    double* dtheta = parts == 2 ? a.dtheta + n * D + from : nullptr;
    for (int part = 0; part < parts; ++part) {
      std::memcpy(kept[part], a.dfinal_state + (n * parts + part) * D + from, size_t(width) * sizeof(T));
      std::memset(moved[part], 0, size_t(width) * sizeof(T));
    }
    for (int64_t d = 0; parts == 2 && d < width; ++d) dtheta[d] = 0;
    for (int64_t i = right - 1; i >= left; --i) {
      const int64_t token = a.shape.reverse ? left + right - 1 - i : i, row = token * parts * D + from;
      const T *forget = a.log_forget + token * D + from, *dout = a.dout + row;
      const T* before =
          i == left ? a.initial_state + n * parts * D + from : a.out + row + (a.shape.reverse ? parts * D : -parts * D);
      T *dx = a.dx + row, *dlog_forget = a.dlog_forget + token * D + from;
      const int64_t ahead = i - kAhead > left ? (a.shape.reverse ? kAhead : -kAhead) * D : 0;
      for (int64_t d = 0; d < width; d += kLanes<T>) {
        __builtin_prefetch(forget + ahead + d);
        for (int part = 0; part < parts; ++part) {
          __builtin_prefetch(dout + ahead * parts + part * D + d);
          __builtin_prefetch(before + ahead * parts + part * D + d);
        }
        const Gate<T> gate(columns.read(forget + d));
        Vector<T> g[parts], h[parts];
        for (int part = 0; part < parts; ++part) {
          g[part] = columns.read(kept[part] + d) + (columns.read(moved[part] + d) + columns.read(dout + part * D + d));
          h[part] = columns.read(before + part * D + d);
          columns.write(dx + part * D + d, g[part]);
        }
        Vector<T> off[parts] = {}, r[parts], along = {};
        if constexpr (parts == 2) Turn<T>(columns, a.turn + from + d, D).back(g[0], g[1], off[0], off[1]);
        for (int part = 0; part < parts; ++part) {
          const Vector<T> still = gate.kept(g[part]), rest = gate.moved(g[part]) + gate.kept(off[part]);
          store(kept[part] + d, still);
          store(moved[part] + d, rest);
          r[part] = still + rest;
          along += h[part] * r[part];
        }
        columns.write(dlog_forget + d, along);
        if constexpr (parts == 2) store(sums + d, load(sums + d) + (h[0] * r[1] - h[1] * r[0]));
      }
      if (parts == 2 && ((i - left) % kSumSteps == 0)) {
        for (int64_t d = 0; d < width; ++d) {
          dtheta[d] += sums[d];
          sums[d] = 0;
        }
      }
    }
    for (int part = 0; part < parts; ++part) {
      T* to = a.dinitial_state + (n * parts + part) * D + from;
      for (int64_t d = 0; d < width; ++d) to[d] = kept[part][d] + moved[part][d];
    }
    columns.finish();
  }
};

template <typename T, int parts, template <typename, int, typename> class Walk, typename Arguments>
void run_blocks(const Arguments& a, ParallelFor threads) {
  const ScanShape& shape = a.shape;
  const bool around = a.past_cache && shape.channels % kLanes<T> == 0;
  walk_blocks<T>(shape.sequences, shape.channels, shape.bounds, a.past_cache, kGrain, threads,
                 [&](auto columns, int64_t n, int64_t from, int64_t width) {
                   if (around) {
                     Walk<T, parts, Around>{a, {}}.run(n, from, width);
                   } else {
                     Walk<T, parts, decltype(columns)>{a, columns}.run(n, from, width);
                   }
                 });
}

template <template <typename, int, typename> class Walk, typename T, typename Arguments>
void run_parts(const Arguments& a, ParallelFor threads) {
  a.turn ? run_blocks<T, 2, Walk>(a, threads) : run_blocks<T, 1, Walk>(a, threads);
}

}  // namespace

void gated_scan(const GatedScan<float>& a, ParallelFor threads) { run_parts<Forward, float>(a, threads); }
void gated_scan(const GatedScan<double>& a, ParallelFor threads) { run_parts<Forward, double>(a, threads); }
void gated_scan_backward(const GatedScanBackward<float>& a, ParallelFor threads) {
  run_parts<Backward, float>(a, threads);
}
void gated_scan_backward(const GatedScanBackward<double>& a, ParallelFor threads) {
  run_parts<Backward, double>(a, threads);
}

}  // namespace longstream::LONGSTREAM_ISA
