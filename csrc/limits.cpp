#include "limits.h"

#include "bind.h"

namespace longstream {
namespace {

int64_t multiply_adds(Tensor sums, int64_t repeats) {
  STD_TORCH_CHECK(sums.is_contiguous() && sums.dim() == 1, "longstream: sums must be a contiguous row");
  const MultiplyAddArguments given{sums.mutable_data_ptr<float>(), sums.size(0), repeats, &torch_threads};
  return LONGSTREAM_PICK(multiply_adds)(given);
}

void read_numbers(Tensor numbers, Tensor sums, int64_t repeats) {
  STD_TORCH_CHECK(sums.is_cpu() && sums.is_contiguous() && sums.dim() == 1 && sums.size(0) > 0,
                  "longstream: sums must be a contiguous row of at least one number");
  const float* from = input<float>(numbers, "numbers", {numbers.numel()});
  float* to = sums.mutable_data_ptr<float>();
  const ReadArguments given{from, numbers.numel(), to, sums.size(0), repeats, &torch_threads};
  LONGSTREAM_PICK(read_numbers)(given);
}

}  // namespace
}  // namespace longstream

STABLE_TORCH_LIBRARY_FRAGMENT(longstream, m) {
  m.def("multiply_adds(Tensor(a!) sums, int repeats) -> int");
  m.def("read_numbers(Tensor numbers, Tensor(a!) sums, int repeats) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CPU, m) {
  m.impl("multiply_adds", TORCH_BOX(&longstream::multiply_adds));
  m.impl("read_numbers", TORCH_BOX(&longstream::read_numbers));
}
