// The operators of the domain `moec.cpu` for ONNX Runtime: its tensors read as a block, its pool of threads lent to it.
//
// Experts(x, ids, weights, w_in, s_in?, z_in?, b_in?, w_out, s_out?, z_out?, b_out?) -> y
// Moe(x, router_weight, router_bias?, selection_bias?, w_in, …) -> y
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "block.h"
#include "onnxruntime.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace moec {
namespace {

using ort::Api;
using ort::CustomOp;
using ort::KernelContext;
using ort::KernelInfo;
using ort::Status;

// One tensor of a call; absent where `data` is null.
struct Tensor {
    void* data = nullptr;
    int type = 0;
    size_t rank = 0;
    int64_t size[8] = {};

    size_t at(size_t i) const { return static_cast<size_t>(size[i]); }
    size_t last() const { return rank ? at(rank - 1) : 1; }
    size_t rows() const {
        size_t n = 1;
        for (size_t i = 0; i + 1 < rank; i++) n *= at(i);
        return n;
    }
};

struct Failed {
    Status* status;
};

void check(Status* status) {
    if (status) throw Failed{status};
}

struct Refused {
    const char* why;
};

Tensor read(const Api& api, const KernelContext* context, size_t index) {
    const ort::Value* value = nullptr;
    check(api.input(context, index, &value));
    Tensor found;
    if (!value) return found;
    ort::TensorInfo* info = nullptr;
    check(api.info(value, &info));
    Status* wrong = api.element_type(info, &found.type);
    if (!wrong) wrong = api.rank(info, &found.rank);
    if (!wrong && found.rank <= 8) wrong = api.sizes(info, found.size, found.rank);
    api.release(info);
    check(wrong);
    if (found.rank > 8) throw Refused{"a tensor has more than 8 dimensions"};
    check(api.data(const_cast<ort::Value*>(value), &found.data));
    static char nothing[64];
    if (!found.data) found.data = nothing;  // of no elements
    return found;
}

void require(bool holds, const char* what) {
    if (!holds) throw Refused{what};
}

// Four inputs from `index` on: the matrix, its scales, zero points and biases.
Matrix matrix(const Api& api, const KernelContext* context, size_t index, size_t columns) {
    const Tensor w = read(api, context, index), s = read(api, context, index + 1), z = read(api, context, index + 2),
                 b = read(api, context, index + 3);
    require(w.rank == 3 && columns > 0, "a stack of matrices has three dimensions");
    Matrix m{w.data, nullptr, nullptr, nullptr, w.at(1), columns, 0, 32};
    if (!s.data) {
        require(w.type == ort::FLOAT && w.at(2) == columns, "matrices without scales are float32 and as wide as rows");
    } else {
        require(w.type == ort::UINT8 && s.type == ort::FLOAT && s.rank == 3, "codes are uint8, their scales float32");
        m.bits = static_cast<int>(w.at(2) * 8 / columns);
        require((m.bits == 8 || m.bits == 4 || m.bits == 2) && m.row_bytes() == w.at(2), "codes have 8, 4 or 2 bits");
        require(s.at(0) == w.at(0) && s.at(1) == w.at(1) && s.at(2) > 0 && columns % s.at(2) == 0,
                "scales go with the matrix");
        m.group = columns / s.at(2);
        require(m.group % m.chunk() == 0, "a group of codes is a multiple of 16 bytes");
        m.scale = static_cast<const float*>(s.data);
        if (z.data) {
            require(z.type == ort::UINT8 && z.rank == 3 && !std::memcmp(z.size, s.size, 3 * sizeof(int64_t)),
                    "zero points go with the scales");
            m.zero = static_cast<const uint8_t*>(z.data);
        }
    }
    if (b.data) {
        require(b.type == ort::FLOAT && b.rank == 2 && b.at(0) == w.at(0) && b.at(1) == w.at(1), "a bias for each row");
        m.bias = static_cast<const float*>(b.data);
    }
    return m;
}

struct Kernel {
    Api api;
    const Isa* isa;
    Activation activation;
    bool score_before, left_out;
    Routing routing{};

    template <class T> T attribute(const KernelInfo* info, const char* name) {
        T found{};
        check(api.attribute(info, name, &found));
        return found;
    }

    size_t count(const KernelInfo* info, const char* name, int64_t least = 0) {
        const int64_t found = attribute<int64_t>(info, name);
        require(found >= least && found < 1 << 30, "a number is too small or too large");
        return static_cast<size_t>(found);
    }

