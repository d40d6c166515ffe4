// libcudart without a GPU: the log, the device, streams, graphs, errors. `kernels.cpp` and `copies.cpp` are the rest.
// The functions are those that ONNX Runtime's CUDA provider asks for, with the signatures of cuda_runtime_api.h.
#include "state.h"
#include <cstdarg>
#include <cstdio>

namespace {

cudaError_t waits(const char* what) {
    stand_in_write("wait %s", what);
    return forbidden(what) ? fails(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

} // namespace

extern "C" {

void stand_in_write(const char* format, ...) {
    static FILE* file = getenv("CUDA_STAND_IN_LOG") ? fopen(getenv("CUDA_STAND_IN_LOG"), "ae") : nullptr;
    if (!file) return;
    static std::mutex lock;
    std::lock_guard<std::mutex> guard(lock);
    va_list values;
    va_start(values, format);
    vfprintf(file, format, values);
    va_end(values);
    fputc('\n', file);
    fflush(file); // the process may die in the next call
}

void stand_in_mark(const char* name) {
    size_t held = only<Memory>().held(), most = only<Memory>().most();
    stand_in_write("mark %zu %zu %s", held, most, name);
}

// The device
cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* devices) { *devices = 1; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? fails(cudaErrorInvalidDevice) : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* left, size_t* all) {
    *all = 139ull << 30; // an H200's
    *left = *all - only<Memory>().held();
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
    memset(found, 0, sizeof *found);
    strcpy(found->name, "stand-in");
    found->major = capability() / 10;
    found->minor = capability() % 10;
    found->multiProcessorCount = 132;
    found->totalGlobalMem = 139ull << 30;
    found->sharedMemPerBlock = SHARED_BY_DEFAULT;
    found->sharedMemPerBlockOptin = shared_a_block();
    found->sharedMemPerMultiprocessor = shared_a_multiprocessor();
    found->warpSize = 32;
    found->maxThreadsPerBlock = 1024;
    found->maxThreadsPerMultiProcessor = 2048;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    found->l2CacheSize = 60 << 20;
    found->maxGridSize[0] = 2147483647;
    found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
    found->maxThreadsDim[2] = 64;
    found->maxBlocksPerMultiProcessor = 32;
    found->concurrentKernels = found->cooperativeLaunch = found->memoryPoolsSupported = found->unifiedAddressing = 1;
    found->asyncEngineCount = 3;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED_BY_DEFAULT; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_a_block(); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = shared_a_multiprocessor(); break;
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY:
        *value = 1024;
        break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrL2CacheSize: *value = 60 << 20; break;
    case cudaDevAttrCooperativeLaunch: case cudaDevAttrUnifiedAddressing: case cudaDevAttrConcurrentKernels:
    case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
    default:
        stand_in_write("fault the device's attribute %d is asked for", attribute);
        return fails(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

// Streams, events, graphs: everything has happened when it is asked for.
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return handle(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return handle(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { free(stream); return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return waits("stream"); }
cudaError_t cudaDeviceSynchronize() { return waits("device"); }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return handle(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return handle(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return waits("event"); }
cudaError_t cudaEventElapsedTime(float* elapsed_ms, cudaEvent_t, cudaEvent_t) { *elapsed_ms = 1; return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    stand_in_write("capture begins");
    only<Graph>() = {0, true};
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    only<Graph>().capturing = false;
    stand_in_write("capture ends");
    int* kernels = static_cast<int*>(malloc(sizeof(int)));
    *kernels = only<Graph>().kernels;
    *graph = reinterpret_cast<cudaGraph_t>(kernels);
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    *status = only<Graph>().capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    int* kernels = static_cast<int*>(malloc(sizeof(int)));
    *kernels = *reinterpret_cast<int*>(graph);
    *made = reinterpret_cast<cudaGraphExec_t>(kernels);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    stand_in_write("graph %d", *reinterpret_cast<int*>(graph));
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { free(graph); return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { free(graph); return cudaSuccess; }

// Errors
cudaError_t cudaGetLastError() {
    cudaError_t error = last;
    last = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDeviceFunction: return "cudaErrorInvalidDeviceFunction";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorInvalidMemcpyDirection: return "cudaErrorInvalidMemcpyDirection";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    default: return "another error of the stand-in";
    }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
}
