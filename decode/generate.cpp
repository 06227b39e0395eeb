#include "decode/generate.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include "decode/draft.h"
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

// The most committed tokens that a draft's first pass takes along; more are prefilled before.
constexpr int kMaxChain = kMaxNodes / 2;

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

Statistics generate(Model& target, Model* draft, const NgramView& table, const Request& request,
                    const std::function<bool(std::span<const Emitted>)>& emit) {
    const Config& config = target.config();
    check_prompt(request.prompt, config);

    Statistics stats;
    Stopwatch total, watch;
    std::vector<int32_t> text = request.prompt;
    const int n_prompt = int(text.size());
    const int limit = int(std::min<int64_t>(int64_t(n_prompt) + request.max_tokens, config.n_positions));
    stats.prompt_tokens = n_prompt;
    stats.stop = limit == n_prompt + request.max_tokens ? StopReason::max_tokens : StopReason::context_full;

    // The target's cache holds all of the text but the root, which each round evaluates first.
    prefill(target, 0, std::span(text).first(n_prompt - 1));
    int draft_base = 0;  // positions that the draft's cache holds
    if (request.mode == Mode::baseline) draft = nullptr;
    if (draft && n_prompt <= draft->config().n_positions) {
        draft_base = n_prompt - 1;
        prefill(*draft, 0, std::span(text).first(draft_base));
    }
    stats.prefill_ms = watch.lap();

    auto round = std::make_unique<DraftRound>();
    Tree tree;
    bool going = true;
    while (going && int(text.size()) < limit) {
        const int root_position = int(text.size()) - 1;

        // Draft: grow the tree as long as it pays. A node deeper than max_depth could not be emitted.
        tree_start(tree, 1, text.back(), -1);
        bool drafted = false;
        if (draft && draft->config().n_positions > root_position) {
            const int max_depth = std::min(request.tree.depth, limit - 2 - root_position);
            if (root_position + 1 - draft_base > kMaxChain) {
                prefill(*draft, draft_base, std::span(text).subspan(draft_base, root_position - draft_base));
                draft_base = root_position;
            }
            draft_start(*round, tree, request.tree, draft_base, &text[draft_base], root_position + 1 - draft_base,
                        max_depth, draft->config().n_positions - 1 - root_position);
            while (draft_pays(*round, tree, request.tree)) {
                watch.lap();
                const int first = draft_plan(*round, tree, request.tree, table, text.data(), int(text.size()),
                                             request.mode == Mode::staged ? request.tree.ngram_nodes : 0);
                stats.ngram_ms += watch.lap();
                const int n = round->n_slots - first;
                if (n == 0) break;
                drafted = true;
                const int first_with_logits = std::max(first, round->n_chain - 1);
                const int n_logits = round->n_slots - first_with_logits;
                draft->forward({draft_base, first, n, round->token, round->parent, n_logits});
                draft->propose(request.sampling, request.tree.tau, kMaxChildren,
                               {round->child[first_with_logits], size_t(n_logits) * kMaxChildren});
                stats.draft_passes += 1;
                stats.draft_nodes += n;
                stats.draft_ms += watch.lap();
                draft_absorb(*round, tree, request.tree, first);
            }
            stats.ngram_guesses += round->guesses;
            stats.ngram_confirmed += round->confirmed;
        }

        // Verify: one target pass over the tree, the walk along its choices, commit.
        watch.lap();
        int32_t token[kMaxNodes], parent[kMaxNodes], chosen[kMaxNodes], slots[kMaxNodes + kMaxDepth];
        int path[kMaxDepth + 1];
        tree_to_pass(tree, token, parent);
        target.forward({root_position, 0, tree.n, token, parent, tree.n});
        target.choose(request.sampling, {chosen, size_t(tree.n)});
        const int length = tree_accept(tree, chosen, path);
        for (int i = 0; i < length; ++i) slots[i] = path[i];
        target.commit(root_position, {slots, size_t(length)});
        if (drafted) {
            const int n = draft_commit(*round, tree, path, length, slots);
            draft->commit(draft_base, {slots, size_t(n)});
            draft_base += n;
        }
        stats.target_ms += watch.lap();

        // Emit what was accepted and the token that the target chose after it.
        Emitted emitted[kMaxDepth + 1];
        int n_emitted = 0, deepest = 0;
        for (int i = 0; i < length; ++i) {
            const bool accepted = i + 1 < length;
            const Origin origin = !accepted                                       ? Origin::target
                                  : tree.node[tree.order[path[i + 1]]].from_ngram ? Origin::ngram
                                                                                  : Origin::draft;
            emitted[n_emitted++] = {chosen[path[i]], origin};
        }
        for (int i = 0; i < tree.n; ++i) deepest = std::max<int>(deepest, tree.node[i].depth);
        stats.rounds += 1;
        stats.target_nodes += tree.n;
        stats.proposed += tree.n - 1;
        stats.accepted += length - 1;
        for (int d = 1; d <= deepest; ++d) stats.proposed_by_depth[d] += 1;
        for (int d = 1; d < length; ++d) stats.accepted_by_depth[d] += 1;

        n_emitted = std::min(n_emitted, limit - int(text.size()));
        for (int i = 0; i < n_emitted; ++i)
            if (emitted[i].token == config.eos_token && !request.ignore_eos) {
                n_emitted = i;
                stats.stop = StopReason::eos;
                going = false;
            }
        for (int i = 0; i < n_emitted; ++i) {
            text.push_back(emitted[i].token);
            stats.by_origin[int(emitted[i].origin)] += 1;
        }
        stats.emitted += n_emitted;
        if (n_emitted > 0 && !emit({emitted, size_t(n_emitted)})) {
            stats.stop = StopReason::caller;
            going = false;
        }
    }
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
