/* attend_body.h - causal attention of a few queries of one head against a cache (included by table_body.h).
 *   float:  s_j = sum_d q_d k_jd, fused, d ascending;   f = 1/sqrt(D)
 *   coded:  s_j = (float)acc * k_scale_j, acc = sum_d q_d (mul u_jd - zero_j), exact;   f = q_scale * (1/sqrt(D))
 *   p_j = exp(fma(s_j, f, -max_j (s_j f))),  o = (sum_j p_j v_j) * (1 / sum_j p_j), fused, j ascending; sum of p in 16 lanes
 *   quantized: p^_j = rne(p_j * (1 / sum) * 255) * (1/255), o = sum_j p^_j v_j
 * Up to KN_QUERIES queries share a pass over the keys; no query's bits depend on the others. A query reads keys up to its
 * own position only. scratch: scores [KN_QUERIES][capacity], a block of keys [D][64] or of values [64][D], queries. */

typedef struct {
    const int8_t *q; /* [n][4 * d4s], padded with zeros */
    int64_t d4s;
    const uint8_t *k; /* the block */
} score_operands;

/* acc of `rows` queries against keys first .. first + 16 * vectors - 1 of a block; sums [rows][vectors][16] */
INLINE void score_fixed(const int rows, const int vectors, const bool nibbles, int32_t *sums, const score_operands *o,
                        int64_t first)
{
    const int64_t d4s = o->d4s;
    const int8_t *q = o->q;
    w16 acc[24];
    UNROLL
    for (int i = 0; i < 24; i++)
        acc[i] = w_zero();
    for (int64_t d4 = 0; d4 < d4s; d4++) {
        const uint8_t *k = o->k + ((nibbles ? d4 / 2 : d4) * KN_KEYS + first) * 4;
        b64 kv[4], qv = b_load4(q);
        UNROLL
        for (int v = 0; v < vectors; v++) {
            kv[v] = b_load(k + 64 * v);
            if (nibbles)
                kv[v] = d4 % 2 ? b_high4(kv[v]) : b_low4(kv[v]);
        }
        UNROLL
        for (int i = 0; i < rows * vectors; i++) {
            if (i % vectors == 0)
                qv = b_load4(q + (i / vectors * d4s + d4) * 4);
            acc[i] = w_dot(acc[i], kv[i % vectors], qv);
        }
    }
    UNROLL
    for (int i = 0; i < rows * vectors; i++)
        w_store(sums + 16 * i, acc[i]);
}

typedef void score_tile(int32_t *sums, const score_operands *o, int64_t first);
#define TILE(rows)                                                                                                     \
    static NOINLINE void score8_##rows(int32_t *sums, const score_operands *o, int64_t first)                          \
    {                                                                                                                  \
        if (rows * LINEAR_PANELS <= LINEAR_TILE)                                                                       \
            score_fixed(rows, LINEAR_PANELS, false, sums, o, first);                                                   \
    }                                                                                                                  \
    static NOINLINE void score4_##rows(int32_t *sums, const score_operands *o, int64_t first)                          \
    {                                                                                                                  \
        if (rows * LINEAR_PANELS <= LINEAR_TILE)                                                                       \
            score_fixed(rows, LINEAR_PANELS, true, sums, o, first);                                                    \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4) TILE(5) TILE(6)
#undef TILE
    static score_tile *const score_tiles[2][6] = {{score8_1, score8_2, score8_3, score8_4, score8_5, score8_6},
                                                  {score4_1, score4_2, score4_3, score4_4, score4_5, score4_6}};

/* Scores of n coded queries against one block of coded keys, s [n, ld]; q_sum [n]: the sums of their codes. */
static void score_codes(real *s, int64_t ld, const kn_cache *c, int64_t block, const int8_t *q, const int32_t *q_sum,
                        int64_t n)
{
    const bool nibbles = c->kgrid.bits <= 4, twice = kn_mul(&c->kgrid) == 2;
    const int64_t d4s = (c->D + 3) / 4, rows_held = nibbles ? (d4s + 1) / 2 : d4s;
    score_operands o = {.d4s = d4s, .k = (const uint8_t *)c->k + block * rows_held * KN_KEYS * 4};
    int32_t sums[24 * 16];
    for (int64_t i = 0; i < n;) {
        const int64_t rows = kn_min(kn_min(6, LINEAR_TILE / LINEAR_PANELS), n - i);
        o.q = q + i * d4s * 4;
        for (int64_t first = 0; first < KN_KEYS; first += 16 * LINEAR_PANELS) {
            score_tiles[nibbles][rows - 1](sums, &o, first);
            for (int64_t v = 0; v < LINEAR_PANELS; v++) {
                const int64_t at = block * KN_KEYS + first + 16 * v;
                const w16 zero = w_load(c->k_zero + at);
                const v16 scale = v_load(c->k_scale + at);
                for (int64_t r = 0; r < rows; r++) {
                    w16 acc = w_load(sums + (r * LINEAR_PANELS + v) * 16);
                    acc = w_sub(twice ? w_add(acc, acc) : acc, w_mul(w_set1(q_sum[i + r]), zero));
                    v_store(s + (i + r) * ld + first + 16 * v, v_mul(v_from_w(acc), scale));
                }
            }
        }
        i += rows;
    }
}

