// libcublas without a GPU: products are checked and written down, with their math mode, and not computed.
// NVIDIA's cuBLAS documentation gives the signatures and the arguments that are refused. What is missing here is made
// by `build.py`: a function that writes its name.
#include "record.h"
#include <algorithm>
#include <cstdlib>

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7 };
enum Type { REAL_32 = 0, REAL_64 = 1, REAL_16 = 2 }; // cudaDataType_t
enum Compute { IN_16 = 64, IN_32 = 68, IN_64 = 70 }; // cublasComputeType_t

struct Handle { int math_mode; };

struct Matrix {
    int transposed;
    int leading;
    const void* start;
};

struct Shape { int m, n, k, batch; };

int least(const Matrix& matrix, int rows, int columns) { return std::max(1, matrix.transposed ? columns : rows); }

// One product of matrices, C = A B, in columns: A is m by k, B is k by n.
int product(const char* name, void* handle, Shape s, Matrix a, Matrix b, Matrix c, int type, int compute,
            bool batched = false) {
    int mode = static_cast<Handle*>(handle)->math_mode;
    stand_in_write("product %s type %d compute %d mode %d %d,%d,%d,%d", name, type, compute, mode, s.m, s.n, s.k,
                   s.batch);
    bool sizes = s.m >= 0 && s.n >= 0 && s.k >= 0 && s.batch >= 0;
    if (!sizes || a.leading < least(a, s.m, s.k) || b.leading < least(b, s.k, s.n) ||
        c.leading < std::max(1, s.m)) {
        stand_in_write("fault %s: sizes or leading dimensions are refused", name);
        return INVALID_VALUE;
    }
    if (batched || !s.m || !s.n || !s.k || !s.batch) return SUCCESS; // arrays of pointers, or nothing to read
    if (!stand_in_on_device(a.start, 1) || !stand_in_on_device(b.start, 1) || !stand_in_on_device(c.start, 1))
        stand_in_write("fault %s reads or writes memory of the host", name);
    return SUCCESS;
}

} // namespace

extern "C" {

int cublasCreate_v2(void** handle) { *handle = new Handle{0}; return SUCCESS; }
int cublasDestroy_v2(void* handle) { delete static_cast<Handle*>(handle); return SUCCESS; }
int cublasSetStream_v2(void*, void*) { return SUCCESS; }
int cublasGetMathMode(void* handle, int* mode) { *mode = static_cast<Handle*>(handle)->math_mode; return SUCCESS; }
int cublasSetMathMode(void* handle, int mode) { static_cast<Handle*>(handle)->math_mode = mode; return SUCCESS; }
const char* cublasGetStatusName(int status) { return status ? "CUBLAS_STATUS_INVALID_VALUE" : "CUBLAS_STATUS_SUCCESS"; }
const char* cublasGetStatusString(int status) { return cublasGetStatusName(status); }

int cublasSgemm_v2(void* h, int ta, int tb, int m, int n, int k, const float*, const float* a, int lda, const float* b,
                   int ldb, const float*, float* c, int ldc) {
    return product("cublasSgemm", h, {m, n, k, 1}, {ta, lda, a}, {tb, ldb, b}, {0, ldc, c}, REAL_32, IN_32);
}
int cublasDgemm_v2(void* h, int ta, int tb, int m, int n, int k, const double*, const double* a, int lda,
                   const double* b,
                   int ldb, const double*, double* c, int ldc) {
    return product("cublasDgemm", h, {m, n, k, 1}, {ta, lda, a}, {tb, ldb, b}, {0, ldc, c}, REAL_64, IN_64);
}
int cublasGemmEx(void* h, int ta, int tb, int m, int n, int k, const void*, const void* a, int type, int lda,
                 const void* b, int, int ldb, const void*, void* c, int, int ldc, int compute, int) {
    return product("cublasGemmEx", h, {m, n, k, 1}, {ta, lda, a}, {tb, ldb, b}, {0, ldc, c}, type, compute);
}
int cublasSgemmStridedBatched(void* h, int ta, int tb, int m, int n, int k, const float*, const float* a, int lda,
                              long long, const float* b, int ldb, long long, const float*, float* c, int ldc, long long,
                              int batch) {
    return product("cublasSgemmStridedBatched", h, {m, n, k, batch}, {ta, lda, a}, {tb, ldb, b}, {0, ldc, c},
                   REAL_32, IN_32);
}
int cublasDgemmStridedBatched(void* h, int ta, int tb, int m, int n, int k, const double*, const double* a, int lda,
                              long long, const double* b, int ldb, long long, const double*, double* c, int ldc,
                              long long, int batch) {
    return product("cublasDgemmStridedBatched", h, {m, n, k, batch}, {ta, lda, a}, {tb, ldb, b}, {0, ldc, c},
                   REAL_64, IN_64);
}
int cublasGemmStridedBatchedEx(void* h, int ta, int tb, int m, int n, int k, const void*, const void* a,
                               int type, int lda,
                               long long, const void* b, int, int ldb, long long, const void*, void* c, int, int ldc,
                               long long, int batch, int compute, int) {
    return product("cublasGemmStridedBatchedEx", h, {m, n, k, batch}, {ta, lda, a}, {tb, ldb, b}, {0, ldc, c},
                   type, compute);
}
int cublasSgemmBatched(void* h, int ta, int tb, int m, int n, int k, const float*, const float* const* a, int lda,
                       const float* const* b, int ldb, const float*, float* const* c, int ldc, int batch) {
    return product("cublasSgemmBatched", h, {m, n, k, batch}, {ta, lda, a}, {tb, ldb, b}, {0, ldc, c}, REAL_32,
                   IN_32, true);
}
int cublasGemmBatchedEx(void* h, int ta, int tb, int m, int n, int k, const void*, const void* const* a,
                        int type, int lda,
                        const void* const* b, int, int ldb, const void*, void* const* c, int, int ldc, int batch,
                        int compute, int) {
    return product("cublasGemmBatchedEx", h, {m, n, k, batch}, {ta, lda, a}, {tb, ldb, b}, {0, ldc, c}, type,
                   compute, true);
}
}
