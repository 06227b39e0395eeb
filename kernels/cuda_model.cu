#include "kernels/cuda_model.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "kernels/cuda_error.h"
#include "kernels/fold.cuh"
#include "kernels/pass_kernels.cuh"

static constexpr int kStagings = 8;
static constexpr int kEnoughSlots = 16, kFewSlots = 10;  // of the ring
static constexpr int kUsualUnits = 4;                    // that a block has of a layer's matrix, at most
static constexpr uint64_t kUploadBytes = 8 << 20;

struct CudaModel::HostMemory {
    uint32_t failure;   // which wait inside a kernel ran out of patience
    uint32_t n_tokens;  // of the decode that runs
    uint32_t stop;
    int32_t chosen[kMaxNodes];
    int32_t next[kMaxNodes];
    float log_probability[kMaxNodes];
    Child children[kMaxNodes * kMaxChildren];
    PassNodes nodes[kStagings];
    int32_t tokens[1];  // (n_positions)
};

std::string cuda_unsupported(const Config& c) {
    if (c.n_embd % 64 || c.n_head * kHeadSize != c.n_embd)
        return "the GPU engine needs heads of 64 columns, and this model has " + std::to_string(c.n_head) +
               " heads over " + std::to_string(c.n_embd) + " columns; run it with --device cpu";
    if (c.n_layer > kMaxDeviceLayers)
        return "the GPU engine takes up to " + std::to_string(kMaxDeviceLayers) + " layers, and this model has " +
               std::to_string(c.n_layer) + "; run it with --device cpu";
    if (c.n_embd > 4 * kMultiplyThreads)
        return "the GPU engine takes up to " + std::to_string(4 * kMultiplyThreads) + " columns, and this model has " +
               std::to_string(c.n_embd) + "; run it with --device cpu";
    return "";
}

// The narrowest kernel for n nodes.
static int width_for(int n) {
    return *std::find_if(std::begin(kWidths), std::end(kWidths), [&](int width) { return width >= n; });
}
// Pieces of the weights that a block has under way: what blocks exchange queues behind them. Measured on an H200.
static int usual_pace(int width) {
    return width == 8 ? 4 : 2;
}
static void (*pass_kernel(int width))(PassArguments) {
    switch (width) {
        case 1:
            return forward_pass<1>;
        case 8:
            return forward_pass<8>;
        case 16:
            return forward_pass<16>;
        case 32:
            return forward_pass<32>;
        default:
            return forward_pass<64>;
    }
}

