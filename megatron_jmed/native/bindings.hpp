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

template <class Value>
py::array_t<Value> as_array(std::vector<Value>&& values) {
  auto* kept = new std::vector<Value>(std::move(values));
  const py::capsule owner(kept, [](void* pointer) { delete static_cast<std::vector<Value>*>(pointer); });
  return py::array_t<Value>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

void bind_scan(py::module_& module);
void bind_unigram(py::module_& module);

}  // namespace jmed
