// Turns a checkpoint's tensors into a model section of the blob.
#pragma once

#include <span>

#include "model/blob.h"
#include "weights_tool/blob_writer.h"
#include "weights_tool/checkpoint.h"
#include "weights_tool/progress.h"

// Writes the section `kind`. Throws Error(kExitBadModel) that names tensor, place and value of the first NaN, infinity
// or number too large for fp16. Needs a few MB beside the mapped checkpoint, whose pages are released once read.
void pack_model(const Checkpoint& checkpoint, SectionKind kind, BlobWriter& writer, Progress& progress);

// Rows [16 * first_tile, 16 * (first_tile + n_tiles)) of the matrix at `place`, padding included, into `packed`:
// n_tiles * 16 * pad16(columns) halves. The tensor is (rows, columns), or (columns, rows) if `transposed`. Returns
// whether all values were finite and fit fp16.
bool pack_tiles(const Tensor& tensor, const TensorPlace& place, bool transposed, uint64_t first_tile, uint64_t n_tiles,
                uint16_t* packed);
