// Memory of libcudart without a GPU: allocations and copies are done, checked and written down.
#include "state.h"

namespace {

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
    cudaMemcpyKind other = source ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
    bool device = kind == cudaMemcpyDeviceToDevice || kind == other;
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

} // namespace

extern "C" {

bool stand_in_on_device(const void* start, size_t bytes) {
    size_t room;
    return only<Memory>().of(start, &room) == Place::device && bytes <= room;
}

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
}
