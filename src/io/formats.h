/* formats.h - what the readers and writers of this folder share: overflow-checked sizes, a cursor that cannot leave its
 * file, the index of names, and the sink that writers put bytes into. Private to io/.
 */
#ifndef NIBBLE_IO_FORMATS_H
#define NIBBLE_IO_FORMATS_H
#include "io/io.h"

/* The first bytes of our HDF5 files (hdf5_file.c). */
#define FM_H5_MAGIC "nibble\r\n"

/* r = a*b or a+b of numbers >= 0; false when it does not fit into int64 (r untouched). */
static inline bool fm_multiply(int64_t *r, int64_t a, int64_t b)
{
    if (a != 0 && b > INT64_MAX / a)
        return false;
    *r = a * b;
    return true;
}

static inline bool fm_add(int64_t *r, int64_t a, int64_t b)
{
    if (b > INT64_MAX - a)
        return false;
    *r = a + b;
    return true;
}

/* One number at p, maybe unaligned. False for types that are no such number (and U64 >= 2^63 as an integer). */
bool fm_load_number(double *x, fm_dtype t, const void *p);
bool fm_load_int(int64_t *x, fm_dtype t, const void *p);

/* Values of one block of ggml's types; NULL: the type has no blocks, or none that are known. */
typedef void (*fm_block_decoder)(float *values, const uint8_t *block);
fm_block_decoder fm_block_decoder_of(fm_dtype t);

/* Writes "F32 [2,3]" into text. */
enum { FM_SHAPE_TEXT = 128 };
const char *fm_shape_text(char text[FM_SHAPE_TEXT], const fm_array *a);

/* The unread part of a file. Every take moves it; false, and nothing moved, when too little is left. */
typedef struct {
    const uint8_t *at;
    size_t left;
} fm_cursor;
bool fm_take(fm_cursor *c, const void **p, size_t bytes);
bool fm_take_u32(fm_cursor *c, uint32_t *x);
bool fm_take_u64(fm_cursor *c, uint64_t *x);

/* Appends an entry as it stands: nothing is copied. False when out of memory (m->failed is set). */
bool fm_meta_add(fm_meta *m, fm_value value);
/* NB_NOMEM when m failed; NB_FORMAT, naming the key, when one occurs twice. m may be NULL. */
status fm_meta_check(const fm_meta *m, const char *path);

/* Appends an empty array to the list, or maps one more file; pointers from before may have moved. NULL, or a status
 * with a message, on failure. */
fm_array *fm_arrays_add(fm_arrays *a);
status fm_arrays_map(nb_mapped *file, fm_arrays *a, const char *path); /* *file: a copy, a keeps the mapping */
/* Builds by_name once all arrays are there; NB_FORMAT, naming the array, when a name occurs twice. */
status fm_arrays_index(fm_arrays *a);

/* Whether a file's bytes are a llama2.c model: by the magic, or by the length that a legacy header asks for. */
bool fm_llama2c_recognize(const uint8_t *p, size_t bytes);

/* A file being written: counts what is put for each array, so that a source that gives too little or too much is
 * caught. Nothing is at path until fm_sink_commit. */
struct fm_sink {
    const char *path;
    nb_atomic out;
    const char *array; /* the one being written, NULL between two */
    size_t left;       /* bytes that it still takes */
    size_t written;    /* bytes so far */
};
status fm_sink_open(fm_sink *s, const char *path);
status fm_sink_raw(fm_sink *s, const void *data, size_t bytes); /* outside arrays: headers, padding */
status fm_sink_zeros(fm_sink *s, size_t bytes);
status fm_sink_array(fm_sink *s, const fm_array *a, fm_source source);
status fm_sink_close(fm_sink *s, status so_far); /* commits when so_far is NB_OK, else aborts and returns it */

#endif
