// The forward pass of gla: a tile of the state stays in registers for a block of tokens. See gla_group.h.
#include "gla_group.h"

namespace longstream::LONGSTREAM_ISA {
namespace {

constexpr int kBlock = 64;  // tokens
constexpr int kGroups = kBlock / kGroup;
// A tile is kRows keys times kColumns vectors of values: it takes half of the registers, 16 or 32.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int kColumns = 2;
constexpr int kSumKeys = 128;
template <typename T>
constexpr int kWidth = kColumns * kLanes<T>;
template <typename T>
constexpr int kTogether = kRows > kLanes<T> ? kRows : kLanes<T>;  // keys whose records lie together

template <typename T>
struct Scratch {  // of one worker
  T* keys;        // (K / kTogether, kGroups, kRecord, kTogether)
  T* pairs;       // (kGroups, kPairsPlace)
  T* values;      // (kBlock, width of the tile)
  T* out;         // the same
  T* part;        // the same
};

int64_t keys_size(const GlaSizes& sizes) { return round_up(sizes.K, 16) * kGroups * kRecord; }

template <typename T>
int64_t record_place(int64_t key) {
  return key / kTogether<T> * kTogether<T> * kGroups * kRecord + key % kTogether<T>;
}

template <typename T>
Scratch<T> scratch_of(const GlaForward<T>& x, int64_t worker) {
  Scratch<T> s;
  s.keys = x.scratch + worker * gla_forward_scratch(x.sizes);
  s.pairs = s.keys + keys_size(x.sizes);
  s.values = s.pairs + kGroups * kPairsPlace;
  s.out = s.values + kBlock * kWidth<T>;
  s.part = s.out + kBlock * kWidth<T>;
  return s;
}

// The records of `tokens` tokens, laid out as the tiles will read them: read in place, rows that lie K numbers apart
// would share few sets of the first-level cache.
template <typename T>
void join_block(const GlaForward<T>& x, const T* q, const T* k, const T* log_forget, int64_t tokens, Scratch<T>& to) {
  constexpr int lanes = kLanes<T>;
  for (int64_t g = 0; g * kGroup < tokens; ++g) {
    const int64_t t = g * kGroup, rows = tokens - t;
    Vector<T> products[kPairs] = {};
    for (int64_t i = 0; i < x.sizes.K; i += lanes) {
      const int64_t count = smaller(lanes, x.sizes.K - i);
      Vector<T> q_[kGroup], k_[kGroup], f[kGroup], record[kRecord];
      prefetch_rows(q + t * x.q.token + i, x.q.token);
      prefetch_rows(k + t * x.k.token + i, x.k.token);
      prefetch_rows(log_forget + t * x.log_forget.token + i, x.log_forget.token);
      load_rows(q + t * x.q.token + i, x.q.token, rows, count, q_);
      load_rows(k + t * x.k.token + i, x.k.token, rows, count, k_);
      load_rows(log_forget + t * x.log_forget.token + i, x.log_forget.token, rows, count, f);
#pragma GCC unroll 4
      for (int r = 0; r < kGroup; ++r) f[r] = exp<T>(f[r]);
      join_group<T>(q_, k_, f, record, products);
      T* record_to = to.keys + record_place<T>(i) + g * kRecord * kTogether<T>;
#pragma GCC unroll 9
      for (int r = 0; r < kRecord; ++r) store(record_to + r * kTogether<T>, record[r]);
    }
    store_pairs<T>(to.pairs + g * kPairsPlace, products);
  }
}

// Copies a tile's values to where they lie together, and begins its outputs with what the tokens of a group give.
template <typename T, int columns>
void begin_tile(const T* v, int64_t stride, int64_t count, int64_t tokens, Scratch<T>& to) {
  constexpr int lanes = kLanes<T>, width = columns * lanes;
  for (int64_t g = 0; g * kGroup < tokens; ++g) {
    const T* pairs = to.pairs + g * kPairsPlace;
    T* values = to.values + g * kGroup * width;
    T* out = to.out + g * kGroup * width;
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) {
      Vector<T> v_[kGroup];
      prefetch_rows(v + g * kGroup * stride + c * lanes, stride);
      load_rows(v + g * kGroup * stride + c * lanes, stride, tokens - g * kGroup, count - c * lanes, v_);
#pragma GCC unroll 4
      for (int t = 0; t < kGroup; ++t) {
        store(values + t * width + c * lanes, v_[t]);
        Vector<T> sum = broadcast<T>(pairs[pair(t, 0)]) * v_[0];
#pragma GCC unroll 4
        for (int s = 1; s <= t; ++s) sum += broadcast<T>(pairs[pair(t, s)]) * v_[s];
        store(out + t * width + c * lanes, sum);
      }
    }
  }
}

// Walks a tile of the state through a block. Some of the next block's numbers begin at `ahead`.
template <typename T, int rows, int columns>
void walk(const T* keys, const T* values, T* out, int64_t groups, const T* from, T* to, int64_t stride, int64_t count,
          const T* ahead, int64_t ahead_stride) {
  constexpr int lanes = kLanes<T>, width = columns * lanes;
  const bool whole = count >= width;
  Vector<T> s[rows][columns];
#pragma GCC unroll 8
  for (int a = 0; a < rows; ++a) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) {
      const T* x = from + a * stride + c * lanes;
      s[a][c] = whole ? load(x) : load_part(x, smaller(lanes, count - c * lanes));
    }
  }
  for (int64_t g = 0; g < groups; ++g, keys += kRecord * kTogether<T>, values += kGroup * width, out += kGroup * width,
               ahead += kGroup * ahead_stride) {
    ask_for_rows(ahead, ahead_stride);
#pragma GCC unroll 4
    for (int t = 0; t < kGroup; ++t) {
      Vector<T> o[columns];  // a sum of its own for each tile: shorter sums lose fewer digits
#pragma GCC unroll 8
      for (int a = 0; a < rows; ++a) {
        const Vector<T> q = broadcast<T>(keys[t * kTogether<T> + a]);
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) o[c] = a ? o[c] + s[a][c] * q : s[a][c] * q;
      }
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) {
        T* to = out + t * width + c * lanes;
        store(to, load(to) + o[c]);
      }
    }
