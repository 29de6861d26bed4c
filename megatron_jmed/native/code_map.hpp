// What does each character of a text become, where that hangs on the character and, rarely, on those around it?
//
// In: a table with one entry for every code point (made in Python from the interpreter's own Unicode data) and a text.
// Out: code points. An entry is the code point to write, or one of three things:
//   - an expansion: several code points, or none;
//   - joining: the character may combine with what stands before it (a combining mark, a half-width voiced sound mark,
//     a Hangul vowel), so the run from the last character that does not join up to here is mapped by a Python function;
//   - unsure: the answer hangs on something further away; it is left to the caller, who is told.
// Invariant: a text becomes what the Python function makes of it, whatever runs were seen before.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text.hpp"

namespace jmed {

using Points = std::vector<uint32_t>;

constexpr uint32_t kExpansion = 0x80000000;  // | length << kOffsetBits | where it begins
constexpr uint32_t kJoining = 0x40000000;
constexpr uint32_t kUnsure = 0x20000000;
constexpr int kOffsetBits = 24;
constexpr uint32_t kMaxExpansion = 63;

class CodeMap {
 public:
  // `map_run` gives what a run becomes; it may be called from any thread, and for the same run again.
  using MapRun = std::function<Points(const Points&)>;

  CodeMap(std::vector<uint32_t> entries, Points expansions, MapRun map_run)
      : entries_(std::move(entries)), expansions_(std::move(expansions)), map_run_(std::move(map_run)) {
    if (entries_.size() != kNumCodePoints) throw std::invalid_argument("a table needs an entry for each code point");
    for (const uint32_t entry : entries_)
      if (entry & kExpansion) {
        if (offset_of(entry) + length_of(entry) > expansions_.size()) throw std::invalid_argument("an expansion ends nowhere");
      } else if (entry != kJoining && entry != kUnsure && entry >= kNumCodePoints) {
        throw std::invalid_argument("a table maps to something that is no code point");
      }
  }

  // Writes what the text becomes into `points`; false if it holds a character that the table is unsure of.
  template <class Character>
  bool map(const Character* text, size_t num_characters, Points& points) const {
    size_t capacity = num_characters + kSlack;
    if (points.size() < capacity) points.resize(capacity);
    capacity = points.size();
    const uint32_t* const entries = entries_.data();
    uint32_t* begin = points.data();
    uint32_t* out = begin;
    uint32_t* before = begin;  // where the last character's output begins
    for (size_t i = 0; i < num_characters; ++i) {
      const uint32_t point = static_cast<uint32_t>(text[i]);
      const uint32_t entry = entries[point];
      if (__builtin_expect(entry < kNumCodePoints, 1)) {
        before = out;
        *out++ = entry;
        continue;
      }
      if (entry == kUnsure) return false;
      const Points* many = nullptr;
      Points found;
      size_t length, next = i + 1;
      const uint32_t* from;
      if (entry == kJoining) {
        while (next < num_characters && entries[static_cast<uint32_t>(text[next])] == kJoining) ++next;
        const size_t first = i > 0 ? i - 1 : 0;
        out = before;
        found = mapped_run(Points(text + first, text + next));
        many = &found;
        from = many->data();
        length = many->size();
      } else {
        from = expansions_.data() + offset_of(entry);
        length = length_of(entry);
      }
      const size_t used = static_cast<size_t>(out - begin);
      if (used + length + (num_characters - next) > capacity) {
        points.resize(2 * (used + length + num_characters - next));
        capacity = points.size();
        begin = points.data();
        out = begin + used;
      }
      before = out;
      for (size_t k = 0; k < length; ++k) *out++ = from[k];
      i = next - 1;
    }
    points.resize(static_cast<size_t>(out - begin));
    return true;
  }

 private:
  static size_t offset_of(uint32_t entry) { return entry & ((1u << kOffsetBits) - 1); }
  static size_t length_of(uint32_t entry) { return (entry & ~kExpansion) >> kOffsetBits; }

  Points mapped_run(Points run) const {
    std::u32string key(run.begin(), run.end());
    if (key.size() <= kLongestKept) {
      const std::lock_guard<std::mutex> guard(mutex_);
      const auto known = runs_.find(key);
      if (known != runs_.end()) return known->second;
    }
    // Without the lock: the function may wait for the interpreter, whose holder may wait for the lock.
    Points mapped = map_run_(run);
    if (key.size() <= kLongestKept) {
      const std::lock_guard<std::mutex> guard(mutex_);
      if (runs_.size() < kMostKept) runs_.emplace(std::move(key), mapped);
    }
    return mapped;
  }

  static constexpr size_t kSlack = 64, kLongestKept = 6, kMostKept = 1 << 15;
  std::vector<uint32_t> entries_;
  Points expansions_;
  MapRun map_run_;
  mutable std::mutex mutex_;
  mutable std::unordered_map<std::u32string, Points> runs_;
};

}  // namespace jmed
