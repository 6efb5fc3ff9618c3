// The kernels without torch, for the sanitizers: awkward sizes, every instruction set of this processor, 1 to 3
// threads, memory of the exact size with nothing after it, results that are NaN until they are written. Answers are
// held against plain loops in double, loosely: how many digits are right is what the tests in Python ask.
//
// Usage: kernels_test [isa ...]; without names, all that the processor has.
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

#include "../blocks.h"
#include "../gated_scan.h"
#include "../gates.h"
#include "../gla.h"
#include "../limits.h"
#include "../long_conv.h"
#include "../rms_norm.h"
#include "../short_conv.h"
#include "../swiglu.h"

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

// gla

template <typename T>
void test_gla(int64_t N, int64_t T_, int64_t H, int64_t K, int64_t V, int64_t spacing, int64_t workers,
              const std::vector<int64_t>& bounds = {}) {
  const int64_t tokens = bounds.empty() ? N * T_ : bounds.back();
  GlaSizes sizes{N, T_, H, K, V, bounds.empty() ? nullptr : bounds.data(), spacing, workers, run_parallel};
  const auto q = signed_numbers<T>(tokens * H * K), k = signed_numbers<T>(tokens * H * K);
  const auto v = signed_numbers<T>(tokens * H * V), log_forget = log_gates<T>(tokens * H * K);
  const auto initial = signed_numbers<T>(N * H * K * V), dfinal = signed_numbers<T>(N * H * K * V);
  const auto dout = signed_numbers<T>(tokens * H * V);

  const auto view = [&](const T* data, int64_t width) { return GlaTokens<T>{data, T_ * H * width, H * width, width}; };
  const auto run = [&] {
    Numbers<T> out(tokens * H * V), final(N * H * K * V), states(tokens / spacing * H * K * V);
    Numbers<T> scratch(workers * LONGSTREAM_PICK(gla_forward_scratch)(sizes));
    GlaForward<T> forward{sizes,   view(q, K), view(k, K), view(v, V), view(log_forget, K),
                          initial, out,        final,      states,     scratch};
    LONGSTREAM_PICK_AS(void (*)(const GlaForward<T>&), gla_forward)(forward);

    GlaSizes plain_sizes = sizes;  // a forward pass that keeps nothing
    plain_sizes.spacing = 0;
    Numbers<T> again(tokens * H * V), again_final(N * H * K * V);
    Numbers<T> other(workers * LONGSTREAM_PICK(gla_forward_scratch)(plain_sizes));
    GlaForward<T> plain{plain_sizes, view(q, K), view(k, K),  view(v, V), view(log_forget, K),
                        initial,     again,      again_final, nullptr,    other};
    LONGSTREAM_PICK_AS(void (*)(const GlaForward<T>&), gla_forward)(plain);
    if (out.size() && std::memcmp(out, again, size_t(out.size()) * sizeof(T))) fail("out", "depends on keeping states");

    Numbers<T> dq(q.size()), dk(k.size()), dv(v.size()), dlog(q.size()), dinitial(initial.size());
    Numbers<T> backward_scratch(workers * LONGSTREAM_PICK(gla_backward_scratch)(sizes));
    GlaBackward<T> backward{
        sizes, view(q, K), view(k, K), view(v, V), view(log_forget, K), view(dout, V), initial, states, dfinal, dq,
        dk,    dv,         dlog,       dinitial,   backward_scratch};
    LONGSTREAM_PICK_AS(void (*)(const GlaBackward<T>&), gla_backward)(backward);
    Results<T> results;
    for (const auto& result : {std::make_pair("out", &out),
                               {"final", &final},
                               {"dq", &dq},
                               {"dk", &dk},
                               {"dv", &dv},
                               {"dlog_forget", &dlog},
                               {"dinitial", &dinitial}}) {
      results.add(result.first, *result.second);
    }
    return results;
  };

  std::vector<double> out(size_t(tokens * H * V)), final = wide(initial), dstate = wide(dfinal);
  std::vector<double> dq(size_t(q.size())), dk(size_t(q.size())), dv(size_t(v.size())), dlog(size_t(q.size()));
  for (int64_t n = 0; n < N; ++n) {
    const int64_t first = bounds.empty() ? n * T_ : bounds[size_t(n)];
    const int64_t length = bounds.empty() ? T_ : bounds[size_t(n + 1)] - first;
    for (int64_t h = 0; h < H; ++h) {
      double* S = final.data() + (n * H + h) * K * V;
      double* dS = dstate.data() + (n * H + h) * K * V;
      std::vector<std::vector<double>> before;
      for (int64_t t = first; t < first + length; ++t) {
        before.emplace_back(S, S + K * V);
        for (int64_t i = 0; i < K; ++i) {
          const int64_t at = (t * H + h) * K + i;
          for (int64_t j = 0; j < V; ++j) {
            S[i * V + j] = std::exp(double(log_forget[at])) * S[i * V + j] + double(k[at]) * v[(t * H + h) * V + j];
            out[size_t((t * H + h) * V + j)] += q[at] * S[i * V + j];
          }
        }
      }
      before.emplace_back(S, S + K * V);
      for (int64_t t = first + length - 1; t >= first; --t) {
        const std::vector<double>&old = before[size_t(t - first)], &next = before[size_t(t - first + 1)];
        for (int64_t i = 0; i < K; ++i) {
          const int64_t at = (t * H + h) * K + i;
          const double forget = std::exp(double(log_forget[at]));
          for (int64_t j = 0; j < V; ++j) {
            const int64_t ij = i * V + j, column = (t * H + h) * V + j;
            dq[size_t(at)] += next[size_t(ij)] * dout[column];
            dS[ij] += double(q[at]) * dout[column];
            dk[size_t(at)] += dS[ij] * v[column];
            dv[size_t(column)] += dS[ij] * k[at];
            dlog[size_t(at)] += forget * dS[ij] * old[size_t(ij)];
            dS[ij] *= forget;
          }
        }
      }
    }
  }
  check<T>(run, Exact{{{"out", out},
                       {"final", final},
                       {"dq", dq},
                       {"dk", dk},
                       {"dv", dv},
                       {"dlog_forget", dlog},
                       {"dinitial", dstate}}});
}