CudaModel::CudaModel(const ModelView& view, int device, int max_shared) : config_(view.config), device_(device) {
    const Config& c = config_;
    if (const std::string why = cuda_unsupported(c); !why.empty()) throw Error(kExitNoGpu, why);
    cuda_check(cudaSetDevice(device), "selecting it");
    int l2 = 0;
    cuda_check(cudaDeviceGetAttribute(&n_blocks_, cudaDevAttrMultiProcessorCount, device), "reading its properties");
    cuda_check(cudaDeviceGetAttribute(&max_shared_, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "reading its properties");
    const int device_shared = max_shared_ - kSharedState;  // of the kernels, which all models share
    max_shared_ = std::min(max_shared_, max_shared);
    cuda_check(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device), "reading its properties");

    // More blocks than a layer has units would idle, and a block's tasks of mlp_proj are to share a part of the
    // columns.
    n_blocks_ = std::min(n_blocks_, kLayerRows * c.n_embd / 16) / kSplit * kSplit;

    const ModelLayout layout(c);
    const LayerLayout& first = layout.layer[0];
    model_ = {.n_layer = c.n_layer,
              .n_head = c.n_head,
              .n_embd = c.n_embd,
              .n_positions = c.n_positions,
              .n_vocab = c.n_vocab,
              .epsilon = c.layer_norm_epsilon,
              .per_column = 1.0f / c.n_embd,
              .stays_in_l2 = (view.size < uint64_t(l2) * 3 / 4),
              .weights = nullptr,
              .layer = first,
              .layer_stride = (c.n_layer > 1 ? layout.layer[1].ln_1_weight - first.ln_1_weight : 0),
              .wte = layout.wte,
              .wpe = layout.wpe,
              .ln_f_weight = layout.ln_f_weight,
              .ln_f_bias = layout.ln_f_bias,
              .lm_head = layout.lm_head,
              .kv_rows = c.n_positions + kMaxSlots,
              .kv = nullptr};
    if (layout.layer.back().mlp_proj_bias != first.mlp_proj_bias + (c.n_layer - 1) * model_.layer_stride)
        throw Error(kExitFailed, "the layers of the model are not evenly spaced in its section");

    for (int width = kMaxNodes; width >= 8 && max_width_ == 0; width /= 2)
        if (shared_layout(width).held_units > 0) max_width_ = width;
    if (max_width_ == 0)
        throw Error(kExitNoGpu, "this model's rows of " + std::to_string(c.n_embd) +
                                    " columns don't fit the GPU's shared memory; run it with --device cpu");

    // One allocation, cut up.
    const uint64_t E = c.n_embd, vocab = pad16(c.n_vocab);
    prefill_scratch_.rows = std::min(kPrefillTokens, (c.n_positions + kTokenTile - 1) / kTokenTile * kTokenTile);
    const uint64_t rows = prefill_scratch_.rows;
    const uint64_t kv = uint64_t(c.n_layer) * 2 * c.n_head * model_.kv_rows * kHeadSize;
    // Where each kind of rows stands among all that a layer exchanges.
    const auto place = [&](Rows& rows, uint64_t columns) {
        rows.columns = uint32_t(columns);
        rows.first = std::exchange(scratch_.layer_values, scratch_.layer_values + rows.columns);
    };
    for (Rows& rows : scratch_.x) place(rows, E);
    for (Rows& rows : scratch_.moments) place(rows, E / 8);
    for (Rows& rows : scratch_.input) place(rows, E / 2);
    place(scratch_.qkv, 2 * E);
    place(scratch_.attention, E / 2);
    place(scratch_.mlp, 2 * E);
    const uint64_t n_values = kBuffers * kMaxNodes * scratch_.layer_values;
    const DeviceMemory::Piece pieces[] = {
        {model_.weights, view.size},
        {model_.kv, kv},
        {scratch_.x[0].word, E},  // the words, up to the values
        {scratch_.moments[0].word, E / 8},
        {scratch_.input[0].word, E / 2},
        {scratch_.attention.word, E / 2},
        {scratch_.mlp.word, 2 * E},
        {scratch_.qkv.word, kNarrow * 2 * E},
        {scratch_.parts, kMaxNodes * kSplit * E},
        {scratch_.chunks, uint64_t(c.n_head) * max_chunks(c.n_positions) * kNarrow * kChunkWords},
        {scratch_.value, n_values},
        {prefill_scratch_.x, rows * E},
        {prefill_scratch_.q, rows * E},
        {prefill_scratch_.part, kSplit * rows * E},
        {prefill_scratch_.input, rows * E},
        {prefill_scratch_.moments, 2 * rows},
        {prefill_scratch_.mlp, rows * 4 * E},
        {scratch_.logits, kMaxNodes * vocab},
        {scratch_.greatest, kMaxNodes * vocab / 16},
        {scores_, kMaxNodes * vocab},
        {vectors_, vector_units() * 2 * 16},
        {scratch_.best, 2},
        {scratch_.chosen, 1},
        {scratch_.counter, 1},
        {scratch_.next_counter, 1},
        {scratch_.stop, 1},
        {nodes_, 1}};
    memory_.allocate(pieces, "the model");

    // Numbers tell the words of both halves of a layer apart.
    for (Rows* rows : {scratch_.x, scratch_.moments, scratch_.input}) rows[1].word = rows[0].word;

    const uint64_t host_bytes = sizeof(HostMemory) + c.n_positions * sizeof(int32_t);
    cuda_check(cudaHostAlloc(reinterpret_cast<void**>(&host_), host_bytes, cudaHostAllocMapped),
               "allocating page-locked memory");
    std::memset(static_cast<void*>(host_), 0, host_bytes);
    scratch_.failure = prefill_scratch_.failure = &host_->failure;
    cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
    staged_.resize(kStagings);
    for (cudaEvent_t& event : staged_)
        cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");

    // The weights, through two page-locked buffers in turn. All else starts as zeros.
    uint8_t* const weights = const_cast<uint8_t*>(model_.weights);
    uint8_t* staging = nullptr;
    cuda_check(cudaHostAlloc(reinterpret_cast<void**>(&staging), 2 * kUploadBytes, cudaHostAllocDefault),
               "allocating page-locked memory");
    const std::unique_ptr<uint8_t, decltype(&cudaFreeHost)> owner(staging, [](void* p) { return cudaFreeHost(p); });
    for (uint64_t done = 0; done < view.size; done += kUploadBytes) {
        const int half = done / kUploadBytes % 2;
        const uint64_t n = std::min(kUploadBytes, view.size - done);
        cuda_check(cudaEventSynchronize(staged_[half]), "copying the weights");
        std::memcpy(staging + half * kUploadBytes, view.base + done, n);
        cuda_check(cudaMemcpyAsync(weights + done, staging + half * kUploadBytes, n, cudaMemcpyHostToDevice, stream_),
                   "copying the weights");
        cuda_check(cudaEventRecord(staged_[half], stream_), "copying the weights");
    }
    exchange_bytes_ = reinterpret_cast<uint8_t*>(scratch_.value) - reinterpret_cast<uint8_t*>(scratch_.x[0].word);
    cuda_check(cudaMemsetAsync(model_.kv, 0, memory_.end() - reinterpret_cast<uint8_t*>(model_.kv), stream_),
               "clearing its memory");
    cuda_check(cudaMemsetAsync(scratch_.value, 0xff, n_values * sizeof(uint32_t), stream_), "clearing its memory");
    fold();
    synchronise();

    for (const int width : kWidths)
        if (width <= max_width_)
            cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(pass_kernel(width)),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, device_shared),
                       "setting up a kernel");
    for (auto* kernel : {decode_pass<true>, decode_pass<false>})
        cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, device_shared),
                   "setting up a kernel");
    prefill_setup_ = prefill_setup(std::min(max_shared_ - kSharedState, device_shared), device_shared);
}

