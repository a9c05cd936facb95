// The document of edge-bench: the JSON of docs/profile.md.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"
#include "device.h"
#include "runner.h"

namespace tools {

// Of the run, by number of threads.
using Limits = std::map<int32_t, std::vector<edge_roofline>>;

struct Work {
    double weights, rows, linear, attention;
};

// The bytes and multiply-adds of a whole test: the same arithmetic as `work` of edge/measure/profile/run.py.
Work work_of(const Cost &cost, int64_t row_bytes, const Test &test, int32_t batch);

// The state of the device at the start, and what changed until the end.
struct Watch {
    std::optional<double> load_before = load(), clock_before = clock_mhz(),
                          heat_before = temperature_celsius();
    std::optional<double> busy = busy_seconds();
    double own = own_seconds(), since = now();

    std::optional<double> other_share() const {
        const std::optional<double> after = busy_seconds();
        if (!busy || !after) return std::nullopt;
        const double others = *after - *busy - (own_seconds() - own);
        return std::max(0.0, others / (now() - since) / all_cpus());
    }
};

std::string row_json(const Options &options, const Bundle &bundle, const Cost &cost, int64_t row_bytes,
                     const Runner &runner, const Test &test, const Measured &measured, const Limits &limits,
                     double load_seconds);
std::string machine_json(const Watch &watch, const Limits &limits);

}  // namespace tools
