// A strict JSON reader for the files of a bundle, and the escaping that the program's own output needs.
//
// Stricter than most: a name may stand in an object once, integers are exact in 64 bits, text must be UTF-8.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tools {

// What a user can mend; the message is one sentence. What a file says may stand in it: control characters become
// question marks, and it is cut where it grows too long.
struct Error : std::runtime_error {
    explicit Error(const std::string &sentence);
};

class Json {
   public:
    using List = std::vector<Json>;
    using Member = std::pair<std::string, Json>;

    // Throws Error, with `what` as the name of the text, for anything that is not one JSON value.
    static Json parse(const std::string &text, const std::string &what);

    bool is_null() const { return std::holds_alternative<std::monostate>(value_); }

    // The value itself; throws Error for one of another kind, with `name` as the field that holds it.
    const std::string &text(const std::string &name) const;
    bool boolean(const std::string &name) const;
    double number(const std::string &name) const;  // one that fits a float
    int64_t integer(const std::string &name, int64_t least, int64_t most) const;
    const List &items(const std::string &name) const;
    const std::vector<Member> &members(const std::string &name) const;  // sorted by name

    // The member of an object; throws Error where there is none.
    const Json &at(const std::string &name) const;

   private:
    friend class Parser;
    struct Object {
        std::vector<Member> members;
    };

    template <class T>
    const T &need(const std::string &name, const char *kind) const;

    std::variant<std::monostate, bool, int64_t, double, std::string, List, Object> value_;
};

// A JSON string literal with its quotation marks.
std::string quoted(const std::string &text);

}  // namespace tools
