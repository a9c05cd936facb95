// A recursive parser that keeps the whole document in memory.
#include "json.h"

#include <algorithm>
#include <cfloat>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <locale>
#include <sstream>

namespace tools {
namespace {

// Far beyond any manifest; what a document of this size takes in memory stays below a gigabyte.
constexpr size_t most_bytes = 16 << 20;
constexpr int most_levels = 64;
constexpr size_t longest_sentence = 600;

// Bytes of the UTF-8 character at `at`; 0 where there is none.
size_t character_bytes(const std::string &text, size_t at) {
    const auto byte = [&](size_t i) { return at + i < text.size() ? uint8_t(text[at + i]) : uint8_t(0); };
    const uint8_t first = byte(0), second = byte(1);
    const size_t bytes = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    for (size_t i = 1; i < bytes; ++i) {
        if ((byte(i) & 0xc0) != 0x80) return 0;
    }
    const bool overlong = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
    const bool beyond = (first == 0xed && second > 0x9f) || (first == 0xf4 && second > 0x8f) || first > 0xf4;
    return overlong || beyond ? 0 : bytes;
}

// C0, DEL and C1, which a terminal may obey.
bool is_control(const std::string &text, size_t at) {
    const uint8_t byte = uint8_t(text[at]);
    return byte < 0x20 || byte == 0x7f ||
           (byte == 0xc2 && at + 1 < text.size() && uint8_t(text[at + 1]) < 0xa0);
}

std::string printable(const std::string &text) {
    std::string out;
    for (size_t at = 0; at < text.size();) {
        const size_t bytes = character_bytes(text, at);
        if (out.size() + bytes > longest_sentence) return out + " ...";
        if (bytes == 0 || is_control(text, at)) {
            out.push_back('?');
        } else {
            out.append(text, at, bytes);
        }
        at += std::max<size_t>(bytes, 1);
    }
    return out;
}

// Not strtod: in an app whose locale writes 0,5 it would read 0.
double to_double(const std::string &text) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());
    double value = 0;
    stream >> value;
    return stream ? value : HUGE_VAL;
}

}  // namespace

Error::Error(const std::string &sentence) : std::runtime_error(printable(sentence)) {}

class Parser {
   public:
    Parser(const std::string &text, const std::string &what) : text_(text), what_(what) {}

    Json whole() {
        if (text_.size() > most_bytes) {
            throw Error(what_ + " is too large: " + std::to_string(text_.size()) + " bytes.");
        }
        for (size_t bytes = 0; at_ < text_.size(); at_ += bytes) {
            bytes = character_bytes(text_, at_);
            if (bytes == 0) fail("is not UTF-8");
        }
        at_ = 0;
        Json value = parse(0);
        space();
        if (at_ != text_.size()) fail("has something behind its end");
        return value;
    }

