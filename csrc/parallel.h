// Threads as an argument: the kernels know nothing of torch, so that they can be tested without it.
#pragma once

#include <cstdint>

namespace longstream {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);
// Calls the function on ranges that cover 0 .. n - 1, each of at least `grain` numbers, perhaps at the same time.
using ParallelFor = void (*)(int64_t n, int64_t grain, RangeFunction function, void* context);

template <typename F>
void parallel_for(ParallelFor run, int64_t n, int64_t grain, const F& body) {
  if (n <= 0) return;
  run(
      n, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace longstream
