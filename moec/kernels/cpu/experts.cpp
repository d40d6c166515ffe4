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
constexpr size_t MANY = 32;               // tokens an expert, on average
constexpr size_t MOST_OUTPUTS = 64;       // rows of a piece of the second region then
constexpr size_t KEPT_BYTES = 64 << 20;   // of scratch memory between calls

// Scratch memory that layers use one after the other: new pages for every call would cost more than the call. Nobody
// waits for it: a process that was forked while another thread held the lock would wait for ever.
class Scratch {
  public:
    explicit Scratch(size_t floats) {
        if (std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock && !kept_.empty())
            memory_.swap(kept_.back()), kept_.pop_back();
        if (memory_.size() < floats) memory_.resize(floats);
    }
    ~Scratch() {
        if (memory_.size() * sizeof(float) > KEPT_BYTES) return;
        if (std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock && kept_.size() < 4)
            kept_.push_back(std::move(memory_));
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
    std::vector<const void*> x;       // the row of each sorted choice
    std::vector<size_t> busy;         // experts that some token chose
    std::vector<Piece> pieces;        // of the first region
    char* hidden = nullptr;           // [choices, hidden_bytes], as products with the second matrix read it
    size_t hidden_bytes = 0;          // of a row of `inner` numbers
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

// Numbers of bfloat16 in float32.
void widen(const void* from, float* to, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(from)[i]) << 16;
        std::memcpy(to + i, &bits, sizeof(bits));
    }
}

// Bytes of a row of n numbers that are multiplied with this matrix.
size_t bytes_of_row(const Matrix& m, const Isa& isa, size_t n) {
    if (!m.is_half()) return n * sizeof(float);
    const size_t all = (n + PAIRS - 1) / PAIRS * PAIRS;
    return all * (isa.pairs ? sizeof(uint16_t) : sizeof(float));
}

// Writes a row for products with this matrix: floats as they are, in the order of codes, or as bfloat16.
void lay(const Matrix& m, const Isa& isa, const float* from, char* to, size_t n) {
    if (m.is_half()) return isa.narrow(from, to, n);
    if (m.chunk() == 1) return void(std::memcpy(to, from, n * sizeof(float)));
    permute(from, reinterpret_cast<float*>(to), n, m.chunk());
}

// Whether products read the tokens where they lie.
bool reads_tokens(const Block& b, const Isa& isa) {
    return !b.score_before && (b.in.is_half() ? isa.pairs : b.in.chunk() == 1);
}

// The rows of x that products read: as they are, or scaled and in another order in `copies`.
void place_rows(Call& call, char* copies) {
    const Block& b = call.block;
    const size_t row_bytes = b.hidden * (b.in.is_half() ? sizeof(uint16_t) : sizeof(float));
    const size_t step = bytes_of_row(b.in, call.isa, b.hidden), n = b.score_before ? call.choices.size() : b.tokens;
    const bool as_they_are = reads_tokens(b, call.isa);
    const char* x = static_cast<const char*>(b.x);
    std::vector<float> row(b.hidden);
    for (size_t i = 0; i < n && !as_they_are; i++) {
        const char* from = x + (b.score_before ? call.choices[i] / b.top_k : i) * row_bytes;
        b.in.is_half() ? widen(from, row.data(), b.hidden) : void(std::memcpy(row.data(), from, row_bytes));
        for (size_t k = 0; b.score_before && k < b.hidden; k++) row[k] *= b.weights[call.choices[i]];
        lay(b.in, call.isa, row.data(), copies + i * step, b.hidden);
    }
    call.x.resize(call.choices.size());
    for (size_t i = 0; i < call.choices.size(); i++) {
        const size_t token = call.choices[i] / b.top_k;
        call.x[i] = as_they_are ? x + token * row_bytes : copies + (b.score_before ? i : token) * step;
    }
}

size_t copied_bytes(const Block& b, const Isa& isa) {
    const size_t rows = b.score_before ? b.tokens * b.top_k : b.tokens;
    return reads_tokens(b, isa) ? 0 : rows * bytes_of_row(b.in, isa, b.hidden);
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
    const size_t busy = call.busy.size(), step = b.out.is_half() ? PAIRS : std::max<size_t>(16, b.out.chunk());
    const size_t neuron_bytes = (b.activation.gated ? 2 : 1) * b.in.row_bytes(), out_bytes = b.out.row_bytes() * busy;
    const size_t rows = rows_of_piece(neuron_bytes, neuron_bytes * b.inner * busy, step);
    for (size_t e : call.busy)
        for (size_t r = 0; r < b.inner; r += rows) call.pieces.push_back({e, r, std::min(rows, b.inner - r)});
    // the longest first, so that no thread is left alone with one
    std::stable_sort(call.pieces.begin(), call.pieces.end(),
                     [&](const Piece& p, const Piece& q) { return call.count(p.expert) > call.count(q.expert); });
    // Where an expert has many tokens, what they read and write passes once for each piece, so pieces are larger.
    const bool many = call.choices.size() >= MANY * busy;
    const size_t least = std::min<size_t>(MOST_OUTPUTS, b.hidden / 16 / 8 * 8);
    call.out_rows = rows_of_piece(b.out.row_bytes() * std::min<size_t>(busy, 8), out_bytes * b.hidden, 8);
    if (many) call.out_rows = std::max(call.out_rows, std::min(least, MOST_BYTES / b.out.row_bytes() / 8 * 8));
}

