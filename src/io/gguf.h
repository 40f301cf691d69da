/* gguf.h - private to io/: what reader and writer of GGUF share. */
#ifndef NIBBLE_IO_GGUF_H
#define NIBBLE_IO_GGUF_H
#include "io/formats.h"

enum { GGUF_ARRAY = 9, GGUF_ALIGNMENT = 32, GGUF_MAX_ALIGNMENT = 1 << 16, GGUF_MAX_NAME = 63 };

/* The bytes before the metadata: magic, version, counts of arrays and of keys. */
enum { GGUF_AT_VERSION = 4, GGUF_AT_ARRAYS = 8, GGUF_AT_KEYS = 16 };

/* The type of a metadata value by GGUF's number; false for arrays and unknown numbers. */
bool fm_gguf_dtype(fm_dtype *t, uint32_t type);
/* general.alignment, or the default; NB_FORMAT when it is not a power of two of type u32, at most GGUF_MAX_ALIGNMENT: what follows every
 * array must stay in proportion. m may be NULL. */
status fm_gguf_alignment(uint64_t *alignment, const fm_meta *m);

#endif
