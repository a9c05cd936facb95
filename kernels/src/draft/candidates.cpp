// Finds the likeliest tokens through the peaks of blocks of logits: only a few blocks can hold them.
#include "draft/candidates.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "sampler/passes.h"
#include "threads/pool.h"

namespace edge {

Candidates::Candidates(int64_t columns, int64_t most_rows, int32_t workers)
    : columns_(columns), workers_(size_t(workers)), broken_(size_t(most_rows)) {
    for (Worker &worker : workers_) {
        worker.peaks.resize(size_t(sampler::block_count(columns)));
        worker.ordered.resize(worker.peaks.size());
        worker.sums.resize(size_t(sampler::chunk_count(columns)));
        worker.weights.resize(worker.sums.size() * size_t(sampler::chunk_size));
    }
}

uint64_t Candidates::bytes() const {
    uint64_t floats = 0;
    for (const Worker &worker : workers_) {
        floats += worker.peaks.size() + worker.ordered.size() + worker.weights.size() + worker.sums.size();
    }
    return floats * sizeof(float);
}

bool Candidates::find(const edge_parallel &parallel, const float *logits, int64_t rows, int64_t count) {
    count_ = count;
    found_.resize(size_t(rows * count));
    parallel_for(parallel, rows, 1, [&](int64_t begin, int64_t end, int32_t worker) {
        for (int64_t row = begin; row < end; ++row) {
            broken_[size_t(row)] = !find_in_row(logits + row * columns_, &workers_[size_t(worker)],
                                                &found_[size_t(row * count)]);
        }
    });
    return std::find(broken_.begin(), broken_.begin() + rows, 1) == broken_.begin() + rows;
}

bool Candidates::find_in_row(const float *logits, Worker *worker, Candidate *out) const {
    const sampler::Passes &pass = sampler::best_passes();
    std::vector<float> &peaks = worker->peaks, &ordered = worker->ordered;
    if (pass.max(logits, columns_, peaks.data())) return false;
    const float top = *std::max_element(peaks.begin(), peaks.end());
    if (!std::isfinite(top)) return false;
    const double total = pass.weigh(logits, columns_, top, 1.0f, worker->weights.data(), worker->sums.data());
    // As many blocks as tokens are wanted have a logit of at least the lowest of the highest peaks.
    float threshold = -sampler::infinity;
    if (count_ < int64_t(peaks.size())) {
        ordered = peaks;
        std::nth_element(ordered.begin(), ordered.begin() + (count_ - 1), ordered.end(),
                         std::greater<float>());
        threshold = ordered[size_t(count_ - 1)];
    }
    int64_t found = 0;
    for (int64_t block = 0; block < int64_t(peaks.size()); ++block) {
        if (peaks[size_t(block)] < threshold) continue;
        const int64_t first = block * sampler::block_size;
        for (int64_t i = first; i < std::min(columns_, first + sampler::block_size); ++i) {
            if (found == count_ && logits[i] <= out[found - 1].logprob) continue;
            if (found < count_) ++found;
            int64_t place = found - 1;
            for (; place > 0 && out[place - 1].logprob < logits[i]; --place) out[place] = out[place - 1];
            out[place] = {int32_t(i), logits[i]};
        }
    }
    const float log_total = top + float(std::log(total));
    for (int64_t i = 0; i < found; ++i) out[i].logprob = std::min(0.0f, out[i].logprob - log_total);
    return true;
}

}  // namespace edge
