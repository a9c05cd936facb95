// edge_sample: from logits to one token, without ever sorting the vocabulary.
//
// Whole-vocabulary work is done in vectorised passes; filters turn into thresholds, and only
// the few tokens around a threshold are gathered and ordered. Ties always go to the lower token id.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <vector>

#include "abi/border.h"
#include "abi/error.h"
#include "edge.h"
#include "sampler/passes.h"
#include "sampler/philox.h"

namespace edge::sampler {
namespace {

// A filter's boundary with at most this many tokens around it is ordered, a wider one is narrowed first.
constexpr int64_t gather_limit = 2048;
constexpr int64_t sort_limit = 64;
// exp(-reach) is the least weight that counts.
constexpr double largest_reach = 87;

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
    std::vector<float> few;            // logits of the tokens that a filter has left ...
    std::vector<int32_t> few_ids;      // ... and their ids, ascending
    std::vector<float> peaks, order;   // per block
    std::vector<float> weights, sums;  // exp((logit - peak) / temperature); per chunk
    std::vector<Candidate> candidates;
    std::vector<int32_t> seen, seen_ids;  // occurrences by token id; zero between calls

    // So that no token after the first one allocates. What stays unused is never touched.
    void reserve(int64_t vocab_size) {
        const size_t n = size_t(vocab_size);
        for (auto *floats : {&adjusted, &few, &peaks, &order, &sums}) floats->reserve(n);
        for (auto *ids : {&few_ids, &seen, &seen_ids}) ids->reserve(n);
        weights.reserve(size_t(chunk_count(vocab_size) * chunk_size));
        candidates.reserve(n);
    }
};

// What is left of the vocabulary: n logits and, unless they are all of it, their ids. s.peaks, s.weights and
// s.sums belong to it; tokens without weight are no longer there.
struct Remaining {
    const float *logits;
    int64_t n;
    const int32_t *ids;  // nullptr: position = id
    float peak;
    float inverse_temperature;
    double total;       // of the weights
    float largest = 1;  // weight

