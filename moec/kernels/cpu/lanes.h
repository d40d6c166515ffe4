// Sixteen float32 lanes, on whatever this file is compiled for: one register of AVX-512, two of AVX2, or an array.
//
// Each operation rounds once, and all three do the same ones in the same order, so that their results are equal bit for
// bit. Everything stands in an unnamed namespace: a function that two files compile for two processors must not be one
// symbol, of which the linker keeps either.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <xmmintrin.h>
#endif
#include <cmath>
#include <cstring>

namespace {

constexpr size_t LANES = 16;

// bfloat16: the upper half of a float32. Two that follow each other are a pair, of which a lane of 32 bits holds one.
struct Half {
    uint16_t bits;
};

#if defined(__AVX512F__)

struct Lanes {
    __m512 v;
};
struct Codes {
    __m512i v;
};

inline Lanes every(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline __mmask16 first(size_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline Lanes load_part(const float* p, size_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
struct Pairs {
    __m512i v;
};
inline Pairs load(const Half* p) { return {_mm512_loadu_si512(p)}; }
inline Pairs load_part(const Half* p, size_t n) { return {_mm512_maskz_loadu_epi16((1u << n) - 1u, p)}; }
inline Lanes odd(Pairs a) { return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(-65536)))}; }
inline Lanes even(Pairs a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline void store_part(float* p, Lanes a, size_t n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where one is no number, as the others
inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes if_less(Lanes a, Lanes b, Lanes then, Lanes otherwise) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), otherwise.v, then.v)};
}
inline Lanes two_to(Lanes whole) {
    __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(whole.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(n, 23))};
}
inline Codes load_bytes(const uint8_t* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Codes shifted(Codes a, int bits) { return {_mm512_srli_epi32(a.v, static_cast<unsigned>(bits))}; }

// What the codes of one group stand for: a table of 16 where codes have 4 bits or fewer, of which a look-up reads the
// lowest 4 bits of a lane.
template <int BITS> struct Grid {
    __m512 a, b;
    Grid() = default;
    Grid(float scale, float zero) {
        if (BITS == 8) {
            a = _mm512_set1_ps(scale), b = _mm512_set1_ps(zero);
            return;
        }
        const __m512i all = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        __m512 codes = _mm512_cvtepi32_ps(_mm512_and_si512(all, _mm512_set1_epi32((1 << BITS) - 1)));
        a = _mm512_mul_ps(_mm512_sub_ps(codes, _mm512_set1_ps(zero)), _mm512_set1_ps(scale));
    }
    Lanes of(Codes codes) const {
        if (BITS == 8) return {_mm512_mul_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(codes.v), b), a)};
        return {_mm512_permutexvar_ps(codes.v, a)};
    }
};

// Four sums over the lanes, in one order: i and i + 8, then i and i + 4, i + 2, i + 1.
inline void sum4(const Lanes* a, float* out) {
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a[0].v, a[1].v, 0x44), _mm512_shuffle_f32x4(a[0].v, a[1].v, 0xee));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(a[2].v, a[3].v, 0x44), _mm512_shuffle_f32x4(a[2].v, a[3].v, 0xee));
    __m512 s = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4e));
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));
    s = _mm512_permutexvar_ps(_mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0), s);
    _mm_storeu_ps(out, _mm512_castps512_ps128(s));
}

#elif defined(__AVX2__)

struct Lanes {
    __m256 l, h;
};
struct Codes {
    __m256i l, h;
};

