// edge_sample: from logits to one token, without ever sorting the vocabulary.
//
// Whole-vocabulary work is done in vectorised passes over blocks of 64; filters turn into thresholds, and only
// the few tokens around a threshold are gathered and ordered. Ties always go to the lower token id.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <vector>

#include "edge.h"
#include "error.h"
#include "sampler_passes.h"

namespace {

using namespace edge::sampler;

constexpr int kMaxLogprobs = 64;
// A top-p boundary with at most this many tokens around it is sorted, a wider one is narrowed first.
constexpr int64_t kSortLimit = 512;

struct Candidate {
    float value;
    int32_t index;
};

bool better(const Candidate &a, const Candidate &b) {
    return a.value > b.value || (a.value == b.value && a.index < b.index);
}

// ---- Memory that a thread keeps from token to token -------------------------------------------------------

struct Scratch {
    std::vector<float> adjusted;       // logits after bias and penalties
    std::vector<float> compact;        // logits of the tokens that a filter has left ...
    std::vector<int32_t> ids;          // ... and their ids, ascending
    std::vector<float> peaks, order;   // per block
    std::vector<float> weights, sums;  // exp(logit / temperature); per block
    std::vector<int32_t> counts;       // per block
    std::vector<Candidate> candidates;
    std::vector<int32_t> seen, seen_ids;  // occurrences by token id; zero between calls
};

// What is left of the vocabulary: n logits and, unless they are all of it, their ids.
struct Remaining {
    const float *logits;
    int64_t n;
    const int32_t *ids;  // NULL: position = id
    int32_t id(int64_t i) const { return ids ? ids[i] : static_cast<int32_t>(i); }
};

// Largest logit, with the largest of every block in s.peaks; NaN stands for NaN or +infinity anywhere.
float find_peak(const Passes &pass, Scratch &s, const float *x, int64_t n) {
    s.peaks.resize(block_count(n));
    if (pass.max(x, n, s.peaks.data())) return std::numeric_limits<float>::quiet_NaN();
    return *std::max_element(s.peaks.begin(), s.peaks.end());
}

double weigh(const Passes &pass, Scratch &s, const float *x, int64_t n, float peak,
             float inverse_temperature) {
    s.weights.resize(block_count(n) * kBlock);
    s.sums.resize(block_count(n));
    return pass.weigh(x, n, peak, inverse_temperature, s.weights.data(), s.sums.data());
}

// Fills s.candidates with the k best, in no order (fewer where the rest is -infinity). Needs s.peaks of x: the k-th
// largest block maximum is a lower bound of the k-th largest logit, which leaves few tokens to look at.
void find_best(Scratch &s, const float *x, int64_t n, int64_t k) {
    const int64_t blocks = block_count(n);
    float bound = -kInfinity;
    if (k <= blocks) {
        s.order.assign(s.peaks.begin(), s.peaks.end());
        std::nth_element(s.order.begin(), s.order.begin() + (k - 1), s.order.end(), std::greater<float>());
        bound = s.order[k - 1];
    }
    s.candidates.clear();
    for (int64_t b = 0; b < blocks; ++b) {
        if (s.peaks[b] < bound) continue;
        const int64_t end = std::min(n, (b + 1) * kBlock);
        for (int64_t i = b * kBlock; i < end; ++i) {
            if (x[i] >= bound && x[i] > -kInfinity) s.candidates.push_back({x[i], static_cast<int32_t>(i)});
        }
    }
    if (static_cast<int64_t>(s.candidates.size()) > k) {
        std::nth_element(s.candidates.begin(), s.candidates.begin() + k, s.candidates.end(), better);
        s.candidates.resize(k);
    }
}

// Reduces `left` to the tokens in s.candidates (their index counts within `left`).
void compact(Scratch &s, Remaining &left) {
    std::sort(s.candidates.begin(), s.candidates.end(),
              [](const Candidate &a, const Candidate &b) { return a.index < b.index; });
    const size_t n = s.candidates.size();
    std::vector<float> logits(n);
    std::vector<int32_t> ids(n);
    for (size_t i = 0; i < n; ++i) {
        logits[i] = left.logits[s.candidates[i].index];
        ids[i] = left.id(s.candidates[i].index);
    }
    s.compact.swap(logits);
    s.ids.swap(ids);
    left = {s.compact.data(), static_cast<int64_t>(n), s.ids.data()};
}

// Gathers the tokens with low <= weight < high, ascending. Needs s.counts of a mass pass at `low`.
void gather(Scratch &s, int64_t n, float low, float high) {
    s.candidates.clear();
    for (int64_t b = 0; b < block_count(n); ++b) {
        if (!s.counts[b]) continue;
        const int64_t end = std::min(n, (b + 1) * kBlock);
        for (int64_t i = b * kBlock; i < end; ++i) {
            const float w = s.weights[i];
            if (w >= low && w < high) s.candidates.push_back({w, static_cast<int32_t>(i)});
        }
    }
}

// Top-p. Returns the smallest weight that is kept; of its ties, those with higher ids lose their weight here.
float nucleus(const Passes &pass, Scratch &s, int64_t n, float top_p, double total) {
    const double target = top_p * total;
    s.counts.resize(block_count(n));
    // All tokens below (1 - p) / n of the mass have together less than 1 - p of it, so none of them is needed.
    float low = static_cast<float>((1.0 - top_p) * total / static_cast<double>(n));
    low = std::min(std::max(low, std::numeric_limits<float>::min()), 1.0f);  // the largest weight is 1
    float high = kInfinity;
    Mass at_low = pass.mass(s.weights.data(), n, low, s.counts.data());
    Mass at_high = {0, 0};
    for (int step = 0; step < 32 && at_low.count - at_high.count > kSortLimit; ++step) {
        const float middle = std::sqrt(low * std::min(high, 1.0f));
        if (!(middle > low && middle < high)) break;
        const Mass at_middle = pass.mass(s.weights.data(), n, middle, s.counts.data());
        if (at_middle.sum >= target) {
            low = middle;
            at_low = at_middle;
        } else {
            high = middle;
            at_high = at_middle;
        }
    }
    pass.mass(s.weights.data(), n, low, s.counts.data());
    gather(s, n, low, high);
    if (!std::is_sorted(s.candidates.begin(), s.candidates.end(), better))
        std::sort(s.candidates.begin(), s.candidates.end(), better);
    double mass = at_high.sum;
    size_t kept = 0;
    while (kept < s.candidates.size() && (mass < target || (kept == 0 && at_high.count == 0)))
        mass += s.candidates[kept++].value;
    if (kept == 0) return high;
    const float cut = s.candidates[kept - 1].value;
    for (size_t i = kept; i < s.candidates.size() && s.candidates[i].value == cut; ++i)
        s.weights[s.candidates[i].index] = 0.0f;
    return cut;
}

// Locally typical sampling (Meister et al. 2022): leaves the tokens whose surprise is nearest to the entropy.
void keep_typical(const Passes &pass, Scratch &s, Remaining &left, float peak, float inverse_temperature,
                  float typical_p, double total) {
    const double log_total = std::log(total);
    const double moment = pass.moment(left.logits, left.n, peak, s.weights.data()) * inverse_temperature;
    const double entropy = log_total - moment / total;
    // As for top-p, the unlikeliest tokens are not needed, provided that they are also the least typical.
    const double rest = (1.0 - typical_p) / static_cast<double>(left.n);
    float low = std::numeric_limits<float>::min();
    if (2 * entropy - log_total <= -std::log(rest)) low = std::max(low, static_cast<float>(rest * total));
    s.counts.resize(block_count(left.n));
    pass.mass(s.weights.data(), left.n, low, s.counts.data());
    gather(s, left.n, low, kInfinity);
    for (Candidate &c : s.candidates) {
        const double surprise =
            log_total - static_cast<double>(left.logits[c.index] - peak) * inverse_temperature;
        c.value = -static_cast<float>(std::fabs(surprise - entropy));
    }
    // Halve towards the boundary: all before `begin` is kept, all from `end` on is dropped.
    const double target = typical_p * total;
    double mass = 0;
    size_t begin = 0, end = s.candidates.size();
    while (end - begin > kBlock) {
        const size_t middle = begin + (end - begin) / 2;
        std::nth_element(s.candidates.begin() + begin, s.candidates.begin() + middle,
                         s.candidates.begin() + end, better);
        double part = 0;
        for (size_t i = begin; i < middle; ++i) part += s.weights[s.candidates[i].index];
        if (mass + part >= target) {
            end = middle;
        } else {
            mass += part;
            begin = middle;
        }
    }
    std::sort(s.candidates.begin() + begin, s.candidates.begin() + end, better);
    while (begin < end && (mass < target || begin == 0)) mass += s.weights[s.candidates[begin++].index];
    s.candidates.resize(begin);
    compact(s, left);
}

// Position of the token in which `random` of the total mass falls, in the order of ids. Where rounding lets the
// mass run out just before that, the last token with weight is meant.
int64_t draw(const Scratch &s, int64_t n, double total, double random) {
    const double target = random * total;
    double mass = 0, before = 0;
    int64_t block = 0;
    for (int64_t b = 0; b < block_count(n) && mass <= target; ++b) {
        if (s.sums[b] <= 0.0f) continue;
        block = b;
        before = mass;
        mass += s.sums[b];
    }
    int64_t chosen = 0;
    double inner = before;
    const int64_t end = std::min(n, (block + 1) * kBlock);
    for (int64_t i = block * kBlock; i < end && inner <= target; ++i) {
        if (s.weights[i] <= 0.0f) continue;
        chosen = i;
        inner += s.weights[i];
    }
    return chosen;
}

// A copy of the logits with bias and penalties, or the logits themselves where there are none.
const float *adjust(Scratch &s, const float *logits, int32_t vocab_size, const edge_sampling &options,
                    const int32_t *history, int32_t history_length, const int32_t *bias_tokens,
                    const float *bias_values, int32_t bias_count) {
    const bool penalties =
        history_length > 0 && (options.repetition_penalty != 1.0f || options.frequency_penalty != 0.0f ||
                               options.presence_penalty != 0.0f);
    if (!penalties && bias_count == 0) return logits;
    s.adjusted.assign(logits, logits + vocab_size);
    float *x = s.adjusted.data();
    for (int32_t i = 0; i < bias_count; ++i) x[bias_tokens[i]] += bias_values[i];
    if (!penalties) return x;
    if (static_cast<int32_t>(s.seen.size()) < vocab_size) s.seen.resize(vocab_size);
    s.seen_ids.clear();
    s.seen_ids.reserve(history_length);
    for (int32_t i = 0; i < history_length; ++i) {
        if (s.seen[history[i]]++ == 0) s.seen_ids.push_back(history[i]);
    }
    for (const int32_t id : s.seen_ids) {
        x[id] = x[id] > 0 ? x[id] / options.repetition_penalty : x[id] * options.repetition_penalty;
        x[id] -= options.frequency_penalty * static_cast<float>(s.seen[id]) + options.presence_penalty;
        s.seen[id] = 0;
    }
    return x;
}

edge_status check_arguments(const float *logits, int32_t vocab_size, const edge_sampling *options,
                            const int32_t *history, int32_t history_length, const int32_t *bias_tokens,
                            const float *bias_values, int32_t bias_count, double random,
                            const edge_sample_result *result) {
    using edge::fail;
    if (!logits || !options || !result)
        return fail(EDGE_INVALID, "edge_sample needs logits, options and a result.");
    if (options->size != sizeof(edge_sampling))
        return fail(EDGE_INVALID,
                    "edge_sampling has %u bytes here, the caller's has %u: rebuild the library.",
                    static_cast<unsigned>(sizeof(edge_sampling)), static_cast<unsigned>(options->size));
    if (vocab_size <= 0)
        return fail(EDGE_INVALID, "The vocabulary size must be positive, got %d.", vocab_size);
    if (history_length < 0 || (history_length > 0 && !history))
        return fail(EDGE_INVALID, "The history of %d tokens is missing.", history_length);
    if (bias_count < 0 || (bias_count > 0 && (!bias_tokens || !bias_values)))
        return fail(EDGE_INVALID, "The logit bias of %d tokens is missing.", bias_count);
    if (!(random >= 0.0 && random < 1.0))
        return fail(EDGE_INVALID, "The random number must be in [0, 1), got %g.", random);
    if (!(options->temperature >= 0 && options->temperature < kInfinity))
        return fail(EDGE_INVALID, "temperature must be 0 or more, got %g.", options->temperature);
    if (options->top_k < 0)
        return fail(EDGE_INVALID, "top_k must be 0 (off) or more, got %d.", options->top_k);
    const struct {
        const char *name;
        float value;
    } shares[] = {{"top_p", options->top_p}, {"min_p", options->min_p}, {"typical_p", options->typical_p}};
    for (const auto &share : shares) {
        if (!(share.value >= 0 && share.value <= 1))
            return fail(EDGE_INVALID, "%s must be from 0 to 1, got %g.", share.name, share.value);
    }
    if (!(options->repetition_penalty > 0 && options->repetition_penalty < kInfinity))
        return fail(EDGE_INVALID, "repetition_penalty must be above 0, got %g.", options->repetition_penalty);
    if (!std::isfinite(options->frequency_penalty) || !std::isfinite(options->presence_penalty))
        return fail(EDGE_INVALID, "frequency_penalty and presence_penalty must be finite.");
    if (options->logprobs < 0 || options->logprobs > kMaxLogprobs)
        return fail(EDGE_INVALID, "logprobs must be from 0 to %d, got %d.", kMaxLogprobs, options->logprobs);
    for (int32_t i = 0; i < history_length; ++i) {
        if (history[i] < 0 || history[i] >= vocab_size)
            return fail(EDGE_VOCABULARY, "Token id %d in the history is outside the vocabulary of %d.",
                        history[i], vocab_size);
    }
    for (int32_t i = 0; i < bias_count; ++i) {
        if (bias_tokens[i] < 0 || bias_tokens[i] >= vocab_size)
            return fail(EDGE_VOCABULARY, "Token id %d in the logit bias is outside the vocabulary of %d.",
                        bias_tokens[i], vocab_size);
        if (!(bias_values[i] < kInfinity))
            return fail(EDGE_INVALID, "The logit bias of token %d must be finite or -infinity.",
                        bias_tokens[i]);
    }
    return EDGE_OK;
}

// Applies temperature and filters, and draws; `peak` and s.peaks belong to x.
int32_t choose(const Passes &pass, Scratch &s, const float *x, int32_t vocab_size, float peak,
               const edge_sampling &options, double random) {
    if (options.temperature == 0) return static_cast<int32_t>(std::find(x, x + vocab_size, peak) - x);
    Remaining left = {x, vocab_size, nullptr};
    if (options.top_k > 0 && options.top_k < vocab_size) {
        find_best(s, x, vocab_size, options.top_k);
        compact(s, left);
    }
    // Smaller temperatures than this only differ by overflow.
    const float inverse_temperature = 1.0f / std::max(options.temperature, 1e-6f);
    double total = weigh(pass, s, left.logits, left.n, peak, inverse_temperature);
    if (options.typical_p < 1) {
        keep_typical(pass, s, left, peak, inverse_temperature, options.typical_p, total);
        peak = find_peak(pass, s, left.logits, left.n);
        total = weigh(pass, s, left.logits, left.n, peak, inverse_temperature);
    }
    float cut = options.min_p;  // the largest weight is 1
    if (options.top_p < 1) cut = std::max(cut, nucleus(pass, s, left.n, options.top_p, total));
    if (cut > 0) total = pass.keep(s.weights.data(), left.n, cut, s.sums.data());
    return left.id(draw(s, left.n, total, random));
}

edge_status sample(const float *logits, int32_t vocab_size, const edge_sampling &options,
                   const int32_t *history, int32_t history_length, const int32_t *bias_tokens,
                   const float *bias_values, int32_t bias_count, double random, bool want_logprob,
                   edge_sample_result &result) {
    thread_local Scratch s;
    const Passes &pass = best_passes();
    const float plain_peak = find_peak(pass, s, logits, vocab_size);
    if (std::isnan(plain_peak))
        return edge::fail(EDGE_NOT_FINITE, "The logits contain NaN or infinity: the weights are damaged.");
    if (plain_peak == -kInfinity)
        return edge::fail(EDGE_NOT_FINITE, "No token is allowed: all logits are -infinity.");

    double log_total = 0;
    if (want_logprob || options.logprobs > 0)
        log_total = plain_peak + std::log(weigh(pass, s, logits, vocab_size, plain_peak, 1.0f));
    if (options.logprobs > 0) {
        find_best(s, logits, vocab_size, options.logprobs);
        std::sort(s.candidates.begin(), s.candidates.end(), better);
        for (size_t i = 0; i < static_cast<size_t>(options.logprobs); ++i) {
            const bool there = i < s.candidates.size();
            result.top_tokens[i] = there ? s.candidates[i].index : -1;
            result.top_logprobs[i] =
                there ? static_cast<float>(s.candidates[i].value - log_total) : -kInfinity;
        }
    }

    const float *x =
        adjust(s, logits, vocab_size, options, history, history_length, bias_tokens, bias_values, bias_count);
    const float peak = x == logits ? plain_peak : find_peak(pass, s, x, vocab_size);
    if (std::isnan(peak))
        return edge::fail(EDGE_INVALID, "Bias and penalties make a logit infinite: lower them.");
    if (peak == -kInfinity) return edge::fail(EDGE_INVALID, "The logit bias forbids every token.");
    result.token = choose(pass, s, x, vocab_size, peak, options, random);
    result.logprob =
        want_logprob || options.logprobs > 0 ? static_cast<float>(logits[result.token] - log_total) : 0;
    return EDGE_OK;
}

}  // namespace

edge_status edge_sample(const float *logits, int32_t vocab_size, const edge_sampling *sampling,
                        const int32_t *history, int32_t history_length, const int32_t *bias_tokens,
                        const float *bias_values, int32_t bias_count, double random, int32_t want_logprob,
                        edge_sample_result *result) {
    const edge_status status = check_arguments(logits, vocab_size, sampling, history, history_length,
                                               bias_tokens, bias_values, bias_count, random, result);
    if (status != EDGE_OK) return status;
    try {
        return sample(logits, vocab_size, *sampling, history, history_length, bias_tokens, bias_values,
                      bias_count, random, want_logprob != 0, *result);
    } catch (const std::bad_alloc &) {
        return edge::fail(EDGE_NO_MEMORY, "No memory to sample from a vocabulary of %d.", vocab_size);
    }
}
