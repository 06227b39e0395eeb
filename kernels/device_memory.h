// One allocation of device memory, cut into pieces.
#pragma once

#include <cstdint>
#include <span>
#include <string>

class DeviceMemory {
public:
    // count elements, to which `pointer` shall point.
    struct Piece {
        template <class T>
        Piece(T*& pointer, uint64_t count) : to(&pointer), bytes(count * sizeof(T)) {}
        void* to;
        uint64_t bytes;
    };

    DeviceMemory() = default;
    DeviceMemory(const DeviceMemory&) = delete;
    ~DeviceMemory();

    // Once. Pieces lie in their order, at multiples of 256 bytes; pointers to empty ones stay as they are. what: needs
    // the memory. Throws Error(kExitOutOfMemory) with what is needed and free.
    void allocate(std::span<const Piece> pieces, const std::string& what);

    uint64_t bytes() const { return bytes_; }
    const uint8_t* end() const { return memory_ + bytes_; }

private:
    uint8_t* memory_ = nullptr;
    uint64_t bytes_ = 0;
};
