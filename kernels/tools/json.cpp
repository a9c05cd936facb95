// A recursive parser that keeps the whole document in memory.
#include "json.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace tools {

class Parser {
   public:
    Parser(const std::string &text, const std::string &what) : text_(text), what_(what) {}

    Json whole() {
        Json value = parse(0);
        space();
        if (at_ != text_.size()) fail("has something behind its end");
        return value;
    }

   private:
    static constexpr int most_levels = 64;

    [[noreturn]] void fail(const char *reason) const {
        throw Error(what_ + " is not valid JSON: it " + reason + " (byte " + std::to_string(at_) + ").");
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    void space() {
        while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr) ++at_;
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
                object(level, &value);
                break;
            case '[':
                array(level, &value);
                break;
            case '"':
                value.kind_ = Json::Kind::string;
                value.text_ = string();
                break;
            case 't':
            case 'f':
                value.kind_ = Json::Kind::boolean;
                value.boolean_ = peek() == 't';
                word(value.boolean_ ? "true" : "false");
                break;
            case 'n':
                word("null");
                break;
            default:
                value.kind_ = Json::Kind::number;
                value.number_ = number();
        }
        return value;
    }

    void object(int level, Json *value) {
        value->kind_ = Json::Kind::object;
        ++at_;
        if (take('}')) return;
        do {
            space();
            if (peek() != '"') fail("lacks the name of a member");
            std::string name = string();
            for (const auto &member : value->members_) {
                if (member.first == name) fail("has a member twice");
            }
            expect(':', "lacks a colon");
            value->members_.emplace_back(std::move(name), parse(level + 1));
        } while (take(','));
        expect('}', "lacks the end of an object");
    }

    void array(int level, Json *value) {
        value->kind_ = Json::Kind::array;
        ++at_;
        if (take(']')) return;
        do { value->items_.push_back(parse(level + 1)); } while (take(','));
        expect(']', "lacks the end of a list");
    }

    void word(const char *wanted) {
        const size_t length = std::strlen(wanted);
        if (text_.compare(at_, length, wanted) != 0) fail("has an unknown word");
        at_ += length;
    }

    double number() {
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
        if (peek() == '.') {
            ++at_;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            ++at_;
            if (peek() == '+' || peek() == '-') ++at_;
            digits();
        }
        return std::strtod(text_.substr(start, at_ - start).c_str(), nullptr);
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

    void append(unsigned code, std::string *out) {
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

const Json &Json::need(Kind kind, const char *name) const {
    if (kind_ != kind) throw Error(std::string("A value of the manifest should be ") + name + " and is not.");
    return *this;
}

const Json &Json::at(const std::string &name) const {
    for (const auto &member : members()) {
        if (member.first == name) return member.second;
    }
    throw Error("The field '" + name + "' is missing.");
}

const std::vector<std::pair<std::string, Json>> &Json::members() const {
    return need(Kind::object, "an object").members_;
}
const std::vector<Json> &Json::items() const { return need(Kind::array, "a list").items_; }
const std::string &Json::text() const { return need(Kind::string, "a string").text_; }
bool Json::boolean() const { return need(Kind::boolean, "true or false").boolean_; }
double Json::number() const { return need(Kind::number, "a number").number_; }

int64_t Json::integer() const {
    const double value = number();
    constexpr double exact = 9007199254740992.0;  // 2^53
    if (value != std::floor(value) || std::fabs(value) > exact) {
        throw Error("A number should be whole and is not.");
    }
    return int64_t(value);
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
