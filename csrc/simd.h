// Vectors as wide as the instruction set has them, by compiler extensions of gcc and clang. For *_kernels.cpp only: all
// of it stands in the namespace of the instruction set, because its code differs from one to the next.
#pragma once

#include <cstdint>
#include <cstring>

namespace longstream::LONGSTREAM_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;  // SSE2, NEON
#endif

template <typename T, int bytes = kVectorBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <typename T>
inline Vector<T> load(const T* from) {  // from anywhere: no alignment is asked for
  Vector<T> x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

template <typename T>
inline void store(T* to, Vector<T> x) {
  std::memcpy(to, &x, sizeof(x));
}

template <typename T>
inline Vector<T> load_part(const T* from, int64_t count) {  // the first count lanes, zeros after them
  Vector<T> x = {};
  std::memcpy(&x, from, size_t(count) * sizeof(T));
  return x;
}

template <typename T>
inline void store_part(T* to, Vector<T> x, int64_t count) {
  std::memcpy(to, &x, size_t(count) * sizeof(T));
}

template <typename T>
inline Vector<T> broadcast(T x) {
  return x - Vector<T>{};
}

template <typename T>
inline T sum_lanes(Vector<T> x) {
  T lanes[kLanes<T>];
  store(lanes, x);
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// 1 / n! for the series of exp.
template <typename T>
struct InverseFactorials {
  T of[16];
  constexpr InverseFactorials() : of() {
    double x = 1;
    for (int n = 0; n < 16; x /= ++n) of[n] = T(x);
  }
};

// exp(x) = 2^n exp(r), n the nearest integer to x / ln 2 and |r| <= ln 2 / 2, exp(r) by its Taylor series. Adding and
// taking away `shift` rounds to an integer and leaves n in the low bits. 2^n goes in by two factors, so that results
// below the normal numbers come out too. exp(0) is 1, exp(-inf) is 0, NaN stays NaN. Within 0.9 units in the last place
// (measured on a million numbers), 1.2 where there is no fused multiply-add.
template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Int = int32_t;
  static constexpr int mantissa = 23, bias = 127, terms = 7;
  static constexpr float shift = 12582912.f, log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float least = -104.f, most = 89.f;
};

template <>
struct ExpConstants<double> {
  using Int = int64_t;
  static constexpr int mantissa = 52, bias = 1023, terms = 13;
  static constexpr double shift = 6755399441055744.0, log2e = 1.4426950408889634074;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double least = -746.0, most = 710.0;
};

template <typename T>
inline Vector<T> exp(Vector<T> x) {
  using C = ExpConstants<T>;
  using Int = typename C::Int;
  typedef Int Ints __attribute__((vector_size(kVectorBytes)));
  x = x < C::least ? broadcast<T>(C::least) : x;
  x = x > C::most ? broadcast<T>(C::most) : x;
  const Vector<T> shifted = x * C::log2e + C::shift;
  const Vector<T> n = shifted - C::shift;
  const Vector<T> r = (x - n * C::ln2_high) - n * C::ln2_low;
  constexpr InverseFactorials<T> inverse_factorial;
  Vector<T> sum = broadcast<T>(inverse_factorial.of[C::terms]);
#pragma GCC unroll 16
  for (int i = C::terms - 1; i >= 0; --i) sum = sum * r + inverse_factorial.of[i];
  Ints bits, shift_bits;
  const Vector<T> shift = broadcast<T>(C::shift);
  std::memcpy(&bits, &shifted, sizeof(bits));
  std::memcpy(&shift_bits, &shift, sizeof(bits));
  const Ints whole = bits - shift_bits, half = whole >> 1;
  const Ints first = (half + C::bias) << C::mantissa, second = (whole - half + C::bias) << C::mantissa;
  Vector<T> first_factor, second_factor;
  std::memcpy(&first_factor, &first, sizeof(first));
  std::memcpy(&second_factor, &second, sizeof(second));
  return sum * first_factor * second_factor;
}

}  // namespace longstream::LONGSTREAM_ISA
