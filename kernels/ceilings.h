// What a GPU can do at best (decode/ceilings.h), and what it is.
#pragma once

#include <cstdint>

#include "decode/ceilings.h"

// device: an index that cuda_unusable() has no objection to. Throw Error(kExitFailed) if the GPU fails.
DeviceFacts cuda_facts(int device);

// Reads up to 2 GiB, less where less than 4 GiB are free; Error(kExitOutOfMemory) where not even 64 MiB are.
Ceilings cuda_ceilings(int device);

// Seconds to read `bytes` of device memory from p once: the median of 21 after 3 that warm up. On the current device.
double cuda_read_seconds(const void* p, uint64_t bytes);
