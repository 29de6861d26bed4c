// Where in a text does each of many words begin?
//
// In: groups of words, and a table by which characters that count as equal (digits, capitals) have one symbol. Out: for
// each group the places where one of its words begins, in order, each once. One pass for all words (Aho and Corasick,
// "Efficient string matching", 1975), with the table of all transitions written out.
// Invariant: the places are those of a search for each word alone, overlapping ones too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <vector>

#include "text.hpp"

namespace jmed {

class Words {
 public:
  // symbol_of[code point], 0 for characters in no word; a word is its symbols; group_of[i] is the group of words[i].
  Words(std::vector<uint16_t> symbol_of, const std::vector<std::vector<uint16_t>>& words, const std::vector<uint32_t>& group_of)
      : symbol_of_(std::move(symbol_of)) {
    if (symbol_of_.size() != kNumCodePoints) throw std::invalid_argument("a symbol for each code point is wanted");
    if (words.size() != group_of.size()) throw std::invalid_argument("a group for each word is wanted");
    num_symbols_ = 1u + *std::max_element(symbol_of_.begin(), symbol_of_.end());
    add_state();
    for (size_t number = 0; number < words.size(); ++number) add_word(words[number], group_of[number]);
    connect();
  }

  uint32_t num_groups() const { return num_groups_; }
  size_t num_states() const { return ends_.size(); }

  template <class Character>
  void find(const Character* text, size_t length, std::vector<std::vector<size_t>>& places) const {
    places.assign(num_groups_, {});
    uint32_t state = 0;  // times num_symbols_
    for (size_t at = 0; at < length; ++at) {
      const uint32_t next = to_[state + symbol_of_[text[at]]];
      state = next >> 1;
      if (next & 1)
        for (const End& end : ends_[state / num_symbols_]) places[end.group].push_back(at + 1 - end.length);
    }
    for (auto& group : places) {
      std::sort(group.begin(), group.end());
      group.erase(std::unique(group.begin(), group.end()), group.end());
    }
  }

 private:
  struct End {
    uint32_t group;
    uint32_t length;
  };

  uint32_t add_state() {
    to_.resize(to_.size() + num_symbols_, 0);
    ends_.emplace_back();
    return static_cast<uint32_t>(ends_.size() - 1);
  }

  void add_word(const std::vector<uint16_t>& word, uint32_t group) {
    if (word.empty()) throw std::invalid_argument("a word without characters");
    uint32_t state = 0;
    for (const uint16_t symbol : word) {
      if (symbol == 0 || symbol >= num_symbols_) throw std::invalid_argument("a word has a character without a symbol");
      const size_t at = static_cast<size_t>(state) * num_symbols_ + symbol;
      if (to_[at] == 0) {
        const uint32_t made = add_state();
        to_[at] = made;
      }
      state = to_[at];
    }
    ends_[state].push_back({group, static_cast<uint32_t>(word.size())});
    num_groups_ = std::max(num_groups_, group + 1);
  }

  // Fill in where each state goes when no word goes on, breadth first; then store a state as its row, and whether words end.
  void connect() {
    std::vector<uint32_t> fall_back(ends_.size(), 0);
    std::deque<uint32_t> waiting{0};
    while (!waiting.empty()) {
      const uint32_t state = waiting.front();
      waiting.pop_front();
      for (uint32_t symbol = 0; symbol < num_symbols_; ++symbol) {
        uint32_t& to = to_[static_cast<size_t>(state) * num_symbols_ + symbol];
        const uint32_t otherwise = state ? to_[static_cast<size_t>(fall_back[state]) * num_symbols_ + symbol] : 0;
        if (to == 0) {
          to = otherwise;
          continue;
        }
        fall_back[to] = otherwise;
        ends_[to].insert(ends_[to].end(), ends_[otherwise].begin(), ends_[otherwise].end());
        waiting.push_back(to);
      }
    }
    if (to_.size() > UINT32_MAX / 2) throw std::invalid_argument("too many words");
    for (uint32_t& to : to_) to = to * num_symbols_ << 1 | !ends_[to].empty();
  }

  std::vector<uint16_t> symbol_of_;
  uint32_t num_symbols_ = 0;
  uint32_t num_groups_ = 0;
  std::vector<uint32_t> to_;  // while words are added: the state; afterwards twice its row, odd where a word ends
  std::vector<std::vector<End>> ends_;
};

}  // namespace jmed
