// Packing is bound by memory: matrices are cut into runs of tiles of a few MB, each packed, checksummed and written
// before the next. A Conv1D weight (in_features, out_features) is transposed on the way. One thread: of the 5.5 s that
// GPT2-L takes, packing is 2.5 and the rest is writing.
#include "weights_tool/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "model/error.h"
#include "model/half.h"

constexpr uint64_t kRunBytes = 8 << 20;  // of packed halves

static uint16_t half_from_f32(const uint8_t* p) {
    float value;
    std::memcpy(&value, p, 4);
    return float_to_half(value);
}

static uint16_t half_from_f16(const uint8_t* p) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    return bits;
}

static uint16_t half_from_bf16(const uint8_t* p) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    return float_to_half(std::bit_cast<float>(uint32_t(bits) << 16));
}

static bool finite(uint16_t half) {
    return (half & 0x7c00) != 0x7c00;
}

template <uint64_t size, uint16_t (*read)(const uint8_t*)>
static bool pack(const uint8_t* source, const TensorPlace& place, bool transposed, uint64_t first_tile,
                 uint64_t n_tiles, uint16_t* packed) {
    // Patches of 16 lines of the source, kLength elements of each.
    constexpr uint64_t kLength = 256;
    const uint64_t patch_rows = transposed ? kLength : 16, patch_columns = transposed ? 16 : kLength;
    const uint64_t first = 16 * first_tile, end = std::min(first + 16 * n_tiles, place.rows);
    std::fill_n(packed, n_tiles * 16 * ((place.columns + 15) / 16 * 16), uint16_t(0));
    uint16_t patch[16][kLength];
    uint16_t broken = 0;
    for (uint64_t row = first; row < end; row += patch_rows)
        for (uint64_t column = 0; column < place.columns; column += patch_columns) {
            const uint64_t n_rows = std::min(patch_rows, end - row);
            const uint64_t n_columns = std::min(patch_columns, place.columns - column);
            const uint64_t n_lines = transposed ? n_columns : n_rows, length = transposed ? n_rows : n_columns;
            for (uint64_t line = 0; line < n_lines; line++) {
                const uint64_t at =
                    transposed ? (column + line) * place.rows + row : (row + line) * place.columns + column;
                for (uint64_t i = 0; i < length; i++) patch[line][i] = read(source + (at + i) * size);
                for (uint64_t i = 0; i < length; i++) broken |= !finite(patch[line][i]);
            }
            for (uint64_t r = 0; r < n_rows; r++)
                for (uint64_t c = 0; c < n_columns; c++)
                    packed[tiled_index(row - first + r, column + c, place.columns)] =
                        transposed ? patch[c][r] : patch[r][c];
        }
    return !broken;
}

bool pack_tiles(const Tensor& tensor, const TensorPlace& place, bool transposed, uint64_t first_tile, uint64_t n_tiles,
                uint16_t* packed) {
    const auto run = tensor.dtype == "F32"   ? pack<4, half_from_f32>
                     : tensor.dtype == "F16" ? pack<2, half_from_f16>
                                             : pack<2, half_from_bf16>;
    return run(tensor.bytes.data(), place, transposed, first_tile, n_tiles, packed);
}

// The sentence for the first value of a tensor that can't be stored.
[[noreturn]] static void refuse_value(const Checkpoint& checkpoint, const TensorPlace& place, const Tensor& tensor) {
    const auto fits = [&](float value) {
        return place.form == Form::vector ? std::isfinite(value) : finite(float_to_half(value));
    };
    const uint64_t n = tensor.bytes.size() / element_size(tensor);
    uint64_t i = 0;
    while (i + 1 < n && fits(element(tensor, i))) i++;
    const float value = element(tensor, i);
    const std::string where = checkpoint.folder + " holds " + std::to_string(value) + " in the tensor \"" + place.name +
                              "\", element " + std::to_string(i) + " of shape " + shape_text(tensor.shape);
    if (std::isfinite(value))
        throw Error(kExitBadModel, where + ", beyond fp16 (at most 65504 in magnitude); scale the weights");
    throw Error(kExitBadModel, where + "; convert a sound checkpoint");
}

template <class T>
static std::span<const uint8_t> bytes_of(const std::vector<T>& values) {
    return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(T)};
}

void pack_model(const Checkpoint& checkpoint, SectionKind kind, BlobWriter& writer, Progress& progress) {
    const ModelLayout layout(checkpoint.config);
    writer.begin(kind);
    ModelHeader header = {};
    header.config = checkpoint.config;
    writer.write({reinterpret_cast<const uint8_t*>(&header), sizeof header});
    for (const TensorPlace& place : layout.tensor) {
        const Tensor& tensor = checkpoint.tensor.at(place.name);
        bool sound = true;
        writer.pad_to(place.offset);
        if (place.form == Form::tiles) {
            const uint64_t tile_bytes = 32 * ((place.columns + 15) / 16 * 16), n_tiles = (place.rows + 15) / 16;
            const uint64_t per_run = std::max<uint64_t>(1, kRunBytes / tile_bytes);
            std::vector<uint16_t> packed;
            for (uint64_t tile = 0; tile < n_tiles; tile += per_run) {
                const uint64_t n = std::min(per_run, n_tiles - tile);
                packed.resize(n * tile_bytes / 2);
                sound = sound && pack_tiles(tensor, place, is_conv1d(place), tile, n, packed.data());
                writer.write(bytes_of(packed));
                progress.add(n * tile_bytes);
            }
        } else if (place.form == Form::rows) {
            std::vector<uint16_t> row(place.columns);
            for (uint64_t r = 0; r < place.rows; r++) {
                for (uint64_t c = 0; c < place.columns; c++) {
                    row[c] = float_to_half(element(tensor, r * place.columns + c));
                    sound = sound && finite(row[c]);
                }
                writer.write(bytes_of(row));
            }
            progress.add(place.size);
        } else {
            std::vector<float> values(place.rows);
            for (uint64_t r = 0; r < place.rows; r++) {
                values[r] = element(tensor, r);
                sound = sound && std::isfinite(values[r]);
            }
            writer.write(bytes_of(values));
            progress.add(place.size);
        }
        if (!sound) refuse_value(checkpoint, place, tensor);
        release_pages(tensor.bytes);
    }
    writer.pad_to(layout.size);
    writer.end();
}
