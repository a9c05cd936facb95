// Measures a bundle on a device without Python, by the protocol of `edge profile` and with the same JSON
// document (docs/profile.md) as the last line of its output.
//
//   edge_bench BUNDLE [--threads 1,2] [--prefill 512] [--generate 64] [--depth 0] [--fill prefill|synthetic]
//                     [--kv float16|float32|int4|int8|int16] [--repeat 5] [--model NAME]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "bundle.h"
#include "device.h"
#include "report.h"
#include "runner.h"

namespace tools {
namespace {

constexpr uint64_t roofline_bytes = uint64_t(1) << 28;

std::vector<int32_t> numbers(const std::string &text, const std::string &flag, int32_t least) {
    std::vector<int32_t> found;
    for (size_t start = 0; start <= text.size();) {
        const size_t comma = std::min(text.find(',', start), text.size());
        const std::string part = text.substr(start, comma - start);
        char *end = nullptr;
        const long value = std::strtol(part.c_str(), &end, 10);
        if (part.empty() || *end != '\0' || value < least || value > (1 << 24)) {
            throw Error(flag + " '" + text + "' is not a list of whole numbers of " + std::to_string(least) +
                        " or more.");
        }
        if (std::find(found.begin(), found.end(), int32_t(value)) == found.end()) {
            found.push_back(int32_t(value));
        }
        start = comma + 1;
    }
    return found;
}

Options parse(int count, char **arguments) {
    Options options;
    for (int i = 1; i < count; ++i) {
        const std::string flag = arguments[i];
        if (flag.compare(0, 2, "--") != 0) {
            if (!options.folder.empty()) {
                throw Error("Give one bundle, got '" + options.folder + "' and '" + flag + "'.");
            }
            options.folder = flag;
            continue;
        }
        if (++i == count) throw Error(flag + " needs a value.");
        const std::string value = arguments[i];
        if (flag == "--threads") {
            options.threads = numbers(value, flag, 1);
        } else if (flag == "--prefill") {
            options.prompt = numbers(value, flag, 0);
        } else if (flag == "--depth") {
            options.depth = numbers(value, flag, 0);
        } else if (flag == "--generate") {
            options.generate = numbers(value, flag, 0).back();
        } else if (flag == "--repeat") {
            options.repeat = numbers(value, flag, 1).back();
        } else if (flag == "--model") {
            options.model = value;
        } else if (flag == "--fill" && (value == "prefill" || value == "synthetic")) {
            options.fill = value;
        } else if (flag == "--kv" && kv_types.count(value) > 0) {
            options.kv_type = value;
        } else {
            throw Error("Unknown option " + flag + " " + value + "; the head of edge_bench.cpp lists them.");
        }
    }
    if (options.folder.empty()) throw Error("Give the folder of a bundle; `edge inspect MODEL` names it.");
    std::sort(options.depth.begin(), options.depth.end());
    return options;
}

std::vector<Test> tests_of(const Options &options) {
    std::vector<Test> tests;
    for (const int32_t depth : options.depth) {
        for (const int32_t tokens : options.prompt) {
            if (tokens > 0) tests.push_back({false, tokens, depth});
        }
        if (options.generate > 0) tests.push_back({true, options.generate, depth});
    }
    if (tests.empty()) throw Error("There is nothing to measure: give --prefill or --generate above 0.");
    return tests;
}

void run(const Options &options) {
    const std::vector<Test> tests = tests_of(options);
    const double start = now();
    const Bundle bundle(options.folder);
    int32_t context = 0;
    for (const Test &test : tests) context = std::max(context, test.depth + test.tokens);
    if (context > bundle.most_context) {
        throw Error("A context of " + std::to_string(context) + " tokens is beyond the " +
                    std::to_string(bundle.most_context) + " that the model was made for.");
    }
    const Cost cost = bundle.cost(true);
    const KvType kv = kv_types.at(options.kv_type);
    const int64_t head_row = kv.element_bits * bundle.config.head_dim / 8 + kv.scale_bytes;
    const int64_t row_bytes = 2 * head_row * bundle.config.layers * bundle.config.kv_heads;
    std::vector<std::unique_ptr<Runner>> runners;
    for (const int32_t threads : options.threads) {
        runners.push_back(std::make_unique<Runner>(bundle, options, threads, context));
    }
    const double load_seconds = now() - start;

    const Watch watch;
    Limits limits;
    const auto measure_limits = [&limits](const Runner &runner) {
        const auto region = make_region(roofline_bytes);  // not while a test's memory is measured
        std::memset(region.get(), 0x24, roofline_bytes);
        edge_roofline found{};
        check(edge_measure_roofline(&runner.parallel(), forced_tier(), region.get(), roofline_bytes, &found));
        limits[runner.parallel().workers].push_back(found);
    };
    std::vector<std::vector<Measured>> measured(runners.size(), std::vector<Measured>(tests.size()));
    for (int32_t repeat = 0; repeat < options.repeat; ++repeat) {
        for (size_t r = 0; r < runners.size(); ++r) {
            Runner &runner = *runners[r];
            measure_limits(runner);
            for (size_t t = 0; t < tests.size(); ++t) {
                std::fprintf(stderr, "repeat %d of %d: %s %d at depth %d, %d threads\n", repeat + 1,
                             options.repeat, tests[t].decode ? "decode" : "prefill", tests[t].tokens,
                             tests[t].depth, runner.parallel().workers);
                Measured &into = measured[r][t];
                if (repeat == 0) runner.prepare(tests[t]);
                reset_peak_memory();
                runner.measure(tests[t], &into);
                int64_t other_rows = -int64_t(tests[t].depth);
                for (const auto &other : runners) other_rows += other->cached_rows();
                into.peak_memory = std::max(into.peak_memory, peak_memory() - other_rows * row_bytes);
            }
        }
    }
    for (const auto &runner : runners) measure_limits(*runner);
    std::string rows;
    for (size_t r = 0; r < runners.size(); ++r) {
        for (size_t t = 0; t < tests.size(); ++t) {
            rows += (rows.empty() ? "" : ", ") + row_json(options, bundle, cost, row_bytes, *runners[r],
                                                          tests[t], measured[r][t], limits, load_seconds);
        }
    }
    std::printf(
        "{\"schema\": 4, \"program\": \"edge_bench\", \"created\": %s, \"repeat\": %d, \"machine\": %s, "
        "\"results\": [%s]}\n",
        quoted(utc_now()).c_str(), options.repeat, machine_json(watch, limits).c_str(), rows.c_str());
}

}  // namespace
}  // namespace tools

int main(int count, char **arguments) {
    return tools::guarded([&] { tools::run(tools::parse(count, arguments)); });
}
