// The functions of one instruction set. Compiled once for each, with that set's own flags; see building.py.
#include "functions.h"
#include "products.h"

namespace moec {

#if defined(__AVX512F__)
extern const Isa isa_avx512 = {"avx512", products, activate, add_scaled, exponentials};
#elif defined(__AVX2__)
extern const Isa isa_avx2 = {"avx2", products, activate, add_scaled, exponentials};
#else
extern const Isa isa_plain = {"plain", products, activate, add_scaled, exponentials};
#endif

}  // namespace moec
