/* attention.c - the cache of keys and values, and causal attention over a batch.
 * The formulas are in kernels.h; the arithmetic in attend_body.h. A thread owns one (sequence, kv head): it lays the keys
 * and values in a cache of its own and attends from every query head that shares them, which is what the runtime does
 * token by token. */
#include "kernels/kernels_isa.h"

#include <assert.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { PART = 128 }; /* queries below which a sequence is not shared out */

typedef struct {
    size_t k, v, scale, zero, total; /* bytes */
} cache_layout;

static size_t padded(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static cache_layout layout_of(const kn_grid *kgrid, const kn_grid *vgrid, kn_precision floats, int64_t D, int64_t capacity)
{
    const size_t d = (size_t)D, n = (size_t)capacity, d4 = (d + 3) / 4, each = floats == KN_BF16 ? sizeof(uint16_t) : sizeof(real);
    cache_layout l = {.k = kgrid->bits == 0   ? n * d * each
                           : kgrid->bits <= 4 ? n * ((d4 + 1) / 2) * 4
                                              : n * d4 * 4,
                      .v = padded(vgrid->bits == 0   ? n * d * each
                                  : vgrid->bits <= 4 ? n * ((d + 1) / 2)
                                                     : n * d),
                      .scale = padded(n * sizeof(real)),
                      .zero = padded(n * sizeof(int32_t))};
    l.k = padded(l.k);
    l.total = l.k + l.v + (size_t)((kgrid->bits != 0) + (vgrid->bits != 0)) * (l.scale + l.zero);
    return l;
}

size_t kn_cache_bytes(const kn_grid *kgrid, const kn_grid *vgrid, kn_precision floats, int64_t D, int64_t capacity)
{
    return layout_of(kgrid, vgrid, floats, D, capacity).total;
}

void kn_cache_lay(kn_cache *c, const kn_grid *kgrid, const kn_grid *vgrid, kn_precision floats, int64_t D, int64_t capacity,
                  void *memory)
{
    const cache_layout l = layout_of(kgrid, vgrid, floats, D, capacity);
    uint8_t *p = memory;
    assert(capacity % KN_KEYS == 0);
    *c = (kn_cache){.kgrid = *kgrid, .vgrid = *vgrid, .floats = floats, .D = D, .capacity = capacity, .k = p, .v = p + l.k};
    p += l.k + l.v;
    if (kgrid->bits) {
        c->k_scale = (real *)(void *)p;
        c->k_zero = (int32_t *)(void *)(p + l.scale);
        p += l.scale + l.zero;
    }
    if (vgrid->bits) {
        c->v_scale = (real *)(void *)p;
        c->v_zero = (int32_t *)(void *)(p + l.scale);
    }
}

/* Value of u = q - lo is (mul*u - zero') * scale with zero' = zero - mul*lo - add. */
static int32_t shifted_zero(const kn_codes *c, int64_t index)
{
    return (c->zero ? c->zero[index] : 0) - kn_mul(&c->grid) * c->grid.lo - kn_add(&c->grid);
}

/* One key rounded to bf16, its numbers KN_KEYS apart. */
static void put_kept_key(uint16_t *to, const real *k, int64_t D)
{
    enum { PIECE = 64 };
    uint16_t piece[PIECE];
    for (int64_t at = 0; at < D; at += PIECE) {
        const int64_t n = kn_min(PIECE, D - at);
        kn_isa()->to_bf16(piece, k + at, n);
        for (int64_t d = 0; d < n; d++)
            to[(at + d) * KN_KEYS] = piece[d];
    }
}

/* n keys, ld apart, at positions at.. of a float cache: transposed into blocks [D][64]. */
static void put_keys(kn_cache *c, int64_t at, int64_t n, const real *k, int64_t ld)
{
    const kn_table *t = kn_isa();
    if (c->floats == KN_BF16) {
        for (int64_t i = 0; i < n; i++)
            put_kept_key((uint16_t *)c->k + (at + i) / KN_KEYS * KN_KEYS * c->D + (at + i) % KN_KEYS, k + i * ld, c->D);
        return;
    }
    for (int64_t i = 0; i < n;) {
        const int64_t in = (at + i) % KN_KEYS, keys = kn_min(KN_KEYS - in, n - i);
        real *to = (real *)c->k + (at + i - in) * c->D + in;
        t->transpose(to, KN_KEYS, k + i * ld, ld, keys, c->D);
        i += keys;
    }
}

static void put_values(kn_cache *c, int64_t at, int64_t n, const real *v, int64_t ld)
{
    for (int64_t i = 0; i < n; i++) {
        if (c->floats == KN_BF16)
            kn_isa()->to_bf16((uint16_t *)c->v + (at + i) * c->D, v + i * ld, c->D);
        else
            memcpy((real *)c->v + (at + i) * c->D, v + i * ld, (size_t)c->D * sizeof(real));
    }
}

static void put_key_codes(kn_cache *c, int64_t at, const kn_codes *codes, int64_t row, int64_t h)
{
    const int8_t *q = codes->q + row * codes->ld + h * c->D;
    const bool nibbles = c->kgrid.bits <= 4;
    const int64_t d4s = (c->D + 3) / 4, rows = nibbles ? (d4s + 1) / 2 : d4s;
    uint8_t *to = (uint8_t *)c->k + (at / KN_KEYS * rows * KN_KEYS + at % KN_KEYS) * 4;
    for (int64_t d = 0; d < c->D; d++) {
        const uint8_t u = (uint8_t)(q[d] - c->kgrid.lo);
        const int64_t d4 = d / 4;
        uint8_t *byte = to + (nibbles ? d4 / 2 : d4) * KN_KEYS * 4 + d % 4;
        *byte = nibbles ? (uint8_t)(d4 % 2 ? (*byte & 15) | u << 4 : (*byte & 0xF0) | u) : u;
    }
    const int64_t i = kn_scale_index(codes, row, h * c->D);
    c->k_scale[at] = codes->scale[i];
    c->k_zero[at] = shifted_zero(codes, i);
}

static void put_value_codes(kn_cache *c, int64_t at, const kn_codes *codes, int64_t row, int64_t h)
{
    const int8_t *q = codes->q + row * codes->ld + h * c->D;
    const bool nibbles = c->vgrid.bits <= 4;
    uint8_t *to = (uint8_t *)c->v + at * (nibbles ? (c->D + 1) / 2 : c->D);
    for (int64_t d = 0; d < c->D; d++) {
        const uint8_t u = (uint8_t)(q[d] - c->vgrid.lo);
        if (nibbles)
            to[d / 2] = (uint8_t)(d % 2 ? (to[d / 2] & 15) | u << 4 : u);
        else
            to[d] = u;
    }
    const int64_t i = kn_scale_index(codes, row, h * c->D);
    c->v_scale[at] = codes->scale[i];
    c->v_zero[at] = shifted_zero(codes, i);
}

void kn_cache_put(kn_cache *c, int64_t n, const real *k, const real *v, int64_t ld, const kn_codes *kc,
                  const kn_codes *vc, int64_t row, int64_t h)
{
    assert(c->n + n <= c->capacity && !kc == !c->kgrid.bits && !vc == !c->vgrid.bits && !k == !!kc && !v == !!vc);
    if (!kc)
        put_keys(c, c->n, n, k + h * c->D, ld);
    if (!vc)
        put_values(c, c->n, n, v + h * c->D, ld);
    for (int64_t i = 0; i < n; i++) {
        if (kc)
            put_key_codes(c, c->n + i, kc, row + i, h);
        if (vc)
            put_value_codes(c, c->n + i, vc, row + i, h);
    }
    c->n += n;
}

int64_t kn_attend_scratch(const kn_cache *c)
{
    return KN_QUERIES * c->capacity + (KN_KEYS + KN_QUERIES) * c->D;
}

/* Where the codes of rows from `row`, head h, lie in a job. */
static void job_codes(kn_attend_job *job, const kn_codes *qc, int64_t row, int64_t h)
{
    assert(qc->q && !qc->zero && qc->grid.levels == KN_LEVELS_INT);
    const int64_t D = job->cache->D;
    job->codes = qc->q + row * qc->ld + h * D;
    job->ld_codes = qc->ld;
    job->q_scale = qc->scale + kn_scale_index(qc, row, h * D);
    job->ld_scale = qc->grid.grain == KN_TENSOR ? 0 : qc->spans;
}

void kn_attend(real *o, int64_t ldo, real *lse, const kn_cache *c, int64_t first, int64_t n, const real *q, int64_t ldq,
               const kn_codes *qc, int64_t row, int64_t h, bool quantize_probs, real *scratch)
{
    assert(first >= 0 && first + n <= c->n && !q == !!qc);
    kn_attend_job job = {.o = o,
                         .ldo = ldo,
                         .lse = lse,
                         .ld_lse = 1,
                         .cache = c,
                         .first = first,
                         .n = n,
                         .q = q,
                         .ldq = ldq,
                         .quantize_probs = quantize_probs,
                         .scratch = scratch};
    if (qc)
        job_codes(&job, qc, row, h);
    kn_isa()->attend(&job);
}

void kn_attend_heads(real *o, const kn_cache *c, const kn_cache *next, int64_t position, int64_t heads, const real *q,
                     const kn_codes *qc, int64_t row, int64_t h, bool quantize_probs, real *scratch)
{
    assert(position >= 0 && position < c->n && !q == !!qc);
    kn_attend_job job = {.o = o,
                         .ldo = c->D,
                         .cache = c,
                         .next = next ? next->k : NULL,
                         .first = position,
                         .n = heads,
                         .together = true,
                         .q = q,
                         .ldq = c->D,
                         .quantize_probs = quantize_probs,
                         .scratch = scratch};
    if (qc) {
        job_codes(&job, qc, row, h);
        job.ld_codes = c->D;
        job.ld_scale = qc->grid.grain == KN_HEAD || qc->grid.grain == KN_GROUP;
    }
    kn_isa()->attend(&job);
}

typedef struct {
    real *o, *lse;
    kn_operand q, k, v;
    int64_t T, H, G, D, capacity;
    kn_grid kgrid, vgrid; /* of the caches: bits 0 also for codes that are decoded first */
    bool quantize_probs;
} batch_job;

static void decode_head(real *x, const kn_codes *c, int64_t row, int64_t n, int64_t h, int64_t D)
{
    const kn_table *t = kn_isa();
    for (int64_t i = 0; i < n; i++) {
        const int64_t s = kn_scale_index(c, row + i, h * D);
        t->decode8(x + i * D, c->q + (row + i) * c->ld + h * D, D, c->scale[s], (real)kn_mul(&c->grid),
                   kn_offset(&c->grid, c->zero ? c->zero[s] : 0));
    }
}

/* Memory of one thread: a cache, keys or values decoded, scratch. */
static size_t own_bytes(const batch_job *j)
{
    const kn_cache shape = {.D = j->D, .capacity = j->capacity};
    return padded(kn_cache_bytes(&j->kgrid, &j->vgrid, KN_FP32, j->D, j->capacity)) +
           padded((size_t)(j->D * j->capacity) * sizeof(real)) +
           padded((size_t)kn_attend_scratch(&shape) * sizeof(real));
}

/* The first n keys and values of kv head g. Codes of values, and of keys that meet float queries, are decoded once
 * here: the values a query would decode, so the same bits. */
static void fill_cache(kn_cache *c, const batch_job *j, int64_t row, int64_t n, int64_t g, real *decoded)
{
    const int64_t D = j->D, ld = j->G * D;
    if (c->kgrid.bits) {
        for (int64_t i = 0; i < n; i++)
            put_key_codes(c, i, j->k.codes, row + i, g);
    } else {
        if (j->k.codes)
            decode_head(decoded, j->k.codes, row, n, g, D);
        put_keys(c, 0, n, j->k.codes ? decoded : j->k.x + row * ld + g * D, j->k.codes ? D : ld);
    }
    if (j->v.codes)
        decode_head(c->v, j->v.codes, row, n, g, D);
    else
        put_values(c, 0, n, j->v.x + row * ld + g * D, ld);
    c->n = n;
}

/* Queries [first, end) of sequence b that read kv head g. */
static void attend_head(const batch_job *j, int64_t b, int64_t g, int64_t first, int64_t end, uint8_t *memory)
{
    const int64_t H = j->H, D = j->D, row = b * j->T;
    real *decoded = (real *)(void *)(memory + padded(kn_cache_bytes(&j->kgrid, &j->vgrid, KN_FP32, D, j->capacity)));
    kn_cache c;
    if (first >= end)
        return;
    kn_cache_lay(&c, &j->kgrid, &j->vgrid, KN_FP32, D, j->capacity, memory);
    fill_cache(&c, j, row, end, g, decoded);
    for (int64_t h = g * (H / j->G); h < (g + 1) * (H / j->G); h++) {
        const int64_t at = row + first;
        kn_attend_job job = {.o = j->o + (at * H + h) * D,
                             .ldo = H * D,
                             .lse = j->lse ? j->lse + at * H + h : NULL,
                             .ld_lse = H,
                             .cache = &c,
                             .first = first,
                             .n = end - first,
                             .q = j->q.x ? j->q.x + (at * H + h) * D : NULL,
                             .ldq = H * D,
                             .quantize_probs = j->quantize_probs,
                             .scratch = decoded + padded((size_t)(D * j->capacity) * sizeof(real)) / sizeof(real)};
        if (j->q.codes)
            job_codes(&job, j->q.codes, at, h);
        kn_isa()->attend(&job);
    }
}

static void clear_padding(const batch_job *j, int64_t b, int64_t length)
{
    const int64_t H = j->H, at = b * j->T + length, rows = j->T - length;
    memset(j->o + at * H * j->D, 0, (size_t)(rows * H * j->D) * sizeof(real));
    if (j->lse)
        memset(j->lse + at * H, 0, (size_t)(rows * H) * sizeof(real));
}

/* Parts of equal work: that of the first n queries grows as n^2. */
static int64_t part_begin(int64_t length, int64_t part, int64_t parts)
{
    int64_t n = 0;
    while (n < length && n * n * parts < length * length * part)
        n += KN_QUERIES;
    return kn_min(n, length);
}

static status check_operand(const char *name, const kn_operand *x, int64_t rows, int64_t cols, int64_t D)
{
    if (!x->x == !x->codes)
        return nb_fail(NB_SHAPE, "attention: %s needs floats or codes, one of them", name);
    const kn_codes *c = x->codes;
    if (!c)
        return NB_OK;
    const bool per_head = c->grid.grain == KN_TENSOR || (c->grid.grain == KN_ROW && c->spans == 1) ||
                          ((c->grid.grain == KN_HEAD || c->grid.grain == KN_GROUP) && c->grid.group == D);
    if (!c->q || c->rows != rows || c->cols != cols || !per_head)
        return nb_fail(NB_SHAPE,
                       "attention: codes of %s are %lld x %lld, %d bits, wanted %lld x %lld per token and head", name,
                       (long long)c->rows, (long long)c->cols, c->grid.bits, (long long)rows, (long long)cols);
    return NB_OK;
}

status kn_attention(real *o, real *lse, kn_operand q, kn_operand k, kn_operand v, const int32_t *lengths, int64_t B,
                    int64_t T, int64_t H, int64_t G, int64_t D, bool quantize_probs)
{
    if (G < 1 || H % G || D < 1)
        return nb_fail(NB_SHAPE, "attention: %lld heads on %lld kv heads of %lld", (long long)H, (long long)G,
                       (long long)D);
    TRY(check_operand("q", &q, B * T, H * D, D));
    TRY(check_operand("k", &k, B * T, G * D, D));
    TRY(check_operand("v", &v, B * T, G * D, D));
    if (q.codes && (q.codes->zero || q.codes->grid.levels != KN_LEVELS_INT))
        return nb_fail(NB_SHAPE, "attention: codes of q must be integers without zero points");
    const batch_job job = {.o = o,
                           .lse = lse,
                           .q = q,
                           .k = k,
                           .v = v,
                           .T = T,
                           .H = H,
                           .G = G,
                           .D = D,
                           .capacity = (T + KN_KEYS - 1) / KN_KEYS * KN_KEYS,
                           .kgrid = k.codes && q.codes ? k.codes->grid : (kn_grid){0},
                           .quantize_probs = quantize_probs};
    const size_t own = own_bytes(&job);
    const int threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    const int64_t parts = kn_max(1, kn_min(4 * threads / kn_max(B * G, 1), T / PART)); /* of a sequence's queries */
    uint8_t *memory = nb_alloc_aligned((size_t)threads, own);
    if (!memory)
        return NB_NOMEM;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < B * G * parts; i++) {
        const int64_t b = i / parts / G, g = i / parts % G, part = i % parts,
                      length = lengths ? kn_min(kn_max(lengths[b], 0), T) : T;
        attend_head(&job, b, g, part_begin(length, part, parts), part_begin(length, part + 1, parts),
                    memory + (size_t)omp_get_thread_num() * own);
        if (g == 0 && part == 0)
            clear_padding(&job, b, length);
    }
    free(memory);
    return NB_OK;
}