// gated_scan

template <typename T>
void test_gated_scan(const std::vector<int64_t>& bounds, int64_t D, bool is_complex, bool reverse, bool past_cache) {
  const int64_t N = int64_t(bounds.size()) - 1, tokens = bounds.back(), P = is_complex ? 2 : 1;
  const ScanShape shape{N, D, bounds.data(), reverse};
  const auto x = signed_numbers<T>(tokens * P * D), log_forget = log_gates<T>(tokens * D);
  const auto initial = signed_numbers<T>(N * P * D), dout = signed_numbers<T>(tokens * P * D);
  const auto dfinal = signed_numbers<T>(N * P * D);
  Numbers<T> turn(4 * D);
  std::vector<double> cosine(size_t(D), 1.0), sine(size_t(D), 0.0);
  for (int64_t d = 0; d < D; ++d) {
    const double theta = uniform(-3.2, 3.2);
    turn[d] = T(std::cos(theta));
    turn[D + d] = T(std::sin(theta));
    turn[2 * D + d] = T(std::cos(theta) - double(turn[d]));
    turn[3 * D + d] = T(std::sin(theta) - double(turn[D + d]));
    if (is_complex) cosine[size_t(d)] = std::cos(theta), sine[size_t(d)] = std::sin(theta);
  }
  const T* turn_given = is_complex ? static_cast<const T*>(turn) : nullptr;

  const auto run = [&] {
    Numbers<T> out(x.size()), final(initial.size()), dx(x.size()), dlog(log_forget.size()), dinitial(initial.size());
    Numbers<double> dtheta(N * D);
    const GatedScan<T> forward{shape, x, log_forget, initial, turn_given, out, final, past_cache};
    LONGSTREAM_PICK_AS(void (*)(const GatedScan<T>&, ParallelFor), gated_scan)(forward, run_parallel);
    const GatedScanBackward<T> backward{shape,
                                        dout,
                                        dfinal,
                                        log_forget,
                                        initial,
                                        turn_given,
                                        out,
                                        dx,
                                        dlog,
                                        dinitial,
                                        is_complex ? static_cast<double*>(dtheta) : nullptr,
                                        past_cache};
    LONGSTREAM_PICK_AS(void (*)(const GatedScanBackward<T>&, ParallelFor), gated_scan_backward)(backward, run_parallel);
    Results<T> results;
    results.add("out", out);
    results.add("final", final);
    results.add("dx", dx);
    results.add("dlog_forget", dlog);
    results.add("dinitial", dinitial);
    if (is_complex) {
      Numbers<T> narrow(N * D);
      for (int64_t i = 0; i < N * D; ++i) narrow[i] = T(dtheta[i]);
      results.add("dtheta", narrow);
    }
    return results;
  };

  std::vector<double> out(size_t(x.size())), final = wide(initial), dx(size_t(x.size())),
                                             dlog(size_t(log_forget.size()));
  std::vector<double> dinitial = wide(dfinal), dtheta(size_t(N * D));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t d = 0; d < D; ++d) {
      double c = cosine[size_t(d)], s = sine[size_t(d)];
      double h[2] = {0, 0}, g[2] = {0, 0};
      for (int64_t p = 0; p < P; ++p) h[p] = initial[(n * P + p) * D + d], g[p] = dfinal[(n * P + p) * D + d];
      std::vector<double> turned;  // exp(i theta) h_{t-1} of every step
      const int64_t length = bounds[size_t(n + 1)] - bounds[size_t(n)];
      const auto token = [&](int64_t step) { return bounds[size_t(n)] + (reverse ? length - 1 - step : step); };
      for (int64_t step = 0; step < length; ++step) {
        const int64_t t = token(step);
        const double forget = std::exp(double(log_forget[t * D + d])),
                     old[2] = {c * h[0] - s * h[1], s * h[0] + c * h[1]};
        for (int64_t p = 0; p < P; ++p) {
          turned.push_back(old[p]);
          h[p] = forget * old[p] + x[(t * P + p) * D + d];
          out[size_t((t * P + p) * D + d)] = h[p];
        }
      }
      for (int64_t step = length - 1; step >= 0; --step) {
        const int64_t t = token(step);
        const double forget = std::exp(double(log_forget[t * D + d]));
        double old[2] = {turned[size_t(step * P)], is_complex ? turned[size_t(step * P + 1)] : 0};
        for (int64_t p = 0; p < P; ++p) {
          g[p] += dout[(t * P + p) * D + d];
          dx[size_t((t * P + p) * D + d)] = g[p];
        }
        dlog[size_t(t * D + d)] = forget * (g[0] * old[0] + g[1] * old[1]);
        dtheta[size_t(n * D + d)] += forget * (g[1] * old[0] - g[0] * old[1]);
        const double back[2] = {forget * (c * g[0] + s * g[1]), forget * (-s * g[0] + c * g[1])};
        g[0] = back[0], g[1] = is_complex ? back[1] : 0;
      }
      for (int64_t p = 0; p < P; ++p)
        final[size_t((n * P + p) * D + d)] = h[p], dinitial[size_t((n * P + p) * D + d)] = g[p];
    }
  }
  Exact exact{{{"out", out}, {"final", final}, {"dx", dx}, {"dlog_forget", dlog}, {"dinitial", dinitial}}};
  if (is_complex) exact.all.emplace_back("dtheta", dtheta);
  check<T>(run, exact);
}

