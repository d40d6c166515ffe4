// From tokens to experts: the router's product, and every rule of the dialect.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "block.h"

namespace moec {
namespace {

constexpr size_t FEW = 16;                // tokens up to which the router's rows are split, not the tokens
constexpr size_t PIECE_BYTES = 64 << 10;  // of router rows, of one piece of work

bool is_more(float a, float b) { return a > b || (a != a && b == b); }  // what is no number is most, as in PyTorch

// The `count` largest of n, in falling order; of equal ones the first. Those that are taken are noted in `taken`.
void largest(const float* values, size_t n, size_t count, int64_t* found, std::vector<char>& taken) {
    taken.assign(n, 0);
    for (size_t k = 0; k < count; k++) {
        size_t best = n;
        for (size_t i = 0; i < n; i++)
            if (!taken[i] && (best == n || is_more(values[i], values[best]))) best = i;
        taken[best] = 1;
        found[k] = static_cast<int64_t>(best);
    }
}

void softmax(const Isa& isa, const float* x, float* out, size_t n) {
    float most = -std::numeric_limits<float>::infinity(), sum = 0.0f;
    for (size_t i = 0; i < n; i++) most = is_more(x[i], most) ? x[i] : most;
    for (size_t i = 0; i < n; i++) out[i] = x[i] - most;
    isa.exponentials(out, out, n);
    for (size_t i = 0; i < n; i++) sum += out[i];
    for (size_t i = 0; i < n; i++) out[i] /= sum;
}

void score(const Isa& isa, int kind, const float* logits, float* out, size_t n) {
    if (kind == SOFTMAX_SCORE) return softmax(isa, logits, out, n);
    if (kind == SIGMOID_SCORE) {
        for (size_t i = 0; i < n; i++) out[i] = -logits[i];
        isa.exponentials(out, out, n);
        for (size_t i = 0; i < n; i++) out[i] = 1.0f / (1.0f + out[i]);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const float x = logits[i];
        out[i] = kind == LOGIT_SCORE ? x : std::sqrt(x > 20.0f ? x : std::log1p(std::exp(x)));
    }
}

// One thread's place to work.
struct Place {
    std::vector<float> scores, choice, best, picked;
    std::vector<int64_t> groups;
    std::vector<char> taken;
};

void close_groups(const Routing& rule, size_t experts, Place& at) {
    const size_t size = experts / rule.groups;
    at.best.resize(rule.groups), at.groups.resize(std::max(rule.top_groups, size_t{2}));
    for (size_t g = 0; g < rule.groups; g++) {
        const float* own = at.choice.data() + g * size;
        largest(own, size, rule.by_two ? 2 : 1, at.groups.data(), at.taken);
        at.best[g] = rule.by_two ? own[at.groups[0]] + own[at.groups[1]] : own[at.groups[0]];
    }
    largest(at.best.data(), rule.groups, rule.top_groups, at.groups.data(), at.taken);
    const float closed = rule.closed_as_zero ? 0.0f : -std::numeric_limits<float>::infinity();
    for (size_t g = 0; g < rule.groups; g++)
        if (!at.taken[g]) std::fill_n(at.choice.begin() + static_cast<long>(g * size), size, closed);
}

void choose_one(const Router& router, const Isa& isa, const float* logits, Place& at, int64_t* ids, float* weights) {
    const Routing& rule = router.rule;
    const size_t experts = router.weight.rows, k = rule.top_k;
    at.scores.resize(experts), at.choice.resize(experts), at.picked.resize(k);
    const bool by_logits = rule.combine == BY_SOFTMAX && !router.selection_bias && rule.groups == 1;
    if (by_logits)
        std::copy_n(logits, experts, at.scores.data());
    else
        score(isa, rule.score, logits, at.scores.data(), experts);
    for (size_t e = 0; e < experts; e++)
        at.choice[e] = router.selection_bias ? at.scores[e] + router.selection_bias[e] : at.scores[e];
    if (rule.groups > 1) close_groups(rule, experts, at);
    largest(at.choice.data(), experts, k, ids, at.taken);
    for (size_t i = 0; i < k; i++) weights[i] = at.scores[static_cast<size_t>(ids[i])];
    if (rule.combine == BY_SHARES) {
        float sum = 0.0f;
        for (size_t i = 0; i < k; i++) sum += weights[i];
        if (rule.epsilon != 0.0f) sum += rule.epsilon;
        if (rule.floor != 0.0f && sum < rule.floor) sum = rule.floor;
        for (size_t i = 0; i < k; i++) weights[i] /= sum;
    } else if (rule.combine == BY_SOFTMAX) {
        for (size_t i = 0; i < k; i++) at.picked[i] = logits[ids[i]];
        softmax(isa, at.picked.data(), weights, k);
    } else if (rule.combine == BY_ONES) {
        std::fill_n(weights, k, 1.0f);
    }
    for (size_t i = 0; rule.scale != 1.0f && i < k; i++) weights[i] *= rule.scale;
}

struct Call {
    const Router& router;
    const Isa& isa;
    const float* x;
    size_t tokens;
    int64_t* ids;
    float* weights;
    std::vector<float> logits;
    size_t rows;  // of the router, of one piece

    void multiply(size_t token, size_t count, size_t first, size_t some) {
        const Matrix& m = router.weight;
        const void* rows_of_x[FEW];
        for (size_t t = 0; t < count; t++) rows_of_x[t] = x + (token + t) * m.columns;
        float* out = logits.data() + token * m.rows + first;
        isa.products(m, 0, first, some, rows_of_x, count, out, m.rows, nullptr);
        const float* bias = static_cast<const float*>(m.bias);  // the router is in float32
        for (size_t t = 0; bias && t < count; t++)
            for (size_t i = 0; i < some; i++) out[t * m.rows + i] += bias[first + i];
    }
    void route(size_t token, size_t count) {
        Place at;
        for (size_t t = token; t < token + count; t++)
            choose_one(router, isa, logits.data() + t * router.weight.rows, at, ids + t * router.rule.top_k,
                       weights + t * router.rule.top_k);
    }
};

}  // namespace

void choose(const Router& router, const float* x, size_t tokens, const Isa& isa, const Pool& pool, int64_t* ids,
            float* weights) {
    const size_t experts = router.weight.rows;
    Call call{router, isa, x, tokens, ids, weights, std::vector<float>(tokens * experts), 0};
    call.rows = std::max<size_t>(8, PIECE_BYTES / router.weight.row_bytes() / 8 * 8);
    if (tokens <= FEW) {
        auto piece = [](void* c, size_t i) {
            Call& own = *static_cast<Call*>(c);
            const size_t first = i * own.rows;
            own.multiply(0, own.tokens, first, std::min(own.rows, own.router.weight.rows - first));
        };
        if (tokens) pool.run(pool.context, piece, &call, (experts + call.rows - 1) / call.rows);
        return call.route(0, tokens);
    }
    auto piece = [](void* c, size_t i) {
        Call& own = *static_cast<Call*>(c);
        const size_t token = i * FEW, count = std::min(FEW, own.tokens - token);
        own.multiply(token, count, 0, own.router.weight.rows);
        own.route(token, count);
    };
    pool.run(pool.context, piece, &call, (tokens + FEW - 1) / FEW);
}

}  // namespace moec
