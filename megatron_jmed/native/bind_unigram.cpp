// Unigram encoding for Python.
//
// In: a list of str or bytes (UTF-8), or the bytes of a block of JSON lines. Out: one array of ids for all of them, and the
// number of ids of each, with counts. The interpreter's lock is free while texts are encoded. Invariant: inputs are held, never copied or changed.
#include <climits>
#include <map>
#include <memory>
#include <mutex>

#include "bindings.hpp"
#include "jsonl.hpp"
#include "unigram.hpp"

namespace jmed {
namespace {

// Appends the ids of one text to `ids`; returns its number of characters.
template <class Id>
size_t encode_text(const Unigram& model, const Text& text, Family family, Workspace& work, std::vector<Id>& ids) {
  switch (text.bytes_per_character) {
    case 1: model.encode(static_cast<const uint8_t*>(text.data), text.length, family, work, ids); return text.length;
    case 2: model.encode(static_cast<const uint16_t*>(text.data), text.length, family, work, ids); return text.length;
    case 4: model.encode(static_cast<const uint32_t*>(text.data), text.length, family, work, ids); return text.length;
    default:
      decode_utf8(static_cast<const uint8_t*>(text.data), text.length, work.points);
      model.encode(work.points.data(), work.points.size(), family, work, ids);
      return work.points.size();
  }
}

// A model with memory that lasts from call to call: as many workspaces as threads ever worked at once.
class Encoder {
 public:
  explicit Encoder(std::string_view file) : model(read_model(file)) {}

  template <class Work>
  void with_workspace(Work work) {
    std::unique_ptr<Workspace> mine = taken();
    try {
      work(*mine);
    } catch (...) {
      give_back(std::move(mine));
      throw;
    }
    give_back(std::move(mine));
  }

  const Unigram model;

