// Reads device memory back, and writes it.
#pragma once

#include <cstddef>
#include <vector>

// Waits for the device, then copies from or to it; false if either failed.
bool fetch_bytes(void* to, const void* from, size_t bytes);
bool store_bytes(void* to, const void* from, size_t bytes);

// n values; empty if the device failed.
template <class T>
std::vector<T> fetch(const T* from, size_t n) {
    std::vector<T> values(n);
    if (!fetch_bytes(values.data(), from, n * sizeof(T))) values.clear();
    return values;
}
template <class T>
bool store(T* to, const std::vector<T>& values) {
    return store_bytes(to, values.data(), values.size() * sizeof(T));
}