uint64_t CudaModel::vector_units() const {
    return uint64_t(config_.n_layer) * kLayerRows * config_.n_embd / 16 + pad16(config_.n_vocab) / 16;
}

// What the matrices' results are combined with, from the weights on the device.
void CudaModel::fold() {
    const int E = config_.n_embd, rows = E / 16;
    float* to = vectors_;
    const auto norm = [&](const uint16_t* tiles, int n_units, const float* ln_weight, const float* ln_bias,
                          const float* bias) {
        fold_norm<<<n_units, 32 * kFoldWarps, 0, stream_>>>(tiles, E, ln_weight, ln_bias, bias, to);
        to += n_units * 32;
    };
    const auto branch = [&](const float* bias, const float* ln_weight) {
        fold_branch<<<rows, 32, 0, stream_>>>(bias, ln_weight, to);
        to += rows * 32;
    };
    const LayerLayout& of = model_.layer;
    const float* ln_f_weight = model_.vector(0, model_.ln_f_weight);
    for (int l = 0; l < config_.n_layer; ++l) {
        const auto vector = [&](uint64_t offset) { return model_.vector(l, offset); };
        norm(model_.halves(l, of.c_attn_weight), rows_of(Matrix::c_attn) * rows, vector(of.ln_1_weight),
             vector(of.ln_1_bias), vector(of.c_attn_bias));
        branch(vector(of.c_proj_bias), vector(of.ln_2_weight));
        norm(model_.halves(l, of.c_fc_weight), rows_of(Matrix::c_fc) * rows, vector(of.ln_2_weight),
             vector(of.ln_2_bias), vector(of.c_fc_bias));
        branch(vector(of.mlp_proj_bias), l + 1 < config_.n_layer ? model_.vector(l + 1, of.ln_1_weight) : ln_f_weight);
    }
    norm(model_.halves(0, model_.lm_head), int(pad16(config_.n_vocab) / 16), ln_f_weight,
         model_.vector(0, model_.ln_f_bias), nullptr);
    cuda_check(cudaGetLastError(), "preparing the weights");
}

CudaModel::~CudaModel() {
    cudaSetDevice(device_);
    if (stream_) cudaStreamSynchronize(stream_);
    for (cudaEvent_t event : staged_) cudaEventDestroy(event);
    if (stream_) cudaStreamDestroy(stream_);
    cudaFreeHost(host_);
}

void CudaModel::synchronise() {
    const cudaError_t status = cudaStreamSynchronize(stream_);
    if (status != cudaSuccess && host_->failure)
        throw Error(kExitFailed, "the GPU gave up waiting inside a kernel (wait " + std::to_string(host_->failure) +
                                     "); if another program keeps the GPU busy, end it and try again");
    cuda_check(status, "running a pass");
}

