#include "rows.h"
#include "swiglu.h"
#include "vector_math.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

constexpr int64_t kPiece = 1024;  // elements between which threads may share; whole vectors of every instruction set

// body(at, count) for the vectors of 0 .. size - 1.
template <typename T, typename F>
void for_elements(int64_t size, ParallelFor threads, const F& body) {
  parallel_for(threads, rows_of(size, kPiece), grain_of(kPiece), [&](int64_t first, int64_t last) {
    const int64_t begin = first * kPiece;
    for_vectors<T>(smaller(size, last * kPiece) - begin, [&](int64_t d, int64_t count) { body(begin + d, count); });
  });
}

template <typename T>
void forward(const SwigluArguments<T>& a, ParallelFor threads) {
  for_elements<T>(a.count, threads, [&](int64_t at, int64_t count) {
    const Vector<T> gate = take(a.gate + at, count);
    put(a.y + at, gate * sigmoids<T>(gate).plus * take(a.up + at, count), count);
  });
}

template <typename T>
void backward(const SwigluBackwardArguments<T>& a, ParallelFor threads) {
  for_elements<T>(a.count, threads, [&](int64_t at, int64_t count) {
    const Vector<T> gate = take(a.gate + at, count), dy = take(a.dy + at, count);
    const Sigmoids<T> s = sigmoids<T>(gate);
    const Vector<T> silu = gate * s.plus;
    put(a.d_up + at, dy * silu, count);
    put(a.d_gate + at, dy * take(a.up + at, count) * (silu * s.minus + s.plus), count);
  });
}

}  // namespace

void swiglu(const SwigluArguments<float>& arguments, ParallelFor threads) { forward(arguments, threads); }
void swiglu(const SwigluArguments<double>& arguments, ParallelFor threads) { forward(arguments, threads); }
void swiglu_backward(const SwigluBackwardArguments<float>& arguments, ParallelFor threads) {
  backward(arguments, threads);
}
void swiglu_backward(const SwigluBackwardArguments<double>& arguments, ParallelFor threads) {
  backward(arguments, threads);
}

}  // namespace longstream::LONGSTREAM_ISA
