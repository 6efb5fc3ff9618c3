// What a processor can do at most, which the benchmark holds the kernels against: the rate of vector multiply-adds, and
// that of reading memory.
#pragma once

#include "isa.h"
#include "parallel.h"

namespace longstream {

// Every one of `tasks` numbers is the sum of `repeats` rounds of independent multiply-adds, all of them in registers.
struct MultiplyAddArguments {
  float* sums;  // (tasks)
  int64_t tasks;
  int64_t repeats;
  ParallelFor parallel;
};

// Numbers in `tasks` neighboring parts, each read `repeats` times from its begin to its end and added up.
struct ReadArguments {
  const float* numbers;  // (n)
  int64_t n;
  float* sums;  // (tasks): `repeats` times the sum of each part
  int64_t tasks;
  int64_t repeats;
  ParallelFor parallel;
};

}  // namespace longstream

LONGSTREAM_KERNELS(int64_t multiply_adds(const MultiplyAddArguments& given);  // returns how many a task makes
                   void read_numbers(const ReadArguments& given);)
