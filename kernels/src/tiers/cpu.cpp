// Which of the compiled tiers this CPU can run.
#include <cstring>

#include "tiers/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace edge {

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx2vnni, kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon, kernels_neon_dotprod, kernels_neon_i8mm;
#endif

namespace {

struct Tier {
    const Kernels *kernels;
    bool (*usable)();
};

bool always() { return true; }

#if defined(__x86_64__)

// Clang before 16 has no name for it.
bool has_f16c() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

bool has_avx2vnni() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

const Tier tiers[] = {{&kernels_avx512, has_avx512},
                      {&kernels_avx2vnni, has_avx2vnni},
                      {&kernels_avx2, has_avx2},
                      {&kernels_portable, always}};

#elif defined(__aarch64__)

bool has_dotprod() {
#if defined(__linux__)
    constexpr unsigned long asimddp = 1ul << 20;
    return getauxval(AT_HWCAP) & asimddp;
#elif defined(__APPLE__)
    return true;  // every Apple core since the A11
#else
    return false;
#endif
}

bool has_i8mm() {
#if defined(__linux__)
    constexpr unsigned long i8mm = 1ul << 13;
    return has_dotprod() && (getauxval(AT_HWCAP2) & i8mm);
#elif defined(__APPLE__)
    int present = 0;
    size_t size = sizeof present;
    return sysctlbyname("hw.optional.arm.FEAT_I8MM", &present, &size, nullptr, 0) == 0 && present;
#else
    return false;
#endif
}

const Tier tiers[] = {{&kernels_neon_i8mm, has_i8mm},
                      {&kernels_neon_dotprod, has_dotprod},
                      {&kernels_neon, always},
                      {&kernels_portable, always}};

#else

const Tier tiers[] = {{&kernels_portable, always}};

#endif

}  // namespace

const Kernels *find_kernels(const char *name) {
    for (const Tier &tier : tiers) {
        if ((name == nullptr || std::strcmp(name, tier.kernels->name) == 0) && tier.usable()) {
            return tier.kernels;
        }
    }
    return nullptr;
}

}  // namespace edge

const char *edge_cpu_tiers(void) {
    static char names[128];
    static const bool listed = [] {
        for (const edge::Tier &tier : edge::tiers) {
            if (!tier.usable()) continue;
            if (names[0] != 0) std::strcat(names, ",");
            std::strcat(names, tier.kernels->name);
        }
        return true;
    }();
    return listed ? names : "";
}
