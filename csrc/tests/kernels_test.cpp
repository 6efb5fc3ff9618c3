// The kernels without torch, for the sanitizers: awkward sizes, every instruction set of this processor, 1 to 3
// threads, memory of the exact size with nothing after it, results that are NaN until they are written. Answers are
// held against plain loops in double, loosely: how many digits are right is what the tests in Python ask.
//
// Usage: kernels_test [isa ...]; without names, all that the processor has.
#include <cstdio>
#include <cstring>
#include <string>

#include "../limits.h"
#include "elementwise_test.h"
#include "long_conv_test.h"
#include "recurrences_test.h"
#include "stream_hyena_test.h"
#include "stream_test.h"
#include "testing.h"

namespace {

template <typename... Values>
std::string name(const char* op, Values... values) {
  std::string text = op;
  ((text += ' ', text += std::to_string(values)), ...);
  return text + (misaligned ? " misaligned" : "");
}

#define RUN(function, ...)                     \
  do {                                         \
    now = base + name(#function, __VA_ARGS__); \
    function<T>(__VA_ARGS__);                  \
  } while (0)

template <typename T>
void test_all(const std::string& base) {
  const int64_t lengths[] = {0, 1, 3, 4, 63, 64, 65, 131};
  for (int64_t t : lengths) RUN(test_gla, 2, t, 2, 5, 7, 64, 3);
  for (int64_t size : {1, 2, 3, 8, 15, 17, 31, 33, 65, 129}) {
    const int64_t other = 1 + (size * 7 + 3) % 40;
    RUN(test_gla, 1, 67, 1, size, other, 64, 1);
    RUN(test_gla, 2, 5, 3, other, size, 64, 5);
  }
  RUN(test_gla, 1, 200, 1, 32, 48, 128, 2);
  RUN(test_gla, 0, 5, 1, 3, 4, 64, 2);
  now = base + "test_gla packed";
  test_gla<T>(7, 0, 2, 6, 19, 64, 4, {0, 0, 5, 6, 6, 71, 201, 201});

  const bool past_cache = !misaligned;  // is for outputs, which are new tensors, aligned as torch aligns
  for (const std::vector<int64_t>& bounds :
       {std::vector<int64_t>{0, 0}, {0, 1}, {0, 67}, {0, 65, 130, 195}, {0, 0, 5, 6, 6, 71, 80, 80}}) {
    for (int64_t D : {1, 3, 8, 17, 70}) {
      for (int variant = 0; variant < 8; ++variant) {
        now = base + name("test_gated_scan", int(bounds.back()), D, variant);
        test_gated_scan<T>(bounds, D, variant & 1, variant & 2, past_cache && (variant & 4));
      }
      for (int64_t W : {1, 2, 4, 9}) {
        now = base + name("test_short_conv", int(bounds.back()), D, W);
        test_short_conv<T>(bounds, D, W, W & 1, D & 1);
        test_short_conv<T>(bounds, D, W, !(W & 1), W == 4);
      }
    }
  }
  now = base + "test_gated_scan of a long row";  // long enough for several threads
  test_gated_scan<T>({0, 5000}, 19, false, false, false);
  test_gated_scan<T>({0, 2500, 5000}, 7, true, true, past_cache);
  test_gated_scan<T>({0, 2500, 5000}, 16, false, true, past_cache);
  now = base + "test_short_conv of a long row";
  test_short_conv<T>({0, 3001, 6000}, 21, 4, true, true);

  for (int64_t leaf : {0, 1, 2, 3, 5, 6, 10}) {
    // B, S, D, K, first, count, tail, skip_at
    const LongConvCase cases[] = {
        {1, 1, 1, 1, 0, 1, 0, 0, leaf, 1},       {2, 1, 3, 4, 0, 1, 1, 0, leaf, 2},
        {3, 7, 5, 7, 0, 7, 7, 0, leaf, 3, true}, {2, 33, 17, 20, 0, 33, 33, 0, leaf, 2},
        {9, 40, 3, 40, 0, 40, 40, -1, leaf, 3},  {2, 31, 9, 64, 33, 31, 0, 0, leaf, 3, true},
        {1, 200, 33, 77, 50, 60, 0, 9, leaf, 2}, {2, 64, 19, 128, 64, 64, 0, -1, leaf, 3},
        {1, 129, 16, 9, 0, 129, 8, 0, leaf, 4},
    };
    for (const LongConvCase& c : cases) {
      now = base + name("test_long_conv", c.B, c.S, c.D, c.K, c.first, c.count, c.tail, c.skip_at, c.leaf);
      test_long_conv<T>(c);
    }
  }
  now = base + "test_long_conv of a long row";
  test_long_conv<T>({1, 3000, 3, 2900, 0, 3000, 3000, 0, misaligned ? 6 : 1, 2});

  for (int64_t D : {1, 5, 16, 37, 130}) {
    for (int64_t rows : {0, 1, 64, 65, 400}) {
      for (int variant = 0; variant < 4; ++variant) {
        RUN(test_gates, rows, D, bool(variant & 1), bool(variant & 2));
        RUN(test_rms_norm, rows, D, bool(variant & 1), bool(variant & 2));
      }
      RUN(test_swiglu, rows * D);
    }
  }
  RUN(test_gates, 700, 66, true, true);
  RUN(test_rms_norm, 700, 66, true, true);
  RUN(test_swiglu, 50001);
}

void test_limits() {
  Numbers<float> sums(5);
  const int64_t made = LONGSTREAM_PICK(multiply_adds)(MultiplyAddArguments{sums, 5, 10, run_parallel});
  if (made <= 0) fail("multiply_adds", "makes none");
  for (int64_t n : {0, 1, 127, 128, 129, 1000, 4099}) {
    for (int64_t tasks : {1, 2, 5}) {
      Numbers<float> numbers(n), parts(tasks);
      float total = 0;
      for (int64_t i = 0; i < n; ++i) numbers[i] = float(i % 7);  // sums of which are exact
      LONGSTREAM_PICK(read_numbers)(ReadArguments{numbers, n, parts, tasks, 3, run_parallel});
      for (int64_t i = 0; i < n; ++i) total -= 3 * float(i % 7);
      for (int64_t task = 0; task < tasks; ++task) total += parts[task];
      if (total != 0) fail("read_numbers", "skips or repeats some");
    }
  }
}

bool has(Isa isa) {
#ifdef LONGSTREAM_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::base;
}

}  // namespace

int main(int count, char** arguments) {
  const char* names[] = {"base", "avx2", "avx512"};
  for (Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
    bool wanted = count == 1;
    for (int i = 1; i < count; ++i) wanted = wanted || !std::strcmp(arguments[i], names[int(isa)]);
    if (!wanted) continue;
    if (!has(isa)) {
      std::printf("%s: not on this processor\n", names[int(isa)]);
      continue;
    }
    chosen = isa;
    for (int odd = 0; odd < 2; ++odd) {
      misaligned = odd;
      test_stream(std::string(names[int(isa)]) + (odd ? " misaligned " : " "));
      test_all<float>(std::string(names[int(isa)]) + " float ");
      test_all<double>(std::string(names[int(isa)]) + " double ");
    }
    now = std::string(names[int(isa)]) + " limits";
    test_limits();
    test_stream_hyena(std::string(names[int(isa)]) + " ");
    std::printf("%s: %s\n", names[int(isa)], failures ? "FAILED" : "passed");
  }
  return failures != 0;
}
