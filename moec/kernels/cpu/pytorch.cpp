// What PyTorch calls through ctypes: one block, on the threads that PyTorch itself works with.
//
// Those are a team of OpenMP threads. The function that starts a region on a team is handed in, out of the OpenMP
// library that PyTorch was linked with: a pool or an OpenMP library of our own would have threads that spin beside
// PyTorch's.
#include <atomic>
#include <exception>
#include <new>

#include "block.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

// GOMP_parallel of libgomp's interface: fn(data) once on each of so many threads, the caller among them.
using Parallel = void (*)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);

struct Team {
    Parallel parallel;
    unsigned threads;
};

struct Region {
    void (*fn)(void*, size_t);
    void* data;
    size_t count;
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
};

// What one thread does: a piece of work after the other, until none is left. No exception may leave a region.
void take_pieces(void* given) {
    Region& region = *static_cast<Region*>(given);
    try {
        for (size_t i; (i = region.next++) < region.count;) region.fn(region.data, i);
    } catch (const std::exception&) {
        region.failed = true;
    }
}

// Always the whole team, however few the pieces are: libgomp ends the threads that a smaller team leaves over.
void run_on_team(void* given, void (*fn)(void*, size_t), void* data, size_t count) {
    const Team& team = *static_cast<Team*>(given);
    Region region{fn, data, count};
    if (count < 2 || team.threads < 2 || !team.parallel)
        take_pieces(&region);
    else
        team.parallel(take_pieces, &region, team.threads, 0);
    if (region.failed) throw std::bad_alloc();  // there is nothing else that a piece of work can throw
}

}  // namespace

// Returns null, or what is wrong. parallel: null for the calling thread alone.
EXPORTED const char* moec_cpu_experts_on_team(const moec::Block* block, Parallel parallel, unsigned threads) {
    Team team{parallel, threads};
    try {
        return moec::run_experts(*block, *moec::find_isa(nullptr), {&team, run_on_team});
    } catch (const std::exception&) {
        return "there is no memory for the call";
    }
}
