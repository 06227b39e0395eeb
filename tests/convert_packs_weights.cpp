// Every element of a checkpoint is found in the blob where the layout says, rounded to fp16 once, whatever the
// checkpoint's dtypes, names, shards and shapes; what convert writes, verify accepts.
#include <doctest/doctest.h>

#include <bit>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "model/blob.h"
#include "model/half.h"
#include "tests/blob_bytes.h"
#include "tests/small_checkpoint.h"
#include "tests/temporary_folder.h"
#include "weights_tool/convert.h"

// Differences between the checkpoint and the model section made from it.
static int differences(SmallCheckpoint& checkpoint, const ModelView& model, const std::string& prefix) {
    int wrong = 0;
    for (const TensorPlace& place : ModelLayout(model.config).tensor) {
        const SmallTensor& tensor = checkpoint[(place.name == "lm_head.weight" ? "" : prefix) + place.name];
        const bool conv1d = place.form == Form::tiles && place.name.starts_with("h.");
        REQUIRE(tensor.values.size() == place.rows * place.columns);
        for (uint64_t r = 0; r < place.rows; r++)
            for (uint64_t c = 0; c < place.columns; c++) {
                const float source = tensor.values[conv1d ? c * place.rows + r : r * place.columns + c];
                const uint16_t* half = reinterpret_cast<const uint16_t*>(model.base + place.offset);
                if (place.form == Form::vector)
                    wrong += reinterpret_cast<const float*>(half)[r] != source;
                else
                    wrong +=
                        half[place.form == Form::rows ? r * place.columns + c : tiled_index(r, c, place.columns)] !=
                        float_to_half(source);
            }
    }
    return wrong;
}

TEST_CASE("tiled_index puts lane l's fragment of mma.m16n8k16 at l * 8 and fills each block exactly") {
    for (const auto& [rows, columns] : {std::pair(16, 16), std::pair(48, 80), std::pair(16, 1280)}) {
        std::set<uint64_t> seen;
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) {
                const uint64_t index = tiled_index(uint64_t(r), uint64_t(c), uint64_t(columns));
                REQUIRE(index < uint64_t(rows * columns));
                seen.insert(index);
                // PTX, fragment A: a0..a7 of lane 4g + t are rows g, g, g+8, g+8, ... and columns 2t, 2t+1, ... +8.
                const int lane = int(index % 256) / 8, a = int(index % 8), g = lane / 4, t = lane % 4;
                REQUIRE(r % 16 == g + (a % 4 >= 2 ? 8 : 0));
                REQUIRE(c % 16 == 2 * t + a % 2 + (a >= 4 ? 8 : 0));
            }
        CHECK(seen.size() == size_t(rows * columns));
    }
}

TEST_CASE("every element arrives, for any shape, dtypes, names, shards and head") {
    struct Case {
        int n_layer, n_head, n_embd, n_positions, n_vocab, n_shards;
        std::vector<std::string> dtypes;
        bool tied;
        std::string prefix;
    };
    const Case cases[] = {
        {2, 2, 32, 16, 64, 1, {"F32"}, true, ""},
        {1, 1, 1, 1, 1, 1, {"F32"}, true, ""},
        {3, 3, 21, 7, 37, 1, {"F16"}, false, "transformer."},
        {2, 5, 35, 9, 50, 3, {"BF16"}, true, "transformer."},
        {4, 1, 17, 33, 129, 4, {"F32", "BF16", "F16", "F16"}, false, ""},
        {1, 7, 112, 5, 300, 2, {"BF16", "F32"}, true, ""},
    };
    uint64_t seed = 0;
    for (const Case& c : cases) {
        CAPTURE(c.n_embd);
        TemporaryFolder folder;
        SmallCheckpoint checkpoint = make_small_checkpoint(c.n_layer, c.n_head, c.n_embd, c.n_positions, c.n_vocab,
                                                           ++seed, c.dtypes, c.tied, c.prefix);
        checkpoint.write(folder / "model", c.n_shards);
        convert({folder / "model", "", "", folder / "blob"});
        const Blob blob = Blob::open(folder / "blob");
        CHECK_NOTHROW(blob.verify());
        const ModelView model = blob.target();
        CHECK(model.config ==
              Config{c.n_layer, c.n_head, c.n_embd, c.n_positions, c.n_vocab, 1e-5f, c.n_vocab - 1, c.tied});
        CHECK((model.lm_head == model.wte) == c.tied);
        CHECK(differences(checkpoint, model, c.prefix) == 0);
    }
}

