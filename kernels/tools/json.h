// A strict JSON reader, small enough for the files that edge-bench reads, and the escaping that its output needs.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tools {

// What a user can mend; the message is one sentence.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Json {
   public:
    enum class Kind { null, boolean, number, string, array, object };

    // Throws Error, with `what` as the name of the text, for anything that is not one JSON value.
    static Json parse(const std::string &text, const std::string &what);

    Kind kind() const { return kind_; }
    bool is_null() const { return kind_ == Kind::null; }

    // The member of an object; throws Error where there is none.
    const Json &at(const std::string &name) const;
    const std::vector<std::pair<std::string, Json>> &members() const;
    const std::vector<Json> &items() const;
    const std::string &text() const;
    bool boolean() const;
    double number() const;
    int64_t integer() const;  // a number without a fraction, exact

   private:
    friend class Parser;
    const Json &need(Kind kind, const char *name) const;

    Kind kind_ = Kind::null;
    bool boolean_ = false;
    double number_ = 0;
    std::string text_;
    std::vector<Json> items_;
    std::vector<std::pair<std::string, Json>> members_;
};

// A JSON string literal with its quotation marks.
std::string quoted(const std::string &text);

}  // namespace tools
