// Forget gates, norms and SwiGLU: element by element, with sums over rows for what the rows share.
#pragma once

#include "../blocks.h"
#include "../gates.h"
#include "../rms_norm.h"
#include "../swiglu.h"
#include "testing.h"

namespace {

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

}  // namespace
