// One call of a block: tokens are sorted by expert, then two parallel regions, over neurons and over outputs.
#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "block.h"

namespace moec {
namespace {

constexpr size_t TOGETHER = 48;           // tokens whose products are held at a time
constexpr size_t MOST_BYTES = 256 << 10;  // of weights, a piece of work: it stays in L2 while tokens pass
constexpr size_t LEAST_BYTES = 32 << 10;
constexpr size_t PIECES = 64;             // in which a call's weights are cut where there are few
constexpr size_t MOST_ROWS = 128;         // of a piece
constexpr size_t KEPT_BYTES = 64 << 20;   // of scratch memory between calls

// Scratch memory that layers use one after the other: new pages for every call would cost more than the call.
class Scratch {
  public:
    explicit Scratch(size_t floats) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!kept_.empty()) memory_.swap(kept_.back()), kept_.pop_back();
        if (memory_.size() < floats) memory_.resize(floats);
    }
    ~Scratch() {
        std::lock_guard<std::mutex> lock(mutex_);
        if (memory_.size() * sizeof(float) <= KEPT_BYTES && kept_.size() < 4) kept_.push_back(std::move(memory_));
    }
    float* data() { return memory_.data(); }

  private:
    std::vector<float> memory_;
    static std::mutex mutex_;
    static std::vector<std::vector<float>> kept_;
};
std::mutex Scratch::mutex_;
std::vector<std::vector<float>> Scratch::kept_;

// Floats in the order in which codes of 16 bytes are read: the first of each byte, then the second, ….
void permute(const float* from, float* to, size_t n, size_t chunk) {
    const size_t places = chunk / 16;
    for (size_t k = 0; k < n; k += chunk)
        for (size_t p = 0; p < places; p++)
            for (size_t i = 0; i < 16; i++) to[k + p * 16 + i] = from[k + i * places + p];
}

struct Piece {
    size_t expert, first, rows;
};

struct Call {
    const Block& block;
    const Isa& isa;
    std::vector<size_t> starts;       // of each expert's choices among the sorted ones, and their number
    std::vector<size_t> choices;      // sorted by expert: token * top_k + k; without those that are left out
    std::vector<const float*> x;      // the row of each sorted choice
    std::vector<size_t> busy;         // experts that some token chose
    std::vector<Piece> pieces;        // of the first region
    float* hidden = nullptr;          // [choices, inner], in the order of the second matrix
    size_t out_rows = 0;              // of a piece of the second region

    size_t count(size_t e) const { return starts[e + 1] - starts[e]; }
};

const char* sort(Call& call) {
    const Block& b = call.block;
    const size_t n = b.tokens * b.top_k;
    const auto counts = [&b](size_t choice) { return !b.left_out || b.weights[choice] != 0.0f; };
    call.starts.assign(b.experts + 1, 0);
    for (size_t i = 0; i < n; i++) {
        if (b.ids[i] < 0 || static_cast<size_t>(b.ids[i]) >= b.experts) return "an id is no expert";
        call.starts[static_cast<size_t>(b.ids[i]) + 1] += counts(i);
    }
    for (size_t e = 0; e < b.experts; e++) {
        if (call.starts[e + 1]) call.busy.push_back(e);
        call.starts[e + 1] += call.starts[e];
    }
    std::vector<size_t> next(call.starts.begin(), call.starts.end() - 1);
    call.choices.resize(call.starts.back());
    for (size_t i = 0; i < n; i++)
        if (counts(i)) call.choices[next[static_cast<size_t>(b.ids[i])]++] = i;
    return nullptr;
}

// The rows of x that products read: as they are, or scaled and in another order in `copies`.
void place_rows(Call& call, float* copies) {
    const Block& b = call.block;
    const size_t chunk = b.in.chunk();
    call.x.resize(call.choices.size());
    for (size_t i = 0; i < call.choices.size(); i++) {
        const size_t choice = call.choices[i], token = choice / b.top_k;
        const float* row = b.x + token * b.hidden;
        if (b.score_before) {
            float* scaled = copies + i * b.hidden;
            for (size_t k = 0; k < b.hidden; k++) scaled[k] = row[k] * b.weights[choice];
            row = scaled;
        }
        call.x[i] = row;
    }
    if (chunk == 1) return;
    float* to = copies + (b.score_before ? call.choices.size() * b.hidden : 0);
    if (b.score_before) {
        for (auto& row : call.x) permute(row, to, b.hidden, chunk), row = to, to += b.hidden;
        return;
    }
    for (size_t t = 0; t < b.tokens; t++) permute(b.x + t * b.hidden, to + t * b.hidden, b.hidden, chunk);
    for (size_t i = 0; i < call.choices.size(); i++) call.x[i] = to + call.choices[i] / b.top_k * b.hidden;
}

size_t copied_floats(const Block& b) {
    const size_t rows = b.score_before ? b.tokens * b.top_k : b.tokens;
    return b.hidden * ((b.score_before ? rows : 0) + (b.in.chunk() > 1 ? rows : 0));
}

// How many rows make a piece of work, in steps. row_bytes: of a row in all experts that a piece is of; all_bytes: of
// the rows of all pieces.
size_t rows_of_piece(size_t row_bytes, size_t all_bytes, size_t step) {
    const size_t bytes = std::min(MOST_BYTES, std::max(LEAST_BYTES, all_bytes / PIECES));
    const size_t rows = std::min(MOST_ROWS, bytes / std::max<size_t>(1, row_bytes));
    return std::max(step, rows / step * step);
}