#pragma GCC unroll 8
    for (int a = 0; a < rows; ++a) {
      const Vector<T> decay = broadcast<T>(keys[2 * kGroup * kTogether<T> + a]);
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) s[a][c] *= decay;
    }
#pragma GCC unroll 4
    for (int t = 0; t < kGroup; ++t) {
      Vector<T> v[columns];
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) v[c] = load(values + t * width + c * lanes);
#pragma GCC unroll 8
      for (int a = 0; a < rows; ++a) {
        const Vector<T> k = broadcast<T>(keys[(kGroup + t) * kTogether<T> + a]);
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) s[a][c] += k * v[c];
      }
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < rows; ++a) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) {
      T* x = to + a * stride + c * lanes;
      if (whole) {
        store(x, s[a][c]);
      } else {
        store_part(x, s[a][c], smaller(lanes, count - c * lanes));
      }
    }
  }
}

template <typename T, int columns>
void tile_columns(const GlaForward<T>& x, const T* v, int64_t count, int64_t tokens, Scratch<T>& scratch, const T* from,
                  T* to, T* out, const T* const (&ahead)[4], int64_t ahead_line) {
  constexpr int lanes = kLanes<T>, width = columns * lanes;
  const int64_t K = x.sizes.K, V = x.sizes.V, groups = parts(tokens, kGroup);
  begin_tile<T, columns>(v, x.v.token, count, tokens, scratch);
  // Long sums over keys are sums of sums of kSumKeys, which lose fewer digits.
  const bool by_parts = K > kSumKeys;
  const auto add_part = [&](bool again) {
    for (int64_t t = 0; t < groups * kGroup * width; t += lanes) {
      if (again) store(scratch.out + t, load(scratch.out + t) + load(scratch.part + t));
      store(scratch.part + t, Vector<T>{});
    }
  };
  int64_t i = 0;
  const auto next = [&](auto walk_rows, int64_t rows) {
    if (by_parts && i % kSumKeys == 0) add_part(i > 0);
    const T* keys = scratch.keys + record_place<T>(i);
    const int64_t tensor = i / kRows % 4, line = ahead_line + i / kRows / 4 * kLine<T>;
    const int64_t strides[] = {x.q.token, x.k.token, x.log_forget.token, x.v.token};
    walk_rows(keys, scratch.values, by_parts ? scratch.part : scratch.out, groups, from + i * V, to + i * V, V, count,
              ahead[tensor] + (line < (tensor == 3 ? V : K) ? line : 0), strides[tensor]);
    i += rows;
  };
  while (i + kRows <= K) next(walk<T, kRows, columns>, kRows);
  if constexpr (kRows > 4) {
    if (K - i >= 4) next(walk<T, 4, columns>, 4);
  }
  if (K - i >= 2) next(walk<T, 2, columns>, 2);
  if (K - i >= 1) next(walk<T, 1, columns>, 1);
  if (by_parts) add_part(true);
  for (int64_t t = 0; t < tokens; ++t) {
    T* row = out + t * x.sizes.H * V;
    if (count >= width) {
      std::memcpy(row, scratch.out + t * width, width * sizeof(T));
    } else {
      std::memcpy(row, scratch.out + t * width, size_t(count) * sizeof(T));
    }
  }
}

