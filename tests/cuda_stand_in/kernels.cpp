// Kernels of libcudart without a GPU: they are checked and named, and not run.
#include "state.h"

namespace {

struct Call {
    dim3 grid, block;
    size_t shared_bytes;
    void* stream;
};

thread_local Call configured;

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

int encodes_nothing() { return 0; }

} // namespace

extern "C" {

// Kernels: the provider registers them by address and name when it is loaded.
void** __cudaRegisterFatBinary(void*) { return static_cast<void**>(malloc(8)); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int, void*, void*, void*,
                            void*, int*) {
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
}
