// One source, several instruction sets: every *_kernels.cpp is compiled once for each of them, in a namespace of that
// name, and LONGSTREAM_PICK takes the best one that the processor has when it is called.
#pragma once

namespace longstream {

enum class Isa { base, avx2, avx512 };

Isa current_isa();  // library.cpp: the best the processor has, or what use_isa asked for

template <typename F>
F pick_isa(F base, F avx2, F avx512) {
  return current_isa() == Isa::avx512 ? avx512 : current_isa() == Isa::avx2 ? avx2 : base;
}

}  // namespace longstream

// Declare kernels: LONGSTREAM_KERNELS(void f(const FArguments<float>&); void g(...);) after the types they use.
// Call one: LONGSTREAM_PICK(f)(arguments). The cast chooses among overloads: LONGSTREAM_PICK_AS(void (*)(const A&), f).
#ifdef LONGSTREAM_X86
#define LONGSTREAM_KERNELS(...) \
  namespace longstream {        \
  namespace base {              \
  __VA_ARGS__                   \
  }                             \
  namespace avx2 {              \
  __VA_ARGS__                   \
  }                             \
  namespace avx512 {            \
  __VA_ARGS__                   \
  }                             \
  }
#define LONGSTREAM_PICK_AS(type, name) \
  ::longstream::pick_isa<type>(&::longstream::base::name, &::longstream::avx2::name, &::longstream::avx512::name)
#else
#define LONGSTREAM_KERNELS(...) \
  namespace longstream {        \
  namespace base {              \
  __VA_ARGS__                   \
  }                             \
  }
#define LONGSTREAM_PICK_AS(type, name) static_cast<type>(&::longstream::base::name)
#endif
#define LONGSTREAM_PICK(name) LONGSTREAM_PICK_AS(decltype(&::longstream::base::name), name)