// short_conv

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <typename T>
void test_short_conv(const std::vector<int64_t>& bounds, int64_t D, int64_t W, bool silu, bool has_bias) {
  const int64_t N = int64_t(bounds.size()) - 1, tokens = bounds.back();
  const ConvShape shape{N, D, W, bounds.data(), silu};
  const auto x = signed_numbers<T>(tokens * D), weight = signed_numbers<T>(W * D), bias = signed_numbers<T>(D);
  const auto initial = signed_numbers<T>(N * (W - 1) * D), dfinal = signed_numbers<T>(N * (W - 1) * D);
  const auto dout = signed_numbers<T>(tokens * D);
  const T* bias_given = has_bias ? static_cast<const T*>(bias) : nullptr;

  const auto run = [&] {
    Numbers<T> out(x.size()), final(initial.size()), dx(x.size()), dinitial(initial.size()), narrow(N * (W + 1) * D);
    Numbers<double> dweight(N * (W + 1) * D);
    LONGSTREAM_PICK_AS(void (*)(const ShortConv<T>&, ParallelFor), short_conv)
    (ShortConv<T>{shape, x, weight, bias_given, initial, out, final}, run_parallel);
    LONGSTREAM_PICK_AS(void (*)(const ShortConvBackward<T>&, ParallelFor), short_conv_backward)
    (ShortConvBackward<T>{shape, dout, dfinal, x, weight, bias_given, initial, dx, dinitial, dweight}, run_parallel);
    for (int64_t i = 0; i < narrow.size(); ++i) narrow[i] = T(dweight[i]);
    Results<T> results;
    results.add("out", out);
    results.add("final", final);
    results.add("dx", dx);
    results.add("dinitial", dinitial);
    for (int64_t n = 0; n < N; ++n) {  // without a bias, nothing is promised of its row
      results.add("dweight", narrow + n * (W + 1) * D, (W + has_bias) * D);
    }
    return results;
  };

  std::vector<double> out(size_t(x.size())), final(size_t(initial.size())), dx(size_t(x.size())), dinitial(final);
  std::vector<std::vector<double>> dweight;
  for (int64_t n = 0; n < N; ++n) {
    const int64_t first = bounds[size_t(n)], length = bounds[size_t(n + 1)] - first, past = W - 1;
    std::vector<double> dw(size_t((W + has_bias) * D));
    for (int64_t d = 0; d < D; ++d) {
      std::vector<double> stream, dstream(size_t(past + length));
      for (int64_t i = 0; i < past; ++i) stream.push_back(initial[(n * past + i) * D + d]);
      for (int64_t t = 0; t < length; ++t) stream.push_back(x[(first + t) * D + d]);
      for (int64_t i = 0; i < past; ++i) {
        final[size_t((n * past + i) * D + d)] = stream[size_t(length + i)];
        dstream[size_t(length + i)] += dfinal[(n * past + i) * D + d];
      }
      for (int64_t t = 0; t < length; ++t) {
        double y = has_bias ? double(bias[d]) : 0.0;
        for (int64_t j = 0; j < W; ++j) y += double(weight[j * D + d]) * stream[size_t(t + j)];
        out[size_t((first + t) * D + d)] = silu ? y * sigmoid(y) : y;
        const double slope = silu ? sigmoid(y) * (1 + y * (1 - sigmoid(y))) : 1.0;
        const double dy = slope * dout[(first + t) * D + d];
        for (int64_t j = 0; j < W; ++j) {
          dw[size_t(j * D + d)] += dy * stream[size_t(t + j)];
          dstream[size_t(t + j)] += dy * weight[j * D + d];
        }
        if (has_bias) dw[size_t(W * D + d)] += dy;
      }
      for (int64_t i = 0; i < past; ++i) dinitial[size_t((n * past + i) * D + d)] = dstream[size_t(i)];
      for (int64_t t = 0; t < length; ++t) dx[size_t((first + t) * D + d)] = dstream[size_t(past + t)];
    }
    dweight.push_back(dw);
  }
  Exact exact{{{"out", out}, {"final", final}, {"dx", dx}, {"dinitial", dinitial}}};
  for (const auto& dw : dweight) exact.all.emplace_back("dweight", dw);
  check<T>(run, exact);
}

