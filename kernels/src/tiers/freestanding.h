// What the kernels use of the C library, taken from the compiler instead: the files of a tier include no library's
// headers, so they compile for targets whose libraries are elsewhere (Android, Apple).
//
// The builtins become instructions, or calls of the memory functions that every compiler expects of its target.
#pragma once

#include <stdint.h>

#define memcpy __builtin_memcpy
#define memset __builtin_memset
#define sqrtf __builtin_sqrtf
#define fabsf __builtin_fabsf
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
