// libcudart without a GPU: memory is host memory; kernels are checked and named, and not run.
// The functions that ONNX Runtime's CUDA provider asks for; signatures are those of cuda_runtime_api.h.
#include "memory.h"
#include "record.h"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include <string>

namespace {

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

struct Call {
    dim3 grid, block;
    size_t shared_bytes;
    void* stream;
};

thread_local Call configured;
thread_local cudaError_t last = cudaSuccess;

cudaError_t fails(cudaError_t error) { return last = error; }

int capability() { // 90: an H100 or H200
    const char* asked = getenv("CUDA_STAND_IN_SM");
    return asked ? atoi(asked) : 90;
}

// Bytes of shared memory that one block may ask for, and that one multiprocessor has (CUDA C++ Programming Guide).
int shared_a_block() {
    switch (capability()) {
    case 75: return 64 << 10;
    case 80: case 87: return 163 << 10;
    case 86: case 89: case 120: return 99 << 10;
    default: return 227 << 10;
    }
}

int shared_a_multiprocessor() { return shared_a_block() + (capability() == 75 ? 0 : 1 << 10); }

constexpr int SHARED_BY_DEFAULT = 48 << 10;

const char* why_not(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
    if (!grid.x || !grid.y || !grid.z) return "empty-grid";
    if (!block.x || !block.y || !block.z) return "empty-block";
    if (grid.y > 65535 || grid.z > 65535) return "grid-too-large";
    if (block.x * block.y * block.z > 1024 || block.z > 64) return "block-too-large";
    auto allowed = only<Known>().shared_bytes.find(kernel);
    int most = allowed == only<Known>().shared_bytes.end() ? SHARED_BY_DEFAULT : allowed->second;
    if (shared_bytes > static_cast<size_t>(most > SHARED_BY_DEFAULT ? most : SHARED_BY_DEFAULT)) return "shared-memory";
    return "ok";
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
    auto name = only<Known>().names.find(kernel);
    const char* verdict = name == only<Known>().names.end() ? "unknown" : why_not(kernel, grid, block, shared_bytes);
    stand_in_write("launch %s %u,%u,%u %u,%u,%u %zu %s", verdict, grid.x, grid.y, grid.z, block.x, block.y, block.z,
                   shared_bytes, name == only<Known>().names.end() ? "?" : name->second.c_str());
    if (!strcmp(verdict, "unknown")) return fails(cudaErrorInvalidDeviceFunction);
    if (strcmp(verdict, "ok")) return fails(cudaErrorInvalidConfiguration);
    if (only<Graph>().capturing) ++only<Graph>().kernels;
    return cudaSuccess;
}

// A capture in the mode `global` allows no call that waits or allocates.
bool forbidden(const char* what) {
    if (!only<Graph>().capturing) return false;
    stand_in_write("fault %s while a graph is captured", what);
    return true;
}

cudaError_t take(void** start, size_t bytes, const char* how) {
    if (forbidden(how)) return fails(cudaErrorStreamCaptureUnsupported);
    *start = only<Memory>().take(bytes, Place::device);
    stand_in_write("alloc %s %zu", how, bytes);
    return *start ? cudaSuccess : fails(cudaErrorMemoryAllocation);
}

cudaError_t give(void* start, Place place, const char* how) {
    size_t bytes = 0;
    if (!start) return cudaSuccess;
    if (!only<Memory>().give(start, place, &bytes)) {
        stand_in_write("fault %s of what was not allocated", how);
        return fails(cudaErrorInvalidValue);
    }
    stand_in_write("free %s %zu", how, bytes);
    return cudaSuccess;
}

const char* word(Place place) {
    return place == Place::device ? "device" : place == Place::pinned ? "pinned" : "host";
}

// What a direction says of one end; `cudaMemcpyDefault` says nothing.
bool fits(Place place, cudaMemcpyKind kind, bool source) {
    if (kind == cudaMemcpyDefault) return true;
    bool device = kind == cudaMemcpyDeviceToDevice || kind == (source ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice);
    return device == (place == Place::device);
}

cudaError_t copy(void* to, const void* from, size_t bytes, size_t span, cudaMemcpyKind kind, const char* how) {
    size_t room_to, room_from;
    Place target = only<Memory>().of(to, &room_to), source = only<Memory>().of(from, &room_from);
    stand_in_write("copy %s %s %s %zu", how, word(source), word(target), bytes);
    if (bytes && (span > room_to || span > room_from)) {
        stand_in_write("fault a copy of %zu bytes leaves its allocation", span);
        return fails(cudaErrorInvalidValue);
    }
    if (bytes && !(fits(target, kind, false) && fits(source, kind, true))) {
        stand_in_write("fault a copy from %s to %s is said to be of kind %d", word(source), word(target), kind);
        return fails(cudaErrorInvalidMemcpyDirection);
    }
    return cudaSuccess;
}

cudaError_t fill(void* start, int value, size_t bytes) {
    stand_in_write("fill %zu", bytes);
    if (bytes && !stand_in_on_device(start, bytes)) {
        stand_in_write("fault a fill of %zu bytes leaves device memory", bytes);
        return fails(cudaErrorInvalidValue);
    }
    memset(start, value, bytes);
    return cudaSuccess;
}

cudaError_t waits(const char* what) {
    stand_in_write("wait %s", what);
    return forbidden(what) ? fails(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

template <class Handle> cudaError_t handle(Handle* made) {
    *made = reinterpret_cast<Handle>(malloc(8));
    return cudaSuccess;
}

int encodes_nothing() { return 0; }

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

bool stand_in_on_device(const void* start, size_t bytes) {
    size_t room;
    return only<Memory>().of(start, &room) == Place::device && bytes <= room;
}

// Kernels: the provider registers them by address and name when it is loaded.
void** __cudaRegisterFatBinary(void*) { return static_cast<void**>(malloc(8)); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, void*, void*, void*, void*, int*) {
    only<Known>().names[kernel] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, void* stream) {
    configured = {grid, block, shared_bytes, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
    *grid = configured.grid;
    *block = configured.block;
    *shared_bytes = configured.shared_bytes;
    *static_cast<void**>(stream) = configured.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* address) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(address));
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t bytes, cudaStream_t) {
    return launch(kernel, grid, block, bytes);
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t bytes, cudaStream_t) {
    return launch(kernel, grid, block, bytes);
}
cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t bytes, cudaStream_t) {
    return launch(kernel, grid, block, bytes);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
    return launch(kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
    stand_in_write("hostcall");
    function(data);
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 64;
    found->binaryVersion = found->ptxVersion = capability();
    found->maxDynamicSharedSizeBytes = shared_a_block();
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value > shared_a_block()) return fails(cudaErrorInvalidValue);
    only<Known>().shared_bytes[kernel] = value;
    return cudaSuccess;
}
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, cudaFuncAttribute attribute, int value, int) {
    return cudaFuncSetAttribute(kernel, attribute, value);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
    *blocks = 2;
    return cudaSuccess;
}
// What a library would be loaded from is code made at run time: there is nobody to run it.
cudaError_t cudaLibraryLoadData(cudaLibrary_t*, const void*, cudaJitOption*, void**, unsigned, cudaLibraryOption*,
                                void**, unsigned) {
    stand_in_write("fault a library of kernels is loaded");
    return fails(cudaErrorNotSupported);
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t*, cudaLibrary_t, const char*) { return fails(cudaErrorNotSupported); }
cudaError_t cudaLibraryUnload(cudaLibrary_t) { return cudaSuccess; }
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
    bool known = !strncmp(name, "cuTensorMapEncode", 17);
    if (!known) stand_in_write("fault the driver's function %s is asked for", name);
    *function = known ? reinterpret_cast<void*>(encodes_nothing) : nullptr;
    if (result) *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
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
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *value = 1024; break;
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