inline Lanes every(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline __m256i first(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}
inline Lanes load_part(const float* p, size_t n) {
    return {_mm256_maskload_ps(p, first(n)), n > 8 ? _mm256_maskload_ps(p + 8, first(n - 8)) : _mm256_setzero_ps()};
}
struct Pairs {
    __m256i l, h;
};
inline Pairs load(const Half* p) {
    const __m256i* both = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(both), _mm256_loadu_si256(both + 1)};
}
inline Pairs load_part(const Half* p, size_t n) {
    Half all[2 * LANES] = {};
    std::memcpy(all, p, n * sizeof(Half));
    return load(all);
}
inline __m256 odd(__m256i a) { return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32(-65536))); }
inline __m256 even(__m256i a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
inline Lanes odd(Pairs a) { return {odd(a.l), odd(a.h)}; }
inline Lanes even(Pairs a) { return {even(a.l), even(a.h)}; }
inline void store(float* p, Lanes a) { _mm256_storeu_ps(p, a.l), _mm256_storeu_ps(p + 8, a.h); }
inline void store_part(float* p, Lanes a, size_t n) {
    _mm256_maskstore_ps(p, first(n), a.l);
    if (n > 8) _mm256_maskstore_ps(p + 8, first(n - 8), a.h);
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm256_fmadd_ps(a.l, b.l, c.l), _mm256_fmadd_ps(a.h, b.h, c.h)}; }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.l, b.l), _mm256_add_ps(a.h, b.h)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.l, b.l), _mm256_sub_ps(a.h, b.h)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.l, b.l), _mm256_mul_ps(a.h, b.h)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm256_div_ps(a.l, b.l), _mm256_div_ps(a.h, b.h)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm256_max_ps(a.l, b.l), _mm256_max_ps(a.h, b.h)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm256_min_ps(a.l, b.l), _mm256_min_ps(a.h, b.h)}; }
inline Lanes if_less(Lanes a, Lanes b, Lanes then, Lanes otherwise) {
    return {_mm256_blendv_ps(otherwise.l, then.l, _mm256_cmp_ps(a.l, b.l, _CMP_LT_OQ)),
            _mm256_blendv_ps(otherwise.h, then.h, _mm256_cmp_ps(a.h, b.h, _CMP_LT_OQ))};
}
inline __m256 two_to(__m256 whole) {
    __m256i n = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
inline Lanes two_to(Lanes whole) { return {two_to(whole.l), two_to(whole.h)}; }
inline Codes load_bytes(const uint8_t* p) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
inline Codes shifted(Codes a, int bits) { return {_mm256_srli_epi32(a.l, bits), _mm256_srli_epi32(a.h, bits)}; }

template <int BITS> struct Grid {
    __m256 scale, zero;
    Grid() = default;
    Grid(float s, float z) : scale(_mm256_set1_ps(s)), zero(_mm256_set1_ps(z)) {}
    __m256 of(__m256i codes) const {
        codes = _mm256_and_si256(codes, _mm256_set1_epi32((1 << BITS) - 1));
        return _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(codes), zero), scale);
    }
    Lanes of(Codes codes) const { return {of(codes.l), of(codes.h)}; }
};

inline void sum4(const Lanes* a, float* out) {
    for (size_t i = 0; i < 4; i++) {
        __m256 eight = _mm256_add_ps(a[i].l, a[i].h);
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        out[i] = _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
    }
}

#else

struct Lanes {
    float v[LANES];
};
struct Codes {
    uint32_t v[LANES];
};