// long_conv

// Rows (B, count, D) with a gap after each, from number `at` of a signal on.
template <typename T>
struct Signal {
  int64_t D, at, count, stride;
  Numbers<T> data;

  Signal(int64_t B, int64_t at, int64_t count, int64_t D, int64_t gap, bool random)
      : D(D), at(at), count(count), stride(D + gap), data(B * count > 0 ? (B * count - 1) * stride + D : 0) {
    for (int64_t i = 0; random && i < data.size(); ++i) {
      if (i % stride < D) data[i] = T(uniform(-1, 1));
    }
  }
  T* row(int64_t i) { return static_cast<T*>(data) + i * stride; }
  double number(int64_t b, int64_t n, int64_t d) const {  // zero outside
    return at <= n && n < at + count ? double(data[(b * count + n - at) * stride + d]) : 0.0;
  }
  LongConvRows<T> rows() { return {count ? row(0) : nullptr, count * stride, stride, at, count}; }
  LongConvRows<const T> const_rows() const {
    return {count ? static_cast<const T*>(data) : nullptr, count * stride, stride, at, count};
  }
  Numbers<T> dense(int64_t B) {
    Numbers<T> all(B * count * D);
    for (int64_t i = 0; i < all.size(); ++i) all[i] = row(i / D)[i % D];
    return all;
  }
};

