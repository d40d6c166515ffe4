// What tests and benchmarks call through ctypes: one block on a given instruction set, without a runtime. Pieces of
// work run one after the other, in order or in the reverse one.
#include <exception>

#include "block.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* moec_cpu_isa(const char* name) {
    const moec::Isa* found = moec::find_isa(name);
    return found ? found->name : nullptr;
}

EXPORTED const char* moec_cpu_experts(const moec::Block* block, const char* isa, int reversed) {
    const moec::Isa* found = moec::find_isa(isa);
    if (!found) return "this processor has no such instruction set";
    const moec::Pool pool{&reversed, [](void* backwards, void (*fn)(void*, size_t), void* data, size_t count) {
                              const bool back = *static_cast<int*>(backwards) != 0;
                              for (size_t i = 0; i < count; i++) fn(data, back ? count - 1 - i : i);
                          }};
    try {
        return moec::run_experts(*block, *found, pool);
    } catch (const std::exception&) {
        return "there is no memory for the call";
    }
}

// Read out of the file by moec/kernels/cpu/library.py, which does not load what was compiled from other sources.
#if defined(MOEC_SOURCES)
EXPORTED const char moec_cpu_sources[];
const char moec_cpu_sources[] = MOEC_SOURCES;
#endif
