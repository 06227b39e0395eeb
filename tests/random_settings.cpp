#include "tests/random_settings.h"

#include "decode/tree.h"

TreeSettings random_settings(std::mt19937& generator) {
    const auto pick = [&](int least, int most) {
        const unsigned which = generator() % 4;
        return which == 0 ? least : which == 1 ? most : least + int(generator() % (most - least + 1));
    };
    TreeSettings settings;
    settings.nodes = pick(1, kMaxNodes);
    settings.depth = pick(1, kMaxDepth);
    settings.children = pick(1, kMaxChildren);
    settings.draft_width = pick(1, kMaxNodes);
    settings.draft_passes = pick(1, 16);
    settings.ngram_nodes = pick(0, settings.draft_width - 1);
    settings.tau = 0.5f + float(generator() % 20) / 10;
    settings.draft_cost = float(generator() % 3) * 0.05f;
    return settings;
}