struct LongConvCase {
  int64_t B, S, D, K, first, count, tail, skip_at, leaf, workers;  // skip_at < 0: no skip; leaf 0: sums as written
  bool all_wishes = false;  // every choice of gradients, and of what they are gradients of
};

template <typename T>
void test_long_conv(const LongConvCase& c) {
  const int64_t B = c.B, S = c.S, D = c.D, K = c.K, first = c.first, meeting = S + K - 1;
  const auto cut = [&](int64_t at, int64_t count) {  // numbers from there on of which not all are zero by themselves
    return at + count < meeting ? count : meeting > at ? meeting - at : 0;
  };
  const int64_t counts[] = {cut(first, c.count), cut(first + c.count, c.tail)}, ats[] = {first, first + c.count};
  const int64_t end = ats[1] + counts[1], needed[] = {meeting - first, K, S, first + c.count < meeting ? end : meeting};
  FftSize size{0, 0, 0};
  if (c.leaf) {
    size = {c.leaf, 2, 16 * c.leaf};
    for (int64_t numbers : needed) {
      while (2 * size.M < numbers) size = {c.leaf, size.levels + 1, 4 * size.M};
    }
  }
  const int64_t lanes = LONGSTREAM_PICK(long_conv_lanes)(sizeof(T));
  const Signal<T> x(B, 0, S, D, 3, true);
  const Signal<T> given[] = {Signal<T>(B, ats[0], counts[0], D, 0, true), Signal<T>(B, ats[1], counts[1], D, 2, true)};
  const int64_t taps_stride = K + 2;
  Numbers<T> taps((D - 1) * taps_stride + K), twiddles(c.leaf ? 6 * long_conv_nodes(size) : 0);
  for (int64_t i = 0; i < taps.size(); ++i) {
    if (i % taps_stride < K) taps[i] = T(uniform(-1, 1) / std::sqrt(double(K)));
  }
  const auto skip = signed_numbers<T>(D);
  if (c.leaf) fill_long_conv_twiddles<T>(twiddles, long_conv_nodes(size));

  LongConvArguments<T> common = {};
  common.size = size, common.twiddles = twiddles, common.B = B, common.D = D, common.x = x.const_rows();
  common.taps = taps, common.taps_stride = taps_stride, common.K = K, common.first = first;
  if (c.skip_at >= 0) common.skip = skip, common.skip_at = c.skip_at;
  common.parts = long_conv_parts(B, D, lanes), common.workers = c.workers;

  using Wishes = std::vector<std::pair<int, int>>;  // bits of (d_x, d_taps, d_skip), of (d_out, d_tail)
  Wishes wishes = {{7, 3}};
  if (c.all_wishes) wishes = {{7, 3}, {1, 3}, {2, 3}, {4, 3}, {3, 1}, {5, 2}, {6, 1}, {7, 2}};
  for (auto& wish : wishes) wish.first &= c.skip_at < 0 ? 3 : 7;
  const auto run = [&] {
    Results<T> results;
    Numbers<T> spectrum(c.leaf ? long_conv_spectrum_size(size, D, lanes) : 0);
    if (c.leaf) {
      LongConvArguments<T> a = common;
      a.scratch_stride = long_conv_spectrum_scratch(a, lanes);
      Numbers<T> scratch(a.workers * a.scratch_stride);
      a.scratch = scratch, a.parts = 1;
      LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, T*, ParallelFor), long_conv_spectrum)
      (a, spectrum, run_parallel);
    }
    for (int kept = 0; kept <= (c.leaf ? 1 : 0); ++kept) {
      Signal<T> out(B, ats[0], counts[0], D, 0, false), tail(B, ats[1], counts[1], D, 1, false);
      LongConvArguments<T> a = common;
      if (kept) a.spectrum = spectrum;
      a.out[0] = out.rows(), a.out[1] = tail.rows();
      a.scratch_stride = long_conv_forward_scratch(a, lanes);
      Numbers<T> scratch(a.workers * a.scratch_stride);
      a.scratch = scratch;
      LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, ParallelFor), long_conv_forward)(a, run_parallel);
      results.add("out", out.dense(B));
      results.add("tail", tail.dense(B));
    }
    for (const auto& wish : wishes) {
      Signal<T> dx(B, 0, S, D, 1, false);
      Numbers<T> dtaps(common.parts * D * K), dskip(common.parts * D);
      LongConvArguments<T> a = common;
      for (int i = 0; i < 2; ++i) {
        if (wish.second >> i & 1) a.d_out[i] = given[i].const_rows();
      }
      if (wish.first & 1) a.d_x = dx.rows();
      if (wish.first & 2) a.d_taps = dtaps;
      if (wish.first & 4) a.d_skip = dskip;
      a.scratch_stride = long_conv_backward_scratch(a, lanes);
      Numbers<T> scratch(a.workers * a.scratch_stride);
      a.scratch = scratch;
      LONGSTREAM_PICK_AS(void (*)(const LongConvArguments<T>&, ParallelFor), long_conv_backward)(a, run_parallel);
      if (wish.first & 1) results.add("d_x", dx.dense(B));
      if (wish.first & 2) results.add("d_taps", dtaps, D * K);
      if (wish.first & 4) results.add("d_skip", dskip, D);
    }
    return results;
  };

  const auto tap = [&](int64_t d, int64_t k) { return 0 <= k && k < K ? double(taps[d * taps_stride + k]) : 0.0; };
  std::vector<double> outs[2];
  for (int i = 0; i < 2; ++i) {
    for (int64_t bn = 0; bn < B * counts[i]; ++bn) {
      const int64_t b = bn / counts[i], n = ats[i] + bn % counts[i];
      for (int64_t d = 0; d < D; ++d) {
        double y = i == 0 && c.skip_at >= 0 ? double(skip[d]) * x.number(b, n - first + c.skip_at, d) : 0.0;
        for (int64_t s = n < K ? 0 : n - K + 1; s < S && s <= n; ++s) y += tap(d, n - s) * x.number(b, s, d);
        outs[i].push_back(y);
      }
    }
  }
  Exact exact;
  for (int kept = 0; kept <= (c.leaf ? 1 : 0); ++kept) {
    exact.all.emplace_back("out", outs[0]);
    exact.all.emplace_back("tail", outs[1]);
  }
  for (const auto& wish : wishes) {
    std::vector<double> dx(size_t(B * S * D)), dtaps(size_t(D * K)), dskip(size_t(D), 0.0);
    for (int i = 0; i < 2; ++i) {
      for (int64_t bn = 0; (wish.second >> i & 1) && bn < B * counts[i]; ++bn) {
        const int64_t b = bn / counts[i], n = ats[i] + bn % counts[i], beside = n - first + c.skip_at;
        for (int64_t d = 0; d < D; ++d) {
          const double g = given[i].number(b, n, d);
          for (int64_t s = n < K ? 0 : n - K + 1; s < S && s <= n; ++s) {
            dx[size_t((b * S + s) * D + d)] += g * tap(d, n - s);
            dtaps[size_t(d * K + n - s)] += g * x.number(b, s, d);
          }
          if (i == 1 || beside >= S) continue;
          dskip[size_t(d)] += g * x.number(b, beside, d);
          if (c.skip_at >= 0) dx[size_t((b * S + beside) * D + d)] += g * skip[d];
        }
      }
    }
    if (wish.first & 1) exact.all.emplace_back("d_x", dx);
    if (wish.first & 2) exact.all.emplace_back("d_taps", dtaps);
    if (wish.first & 4) exact.all.emplace_back("d_skip", dskip);
  }
  check<T>(run, exact);
}