// Few tokens: the equation itself, one pass over the state for each.
template <typename T>
void step(const GlaForward<T>& x, int64_t n, int64_t h, int64_t begin, int64_t end) {
  constexpr int lanes = kLanes<T>, columns = 4, chunk = 16;  // sums of 16 first: they lose fewer digits
  const GlaSizes& sizes = x.sizes;
  const int64_t K = sizes.K, V = sizes.V;
  const T* q = start_of(x.q, sizes, n, h);
  const T* k = start_of(x.k, sizes, n, h);
  const T* v = start_of(x.v, sizes, n, h);
  const T* log_forget = start_of(x.log_forget, sizes, n, h);
  const T* from = x.initial + (n * sizes.H + h) * K * V;
  T* to = x.final + (n * sizes.H + h) * K * V;
  const int64_t tokens = length_of(sizes, n);
  if (tokens == 0) {
    for (int64_t i = 0; i < K; ++i) std::memcpy(to + i * V + begin, from + i * V + begin, (end - begin) * sizeof(T));
  }
  for (int64_t t = 0; t < tokens; ++t, from = to) {
    T* out = x.out + ((first_of(sizes, n) + t) * sizes.H + h) * V;
    for (int64_t j = begin; j < end; ++j) out[j] = 0;
    for (int64_t i0 = 0; i0 < K; i0 += chunk) {
      const int64_t rows = smaller(chunk, K - i0);
      T forget[chunk];
      for (int64_t i = 0; i < rows; i += lanes) {
        const T* row = log_forget + t * x.log_forget.token + i0 + i;
        store(forget + i, exp<T>(rows - i >= lanes ? load(row) : load_part(row, rows - i)));
      }
      const T *q_ = q + t * x.q.token + i0, *k_ = k + t * x.k.token + i0, *v_ = v + t * x.v.token;
      int64_t j = begin;
      for (; j + columns * lanes <= end; j += columns * lanes) {
        Vector<T> o[columns], value[columns];
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) o[c] = Vector<T>{}, value[c] = load(v_ + j + c * lanes);
        for (int64_t i = 0; i < rows; ++i) {
          const Vector<T> f = broadcast<T>(forget[i]), key = broadcast<T>(k_[i]), query = broadcast<T>(q_[i]);
#pragma GCC unroll 4
          for (int c = 0; c < columns; ++c) {
            const Vector<T> s = load(from + (i0 + i) * V + j + c * lanes) * f + value[c] * key;
            store(to + (i0 + i) * V + j + c * lanes, s);
            o[c] += s * query;
          }
        }
#pragma GCC unroll 4
        for (int c = 0; c < columns; ++c) store(out + j + c * lanes, load(out + j + c * lanes) + o[c]);
      }
      for (; j < end; j += lanes) {
        const int64_t count = smaller(lanes, end - j);
        Vector<T> o = {};
        const Vector<T> value = load_part(v_ + j, count);
        for (int64_t i = 0; i < rows; ++i) {
          const Vector<T> s = load_part(from + (i0 + i) * V + j, count) * forget[i] + value * k_[i];
          store_part(to + (i0 + i) * V + j, s, count);
          o += s * q_[i];
        }
        store_part<T>(out + j, load_part(out + j, count) + o, count);
      }
    }
  }
}