template <class F> inline Lanes each(F f) {
    Lanes found;
    for (size_t i = 0; i < LANES; i++) found.v[i] = f(i);
    return found;
}
inline Lanes every(float x) { return each([&](size_t) { return x; }); }
inline Lanes load(const float* p) { return each([&](size_t i) { return p[i]; }); }
inline Lanes load_part(const float* p, size_t n) { return each([&](size_t i) { return i < n ? p[i] : 0.0f; }); }
struct Pairs {
    Half v[2 * LANES];
};
inline Pairs load_part(const Half* p, size_t n) {
    Pairs found = {};
    std::memcpy(found.v, p, n * sizeof(Half));
    return found;
}
inline Pairs load(const Half* p) { return load_part(p, 2 * LANES); }
inline float widened(Half a) {
    const uint32_t bits = static_cast<uint32_t>(a.bits) << 16;
    float found = 0.0f;
    std::memcpy(&found, &bits, sizeof(found));
    return found;
}
inline Lanes odd(Pairs a) { return each([&](size_t i) { return widened(a.v[2 * i + 1]); }); }
inline Lanes even(Pairs a) { return each([&](size_t i) { return widened(a.v[2 * i]); }); }
inline void store_part(float* p, Lanes a, size_t n) { std::memcpy(p, a.v, n * sizeof(float)); }
inline void store(float* p, Lanes a) { store_part(p, a, LANES); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return each([&](size_t i) { return std::fma(a.v[i], b.v[i], c.v[i]); }); }
inline Lanes operator+(Lanes a, Lanes b) { return each([&](size_t i) { return a.v[i] + b.v[i]; }); }
inline Lanes operator-(Lanes a, Lanes b) { return each([&](size_t i) { return a.v[i] - b.v[i]; }); }
inline Lanes operator*(Lanes a, Lanes b) { return each([&](size_t i) { return a.v[i] * b.v[i]; }); }
inline Lanes operator/(Lanes a, Lanes b) { return each([&](size_t i) { return a.v[i] / b.v[i]; }); }
inline Lanes max(Lanes a, Lanes b) { return each([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline Lanes min(Lanes a, Lanes b) { return each([&](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline Lanes if_less(Lanes a, Lanes b, Lanes then, Lanes otherwise) {
    return each([&](size_t i) { return a.v[i] < b.v[i] ? then.v[i] : otherwise.v[i]; });
}
inline Lanes two_to(Lanes whole) {
    return each([&](size_t i) {
        float x = whole.v[i], found = 0.0f;
        uint32_t bits = x == x ? static_cast<uint32_t>(static_cast<int32_t>(x) + 127) << 23 : 0u;
        std::memcpy(&found, &bits, sizeof(found));
        return found;
    });
}
inline Codes load_bytes(const uint8_t* p) {
    Codes found;
    for (size_t i = 0; i < LANES; i++) found.v[i] = p[i];
    return found;
}
inline Codes shifted(Codes a, int bits) {
    for (auto& code : a.v) code >>= bits;
    return a;
}

template <int BITS> struct Grid {
    float scale, zero;
    Grid() = default;
    Grid(float s, float z) : scale(s), zero(z) {}
    Lanes of(Codes codes) const {
        return each([&](size_t i) { return (static_cast<float>(codes.v[i] & ((1u << BITS) - 1)) - zero) * scale; });
    }
};

inline void sum4(const Lanes* a, float* out) {
    for (size_t i = 0; i < 4; i++) {
        float s[8];
        for (size_t j = 0; j < 8; j++) s[j] = a[i].v[j] + a[i].v[j + 8];
        for (size_t half = 4; half; half /= 2)
            for (size_t j = 0; j < half; j++) s[j] = s[j] + s[j + half];
        out[i] = s[0];
    }
}

#endif

// Products of bfloat16 are rounded as the instruction VDPBF16PS does: what is smaller than the least normal number
// counts as zero, before and behind each operation. It is so while a `Flushing` lives; no function that computes may be
// inlined where one begins. Elsewhere than on x86 only what goes into a fused multiply-add and comes out is flushed.
#if defined(__SSE2__)
struct Flushing {
    unsigned before = _mm_getcsr();
    Flushing() { _mm_setcsr(before | 0x8040u); }
    ~Flushing() { _mm_setcsr(before); }
};
inline Lanes fma_flushed(Lanes a, Lanes b, Lanes c) { return fma(a, b, c); }
#else
struct Flushing {
    Flushing() {}
};
inline float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }
inline Lanes fma_flushed(Lanes a, Lanes b, Lanes c) {
    return each([&](size_t i) { return flushed(std::fma(flushed(a.v[i]), flushed(b.v[i]), c.v[i])); });
}
#endif

inline Lanes nearest(Lanes x) {  // whole numbers, for |x| < 2^22
    const Lanes shift = every(12582912.0f);
    return (x + shift) - shift;
}

}  // namespace
