// The likeliest tokens of rows of logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "edge.h"

namespace edge {

struct Candidate {
    int32_t index;
    float logprob;
};

class Candidates {
   public:
    Candidates(int64_t columns, int64_t most_rows, int32_t workers);

    // The `count` likeliest of each row of logits [rows][columns], best first, the lower index first where two are
    // alike, with the logarithms of their probabilities. False if a logit is not finite.
    bool find(const edge_parallel &parallel, const float *logits, int64_t rows, int64_t count);
    const Candidate *of(int64_t row) const { return &found_[size_t(row * count_)]; }
    uint64_t bytes() const;

   private:
    // What one thread works with.
    struct Worker {
        std::vector<float> peaks, ordered, weights, sums;
    };

    bool find_in_row(const float *logits, Worker *worker, Candidate *out) const;

    const int64_t columns_;
    int64_t count_ = 0;
    std::vector<Worker> workers_;
    std::vector<Candidate> found_;
    std::vector<uint8_t> broken_;  // rows that are not finite
};

}  // namespace edge