TEST_CASE("a matrix of many runs of tiles is packed as one") {  // 8 MB a run: this wte takes three
    TemporaryFolder folder;
    SmallCheckpoint checkpoint = make_small_checkpoint(1, 1, 40, 3, 200001, 9, {"F16"});
    checkpoint.write(folder / "model");
    convert({folder / "model", "", "", folder / "blob"});
    CHECK(differences(checkpoint, Blob::open(folder / "blob").target(), "") == 0);
}

TEST_CASE("a written-out head that equals wte is tied, masks are ignored, defaults are GPT-2's") {
    TemporaryFolder folder;
    SmallCheckpoint checkpoint = make_small_checkpoint(2, 2, 16, 8, 40, 4, {"F16"}, true, "transformer.");
    SmallTensor head = checkpoint["transformer.wte.weight"];
    head.name = "lm_head.weight";
    SUBCASE("same dtype") {}
    SUBCASE("another dtype") {
        head.dtype = "F32";
    }
    checkpoint.tensor.push_back(head);
    checkpoint.tensor.push_back({"transformer.h.1.attn.bias", "F32", {1, 1, 8, 8}, std::vector<float>(64, NAN)});
    checkpoint.tensor.push_back({"h.0.attn.masked_bias", "F32", {}, {-1e4f}});
    checkpoint.config.erase("layer_norm_epsilon");
    checkpoint.config.erase("eos_token_id");
    checkpoint.config["n_inner"] = nullptr;
    checkpoint.config["activation_function"] = "gelu_pytorch_tanh";
    checkpoint.config["reorder_and_upcast_attn"] = true;
    checkpoint.write(folder / "model");
    convert({folder / "model", "", "", folder / "blob"});
    const Blob blob = Blob::open(folder / "blob");
    CHECK(blob.target().config == Config{2, 2, 16, 8, 40, 1e-5f, -1, 1});
    CHECK(differences(checkpoint, blob.target(), "transformer.") == 0);
}

TEST_CASE("draft, n-gram table and what is known about the sources are in the blob") {
    TemporaryFolder folder;
    SmallCheckpoint target = make_small_checkpoint(2, 2, 32, 16, 70, 5),
                    draft = make_small_checkpoint(1, 1, 16, 8, 70, 6);
    target.write(folder / "big");
    draft.write(folder / "small");
    write_file(folder / "big/README.md", "---\nlanguage: en\nlicense: mit\n---\n# A model\nlicense: none\n");
    write_file(folder / "small/LICENSE", "\n  Some Licence\nText\n");
    const std::vector<uint8_t> table = small_table(70);
    write_file(folder / "table", std::string(table.begin(), table.end()));
    convert({folder / "big/", folder / "small", folder / "table", folder / "blob"});
    const Blob blob = Blob::open(folder / "blob");
    CHECK_NOTHROW(blob.verify());
    CHECK(differences(target, blob.target(), "") == 0);
    CHECK(differences(draft, blob.draft(), "") == 0);
    CHECK(blob.ngram().header->n_contexts == 60);
    const nlohmann::json metadata = nlohmann::json::parse(blob.metadata());
    CHECK(metadata["target"]["source"] == "big");
    CHECK(metadata["target"]["licence"] == "mit");
    CHECK(metadata["target"]["dtypes"] == nlohmann::json({"F32"}));
    CHECK(metadata["draft"]["licence"] == "Some Licence");
    CHECK(metadata["ngram"]["source"] == "table");
    CHECK(metadata.dump().find(folder.path) == std::string::npos);
}

TEST_CASE("float_to_half rounds to nearest, ties to even, as fp16 defines") {
    for (uint32_t h = 0; h < 0x7c00; h++) {  // all finite halves, and the points between neighbours
        const float here = half_to_float(uint16_t(h));
        REQUIRE(float_to_half(here) == h);
        REQUIRE(float_to_half(-here) == (h | 0x8000));
        const float next = h + 1 < 0x7c00 ? half_to_float(uint16_t(h + 1)) : 65536.0f, middle = (here + next) / 2;
        REQUIRE(float_to_half(middle) == h + (h & 1));
        REQUIRE(float_to_half(std::nextafter(middle, 0.0f)) == h);
        REQUIRE(float_to_half(std::nextafter(middle, 1e9f)) == h + 1);
    }
    CHECK((float_to_half(NAN) & 0x7fff) > 0x7c00);
    CHECK(float_to_half(INFINITY) == 0x7c00);
}
