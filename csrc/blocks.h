// How rows are cut for sums over them: a gradient of a weight is added up within blocks, then over the blocks.
#pragma once

#include <cstdint>

namespace longstream {

constexpr int64_t kBlockRows = 64;  // float32 sums of so few lose nothing; the sum over blocks is in double

// static: no instruction set may end up with another's copy
static inline int64_t block_count(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

}  // namespace longstream
