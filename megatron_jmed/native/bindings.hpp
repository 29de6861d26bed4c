// How do texts and arrays pass between Python and the core, without a copy? And which files bind what?
//
// In: str (its own storage) or bytes (UTF-8) held by the caller. Out: numpy arrays that own their memory.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace jmed {

struct Text {
  const void* data;
  size_t length;
  int bytes_per_character;  // 0: UTF-8
};

inline Text text_of(PyObject* object, size_t number) {
  if (PyUnicode_Check(object))
    return {PyUnicode_DATA(object), static_cast<size_t>(PyUnicode_GET_LENGTH(object)), static_cast<int>(PyUnicode_KIND(object))};
  if (PyBytes_Check(object)) return {PyBytes_AS_STRING(object), static_cast<size_t>(PyBytes_GET_SIZE(object)), 0};
  throw py::type_error("text " + std::to_string(number) + " is " + Py_TYPE(object)->tp_name + ", not str or bytes");
}

// The texts of a tuple that the caller keeps; str only, which knows its code points.
inline std::vector<Text> texts_of(const py::tuple& held) {
  std::vector<Text> texts;
  texts.reserve(held.size());
  for (const py::handle object : held) {
    if (!PyUnicode_Check(object.ptr()))
      throw py::type_error("text " + std::to_string(texts.size()) + " is " + Py_TYPE(object.ptr())->tp_name + ", not str");
    texts.push_back(text_of(object.ptr(), texts.size()));
  }
  return texts;
}

// Calls work(characters, number of characters) with the text's own storage.
template <class Work>
auto with_characters(const Text& text, Work&& work) {
  switch (text.bytes_per_character) {
    case 1: return work(static_cast<const uint8_t*>(text.data), text.length);
    case 2: return work(static_cast<const uint16_t*>(text.data), text.length);
    default: return work(static_cast<const uint32_t*>(text.data), text.length);
  }
}

template <class Value>
std::vector<Value> as_vector(const py::array_t<Value, py::array::c_style | py::array::forcecast>& array) {
  return {array.data(), array.data() + array.size()};
}

template <class Value>
py::array_t<Value> as_array(std::vector<Value>&& values) {
  auto* kept = new std::vector<Value>(std::move(values));
  const py::capsule owner(kept, [](void* pointer) { delete static_cast<std::vector<Value>*>(pointer); });
  return py::array_t<Value>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

void bind_scan(py::module_& module);
void bind_unigram(py::module_& module);
void bind_code_map(py::module_& module);  // before those that take a CodeMap
void bind_minhash(py::module_& module);
void bind_screen(py::module_& module);

}  // namespace jmed
