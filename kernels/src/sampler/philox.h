// Random numbers that are a function of a seed and of what they are for: Philox4x32-10 (Salmon et al. 2011).
#pragma once

#include <cstdint>

namespace edge::sampler {

inline void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    constexpr uint64_t multipliers[] = {0xD2511F53, 0xCD9E8D57};
    constexpr uint32_t weyl[] = {0x9E3779B9, 0xBB67AE85};
    uint32_t c[] = {counter[0], counter[1], counter[2], counter[3]}, k[] = {key[0], key[1]};
    for (int round = 0; round < 10; ++round, k[0] += weyl[0], k[1] += weyl[1]) {
        const uint64_t first = multipliers[0] * c[0], second = multipliers[1] * c[2];
        const uint32_t left = uint32_t(second >> 32) ^ c[1] ^ k[0],
                       right = uint32_t(first >> 32) ^ c[3] ^ k[1];
        c[0] = left;
        c[1] = uint32_t(second);
        c[2] = right;
        c[3] = uint32_t(first);
    }
    for (int i = 0; i < 4; ++i) out[i] = c[i];
}

// In [0, 1), for one token of one answer.
inline double uniform(uint64_t seed, uint64_t index, uint64_t choice) {
    const uint32_t counter[] = {uint32_t(index), uint32_t(index >> 32), uint32_t(choice),
                                uint32_t(choice >> 32)};
    const uint32_t key[] = {uint32_t(seed), uint32_t(seed >> 32)};
    uint32_t out[4];
    philox(counter, key, out);
    return double((uint64_t(out[0]) << 32 | out[1]) >> 11) * 0x1p-53;
}

}  // namespace edge::sampler
