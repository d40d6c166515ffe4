// The part of ONNX Runtime's C interface that the operators use, declared anew: opaque types, and function pointers at
// their places in tables to which the runtime only ever appends. The places are those of version 22 and later; an older
// runtime gives no table of that version, and the library refuses it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t VERSION = 22;

struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;
struct CustomOp;

struct Api {
    const void* const* table;

    template <class F> F at(size_t place) const { return reinterpret_cast<F>(const_cast<void*>(table[place])); }

    Status* fail(const char* message) const { return at<Status* (*)(int, const char*)>(0)(1, message); }
    Status* create_domain(const char* name, Domain** out) const {
        return at<Status* (*)(const char*, Domain**)>(26)(name, out);
    }
    Status* add(Domain* domain, const CustomOp* op) const {
        return at<Status* (*)(Domain*, const CustomOp*)>(27)(domain, op);
    }
    Status* add(SessionOptions* options, Domain* domain) const {
        return at<Status* (*)(SessionOptions*, Domain*)>(28)(options, domain);
    }
    Status* data(Value* value, void** out) const { return at<Status* (*)(Value*, void**)>(51)(value, out); }
    Status* element_type(const TensorInfo* info, int* out) const {
        return at<Status* (*)(const TensorInfo*, int*)>(60)(info, out);
    }
    Status* rank(const TensorInfo* info, size_t* out) const {
        return at<Status* (*)(const TensorInfo*, size_t*)>(61)(info, out);
    }
    Status* sizes(const TensorInfo* info, int64_t* out, size_t rank) const {
        return at<Status* (*)(const TensorInfo*, int64_t*, size_t)>(62)(info, out, rank);
    }
    Status* info(const Value* value, TensorInfo** out) const {
        return at<Status* (*)(const Value*, TensorInfo**)>(65)(value, out);
    }
    Status* attribute(const KernelInfo* info, const char* name, float* out) const {
        return at<Status* (*)(const KernelInfo*, const char*, float*)>(85)(info, name, out);
    }
    Status* attribute(const KernelInfo* info, const char* name, int64_t* out) const {
        return at<Status* (*)(const KernelInfo*, const char*, int64_t*)>(86)(info, name, out);
    }
    Status* input(const KernelContext* context, size_t index, const Value** out) const {
        return at<Status* (*)(const KernelContext*, size_t, const Value**)>(90)(context, index, out);
    }
    Status* output(KernelContext* context, size_t index, const int64_t* sizes, size_t rank, Value** out) const {
        return at<Status* (*)(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(context, index, sizes, rank,
                                                                                            out);
    }
    void release(Status* status) const { at<void (*)(Status*)>(93)(status); }
    void release(TensorInfo* info) const { at<void (*)(TensorInfo*)>(99)(info); }
    void release(Domain* domain) const { at<void (*)(Domain*)>(101)(domain); }
    Status* parallel_for(const KernelContext* context, void (*fn)(void*, size_t), size_t total, void* data) const {
        using Function = Status* (*)(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*);
        return at<Function>(274)(context, fn, total, 0, data);
    }
};

struct ApiBase {
    const void* const* (*api)(uint32_t version);
    const char* (*version)();
};

enum ElementType { ANY = 0, FLOAT = 1, UINT8 = 2, INT64 = 7 };
enum Presence { REQUIRED = 0, OPTIONAL = 1 };

// What the runtime asks of an operator: a table of functions, which get the table itself.
struct CustomOp {
    uint32_t version;
    void* (*create)(const CustomOp*, const void* const*, const KernelInfo*);
    const char* (*name)(const CustomOp*);
    const char* (*provider)(const CustomOp*);
    int (*input_type)(const CustomOp*, size_t);
    size_t (*input_count)(const CustomOp*);
    int (*output_type)(const CustomOp*, size_t);
    size_t (*output_count)(const CustomOp*);
    void (*compute)(void*, KernelContext*);
    void (*destroy)(void*);
    int (*input_presence)(const CustomOp*, size_t);
    int (*output_presence)(const CustomOp*, size_t);
    int (*input_memory)(const CustomOp*, size_t);
    int (*variadic_input_least)(const CustomOp*);
    int (*variadic_input_alike)(const CustomOp*);
    int (*variadic_output_least)(const CustomOp*);
    int (*variadic_output_alike)(const CustomOp*);
    Status* (*create_checked)(const CustomOp*, const void* const*, const KernelInfo*, void**);
    Status* (*compute_checked)(void*, KernelContext*);
    Status* (*infer_shape)(const CustomOp*, void*);
    int (*first_version)(const CustomOp*);
    int (*last_version)(const CustomOp*);
    size_t (*may_inplace)(int**, int**);
    void (*release_may_inplace)(int*, int*);
    size_t (*alias_map)(int**, int**);
    void (*release_alias_map)(int*, int*);
};

}  // namespace ort
