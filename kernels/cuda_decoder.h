// The decoder on the GPU, which leads itself in all modes: kernels/cuda_model.h decodes in baseline mode,
// kernels/cuda_rounds.h in the others.
#pragma once

#include <memory>
#include <string>

#include "decode/decoder.h"
#include "model/blob.h"

// "" if the GPU can be used, else a sentence that says why not.
std::string cuda_unusable(int device);
// The same for this blob's models on it.
std::string cuda_unusable(int device, const Blob& blob);

// The blob must outlive the decoder. Throws Error(kExitNoGpu) with cuda_unusable()'s sentence and
// Error(kExitOutOfMemory).
std::unique_ptr<Decoder> make_cuda_decoder(const Blob& blob, int device);
