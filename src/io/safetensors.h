/* safetensors.h - private to io/: one safetensors file into a list that may hold others. */
#ifndef NIBBLE_IO_SAFETENSORS_H
#define NIBBLE_IO_SAFETENSORS_H
#include "io/formats.h"

/* Maps path and appends its arrays and metadata; the names are not compared with those already there. */
status fm_safetensors_add(fm_arrays *a, const char *path);

#endif
