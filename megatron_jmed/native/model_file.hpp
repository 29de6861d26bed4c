// What does a SentencePiece model file say that encoding depends on?
//
// In: the bytes of a .model file, which is one protocol-buffer message. Out: its pieces and the settings below; all
// other fields are skipped. Invariant: a file that is cut short or is no such message throws, it is never half read.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace jmed {

// The numbers are those of sentencepiece_model.proto.
enum PieceType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
constexpr int kUnigramModel = 1;

struct Piece {
  std::string text;
  float score = 0;
  int type = kNormal;
};

struct ModelFile {
  std::vector<Piece> pieces;
  int model_type = kUnigramModel;
  bool byte_fallback = false;
  bool space_as_suffix = false;
  std::string normalizer_name;
  bool has_rewriting_rules = false;
  bool dummy_prefix = true;
  bool remove_extra_spaces = true;
  bool escape_spaces = true;
};

// Steps through the fields of one message.
class Fields {
 public:
  explicit Fields(std::string_view message) : rest_(message) {}

  bool next() {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    number = static_cast<int>(tag >> 3);
    switch (tag & 7) {
      case 0: value = varint(); break;
      case 1: bytes = take(8); break;
      case 2: bytes = take(varint()); break;
      case 5: bytes = take(4); break;
      default: throw std::invalid_argument("it holds a field of a kind that no SentencePiece model has");
    }
    return true;
  }

  float as_float() const {
    float result = 0;
    if (bytes.size() == sizeof result) std::memcpy(&result, bytes.data(), sizeof result);
    return result;
  }

  int number = 0;
  uint64_t value = 0;
  std::string_view bytes;

 private:
  uint64_t varint() {
    uint64_t result = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(rest_.front());
      rest_.remove_prefix(1);
      result |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return result;
    }
    throw std::invalid_argument("it ends in the middle of a number");
  }

  std::string_view take(uint64_t length) {
    if (length > rest_.size()) throw std::invalid_argument("it ends in the middle of a field");
    const std::string_view taken = rest_.substr(0, length);
    rest_.remove_prefix(length);
    return taken;
  }

  std::string_view rest_;
};

inline Piece read_piece(std::string_view message) {
  Piece piece;
  for (Fields field(message); field.next();) {
    if (field.number == 1) piece.text = field.bytes;
    if (field.number == 2) piece.score = field.as_float();
    if (field.number == 3) piece.type = static_cast<int>(field.value);
  }
  return piece;
}

inline ModelFile read_model(std::string_view file) {
  ModelFile model;
  for (Fields field(file); field.next();) {
    if (field.number == 1) model.pieces.push_back(read_piece(field.bytes));
    if (field.number == 2)
      for (Fields setting(field.bytes); setting.next();) {
        if (setting.number == 3) model.model_type = static_cast<int>(setting.value);
        if (setting.number == 24) model.space_as_suffix = setting.value != 0;
        if (setting.number == 35) model.byte_fallback = setting.value != 0;
      }
    if (field.number == 3)
      for (Fields setting(field.bytes); setting.next();) {
        if (setting.number == 1) model.normalizer_name = setting.bytes;
        if (setting.number == 2) model.has_rewriting_rules = !setting.bytes.empty();
        if (setting.number == 3) model.dummy_prefix = setting.value != 0;
        if (setting.number == 4) model.remove_extra_spaces = setting.value != 0;
        if (setting.number == 5) model.escape_spaces = setting.value != 0;
      }
  }
  return model;
}

}  // namespace jmed
