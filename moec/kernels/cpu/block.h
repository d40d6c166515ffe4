// What a block of experts is, and what each instruction set brings: plain data, and functions on rows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moec {

// A stack of matrices [experts, rows, columns]: float32; bfloat16, whose rows are multiplied with rows in bfloat16, a
// pair of columns a step; or codes of `bits` bits with a scale for each `group` of columns. Element k of a row of codes
// stands in byte k / (8 / bits), the first in the lowest bits; its value is (code - zero) * scale, rounded once.
struct Matrix {
    const void* data;
    const float* scale;   // [experts, rows, columns / group], or null where there are no codes
    const uint8_t* zero;  // like scale, or null: the middle of the codes
    const void* bias;     // [experts, rows] in bfloat16 where the matrix is, else in float32; or null
    size_t rows, columns, group;
    int bits;  // 32 for float32, 16 for bfloat16, else 8, 4 or 2

    size_t row_bytes() const { return columns * static_cast<size_t>(bits) / 8; }
    // columns of codes that lie in 16 bytes: their order in memory of floats is by place in a byte first
    size_t chunk() const { return has_codes() ? 16 * 8 / static_cast<size_t>(bits) : 1; }
    bool has_codes() const { return bits <= 8; }
    bool is_half() const { return bits == 16; }
};

enum Function { SILU, GELU, GELU_TANH, RELU, RELU2, TANH, SIGMOID, IDENTITY, FUNCTIONS };

// See moec/dialect/activation.py; a limit or cap of 0 is none.
struct Activation {
    int function;
    bool gated, clamp_after;
    float alpha, beta, limit, cap, up_cap;
};

enum Score { SOFTMAX_SCORE, SIGMOID_SCORE, SQRT_SOFTPLUS_SCORE, LOGIT_SCORE, SCORES };
enum Combine { BY_SCORES, BY_SHARES, BY_SOFTMAX, BY_ONES, COMBINES };

// See moec/dialect/routing.py.
struct Routing {
    int score, combine;
    size_t top_k, groups, top_groups;
    bool by_two, closed_as_zero;  // a group's score is the sum of its two best, not its best
    float scale, epsilon, floor;
};

struct Router {
    Matrix weight;                // [1, experts, hidden] in float32
    const float* selection_bias;  // [experts], or null
    Routing rule;
};

// The experts of one layer and the tokens of one call.
struct Block {
    const void* x;         // [tokens, hidden] in bfloat16 where the matrices are, else in float32
    const int64_t* ids;    // [tokens, top_k]
    const float* weights;  // [tokens, top_k]
    float* y;              // [tokens, hidden]
    size_t tokens, top_k, experts, hidden, inner;
    Matrix in, out;  // [experts, inner or 2 inner, hidden], gate rows first; [experts, hidden, inner]
    Activation activation;
    bool score_before;  // weights multiply the experts' input
    bool left_out;      // a weight of 0 says that the choice is none
};

// Rows [first, first + rows) of one expert's matrix times tokens: out[t * out_step + r]. `x` holds a pointer for each
// token, in float32 in the order of `Matrix::chunk`; of bfloat16 as `Isa::narrow` writes it.
using Products = void (*)(const Matrix& m, size_t expert, size_t first, size_t rows, const void* const* x,
                          size_t tokens, float* out, size_t out_step, float* unpacked);

struct Isa {
    const char* name;
    bool pairs;  // what is multiplied with bfloat16 is read as it is; else in float32, see `narrow`
    Products products;
    // out[i] = f(gate[i]) * (up[i] + beta), with clamps and caps; `up` is null for a plain one
    void (*activate)(const Activation& rule, const float* gate, const float* up, float* out, size_t n);
    void (*add_scaled)(float* y, const float* x, const float* bias, float weight, size_t n);  // y += weight (x + bias)
    void (*exponentials)(const float* x, float* out, size_t n);
    // Rounds to bfloat16, ties to even. Without `pairs` it is laid in float32, of each PAIRS numbers the odd places
    // first, then the even ones, zeros behind the last number.
    void (*narrow)(const float* x, void* out, size_t n);
};

constexpr size_t PAIRS = 32;  // numbers of bfloat16 that are multiplied in one step

constexpr size_t DIRECT = 3;  // tokens up to which codes are multiplied as they are; for more they are unpacked once
constexpr size_t UNPACKED = 4;  // rows that are unpacked at a time

extern const Isa isa_plain;
#if defined(__x86_64__)
extern const Isa isa_avx2, isa_avx512, isa_avx512_bf16;
#endif
// The best that this processor has, or one by name; null where it has not got it.
const Isa* find_isa(const char* name);

// Calls fn(data, 0) to fn(data, count - 1), in any order, on any threads.
struct Pool {
    void* context;
    void (*run)(void* context, void (*fn)(void*, size_t), void* data, size_t count);
};

// Chooses experts for all tokens: ids and weights [tokens, top_k]. Equal scores: the first expert.
void choose(const Router& router, const float* x, size_t tokens, const Isa& isa, const Pool& pool, int64_t* ids,
            float* weights);

// Returns null, or what is wrong.
const char* run_experts(const Block& block, const Isa& isa, const Pool& pool);

}  // namespace moec