    Kernel(const Api& a, const KernelInfo* info, bool routes) : api(a), isa(find_isa(nullptr)) {
        activation.function = static_cast<int>(attribute<int64_t>(info, "function"));
        require(activation.function >= 0 && activation.function < FUNCTIONS, "there is no such function");
        activation.gated = attribute<int64_t>(info, "gated") != 0;
        activation.clamp_after = attribute<int64_t>(info, "clamp_after") != 0;
        activation.alpha = attribute<float>(info, "alpha");
        activation.beta = attribute<float>(info, "beta");
        activation.limit = attribute<float>(info, "limit");
        activation.cap = attribute<float>(info, "cap");
        activation.up_cap = attribute<float>(info, "up_cap");
        score_before = attribute<int64_t>(info, "score_before") != 0;
        left_out = attribute<int64_t>(info, "left_out") != 0;
        if (!routes) return;
        routing.score = static_cast<int>(count(info, "score"));
        routing.combine = static_cast<int>(count(info, "combine"));
        require(routing.score < SCORES && routing.combine < COMBINES, "there is no such rule");
        routing.top_k = count(info, "top_k", 1);
        routing.groups = count(info, "groups", 1), routing.top_groups = count(info, "top_groups", 1);
        routing.by_two = count(info, "by_two") != 0, routing.closed_as_zero = count(info, "closed_as_zero") != 0;
        routing.scale = attribute<float>(info, "scale");
        routing.epsilon = attribute<float>(info, "epsilon");
        routing.floor = attribute<float>(info, "floor");
    }

    // A block with all but its routing; `index` is of the first matrix.
    Block block(KernelContext* context, size_t index) const {
        const Tensor x = read(api, context, 0), out = read(api, context, index + 4);
        require(x.rank >= 1 && x.type == ort::FLOAT, "tokens are float32");
        Block b{};
        b.x = x.data;
        b.tokens = x.rows(), b.hidden = x.last();
        b.in = matrix(api, context, index, b.hidden);
        b.experts = read(api, context, index).at(0);
        b.inner = b.in.rows / (activation.gated ? 2 : 1);
        b.out = matrix(api, context, index + 4, b.inner);
        require(out.at(0) == b.experts && b.out.rows == b.hidden, "the second matrix goes with the first");
        b.activation = activation, b.score_before = score_before, b.left_out = left_out;
        ort::Value* y = nullptr;
        void* data = nullptr;
        check(api.output(context, 0, x.size, x.rank, &y));
        check(api.data(y, &data));
        b.y = static_cast<float*>(data);
        return b;
    }

    void run(const Block& b, const Pool& pool) const {
        if (const char* wrong = run_experts(b, *isa, pool)) throw Refused{wrong};
    }
};

// The runtime's own threads.
struct Lent {
    const Api& api;
    KernelContext* context;

