// What every op's binding needs of torch: threads, checked pointers, new tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

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

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()));
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
