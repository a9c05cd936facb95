// Facts about the device and its state, read from the system; what it does not tell is absent.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tools {

std::optional<double> load();                 // running processes, averaged over the last minute
std::optional<double> clock_mhz();            // mean of the CPUs
std::optional<double> temperature_celsius();  // of the hottest sensor
std::optional<int64_t> memory_bytes();        // installed
std::string huge_pages();                     // `always`, `madvise`, `never`, or empty
std::string cpu_name();
std::string system_name();
int cores();  // that this process may use

// CPU time of the whole machine, with what a hypervisor took, and of this process; in seconds.
std::optional<double> busy_seconds();
double own_seconds();
int all_cpus();

void reset_peak_memory();
int64_t peak_memory();  // of this process, in bytes

std::string utc_now();  // ISO 8601

}  // namespace tools
