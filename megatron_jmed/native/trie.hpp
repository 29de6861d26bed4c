// Which pieces begin at this character?
//
// In: (sequence of character ranks, piece id, score). Out: a double array: from state s the rank r leads to state
// base[s] + r if that state's `check` is s. A character's rank is its place among all characters of the vocabulary, the
// most used first, so that small ranks keep the array dense; rank 0 is every character that no piece contains.
// States 0 to num_ranks - 1 are reserved: state r is what rank r leads to from the root.
// Invariant: base[s] + r lies inside the array for every state and rank, so that walking needs no bounds check.
//
// Building places the states with most followers first, each at the first gap of a list of free states that takes all
// of its followers: 150,000 states in well under 0.1 s, where trying every state in turn takes seconds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace jmed {

struct State {
  int32_t base = 0;    // 0: nothing follows
  int32_t check = -1;  // the state before
  int32_t id = -1;     // the piece that ends here, or -1
  float score = 0;
};

struct TrieKey {
  std::vector<uint16_t> ranks;
  int32_t id;
  float score;
};

class TrieBuilder {
 public:
  TrieBuilder(std::vector<TrieKey> keys, int32_t num_ranks) : keys_(std::move(keys)), num_ranks_(num_ranks) {}

  std::vector<State> build() {
    std::sort(keys_.begin(), keys_.end(), [](const TrieKey& a, const TrieKey& b) { return a.ranks < b.ranks; });
    for (size_t i = 1; i < keys_.size(); ++i)
      if (keys_[i].ranks == keys_[i - 1].ranks) throw std::invalid_argument("two of its pieces are the same");
    grow_tree();
    place_tree();
    return fill();
  }

 private:
  struct Node {
    size_t first_key, end_key, depth;
    int32_t rank;
    int32_t first_child = 0, num_children = 0;
    int32_t base = 0;
  };

  // Children of one node stand side by side in nodes_, in order of rank, and behind their parent.
  void grow_tree() {
    nodes_.push_back({0, keys_.size(), 0, 0});
    for (size_t n = 0; n < nodes_.size(); ++n) {
      const size_t depth = nodes_[n].depth, end = nodes_[n].end_key;
      size_t key = nodes_[n].first_key;
      if (depth > 0 && keys_[key].ranks.size() == depth) ++key;  // the piece that ends at this node
      nodes_[n].first_child = static_cast<int32_t>(nodes_.size());
      while (key < end) {
        const uint16_t rank = keys_[key].ranks[depth];
        const size_t begin = key;
        while (key < end && keys_[key].ranks[depth] == rank) ++key;
        nodes_.push_back({begin, key, depth + 1, rank});
      }
      nodes_[n].num_children = static_cast<int32_t>(nodes_.size()) - nodes_[n].first_child;
    }
  }

  void place_tree() {
    std::vector<int32_t> order;
    for (size_t n = 1; n < nodes_.size(); ++n)
      if (nodes_[n].num_children) order.push_back(static_cast<int32_t>(n));
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return nodes_[a].num_children > nodes_[b].num_children; });
    next_free_.assign(num_ranks_, -1);
    previous_free_.assign(num_ranks_, -1);
    tail_ = num_ranks_ - 1;
    extend();
    for (int32_t n : order) place(nodes_[n]);
  }

  void place(Node& node) {
    const int32_t first_rank = nodes_[node.first_child].rank;
    for (int32_t free = next_free_[num_ranks_ - 1];; free = next_free_[free]) {
      if (free + num_ranks_ >= static_cast<int32_t>(next_free_.size())) extend();
      const int32_t base = free - first_rank;
      if (base < 1 || !fits(node, base)) continue;
      node.base = base;
      for (int32_t i = 0; i < node.num_children; ++i) take(base + nodes_[node.first_child + i].rank);
      return;
    }
  }

  bool fits(const Node& node, int32_t base) const {
    for (int32_t i = node.num_children - 1; i > 0; --i)
      if (next_free_[base + nodes_[node.first_child + i].rank] < 0) return false;
    return true;
  }

  // The free states form a list in ascending order; its head stands in the last reserved state, and -1 means taken.
  // Its tail is never taken, because `place` keeps num_ranks_ states between itself and the end.
  void extend() {
    const int32_t old_size = static_cast<int32_t>(next_free_.size()), size = 2 * old_size + 1;
    next_free_.resize(size);
    previous_free_.resize(size);
    for (int32_t s = old_size; s < size; ++s) {
      next_free_[s] = s + 1;
      previous_free_[s] = s - 1;
    }
    next_free_[tail_] = old_size;
    previous_free_[old_size] = tail_;
    tail_ = size - 1;
  }

  void take(int32_t state) {
    next_free_[previous_free_[state]] = next_free_[state];
    previous_free_[next_free_[state]] = previous_free_[state];
    next_free_[state] = -1;
    last_taken_ = std::max(last_taken_, state);
  }

  std::vector<State> fill() const {
    std::vector<State> states(static_cast<size_t>(std::max(last_taken_, num_ranks_) + num_ranks_ + 1));
    std::vector<int32_t> state_of(nodes_.size(), 0);
    for (size_t n = 0; n < nodes_.size(); ++n) {
      const Node& node = nodes_[n];
      State& state = states[state_of[n]];
      if (n > 0) state.base = node.base;
      if (n > 0 && keys_[node.first_key].ranks.size() == node.depth) {
        state.id = keys_[node.first_key].id;
        state.score = keys_[node.first_key].score;
      }
      for (int32_t child = node.first_child; child < node.first_child + node.num_children; ++child) {
        state_of[child] = node.base + nodes_[child].rank;
        states[state_of[child]].check = state_of[n];
      }
    }
    return states;
  }

  std::vector<TrieKey> keys_;
  int32_t num_ranks_;
  std::vector<Node> nodes_;
  std::vector<int32_t> next_free_, previous_free_;
  int32_t tail_ = 0, last_taken_ = 0;
};

}  // namespace jmed
