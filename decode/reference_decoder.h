// The CPU decoder of a blob.
#pragma once

#include <memory>

#include "decode/decoder.h"
#include "model/blob.h"

// The blob must outlive the decoder.
std::unique_ptr<Decoder> make_reference_decoder(const Blob& blob);
