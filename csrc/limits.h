// What a processor can do at most: the rate of vector multiply-adds, which the benchmark holds the kernels against.
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

}  // namespace longstream

LONGSTREAM_KERNELS(int64_t multiply_adds(const MultiplyAddArguments& given);)  // returns how many a task makes
