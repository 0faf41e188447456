"""A toy extension, which compiles in a second."""

# The machinery of building does not depend on what it compiles.
TOY = """
#ifndef _OPENMP
#error "-fopenmp is missing"
#endif
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT const char* dip_fast_initialise() { return nullptr; }
EXPORT const char* dip_fast_cpu_level() { return "toy"; }
"""
