/* pool.c - memory that is given back in any order: what a training step makes and forgets.
 * Slabs, each as large as all before it (1 MB to 256 MB), are cut as they are asked for: the smallest free block that is large enough gives its
 * front, neighbours that are free become one. Free blocks stand in the order of their addresses. Untouched ends of slabs cost address
 * space only. A reset makes one slab of many: what is repeated, step by step, has all its memory in one piece from the second time on.
 */
#include "base/base.h"
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, LEAST_SLAB = 1 << 20, MOST_SLAB = 1 << 28 };

struct nb_slab {
    nb_slab *next;
    size_t bytes; /* of the payload, ALIGN bytes behind this */
};

static size_t rounded(size_t bytes)
{
    return bytes ? (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1) : ALIGN;
}

/* Room for one more free block at index i; the caller fills it. */
static bool insert(nb_pool *p, int64_t i)
{
    if (p->n == p->capacity) {
        int64_t capacity = p->capacity ? 2 * p->capacity : 64;
        nb_free_block *b = realloc(p->block, (size_t)capacity * sizeof *b);
        if (!b)
            return false;
        p->block = b;
        p->capacity = capacity;
    }
    memmove(p->block + i + 1, p->block + i, (size_t)(p->n - i) * sizeof *p->block);
    p->n++;
    return true;
}

/* Index of the first free block behind address a. */
static int64_t behind(const nb_pool *p, const char *a)
{
    int64_t low = 0, high = p->n;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (p->block[middle].p > a)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* A free block becomes part of its neighbours where they touch. */
static void add_free(nb_pool *p, char *at, size_t bytes)
{
    const int64_t i = behind(p, at);
    nb_free_block *b = p->block;
    const bool before = i > 0 && b[i - 1].p + b[i - 1].bytes == at, after = i < p->n && at + bytes == b[i].p;
    if (before && after) {
        b[i - 1].bytes += bytes + b[i].bytes;
        memmove(b + i, b + i + 1, (size_t)(p->n - i - 1) * sizeof *b);
        p->n--;
    } else if (before) {
        b[i - 1].bytes += bytes;
    } else if (after) {
        b[i].p = at;
        b[i].bytes += bytes;
    } else if (insert(p, i)) { /* else it is not reused before the reset: no harm */
        p->block[i] = (nb_free_block){at, bytes};
    }
}

static bool add_slab(nb_pool *p, size_t bytes)
{
    size_t total = 0;
    for (const nb_slab *s = p->slabs; s; s = s->next)
        total += s->bytes;
    total = total < LEAST_SLAB ? LEAST_SLAB : total > MOST_SLAB ? MOST_SLAB : total;
    bytes = bytes > total ? bytes : rounded(total);
    nb_slab *s = aligned_alloc(ALIGN, ALIGN + bytes);
    if (!s)
        return false;
    *s = (nb_slab){p->slabs, bytes};
    p->slabs = s;
    add_free(p, (char *)s + ALIGN, bytes);
    return true;
}

void *nb_pool_take(nb_pool *p, size_t bytes)
{
    if (bytes > PTRDIFF_MAX - 2 * ALIGN)
        return NULL;
    const size_t want = rounded(bytes);
    int64_t best = -1;
    for (int tries = 0; tries < 2 && best < 0; tries++) {
        if (tries && !add_slab(p, want))
            return NULL;
        for (int64_t i = 0; i < p->n; i++)
            if (p->block[i].bytes >= want && (best < 0 || p->block[i].bytes < p->block[best].bytes))
                best = i;
    }
    if (best < 0)
        return NULL;
    nb_free_block *b = &p->block[best];
    char *at = b->p;
    b->p += want;
    b->bytes -= want;
    if (!b->bytes) {
        memmove(b, b + 1, (size_t)(p->n - best - 1) * sizeof *b);
        p->n--;
    }
    p->used += want;
    p->peak = p->used > p->peak ? p->used : p->peak;
    return at;
}

#ifdef NDEBUG
static void poison(void *at, size_t bytes)
{
    (void)at;
    (void)bytes;
}
#else
static void poison(void *at, size_t bytes) /* every float becomes NaN: a stale read shows */
{
    memset(at, 0xFF, bytes);
}
#endif

void nb_pool_give(nb_pool *p, void *at, size_t bytes)
{
    if (!at)
        return;
    poison(at, rounded(bytes));
    p->used -= rounded(bytes);
    add_free(p, at, rounded(bytes));
}

static void free_slabs(nb_pool *p)
{
    for (nb_slab *s = p->slabs, *next; s; s = next) {
        next = s->next;
        free(s);
    }
    p->slabs = NULL;
}

/* Several slabs become one as large as all: ends of slabs, too short for what was asked next, are no longer left over. */
static void join_slabs(nb_pool *p)
{
    size_t total = 0;
    for (const nb_slab *s = p->slabs; s; s = s->next)
        total += s->bytes + ALIGN;
    free_slabs(p);
    (void)add_slab(p, total); /* where there is none so large, blocks are taken as at first */
}

void nb_pool_reset(nb_pool *p)
{
    p->n = 0;
    p->used = 0;
    if (p->slabs && p->slabs->next)
        join_slabs(p);
    else if (p->slabs)
        add_free(p, (char *)p->slabs + ALIGN, p->slabs->bytes);
}

void nb_pool_free(nb_pool *p)
{
    free_slabs(p);
    free(p->block);
    *p = (nb_pool){0};
}