// Memory
cudaError_t cudaMalloc(void** start, size_t bytes) { return take(start, bytes, "cudaMalloc"); }
cudaError_t cudaMallocFromPoolAsync(void** start, size_t bytes, cudaMemPool_t, cudaStream_t) {
    return take(start, bytes, "cudaMallocFromPoolAsync");
}
cudaError_t cudaFree(void* start) {
    if (start && forbidden("cudaFree")) return fails(cudaErrorStreamCaptureUnsupported);
    return give(start, Place::device, "cudaFree");
}
cudaError_t cudaFreeAsync(void* start, cudaStream_t) { return give(start, Place::device, "cudaFreeAsync"); }
cudaError_t cudaMallocHost(void** start, size_t bytes) {
    *start = only<Memory>().take(bytes, Place::pinned);
    stand_in_write("pin %zu", bytes);
    return *start ? cudaSuccess : fails(cudaErrorMemoryAllocation);
}
cudaError_t cudaHostAlloc(void** start, size_t bytes, unsigned) { return cudaMallocHost(start, bytes); }
cudaError_t cudaFreeHost(void* start) { return give(start, Place::pinned, "cudaFreeHost"); }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (forbidden("cudaMemcpy")) return fails(cudaErrorStreamCaptureUnsupported);
    cudaError_t error = copy(to, from, bytes, bytes, kind, "waits");
    if (!error && bytes) memmove(to, from, bytes);
    return error;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    cudaError_t error = copy(to, from, bytes, bytes, kind, "queued");
    if (!error && bytes) memmove(to, from, bytes);
    return error;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t rows, cudaMemcpyKind kind, cudaStream_t) {
    size_t pitch = to_pitch > from_pitch ? from_pitch : to_pitch; // a bound that both ends have to keep
    cudaError_t error = copy(to, from, width * rows, rows ? (rows - 1) * pitch + width : 0, kind, "queued");
    for (size_t row = 0; !error && row < rows; ++row)
        memmove(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    return error;
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void*, size_t bytes, size_t, cudaMemcpyKind) {
    stand_in_write("copy waits device host %zu", bytes);
    memset(to, 0, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemset(void* start, int value, size_t bytes) { return fill(start, value, bytes); }
cudaError_t cudaMemsetAsync(void* start, int value, size_t bytes, cudaStream_t) { return fill(start, value, bytes); }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
    size_t room;
    Place place = only<Memory>().of(address, &room);
    memset(found, 0, sizeof *found);
    found->type = place == Place::device   ? cudaMemoryTypeDevice
                  : place == Place::pinned ? cudaMemoryTypeHost
                                           : cudaMemoryTypeUnregistered;
    found->devicePointer = place == Place::host ? nullptr : const_cast<void*>(address);
    found->hostPointer = place == Place::device ? nullptr : const_cast<void*>(address);
    return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) { return handle(pool); }
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaSuccess; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
    *static_cast<unsigned long long*>(value) = 0;
    return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

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
