// What the sources of libcudart share: memory, kernels, the graph that is captured, the last error.
#pragma once
#include "memory.h"
#include "record.h"
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <string>

template <class T> T& only() { // one for all, made when it is first asked for: kernels register before main
    static T* it = new T();
    return *it;
}

struct Known { // what the provider has told about its kernels
    std::map<const void*, std::string> names;
    std::map<const void*, int> shared_bytes;
};

struct Graph { // what a captured stream holds
    int kernels = 0;
    bool capturing = false;
};

inline thread_local cudaError_t last = cudaSuccess;

inline cudaError_t fails(cudaError_t error) { return last = error; }

inline int capability() { // 90: an H100 or H200
    const char* asked = getenv("CUDA_STAND_IN_SM");
    return asked ? atoi(asked) : 90;
}


// Bytes of shared memory that one block may ask for, and that one multiprocessor has (CUDA C++ Programming Guide).
inline int shared_a_block() {
    switch (capability()) {
    case 75: return 64 << 10;
    case 80: case 87: return 163 << 10;
    case 86: case 89: case 120: return 99 << 10;
    default: return 227 << 10;
    }
}

inline int shared_a_multiprocessor() { return shared_a_block() + (capability() == 75 ? 0 : 1 << 10); }


constexpr int SHARED_BY_DEFAULT = 48 << 10;

// A capture in the mode `global` allows no call that waits or allocates.
inline bool forbidden(const char* what) {
    if (!only<Graph>().capturing) return false;
    stand_in_write("fault %s while a graph is captured", what);
    return true;
}


template <class Handle> cudaError_t handle(Handle* made) {
    *made = reinterpret_cast<Handle>(malloc(8));
    return cudaSuccess;
}