/* Keys of a coded block as floats, [D][64]. */
static void decode_key_block(real *k, const kn_cache *c, int64_t block)
{
    const bool nibbles = c->kgrid.bits <= 4;
    const int64_t d4s = (c->D + 3) / 4, rows_held = nibbles ? (d4s + 1) / 2 : d4s;
    const uint8_t *codes = (const uint8_t *)c->k + block * rows_held * KN_KEYS * 4;
    const int mul = kn_mul(&c->kgrid);
    for (int64_t d = 0; d < c->D; d++)
        for (int64_t j = 0; j < KN_KEYS; j++) {
            const int64_t d4 = d / 4, at = ((nibbles ? d4 / 2 : d4) * KN_KEYS + j) * 4 + d % 4;
            const int u = nibbles ? codes[at] >> d4 % 2 * 4 & 15 : codes[at];
            k[d * KN_KEYS + j] = (real)(mul * u - c->k_zero[block * KN_KEYS + j]) * c->k_scale[block * KN_KEYS + j];
        }
}

/* Values [first, first + n) as floats, [n][D]. */
static void decode_values(real *v, const kn_cache *c, int64_t first, int64_t n)
{
    const bool nibbles = c->vgrid.bits <= 4;
    const int64_t D = c->D, bytes = nibbles ? (D + 1) / 2 : D;
    const v16 mul = v_set1((real)kn_mul(&c->vgrid));
    for (int64_t j = first; j < first + n; j++, v += D) {
        const uint8_t *p = (const uint8_t *)c->v + j * bytes;
        const v16 scale = v_set1(c->v_scale[j]), zero = v_set1(-(real)c->v_zero[j]);
        for (int64_t d = 0; d < D; d += 16) {
            const v16 u = v_from_w(nibbles ? w_from_u4(p + d / 2, D - d) : w_from_u8(p + d, D - d));
            v_put(v + d, v_mul(v_fma(u, mul, zero), scale), D - d);
        }
    }
}

/* What is read next, and bytes of it that are asked of memory in a step, so that it is there in time. */
typedef struct {
    const char *from; /* NULL: not known */
    int64_t each;
} fetch;

static fetch fetch_in(const void *from, int64_t bytes, int64_t steps)
{
    return (fetch){from, (bytes + 64 * steps - 1) / (64 * steps) * 64};
}

/* c [rows, 16 * vectors] (+)= sum_k a[m,k] b[k,n], b in bf16: the chain of a tile (tile_body.h), widened in registers. */
INLINE void kept_fixed(const int rows, const int vectors, real *c, int64_t ldc, const real *a, int64_t lda, const uint16_t *b,
                       int64_t ldb, int64_t K, fetch next, bool add)
{
    v16 acc[24];
    UNROLL
    for (int i = 0; i < 24; i++)
        acc[i] = v_zero();
    if (add) {
        UNROLL
        for (int i = 0; i < rows * vectors; i++)
            acc[i] = v_load(c + i / vectors * ldc + i % vectors * 16);
    }
    for (int64_t k = 0; k < K; k++) {
        v16 bv[4], s = v_zero();
        for (int64_t i = 0; next.from && i < next.each; i += 64)
            __builtin_prefetch(next.from + k * next.each + i);
        UNROLL
        for (int v = 0; v < vectors; v++)
            bv[v] = v_from_bf16(b + k * ldb + 16 * v);
        UNROLL
        for (int i = 0; i < rows * vectors; i++) {
            if (i % vectors == 0)
                s = v_set1(a[i / vectors * lda + k]);
            acc[i] = v_fma(s, bv[i % vectors], acc[i]);
        }
    }
    UNROLL
    for (int i = 0; i < rows * vectors; i++)
        v_store(c + i / vectors * ldc + i % vectors * 16, acc[i]);
}

