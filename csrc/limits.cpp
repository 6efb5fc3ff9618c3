#include "limits.h"

#include "bind.h"

namespace longstream {
namespace {

int64_t multiply_adds(Tensor sums, int64_t repeats) {
  STD_TORCH_CHECK(sums.is_contiguous() && sums.dim() == 1, "longstream: sums must be a contiguous row");
  const MultiplyAddArguments given{sums.mutable_data_ptr<float>(), sums.size(0), repeats, &torch_threads};
  return LONGSTREAM_PICK(multiply_adds)(given);
}

}  // namespace
}  // namespace longstream

STABLE_TORCH_LIBRARY_FRAGMENT(longstream, m) { m.def("multiply_adds(Tensor(a!) sums, int repeats) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(longstream, CPU, m) { m.impl("multiply_adds", TORCH_BOX(&longstream::multiply_adds)); }
