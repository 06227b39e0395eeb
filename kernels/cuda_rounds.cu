#include "kernels/cuda_rounds.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>

#include "decode/generate.h"
#include "kernels/cuda_error.h"
#include "kernels/round_kernels.cuh"

static constexpr int kAhead = 3;  // sequences enqueued beyond the last one reported: an interrupt waits for them
static_assert(kAhead < kRecords);

struct CudaRounds::HostMemory {
    RoundRecord record[kRecords];
    uint32_t stop;  // 1
    RoundWork start;
    Sampling sampling;
    int32_t text[1];  // (n_positions)
};

CudaRounds::CudaRounds(CudaModel& target, CudaModel& draft, const NgramView& table) : target_(target), draft_(draft) {
    const Config& c = target.config();
    const NgramHeader* header = table.header;
    cuda_check(cudaSetDevice(target.device()), "selecting it");
    const uint64_t slots = header ? uint64_t(1) << header->log2_slots : 0, one = header ? 1 : 0;
    const DeviceMemory::Piece pieces[] = {{rounds_, 1},
                                          {text_, uint64_t(c.n_positions)},
                                          {table_.header, one},
                                          {table_.trigram, slots},
                                          {table_.bigram, one * c.n_vocab},
                                          {table_.unigram, one}};
    memory_.allocate(pieces, "the n-gram table beside the models");
    const auto copy = [](const auto* to, const auto* from, uint64_t count) {
        cuda_check(cudaMemcpy(const_cast<void*>(static_cast<const void*>(to)), from, count * sizeof *from,
                              cudaMemcpyHostToDevice),
                   "copying the n-gram table");
    };
    if (header) {
        copy(table_.header, header, 1);
        copy(table_.trigram, table.trigram, slots);
        copy(table_.bigram, table.bigram, c.n_vocab);
        copy(table_.unigram, table.unigram, 1);
    }
    cuda_check(cudaHostAlloc(reinterpret_cast<void**>(&host_), sizeof(HostMemory) + c.n_positions * sizeof(int32_t),
                             cudaHostAllocMapped),
               "allocating page-locked memory");
    const auto round_model = [](const CudaModel& model) {
        const auto [counter, next_counter] = model.device_counters();
        return RoundModel{model.device_model(),
                          {counter, next_counter},
                          model.numbers_of_pass(),
                          model.device_nodes(),
                          {model.device_logits(), model.device_greatest(), model.config().n_vocab}};
    };
    arguments_ = std::make_unique<RoundArguments>(RoundArguments{.target = round_model(target),
                                                                 .draft = round_model(draft),
                                                                 .scores = draft.device_scores(),
                                                                 .rounds = rounds_,
                                                                 .text = text_,
                                                                 .records = host_->record});
    host_->stop = 1;
    cuda_check(cudaStreamCreateWithFlags(&stop_stream_, cudaStreamNonBlocking), "creating a stream");
}

CudaRounds::~CudaRounds() {
    cudaStreamSynchronize(target_.stream());
    forget_graphs();
    if (stop_stream_) cudaStreamDestroy(stop_stream_);
    cudaFreeHost(host_);
}

// The kernels of a sequence as a graph, which starts them with less delay than one by one.
cudaGraphExec_t CudaRounds::sequence(const Request& request, int draft_passes) {
    const TreeSettings& tree = request.tree;
    const bool guesses = request.mode == Mode::staged && tree.ngram_nodes > 0;  // they fill up most draft passes
    if (const GraphKey key = {tree.nodes, tree.draft_width, guesses}; key != graph_key_) {
        forget_graphs();
        graph_key_ = key;
    }
    cudaGraphExec_t& graph = graphs_[draft_passes];
    if (graph) return graph;
    const cudaStream_t stream = target_.stream();
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording a round");
    constexpr int kFirst = 2;  // nodes of a round's first draft pass: the root, and a token that the draft has not seen
    const int width = std::max(kFirst, tree.draft_width);
    for (int pass = 0; pass < draft_passes; ++pass) {
        draft_.enqueue(guesses ? width : kFirst, width, &rounds_->draft_pass, stream);
        propose<<<width, kChooseThreads, 0, stream>>>(*arguments_);
        plan<<<1, kRoundThreads, 0, stream>>>(*arguments_);
    }
    target_.enqueue(tree.nodes, tree.nodes, &rounds_->target_pass, stream);  // trees are full, or nearly so
    choose<<<tree.nodes, kChooseThreads, 0, stream>>>(*arguments_);
    accept<<<1, kRoundThreads, 0, stream>>>(*arguments_);
    const DeviceModel &t = target_.device_model(), &d = draft_.device_model();
    commit<<<t.n_layer * 2 * t.n_head + d.n_layer * 2 * d.n_head, kRoundThreads, 0, stream>>>(*arguments_);
    cudaGraph_t recorded;
    cuda_check(cudaStreamEndCapture(stream, &recorded), "recording a round");
    const cudaError_t status = cudaGraphInstantiate(&graph, recorded, 0);
    cudaGraphDestroy(recorded);
    cuda_check(status, "recording a round");
    return graph;
}