// Columns begin .. end - 1 of one head of one sequence.
template <typename T>
void head_columns(const GlaForward<T>& x, int64_t n, int64_t h, int64_t begin, int64_t end, Scratch<T>& scratch) {
  constexpr int lanes = kLanes<T>;
  const GlaSizes& sizes = x.sizes;
  const int64_t length = length_of(sizes, n), K = sizes.K, V = sizes.V;
  if (length < kGroup) return step(x, n, h, begin, end);
  const T* q = start_of(x.q, sizes, n, h);
  const T* k = start_of(x.k, sizes, n, h);
  const T* v = start_of(x.v, sizes, n, h);
  const T* log_forget = start_of(x.log_forget, sizes, n, h);
  const T* from = x.initial + (n * sizes.H + h) * K * V;
  T* final = x.final + (n * sizes.H + h) * K * V;
  for (int64_t t = 0; t < length; t += kBlock) {
    const int64_t tokens = smaller(kBlock, length - t), after = t + tokens;
    const bool keep = sizes.spacing > 0 && after < length && after % sizes.spacing == 0;
    T* to = keep ? x.states + (place_of(sizes, n, after / sizes.spacing) * sizes.H + h) * K * V : final;
    join_block(x, q + t * x.q.token, k + t * x.k.token, log_forget + t * x.log_forget.token, tokens, scratch);
    const int64_t next = after < length ? after : t;
    const T* const ahead[] = {q + next * x.q.token, k + next * x.k.token, log_forget + next * x.log_forget.token,
                              v + next * x.v.token};
    int64_t line = 0;
    for (int64_t j = begin; j < end; j += kWidth<T>) {
      const int64_t count = smaller(kWidth<T>, end - j);
      T* out = x.out + ((first_of(sizes, n) + t) * sizes.H + h) * V + j;
      const auto tile = count > lanes ? tile_columns<T, 2> : tile_columns<T, 1>;
      tile(x, v + t * x.v.token + j, count, tokens, scratch, from + j, to + j, out, ahead, line);
      line += parts(K, 4 * kRows) * kLine<T>;
    }
    from = to;
  }
}

// Work is split over sequences, heads and tiles of columns; no number depends on where.
template <typename T>
void forward(const GlaForward<T>& x) {
  const GlaSizes& sizes = x.sizes;
  const int64_t tiles = parts(sizes.V, kWidth<T>), total = sizes.N * sizes.H * tiles;
  parallel_for(sizes.parallel, sizes.workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      Scratch<T> scratch = scratch_of(x, worker);
      int64_t item = total * worker / sizes.workers;
      const int64_t end = total * (worker + 1) / sizes.workers;
      while (item < end) {
        const int64_t head = item / tiles, stop = smaller(end, (head + 1) * tiles);
        const int64_t left = item % tiles * kWidth<T>, right = smaller(sizes.V, (stop - head * tiles) * kWidth<T>);
        head_columns(x, head / sizes.H, head % sizes.H, left, right, scratch);
        item = stop;
      }
    }
  });
}

}  // namespace

int64_t gla_forward_scratch(const GlaSizes& sizes) {
  return keys_size(sizes) + kGroups * kPairsPlace + 3 * kBlock * kWidth<float>;
}

void gla_forward(const GlaForward<float>& x) { forward(x); }
void gla_forward(const GlaForward<double>& x) { forward(x); }

}  // namespace longstream::LONGSTREAM_ISA
