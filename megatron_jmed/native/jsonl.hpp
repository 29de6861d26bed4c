// What are the text, the source and the language of a document that stands as a JSON object on one line?
//
// In: the bytes of one line. Out: the text's code points, source and lang; or false for whatever is not a plain document,
// which is then the Python reader's to judge and to name: no JSON, invalid UTF-8, a lone surrogate, NUL, a text that is
// missing, no string or blank, a wanted field's name or source written with escapes, nesting deeper than kMaxDepth.
// Invariant: true is never said of a line that orjson refuses or reads as another document. Of a field that stands there
// twice the last one counts, as in orjson.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "text.hpp"

namespace jmed {

struct LineDocument {
  const uint32_t* text = nullptr;  // in the parser's memory, until it parses again
  size_t num_characters = 0;
  std::string_view source, lang;  // empty: not there, or no string; they point into the line
};

// The characters that Python's str.strip() takes away.
inline bool is_blank(uint32_t point) {
  if (point < 0x85) return (point >= 0x09 && point <= 0x0D) || (point >= 0x1C && point <= 0x20);
  return point == 0x85 || point == 0xA0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200A) || point == 0x2028 ||
         point == 0x2029 || point == 0x202F || point == 0x205F || point == 0x3000;
}

class LineParser {
 public:
  explicit LineParser(std::string_view text_field) : text_field_(text_field) {}

  bool parse(const uint8_t* begin, const uint8_t* end, LineDocument& document) {
    at_ = begin;
    end_ = end;
    bool has_text = false;
    document.source = document.lang = {};
    if (!token('{')) return false;
    if (token('}')) return false;
    do {
      std::string_view name;
      blank();
      if (!take('"') || !plain_string(name) || !token(':')) return false;
      blank();
      if (name == text_field_) {
        if (!take('"') || !text_string(document)) return false;
        has_text = true;
      } else if (name == "source" || name == "lang") {
        std::string_view& field = name == "source" ? document.source : document.lang;
        field = {};
        if (peek() == '"') {
          ++at_;
          if (!plain_string(field)) return false;
        } else if (!value(0)) {
          return false;
        }
      } else if (!value(0)) {
        return false;
      }
    } while (token(','));
    if (!token('}')) return false;
    blank();
    return at_ == end_ && has_text && says_something(document);
  }

 private:
  static constexpr int kMaxDepth = 64;

  static bool says_something(const LineDocument& document) {
    for (size_t i = 0; i < document.num_characters; ++i)
      if (!is_blank(document.text[i])) return true;
    return false;
  }

