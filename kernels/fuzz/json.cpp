// Any text as JSON.
#include "json.h"

#include "fuzz.h"

namespace {

// Reads values in every way, as long as `budget` lasts: a refusal takes far longer than a value.
void look_at(const tools::Json &json, int *budget) {
    if (--*budget < 0) return;
    const auto allowed = [](const auto &body) {
        try {
            body();
        } catch (const tools::Error &error) { require(std::strlen(error.what()) > 10); }
    };
    allowed([&] { tools::quoted(json.text("x")); });
    allowed([&] { json.boolean("x"); });
    allowed([&] { json.number("x"); });
    allowed([&] {
        const int64_t value = json.integer("x", -5, 1 << 20);
        require(value >= -5 && value <= 1 << 20);
    });
    allowed([&] {
        for (const tools::Json &item : json.items("x")) look_at(item, budget);
    });
    allowed([&] {
        for (const auto &member : json.members("x")) {
            require(&json.at(member.first) == &member.second);
            look_at(member.second, budget);
        }
    });
}

}  // namespace

bool accepts(Input input) {
    try {
        int budget = 30;
        look_at(tools::Json::parse(input.text(input.left()), "The text"), &budget);
        return true;
    } catch (const tools::Error &) { return false; }
}
