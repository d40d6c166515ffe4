// libcublasLt without a GPU: products are written down, and not computed. See blas.cpp.
#include "record.h"
#include <cstdint>
#include <cstring>

namespace {

struct Description { int compute, type; };
struct Layout { int type; std::uint64_t rows, columns; };
struct Heuristic { // cublasLtMatmulHeuristicResult_t
    std::uint64_t algorithm[8];
    std::size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

} // namespace

extern "C" {

int cublasLtCreate(void** handle) { *handle = new int(0); return 0; }
int cublasLtDestroy(void* handle) { delete static_cast<int*>(handle); return 0; }
int cublasLtMatmulDescCreate(void** made, int compute, int type) { *made = new Description{compute, type}; return 0; }
int cublasLtMatmulDescDestroy(void* description) { delete static_cast<Description*>(description); return 0; }
int cublasLtMatmulDescSetAttribute(void*, int, const void*, std::size_t) { return 0; }
int cublasLtMatmulPreferenceCreate(void** made) { *made = new int(0); return 0; }
int cublasLtMatmulPreferenceDestroy(void* preference) { delete static_cast<int*>(preference); return 0; }
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, std::size_t) { return 0; }
int cublasLtMatrixLayoutCreate(void** made, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t) {
    *made = new Layout{type, rows, columns};
    return 0;
}
int cublasLtMatrixLayoutDestroy(void* layout) { delete static_cast<Layout*>(layout); return 0; }
int cublasLtMatrixLayoutSetAttribute(void*, int, const void*, std::size_t) { return 0; }
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, Heuristic* found,
                                   int* number) {
    std::memset(found, 0, sizeof *found);
    *number = 1;
    return 0;
}
int cublasLtMatmul(void*, Description* description, const void*, const void* a, Layout* of_a, const void* b, Layout*,
                   const void*, const void*, Layout*, void* d, Layout* of_d, const void*, void*, std::size_t, void*) {
    auto inner = of_a->rows == of_d->rows ? of_a->columns : of_a->rows;
    stand_in_write("product cublasLtMatmul type %d compute %d mode 0 %d,%d,%d,1", of_a->type, description->compute,
                   int(of_d->rows), int(of_d->columns), int(inner));
    if (of_d->rows && of_d->columns &&
        !(stand_in_on_device(a, 1) && stand_in_on_device(b, 1) && stand_in_on_device(d, 1)))
        stand_in_write("fault cublasLtMatmul reads or writes memory of the host");
    return 0;
}
}