SharedLayout CudaModel::shared_layout(int n) const {
    const int E = config_.n_embd, width = width_for(n), tiles = column_tiles(width);
    SharedLayout s = {};
    s.input_stride = E + 32;
    s.attention_split = std::max(1, n_blocks_ / config_.n_head);
    // As few nodes of a head together as take no more rounds over the blocks than the most nodes would.
    const auto rounds = [&](int group) {
        return (config_.n_head * ((n + group - 1) / group) + n_blocks_ - 1) / n_blocks_;
    };
    s.attention_nodes = 1;
    while (rounds(s.attention_nodes) > rounds(kTreeGroup)) ++s.attention_nodes;
    const auto aligned_128 = [](int bytes) { return (bytes + 127) / 128 * 128; };
    const int unit_bytes = unit_pieces(E) * tiles * fragment_floats(width) * 4, rows_bytes = width * s.input_stride * 2;
    const int attention = attention_bytes(width <= kNarrow ? 0 : s.attention_nodes, width <= kNarrow);
    // Sums of fewer units at a time where the ring would be short.
    for (s.held_units = kMaxHeldUnits;;) {
        s.input = aligned_128(s.held_units * unit_bytes);
        s.ring = aligned_128(std::max({int(s.input) + rows_bytes, attention, int(sizeof(ChooseSpace))}));
        s.n_slots = std::min(kMaxRingSlots, (max_shared_ - kSharedState - int(s.ring)) / kSlotBytes);
        s.bytes = s.ring + std::max(s.n_slots, 0) * kSlotBytes;
        if (s.n_slots >= (s.held_units > kUsualUnits ? kEnoughSlots : kFewSlots) || s.held_units == 1 || width == 1)
            break;
        --s.held_units;
    }
    s.held_units = std::min(s.held_units, 2 * std::max(s.n_slots, 0) / unit_pieces(E));  // see skinny_gemm()
    return s;
}

uint32_t CudaModel::numbers_of_launch() const {
    return uint32_t(kLayerMatrices * config_.n_layer + 2);
}
uint32_t CudaModel::numbers_of_pass() const {
    return uint32_t((kMaxNodes + max_width_ - 1) / max_width_) * numbers_of_launch();
}
uint32_t CudaModel::reserve_numbers(int n_passes) {
    const uint32_t numbers = uint32_t(n_passes) * numbers_of_pass();
    if (next_number_ > UINT32_MAX - numbers) {
        cuda_check(cudaMemsetAsync(scratch_.x[0].word, 0, exchange_bytes_, stream_), "starting a pass");
        next_number_ = 1;
    }
    return std::exchange(next_number_, next_number_ + numbers);
}

// Of a launch for up to n nodes of the pass.
PassArguments CudaModel::arguments(const DevicePass& pass, int n) {
    PassArguments a = {.model = model_,
                       .vectors = vectors_,
                       .matrix = {},
                       .turn = {},
                       .pieces = unit_pieces(config_.n_embd),
                       .piece_quads = piece_quads(config_.n_embd),
                       .per_piece = 0x10000u / unit_pieces(config_.n_embd) + 1,
                       .scratch = scratch_,
                       .layer_rows = {},
                       .shared = shared_layout(n),
                       .pace = pace > 0 ? pace : usual_pace(width_for(n)),
                       .pass = pass,
                       .device_pass = nullptr,
                       .least = 1,
                       .most = n,
                       .at = 0,
                       .nodes = nodes_,
                       .number = 0};
    a.pace = std::min(a.pace, a.shared.n_slots);
    const int rows = config_.n_embd / 16;
    const auto plan = [&](Matrix which, uint64_t weight, int rows_before, int n_tasks) {
        a.matrix[int(which)] = {weight, rows_before * rows, n_tasks, n_tasks / n_blocks_, n_tasks % n_blocks_};
    };
    for (const Matrix which : {Matrix::c_attn, Matrix::c_proj, Matrix::c_fc, Matrix::mlp_proj})
        plan(which, weight_of(model_.layer, which), rows_before(which), rows_of(which) * rows * parts_of(which));
    plan(Matrix::head, model_.lm_head, config_.n_layer * kLayerRows, int(pad16(config_.n_vocab) / 16));
    for (int at = 0, turn = 0; at <= kLayerMatrices * config_.n_layer; ++at) {
        a.turn[at] = uint16_t(turn);
        turn = (turn + a.matrix[at % kLayerMatrices].n_tasks) % n_blocks_;
    }
    const int last = config_.n_layer - 1;
    for (int layer = 0; layer <= last + 1; ++layer)
        a.layer_rows[layer] =
            (layer < last ? layer % kTurns : kTurns + layer - last) * kMaxNodes * scratch_.layer_values;
    std::swap(scratch_.counter, scratch_.next_counter);
    return a;
}