   private:
    [[noreturn]] void fail(const char *reason) const {
        throw Error(what_ + " is not valid JSON: it " + reason + " (byte " + std::to_string(at_) + ").");
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    void space() {
        while (peek() == ' ' || peek() == '\t' || peek() == '\r' || peek() == '\n') ++at_;
    }

    bool take(char c) {
        space();
        if (peek() != c) return false;
        ++at_;
        return true;
    }

    void expect(char c, const char *reason) {
        if (!take(c)) fail(reason);
    }

    Json parse(int level) {
        if (level > most_levels) fail("is nested too deeply");
        space();
        Json value;
        switch (peek()) {
            case '{':
                value.value_ = object(level);
                break;
            case '[':
                value.value_ = list(level);
                break;
            case '"':
                value.value_ = string();
                break;
            case 't':
                word("true");
                value.value_ = true;
                break;
            case 'f':
                word("false");
                value.value_ = false;
                break;
            case 'n':
                word("null");
                break;
            default:
                number(&value);
        }
        return value;
    }

    Json::Object object(int level) {
        Json::Object object;
        auto &members = object.members;
        ++at_;
        if (take('}')) return object;
        do {
            space();
            if (peek() != '"') fail("lacks the name of a member");
            std::string name = string();
            expect(':', "lacks a colon");
            members.emplace_back(std::move(name), parse(level + 1));
        } while (take(','));
        expect('}', "lacks the end of an object");
        // Sorted, so that neither this check nor `at` looks at all members for each one.
        std::sort(members.begin(), members.end(),
                  [](const auto &a, const auto &b) { return a.first < b.first; });
        const auto twice = std::adjacent_find(
            members.begin(), members.end(), [](const auto &a, const auto &b) { return a.first == b.first; });
        if (twice != members.end()) fail("has a member twice");
        return object;
    }

    Json::List list(int level) {
        Json::List items;
        ++at_;
        if (take(']')) return items;
        do { items.push_back(parse(level + 1)); } while (take(','));
        expect(']', "lacks the end of a list");
        return items;
    }

    void word(const char *wanted) {
        const size_t length = std::strlen(wanted);
        if (text_.compare(at_, length, wanted) != 0) fail("has an unknown word");
        at_ += length;
    }

    // Integers that fit 64 bits stay exact, everything else is a double.
    void number(Json *value) {
        const size_t start = at_;
        const auto digits = [&] {
            const size_t first = at_;
            while (peek() >= '0' && peek() <= '9') ++at_;
            if (at_ == first) fail("has a malformed number");
        };
        if (peek() == '-') ++at_;
        const bool zero = peek() == '0';
        const size_t whole = at_;
        digits();
        if (zero && at_ - whole > 1) fail("has a malformed number");
        const size_t end_of_whole = at_;
        if (peek() == '.') {
            ++at_;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            ++at_;
            if (peek() == '+' || peek() == '-') ++at_;
            digits();
        }
        if (at_ == end_of_whole) {
            int64_t integer = 0;
            const char *const end = text_.data() + at_;
            if (std::from_chars(text_.data() + start, end, integer).ec == std::errc()) {
                value->value_ = integer;
                return;
            }
        }
        value->value_ = to_double(text_.substr(start, at_ - start));
    }

    unsigned hex() {
        unsigned value = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = peek();
            const char *const digits = "0123456789abcdef";
            const char *const place =
                c == '\0' ? nullptr : std::strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c);
            if (place == nullptr) fail("has a malformed \\u escape");
            value = value * 16 + unsigned(place - digits);
        }
        return value;
    }

    static void append(unsigned code, std::string *out) {
        if (code < 0x80) {
            out->push_back(char(code));
        } else if (code < 0x800) {
            out->push_back(char(0xc0 | code >> 6));
            out->push_back(char(0x80 | (code & 63)));
        } else if (code < 0x10000) {
            out->push_back(char(0xe0 | code >> 12));
            out->push_back(char(0x80 | (code >> 6 & 63)));
            out->push_back(char(0x80 | (code & 63)));
        } else {
            out->push_back(char(0xf0 | code >> 18));
            out->push_back(char(0x80 | (code >> 12 & 63)));
            out->push_back(char(0x80 | (code >> 6 & 63)));
            out->push_back(char(0x80 | (code & 63)));
        }
    }

    std::string string() {
        std::string out;
        for (++at_;; ++at_) {
            if (at_ >= text_.size()) fail("ends inside a string");
            const char c = text_[at_];
            if (c == '"') break;
            if (uint8_t(c) < 0x20) fail("has a control character in a string");
            if (c != '\\') {
                out.push_back(c);
                continue;
            }
            ++at_;
            const char *const escapes = "\"\\/bfnrt", *const meant = "\"\\/\b\f\n\r\t";
            const char *const place = peek() == '\0' ? nullptr : std::strchr(escapes, peek());
            if (place != nullptr) {
                out.push_back(meant[place - escapes]);
            } else if (peek() == 'u') {
                ++at_;
                unsigned code = hex();
                if (code >= 0xd800 && code < 0xdc00 && text_.compare(at_, 2, "\\u") == 0) {
                    at_ += 2;
                    const unsigned low = hex();
                    if (low < 0xdc00 || low > 0xdfff) fail("has half of a surrogate pair");
                    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                }
                if (code >= 0xd800 && code <= 0xdfff) fail("has half of a surrogate pair");
                append(code, &out);
                --at_;
            } else {
                fail("has an unknown escape");
            }
        }
        ++at_;
        return out;
    }

    const std::string &text_;
    const std::string what_;
    size_t at_ = 0;
};

Json Json::parse(const std::string &text, const std::string &what) { return Parser(text, what).whole(); }

template <class T>
const T &Json::need(const std::string &name, const char *kind) const {
    const T *const value = std::get_if<T>(&value_);
    if (value == nullptr) throw Error("The field '" + name + "' should be " + kind + " and is not.");
    return *value;
}

const std::string &Json::text(const std::string &name) const { return need<std::string>(name, "a string"); }
bool Json::boolean(const std::string &name) const { return need<bool>(name, "true or false"); }
const Json::List &Json::items(const std::string &name) const { return need<List>(name, "a list"); }
const std::vector<Json::Member> &Json::members(const std::string &name) const {
    return need<Object>(name, "an object").members;
}

double Json::number(const std::string &name) const {
    const int64_t *const integer = std::get_if<int64_t>(&value_);
    const double value = integer ? double(*integer) : need<double>(name, "a number");
    if (std::fabs(value) > double(FLT_MAX)) throw Error("The field '" + name + "' is too large.");
    return value;
}

int64_t Json::integer(const std::string &name, int64_t least, int64_t most) const {
    const int64_t *const value = std::get_if<int64_t>(&value_);
    if (value != nullptr && *value >= least && *value <= most) return *value;
    throw Error("The field '" + name + "' should be a whole number from " + std::to_string(least) + " to " +
                std::to_string(most) + " and is not.");
}

const Json &Json::at(const std::string &name) const {
    const auto &all = need<Object>(name, "in an object").members;
    const auto found = std::lower_bound(
        all.begin(), all.end(), name,
        [](const Member &member, const std::string &wanted) { return member.first < wanted; });
    if (found == all.end() || found->first != name) throw Error("The field '" + name + "' is missing.");
    return found->second;
}

std::string quoted(const std::string &text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += {'\\', c};
        } else if (uint8_t(c) < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", unsigned(c));
            out += escape;
        } else {
            out.push_back(c);
        }
    }
    return out + "\"";
}

}  // namespace tools
