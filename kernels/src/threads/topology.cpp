// How many threads to use: physical performance cores, within the affinity mask and the cgroup's CPU quota.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "threads/pool.h"

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace edge {
namespace {

#if defined(__linux__)

std::string first_line(const std::string &path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

std::vector<int> allowed_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<int> cpus;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
    return cpus;
}

// Relative speed of a CPU, 0 where the system does not say; big.LITTLE phones say it as cpu_capacity.
long cpu_speed(int cpu) {
    const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
    for (const char *leaf : {"/cpu_capacity", "/cpufreq/cpuinfo_max_freq"}) {
        const std::string line = first_line(base + leaf);
        if (!line.empty()) return std::strtol(line.c_str(), nullptr, 10);
    }
    return 0;
}

// CPUs that one cgroup folder allows (v2 or v1), rounded up; 0 if it sets no limit.
int folder_quota(const std::string &folder) {
    long quota = 0, period = 0;
    if (std::sscanf(first_line(folder + "/cpu.max").c_str(), "%ld %ld", &quota, &period) != 2) {
        quota = std::strtol(first_line(folder + "/cpu.cfs_quota_us").c_str(), nullptr, 10);
        period = std::strtol(first_line(folder + "/cpu.cfs_period_us").c_str(), nullptr, 10);
    }
    return quota > 0 && period > 0 ? int((quota + period - 1) / period) : 0;
}

// The smallest quota of this process's cgroup and those above it; 0 if there is none.
int cgroup_quota() {
    std::ifstream memberships("/proc/self/cgroup");  // lines of hierarchy:controllers:path
    int smallest = 0;
    for (std::string line; std::getline(memberships, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
        const std::string root = controllers.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
        std::string path = line.substr(second + 1);
        for (;;) {
            const int quota = folder_quota(root + path);
            if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
            if (path.empty() || path == "/") break;
            const size_t slash = path.rfind('/');
            path.resize(slash == std::string::npos ? 0 : slash);
        }
    }
    return smallest;
}

int performance_cores() {
    long fastest = 0;
    const std::vector<int> cpus = allowed_cpus();
    for (int cpu : cpus) fastest = std::max(fastest, cpu_speed(cpu));
    std::set<std::string> cores;  // siblings of one physical core name the same list
    for (int cpu : cpus) {
        // Efficiency cores are far below the fastest; boost bins differ by a few percent only.
        if (cpu_speed(cpu) * 10 < fastest * 8) continue;
        const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
        const std::string siblings = first_line(base + "thread_siblings_list");
        cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    return int(cores.size());
}

#elif defined(__APPLE__)

int cgroup_quota() { return 0; }

int performance_cores() {
    int cores = 0;
    size_t size = sizeof cores;
    return sysctlbyname("hw.perflevel0.physicalcpu", &cores, &size, nullptr, 0) == 0 ? cores : 0;
}

#else

int cgroup_quota() { return 0; }
int performance_cores() { return 0; }

#endif

}  // namespace

int32_t default_threads() {
    int threads = performance_cores();
    if (threads <= 0) threads = int(std::thread::hardware_concurrency());
    const int quota = cgroup_quota();
    if (quota > 0) threads = std::min(threads, quota);
    return std::max(threads, 1);
}

}  // namespace edge

int32_t edge_default_threads(void) {
    try {
        return edge::default_threads();
    } catch (const std::exception &) { return 1; }
}
