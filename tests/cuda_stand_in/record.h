// What the stand-in writes down: one event a line, words parted by blanks, in the file that CUDA_STAND_IN_LOG names.
// `observation.py` reads it. A line `fault ...` is something that real hardware would refuse, or that nobody foresaw.
#pragma once
#include <cstddef>

extern "C" {
void stand_in_write(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Starts a new part of the log; says how much device memory is held, and the most that was held since the last mark.
void stand_in_mark(const char* name);
// Whether so many bytes lie within one allocation of device memory.
bool stand_in_on_device(const void* start, std::size_t bytes);
}