// Forget gates, norms and SwiGLU: element by element, with sums over rows for what the rows share.

template <typename T>
void test_gates(int64_t rows, int64_t D, bool bounded, bool with_candidate) {
  const int64_t count = rows * D;
  Numbers<T> z(count), bound(D), complement(D);
  for (int64_t i = 0; i < count; ++i) z[i] = T(uniform(-9, 9));
  for (int64_t d = 0; d < D; ++d) bound[d] = T(uniform(0, 1)), complement[d] = T(1) - bound[d];
  const auto candidate = signed_numbers<T>(count), d_log = signed_numbers<T>(count), d_input = signed_numbers<T>(count);
  const T* bound_given = bounded ? static_cast<const T*>(bound) : nullptr;
  const T* complement_given = bounded ? static_cast<const T*>(complement) : nullptr;
  const T* candidate_given = with_candidate ? static_cast<const T*>(candidate) : nullptr;

  const auto run = [&] {
    Numbers<T> log_forget(count), input(count), dz(count), dcandidate(with_candidate ? count : 0);
    Numbers<T> partial(bounded ? block_count(rows) * 2 * D : 0), dbound(bounded ? D : 0), dcomplement(bounded ? D : 0);
    LONGSTREAM_PICK_AS(void (*)(const GateArguments<T>&, ParallelFor), forget_gate)
    ({count, D, z, bound_given, complement_given, candidate_given, log_forget, input}, run_parallel);
    LONGSTREAM_PICK_AS(void (*)(const GateBackwardArguments<T>&, ParallelFor), forget_gate_backward)
    ({count, D, z, bound_given, complement_given, candidate_given, d_log, d_input, dz,
      with_candidate ? static_cast<T*>(dcandidate) : nullptr, bounded ? static_cast<T*>(partial) : nullptr,
      bounded ? static_cast<T*>(dbound) : nullptr, bounded ? static_cast<T*>(dcomplement) : nullptr},
     run_parallel);
    Results<T> results;
    for (const auto& result : {std::make_pair("log_forget", &log_forget),
                               {"input_gate", &input},
                               {"d_z", &dz},
                               {"d_candidate", &dcandidate},
                               {"d_bound", &dbound},
                               {"d_complement", &dcomplement}}) {
      results.add(result.first, *result.second);
    }
    return results;
  };

  std::vector<double> log_forget, input, dz, dcandidate, dbound(size_t(bounded ? D : 0)), dcomplement(dbound);
  for (int64_t i = 0; i < count; ++i) {
    const double plus = sigmoid(z[i]), minus = sigmoid(-double(z[i])), c = candidate[i];
    const double b = bounded ? double(bound[i % D]) : 0.0, rest = bounded ? double(complement[i % D]) : 1.0;
    const double f = b + rest * plus, silu = with_candidate ? c * sigmoid(c) : 1.0;
    log_forget.push_back(std::log(f));
    input.push_back(rest * minus * silu);
    dz.push_back(rest * plus * minus * (d_log[i] / f - d_input[i] * silu));
    if (with_candidate) dcandidate.push_back(d_input[i] * rest * minus * sigmoid(c) * (1 + c * (1 - sigmoid(c))));
    if (bounded) {
      dbound[size_t(i % D)] += d_log[i] / f;
      dcomplement[size_t(i % D)] += d_log[i] * plus / f + d_input[i] * minus * silu;
    }
  }
  // log f may be formed from bound + complement = 1, so that their two gradients are right only as their difference
  const auto joined = [&](Results<T> results) {
    auto &a = results.all[4].second, &b = results.all[5].second;
    for (size_t d = 0; d < a.size(); ++d) a[d] -= b[d], b[d] = 0;
    return results;
  };
  for (size_t d = 0; d < dbound.size(); ++d) dbound[d] -= dcomplement[d], dcomplement[d] = 0;
  check<T>([&] { return joined(run()); }, Exact{{{"log_forget", log_forget},
                                                 {"input_gate", input},
                                                 {"d_z", dz},
                                                 {"d_candidate", dcandidate},
                                                 {"d_bound", dbound},
                                                 {"d_complement", dcomplement}}});
}

