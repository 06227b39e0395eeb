#include "decode/generate.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include "decode/round.h"
#include "model/error.h"

namespace {

// Milliseconds from construction, or from the last call.
class Stopwatch {
public:
    double lap() {
        const auto now = std::chrono::steady_clock::now();
        const double ms = std::chrono::duration<double, std::milli>(now - start_).count();
        start_ = now;
        return ms;
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Runs committed tokens through a model whose cache holds the first `base`, and commits them. No logits.
void prefill(Model& model, int base, std::span<const int32_t> tokens) {
    int32_t parent[kMaxNodes], slots[kMaxNodes];
    for (int i = 0; i < kMaxNodes; ++i) parent[i] = i - 1, slots[i] = i;
    for (size_t done = 0; done < tokens.size();) {
        const int n = int(std::min<size_t>(kMaxNodes, tokens.size() - done));
        model.forward({base, 0, n, tokens.data() + done, parent, 0});
        model.commit(base, {slots, size_t(n)});
        base += n;
        done += n;
    }
}

void commit(Model& model, const CommitList& list) {
    const std::vector<int32_t> slots(list.slot, list.slot + list.n);
    model.commit(list.base, slots);
}

}  // namespace

void check_ids(std::span<const int32_t> ids, const Config& config, int room) {
    const int most = config.n_positions - room;
    if (ids.empty()) throw Error(kExitUsage, "the text is empty; give at least one token");
    if (ids.size() > size_t(most))
        throw Error(kExitUsage, "the text has " + std::to_string(ids.size()) + " tokens and the model's context is " +
                                    std::to_string(config.n_positions) + "; shorten it to at most " +
                                    std::to_string(most) + " tokens");
    for (int32_t id : ids)
        if (id < 0 || id >= config.n_vocab)
            throw Error(kExitUsage, "token id " + std::to_string(id) + " is outside the vocabulary (0 to " +
                                        std::to_string(config.n_vocab - 1) + ")");
}

void check_prompt(const std::vector<int32_t>& prompt, const Config& config) {
    check_ids(prompt, config, 1);
}

TextLimit text_limit(const Request& request, const Config& config) {
    const int64_t wanted = int64_t(request.prompt.size()) + request.max_tokens;
    if (wanted <= config.n_positions) return {int(wanted), StopReason::max_tokens};
    return {config.n_positions, StopReason::context_full};
}

Statistics generate(Model& target, Model* draft, const NgramView& table, const Request& request,
                    const std::function<bool(std::span<const Emitted>)>& emit) {
    const Config& config = target.config();
    check_prompt(request.prompt, config);

    Statistics stats;
    Stopwatch total, watch;
    std::vector<int32_t> text = request.prompt;
    const int n_prompt = int(text.size());
    const auto [limit, stop] = text_limit(request, config);
    stats.prompt_tokens = n_prompt;

    // The target's cache holds all of the text but the root, which each round evaluates first.
    prefill(target, 0, std::span(text).first(n_prompt - 1));
    int draft_base = 0;  // positions that the draft's cache holds
    if (request.mode == Mode::baseline) draft = nullptr;
    if (draft && n_prompt <= draft->config().n_positions) {
        draft_base = n_prompt - 1;
        prefill(*draft, 0, std::span(text).first(draft_base));
    }
    stats.prefill_ms = watch.lap();

    const auto owner = std::make_unique<RoundState>();
    RoundState& state = *owner;
    RoundReport& report = state.report;
    const DraftRound& round = state.draft;
    const Tree& tree = state.tree;
    const Generation generation =
        generation_of(request, table, limit, draft ? draft->config().n_positions : 0, config.eos_token);
    generation_start(state, n_prompt, draft_base, limit, stop);
    text.resize(limit);
    std::vector<Child> child(kMaxNodes * kMaxChildren);
    while (report.going) {
        round_start(state, generation, text.data());
        while (round_plan(state, generation, text.data())) {
            stats.ngram_ms += watch.lap();
            const int first_with_logits = round_first_with_logits(state);
            const int n_logits = round.n_slots - first_with_logits;
            draft->forward({round.base, state.first, round.n_slots - state.first, round.token, round.parent, n_logits});
            draft->propose(request.sampling, request.tree.tau, kMaxChildren,
                           {child.data(), size_t(n_logits) * kMaxChildren});
            stats.draft_ms += watch.lap();
            draft_absorb(state.draft, state.tree, request.tree, state.first, child.data());
        }
        stats.ngram_ms += watch.lap();

        int32_t token[kMaxNodes], parent[kMaxNodes], chosen[kMaxNodes];
        for (int i = 0; i < tree.n; ++i) token[i] = tree.node[i].token, parent[i] = tree.node[i].parent;
        target.forward({state.n_text - 1, 0, tree.n, token, parent, tree.n});
        target.choose(request.sampling, {chosen, size_t(tree.n)});
        stats.target_ms += watch.lap();
        round_accept(state, generation, text.data(), chosen);
        commit(target, state.target_commit);
        if (state.draft_commit.n > 0) commit(*draft, state.draft_commit);
        stats.ngram_ms += watch.lap();
        if (report.n_emitted > 0 && !emit({report.emitted, size_t(report.n_emitted)})) {
            report.stop = StopReason::caller;
            report.going = false;
        }
        watch.lap();
    }
    static_cast<Counters&>(stats) = report.counters;
    stats.stop = report.stop;
    stats.total_ms = total.lap();
    return stats;
}

std::vector<float> score(Model& target, std::span<const int32_t> tokens) {
    check_ids(tokens, target.config(), 0);
    std::vector<float> result;
    int32_t parent[kMaxNodes], slots[kMaxNodes];
    for (int i = 0; i < kMaxNodes; ++i) parent[i] = i - 1, slots[i] = i;
    for (size_t base = 0; base + 1 < tokens.size();) {
        const int n = int(std::min<size_t>(kMaxNodes, tokens.size() - 1 - base));
        target.forward({int(base), 0, n, tokens.data() + base, parent, n});
        float part[kMaxNodes];
        target.log_probability(tokens.subspan(base + 1, n), {part, size_t(n)});
        result.insert(result.end(), part, part + n);
        target.commit(int(base), {slots, size_t(n)});
        base += n;
    }
    return result;
}
