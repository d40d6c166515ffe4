// Device memory that is host memory: who owns an address, and how much is held.
#pragma once
#include <cstddef>
#include <map>
#include <mutex>
#include <sys/mman.h>

enum class Place { host, pinned, device };

class Memory {
  public:
    // Zeroed pages that cost nothing until they are touched; null when the address space is used up.
    void* take(std::size_t bytes, Place place) {
        std::size_t size = bytes ? bytes : 1;
        void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start == MAP_FAILED) return nullptr;
        std::lock_guard<std::mutex> guard(lock_);
        blocks_[static_cast<const char*>(start)] = {size, place};
        if (place == Place::device) {
            held_ += bytes;
            if (held_ > most_) most_ = held_;
        }
        return start;
    }

    // False when the address is the start of no block in that place.
    bool give(void* start, Place place, std::size_t* bytes) {
        std::lock_guard<std::mutex> guard(lock_);
        auto found = blocks_.find(static_cast<const char*>(start));
        if (found == blocks_.end() || found->second.place != place) return false;
        *bytes = found->second.size;
        if (place == Place::device) held_ -= *bytes;
        munmap(start, *bytes);
        blocks_.erase(found);
        return true;
    }

    // Where an address lies, and how many bytes follow it there (for the host: unknown, so all).
    Place of(const void* address, std::size_t* room) {
        std::lock_guard<std::mutex> guard(lock_);
        auto block = blocks_.upper_bound(static_cast<const char*>(address));
        *room = static_cast<std::size_t>(-1);
        if (block == blocks_.begin()) return Place::host;
        --block;
        const char* end = block->first + block->second.size;
        if (static_cast<const char*>(address) >= end) return Place::host;
        *room = static_cast<std::size_t>(end - static_cast<const char*>(address));
        return block->second.place;
    }

    std::size_t held() { return held_; }

    // The most that was held since this was asked last.
    std::size_t most() {
        std::size_t most = most_;
        most_ = held_;
        return most;
    }

  private:
    struct Block {
        std::size_t size;
        Place place;
    };
    std::map<const char*, Block> blocks_;
    std::mutex lock_;
    std::size_t held_ = 0, most_ = 0;
};
