// Runs the self-test of every tier of this CPU; for machines (and emulators) without Python.
#include <cstdio>
#include <sstream>
#include <string>

#include "edge.h"

int main() {
    std::istringstream tiers(edge_cpu_tiers());
    std::string tier;
    int failures = 0;
    while (std::getline(tiers, tier, ',')) {
        const edge_status status = edge_self_test(tier.c_str());
        std::printf("%s: %s\n", tier.c_str(), status == EDGE_OK ? "ok" : edge_last_error());
        failures += status != EDGE_OK;
    }
    return failures;
}