  int peek() const { return at_ < end_ ? *at_ : -1; }
  bool take(char wanted) { return peek() == wanted && ++at_; }
  bool token(char wanted) {
    blank();
    return take(wanted);
  }
  void blank() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\r' || *at_ == '\n')) ++at_;
  }

  // Whether none of the next 8 bytes ends a string, begins an escape, is a control character or lies beyond ASCII. Each
  // test leaves its answer in the highest bit of a byte; borrows make it say "no" too often, never "yes".
  static bool is_plain_ascii(const uint8_t* at) {
    constexpr uint64_t kOnes = 0x0101010101010101u, kHighest = 0x8080808080808080u;
    uint64_t bytes;
    std::memcpy(&bytes, at, sizeof bytes);
    const uint64_t quote = bytes ^ (kOnes * '"'), backslash = bytes ^ (kOnes * '\\');
    return ((bytes | (bytes - kOnes * 0x20) | (quote - kOnes) | (backslash - kOnes)) & kHighest) == 0;
  }

  // Passes a character beyond ASCII; 0 if it is not valid UTF-8.
  uint32_t wide_character() {
    if (end_ - at_ >= 3 && *at_ > 0xE0 && *at_ < 0xED && (at_[1] & 0xC0) == 0x80 && (at_[2] & 0xC0) == 0x80) {
      const uint32_t point = (at_[0] & 0x0Fu) << 12 | (at_[1] & 0x3Fu) << 6 | (at_[2] & 0x3Fu);  // as most of Japanese
      at_ += 3;
      return point;
    }
    size_t length;
    const uint32_t point = decode_one(at_, end_, length);
    at_ += length;
    return length == 1 ? 0 : point;
  }

  // A string without escapes, after its opening quote.
  bool plain_string(std::string_view& found) {
    const uint8_t* const begin = at_;
    while (at_ < end_) {
      if (*at_ == '"') {
        found = {reinterpret_cast<const char*>(begin), static_cast<size_t>(at_ - begin)};
        ++at_;
        return true;
      }
      if (*at_ == '\\' || *at_ < 0x20) return false;
      if (*at_ < 0x80)
        ++at_;
      else if (!wide_character())
        return false;
    }
    return false;
  }

  bool text_string(LineDocument& document) {
    // A byte is at most one character; resize() writes zeros, so the buffer keeps its largest size.
    if (buffer_.size() < static_cast<size_t>(end_ - at_)) buffer_.resize(static_cast<size_t>(end_ - at_));
    uint32_t* out = buffer_.data();
    while (at_ < end_) {
      while (end_ - at_ >= 8 && is_plain_ascii(at_)) {
        for (int i = 0; i < 8; ++i) out[i] = at_[i];
        out += 8;
        at_ += 8;
      }
      const uint8_t byte = *at_;
      if (byte == '"') {
        ++at_;
        document.text = buffer_.data();
        document.num_characters = static_cast<size_t>(out - buffer_.data());
        return true;
      }
      if (byte < 0x20) return false;
      if (byte == '\\') {
        ++at_;
        if (!escape(*out)) return false;
      } else if (byte < 0x80) {
        *out = byte;
        ++at_;
      } else if (!(*out = wide_character())) {
        return false;
      }
      if (*out++ == 0) return false;
    }
    return false;
  }

  // After the backslash.
  bool escape(uint32_t& point) {
    if (at_ >= end_) return false;
    switch (*at_++) {
      case '"': point = '"'; return true;
      case '\\': point = '\\'; return true;
      case '/': point = '/'; return true;
      case 'b': point = '\b'; return true;
      case 'f': point = '\f'; return true;
      case 'n': point = '\n'; return true;
      case 'r': point = '\r'; return true;
      case 't': point = '\t'; return true;
      case 'u': break;
      default: return false;
    }
    if (!four_digits(point)) return false;
    if (!is_surrogate(point)) return true;
    uint32_t low;
    if (point >= 0xDC00 || !take('\\') || !take('u') || !four_digits(low) || low < 0xDC00 || low >= 0xE000) return false;
    point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    return true;
  }

  bool four_digits(uint32_t& number) {
    if (end_ - at_ < 4) return false;
    number = 0;
    for (int i = 0; i < 4; ++i) {
      const uint8_t digit = *at_++;
      const int worth = digit >= '0' && digit <= '9'   ? digit - '0'
                        : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
                        : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                                                       : -1;
      if (worth < 0) return false;
      number = number << 4 | static_cast<uint32_t>(worth);
    }
    return true;
  }

  bool value(int depth) {
    if (depth > kMaxDepth) return false;
    blank();
    switch (peek()) {
      case '"': ++at_; return skipped_string();
      case '{': ++at_; return members('}', depth);
      case '[': ++at_; return members(']', depth);
      case 't': return word("true");
      case 'f': return word("false");
      case 'n': return word("null");
      default: return number();
    }
  }

  bool members(char closing, int depth) {
    if (token(closing)) return true;
    do {
      blank();
      if (closing == '}' && (!take('"') || !skipped_string() || !token(':'))) return false;
      if (!value(depth + 1)) return false;
    } while (token(','));
    return token(closing);
  }

  bool skipped_string() {
    while (at_ < end_) {
      if (*at_ == '"') return ++at_, true;
      if (*at_ < 0x20) return false;
      uint32_t ignored;
      if (*at_ == '\\') {
        ++at_;
        if (!escape(ignored)) return false;
      } else if (*at_ < 0x80) {
        ++at_;
      } else if (!wide_character()) {
        return false;
      }
    }
    return false;
  }

  bool word(std::string_view wanted) {
    if (static_cast<size_t>(end_ - at_) < wanted.size() || std::memcmp(at_, wanted.data(), wanted.size()) != 0) return false;
    at_ += wanted.size();
    return true;
  }

  size_t digits() {
    const uint8_t* const begin = at_;
    while (at_ < end_ && *at_ >= '0' && *at_ <= '9') ++at_;
    return static_cast<size_t>(at_ - begin);
  }

  bool number() {
    take('-');
    const bool zero = peek() == '0';
    const size_t whole = digits();
    if (!whole || whole > 300 || (zero && whole > 1)) return false;
    if (take('.') && !digits()) return false;
    if (!take('e') && !take('E')) return true;
    if (!take('+')) take('-');
    const size_t power = digits();
    return power > 0 && power < 3;  // larger ones may be beyond what a float holds
  }

  std::string_view text_field_;
  const uint8_t* at_ = nullptr;
  const uint8_t* end_ = nullptr;
  std::vector<uint32_t> buffer_;
};

}  // namespace jmed
