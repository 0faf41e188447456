"""A toy extension, which compiles in a second."""

# The machinery of building does not depend on what it compiles.
TOY = """
#include <Python.h>
#ifndef _OPENMP
#error "-fopenmp is missing"
#endif
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
"""
