// Statistics over the repeats, and the strings of JSON.
#include "report.h"

#include <algorithm>
#include <cstdio>

namespace tools {
namespace {

// As in edge/measure/profile/machine.py and limits.py.
constexpr double noisy_load = 0.5, noisy_share = 0.1, throttled_clock = 0.9, noisy_range = 0.15;

// numpy's default percentile: linear between the neighbours.
double percentile(std::vector<double> values, double percent) {
    std::sort(values.begin(), values.end());
    const double place = percent / 100 * double(values.size() - 1);
    const size_t below = size_t(place), above = std::min(below + 1, values.size() - 1);
    return values[below] + (place - double(below)) * (values[above] - values[below]);
}
double median(const std::vector<double> &values) { return percentile(values, 50); }

std::string text_of(double value) {
    char text[40];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
}
std::string text_of(const std::optional<double> &value) { return value ? text_of(*value) : "null"; }
std::string list_of(const std::vector<double> &values) {
    std::string out = "[";
    for (const double value : values) out += (out.size() > 1 ? ", " : "") + text_of(value);
    return out + "]";
}

double best(const std::vector<double> &values) { return *std::max_element(values.begin(), values.end()); }

// One limit in every measurement of a run; scale: of its unit.
std::vector<double> each(const std::vector<edge_roofline> &found, double edge_roofline::*limit,
                         double scale = 1) {
    std::vector<double> values;
    for (const edge_roofline &one : found) values.push_back(one.*limit * scale);
    return values;
}

}  // namespace

Work work_of(const Cost &cost, int64_t row_bytes, const Test &test, int32_t batch) {
    const double n = test.tokens, depth = test.depth, pairs = n * depth + n * (n + 1) / 2;
    if (test.decode) {
        return {double(cost.streamed) * n, double(row_bytes) * pairs, double(cost.body + cost.head) * n,
                double(cost.attention) * pairs};
    }
    double pieces = 0, seen = 0;
    for (int32_t done = 0; done < test.tokens; ++pieces) {
        done = std::min(done + batch, test.tokens);
        seen += depth + done;
    }
    return {double(cost.streamed) * pieces, double(row_bytes) * seen,
            double(cost.body) * n + double(cost.head), double(cost.attention) * pairs};
}

std::string row_json(const Options &options, const Bundle &bundle, const Cost &cost, int64_t row_bytes,
                     const Runner &runner, const Test &test, const Measured &measured, const Limits &limits,
                     double load_seconds) {
    const Work work = work_of(cost, row_bytes, test, runner.batch());
    const std::vector<edge_roofline> &found = limits.at(runner.parallel().workers);
    const double read = best(each(found, &edge_roofline::read_bytes_per_second)),
                 floats = best(each(found, &edge_roofline::float_per_second)),
                 peak = cost.integer ? best(each(found, &edge_roofline::int8_per_second)) : floats;
    const double n = test.tokens, seconds = median(measured.seconds);
    std::vector<double> rates, token_rates, percentiles;
    for (const double one : measured.seconds) rates.push_back(n / one);
    for (const double one : measured.token_seconds) token_rates.push_back(1 / one);
    for (int p = 0; test.decode && p <= 100; ++p) {
        percentiles.push_back(percentile(measured.token_seconds, p));
    }
    const std::vector<double> &single = test.decode ? token_rates : rates;
    const auto field = [](const char *name, const std::string &value) {
        return quoted(name) + ": " + value + ", ";
    };
    const auto whole = [](int64_t value) { return std::to_string(value); };
    std::string out = "{";
    out += field("model", quoted(options.model.empty() ? bundle.name : options.model));
    out += field("executor", quoted("native"));
    out += field("quantize", quoted(bundle.quantize));
    out += field("threads", whole(runner.parallel().workers));
    out += field("attention", quoted("dense"));
    out += field("kv_type", quoted(options.kv_type));
    out += field("activations", quoted("int8"));
    out += field("tier", quoted(edge_model_tier(runner.model())));
    out += field("fill", quoted(options.fill));
    out += field("test", quoted(test.decode ? "decode" : "prefill"));
    out += field("tokens", whole(test.tokens));
    out += field("depth", whole(test.depth));
    out += field("ttft_seconds", test.decode ? "null" : text_of(seconds));
    out += field("tokens_per_second",
                 "{\"median\": " + text_of(median(rates)) +
                     ", \"min\": " + text_of(*std::min_element(rates.begin(), rates.end())) +
                     ", \"max\": " + text_of(*std::max_element(rates.begin(), rates.end())) + ", \"p50\": " +
                     text_of(percentile(single, 50)) + ", \"p90\": " + text_of(percentile(single, 10)) +
                     ", \"p99\": " + text_of(percentile(single, 1)) + "}");
    out += field("samples", list_of(rates));
    out += field("latency_percentiles", list_of(percentiles));
    out += field("weight_bytes_per_token", text_of(work.weights / n));
    out += field("kv_bytes_per_token", text_of(work.rows / n));
    out += field("operations_per_token", text_of((work.linear + work.attention) / n));
    out += field("bandwidth_share", text_of((work.weights + work.rows) / read / seconds));
    out += field("compute_share", text_of((work.linear / peak + work.attention / floats) / seconds));
    out += field("load_seconds", text_of(load_seconds));
    out += field("peak_memory_bytes", whole(measured.peak_memory));
    out += field("memory",
                 "{\"weights\": " + whole(cost.resident) +
                     ", \"kv_cache\": " + whole((test.depth + test.tokens) * row_bytes) +
                     ", \"workspace\": " + whole(int64_t(edge_model_workspace_bytes(runner.model()))) + "}");
    return out + "\"joules_per_token\": null, \"operators\": []}";
}

std::string machine_json(const Watch &watch, const Limits &limits) {
    std::string list, most, remarks;
    const auto remark = [&remarks](const std::string &text) {
        remarks += (remarks.empty() ? "" : ", ") + quoted(text);
    };
    for (const auto &entry : limits) {
        const struct {
            const char *field, *name, *unit;
            int digits;
            std::vector<double> found;
        } measured[] = {
            {"read_bandwidth_gb_s", "read bandwidth", "GB/s", 1,
             each(entry.second, &edge_roofline::read_bytes_per_second, 1e-9)},
            {"int8_tops", "int8 peak", "TOPS", 2, each(entry.second, &edge_roofline::int8_per_second, 2e-12)},
            {"float_tflops", "float peak", "TFLOPS", 2,
             each(entry.second, &edge_roofline::float_per_second, 2e-12)},
        };
        std::string bests, samples;
        for (const auto &limit : measured) {
            const double lowest = *std::min_element(limit.found.begin(), limit.found.end()),
                         highest = best(limit.found);
            bests += quoted(limit.field) + ": " + text_of(highest) + ", ";
            samples += (samples.empty() ? "" : ", ") + quoted(limit.field) + ": " + list_of(limit.found);
            if (highest - lowest <= noisy_range * highest) continue;
            char text[160];
            std::snprintf(text, sizeof text,
                          "Noisy: between the tests the %s (threads: %d) was %.*f to %.*f %s.", limit.name,
                          int(entry.first), limit.digits, lowest, limit.digits, highest, limit.unit);
            remark(text);
        }
        list += (list.empty() ? "" : ", ") + ("{\"threads\": " + std::to_string(entry.first)) + ", " + bests +
                "\"samples\": {" + samples + "}}";
        most = bests;
    }
    const bool varied = !remarks.empty();
    const std::optional<double> share = watch.other_share(), clock = clock_mhz(),
                                heat = temperature_celsius();
    const std::optional<int64_t> memory = memory_bytes();
    const std::string pages = huge_pages();
    const auto pair = [](const std::optional<double> &before, const std::optional<double> &after) {
        std::vector<double> known;
        for (const auto &value : {before, after}) {
            if (value) known.push_back(*value);
        }
        return list_of(known);
    };
    const bool loaded = watch.load_before && *watch.load_before > noisy_load * cores();
    const bool disturbed = share && *share > noisy_share;
    const bool throttled = watch.clock_before && clock && *clock < throttled_clock * *watch.clock_before;
    if (loaded) remark("Noisy: other processes were running in the minute before.");
    if (disturbed) remark("Noisy: other processes used CPU time during the run.");
    if (throttled) remark("Throttled: the clock fell during the run.");
    return "{\"system\": " + quoted(system_name()) + ", \"cpu\": " + quoted(cpu_name()) +
           ", \"cores\": " + std::to_string(cores()) +
           ", \"memory_bytes\": " + (memory ? std::to_string(*memory) : "null") +
           ", \"huge_pages\": " + (pages.empty() ? "null" : quoted(pages)) + ", " + most + "\"limits\": [" +
           list + "], \"load\": " + text_of(watch.load_before) + ", \"other_cpu_share\": " + text_of(share) +
           ", \"clock_mhz\": " + pair(watch.clock_before, clock) +
           ", \"temperature_celsius\": " + pair(watch.heat_before, heat) +
           ", \"noisy\": " + (loaded || disturbed || varied ? "true" : "false") +
           ", \"throttled\": " + (throttled ? "true" : "false") + ", \"remarks\": [" + remarks + "]}";
}

}  // namespace tools