void CudaRounds::forget_graphs() {
    for (cudaGraphExec_t& graph : graphs_)
        if (graph) cudaGraphExecDestroy(std::exchange(graph, nullptr));
}

Statistics CudaRounds::generate(const Request& request, const std::function<bool(std::span<const Emitted>)>& emit) {
    using Clock = std::chrono::steady_clock;
    const auto ms = [](Clock::time_point from) {
        return std::chrono::duration<double, std::milli>(Clock::now() - from).count();
    };
    const Clock::time_point start = Clock::now();
    const Config& config = target_.config();
    check_prompt(request.prompt, config);
    cuda_check(cudaSetDevice(target_.device()), "selecting it");
    Statistics stats;
    const int n_prompt = int(request.prompt.size());
    const auto [limit, stop] = text_limit(request, config);
    stats.prompt_tokens = n_prompt;
    stats.stop = stop;

    const int draft_positions = draft_.config().n_positions;
    const int draft_base = n_prompt <= draft_positions ? n_prompt - 1 : 0;
    target_.prefill(0, std::span(request.prompt).first(n_prompt - 1));
    draft_.prefill(0, std::span(request.prompt).first(draft_base));
    // A round writes at least one token.
    RoundWork& work = host_->start;
    work = {};
    work.draft_number = draft_.reserve_numbers((limit - n_prompt) * request.tree.draft_passes);
    work.target_number = target_.reserve_numbers(limit - n_prompt);
    target_.synchronise();
    draft_.synchronise();
    stats.prefill_ms = ms(start);

    const bool drafts = draft_positions >= n_prompt && request.tree.nodes > 1;
    work.generation = generation_of(request, table_, limit, drafts ? draft_positions : 0, config.eos_token);
    generation_start(work.state, n_prompt, draft_base, limit, stop);
    bool going = work.state.report.going;
    std::copy(request.prompt.begin(), request.prompt.end(), host_->text);
    volatile HostMemory& host = *host_;
    for (volatile RoundRecord& record : host.record) record.sequence = 0;
    const cudaStream_t stream = target_.stream();
    cuda_check(cudaMemsetAsync(rounds_, 0, sizeof(DeviceRounds), stream), "starting to decode");
    cuda_check(cudaMemcpyAsync(&rounds_->work, &work, sizeof work, cudaMemcpyHostToDevice, stream),
               "starting to decode");
    host_->sampling = request.sampling;
    cuda_check(cudaMemcpyAsync(&rounds_->sampling, &host_->sampling, sizeof(Sampling), cudaMemcpyHostToDevice, stream),
               "starting to decode");
    cuda_check(cudaMemcpyAsync(text_, host_->text, n_prompt * sizeof(int32_t), cudaMemcpyHostToDevice, stream),
               "starting to decode");
    if (going) start_rounds<<<1, kRoundThreads, 0, stream>>>(*arguments_);

    double usual_passes = drafts ? 1 : 0;  // enough for two thirds of the rounds of late
    uint32_t seen = 0, enqueued = 0;       // sequences
    while (going) {
        for (; enqueued < seen + kAhead; ++enqueued)
            cuda_check(cudaGraphLaunch(sequence(request, int(std::lround(usual_passes))), stream), "starting a round");
        const uint32_t expected = seen + 1;
        while (host.record[expected % kRecords].sequence != expected) {
            const cudaError_t status = cudaStreamQuery(stream);
            if (status != cudaErrorNotReady && host.record[expected % kRecords].sequence != expected) {
                target_.synchronise();
                throw Error(kExitFailed, "the GPU ended a round without a report");
            }
            std::this_thread::sleep_for(std::chrono::microseconds(20));
        }
        std::atomic_thread_fence(std::memory_order_acquire);
        const RoundRecord record = host_->record[expected % kRecords];
        ++seen;
        if (drafts && record.report.counters.rounds > stats.rounds) {
            const int passes = record.report.counters.draft_passes - stats.draft_passes;
            if (passes > usual_passes)
                usual_passes = std::min(usual_passes + 1, double(request.tree.draft_passes));
            else if (passes < usual_passes)
                usual_passes = std::max(usual_passes - 0.5, 1.0);
        }
        static_cast<Counters&>(stats) = record.report.counters;
        stats.stop = record.report.stop;
        stats.draft_ms = double(record.draft_ns) * 1e-6;
        stats.ngram_ms = double(record.ngram_ns) * 1e-6;
        stats.target_ms = double(record.target_ns) * 1e-6;
        going = record.report.going;
        const std::span<const Emitted> emitted(record.report.emitted, record.report.n_emitted);
        if (!emitted.empty() && !emit(emitted)) {
            stats.stop = StopReason::caller;
            going = false;
            cuda_check(cudaMemcpyAsync(&rounds_->work.stop, &host_->stop, sizeof rounds_->work.stop,
                                       cudaMemcpyHostToDevice, stop_stream_),
                       "stopping");
        }
    }
    cuda_check(cudaStreamSynchronize(stop_stream_), "stopping");
    target_.synchronise();
    stats.total_ms = ms(start);
    return stats;
}