    int32_t id(int64_t i) const { return ids ? ids[i] : int32_t(i); }
};

// Largest logit, with the largest of every block in s.peaks; NaN stands for NaN or +infinity anywhere.
float find_peak(const Passes &pass, Scratch &s, const float *x, int64_t n) {
    s.peaks.resize(block_count(n));
    if (pass.max(x, n, s.peaks.data())) return std::numeric_limits<float>::quiet_NaN();
    return *std::max_element(s.peaks.begin(), s.peaks.end());
}

double weigh(const Passes &pass, Scratch &s, const float *x, int64_t n, float peak,
             float inverse_temperature) {
    s.weights.resize(chunk_count(n) * chunk_size);
    s.sums.resize(chunk_count(n));
    return pass.weigh(x, n, peak, inverse_temperature, s.weights.data(), s.sums.data());
}

// Fills s.candidates with the k best logits, in no order (fewer where the rest is -infinity). Needs s.peaks of x:
// the k-th largest block maximum is a lower bound of the k-th largest logit, which leaves few tokens to look at.
void find_best(Scratch &s, const float *x, int64_t n, int64_t k) {
    const int64_t blocks = block_count(n);
    float bound = -infinity;
    if (k <= blocks) {
        s.order.assign(s.peaks.begin(), s.peaks.end());
        std::nth_element(s.order.begin(), s.order.begin() + (k - 1), s.order.end(), std::greater<float>());
        bound = s.order[k - 1];
    }
    s.candidates.clear();
    for (int64_t b = 0; b < blocks; ++b) {
        if (s.peaks[b] < bound) continue;
        const int64_t end = std::min(n, (b + 1) * block_size);
        for (int64_t i = b * block_size; i < end; ++i) {
            if (x[i] >= bound && x[i] > -infinity) s.candidates.push_back({x[i], int32_t(i)});
        }
    }
    if (int64_t(s.candidates.size()) > k) {
        std::nth_element(s.candidates.begin(), s.candidates.begin() + k, s.candidates.end(), better);
        s.candidates.resize(k);
    }
}

// Reduces `left` to the tokens in s.candidates, whose indices count within `left`.
void narrow(const Passes &pass, Scratch &s, Remaining &left) {
    std::sort(s.candidates.begin(), s.candidates.end(),
              [](const Candidate &a, const Candidate &b) { return a.index < b.index; });
    const size_t n = s.candidates.size();
    if (left.ids == nullptr) {  // else `left` lies in these two, and tokens only move forward
        s.few.resize(n);
        s.few_ids.resize(n);
    }
    for (size_t i = 0; i < n; ++i) {
        const int32_t from = s.candidates[i].index;
        s.few[i] = left.logits[from];
        s.few_ids[i] = left.id(from);
    }
    left.logits = s.few.data();
    left.ids = s.few_ids.data();
    left.n = int64_t(n);
    left.largest = 1;
    left.peak = find_peak(pass, s, left.logits, left.n);
    left.total = weigh(pass, s, left.logits, left.n, left.peak, left.inverse_temperature);
}

struct Band {
    float low, high;  // weights in [low, high)
    bool contains(float w) const { return w >= low && w < high; }
};

// Fills s.candidates with the tokens in `outer` but not in `inner`, ascending; false if they are more than `limit`.
bool gather(Scratch &s, const Remaining &left, Band outer, Band inner, int64_t limit) {
    s.candidates.clear();
    // Blocks whose peak has less weight are skipped; the slack is far above what rounding does to a weight.
    const float bound =
        outer.low > 0 ? left.peak + (std::log(outer.low) - 0.01f) / left.inverse_temperature : -infinity;
    for (int64_t b = 0; b < block_count(left.n); ++b) {
        if (s.peaks[b] < bound) continue;
        const int64_t end = std::min(left.n, (b + 1) * block_size);
        for (int64_t i = b * block_size; i < end; ++i) {
            const float w = s.weights[i];
            if (outer.contains(w) && !inner.contains(w)) s.candidates.push_back({w, int32_t(i)});
        }
        if (int64_t(s.candidates.size()) > limit) return false;
    }
    return true;
}

// Keeps the best tokens that hold `share` of the mass, at least one.
//
// band_of(reach) is a band of weights that grows with `reach`, from empty at 0; band_of(reach) of the argument
// holds enough. score(weight, index) orders the tokens inside a band, a wider band's new ones being worse.
template <class BandOf, class Score>
void keep_share(const Passes &pass, Scratch &s, Remaining &left, double share, double reach, BandOf band_of,
                Score score) {
    const double target = share * left.total;
    double sure = 0;  // all tokens within this reach are kept
    Mass inside = {0, 0};
    if (!gather(s, left, band_of(reach), band_of(sure), gather_limit)) {
        Mass around = pass.mass(s.weights.data(), left.n, band_of(reach).low, band_of(reach).high);
        for (int step = 0; step < 48 && around.count - inside.count > gather_limit; ++step) {
            const double middle = (sure + reach) / 2;
            const Band band = band_of(middle);
            const Mass mass = pass.mass(s.weights.data(), left.n, band.low, band.high);
            if (mass.count > 0 && mass.sum >= target) {
                reach = middle;
                around = mass;
            } else {
                sure = middle;
                inside = mass;
            }
        }
        gather(s, left, band_of(reach), band_of(sure), left.n);
    }
    for (Candidate &c : s.candidates) c.value = score(c.value, c.index);
    // Halve towards the boundary: all before `begin` is kept, all from `end` on is dropped.
    double mass = inside.sum;
    const auto first = s.candidates.begin();
    int64_t begin = 0, end = int64_t(s.candidates.size());
    while (end - begin > sort_limit) {
        const int64_t middle = begin + (end - begin) / 2;
        std::nth_element(first + begin, first + middle, first + end, better);
        double half = 0;
        for (int64_t i = begin; i < middle; ++i) half += s.weights[s.candidates[i].index];
        if (mass + half >= target) {
            end = middle;
        } else {
            mass += half;
            begin = middle;
        }
    }
    std::sort(first + begin, first + end, better);
    while (begin < end && (mass < target || begin + inside.count == 0)) {
        mass += s.weights[s.candidates[begin++].index];
    }
    if (inside.count == 0) {
        s.candidates.resize(begin);
        narrow(pass, s, left);
        return;
    }
    for (size_t i = begin; i < s.candidates.size(); ++i) s.weights[s.candidates[i].index] = 0.0f;
    const Band band = band_of(reach);
    left.total = pass.keep(s.weights.data(), left.n, band.low, band.high, s.sums.data());
    s.order.resize(block_count(left.n));
    pass.max(s.weights.data(), left.n, s.order.data());
    left.largest = *std::max_element(s.order.begin(), s.order.end());
}

void keep_top_p(const Passes &pass, Scratch &s, Remaining &left, double top_p) {
    // All tokens below (1 - p) / n of the mass have together less than 1 - p of it, so none of them is needed.
    const double least = (1.0 - top_p) * left.total / double(left.n);
    const double reach = std::min(largest_reach, std::max(0.1, 0.1 - std::log(least)));
    keep_share(
        pass, s, left, top_p, reach,
        [](double r) { return Band{r > 0 ? float(std::exp(0.05 - r)) : 2.0f, 2.0f}; },
        [](float weight, int32_t) { return weight; });
}

// Locally typical sampling (Meister et al. 2022): the tokens whose surprise is nearest to the entropy.
void keep_typical(const Passes &pass, Scratch &s, Remaining &left, double typical_p) {
    const double inverse_temperature = left.inverse_temperature, log_total = std::log(left.total);
    const double moment = pass.moment(left.logits, left.n, left.peak, s.weights.data()) * inverse_temperature;
    const double entropy = log_total - moment / left.total;
    // As for top-p, what is unlikely is not needed, once the band holds all that is likely.
    const double least = (1.0 - typical_p) / double(left.n);
    const double reach =
        0.1 + std::max(entropy - log_total, std::min(largest_reach, -std::log(least)) - entropy);
    const float *logits = left.logits;
    const float peak = left.peak;
    keep_share(
        pass, s, left, typical_p, reach,
        [=](double r) {
            const double middle = log_total - entropy;
            const double low = std::max(std::exp(middle - r), std::exp(-largest_reach));
            return Band{float(low), float(std::exp(middle + r))};
        },
        [=](float, int32_t i) {
            const double surprise = log_total - double(logits[i] - peak) * inverse_temperature;
            return -float(std::fabs(surprise - entropy));
        });
}

// Position of the token in which `random` of the total mass falls, in the order of ids. Where rounding lets the
// mass run out just before that, the last token with weight is meant.
int64_t draw(const Scratch &s, int64_t n, double total, double random) {
    const double target = random * total;
    double mass = 0, before = 0;
    int64_t chunk = 0;
    for (int64_t c = 0; c < chunk_count(n) && mass <= target; ++c) {
        if (s.sums[c] <= 0.0f) continue;
        chunk = c;
        before = mass;
        mass += s.sums[c];
    }
    int64_t chosen = 0;
    double inner = before;
    const int64_t end = std::min(n, (chunk + 1) * chunk_size);
    for (int64_t i = chunk * chunk_size; i < end && inner <= target; ++i) {
        if (s.weights[i] <= 0.0f) continue;
        chosen = i;
        inner += s.weights[i];
    }
    return chosen;
}

// A copy of the logits without the tokens that are not allowed, with bias and penalties; or the logits themselves
// where there is nothing of it.
const float *adjust(Scratch &s, const edge_sampling &options, const edge_draw &in) {
    const bool penalties =
        in.history_length > 0 && (options.repetition_penalty != 1.0f || options.frequency_penalty != 0.0f ||
                                  options.presence_penalty != 0.0f);
    if (!penalties && in.bias_count == 0 && in.allowed == nullptr) return in.logits;
    s.adjusted.assign(in.logits, in.logits + in.vocab_size);
    float *x = s.adjusted.data();
    for (int32_t i = 0; in.allowed != nullptr && i < in.vocab_size; ++i) {
        if ((in.allowed[i / 32] >> (i % 32) & 1) == 0) x[i] = -infinity;
    }
    for (int32_t i = 0; i < in.bias_count; ++i) x[in.bias_tokens[i]] += in.bias_values[i];
    if (!penalties) return x;
    if (int32_t(s.seen.size()) < in.vocab_size) s.seen.resize(in.vocab_size);
    s.seen_ids.clear();
    for (int32_t i = 0; i < in.history_length; ++i) {
        if (s.seen[in.history[i]]++ == 0) s.seen_ids.push_back(in.history[i]);
    }
    for (const int32_t id : s.seen_ids) {
        x[id] = x[id] > 0 ? x[id] / options.repetition_penalty : x[id] * options.repetition_penalty;
        x[id] -= options.frequency_penalty * float(s.seen[id]) + options.presence_penalty;
        s.seen[id] = 0;
    }
    return x;
}

edge_status check_arguments(const edge_sampling *options, const edge_draw *in,
                            const edge_sample_result *result) {
    if (!options || !in || !in->logits || !result) {
        return fail(EDGE_INVALID, "edge_sample needs logits, options and a result.");
    }
    const struct {
        const char *name;
        size_t here, given;
    } sizes[] = {{"edge_sampling", sizeof(edge_sampling), options->size},
                 {"edge_draw", sizeof(edge_draw), in->size}};
    for (const auto &record : sizes) {
        if (record.here == record.given) continue;
        return fail(EDGE_INVALID, "%s has %zu bytes here, the caller's has %zu: rebuild the library.",
                    record.name, record.here, record.given);
    }
    if (in->vocab_size <= 0) {
        return fail(EDGE_INVALID, "The vocabulary size must be positive, got %d.", in->vocab_size);
    }
    if (in->history_length < 0 || (in->history_length > 0 && !in->history)) {
        return fail(EDGE_INVALID, "The history of %d tokens is missing.", in->history_length);
    }
    if (in->bias_count < 0 || (in->bias_count > 0 && (!in->bias_tokens || !in->bias_values))) {
        return fail(EDGE_INVALID, "The logit bias of %d tokens is missing.", in->bias_count);
    }
    if (!(options->temperature >= 0 && options->temperature < infinity)) {
        return fail(EDGE_INVALID, "temperature must be 0 or more, got %g.", options->temperature);
    }
    if (options->top_k < 0) {
        return fail(EDGE_INVALID, "top_k must be 0 (off) or more, got %d.", options->top_k);
    }
    const struct {
        const char *name;
        float value;
    } shares[] = {{"top_p", options->top_p}, {"min_p", options->min_p}, {"typical_p", options->typical_p}};
    for (const auto &share : shares) {
        if (!(share.value >= 0 && share.value <= 1)) {
            return fail(EDGE_INVALID, "%s must be from 0 to 1, got %g.", share.name, share.value);
        }
    }
    if (!(options->repetition_penalty > 0 && options->repetition_penalty < infinity)) {
        return fail(EDGE_INVALID, "repetition_penalty must be above 0, got %g.", options->repetition_penalty);
    }
    if (!std::isfinite(options->frequency_penalty) || !std::isfinite(options->presence_penalty)) {
        return fail(EDGE_INVALID, "frequency_penalty and presence_penalty must be finite.");
    }
    if (options->logprobs < 0 || options->logprobs > EDGE_MAX_LOGPROBS) {
        return fail(EDGE_INVALID, "logprobs must be from 0 to %d, got %d.", EDGE_MAX_LOGPROBS,
                    options->logprobs);
    }
    for (int32_t i = 0; i < in->history_length; ++i) {
        if (in->history[i] < 0 || in->history[i] >= in->vocab_size) {
            return fail(EDGE_VOCABULARY, "Token id %d in the history is outside the vocabulary of %d.",
                        in->history[i], in->vocab_size);
        }
    }
    for (int32_t i = 0; i < in->bias_count; ++i) {
        if (in->bias_tokens[i] < 0 || in->bias_tokens[i] >= in->vocab_size) {
            return fail(EDGE_VOCABULARY, "Token id %d in the logit bias is outside the vocabulary of %d.",
                        in->bias_tokens[i], in->vocab_size);
        }
        if (!(in->bias_values[i] < infinity)) {
            return fail(EDGE_INVALID, "The logit bias of token %d must be finite or -infinity.",
                        in->bias_tokens[i]);
        }
    }
    return EDGE_OK;
}

// Applies temperature and filters, and draws; `peak` and s.peaks belong to x.
int32_t choose(const Passes &pass, Scratch &s, const float *x, int32_t vocab_size, float peak,
               const edge_sampling &options, double random) {
    if (options.temperature == 0) {
        const int64_t block = std::find(s.peaks.begin(), s.peaks.end(), peak) - s.peaks.begin();
        return int32_t(std::find(x + block * block_size, x + vocab_size, peak) - x);
    }
    // Smaller temperatures than this would only overflow.
    const float inverse_temperature = 1.0f / std::max(options.temperature, 1e-6f);
    Remaining left = {x, vocab_size, nullptr, peak, inverse_temperature, 0, 1};
    if (options.top_k > 0 && options.top_k < vocab_size) {
        find_best(s, x, vocab_size, options.top_k);
        narrow(pass, s, left);
    } else {
        left.total = weigh(pass, s, x, vocab_size, peak, inverse_temperature);
    }
    if (options.typical_p < 1) keep_typical(pass, s, left, options.typical_p);
    if (options.top_p < 1) keep_top_p(pass, s, left, options.top_p);
    if (options.min_p > 0) {
        const float least = options.min_p * left.largest;
        if (gather(s, left, {least, infinity}, {0, 0}, gather_limit)) {
            narrow(pass, s, left);
        } else {
            left.total = pass.keep(s.weights.data(), left.n, least, infinity, s.sums.data());
        }
    }
    return left.id(draw(s, left.n, left.total, random));
}

edge_status sample(const edge_sampling &options, const edge_draw &in, edge_sample_result &result) {
    const float *const logits = in.logits;
    const int32_t vocab_size = in.vocab_size;
    const bool want_logprob = in.want_logprob != 0 || options.logprobs > 0;
    thread_local Scratch s;
    s.reserve(vocab_size);
    const Passes &pass = best_passes();
    const float plain_peak = find_peak(pass, s, logits, vocab_size);
    if (std::isnan(plain_peak)) {
        return fail(EDGE_NOT_FINITE, "The logits contain NaN or infinity: the weights are damaged.");
    }
    if (plain_peak == -infinity) {
        return fail(EDGE_NOT_FINITE, "No token is allowed: all logits are -infinity.");
    }

    double log_total = 0;
    if (want_logprob) {
        log_total = plain_peak + std::log(weigh(pass, s, logits, vocab_size, plain_peak, 1.0f));
    }
    if (options.logprobs > 0) {
        find_best(s, logits, vocab_size, options.logprobs);
        std::sort(s.candidates.begin(), s.candidates.end(), better);
        for (size_t i = 0; i < size_t(options.logprobs); ++i) {
            const bool there = i < s.candidates.size();
            result.top_tokens[i] = there ? s.candidates[i].index : -1;
            result.top_logprobs[i] = there ? float(s.candidates[i].value - log_total) : -infinity;
        }
    }

    const float *x = adjust(s, options, in);
    const float peak = x == logits ? plain_peak : find_peak(pass, s, x, vocab_size);
    if (std::isnan(peak)) return fail(EDGE_INVALID, "Bias and penalties make a logit infinite: lower them.");
    if (peak == -infinity && in.allowed != nullptr) {
        return fail(EDGE_INVALID, "No token is allowed: the mask leaves none that logits and bias allow.");
    }
    if (peak == -infinity) return fail(EDGE_INVALID, "The logit bias forbids every token.");
    result.token = choose(pass, s, x, vocab_size, peak, options, uniform(in.seed, in.index, in.choice));
    result.logprob = want_logprob ? float(logits[result.token] - log_total) : 0;
    return EDGE_OK;
}

}  // namespace
}  // namespace edge::sampler

edge_status edge_sample(const edge_sampling *sampling, const edge_draw *draw, edge_sample_result *result) {
    return edge::guarded([&]() -> edge_status {
        if (const edge_status status = edge::sampler::check_arguments(sampling, draw, result)) return status;
        return edge::sampler::sample(*sampling, *draw, *result);
    });
}

void edge_philox(const uint32_t *counter, const uint32_t *key, uint32_t *out) {
    edge::sampler::philox(counter, key, out);
}
