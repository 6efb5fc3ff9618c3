// Logarithms and sigmoids on vectors, beside simd.h's exp. For *_kernels.cpp only, as simd.h is.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace longstream::LONGSTREAM_ISA {

template <typename T>
struct LogConstants;

template <>
struct LogConstants<float> {
  static constexpr int terms = 7;  // the next one is 9^-8 / 17 of the sum, 1.4e-9
  static constexpr float least_mantissa = 0.70710678f, tiny = 1.17549435e-38f;
};

template <>
struct LogConstants<double> {
  static constexpr int terms = 15;  // 9^-16 / 33 is 1.6e-17
  static constexpr double least_mantissa = 0.70710678118654752, tiny = 2.2250738585072014e-308;
};

// log(1 + x) for -1/2 <= x <= 1, with all its digits around 0: 2 atanh(x / (2 + x)) by its Taylor series.
template <typename T>
inline Vector<T> log1p_near_zero(Vector<T> x) {
  constexpr int terms = LogConstants<T>::terms;
  const Vector<T> s = x / (x + T(2)), w = s * s;
  Vector<T> sum = broadcast<T>(T(2) / T(2 * terms + 1));
#pragma GCC unroll 16
  for (int term = terms - 1; term > 0; --term) sum = sum * w + T(2) / T(2 * term + 1);
  return s * w * sum + (s + s);
}

// x = 2^n (1 + rest) with sqrt(1/2) <= 1 + rest < sqrt(2), for normal numbers x.
template <typename T>
inline void split_exponent(Vector<T> x, Vector<T>& n, Vector<T>& rest) {
  using C = ExpConstants<T>;
  using Int = typename C::Int;
  typedef Int Ints __attribute__((vector_size(kVectorBytes)));
  const Vector<T> least = broadcast<T>(LogConstants<T>::least_mantissa), shift = broadcast<T>(C::shift);
  Ints bits, least_bits, n_bits;
  std::memcpy(&bits, &x, sizeof(bits));
  std::memcpy(&least_bits, &least, sizeof(bits));
  std::memcpy(&n_bits, &shift, sizeof(bits));
  const Ints whole = (bits - least_bits) >> C::mantissa;
  bits -= whole << C::mantissa;
  n_bits += whole;  // the low bits of `shift` count, as in exp
  std::memcpy(&rest, &bits, sizeof(bits));
  std::memcpy(&n, &n_bits, sizeof(bits));
  rest -= T(1);
  n -= C::shift;
}

template <typename T>
inline Vector<T> minimum(Vector<T> x, Vector<T> y) {
  return x < y ? x : y;
}

template <typename T>
struct Sigmoids {
  Vector<T> tail;   // exp(-|x|)
  Vector<T> plus;   // sigmoid(x)
  Vector<T> minus;  // sigmoid(-x) = 1 - sigmoid(x), with its own digits
};

template <typename T>
inline Sigmoids<T> sigmoids(Vector<T> x) {
  const Vector<T> tail = exp<T>(x < T(0) ? x : -x);
  const Vector<T> large = T(1) / (tail + T(1)), small = tail * large;
  return {tail, x < T(0) ? small : large, x < T(0) ? large : small};
}

}  // namespace longstream::LONGSTREAM_ISA
