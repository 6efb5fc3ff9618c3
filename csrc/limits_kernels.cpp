#include "limits.h"

#include "simd.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

// Sums that wait for nothing but themselves: a multiply-add takes 4 or 5 cycles and two can begin in each, so 10 or
// more hide the wait. 12 leave registers for the factors where there are 16 in all.
constexpr int kSums = 12;

// Sums of a reading thread: more lines on their way from memory than one sum would wait for.
constexpr int kReads = 8;

}  // namespace

int64_t multiply_adds(const MultiplyAddArguments& given) {
  parallel_for(given.parallel, given.tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      Vector<float> sums[kSums];
      for (int i = 0; i < kSums; ++i) sums[i] = broadcast(float(i + 1));
      // Below 1, so that the sums neither overflow nor come to rest among the slow numbers near zero.
      Vector<float> factor = broadcast(0.999f + 1e-6f * float(task % 7)), term = broadcast(1e-3f);
      for (int64_t repeat = 0; repeat < given.repeats; ++repeat) {
#pragma GCC unroll 12
        for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + term;
      }
      Vector<float> all = sums[0];
      for (int i = 1; i < kSums; ++i) all += sums[i];
      given.sums[task] = sum_lanes<float>(all);
    }
  });
  return given.repeats * kSums * kLanes<float>;
}

void read_numbers(const ReadArguments& given) {
  constexpr int64_t lanes = kLanes<float>, block = kReads * lanes;
  const int64_t blocks = given.n / block, each = (blocks + given.tasks - 1) / given.tasks * block;
  parallel_for(given.parallel, given.tasks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t begin = task * each < blocks * block ? task * each : blocks * block;
      const int64_t end = begin + each < blocks * block ? begin + each : blocks * block;
      Vector<float> sums[kReads] = {};
      float rest = 0;
      for (int64_t repeat = 0; repeat < given.repeats; ++repeat) {
        for (int64_t i = begin; i < end; i += block) {
#pragma GCC unroll 8
          for (int j = 0; j < kReads; ++j) sums[j] += load(given.numbers + i + j * lanes);
        }
        if (task + 1 == given.tasks) {
          for (int64_t i = blocks * block; i < given.n; ++i) rest += given.numbers[i];
        }
      }
      for (int j = 1; j < kReads; ++j) sums[0] += sums[j];
      given.sums[task] = sum_lanes<float>(sums[0]) + rest;
    }
  });
}

}  // namespace longstream::LONGSTREAM_ISA
