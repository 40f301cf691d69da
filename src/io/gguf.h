/* gguf.h - private to io/: what reader and writer of GGUF share. */
#ifndef NIBBLE_IO_GGUF_H
#define NIBBLE_IO_GGUF_H
#include "io/formats.h"

enum { GGUF_ARRAY = 9, GGUF_ALIGNMENT = 32, GGUF_MAX_NAME = 63 };

/* The type of a metadata value by GGUF's number; false for arrays and unknown numbers. */
bool fm_gguf_dtype(fm_dtype *t, uint32_t type);
/* general.alignment, or the default; NB_FORMAT when it is not a power of two of type u32. m may be NULL. */
status fm_gguf_alignment(uint64_t *alignment, const fm_meta *m);

#endif
