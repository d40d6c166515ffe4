// Products with matrices of every format: codes, which become float32 in registers or once for many tokens, and what
// tiles.h multiplies as it lies.
#pragma once

#include "tiles.h"

namespace {

template <int BITS> struct Row {
    const uint8_t* codes;
    const float* scale;
    const uint8_t* zero;

    Row() = default;
    Row(const Matrix& m, size_t row) {
        const size_t groups = m.columns / m.group;
        codes = static_cast<const uint8_t*>(m.data) + row * m.row_bytes();
        scale = m.scale + row * groups;
        zero = m.zero ? m.zero + row * groups : nullptr;
    }
    Grid<BITS> grid(size_t g) const {
        return {scale[g], zero ? static_cast<float>(zero[g]) : static_cast<float>(1 << (BITS - 1))};
    }
};

// M tokens times N rows of codes that follow each other.
template <int BITS, size_t M, size_t N>
inline void tile_codes(const Matrix& m, size_t row, const void* const* x, float* out, size_t step) {
    constexpr size_t PLACES = 8 / BITS, CHUNK = LANES * PLACES;
    Row<BITS> rows[N];
    for (size_t n = 0; n < N; n++) rows[n] = Row<BITS>(m, row + n);
    Lanes acc[M][N];
    clear<M, N>(acc);
    const size_t ahead = N * m.row_bytes();
    for (size_t g = 0, k = 0; k < m.columns; g++) {
        Grid<BITS> grids[N];
        for (size_t n = 0; n < N; n++) grids[n] = rows[n].grid(g);
        for (size_t n = 0; n < N; n++) __builtin_prefetch(rows[n].codes + k / PLACES + ahead, 0, 2);
        for (const size_t end = k + m.group; k < end; k += CHUNK) {
            Codes codes[N];
            for (size_t n = 0; n < N; n++) codes[n] = load_bytes(rows[n].codes + k / PLACES);
#pragma GCC unroll 4
            for (size_t p = 0; p < PLACES; p++) {
                const int bits = static_cast<int>(p) * BITS;
                multiply<Fused, M, N>(acc, [&](size_t t) { return load(floats(x[t]) + k + p * LANES); },
                                      [&](size_t n) { return grids[n].of(p ? shifted(codes[n], bits) : codes[n]); });
            }
        }
    }
    write_sums<M, N>(acc, out, step);
}

template <int BITS, size_t M>
inline void direct(const Matrix& m, size_t row, size_t rows, const void* const* x, float* out, size_t step) {
    constexpr size_t N = M == 1 ? 8 : 4;
    size_t r = 0;
    for (; r + N <= rows; r += N) tile_codes<BITS, M, N>(m, row + r, x, out + r, step);
    for (; r < rows; r++) tile_codes<BITS, M, 1>(m, row + r, x, out + r, step);
}

template <int BITS> inline void unpack(const Matrix& m, size_t row, float* out) {
    constexpr size_t PLACES = 8 / BITS, CHUNK = LANES * PLACES;
    const Row<BITS> from(m, row);
    for (size_t g = 0, k = 0; k < m.columns; g++) {
        const Grid<BITS> grid = from.grid(g);
        for (const size_t end = k + m.group; k < end; k += CHUNK) {
            const Codes codes = load_bytes(from.codes + k / PLACES);
            for (size_t p = 0; p < PLACES; p++)
                store(out + k + p * LANES, grid.of(shifted(codes, static_cast<int>(p) * BITS)));
        }
    }
}

template <int BITS>
void products_codes(const Matrix& m, size_t row, size_t rows, const void* const* x, size_t tokens, float* out,
                    size_t step, float* unpacked) {
    if (tokens == 1) return direct<BITS, 1>(m, row, rows, x, out, step);
    if (tokens == 2) return direct<BITS, 2>(m, row, rows, x, out, step);
    if (tokens == 3) return direct<BITS, 3>(m, row, rows, x, out, step);
    for (size_t r = 0; r < rows; r += moec::UNPACKED) {
        const size_t some = rows - r < moec::UNPACKED ? rows - r : moec::UNPACKED;
        for (size_t n = 0; n < some; n++) unpack<BITS>(m, row + r + n, unpacked + n * m.columns);
        products_dense(unpacked, m, some, x, tokens, out + r, step);
    }
}

__attribute__((noinline)) void products_half(const Matrix& m, size_t row, size_t rows, const void* const* x,
                                             size_t tokens, float* out, size_t step) {
    products_dense(static_cast<const Half*>(m.data) + row * m.columns, m, rows, x, tokens, out, step);
}

void products(const Matrix& m, size_t expert, size_t first, size_t rows, const void* const* x, size_t tokens,
              float* out, size_t step, float* unpacked) {
    const size_t row = expert * m.rows + first;
    switch (m.bits) {
        case 8: return products_codes<8>(m, row, rows, x, tokens, out, step, unpacked);
        case 4: return products_codes<4>(m, row, rows, x, tokens, out, step, unpacked);
        case 2: return products_codes<2>(m, row, rows, x, tokens, out, step, unpacked);
        case 16: {
            const Flushing flushing;
            return products_half(m, row, rows, x, tokens, out, step);
        }
        default:
            return products_dense(static_cast<const float*>(m.data) + row * m.columns, m, rows, x, tokens, out, step);
    }
}

}  // namespace
