// What every op's binding needs of torch: threads, checked pointers, new tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace longstream {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void torch_threads(int64_t n, int64_t grain, RangeFunction function, void* context) {
  torch::stable::parallel_for(0, n, grain, [=](int64_t begin, int64_t end) { function(begin, end, context); });
}

// Users meet the checks of longstream.ops, in words; these are the last line before a pointer is used.
template <typename T>
const T* input(const Tensor& x, const char* name, std::initializer_list<int64_t> shape) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous(), "longstream: ", name, " must be a contiguous CPU tensor");
  bool agrees = x.dim() == int64_t(shape.size());
  int64_t i = 0;
  for (int64_t size : shape) agrees = agrees && x.size(i++) == size;
  STD_TORCH_CHECK(agrees, "longstream: ", name, " has a wrong shape");
  return x.const_data_ptr<T>();  // checks the dtype
}

// Large new tensors get pages of 2 MB: to be given 8192 of 4 KB takes longer than to write 32 MB, four times as long on
// a virtual machine.
inline void ask_for_large_pages(const Tensor& x) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(x.mutable_data_ptr()) + page - 1) / page * page;
  const int64_t bytes = x.numel() * int64_t(x.element_size()) - int64_t(page);
  if (bytes >= int64_t(1) << 22) madvise(reinterpret_cast<void*>(begin), size_t(bytes) / page * page, MADV_HUGEPAGE);
#endif
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape) {
  Tensor x = torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()));
  ask_for_large_pages(x);
  return x;
}

// Where each sequence begins among all tokens of all rows, and the end; `bounds` empty: each row is one sequence.
inline std::vector<int64_t> token_bounds(const std::vector<int64_t>& bounds, int64_t B, int64_t T) {
  std::vector<int64_t> result = bounds;
  if (bounds.empty()) {
    for (int64_t b = 0; b <= B; ++b) result.push_back(b * T);
    return result;
  }
  bool rises = B == 1 && bounds.front() == 0 && bounds.back() == T;
  for (size_t n = 1; n < bounds.size(); ++n) rises = rises && bounds[n - 1] <= bounds[n];
  STD_TORCH_CHECK(rises, "longstream: wrong bounds");
  return result;
}

// Calls f with a float or a double, as the dtype is.
template <typename F>
void for_dtype(const Tensor& x, const F& f) {
  if (x.scalar_type() == ScalarType::Double) {
    f(double());
  } else {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "longstream: expected float32 or float64");
    f(float());
  }
}

}  // namespace longstream