void cut(Call& call) {
    const Block& b = call.block;
    const size_t busy = call.busy.size(), step = std::max<size_t>(16, b.out.chunk());
    const size_t neuron_bytes = (b.activation.gated ? 2 : 1) * b.in.row_bytes(), out_bytes = b.out.row_bytes() * busy;
    const size_t rows = rows_of_piece(neuron_bytes, neuron_bytes * b.inner * busy, step);
    for (size_t e : call.busy)
        for (size_t r = 0; r < b.inner; r += rows) call.pieces.push_back({e, r, std::min(rows, b.inner - r)});
    // the longest first, so that no thread is left alone with one
    std::stable_sort(call.pieces.begin(), call.pieces.end(),
                     [&](const Piece& p, const Piece& q) { return call.count(p.expert) > call.count(q.expert); });
    call.out_rows = rows_of_piece(b.out.row_bytes() * std::min<size_t>(busy, 8), out_bytes * b.hidden, 8);
}

std::unique_ptr<float[]> room_to_unpack(const Matrix& m, size_t tokens) {
    if (!m.has_codes() || tokens <= DIRECT) return nullptr;
    return std::unique_ptr<float[]>(new float[UNPACKED * m.columns]);
}

// The bias of some rows in float32, as it lies or widened in `place`; null where there is none.
const float* bias_of(const Matrix& m, size_t row, size_t rows, float* place) {
    if (!m.bias || m.bits != 16) return m.bias ? static_cast<const float*>(m.bias) + row : nullptr;
    const uint16_t* from = static_cast<const uint16_t*>(m.bias) + row;
    for (size_t i = 0; i < rows; i++) {
        const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
        std::memcpy(place + i, &bits, sizeof(bits));
    }
    return place;
}

void add_bias(const float* bias, float* rows, size_t tokens, size_t n) {
    for (size_t t = 0; bias && t < tokens; t++)
        for (size_t i = 0; i < n; i++) rows[t * n + i] += bias[i];
}

// Some neurons of one expert for all of its tokens: gate and up, then the activation.
void neurons(Call& call, size_t which) {
    const Block& b = call.block;
    const Piece& piece = call.pieces[which];
    const size_t count = call.count(piece.expert), n = piece.rows, chunk = b.out.chunk();
    const auto unpacked = room_to_unpack(b.in, std::min(count, TOGETHER));
    const size_t row = piece.expert * b.in.rows + piece.first;
    alignas(64) float gate[TOGETHER * MOST_ROWS], up[TOGETHER * MOST_ROWS], active[MOST_ROWS], place[2][MOST_ROWS];
    const float* bias = bias_of(b.in, row, n, place[0]);
    const float* up_bias = b.activation.gated ? bias_of(b.in, row + b.inner, n, place[1]) : nullptr;
    for (size_t done = 0; done < count; done += TOGETHER) {
        const size_t some = std::min(TOGETHER, count - done), at = call.starts[piece.expert] + done;
        const float* const* x = call.x.data() + at;
        call.isa.products(b.in, piece.expert, piece.first, n, x, some, gate, n, unpacked.get());
        add_bias(bias, gate, some, n);
        if (b.activation.gated) {
            call.isa.products(b.in, piece.expert, b.inner + piece.first, n, x, some, up, n, unpacked.get());
            add_bias(up_bias, up, some, n);
        }
        for (size_t t = 0; t < some; t++) {
            float* to = call.hidden + (at + t) * b.inner + piece.first;
            const float* u = b.activation.gated ? up + t * n : nullptr;
            call.isa.activate(b.activation, gate + t * n, u, chunk == 1 ? to : active, n);
            if (chunk > 1) permute(active, to, n, chunk);
        }
    }
}

// Some columns of the result for all tokens, expert after expert: a token's sum has one order, that of its experts.
void outputs(Call& call, size_t which) {
    const Block& b = call.block;
    const size_t first = which * call.out_rows, n = std::min(call.out_rows, b.hidden - first);
    std::unique_ptr<float[]> unpacked;
    alignas(64) float sums[TOGETHER * MOST_ROWS], place[MOST_ROWS];
    const float* x[TOGETHER];
    for (size_t t = 0; t < b.tokens; t++) std::fill_n(b.y + t * b.hidden + first, n, 0.0f);
    for (size_t e : call.busy) {
        const float* bias = bias_of(b.out, e * b.hidden + first, n, place);
        if (!unpacked) unpacked = room_to_unpack(b.out, std::min(call.count(e), TOGETHER));
        for (size_t done = 0; done < call.count(e); done += TOGETHER) {
            const size_t some = std::min(TOGETHER, call.count(e) - done), at = call.starts[e] + done;
            for (size_t t = 0; t < some; t++) x[t] = call.hidden + (at + t) * b.inner;
            call.isa.products(b.out, e, first, n, x, some, sums, n, unpacked.get());
            for (size_t t = 0; t < some; t++) {
                const size_t choice = call.choices[at + t];
                const float weight = b.score_before ? 1.0f : b.weights[choice];
                call.isa.add_scaled(b.y + choice / b.top_k * b.hidden + first, sums + t * n, bias, weight, n);
            }
        }
    }
}

}  // namespace

const char* run_experts(const Block& block, const Isa& isa, const Pool& pool) {
    Call call{block, isa, {}, {}, {}, {}, {}};
    if (const char* wrong = sort(call)) return wrong;
    Scratch scratch(block.tokens * block.top_k * block.inner + copied_floats(block));
    call.hidden = scratch.data();
    place_rows(call, scratch.data() + block.tokens * block.top_k * block.inner);
    cut(call);
    pool.run(pool.context, [](void* c, size_t i) { neurons(*static_cast<Call*>(c), i); }, &call, call.pieces.size());
    const size_t count = block.tokens ? (block.hidden + call.out_rows - 1) / call.out_rows : 0;
    pool.run(pool.context, [](void* c, size_t i) { outputs(*static_cast<Call*>(c), i); }, &call, count);
    return nullptr;
}

}  // namespace moec
