// Which classes of characters does a text hold, and which class follows which?
//
// In: a text in a str's own storage and a table from code point to class, made in Python from the patterns that are the
// reference (corpus/scan.py). Out: how often each class follows each other one, from which every count that a rule asks
// is a sum; stretches of one class; a text with characters replaced one for one; how many pieces are different.
// Invariant: the answer is exact, and says only what is there. What it means is decided in Python.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "text.hpp"

namespace jmed {

constexpr uint32_t kMaxClasses = 64;
constexpr uint8_t kEdge = 0;  // stands before the first and after the last character; no code point has it

// How often class b follows class a, at [a * num_classes + b]; and the longest run of one and the same character.
struct Neighbours {
  std::vector<uint32_t> times;
  size_t longest_run = 0;
};

class Classes {
 public:
  Classes(std::vector<uint8_t> class_of, uint32_t num_classes) : class_of_(std::move(class_of)), num_classes_(num_classes) {
    if (class_of_.size() != kNumCodePoints) throw std::invalid_argument("a class for each code point is wanted");
    if (num_classes_ == 0 || num_classes_ > kMaxClasses) throw std::invalid_argument("1 to 64 classes are wanted");
    const auto wrong = [&](uint8_t one) { return one == kEdge || one >= num_classes_; };
    if (std::any_of(class_of_.begin(), class_of_.end(), wrong)) throw std::invalid_argument("a class is out of range");
  }

  uint32_t num_classes() const { return num_classes_; }

  template <class Character>
  void count(const Character* text, size_t length, Neighbours& out) const {
    const size_t size = static_cast<size_t>(num_classes_) * num_classes_;
    // Two tables in turn: adding to one place twice running waits for the store before.
    out.times.assign(2 * size, 0);
    uint32_t* even = out.times.data();
    uint32_t* odd = even + size;
    size_t before = kEdge, run = 0, longest = 0;
    uint32_t last = kNumCodePoints;
    for (size_t at = 0; at < length; ++at) {
      const uint32_t point = text[at];
      const size_t here = class_of_[point];
      ++(at & 1 ? odd : even)[before * num_classes_ + here];
      before = here;
      run = point == last ? run + 1 : 1;
      longest = std::max(longest, run);
      last = point;
    }
    ++even[before * num_classes_ + kEdge];
    for (size_t pair = 0; pair < size; ++pair) even[pair] += odd[pair];
    out.longest_run = longest;
  }

  // [start, end) of each stretch of at least `shortest` characters of the wanted classes, as long as it can be.
  template <class Character>
  void stretches(const Character* text, size_t length, uint64_t wanted, size_t shortest,
                 std::vector<std::pair<size_t, size_t>>& out) const {
    for (size_t at = 0; at < length; ++at) {
      if (!(wanted >> class_of_[text[at]] & 1)) continue;
      const size_t start = at;
      while (at < length && wanted >> class_of_[text[at]] & 1) ++at;
      if (at - start >= shortest) out.emplace_back(start, at);
    }
  }

 private:
  std::vector<uint8_t> class_of_;
  uint32_t num_classes_;
};

// Replaces characters of the basic plane by others of it, one for one.
class Fold {
 public:
  explicit Fold(std::vector<uint16_t> to) : to_(std::move(to)) {
    if (to_.size() != 0x10000) throw std::invalid_argument("a character for each of the first 65,536 is wanted");
  }

  uint32_t operator()(uint32_t point) const { return point < 0x10000 ? to_[point] : point; }

  template <class Character>
  bool changes(const Character* text, size_t length) const {
    return std::any_of(text, text + length, [&](Character point) { return (*this)(point) != point; });
  }

 private:
  std::vector<uint16_t> to_;
};

// How many of the pieces of `width` characters that begin at each place are different from all before them?
template <class Character>
size_t num_different_pieces(const Character* text, size_t length, size_t width) {
  if (width == 0 || length < width) return 0;
  constexpr uint64_t kFactor = 0x9E3779B97F4A7C15u;
  constexpr uint32_t kEmpty = UINT32_MAX;
  const size_t num_pieces = length - width + 1;
  if (num_pieces >= kEmpty) throw std::invalid_argument("too long to count pieces in");
  size_t num_slots = 64;
  while (num_slots < 2 * num_pieces) num_slots *= 2;
  std::vector<uint32_t> slots(num_slots, kEmpty);
  uint64_t leaving = 1, hash = 0;  // leaving: what the first character of a piece counts in its hash
  for (size_t i = 0; i < width; ++i) leaving *= kFactor;
  for (size_t i = 0; i + 1 < width; ++i) hash = hash * kFactor + text[i] + 1;
  size_t different = 0;
  for (size_t at = 0; at < num_pieces; ++at) {
    hash = hash * kFactor + text[at + width - 1] + 1;
    if (at > 0) hash -= leaving * (static_cast<uint64_t>(text[at - 1]) + 1);
    size_t slot = (hash ^ hash >> 29) * kFactor >> 20 & (num_slots - 1);
    // Equal hashes do not make equal pieces: the characters decide.
    while (slots[slot] != kEmpty && std::memcmp(text + slots[slot], text + at, width * sizeof(Character)) != 0)
      slot = (slot + 1) & (num_slots - 1);
    if (slots[slot] == kEmpty) {
      slots[slot] = static_cast<uint32_t>(at);
      ++different;
    }
  }
  return different;
}

}  // namespace jmed
