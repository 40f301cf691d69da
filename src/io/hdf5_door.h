/* hdf5_door.h - private to io/: what hdf5_file.c needs of libhdf5, without its types, and the bytes behind it
 * (hdf5_medium.c). Identifiers are HDF5's, as int64_t; messages do not name the file.
 */
#ifndef NIBBLE_IO_HDF5_DOOR_H
#define NIBBLE_IO_HDF5_DOOR_H
#include "io/formats.h"

/* Where HDF5's bytes are: when reading a mapped file, when writing a descriptor. A write that fails is remembered in
 * `error` and reported to HDF5 as done, because HDF5 cannot close a file that it cannot flush. */
typedef struct {
    nb_mapped file; /* reading */
    int fd;         /* writing */
    int64_t end;    /* writing: bytes so far */
    int error;      /* writing: errno of the first failure, 0 = none */
} fm_medium;
/* false: reading, and not all of it is there */
bool fm_medium_read(const fm_medium *m, void *dst, uint64_t at, size_t bytes, bool writing);
void fm_medium_write(fm_medium *m, const void *src, uint64_t at, size_t bytes);
void fm_medium_cut(fm_medium *m, uint64_t end); /* the file ends there */

/* Opens what m maps, or, user_block > 0, creates a file whose first user_block bytes are left alone. */
status fm_door_open(int64_t *id, fm_medium *m, const char *path, size_t user_block);
status fm_door_close(int64_t id);

/* A dataset as HDF5 describes it; nothing of it is checked but its type and that dimensions are not negative. */
typedef struct {
    fm_array array;  /* name (valid during the visit), dtype, dimensions */
    bool is_plain;   /* its elements are in this file, without filters */
    uint64_t held;   /* bytes that the file says to hold for it */
    uint64_t chunk;  /* bytes of a chunk, 0 when not in chunks; UINT64_MAX when they do not fit the dimensions */
    uint64_t offset; /* of its elements from the file's first byte, UINT64_MAX when not in one piece */
} fm_stored;
/* Calls fn for every dataset; what is neither a group nor a dataset of numbers, or is reached by another than a hard
 * link, ends the walk with NB_UNSUPPORTED. max_objects bounds the visits, for files that link in circles. */
status fm_door_list(int64_t id, int64_t max_objects, status (*fn)(void *ctx, const fm_stored *d), void *ctx);

/* A dataset of a->name, type and dimensions; chunk_rows > 0: stored in chunks, the first dimension may grow. */
status fm_door_write(int64_t id, const fm_array *a, int64_t chunk_rows);
status fm_door_append(int64_t id, const char *name, const void *data, int64_t rows);
/* dst <- rows [from, from + rows), in the dataset's own type. */
status fm_door_read(int64_t id, const fm_array *a, void *dst, int64_t from, int64_t rows);

/* An attribute of n numbers (I64, F64; single: a scalar) or a text of n bytes (STRING). */
status fm_door_put(int64_t id, const char *object, const char *key, fm_dtype t, const void *data, int64_t n,
                   bool single);
int64_t fm_door_attribute_count(int64_t id, const char *object, const char *key); /* -1: none */
/* Exactly n numbers of any integer type as I64, of any number type as F64, or a text of n bytes and a NUL. */
status fm_door_get(int64_t id, const char *object, const char *key, fm_dtype t, void *data, int64_t n);

#endif
