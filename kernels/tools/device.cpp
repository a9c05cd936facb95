// Reads /proc, /sys and the C library's own functions; macOS has only the latter.
#include "device.h"

#include <dirent.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <memory>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace tools {
namespace {

std::string line_of(const std::string &path, const std::string &start = "") {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        if (line.compare(0, start.size(), start) == 0) return line;
    }
    return "";
}

std::optional<double> number_in(const std::string &path) {
    const std::string line = line_of(path);
    char *end = nullptr;
    const double value = std::strtod(line.c_str(), &end);
    return line.empty() || end == line.c_str() ? std::nullopt : std::optional<double>(value);
}

// The numbers in folder/<prefix><digits...>/leaf.
std::vector<double> numbers(const std::string &folder, const std::string &prefix, const std::string &leaf) {
    std::vector<double> found;
    const std::unique_ptr<DIR, int (*)(DIR *)> directory(opendir(folder.c_str()), closedir);
    if (!directory) return found;
    while (const dirent *entry = readdir(directory.get())) {
        const std::string name = entry->d_name;
        if (name.size() <= prefix.size() || name.compare(0, prefix.size(), prefix) != 0) continue;
        if (name[prefix.size()] < '0' || name[prefix.size()] > '9') continue;
        if (const auto value = number_in(folder + "/" + name + "/" + leaf)) found.push_back(*value);
    }
    return found;
}

std::string after_colon(const std::string &line) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) return "";
    const size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? "" : line.substr(start);
}

}  // namespace

std::optional<double> load() {
    double average = 0;
    return getloadavg(&average, 1) == 1 ? std::optional<double>(average) : std::nullopt;
}

std::optional<double> clock_mhz() {
    const std::vector<double> found = numbers("/sys/devices/system/cpu", "cpu", "cpufreq/scaling_cur_freq");
    if (found.empty()) return std::nullopt;
    double sum = 0;
    for (const double value : found) sum += value;
    return sum / double(found.size()) / 1000;
}

std::optional<double> temperature_celsius() {
    const std::vector<double> found = numbers("/sys/class/thermal", "thermal_zone", "temp");
    if (found.empty()) return std::nullopt;
    return *std::max_element(found.begin(), found.end()) / 1000;
}

std::optional<int64_t> memory_bytes() {
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGE_SIZE);
    return pages > 0 && size > 0 ? std::optional<int64_t>(int64_t(pages) * size) : std::nullopt;
}

std::string huge_pages() {
    const std::string line = line_of("/sys/kernel/mm/transparent_hugepage/enabled");
    const size_t open = line.find('['), close = line.find(']');
    return open == std::string::npos || close == std::string::npos ? ""
                                                                   : line.substr(open + 1, close - open - 1);
}

std::string cpu_name() {
    for (const char *start : {"model name", "Hardware", "Model"}) {
        const std::string name = after_colon(line_of("/proc/cpuinfo", start));
        if (!name.empty()) return name;
    }
    utsname facts{};
    return uname(&facts) == 0 ? facts.machine : "unknown";
}

std::string system_name() {
    utsname facts{};
    if (uname(&facts) != 0) return "unknown";
    return std::string(facts.sysname) + " " + facts.release + " " + facts.machine;
}

int cores() {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, int(CPU_COUNT(&set)));
#endif
    return std::max(1, int(std::thread::hardware_concurrency()));
}

std::optional<double> busy_seconds() {
    std::istringstream line(line_of("/proc/stat", "cpu "));
    std::string label;
    double user, nice, system, idle, waiting, irq, softirq, steal;
    if (!(line >> label >> user >> nice >> system >> idle >> waiting >> irq >> softirq >> steal)) {
        return std::nullopt;
    }
    return (user + nice + system + irq + softirq + steal) / double(sysconf(_SC_CLK_TCK));
}

double own_seconds() {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return double(time.tv_sec) + double(time.tv_nsec) / 1e9;
}

int all_cpus() { return std::max(1, int(sysconf(_SC_NPROCESSORS_ONLN))); }

void reset_peak_memory() { std::ofstream("/proc/self/clear_refs") << "5"; }

int64_t peak_memory() {
    const std::string line = after_colon(line_of("/proc/self/status", "VmHWM:"));
    if (!line.empty()) return std::strtoll(line.c_str(), nullptr, 10) * 1024;
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
    return usage.ru_maxrss;
#else
    return int64_t(usage.ru_maxrss) * 1024;
#endif
}

std::string utc_now() {
    const time_t now = std::time(nullptr);
    tm parts{};
    gmtime_r(&now, &parts);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &parts);
    return text;
}

}  // namespace tools
