/* attention.c - the cache of keys and values, and causal attention over a batch.
 * The formulas are in kernels.h; the arithmetic in attend_body.h. A thread owns one (sequence, kv head): it lays the keys
 * and values in a cache of its own and attends from every query head that shares them, which is what the runtime does
 * token by token. */
#include "kernels/kernels_isa.h"

#include <assert.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    size_t k, v, scale, zero, total; /* bytes */
} cache_layout;

static size_t padded(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static cache_layout layout_of(const kn_grid *kgrid, const kn_grid *vgrid, int64_t D, int64_t capacity)
{
    const size_t d = (size_t)D, n = (size_t)capacity, d4 = (d + 3) / 4;
    cache_layout l = {.k = kgrid->bits == 0   ? n * d * sizeof(real)
                           : kgrid->bits <= 4 ? n * ((d4 + 1) / 2) * 4
                                              : n * d4 * 4,
                      .v = padded(vgrid->bits == 0   ? n * d * sizeof(real)
                                  : vgrid->bits <= 4 ? n * ((d + 1) / 2)
                                                     : n * d),
                      .scale = padded(n * sizeof(real)),
                      .zero = padded(n * sizeof(int32_t))};
    l.k = padded(l.k);
    l.total = l.k + l.v + (size_t)((kgrid->bits != 0) + (vgrid->bits != 0)) * (l.scale + l.zero);
    return l;
}

size_t kn_cache_bytes(const kn_grid *kgrid, const kn_grid *vgrid, int64_t D, int64_t capacity)
{
    return layout_of(kgrid, vgrid, D, capacity).total;
}

void kn_cache_lay(kn_cache *c, const kn_grid *kgrid, const kn_grid *vgrid, int64_t D, int64_t capacity, void *memory)
{
    assert(capacity % KN_KEYS == 0);
    const cache_layout l = layout_of(kgrid, vgrid, D, capacity);
    uint8_t *p = memory;
    memset(p, 0, l.total);
    *c = (kn_cache){.kgrid = *kgrid, .vgrid = *vgrid, .D = D, .capacity = capacity, .k = p, .v = p + l.k};
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

static void put_key_floats(kn_cache *c, int64_t at, const real *k)
{
    real *to = (real *)c->k + at / KN_KEYS * KN_KEYS * c->D + at % KN_KEYS;
    for (int64_t d = 0; d < c->D; d++)
        to[d * KN_KEYS] = k[d];
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
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = c->n + i;
        if (kc)
            put_key_codes(c, at, kc, row + i, h);
        else
            put_key_floats(c, at, k + i * ld + h * c->D);
        if (vc)
            put_value_codes(c, at, vc, row + i, h);
        else
            memcpy((real *)c->v + at * c->D, v + i * ld + h * c->D, (size_t)c->D * sizeof(real));
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

typedef struct {
    real *o, *lse;
    kn_operand q, k, v;
    int64_t T, H, G, D, capacity;
    kn_grid kgrid, vgrid;
    bool quantize_probs;
} batch_job;

/* All queries of sequence b that read kv head g, `length` of them real. */
static void attend_head(const batch_job *j, int64_t b, int64_t g, int64_t length, uint8_t *memory)
{
    const kn_table *t = kn_isa();
    const int64_t T = j->T, H = j->H, D = j->D, row = b * T, ld = j->G * D;
    kn_cache c;
    kn_cache_lay(&c, &j->kgrid, &j->vgrid, D, j->capacity, memory);
    kn_cache_put(&c, length, j->k.x ? j->k.x + row * ld : NULL, j->v.x ? j->v.x + row * ld : NULL, ld, j->k.codes,
                 j->v.codes, row, g);
    real *scratch = (real *)(void *)(memory + padded(kn_cache_bytes(&j->kgrid, &j->vgrid, D, j->capacity)));
    for (int64_t h = g * (H / j->G); h < (g + 1) * (H / j->G); h++) {
        kn_attend_job job = {.o = j->o + row * H * D + h * D,
                             .ldo = H * D,
                             .lse = j->lse ? j->lse + row * H + h : NULL,
                             .ld_lse = H,
                             .cache = &c,
                             .n = length,
                             .q = j->q.x ? j->q.x + row * H * D + h * D : NULL,
                             .ldq = H * D,
                             .quantize_probs = j->quantize_probs,
                             .scratch = scratch};
        if (j->q.codes)
            job_codes(&job, j->q.codes, row, h);
        t->attend(&job);
        for (int64_t i = length; i < T; i++) {
            memset(j->o + ((row + i) * H + h) * D, 0, (size_t)D * sizeof(real));
            if (j->lse)
                j->lse[(row + i) * H + h] = 0;
        }
    }
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
                           .kgrid = k.codes ? k.codes->grid : (kn_grid){0},
                           .vgrid = v.codes ? v.codes->grid : (kn_grid){0},
                           .quantize_probs = quantize_probs};
    const kn_cache shape = {.D = D, .capacity = job.capacity};
    const size_t own = padded(kn_cache_bytes(&job.kgrid, &job.vgrid, D, job.capacity)) +
                       padded((size_t)kn_attend_scratch(&shape) * sizeof(real));
    const int threads = (int)kn_min(omp_in_parallel() ? 1 : omp_get_max_threads(), kn_max(B * G, 1));
    uint8_t *memory = nb_alloc_aligned((size_t)threads, own);
    if (!memory)
        return NB_NOMEM;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < B * G; i++)
        attend_head(&job, i / G, i % G, lengths ? lengths[i / G] : T, memory + (size_t)omp_get_thread_num() * own);
    free(memory);
    return NB_OK;
}