std::unique_ptr<float[]> room_to_unpack(const Matrix& m, size_t tokens) {
    if (!m.has_codes() || tokens <= DIRECT) return nullptr;
    return std::unique_ptr<float[]>(new float[UNPACKED * m.columns]);
}

// The bias of some rows in float32, as it lies or widened in `place`; null where there is none.
const float* bias_of(const Matrix& m, size_t row, size_t rows, float* place) {
    if (!m.bias || m.bits != 16) return m.bias ? static_cast<const float*>(m.bias) + row : nullptr;
    widen(static_cast<const uint16_t*>(m.bias) + row, place, rows);
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
    const size_t count = call.count(piece.expert), n = piece.rows;
    const bool plain = !b.out.is_half() && b.out.chunk() == 1;
    const auto unpacked = room_to_unpack(b.in, std::min(count, TOGETHER));
    const size_t row = piece.expert * b.in.rows + piece.first;
    alignas(64) float gate[TOGETHER * MOST_ROWS], up[TOGETHER * MOST_ROWS], active[MOST_ROWS], place[2][MOST_ROWS];
    const float* bias = bias_of(b.in, row, n, place[0]);
    const float* up_bias = b.activation.gated ? bias_of(b.in, row + b.inner, n, place[1]) : nullptr;
    for (size_t done = 0; done < count; done += TOGETHER) {
        const size_t some = std::min(TOGETHER, count - done), at = call.starts[piece.expert] + done;
        const void* const* x = call.x.data() + at;
        call.isa.products(b.in, piece.expert, piece.first, n, x, some, gate, n, unpacked.get());
        add_bias(bias, gate, some, n);
        if (b.activation.gated) {
            call.isa.products(b.in, piece.expert, b.inner + piece.first, n, x, some, up, n, unpacked.get());
            add_bias(up_bias, up, some, n);
        }
        for (size_t t = 0; t < some; t++) {
            char* to = call.hidden + (at + t) * call.hidden_bytes + bytes_of_row(b.out, call.isa, piece.first);
            const float* u = b.activation.gated ? up + t * n : nullptr;
            call.isa.activate(b.activation, gate + t * n, u, plain ? reinterpret_cast<float*>(to) : active, n);
            if (!plain) lay(b.out, call.isa, active, to, n);
        }
    }
}

// Some columns of the result for all tokens, expert after expert: a token's sum has one order, that of its experts.
void outputs(Call& call, size_t which) {
    const Block& b = call.block;
    const size_t first = which * call.out_rows, n = std::min(call.out_rows, b.hidden - first);
    std::unique_ptr<float[]> unpacked;
    alignas(64) float sums[TOGETHER * MOST_ROWS], place[MOST_ROWS];
    const void* x[TOGETHER];
    for (size_t t = 0; t < b.tokens; t++) std::fill_n(b.y + t * b.hidden + first, n, 0.0f);
    for (size_t e : call.busy) {
        const float* bias = bias_of(b.out, e * b.hidden + first, n, place);
        if (!unpacked) unpacked = room_to_unpack(b.out, std::min(call.count(e), TOGETHER));
        for (size_t done = 0; done < call.count(e); done += TOGETHER) {
            const size_t some = std::min(TOGETHER, call.count(e) - done), at = call.starts[e] + done;
            for (size_t t = 0; t < some; t++) x[t] = call.hidden + (at + t) * call.hidden_bytes;
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
    if (block.in.is_half() != block.out.is_half()) return "both matrices are in bfloat16, or none";
    Call call{block, isa, {}, {}, {}, {}, {}};
    if (const char* wrong = sort(call)) return wrong;
    call.hidden_bytes = bytes_of_row(block.out, isa, block.inner);
    const size_t all_hidden = call.choices.size() * call.hidden_bytes;
    Scratch scratch((all_hidden + copied_bytes(block, isa)) / sizeof(float));
    call.hidden = reinterpret_cast<char*>(scratch.data());
    place_rows(call, call.hidden + all_hidden);
    cut(call);
    pool.run(pool.context, [](void* c, size_t i) { neurons(*static_cast<Call*>(c), i); }, &call, call.pieces.size());
    const size_t count = block.tokens ? (block.hidden + call.out_rows - 1) / call.out_rows : 0;
    pool.run(pool.context, [](void* c, size_t i) { outputs(*static_cast<Call*>(c), i); }, &call, count);
    return nullptr;
}

}  // namespace moec