// Puts the nodes of the pass on the device. Their depths and paths are worked out here.
void CudaModel::stage(const Pass& pass) {
    cuda_check(cudaSetDevice(device_), "selecting it");
    PassNodes& nodes = host_->nodes[next_staging_];
    cuda_check(cudaEventSynchronize(staged_[next_staging_]), "running a pass");
    int depth[kMaxSlots], max_depth = 0;
    for (int slot = 0; slot < pass.first + pass.n; ++slot)
        depth[slot] = pass.parent[slot] < 0 ? 0 : depth[pass.parent[slot]] + 1;
    for (int i = 0; i < pass.n; ++i) {
        const int slot = pass.first + i;
        nodes.token[i] = pass.token[slot];
        nodes.depth[i] = depth[slot];
        max_depth = std::max(max_depth, depth[slot]);
        for (int at = pass.parent[slot]; at >= 0; at = pass.parent[at]) nodes.path[depth[at]][i] = uint8_t(at);
    }
    cuda_check(cudaMemcpyAsync(nodes_, &nodes, offsetof(PassNodes, path) + size_t(max_depth) * kMaxNodes,
                               cudaMemcpyHostToDevice, stream_),
               "starting a pass");
    cuda_check(cudaEventRecord(staged_[next_staging_], stream_), "starting a pass");
    next_staging_ = (next_staging_ + 1) % kStagings;
}

// Launches the pass, or the one that device_pass holds if that has least to most nodes. What is wider than a launch
// goes in several: parents come before children.
void CudaModel::launch(const DevicePass& pass, const DevicePass* device_pass, int least, int most,
                       CUstream_st* stream) {
    for (int at = 0; at < most; at += max_width_) {
        const int width = std::min(max_width_, most - at);
        PassArguments a = arguments(pass, width);
        a.device_pass = device_pass;
        a.least = least;
        a.most = most;
        a.at = at;
        a.number = uint32_t(at / max_width_) * numbers_of_launch();
        if (model_.n_layer == 1 && width > 1)  // its only layer is the last one, whose buffer is used at once
            cuda_check(cudaMemsetAsync(scratch_.value + a.layer_rows[0], 0xff,
                                       2 * kMaxNodes * scratch_.layer_values * sizeof(uint32_t), stream),
                       "starting a pass");
        void* parameters[] = {&a};
        cuda_check(
            cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(pass_kernel(width_for(width))), dim3(n_blocks_),
                                        dim3(kBlockThreads), parameters, a.shared.bytes, stream),
            "starting a pass");
    }
}

void CudaModel::enqueue(int usual, int n, const DevicePass* device_pass, CUstream_st* stream) {
    int least = 1;
    for (const int most : kWidths) {
        if (most < usual || least > n) continue;
        launch({}, device_pass, least, std::min(most, n), stream);
        least = most + 1;
    }
}

// Runs the pass whose nodes were staged.
void CudaModel::run(const DevicePass& pass) {
    launch(pass, nullptr, 1, pass.n, stream_);
    last_ = pass;
}

void CudaModel::forward(const Pass& pass) {
    stage(pass);
    run({pass.n, pass.n_logits, pass.base, pass.first, model_.n_positions, 0, 0, reserve_numbers(1)});
}

void CudaModel::prefill(int base, std::span<const int32_t> tokens) {
    cuda_check(cudaSetDevice(device_), "selecting it");
    while (!tokens.empty()) {
        const int n = int(std::min<size_t>(tokens.size(), prefill_scratch_.rows));
        if (n <= max_width_) {  // one pass is faster
            int32_t parent[kMaxNodes];
            for (int i = 0; i < n; ++i) parent[i] = i - 1;
            stage({base, 0, n, tokens.data(), parent, 0});
            run({n, 0, base, 0, base, 0, 0, reserve_numbers(1)});  // slots stand for positions: nothing to commit
        } else {
            enqueue_prefill(model_, vectors_, prefill_scratch_, prefill_setup_, n_blocks_, base, tokens.first(n),
                            stream_);
        }
        base += n;
        tokens = tokens.subspan(n);
    }
}