    Pool pool() {
        return {this, [](void* c, void (*fn)(void*, size_t), void* data, size_t count) {
                    Lent& own = *static_cast<Lent*>(c);
                    if (count == 1) return fn(data, 0);
                    if (count) check(own.api.parallel_for(own.context, fn, count, data));
                }};
    }
};

void experts(const Kernel& kernel, KernelContext* context) {
    const Tensor ids = read(kernel.api, context, 1), weights = read(kernel.api, context, 2);
    Block b = kernel.block(context, 3);
    require(ids.type == ort::INT64 && weights.type == ort::FLOAT && ids.rank >= 1, "ids are int64, weights float32");
    require(ids.rows() == b.tokens && weights.rows() == b.tokens && weights.last() == ids.last(),
            "a row for each token");
    b.ids = static_cast<const int64_t*>(ids.data), b.weights = static_cast<const float*>(weights.data);
    b.top_k = ids.last();
    Lent lent{kernel.api, context};
    kernel.run(b, lent.pool());
}

void moe(const Kernel& kernel, KernelContext* context) {
    const Tensor router = read(kernel.api, context, 1), router_bias = read(kernel.api, context, 2),
                 selection_bias = read(kernel.api, context, 3);
    Block b = kernel.block(context, 4);
    const Routing& rule = kernel.routing;
    require(router.type == ort::FLOAT && router.rank == 2 && router.at(0) == b.experts && router.at(1) == b.hidden,
            "the router is a float32 matrix with a row for each expert");
    for (const Tensor& bias : {router_bias, selection_bias})
        require(!bias.data || (bias.type == ort::FLOAT && bias.rank == 1 && bias.at(0) == b.experts),
                "a router's biases are float32, one for each expert");
    const bool few = rule.top_groups > rule.groups || (rule.by_two && b.experts / rule.groups < 2);
    require(rule.top_k <= b.experts && b.experts % rule.groups == 0 && (rule.groups == 1 || !few),
            "there are fewer experts or groups than are to be chosen");
    const Matrix weight{router.data, nullptr, nullptr, static_cast<const float*>(router_bias.data), b.experts,
                        b.hidden,    0,       32};
    std::vector<int64_t> ids(b.tokens * rule.top_k);
    std::vector<float> weights(b.tokens * rule.top_k);
    Lent lent{kernel.api, context};
    const Pool pool = lent.pool();
    choose({weight, static_cast<const float*>(selection_bias.data), rule}, static_cast<const float*>(b.x), b.tokens,
           *kernel.isa, pool, ids.data(), weights.data());
    b.ids = ids.data(), b.weights = weights.data(), b.top_k = rule.top_k;
    kernel.run(b, pool);
}

template <class F> Status* guarded(const Api& api, F f) {
    try {
        f();
        return nullptr;
    } catch (const Failed& failed) {
        return failed.status;
    } catch (const Refused& refused) {
        return api.fail((std::string("moec.cpu: ") + refused.why).c_str());
    } catch (const std::exception& error) {
        return api.fail((std::string("moec.cpu: ") + error.what()).c_str());
    }
}

// An operator of which the first GIVEN inputs must be there, then those at FIRST and FIRST + 4. One that routes has
// optional inputs between.
template <size_t GIVEN, size_t FIRST, void (*COMPUTE)(const Kernel&, KernelContext*)> CustomOp operator_named() {
    CustomOp op{};
    op.version = ort::VERSION;
    op.provider = [](const CustomOp*) -> const char* { return nullptr; };
    op.input_type = [](const CustomOp*, size_t) -> int { return ort::ANY; };
    op.input_count = [](const CustomOp*) -> size_t { return FIRST + 8; };
    op.output_type = [](const CustomOp*, size_t) -> int { return ort::FLOAT; };
    op.output_count = [](const CustomOp*) -> size_t { return 1; };
    op.input_presence = [](const CustomOp*, size_t i) -> int {
        return i < GIVEN || i == FIRST || i == FIRST + 4 ? ort::REQUIRED : ort::OPTIONAL;
    };
    op.output_presence = [](const CustomOp*, size_t) -> int { return ort::REQUIRED; };
    op.input_memory = [](const CustomOp*, size_t) -> int { return 0; };
    op.variadic_input_least = op.variadic_output_least = [](const CustomOp*) -> int { return 0; };
    op.variadic_input_alike = op.variadic_output_alike = [](const CustomOp*) -> int { return 0; };
    op.create_checked = [](const CustomOp*, const void* const* table, const KernelInfo* info, void** kernel) {
        const Api api{table};
        return guarded(api, [&] { *kernel = new Kernel(api, info, FIRST > GIVEN); });
    };
    op.compute_checked = [](void* kernel, KernelContext* context) {
        const Kernel& own = *static_cast<Kernel*>(kernel);
        return guarded(own.api, [&] { COMPUTE(own, context); });
    };
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    op.first_version = [](const CustomOp*) -> int { return 1; };
    op.last_version = [](const CustomOp*) -> int { return 1; };
    return op;
}

}  // namespace
}  // namespace moec

EXPORTED ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
    using namespace moec;
    const void* const* table = base->api(ort::VERSION);
    if (!table) {  // too old; a status cannot be made but with a table, and every runtime has the first
        table = base->api(1);
        return table ? Api{table}.fail("moec.cpu needs ONNX Runtime 1.22 or later") : nullptr;
    }
    const Api api{table};
    static CustomOp known[] = {operator_named<3, 3, experts>(), operator_named<2, 4, moe>()};
    known[0].name = [](const CustomOp*) -> const char* { return "Experts"; };
    known[1].name = [](const CustomOp*) -> const char* { return "Moe"; };
    ort::Domain* domain = nullptr;
    if (Status* wrong = api.create_domain("moec.cpu", &domain)) return wrong;
    for (const CustomOp& op : known)
        if (Status* wrong = api.add(domain, &op)) return wrong;
    return api.add(options, domain);  // the domain lives as long as the process
}