typedef void kept_tile(real *c, int64_t ldc, const real *a, int64_t lda, const uint16_t *b, int64_t ldb, int64_t K, fetch next, bool add);
#define TILE(rows)                                                                                                     \
    static NOINLINE void kept_##rows(real *c, int64_t ldc, const real *a, int64_t lda, const uint16_t *b, int64_t ldb, \
                                     int64_t K, fetch next, bool add)                                                  \
    {                                                                                                                  \
        if (rows * FLOAT_VECTORS <= FLOAT_TILE)                                                                        \
            kept_fixed(rows, FLOAT_VECTORS, c, ldc, a, lda, b, ldb, K, next, add);                                     \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4) TILE(5) TILE(6)
#undef TILE
    static kept_tile *const kept_tiles[6] = {kept_1, kept_2, kept_3, kept_4, kept_5, kept_6};

/* Few rows against a block in bf16 of ldb columns, the first N of them, whole vectors. */
static void kept_rows(real *c, int64_t ldc, const real *a, int64_t lda, const uint16_t *b, int64_t ldb, int64_t M, int64_t N, int64_t K,
                      fetch next, bool add)
{
    for (int64_t n = 0; n < N; n += 16 * FLOAT_VECTORS)
        for (int64_t m = 0; m < M;) {
            const int64_t rows = kn_min(kn_min(6, FLOAT_TILE / FLOAT_VECTORS), M - m);
            kept_tiles[rows - 1](c + m * ldc + n, ldc, a + m * lda, lda, b + n, ldb, K, n + m ? (fetch){0} : next, add);
            m += rows;
        }
}

/* Whether a job's keys and values are read so: of few queries, a block is not worth being widened first. */
static bool reads_kept(const kn_attend_job *j)
{
    const kn_cache *c = j->cache;
    return c->floats == KN_BF16 && j->together && j->n <= 12 && c->D % (16 * FLOAT_VECTORS) == 0;
}

/* x [n] <- floats kept in bf16 */
static void widen(real *restrict x, const uint16_t *restrict h, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (real)kn_bf16_value(h[i]);
}

/* s[0..n) <- p; returns the sum; *max <- the greatest s f. */
static real exp_row(real *s, int64_t n, real f, real *max)
{
    const v16 factor = v_set1(f);
    const int64_t full = n / 16 * 16;
    v16 top = v_set1(s[0] * f), sum = v_zero();
    for (int64_t j = 0; j < full; j += 16)
        top = v_max(v_mul(v_load(s + j), factor), top);
    if (full < n)
        top = v_max(v_keep(v_mul(v_load_n(s + full, n - full), factor), n - full, top), top);
    *max = v_top(top);
    const v16 minus = v_set1(-*max);
    for (int64_t j = 0; j < full; j += 16) {
        const v16 e = v_exp(v_fma(v_load(s + j), factor, minus));
        sum = v_add(sum, e);
        v_store(s + j, e);
    }
    if (full < n) {
        const v16 e = v_exp(v_fma(v_load_n(s + full, n - full), factor, minus));
        sum = v_add(sum, v_keep(e, n - full, v_zero()));
        v_store_n(s + full, e, n - full);
    }
    return v_sum(sum);
}

static void round_row(real *p, int64_t n, real inverse)
{
    for (int64_t j = 0; j < n; j += 16) {
        const v16 t = v_mul(v_mul(v_get(p + j, n - j), v_set1(inverse)), v_set1(255));
        v_put(p + j, v_mul(v_rint(t), v_set1((real)(1.0 / 255))), n - j);
    }
}

/* Scores s [n, capacity] of queries [i0, i0 + n) of a job, and the factor of each. */
static void score_queries(real *s, real *factor, const kn_attend_job *j, int64_t i0, int64_t n, real *block,
                          real *query)
{
    const kn_cache *c = j->cache;
    const int64_t D = c->D, ld = c->capacity, width = (D + 3) / 4 * 4;
    const int64_t last = j->together ? j->first : j->first + i0 + n - 1;
    const bool keys_coded = c->kgrid.bits != 0, exact = j->codes && keys_coded;
    const real root = 1 / sqrt((real)D);
    int32_t q_sum[KN_QUERIES];
    int8_t *codes = (int8_t *)query;
    for (int64_t i = 0; i < n; i++) {
        const real scale = j->codes ? j->q_scale[(i0 + i) * j->ld_scale] : 1;
        const int8_t *q = j->codes ? j->codes + (i0 + i) * j->ld_codes : NULL;
        factor[i] = exact ? scale * root : root;
        if (exact) {
            q_sum[i] = 0;
            for (int64_t d = 0; d < width; d++) {
                codes[i * width + d] = d < D ? q[d] : 0;
                q_sum[i] += codes[i * width + d];
            }
        } else if (q) {
            decode8(query + i * D, q, D, scale, 1, 0);
        }
    }
    const real *q = j->codes ? query : j->q + i0 * j->ldq;
    for (int64_t at = 0; at <= last; at += KN_KEYS) {
        if (exact) {
            score_codes(s + at, ld, c, at / KN_KEYS, codes, q_sum, n);
            continue;
        }
        if (!keys_coded && reads_kept(j)) {
            const uint16_t *k = (const uint16_t *)c->k + at * D;
            kept_rows(s + at, ld, q, j->codes ? D : j->ldq, k, KN_KEYS, n, KN_KEYS, D,
                      fetch_in(at + KN_KEYS <= last ? k + KN_KEYS * D : c->v, KN_KEYS * D * (int64_t)sizeof *k, D), false);
            continue;
        }
        const real *k = keys_coded || c->floats == KN_BF16 ? block : (const real *)c->k + at * D;
        if (keys_coded)
            decode_key_block(block, c, at / KN_KEYS);
        else if (k == block)
            widen(block, (const uint16_t *)c->k + at * D, KN_KEYS * D);
        tile(s + at, ld, q, j->codes ? D : j->ldq, 1, k, KN_KEYS, n, KN_KEYS, D, false);
    }
}

