// Transforms of complex numbers modulo z^n - c, each number a vector with a channel in every lane. For *_kernels.cpp.
//
// Modulo z^n - e^{i a} splits into modulo z^{n/2} - e^{i a / 2} and z^{n/2} + e^{i a / 2}: two halves lo, hi become
// lo + w hi and lo - w hi with one w = e^{i a / 2} for all of them. Four quarters at once are two such splits. Nothing
// is ever reordered: what comes out stands in the order of the splits, in which products are taken and the way back
// goes. The splits are a tree whose node p has the angle a_p = 2 pi times the bits of p mirrored at the point (p = 1:
// 1/2, 2: 1/4, 3: 3/4); its two children are 2 p and 2 p + 1, its four grandchildren 4 p + 0, 1, 2, 3, in this order.
// Node 2 is z^n - i, the root of every transform here. So one table of twiddles, by node, serves all levels and sizes.
#pragma once

#include "simd.h"

namespace longstream::LONGSTREAM_ISA {

template <typename T>
struct Complex {
  Vector<T> re, im;
};

template <typename T>
constexpr int64_t kNumber = 2 * kLanes<T>;  // scalars in memory of one complex number: all lanes of re, then of im

template <typename T>
inline Complex<T> get(const T* from) {
  return {load(from), load(from + kLanes<T>)};
}

template <typename T>
inline void put(T* to, Complex<T> z) {
  store(to, z.re);
  store(to + kLanes<T>, z.im);
}

template <typename T>
inline Complex<T> operator+(Complex<T> a, Complex<T> b) {
  return {a.re + b.re, a.im + b.im};
}

template <typename T>
inline Complex<T> operator-(Complex<T> a, Complex<T> b) {
  return {a.re - b.re, a.im - b.im};
}

template <typename T>
inline Complex<T> operator*(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <typename T>
inline Complex<T> times_conj(Complex<T> a, Complex<T> b) {  // a times the conjugate of b
  return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
}

template <typename T>
inline Complex<T> plus_i(Complex<T> a, Complex<T> b) {  // a + i b
  return {a.re - b.im, a.im + b.re};
}

template <typename T>
inline Complex<T> minus_i(Complex<T> a, Complex<T> b) {  // a - i b
  return {a.re + b.im, a.im - b.re};
}

// w, w^2 and w^3 with w = e^{i a_p / 4}, the same in all lanes.
constexpr int64_t kTwiddle = 6;

template <typename T>
struct Twiddle {
  Complex<T> w, w2, w3;
  explicit Twiddle(const T* at)
      : w{broadcast(at[0]), broadcast(at[1])},
        w2{broadcast(at[2]), broadcast(at[3])},
        w3{broadcast(at[4]), broadcast(at[5])} {}
};

template <typename T>
struct Quarters {
  Complex<T> a, b, c, d;
};

template <typename T>
inline Quarters<T> split(Quarters<T> z, const Twiddle<T>& t) {
  const Complex<T> b = z.b * t.w, c = z.c * t.w2, d = z.d * t.w3;
  const Complex<T> plus = z.a + c, minus = z.a - c, sum = b + d, difference = b - d;
  return {plus + sum, plus - sum, plus_i(minus, difference), minus_i(minus, difference)};
}

template <typename T>
inline Quarters<T> split_real(Vector<T> a, Vector<T> b, Vector<T> c, Vector<T> d, const Twiddle<T>& t) {
  const Complex<T> b_ = {b * t.w.re, b * t.w.im}, d_ = {d * t.w3.re, d * t.w3.im};
  const Vector<T> c_re = c * t.w2.re, c_im = c * t.w2.im;
  const Complex<T> plus = {a + c_re, c_im}, minus = {a - c_re, -c_im}, sum = b_ + d_, difference = b_ - d_;
  return {plus + sum, plus - sum, plus_i(minus, difference), minus_i(minus, difference)};
}

template <typename T>
inline Quarters<T> join(Quarters<T> z, const Twiddle<T>& t) {  // four times the inverse of split
  const Complex<T> plus = z.a + z.b, sum = z.a - z.b, minus = z.c + z.d, difference = z.c - z.d;
  return {plus + minus, times_conj(minus_i(sum, difference), t.w), times_conj(plus - minus, t.w2),
          times_conj(plus_i(sum, difference), t.w3)};
}

template <typename T>
inline void split_all(T* z, int64_t n, const T* twiddle) {  // n numbers, in place
  const Twiddle<T> t(twiddle);
  const int64_t quarter = n / 4 * kNumber<T>;
  for (T* end = z + quarter; z != end; z += kNumber<T>) {
    const Quarters<T> y = split<T>({get(z), get(z + quarter), get(z + 2 * quarter), get(z + 3 * quarter)}, t);
    put(z, y.a), put(z + quarter, y.b), put(z + 2 * quarter, y.c), put(z + 3 * quarter, y.d);
  }
}

template <typename T>
inline void join_all(T* z, int64_t n, const T* twiddle) {
  const Twiddle<T> t(twiddle);
  const int64_t quarter = n / 4 * kNumber<T>;
  for (T* end = z + quarter; z != end; z += kNumber<T>) {
    const Quarters<T> y = join<T>({get(z), get(z + quarter), get(z + 2 * quarter), get(z + 3 * quarter)}, t);
    put(z, y.a), put(z + quarter, y.b), put(z + 2 * quarter, y.c), put(z + 3 * quarter, y.d);
  }
}

// Products of polynomials of n numbers modulo z^n - c, |c| = 1; with `correlate` a(z) b(1/z), b conjugated: what
// belongs to the correlation of real signals.
template <bool correlate, int n, typename T>
inline void multiply(const Complex<T>* a, const Complex<T>* b, Complex<T> c, Complex<T>* out) {
#pragma GCC unroll 10
  for (int k = 0; k < n; ++k) {
    Complex<T> straight = {}, wrapped = {};
#pragma GCC unroll 10
    for (int j = 0; j < n; ++j) {
      const int i = correlate ? k + j : k - j;
      const Complex<T> factor = a[(i + n) % n];
      const Complex<T> term = correlate ? times_conj(factor, b[j]) : factor * b[j];
      if (0 <= i && i < n) {
        straight = straight + term;
      } else {
        wrapped = wrapped + term;
      }
    }
    if (n > 1) straight = straight + (correlate ? times_conj(wrapped, c) : wrapped * c);
    out[k] = straight;
  }
}

// (lanes, count) with rows `stride` apart -> (count, lanes), and back. Vectors of the lanes are interleaved in pairs
// until each holds one number of all rows.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define LONGSTREAM_SHUFFLES
#endif
#endif

#ifdef LONGSTREAM_SHUFFLES
template <int... i>
struct Indices {};
template <int n, int... i>
struct MakeIndices : MakeIndices<n - 1, n - 1, i...> {};
template <int... i>
struct MakeIndices<0, i...> {
  using type = Indices<i...>;
};

template <typename T, int... i>
inline void interleave(Vector<T> a, Vector<T> b, Vector<T>* out, Indices<i...>) {
  constexpr int n = kLanes<T>;
  out[0] = __builtin_shufflevector(a, b, (i % 2 ? n + i / 2 : i / 2)...);
  out[1] = __builtin_shufflevector(a, b, (i % 2 ? n + n / 2 + i / 2 : n / 2 + i / 2)...);
}
#endif

template <typename T>
inline void transpose(const T* from, int64_t from_stride, T* to, int64_t to_stride) {  // lanes x lanes
  constexpr int n = kLanes<T>;
#ifdef LONGSTREAM_SHUFFLES
  Vector<T> now[n], next[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) now[i] = load(from + i * from_stride);
#pragma GCC unroll 4
  for (int width = 1; width < n; width *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      interleave<T>(now[i], now[i + n / 2], next + 2 * i, typename MakeIndices<n>::type());
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) now[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) store(to + i * to_stride, now[i]);
#else
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) to[j * to_stride + i] = from[i * from_stride + j];
  }
#endif
}

}  // namespace longstream::LONGSTREAM_ISA
