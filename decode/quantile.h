// Quantiles of samples.
#pragma once

#include <algorithm>
#include <vector>

// The value below which the share q (0 to 1) of the samples lies, between two samples by linear interpolation; 0 of
// none.
inline double quantile(std::vector<double> samples, double q) {
    if (samples.empty()) return 0;
    std::sort(samples.begin(), samples.end());
    const double at = q * double(samples.size() - 1);
    const size_t below = size_t(at), above = std::min(below + 1, samples.size() - 1);
    return samples[below] + (at - double(below)) * (samples[above] - samples[below]);
}
