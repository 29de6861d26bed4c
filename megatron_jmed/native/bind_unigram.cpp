// Unigram encoding for Python.
//
// In: a list of str or bytes (UTF-8). Out: one array of ids for all of them, and the number of ids and of characters of
// each. The interpreter's lock is free while texts are encoded. Invariant: inputs are held, never copied or changed.
#include <climits>

#include "bindings.hpp"
#include "unigram.hpp"

namespace jmed {
namespace {

// The ids of one text into work.reversed; returns its number of characters.
size_t encode_text(const Unigram& model, const Text& text, Family family, Workspace& work) {
  switch (text.bytes_per_character) {
    case 1: model.encode(static_cast<const uint8_t*>(text.data), text.length, family, work); return text.length;
    case 2: model.encode(static_cast<const uint16_t*>(text.data), text.length, family, work); return text.length;
    case 4: model.encode(static_cast<const uint32_t*>(text.data), text.length, family, work); return text.length;
    default:
      decode_utf8(static_cast<const uint8_t*>(text.data), text.length, work.points);
      model.encode(work.points.data(), work.points.size(), family, work);
      return work.points.size();
  }
}

template <class Id>
py::tuple encode_all(const Unigram& model, const std::vector<Text>& texts, const std::vector<int32_t>& before,
                     const std::vector<int32_t>& after, Family family) {
  std::vector<Id> ids;
  std::vector<int32_t> lengths;
  std::vector<int64_t> characters;
  {
    const py::gil_scoped_release unlocked;
    Workspace work;
    lengths.reserve(texts.size());
    characters.reserve(texts.size());
    for (size_t number = 0; number < texts.size(); ++number) {
      const size_t begin = ids.size();
      try {
        characters.push_back(static_cast<int64_t>(encode_text(model, texts[number], family, work)));
      } catch (const std::invalid_argument& error) {
        throw std::invalid_argument("text " + std::to_string(number) + " holds " + error.what());
      }
      if (!work.reversed.empty()) {
        ids.insert(ids.end(), before.begin(), before.end());
        ids.insert(ids.end(), work.reversed.rbegin(), work.reversed.rend());
        ids.insert(ids.end(), after.begin(), after.end());
      }
      if (ids.size() - begin > INT32_MAX) throw std::invalid_argument("text " + std::to_string(number) + " has over 2^31 ids");
      lengths.push_back(static_cast<int32_t>(ids.size() - begin));
    }
  }
  return py::make_tuple(as_array(std::move(ids)), as_array(std::move(lengths)), as_array(std::move(characters)));
}

py::tuple encode(const Unigram& model, const py::list& list, const std::vector<int32_t>& before,
                 const std::vector<int32_t>& after, bool uint16, bool double_sums) {
  const py::tuple held(list);  // another thread may change the list meanwhile
  std::vector<Text> texts;
  texts.reserve(held.size());
  for (const py::handle object : held) texts.push_back(text_of(object.ptr(), texts.size()));
  if (uint16 && model.num_pieces() > 65536) throw std::invalid_argument("ids of this model do not fit into uint16");
  const Family family = double_sums ? Family::kDouble : Family::kFloat;
  return uint16 ? encode_all<uint16_t>(model, texts, before, after, family)
                : encode_all<int32_t>(model, texts, before, after, family);
}

}  // namespace

void bind_unigram(py::module_& module) {
  py::register_exception<Unsupported>(module, "Unsupported", PyExc_ValueError);
  py::class_<Unigram>(module, "Unigram")
      .def(py::init([](const py::bytes& file) { return Unigram(read_model(std::string_view(file))); }))
      .def_property_readonly("num_pieces", &Unigram::num_pieces)
      .def_property_readonly("num_states", &Unigram::num_states)
      .def("encode", &encode, py::arg("texts"), py::kw_only(), py::arg("before") = std::vector<int32_t>{},
           py::arg("after") = std::vector<int32_t>{}, py::arg("uint16") = false, py::arg("double_sums") = false,
           "(ids of all texts end to end, number of ids of each, number of characters of each); an empty text gives none.");
}

}  // namespace jmed
