// For the bindings of elementwise ops: the pointer of a tensor that is read side by side with another.
#pragma once

#include "bind.h"

namespace longstream {

template <typename T>
const T* elements(const Tensor& x, const char* name, const Tensor& like) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous() && x.numel() == like.numel(), "longstream: ", name,
                  " must be a contiguous CPU tensor of the size of the others");
  return x.const_data_ptr<T>();  // checks the dtype
}

}  // namespace longstream
