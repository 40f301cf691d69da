/* attention_backward.c - gradients of causal attention, by tiles of queries against tiles of keys.
 *   P = exp(S c - lse), S = Q K', c = 1/sqrt(D);  dV += P' dO;  dP = dO V';  dS = P (dP - rowsum(dO O)) c
 *   dQ += dS K;  dK += dS' Q                                                            (Dao et al. 2022)
 * A thread owns one (sequence, kv head); its query heads and tiles add in order. K', V' and the gradients of K and V are
 * held with keys along the rows, [D][T], so that every product runs over whole vectors of keys, whatever D is. */
#include "kernels/attention_backward.h"
#include "kernels/kernels_isa.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>

enum { QUERY_TILE = 64, KEY_TILE = 256 };

typedef struct {
    real *kt, *vt, *dkt, *dvt; /* [D][ld] */
    real *p, *ds;              /* [QUERY_TILE][KEY_TILE] */
    real *delta;               /* [QUERY_TILE] */
} scratch;

/* Keys to whole vectors. */
static int64_t padded(int64_t T)
{
    return (T + 15) / 16 * 16;
}

static int64_t scratch_reals(int64_t D, int64_t ld)
{
    return 4 * D * ld + 2 * QUERY_TILE * KEY_TILE + QUERY_TILE;
}

static scratch lay(real *memory, int64_t D, int64_t ld)
{
    scratch s = {.kt = memory};
    s.vt = s.kt + D * ld;
    s.dkt = s.vt + D * ld;
    s.dvt = s.dkt + D * ld;
    s.p = s.dvt + D * ld;
    s.ds = s.p + QUERY_TILE * KEY_TILE;
    s.delta = s.ds + QUERY_TILE * KEY_TILE;
    return s;
}

/* Queries [q0, q0 + n) of head h against keys [k0, k0 + keys). row: first row of the sequence. */
static void backward_tile(const kn_attention_gradients *j, const scratch *s, const kn_table *t, int64_t row, int64_t h, int64_t q0,
                          int64_t n, int64_t k0, int64_t keys)
{
    const int64_t D = j->D, ld = padded(j->T), wide = j->H * D, narrow = j->G * D, at = (row + q0) * wide + h * D;
    const real scale = 1 / sqrt((real)D);
    t->tile(s->p, KEY_TILE, j->q + at, wide, 1, s->kt + k0, ld, n, keys, D, false);
    t->tile(s->ds, KEY_TILE, j->d_o + at, wide, 1, s->vt + k0, ld, n, keys, D, false);
    for (int64_t i = 0; i < n; i++)
        t->attend_backward_row(s->p + i * KEY_TILE, s->ds + i * KEY_TILE, keys, q0 + i + 1 - k0,
                               j->lse[(row + q0 + i) * j->H + h], s->delta[i], scale);
    if (j->dv)
        t->tile(s->dvt + k0, ld, j->d_o + at, 1, wide, s->p, KEY_TILE, D, keys, n, true);
    if (j->dk)
        t->tile(s->dkt + k0, ld, j->q + at, 1, wide, s->ds, KEY_TILE, D, keys, n, true);
    if (j->dq)
        t->tile(j->dq + at, wide, s->ds, KEY_TILE, 1, j->k + (row + k0) * narrow + h / (j->H / j->G) * D, narrow, n, D,
                keys, true);
}

static void backward_head(const kn_attention_gradients *j, const scratch *s, int64_t b, int64_t g, int64_t length)
{
    const kn_table *t = kn_isa();
    const int64_t D = j->D, ld = padded(j->T), row = b * j->T, wide = j->H * D, narrow = j->G * D, share = j->H / j->G;
    t->transpose(s->kt, ld, j->k + row * narrow + g * D, narrow, length, D);
    t->transpose(s->vt, ld, j->v + row * narrow + g * D, narrow, length, D);
    memset(s->dkt, 0, (size_t)(2 * D * ld) * sizeof(real));
    for (int64_t h = g * share; h < (g + 1) * share; h++)
        for (int64_t q0 = 0; q0 < length; q0 += QUERY_TILE) {
            const int64_t n = kn_min(QUERY_TILE, length - q0);
            for (int64_t i = 0; i < n; i++) {
                const int64_t at = (row + q0 + i) * wide + h * D;
                t->dots(s->delta + i, 1, j->d_o + at, D, j->o + at, D, 1, 1, D);
            }
            for (int64_t k0 = 0; k0 < q0 + n; k0 += KEY_TILE)
                backward_tile(j, s, t, row, h, q0, n, k0, kn_min(KEY_TILE, q0 + n - k0));
        }
    for (int64_t i = 0; i < length; i++)
        for (int64_t d = 0; d < D; d++) {
            if (j->dk)
                j->dk[(row + i) * narrow + g * D + d] += s->dkt[d * ld + i];
            if (j->dv)
                j->dv[(row + i) * narrow + g * D + d] += s->dvt[d * ld + i];
        }
}

status kn_attention_backward(kn_precision p, real *dq, real *dk, real *dv, const real *d_o, const real *o, const real *lse,
                             const real *q, const real *k, const real *v, const int32_t *lengths, int64_t B, int64_t T,
                             int64_t H, int64_t G, int64_t D)
{
    if (G < 1 || H % G || D < 1)
        return nb_fail(NB_SHAPE, "attention: %lld heads on %lld kv heads of %lld", (long long)H, (long long)G,
                       (long long)D);
    const kn_attention_gradients j = {
        .dq = dq, .dk = dk, .dv = dv, .d_o = d_o, .o = o, .lse = lse, .q = q, .k = k, .v = v, .T = T, .H = H, .G = G, .D = D};
    const bool bf16 = kn_attention_backward_takes_bf16(p, T, D);
    const size_t own = bf16 ? kn_attention_backward_bf16_bytes(T, D) : (size_t)scratch_reals(D, padded(T)) * sizeof(real);
    const int threads = (int)kn_min(omp_in_parallel() ? 1 : omp_get_max_threads(), kn_max(B * G, 1));
    char *memory = nb_alloc_aligned((size_t)threads, own);
    if (!memory)
        return NB_NOMEM;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < B * G; i++) {
        void *const mine = memory + (size_t)omp_get_thread_num() * own;
        const int64_t length = lengths ? kn_min(kn_max(lengths[i / G], 0), T) : T;
        if (bf16) {
            kn_attention_backward_bf16(&j, mine, i / G, i % G, length);
            continue;
        }
        const scratch s = lay(mine, D, padded(T));
        backward_head(&j, &s, i / G, i % G, length);
    }
    free(memory);
    return NB_OK;
}
