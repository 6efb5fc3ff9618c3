// The torch library `longstream`: its ops stand with their kernels, here is what they share.
#include "bind.h"

#include <atomic>
#include <string>

namespace longstream {
namespace {

Isa best_isa() {
#ifdef LONGSTREAM_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::base;
}

std::atomic<Isa> chosen{best_isa()};

const char* name_of(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "base"; }

std::string isa() { return name_of(current_isa()); }

void use_isa(std::string name) {
  for (Isa candidate : {Isa::base, Isa::avx2, Isa::avx512}) {
    if (name == name_of(candidate)) {
      STD_TORCH_CHECK(candidate <= best_isa(), "longstream: this processor has no ", name);
      chosen = candidate;
      return;
    }
  }
  STD_TORCH_CHECK(false, "longstream: isa must be base, avx2 or avx512, got ", name);
}

}  // namespace

Isa current_isa() { return chosen.load(std::memory_order_relaxed); }

}  // namespace longstream

STABLE_TORCH_LIBRARY(longstream, m) {
  m.def("isa() -> str");
  m.def("use_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(longstream, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&longstream::isa));
  m.impl("use_isa", TORCH_BOX(&longstream::use_isa));
}
