// What the tests of all kernels share: threads, exact-size memory, comparison. Included once, by kernels_test.cpp.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "../isa.h"
#include "../parallel.h"

namespace longstream {
Isa chosen = Isa::base;
Isa current_isa() { return chosen; }
}  // namespace longstream

namespace {

using namespace longstream;

int thread_count = 1;
bool misaligned = false;
std::string now;  // what is being tested
int failures = 0;

// As torch shares work out: as many ranges as there are threads, but none below the grain.
void run_parallel(int64_t n, int64_t grain, RangeFunction function, void* context) {
  const int64_t most = grain > 0 ? (n + grain - 1) / grain : n;
  const int64_t ranges = most < thread_count ? most : thread_count;
  if (ranges <= 1) return function(0, n, context);
  const int64_t size = (n + ranges - 1) / ranges;
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < n; begin += size) {
    const int64_t end = begin + size < n ? begin + size : n;
    threads.emplace_back([=] { function(begin, end, context); });
  }
  for (std::thread& thread : threads) thread.join();
}

// n numbers at the end of an allocation: one step further is not ours. They start where torch's tensors do, at a
// multiple of 64 bytes, or, as views do, one element after it.
template <typename T>
class Numbers {
 public:
  explicit Numbers(int64_t n, T fill = std::numeric_limits<T>::quiet_NaN()) : count_(n) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, size_t(n + misaligned) * sizeof(T))) std::abort();
    memory_ = static_cast<T*>(memory);
    begin_ = memory_ + misaligned;
    for (int64_t i = 0; i < n; ++i) begin_[i] = fill;
  }
  Numbers(const Numbers& other) : Numbers(other.count_) {
    for (int64_t i = 0; i < count_; ++i) begin_[i] = other[i];
  }
  Numbers& operator=(const Numbers&) = delete;
  ~Numbers() { std::free(memory_); }
  operator T*() { return begin_; }
  operator const T*() const { return begin_; }
  int64_t size() const { return count_; }

 private:
  int64_t count_;
  T *memory_, *begin_;
};

uint64_t random_state = 1;

double uniform(double from, double to) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return from + (to - from) * double(random_state >> 11) / 9007199254740992.0;
}

template <typename T>
Numbers<T> signed_numbers(int64_t n) {
  Numbers<T> x(n);
  for (int64_t i = 0; i < n; ++i) x[i] = T(uniform(-1, 1));
  return x;
}

// Gates of all kinds: 0, 1, next to 1, slow, fast, and logs below what exp can hold.
template <typename T>
Numbers<T> log_gates(int64_t n) {
  Numbers<T> x(n);
  for (int64_t i = 0; i < n; ++i) {
    const double kind = uniform(0, 1);
    x[i] = T(kind < 0.05   ? -INFINITY
             : kind < 0.15 ? 0.0
             : kind < 0.2  ? -1000.0
             : kind < 0.5  ? -1e-3
                           : std::log(uniform(0.05, 0.999)));
  }
  return x;
}

// What one run wrote, by name, to be compared with a plain loop and with runs on more threads.
template <typename T>
struct Results {
  std::vector<std::pair<const char*, std::vector<T>>> all;
  void add(const char* name, const T* from, int64_t n) { all.emplace_back(name, std::vector<T>(from, from + n)); }
  void add(const char* name, const Numbers<T>& x) { add(name, x, x.size()); }
};

void fail(const char* name, const char* what) {
  std::printf("FAILED %s: %s %s\n", now.c_str(), name, what);
  ++failures;
}

using Exact = Results<double>;

template <typename T>
void compare(const Results<T>& got, const Exact& exact) {
  const double tolerance = std::is_same<T, float>::value ? 2e-4 : 1e-11;
  if (got.all.size() != exact.all.size()) return fail("results", "are not as many as expected");
  for (size_t i = 0; i < got.all.size(); ++i) {
    const auto& a = got.all[i].second;
    const auto& b = exact.all[i].second;
    if (a.size() != b.size()) {
      fail(got.all[i].first, "has another size");
      continue;
    }
    double largest = 1;
    for (double value : b) largest = std::fabs(value) > largest ? std::fabs(value) : largest;
    for (size_t j = 0; j < a.size(); ++j) {
      if (!(std::fabs(double(a[j]) - b[j]) <= tolerance * largest)) {  // NaN fails
        std::printf("  [%zu] %.9g, expected %.9g\n", j, double(a[j]), b[j]);
        fail(got.all[i].first, "is wrong");
        break;
      }
    }
  }
}

// Runs on 1, 2 and 3 threads and compares the first with the plain loop, and all bits of the others with the first.
template <typename T>
void check(const std::function<Results<T>()>& run, const Exact& exact) {
  thread_count = 1;
  const Results<T> first = run();
  compare(first, exact);
  for (thread_count = 2; thread_count <= 3; ++thread_count) {
    const Results<T> again = run();
    for (size_t i = 0; i < first.all.size(); ++i) {
      const auto &a = first.all[i].second, &b = again.all[i].second;
      if (!a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) != 0) {
        fail(first.all[i].first, "differs from one thread's");
      }
    }
  }
}

template <typename T>
std::vector<double> wide(const Numbers<T>& x) {
  return std::vector<double>(static_cast<const T*>(x), static_cast<const T*>(x) + x.size());
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace
