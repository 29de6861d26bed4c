// Which code points is a text made of?
//
// In: a Python str's own storage (1, 2 or 4 bytes a character) or UTF-8. Out: code points, and UTF-8 of one code point.
// Invariant: each byte that begins no valid UTF-8 sequence becomes one U+FFFD, as sentencepiece's normaliser has it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace jmed {

constexpr uint32_t kReplacement = 0xFFFD;
constexpr uint32_t kNumCodePoints = 0x110000;

inline bool is_surrogate(uint32_t point) { return point >= 0xD800 && point < 0xE000; }

inline uint32_t decode_one(const uint8_t* at, const uint8_t* end, size_t& length) {
  const auto trail = [&](size_t i) { return (at[i] & 0xC0) == 0x80; };
  const size_t left = static_cast<size_t>(end - at);
  length = 1;
  if (at[0] < 0x80) return at[0];
  if (at[0] < 0xE0) {
    const uint32_t point = left > 1 ? (at[0] & 0x1Fu) << 6 | (at[1] & 0x3Fu) : 0;
    if (at[0] < 0xC2 || left < 2 || !trail(1)) return kReplacement;
    length = 2;
    return point;
  }
  if (at[0] < 0xF0) {
    if (left < 3 || !trail(1) || !trail(2)) return kReplacement;
    const uint32_t point = (at[0] & 0x0Fu) << 12 | (at[1] & 0x3Fu) << 6 | (at[2] & 0x3Fu);
    if (point < 0x800 || is_surrogate(point)) return kReplacement;
    length = 3;
    return point;
  }
  if (at[0] >= 0xF8 || left < 4 || !trail(1) || !trail(2) || !trail(3)) return kReplacement;
  const uint32_t point = (at[0] & 0x07u) << 18 | (at[1] & 0x3Fu) << 12 | (at[2] & 0x3Fu) << 6 | (at[3] & 0x3Fu);
  if (point < 0x10000 || point >= kNumCodePoints) return kReplacement;
  length = 4;
  return point;
}

inline void decode_utf8(const uint8_t* at, size_t num_bytes, std::vector<uint32_t>& points) {
  points.clear();
  for (const uint8_t* end = at + num_bytes; at < end;) {
    size_t length;
    points.push_back(decode_one(at, end, length));
    at += length;
  }
}

// Writes the UTF-8 bytes of a code point and returns how many there are.
inline int encode_one(uint32_t point, uint8_t* out) {
  if (point < 0x80) {
    out[0] = static_cast<uint8_t>(point);
    return 1;
  }
  const int length = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  for (int i = length - 1; i > 0; --i, point >>= 6) out[i] = static_cast<uint8_t>(0x80 | (point & 0x3F));
  static constexpr uint8_t kLead[] = {0, 0, 0xC0, 0xE0, 0xF0};
  out[0] = static_cast<uint8_t>(kLead[length] | point);
  return length;
}

}  // namespace jmed