template <typename T>
void test_rms_norm(int64_t rows, int64_t D, bool weighted, bool gated) {
  const int64_t count = rows * D;
  const double eps = 1e-5;
  const auto x = signed_numbers<T>(count), weight = signed_numbers<T>(D), gate = signed_numbers<T>(count),
             dy = signed_numbers<T>(count);
  const T *weight_given = weighted ? static_cast<const T*>(weight) : nullptr,
          *gate_given = gated ? static_cast<const T*>(gate) : nullptr;
  const auto run = [&] {
    Numbers<T> y(count), dx(count), dgate(gated ? count : 0), partial(weighted ? block_count(rows) * D : 0),
        dweight(weighted ? D : 0);
    LONGSTREAM_PICK_AS(void (*)(const RmsNormArguments<T>&, ParallelFor), rms_norm)
    ({rows, D, eps, x, weight_given, gate_given, y}, run_parallel);
    LONGSTREAM_PICK_AS(void (*)(const RmsNormBackwardArguments<T>&, ParallelFor), rms_norm_backward)
    ({rows, D, eps, dy, x, weight_given, gate_given, dx, gated ? static_cast<T*>(dgate) : nullptr,
      weighted ? static_cast<T*>(partial) : nullptr, weighted ? static_cast<T*>(dweight) : nullptr},
     run_parallel);
    Results<T> results;
    for (const auto& result : {std::make_pair("y", &y), {"dx", &dx}, {"d_gate", &dgate}, {"d_weight", &dweight}}) {
      results.add(result.first, *result.second);
    }
    return results;
  };
  std::vector<double> y(size_t(count), 0.0), dx(y), dgate(size_t(gated ? count : 0)), dweight(size_t(weighted ? D : 0));
  for (int64_t row = 0; row < rows; ++row) {
    double squares = 0, along = 0;
    for (int64_t d = 0; d < D; ++d) squares += double(x[row * D + d]) * x[row * D + d];
    const double scale = 1 / std::sqrt(squares / double(D) + eps);
    std::vector<double> g;  // the gradient of x * scale
    for (int64_t d = 0; d < D; ++d) {
      const int64_t i = row * D + d;
      const double w = weighted ? double(weight[d]) : 1.0, a = gated ? gate[i] * sigmoid(gate[i]) : 1.0,
                   normed = x[i] * scale;
      y[size_t(i)] = w * normed * a;
      if (gated) dgate[size_t(i)] = dy[i] * w * normed * sigmoid(gate[i]) * (1 + gate[i] * (1 - sigmoid(gate[i])));
      if (weighted) dweight[size_t(d)] += dy[i] * a * normed;
      g.push_back(dy[i] * w * a);
      along += g.back() * normed;
    }
    for (int64_t d = 0; d < D; ++d) {
      dx[size_t(row * D + d)] = scale * (g[size_t(d)] - x[row * D + d] * scale * along / double(D));
    }
  }
  check<T>(run, Exact{{{"y", y}, {"dx", dx}, {"d_gate", dgate}, {"d_weight", dweight}}});
}

