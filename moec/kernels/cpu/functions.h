// The functions between two products, on 16 lanes. Each is a fixed chain of operations that round once.
#pragma once

#include "block.h"
#include "lanes.h"

namespace {

using moec::Activation;

// e^x to about one unit in the last place. x = n ln 2 + r, |r| <= ln 2 / 2; a polynomial in r, and 2^n in two factors,
// so that neither overflows before the result does.
inline Lanes exponential(Lanes x) {
    x = max(every(-150.0f), min(every(130.0f), x));  // what is no number stays
    const Lanes n = nearest(x * every(1.44269504f));
    Lanes r = fma(n, every(-0.693359375f), x);
    r = fma(n, every(2.12194440e-4f), r);
    Lanes p = every(1.0f / 5040.0f);
    const float more[] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
    for (float c : more) p = fma(p, r, every(c));
    const Lanes half = nearest(n * every(0.5f));
    return p * two_to(half) * two_to(n - half);
}

inline Lanes sigmoid(Lanes x) { return every(1.0f) / (every(1.0f) + exponential(every(0.0f) - x)); }

// Near zero a series, elsewhere by e^2x.
inline Lanes hyperbolic_tangent(Lanes x) {
    const Lanes s = x * x;
    Lanes p = every(-929569.0f / 638512875.0f);
    const float more[] = {21844.0f / 6081075.0f, -1382.0f / 155925.0f, 62.0f / 2835.0f,
                          -17.0f / 315.0f,       2.0f / 15.0f,         -1.0f / 3.0f};
    for (float c : more) p = fma(p, s, every(c));
    const Lanes small = fma(p * s, x, x);
    const Lanes large = every(1.0f) - every(2.0f) / (every(1.0f) + exponential(x + x));
    return if_less(s, every(0.25f), small, large);
}

template <class F> inline Lanes one_by_one(Lanes x, F f) {
    float all[LANES];
    store(all, x);
    for (auto& one : all) one = f(one);
    return load(all);
}

inline Lanes gelu(Lanes x) {
    const Lanes e = one_by_one(x * every(0.70710678f), [](float v) { return ::erff(v); });
    return x * every(0.5f) * (every(1.0f) + e);
}

inline Lanes gelu_tanh(Lanes x) {
    const Lanes inner = every(0.79788456f) * fma(every(0.044715f) * x * x, x, x);
    return every(0.5f) * x * (every(1.0f) + hyperbolic_tangent(inner));
}

inline Lanes apply(int function, float alpha, Lanes x) {
    const Lanes zero = every(0.0f);
    switch (function) {
        case moec::SILU: return x / (every(1.0f) + exponential(every(-alpha) * x));
        case moec::GELU: return gelu(x);
        case moec::GELU_TANH: return gelu_tanh(x);
        case moec::RELU: return max(zero, x);
        case moec::RELU2: return max(zero, x) * max(zero, x);
        case moec::TANH: return hyperbolic_tangent(x);
        case moec::SIGMOID: return sigmoid(x);
        default: return x;
    }
}

inline Lanes soft_cap(Lanes x, float cap) { return every(cap) * hyperbolic_tangent(x / every(cap)); }

inline Lanes gate_of(const Activation& rule, Lanes gate) {
    if (rule.cap != 0.0f) return soft_cap(gate, rule.cap) * sigmoid(every(rule.alpha) * gate);
    if (rule.limit == 0.0f) return apply(rule.function, rule.alpha, gate);
    const Lanes limit = every(rule.limit);
    if (rule.clamp_after) return min(limit, apply(rule.function, rule.alpha, gate));
    return apply(rule.function, rule.alpha, min(limit, gate));
}

inline Lanes up_of(const Activation& rule, Lanes up) {
    if (rule.limit != 0.0f) up = max(every(-rule.limit), min(every(rule.limit), up));
    if (rule.up_cap != 0.0f) up = soft_cap(up, rule.up_cap);
    return rule.beta != 0.0f ? up + every(rule.beta) : up;
}

void activate(const Activation& rule, const float* gate, const float* up, float* out, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const size_t some = n - i < LANES ? n - i : LANES;
        const Lanes g = load_part(gate + i, some);
        const Lanes found =
            up ? gate_of(rule, g) * up_of(rule, load_part(up + i, some)) : apply(rule.function, rule.alpha, g);
        store_part(out + i, found, some);
    }
}

void add_scaled(float* y, const float* x, const float* bias, float weight, size_t n) {
    const Lanes factor = every(weight);
    for (size_t i = 0; i < n; i += LANES) {
        const size_t some = n - i < LANES ? n - i : LANES;
        Lanes value = load_part(x + i, some);
        if (bias) value = value + load_part(bias + i, some);
        store_part(y + i, fma(factor, value, load_part(y + i, some)), some);
    }
}

uint16_t narrowed(float x) {  // to the nearest, ties to even; what is no number stays none
    uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof(bits));
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return static_cast<uint16_t>((x == x ? rounded : bits | 0x400000u) >> 16);
}

void narrow(const float* x, void* out, size_t n) {
#if defined(__AVX512BF16__)
    uint16_t* to = static_cast<uint16_t*>(out);
    for (size_t i = 0; i < n; i++) to[i] = narrowed(x[i]);
#else
    uint32_t* to = static_cast<uint32_t*>(out);
    for (size_t k = 0; k < n; k += moec::PAIRS)
        for (size_t i = 0; i < moec::PAIRS; i++) {
            const size_t from = k + (i < LANES ? 2 * i + 1 : 2 * (i - LANES));
            to[k + i] = from < n ? static_cast<uint32_t>(narrowed(x[from])) << 16 : 0u;
        }
#endif
}

void exponentials(const float* x, float* out, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const size_t some = n - i < LANES ? n - i : LANES;
        store_part(out + i, exponential(load_part(x + i, some)), some);
    }
}

}  // namespace
