/* base.h - what every other folder stands on: status codes, memory, random numbers, small floats,
 * checksums, files, JSON, progress. Depends on libc (and cJSON, behind nb_json) only.
 */
#ifndef NIBBLE_BASE_H
#define NIBBLE_BASE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ---- status ------------------------------------------------------------------------------- */

/* Every status is listed once; the enum and the name table expand it. */
#define NB_STATUS_LIST(X)                       \
    X(OK, "ok")                                 \
    X(NOMEM, "out of memory")                   \
    X(SHAPE, "shapes do not fit")               \
    X(FORMAT, "the file is not what it claims") \
    X(IO, "reading or writing failed")          \
    X(USAGE, "the request makes no sense")      \
    X(UNSUPPORTED, "not supported")             \
    X(INTERRUPTED, "interrupted")
typedef enum {
#define X(id, text) NB_##id,
    NB_STATUS_LIST(X)
#undef X
    NB_STATUS_COUNT
} status;
const char *nb_status_name(status s); /* a short phrase, never NULL */

/* Records a message for the current thread (at most 1023 bytes) and returns s. The message names the file, the
 * tensor, what was found and what was wanted. */
status nb_fail(status s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Puts "context: " in front of the current message; returns s. For adding a file's name on the way up. */
status nb_fail_in(status s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *nb_fail_message(void); /* of the last nb_fail in this thread; "" if none */
#define TRY(e)                      \
    do {                            \
        status try_status_ = (e);   \
        if (try_status_ != NB_OK)   \
            return try_status_;     \
    } while (0)

/* ---- memory ------------------------------------------------------------------------------- */

/* Bump allocator: blocks are 64-byte aligned and live until the reset; chunks are kept and reused. A zeroed struct
 * is a valid empty arena. */
typedef struct nb_chunk nb_chunk;
typedef struct {
    nb_chunk *first, *current;
    size_t used, peak; /* bytes */
} nb_arena;
void *nb_arena_alloc(nb_arena *a, size_t bytes); /* NULL when out of memory (no message) */
char *nb_arena_string(nb_arena *a, const char *s); /* a copy; NULL when out of memory */
void nb_arena_reset(nb_arena *a);                /* keeps the chunks, forgets the contents */
void nb_arena_free(nb_arena *a);

/* Blocks that are given back in any order, and what is given back is taken again: 64-byte aligned, neighbours that are free
 * become one. A zeroed struct is a valid empty pool. */
typedef struct nb_slab nb_slab;
typedef struct {
    char *p;
    size_t bytes;
} nb_free_block;
typedef struct {
    nb_slab *slabs;
    nb_free_block *block; /* free ones, by address */
    int64_t n, capacity;
    size_t used, peak; /* bytes taken */
} nb_pool;
void *nb_pool_take(nb_pool *p, size_t bytes);          /* NULL when out of memory (no message) */
void nb_pool_give(nb_pool *p, void *at, size_t bytes); /* of nb_pool_take, the same size; NULL is fine */
void nb_pool_reset(nb_pool *p);                        /* all blocks are free, the memory stays */
void nb_pool_free(nb_pool *p);

/* malloc/calloc/realloc of count x size with the overflow checked; NULL (message set) on failure. Free with free().
 * Sizes of 0 return a valid pointer. nb_alloc_aligned: 64 bytes, contents undefined; of the zeroed one, memory above 1 MB takes
 * none before it is touched. */
void *nb_alloc(size_t count, size_t size);
void *nb_alloc_zeroed(size_t count, size_t size);
void *nb_alloc_aligned(size_t count, size_t size);
void *nb_alloc_aligned_zeroed(size_t count, size_t size);
void *nb_resize(void *p, size_t count, size_t size);
char *nb_string(const char *s); /* strdup with a message on failure */

/* ---- random numbers ----------------------------------------------------------------------- */

/* Counter based (splitmix64 finalizer): the i-th number of stream s under a seed. Nothing to save or restore. */
uint64_t nb_random(uint64_t seed, uint64_t stream, uint64_t i);
/* Its two halves, for loops over i: nb_random = nb_random_mix(nb_random_state(seed, stream, i)), and a state is NB_RANDOM_STEP from the next. */
#define NB_RANDOM_STEP UINT64_C(0x9E3779B97F4A7C15)
static inline uint64_t nb_random_state(uint64_t seed, uint64_t stream, uint64_t i)
{
    return seed * UINT64_C(0xD1342543DE82EF95) + stream * UINT64_C(0xAF251AF3B0F025B5) + (i + 1) * NB_RANDOM_STEP;
}
static inline uint64_t nb_random_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}
double nb_random_unit(uint64_t seed, uint64_t stream, uint64_t i);   /* [0, 1), 53 bits */
double nb_random_normal(uint64_t seed, uint64_t stream, uint64_t i); /* mean 0, variance 1 (Box-Muller) */
/* p[0..n) <- a random permutation of 0..n-1 (Fisher-Yates). */
void nb_random_permutation(int64_t *p, int64_t n, uint64_t seed, uint64_t stream);

/* ---- small floats ------------------------------------------------------------------------- */

uint16_t nb_half_from(float f); /* IEEE binary16, round to nearest even, overflow to infinity */
float nb_half_to(uint16_t h);
uint16_t nb_bf16_from(float f); /* bfloat16, round to nearest even, NaN stays NaN */
float nb_bf16_to(uint16_t h);

/* ---- checksums ---------------------------------------------------------------------------- */

/* CRC-32C (Castagnoli), continued from crc (0 to start): nb_crc32c(0, "123456789", 9) == 0xE3069283. */
uint32_t nb_crc32c(uint32_t crc, const void *data, size_t bytes);
/* FNV-1a, 64 bits, continued from h (start with NB_HASH_START): for fingerprints of settings, not for safety. */
#define NB_HASH_START 0xCBF29CE484222325u
uint64_t nb_hash(uint64_t h, const void *data, size_t bytes);

/* ---- files -------------------------------------------------------------------------------- */

/* Whole file, read-only, memory-mapped; a file of 0 bytes maps to a valid pointer. Fails for folders, with the
 * path and the reason in the message. nb_unmap accepts a zeroed struct. */
typedef struct {
    const uint8_t *data;
    size_t bytes;
    void *map; /* private */
} nb_mapped;
status nb_map(nb_mapped *m, const char *path);
void nb_unmap(nb_mapped *m);
/* What has been read of [p, p + bytes), inside the map, need not stay in memory: it is read again where it is looked at again. */
void nb_map_forget(const nb_mapped *m, const void *p, size_t bytes);

/* Atomic replacement: nb_atomic_begin makes "path.tmp-XXXXXX" beside path; the caller writes to a.path (or a.file);
 * nb_atomic_commit flushes file and folder and renames it over path; nb_atomic_abort removes it. Whatever fails, path
 * holds what it held. nb_atomic_commit closes a.file if it is still open. */
typedef struct {
    char *path, *target;
    FILE *file;
} nb_atomic;
status nb_atomic_begin(nb_atomic *a, const char *target);
status nb_atomic_commit(nb_atomic *a);
void nb_atomic_abort(nb_atomic *a); /* safe after commit and on a zeroed struct */

bool nb_path_exists(const char *path);
bool nb_path_is_folder(const char *path);
status nb_make_folder(const char *path); /* with parents; fine if it is there */
char *nb_path_join(const char *folder, const char *name); /* caller frees; NULL: message set */
const char *nb_path_name(const char *path);               /* the part after the last '/' */

/* ---- JSON (cJSON, with limits) ------------------------------------------------------------ */

typedef struct cJSON nb_json; /* the tree itself is cJSON's; include <cjson/cJSON.h> only in base/json.c */
/* Parses exactly `bytes` bytes (need not end in NUL). Refuses depth over 64. NULL: message set. */
nb_json *nb_json_parse(const char *text, size_t bytes);
void nb_json_free(nb_json *j);
const nb_json *nb_json_get(const nb_json *object, const char *key); /* NULL if absent or not an object */
int64_t nb_json_count(const nb_json *array_or_object);
const nb_json *nb_json_at(const nb_json *array_or_object, int64_t i); /* O(i): iterate with first/next */
const nb_json *nb_json_first(const nb_json *array_or_object);
const nb_json *nb_json_next(const nb_json *item);
const char *nb_json_key(const nb_json *item);      /* its key inside its object */
const char *nb_json_string(const nb_json *j);      /* NULL if not a string */
bool nb_json_is_number(const nb_json *j);
bool nb_json_is_null(const nb_json *j); /* absent (NULL) or null */
double nb_json_number(const nb_json *j, double otherwise);
int64_t nb_json_int(const nb_json *j, int64_t otherwise); /* otherwise also when not integral or out of range */
bool nb_json_bool(const nb_json *j, bool otherwise);

/* Writer: builds text in a growing buffer; commas are placed by itself. After out of memory it stays failed and
 * nb_json_text returns NULL. Keys are NULL inside arrays. A number that is not finite is written as null. */
typedef struct {
    char *text;
    size_t bytes, capacity;
    bool comma, failed;
} nb_writer;
void nb_json_open(nb_writer *w, const char *key, char bracket); /* '{' or '[' */
void nb_json_close(nb_writer *w, char bracket);                 /* '}' or ']' */
void nb_json_put_string(nb_writer *w, const char *key, const char *value);
void nb_json_put_int(nb_writer *w, const char *key, int64_t value);
void nb_json_put_number(nb_writer *w, const char *key, double value); /* shortest text that reads back the same */
void nb_json_put_bool(nb_writer *w, const char *key, bool value);
void nb_json_put_hash(nb_writer *w, const char *key, uint64_t h); /* 16 hexadecimal digits */
void nb_json_put_raw(nb_writer *w, const char *key, const char *json); /* text that is JSON already */
char *nb_json_text(nb_writer *w); /* NUL-terminated, caller frees; NULL if it failed. Resets the writer. */

/* ---- numbers in text ---------------------------------------------------------------------- */

/* "400k", "3M", "1.5k", "256" (k = 1000, M = 1e6, G = 1e9; Ki, Mi, Gi powers of 1024). The whole string must be
 * used and the result integral and >= 0. */
status nb_parse_count(int64_t *n, const char *text);
status nb_parse_number(double *x, const char *text); /* finite, the whole string */

/* ---- progress ----------------------------------------------------------------------------- */

double nb_seconds(void);         /* monotonic clock */
size_t nb_peak_memory(void);     /* peak resident bytes of this program, not of what started it */

/* What long work reports to whoever started it; the library never prints. Return false to stop the work, which then
 * returns NB_INTERRUPTED. done and total are in `unit`s. text: a short line of figures ("kl 0.031 lr 2e-4"). */
typedef struct {
    bool (*fn)(void *ctx, int64_t done, int64_t total, const char *text);
    void *ctx;
} nb_progress;
bool nb_progress_report(const nb_progress *p, int64_t done, int64_t total, const char *text); /* true if p or p->fn is NULL */

#endif