void CudaModel::decode(int32_t last_token, int base, int max_tokens, int32_t end_token, const Sampling& sampling,
                       const std::function<bool(int32_t)>& on_token) {
    if (max_tokens <= 0) return;
    cuda_check(cudaSetDevice(device_), "selecting it");
    volatile HostMemory& host = *host_;
    host.n_tokens = 0;
    host.stop = 0;
    cuda_check(cudaMemsetAsync(scratch_.best, 0, 2 * sizeof(uint64_t), stream_), "starting to decode");
    cuda_check(cudaMemsetAsync(scratch_.stop, 0, sizeof(uint32_t), stream_), "starting to decode");
    DecodeArguments d = {arguments({1, 1, base, 0, base, 0, 0, reserve_numbers(max_tokens)}, 1),
                         sampling,
                         last_token,
                         max_tokens,
                         end_token,
                         host_->tokens,
                         &host_->n_tokens,
                         &host_->stop};
    void* parameters[] = {&d};
    cuda_check(cudaLaunchCooperativeKernel(
                   reinterpret_cast<const void*>(sampling.temperature == 0 ? decode_pass<true> : decode_pass<false>),
                   dim3(n_blocks_), dim3(kBlockThreads + 32), parameters, d.pass.shared.bytes, stream_),
               "starting to decode");
    uint32_t seen = 0;
    for (bool running = true, wanted = true; running;) {
        const cudaError_t status = cudaStreamQuery(stream_);
        running = status == cudaErrorNotReady;
        const uint32_t n = host.n_tokens;  // read after the status: when the kernel has ended, this is all of them
        std::atomic_thread_fence(std::memory_order_acquire);
        for (; seen < n && wanted; ++seen) {
            wanted = on_token(host.tokens[seen]);
            if (!wanted) host.stop = 1;
        }
        if (running) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    synchronise();
}

void CudaModel::choose(const Sampling& sampling, std::span<int32_t> chosen) {
    choose_kernel<<<last_.n_logits, kChooseThreads, 0, stream_>>>(choose_arguments(sampling), host_->chosen);
    cuda_check(cudaGetLastError(), "choosing tokens");
    synchronise();
    std::copy_n(host_->chosen, chosen.size(), chosen.begin());
}

void CudaModel::propose(const Sampling& sampling, float tau, int n_children, std::span<Child> children) {
    propose_kernel<<<last_.n_logits, kChooseThreads, 0, stream_>>>(choose_arguments(sampling), tau, scores_, n_children,
                                                                   host_->children);
    cuda_check(cudaGetLastError(), "choosing children");
    synchronise();
    std::copy_n(host_->children, children.size(), children.begin());
}

void CudaModel::log_probability(std::span<const int32_t> next, std::span<float> result) {
    std::copy(next.begin(), next.end(), host_->next);
    log_probability_kernel<<<last_.n_logits, kChooseThreads, 0, stream_>>>(choose_arguments({}), host_->next,
                                                                           host_->log_probability);
    cuda_check(cudaGetLastError(), "reading probabilities");
    synchronise();
    std::copy_n(host_->log_probability, result.size(), result.begin());
}

ChooseArguments CudaModel::choose_arguments(const Sampling& sampling) const {
    return {
        {scratch_.logits, scratch_.greatest, config_.n_vocab}, last_.n - last_.n_logits, last_.base, nodes_, sampling};
}

void CudaModel::commit(int base, std::span<const int32_t> slots) {
    if (slots.empty()) return;
    CommitArguments a = {model_, base, int(slots.size()), {}};
    std::copy(slots.begin(), slots.end(), a.slot);
    commit_kernel<<<config_.n_layer * 2 * config_.n_head, 256, 0, stream_>>>(a);
    cuda_check(cudaGetLastError(), "committing tokens");
}

std::vector<float> CudaModel::logits(int i) {
    std::vector<float> row(config_.n_vocab);
    cuda_check(cudaMemcpyAsync(row.data(), scratch_.logits + uint64_t(i) * pad16(config_.n_vocab),
                               row.size() * sizeof(float), cudaMemcpyDeviceToHost, stream_),
               "reading logits");
    synchronise();
    return row;
}