template <typename T>
void test_swiglu(int64_t count) {
  const auto gate = signed_numbers<T>(count), up = signed_numbers<T>(count), dy = signed_numbers<T>(count);
  const auto run = [&] {
    Numbers<T> y(count), dgate(count), dup(count);
    LONGSTREAM_PICK_AS(void (*)(const SwigluArguments<T>&, ParallelFor), swiglu)({count, gate, up, y}, run_parallel);
    LONGSTREAM_PICK_AS(void (*)(const SwigluBackwardArguments<T>&, ParallelFor), swiglu_backward)
    ({count, dy, gate, up, dgate, dup}, run_parallel);
    Results<T> results;
    results.add("y", y);
    results.add("d_gate", dgate);
    results.add("d_up", dup);
    return results;
  };
  std::vector<double> y, dgate, dup;
  for (int64_t i = 0; i < count; ++i) {
    const double a = gate[i], s = sigmoid(a);
    y.push_back(a * s * up[i]);
    dgate.push_back(dy[i] * up[i] * s * (1 + a * (1 - s)));
    dup.push_back(dy[i] * a * s);
  }
  check<T>(run, Exact{{{"y", y}, {"d_gate", dgate}, {"d_up", dup}}});
}

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
      test_all<float>(std::string(names[int(isa)]) + " float ");
      test_all<double>(std::string(names[int(isa)]) + " double ");
    }
    now = std::string(names[int(isa)]) + " limits";
    test_limits();
    std::printf("%s: %s\n", names[int(isa)], failures ? "FAILED" : "passed");
  }
  return failures != 0;
}