static void attend_queries(const kn_attend_job *j, int64_t i0, int64_t n)
{
    const kn_cache *c = j->cache;
    const int64_t D = c->D, ld = c->capacity, step = j->together ? 0 : 1;
    const int64_t first = j->first + i0 * step, last = first + (n - 1) * step;
    real *s = j->scratch, *block = s + KN_QUERIES * ld, *o = j->o + i0 * j->ldo;
    real factor[KN_QUERIES], inverse[KN_QUERIES];
    score_queries(s, factor, j, i0, n, block, block + KN_KEYS * D);
    for (int64_t i = 0; i < n; i++) {
        real max;
        const real sum = exp_row(s + i * ld, first + i * step + 1, factor[i], &max);
        inverse[i] = 1 / sum;
        if (j->lse)
            j->lse[(i0 + i) * j->ld_lse] = max + log(sum);
        if (j->quantize_probs)
            round_row(s + i * ld, first + i * step + 1, inverse[i]);
    }
    for (int64_t at = 0; at <= last; at += KN_KEYS) {
        const int64_t keys = kn_min(KN_KEYS, last + 1 - at);
        if (!c->vgrid.bits && reads_kept(j)) {
            const uint16_t *v = (const uint16_t *)c->v + at * D;
            kept_rows(o, j->ldo, s + at, ld, v, D, n, D, keys,
                      fetch_in(at + KN_KEYS <= last ? v + KN_KEYS * D : j->next, KN_KEYS * D * (int64_t)sizeof *v, keys), at > 0);
            continue;
        }
        const real *v = c->vgrid.bits || c->floats == KN_BF16 ? block : (const real *)c->v + at * D;
        if (c->vgrid.bits)
            decode_values(block, c, at, keys);
        else if (v == block)
            widen(block, (const uint16_t *)c->v + at * D, keys * D);
        tile_reach(o, j->ldo, s + at, ld, 1, v, D, n, D, keys, j->together ? keys : first + 1 - at, at > 0);
    }
    if (j->quantize_probs)
        return;
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < D; d += 16) {
            real *to = o + i * j->ldo + d;
            v_put(to, v_mul(v_get(to, D - d), v_set1(inverse[i])), D - d);
        }
}

static void attend(const kn_attend_job *j)
{
    for (int64_t i = 0; i < j->n; i += KN_QUERIES)
        attend_queries(j, i, kn_min(KN_QUERIES, j->n - i));
}

/* One query against `keys` keys: p holds raw scores, ds the gradients of p; out: p = exp(p*scale - lse),
 * ds = p (ds - delta) scale; zeros from keys to n. */
static void attend_backward_row(real *p, real *ds, int64_t n, int64_t keys, real lse, real delta, real scale)
{
    const v16 c = v_set1(scale), l = v_set1(-lse), d = v_set1(-delta);
    int64_t j = 0;
    for (; j + 16 <= kn_min(keys, n); j += 16) {
        const v16 e = v_exp(v_fma(v_load(p + j), c, l));
        v_store(ds + j, v_mul(v_mul(e, v_add(v_load(ds + j), d)), c));
        v_store(p + j, e);
    }
    for (; j < n; j += 16) {
        const v16 e = v_exp(v_fma(v_get(p + j, n - j), c, l));
        const v16 g = v_mul(v_mul(e, v_add(v_get(ds + j, n - j), d)), c);
        v_put(p + j, v_keep(e, keys - j, v_zero()), n - j);
        v_put(ds + j, v_keep(g, keys - j, v_zero()), n - j);
    }
}
