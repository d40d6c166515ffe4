// Matrix rows times tokens. Every output is one dot product in one order, whoever computes it and beside what: a chain
// of fused multiply-adds in each of 16 lanes, column k in lane k mod 16 (of codes: in the order of `Matrix::chunk`),
// then the sum of the lanes. Of bfloat16 a lane takes a pair of columns in each step, k and k + 1 of 32, the odd one
// first. So no result hangs on how many tokens or rows are computed together.
#pragma once

#include "block.h"
#include "lanes.h"

namespace {

using moec::Matrix;

#if defined(__AVX512F__)
constexpr size_t MOST = 6;  // tokens of a tile
#elif defined(__AVX2__)
constexpr size_t MOST = 3;
#else
constexpr size_t MOST = 2;
#endif

// How many rows go with M tokens in a tile: as many accumulators as there are registers for.
constexpr size_t rows_beside(size_t m) {
#if defined(__AVX512F__)
    return m < 3 ? 8 : 4;  // 3 and more: 24 accumulators at most, and what is held
#elif defined(__AVX2__)
    return m == 1 ? 4 : 2;
#else
    return m == 0 ? 1 : 4;
#endif
}

// Keeps a value in its register: a compiler would rather read it again for every use, and reads are what is scarce.
inline void hold(Lanes& a) {
#if defined(__AVX512F__)
    asm("" : "+v"(a.v));
#elif defined(__AVX2__)
    asm("" : "+x"(a.l), "+x"(a.h));
#else
    (void)a;
#endif
}

#if defined(__AVX512BF16__)
inline void hold(Pairs& a) { asm("" : "+v"(a.v)); }
#endif

// What a step adds to its sums.
struct Fused {
    static Lanes added(Lanes w, Lanes x, Lanes sum) { return fma(w, x, sum); }
};
struct Flushed {
    static Lanes added(Lanes w, Lanes x, Lanes sum) { return fma_flushed(w, x, sum); }
};
#if defined(__AVX512BF16__)
struct Paired {
    static Lanes added(Pairs w, Pairs x, Lanes sum) {
        return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(w.v), reinterpret_cast<__m512bh>(x.v))};
    }
};
#endif

template <size_t M, size_t N> inline void write_sums(const Lanes (&acc)[M][N], float* out, size_t step) {
#pragma GCC unroll 8
    for (size_t m = 0; m < M; m++) {
        if constexpr (N % 4 == 0) {
#pragma GCC unroll 2
            for (size_t n = 0; n < N; n += 4) sum4(&acc[m][n], out + m * step + n);
        } else {
            float all[4];
            const Lanes four[4] = {acc[m][0], acc[m][N > 1 ? 1 : 0], acc[m][N > 2 ? 2 : 0], acc[m][0]};
            sum4(four, all);
            for (size_t n = 0; n < N; n++) out[m * step + n] = all[n];
        }
    }
}

// One step of M tokens times N rows; the fewer of both stay in registers, the others are read one by one. The two sides
// are written out: one function for both, which takes the product as a lambda, was 7 to 14 % slower at one token.
template <class STEP, size_t M, size_t N, class T, class W> inline void multiply(Lanes (&acc)[M][N], T token, W row) {
    using Value = decltype(row(0));
    if constexpr (M < N) {
        Value x[M];
#pragma GCC unroll 8
        for (size_t m = 0; m < M; m++) hold(x[m] = token(m));
#pragma GCC unroll 8
        for (size_t n = 0; n < N; n++) {
            Value w = row(n);
            if (M > 1) hold(w);
#pragma GCC unroll 8
            for (size_t m = 0; m < M; m++) acc[m][n] = STEP::added(w, x[m], acc[m][n]);
        }
    } else {
        Value w[N];
#pragma GCC unroll 8
        for (size_t n = 0; n < N; n++) hold(w[n] = row(n));
#pragma GCC unroll 8
        for (size_t m = 0; m < M; m++) {
            Value x = token(m);
            if (N > 1) hold(x);
#pragma GCC unroll 8
            for (size_t n = 0; n < N; n++) acc[m][n] = STEP::added(w[n], x, acc[m][n]);
        }
    }
}

inline const float* floats(const void* row) { return static_cast<const float*>(row); }

template <size_t M, size_t N> inline void clear(Lanes (&acc)[M][N]) {
#pragma GCC unroll 8
    for (size_t m = 0; m < M; m++)
#pragma GCC unroll 8
        for (size_t n = 0; n < N; n++) acc[m][n] = every(0.0f);
}

