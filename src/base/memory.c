/* memory.c - the bump allocator and malloc with its overflow checked.
 * An arena is a list of chunks, each a 64-byte header and its payload; blocks are rounded up to 64 bytes. After a
 * reset the chunks are filled again in the same order, so that no page is touched for the first time after step one.
 */
#include "base/base.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 64, CHUNK_BYTES = 1 << 20 };

struct nb_chunk {
    nb_chunk *next;
    size_t capacity, used; /* bytes, of the payload */
    char padding[ALIGN - sizeof(void *) - 2 * sizeof(size_t)];
};
_Static_assert(sizeof(nb_chunk) == ALIGN, "the chunk's header keeps its payload aligned");

static bool fits(const nb_chunk *c, size_t bytes)
{
    return c->capacity - c->used >= bytes;
}

/* The chunk that takes the next block: the current one, a kept one after it, or a new one. NULL: out of memory. */
static nb_chunk *chunk_for(nb_arena *a, size_t bytes)
{
    nb_chunk *c = a->current;
    while (c && !fits(c, bytes) && c->next)
        c = c->next;
    if (c && fits(c, bytes))
        return c;
    size_t capacity = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
    nb_chunk *fresh = aligned_alloc(ALIGN, sizeof *fresh + capacity);
    if (!fresh)
        return NULL;
    *fresh = (nb_chunk){.capacity = capacity};
    if (c)
        c->next = fresh;
    else
        a->first = fresh;
    return fresh;
}

void *nb_arena_alloc(nb_arena *a, size_t bytes)
{
    if (bytes > PTRDIFF_MAX - 2 * ALIGN)
        return NULL;
    bytes = bytes ? (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1) : ALIGN;
    nb_chunk *c = chunk_for(a, bytes);
    if (!c)
        return NULL;
    void *p = (char *)(c + 1) + c->used;
    a->current = c;
    c->used += bytes;
    a->used += bytes;
    if (a->used > a->peak)
        a->peak = a->used;
    return p;
}

char *nb_arena_string(nb_arena *a, const char *s)
{
    size_t bytes = strlen(s) + 1;
    char *copy = nb_arena_alloc(a, bytes);
    return copy ? memcpy(copy, s, bytes) : NULL;
}

#ifdef NDEBUG
static void poison(nb_chunk *c)
{
    (void)c;
}
#else
static void poison(nb_chunk *c) /* every float becomes NaN: a stale read shows */
{
    memset(c + 1, 0xFF, c->used);
}
#endif

void nb_arena_reset(nb_arena *a)
{
    for (nb_chunk *c = a->first; c; c = c->next) {
        poison(c);
        c->used = 0;
    }
    a->current = a->first;
    a->used = 0;
}

void nb_arena_free(nb_arena *a)
{
    for (nb_chunk *c = a->first, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    *a = (nb_arena){0};
}

/* count x size in bytes, at least 1; 0 with a message when the product is beyond what an object may have. */
static size_t checked_bytes(size_t count, size_t size)
{
    if (size && count > PTRDIFF_MAX / size) {
        (void)nb_fail(NB_NOMEM, "out of memory: %zu elements of %zu bytes", count, size);
        return 0;
    }
    return count && size ? count * size : 1;
}

static void *or_message(void *p, size_t bytes)
{
    if (!p)
        (void)nb_fail(NB_NOMEM, "out of memory: %zu bytes", bytes);
    return p;
}

void *nb_alloc(size_t count, size_t size)
{
    size_t bytes = checked_bytes(count, size);
    return bytes ? or_message(malloc(bytes), bytes) : NULL;
}

void *nb_alloc_zeroed(size_t count, size_t size)
{
    size_t bytes = checked_bytes(count, size);
    return bytes ? or_message(calloc(bytes, 1), bytes) : NULL;
}

void *nb_alloc_aligned(size_t count, size_t size)
{
    size_t bytes = checked_bytes(count, size);
    if (!bytes)
        return NULL;
    size_t rounded = (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    return or_message(aligned_alloc(ALIGN, rounded), rounded);
}

/* Whole pages go back to the kernel, which hands out zeros where they are touched again: none is written for nothing. */
static void zero_when_touched(char *p, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), before = (page - (uintptr_t)p % page) % page;
    const size_t whole = bytes > before ? (bytes - before) / page * page : 0;
    if (bytes < CHUNK_BYTES || madvise(p + before, whole, MADV_DONTNEED) != 0) {
        memset(p, 0, bytes);
        return;
    }
    memset(p, 0, before);
    memset(p + before + whole, 0, bytes - before - whole);
}

void *nb_alloc_aligned_zeroed(size_t count, size_t size)
{
    void *p = nb_alloc_aligned(count, size);
    if (p)
        zero_when_touched(p, checked_bytes(count, size));
    return p;
}

void *nb_resize(void *p, size_t count, size_t size)
{
    size_t bytes = checked_bytes(count, size);
    return bytes ? or_message(realloc(p, bytes), bytes) : NULL;
}

char *nb_string(const char *s)
{
    size_t bytes = strlen(s) + 1;
    char *copy = nb_alloc(bytes, 1);
    return copy ? memcpy(copy, s, bytes) : NULL;
}
