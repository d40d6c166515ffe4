// Which instruction sets the processor has, asked once when the library is loaded.
#include <cstring>

#include "block.h"

namespace moec {

const Isa* find_isa(const char* name) {
    const Isa* here[4];
    size_t n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) here[n++] = &isa_avx512_bf16;
    if (avx512) here[n++] = &isa_avx512;
    if (avx2) here[n++] = &isa_avx2;
#endif
    here[n++] = &isa_plain;
    for (size_t i = 0; i < n; i++)
        if (!name || !*name || !std::strcmp(name, here[i]->name)) return here[i];
    return nullptr;
}

}  // namespace moec
