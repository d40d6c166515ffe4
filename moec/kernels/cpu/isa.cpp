// The functions of one instruction set. Compiled once for each, with that set's own flags; see building.py.
#include "functions.h"
#include "products.h"

namespace moec {

#if defined(__AVX512BF16__)
extern const Isa isa_avx512_bf16 = {"avx512_bf16", true, products, activate, add_scaled, exponentials, narrow};
#elif defined(__AVX512F__)
extern const Isa isa_avx512 = {"avx512", false, products, activate, add_scaled, exponentials, narrow};
#elif defined(__AVX2__)
extern const Isa isa_avx2 = {"avx2", false, products, activate, add_scaled, exponentials, narrow};
#else
extern const Isa isa_plain = {"plain", false, products, activate, add_scaled, exponentials, narrow};
#endif

}  // namespace moec