 private:
  std::unique_ptr<Workspace> taken() {
    const std::lock_guard<std::mutex> locked(mutex_);
    if (free_.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> last = std::move(free_.back());
    free_.pop_back();
    return last;
  }

  void give_back(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard<std::mutex> locked(mutex_);
    free_.push_back(std::move(workspace));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

template <class Id>
py::tuple encode_all(Encoder& encoder, const std::vector<Text>& texts, const std::vector<int32_t>& before,
                     const std::vector<int32_t>& after, Family family) {
  std::vector<Id> ids;
  std::vector<int32_t> lengths;
  std::vector<int64_t> characters;
  {
    const py::gil_scoped_release unlocked;
    lengths.reserve(texts.size());
    characters.reserve(texts.size());
    encoder.with_workspace([&](Workspace& work) {
      for (size_t number = 0; number < texts.size(); ++number) {
        const size_t begin = ids.size();
        ids.insert(ids.end(), before.begin(), before.end());
        const size_t body = ids.size();
        try {
          characters.push_back(static_cast<int64_t>(encode_text(encoder.model, texts[number], family, work, ids)));
        } catch (const std::invalid_argument& error) {
          throw std::invalid_argument("text " + std::to_string(number) + " holds " + error.what());
        }
        if (ids.size() > body)
          ids.insert(ids.end(), after.begin(), after.end());
        else
          ids.resize(begin);
        if (ids.size() - begin > INT32_MAX) throw std::invalid_argument("text " + std::to_string(number) + " has over 2^31 ids");
        lengths.push_back(static_cast<int32_t>(ids.size() - begin));
      }
    });
  }
  return py::make_tuple(as_array(std::move(ids)), as_array(std::move(lengths)), as_array(std::move(characters)));
}

py::tuple encode(Encoder& encoder, const py::list& list, const std::vector<int32_t>& before,
                 const std::vector<int32_t>& after, bool uint16, bool double_sums) {
  const py::tuple held(list);  // another thread may change the list meanwhile
  std::vector<Text> texts;
  texts.reserve(held.size());
  for (const py::handle object : held) texts.push_back(text_of(object.ptr(), texts.size()));
  if (uint16 && encoder.model.num_pieces() > 65536) throw std::invalid_argument("ids of this model do not fit into uint16");
  const Family family = double_sums ? Family::kDouble : Family::kFloat;
  return uint16 ? encode_all<uint16_t>(encoder, texts, before, after, family)
                : encode_all<int32_t>(encoder, texts, before, after, family);
}

struct GroupCounts {
  int64_t documents = 0, characters = 0, tokens = 0;
};

// None unless every line is a plain document that gives ids.
template <class Id>
py::object encode_lines_as(Encoder& encoder, std::string_view block, std::string_view text_field,
                           const std::vector<int32_t>& before, const std::vector<int32_t>& after, Family family) {
  std::vector<Id> ids;
  std::vector<int32_t> lengths;
  std::map<std::pair<std::string, std::string>, GroupCounts> groups;
  bool plain = true;
  {
    const py::gil_scoped_release unlocked;
    encoder.with_workspace([&](Workspace& work) {
      LineParser parser(text_field);
      LineDocument document;
      GroupCounts* group = nullptr;
      std::pair<std::string, std::string> name;
      const auto* at = reinterpret_cast<const uint8_t*>(block.data());
      const uint8_t* const block_end = at + block.size();
      while (plain && at < block_end) {
        const auto* end = static_cast<const uint8_t*>(std::memchr(at, '\n', static_cast<size_t>(block_end - at)));
        if (!end) end = block_end;
        if (!(plain = parser.parse(at, end, document))) break;
        at = end + 1;
        const size_t begin = ids.size();
        ids.insert(ids.end(), before.begin(), before.end());
        const size_t body = ids.size();
        encoder.model.encode(document.text, document.num_characters, family, work, ids);
        if (!(plain = ids.size() > body && ids.size() - begin < INT32_MAX)) break;
        ids.insert(ids.end(), after.begin(), after.end());
        lengths.push_back(static_cast<int32_t>(ids.size() - begin));
        if (!group || name.first != document.source || name.second != document.lang) {
          name = {std::string(document.source), std::string(document.lang)};
          group = &groups[name];
        }
        group->documents += 1;
        group->characters += static_cast<int64_t>(document.num_characters);
        group->tokens += lengths.back();
      }
    });
  }
  if (!plain) return py::none();
  py::list counted;
  for (const auto& [name, group] : groups)
    counted.append(py::make_tuple(name.first, name.second, group.documents, group.characters, group.tokens));
  return py::make_tuple(as_array(std::move(ids)), as_array(std::move(lengths)), counted);
}

py::object encode_lines(Encoder& encoder, const py::bytes& block, const std::string& text_field,
                        const std::vector<int32_t>& before, const std::vector<int32_t>& after, bool uint16, bool double_sums) {
  if (uint16 && encoder.model.num_pieces() > 65536) throw std::invalid_argument("ids of this model do not fit into uint16");
  const Family family = double_sums ? Family::kDouble : Family::kFloat;
  const std::string_view view(block);
  return uint16 ? encode_lines_as<uint16_t>(encoder, view, text_field, before, after, family)
                : encode_lines_as<int32_t>(encoder, view, text_field, before, after, family);
}

}  // namespace

void bind_unigram(py::module_& module) {
  py::register_exception<Unsupported>(module, "Unsupported", PyExc_ValueError);
  py::class_<Encoder>(module, "Unigram")
      .def(py::init([](const py::bytes& file) { return std::make_unique<Encoder>(std::string_view(file)); }))
      .def_property_readonly("num_pieces", [](const Encoder& encoder) { return encoder.model.num_pieces(); })
      .def_property_readonly("num_states", [](const Encoder& encoder) { return encoder.model.num_states(); })
      .def("encode", &encode, py::arg("texts"), py::kw_only(), py::arg("before") = std::vector<int32_t>{},
           py::arg("after") = std::vector<int32_t>{}, py::arg("uint16") = false, py::arg("double_sums") = false,
           "(ids of all texts end to end, number of ids of each, number of characters of each); an empty text gives none.")
      .def("encode_lines", &encode_lines, py::arg("block"), py::arg("text_field"), py::kw_only(),
           py::arg("before") = std::vector<int32_t>{}, py::arg("after") = std::vector<int32_t>{}, py::arg("uint16") = false,
           py::arg("double_sums") = false,
           "(ids of all documents end to end, number of ids of each, list of (source, lang, documents, characters, ids)) of a "
           "block of JSON lines; None unless every line is a plain document.");
}

}  // namespace jmed