// What the next tile of rows starts with is fetched meanwhile.
template <size_t M, size_t N, class T> inline void fetch(const T* w, size_t columns) {
    if (M > 6) return;
#pragma GCC unroll 8
    for (size_t n = 0; n < N; n++) __builtin_prefetch(w + (N + n) * columns, 0, 2);
}

// M tokens times N rows of float32.
template <size_t M, size_t N>
inline void tile(const float* w, size_t columns, const void* const* x, float* out, size_t step) {
    Lanes acc[M][N];
    clear<M, N>(acc);
    const size_t whole = columns / LANES * LANES, rest = columns - whole;
    for (size_t k = 0; k < whole; k += LANES) {
        fetch<M, N>(w + k, columns);
        multiply<Fused, M, N>(acc, [&](size_t m) { return load(floats(x[m]) + k); },
                              [&](size_t n) { return load(w + n * columns + k); });
    }
    if (rest)
        multiply<Fused, M, N>(acc, [&](size_t m) { return load_part(floats(x[m]) + whole, rest); },
                              [&](size_t n) { return load_part(w + n * columns + whole, rest); });
    write_sums<M, N>(acc, out, step);
}

// Pairs of columns from k on. W: how a row's pairs are read, whole or in part.
template <size_t M, size_t N, class W>
inline void add_pairs(Lanes (&acc)[M][N], const void* const* x, size_t k, size_t some, W row) {
#if defined(__AVX512BF16__)
    if (some == moec::PAIRS)
        return multiply<Paired, M, N>(acc, [&](size_t m) { return load(static_cast<const Half*>(x[m]) + k); }, row);
    multiply<Paired, M, N>(acc, [&](size_t m) { return load_part(static_cast<const Half*>(x[m]) + k, some); }, row);
#else
    (void)some;  // what was laid has zeros at its end
    multiply<Flushed, M, N>(acc, [&](size_t m) { return load(floats(x[m]) + k); },
                            [&](size_t n) { return odd(row(n)); });
    multiply<Flushed, M, N>(acc, [&](size_t m) { return load(floats(x[m]) + k + LANES); },
                            [&](size_t n) { return even(row(n)); });
#endif
}

// M tokens times N rows of bfloat16.
template <size_t M, size_t N>
inline void tile(const Half* w, size_t columns, const void* const* x, float* out, size_t step) {
    Lanes acc[M][N];
    clear<M, N>(acc);
    const size_t whole = columns / moec::PAIRS * moec::PAIRS, rest = columns - whole;
    for (size_t k = 0; k < whole; k += moec::PAIRS) {
        fetch<M, N>(w + k, columns);
        add_pairs<M, N>(acc, x, k, moec::PAIRS, [&](size_t n) { return load(w + n * columns + k); });
    }
    if (rest)
        add_pairs<M, N>(acc, x, whole, rest, [&](size_t n) { return load_part(w + n * columns + whole, rest); });
    write_sums<M, N>(acc, out, step);
}

template <size_t M, class T>
inline void tile_rows(const T* w, size_t rows, size_t columns, const void* const* x, float* out, size_t step) {
    constexpr size_t N = rows_beside(M);
    size_t r = 0;
    for (; r + N <= rows; r += N) tile<M, N>(w + r * columns, columns, x, out + r, step);
    for (; r < rows; r++) tile<M, 1>(w + r * columns, columns, x, out + r, step);
}

template <class T>
void products_dense(const T* w, const Matrix& m, size_t rows, const void* const* x, size_t tokens, float* out,
                    size_t step) {
    for (size_t t = 0; t < tokens;) {
        const size_t count = tokens - t < MOST ? tokens - t : MOST;
        const void* const* some = x + t;
        float* to = out + t * step;
        switch (count) {
            case 1: tile_rows<1>(w, rows, m.columns, some, to, step); break;
            case 2: tile_rows<2>(w, rows, m.columns, some, to, step); break;
#if defined(__AVX2__)
            case 3: tile_rows<3>(w, rows, m.columns, some, to, step); break;
#endif
#if defined(__AVX512F__)
            case 4: tile_rows<4>(w, rows, m.columns, some, to, step); break;
            case 5: tile_rows<5>(w, rows, m.columns, some, to, step); break;
            case 6: tile_rows<6>(w, rows, m.columns, some, to, step); break;
#endif
        }
        t += count;
    }
}

}  // namespace
