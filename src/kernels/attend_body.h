/* attend_body.h - causal attention of a few queries of one head against a cache (included by table_body.h).
 *   float:  s_j = (sum_d q_d k_jd) * c, c = 1/sqrt(D), fused, d ascending
 *   coded:  s_j = ((float)acc * k_scale_j) * (q_scale * c), acc = sum_d q_d (mul u_jd - zero_j), exact
 *   p_j = exp(s_j - max s), o = (sum_j p_j v_j) * (1 / sum_j p_j), fused, j ascending; sum of p in 16 lanes
 *   quantized: p^_j = rne(p_j * (1 / sum) * 255) * (1/255), o = sum_j p^_j v_j
 * Up to KN_QUERIES queries share a pass over the keys; no query's bits depend on the others. A query reads keys up to its
 * own position only. scratch: scores [KN_QUERIES][capacity], a block of keys [D][64], a block of values [64][D]. */

/* Codes u (bytes, or nibbles where bits <= 4) of 16 elements from element `at` of row p. */
static inline w16 cache_codes(const uint8_t *p, int64_t at, int64_t n, bool nibbles)
{
    if (!nibbles)
        return w_from_u8(p + at, n);
    uint8_t u[16] = {0};
    for (int64_t i = 0; i < n && i < 16; i++)
        u[i] = (uint8_t)(p[(at + i) / 2] >> (at + i) % 2 * 4 & 15);
    return w_from_u8(u, 16);
}

/* Bytes of the four codes of 16 keys (first .. first + 15) for d 4*d4 .. 4*d4 + 3 in a block of coded keys. */
static inline b64 key_codes(const uint8_t *block, int64_t d4, int64_t first, bool nibbles)
{
    if (!nibbles)
        return b_load(block + (d4 * KN_KEYS + first) * 4);
    const b64 pair = b_load(block + (d4 / 2 * KN_KEYS + first) * 4);
    return d4 % 2 ? b_high4(pair) : b_low4(pair);
}

static void decode_key_block(real *k, const kn_cache *c, int64_t block)
{
    const bool nibbles = c->kgrid.bits <= 4;
    const int64_t d4s = (c->D + 3) / 4, bytes = (nibbles ? (d4s + 1) / 2 : d4s) * KN_KEYS * 4;
    const uint8_t *codes = (const uint8_t *)c->k + block * bytes;
    const real *scale = c->k_scale + block * KN_KEYS;
    const int32_t *zero = c->k_zero + block * KN_KEYS;
    const int mul = kn_mul(&c->kgrid);
    for (int64_t d = 0; d < c->D; d++)
        for (int64_t j = 0; j < KN_KEYS; j++) {
            const int64_t d4 = d / 4, at = ((nibbles ? d4 / 2 : d4) * KN_KEYS + j) * 4 + d % 4;
            const int u = nibbles ? codes[at] >> d4 % 2 * 4 & 15 : codes[at];
            k[d * KN_KEYS + j] = (real)(mul * u - zero[j]) * scale[j];
        }
}

static void decode_value_rows(real *v, const kn_cache *c, int64_t first, int64_t n)
{
    const bool nibbles = c->vgrid.bits <= 4;
    const int64_t bytes = nibbles ? (c->D + 1) / 2 : c->D;
    const v16 mul = v_set1((real)kn_mul(&c->vgrid));
    for (int64_t j = 0; j < n; j++, v += c->D) {
        const uint8_t *p = (const uint8_t *)c->v + (first + j) * bytes;
        const v16 scale = v_set1(c->v_scale[first + j]), zero = v_set1(-(real)c->v_zero[first + j]);
        for (int64_t d = 0; d < c->D; d += 16) {
            const v16 u = v_from_w(cache_codes(p, d, c->D - d, nibbles));
            v_put(v + d, v_mul(v_fma(u, mul, zero), scale), c->D - d);
        }
    }
}

/* Scores of one coded query against one block of coded keys. */
static void score_codes(real *s, const kn_cache *c, int64_t block, const int8_t *q, real factor)
{
    const bool nibbles = c->kgrid.bits <= 4;
    const int64_t d4s = (c->D + 3) / 4, bytes = (nibbles ? (d4s + 1) / 2 : d4s) * KN_KEYS * 4;
    const uint8_t *codes = (const uint8_t *)c->k + block * bytes;
    const w16 mul = w_set1(kn_mul(&c->kgrid));
    int32_t sum = 0;
    for (int64_t d = 0; d < c->D; d++)
        sum += q[d];
    for (int64_t j = 0; j < KN_KEYS; j += 16) {
        w16 acc = w_zero();
        for (int64_t d4 = 0; d4 < d4s; d4++) {
            int8_t word[4] = {0};
            for (int64_t i = 0; i < 4 && 4 * d4 + i < c->D; i++)
                word[i] = q[4 * d4 + i];
            acc = w_dot(acc, key_codes(codes, d4, j, nibbles), b_load4(word));
        }
        const int64_t at = block * KN_KEYS + j;
        acc = w_sub(w_mul(acc, mul), w_mul(w_set1(sum), w_load(c->k_zero + at)));
        v_store(s + j, v_mul(v_mul(v_from_w(acc), v_load(c->k_scale + at)), v_set1(factor)));
    }
}

/* s[0..n) <- p; returns the sum. *max <- the greatest score. */
static real exp_row(real *s, int64_t n, real factor, real *max)
{
    for (int64_t j = 0; j < n; j += 16)
        v_put(s + j, v_mul(v_get(s + j, n - j), v_set1(factor)), n - j);
    *max = row_max(s, n);
    v16 sum = v_zero();
    for (int64_t j = 0; j < n; j += 16) {
        const v16 e = v_exp(v_sub(v_get(s + j, n - j), v_set1(*max)));
        sum = v_add(sum, v_keep(e, n - j, v_zero()));
        v_put(s + j, e, n - j);
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

/* o [n, ldo] += p v over keys [at, end) of each query's own range; query i sees keys <= first + i. */
static void add_values(real *o, int64_t ldo, const real *p, int64_t ldp, const real *v, int64_t D, int64_t at,
                       int64_t first, int64_t n)
{
    const int64_t common = kn_min(KN_KEYS, first + 1 - at); /* keys of this block that all queries see */
    if (common > 0)
        tile(o, ldo, p + at, ldp, 1, v, D, n, D, common, true);
    for (int64_t i = 0; i < n; i++) {
        const int64_t from = kn_max(common, 0), to = kn_min(KN_KEYS, first + i + 1 - at);
        if (from < to)
            tile(o + i * ldo, ldo, p + i * ldp + at + from, ldp, 1, v + from * D, D, 1, D, to - from, true);
    }
}

static void attend_queries(const kn_attend_job *j, int64_t i0, int64_t n)
{
    const kn_cache *c = j->cache;
    const int64_t D = c->D, first = j->first + i0, last = first + n - 1, ld = c->capacity;
    const bool key_codes_held = c->kgrid.bits != 0, value_codes_held = c->vgrid.bits != 0;
    real *s = j->scratch, *block = s + KN_QUERIES * ld, *query = block + KN_KEYS * D;
    const real c1 = 1 / sqrt((real)D);
    if (j->codes && !key_codes_held)
        for (int64_t i = 0; i < n; i++)
            decode8(query + i * D, j->codes + (i0 + i) * j->ld_codes, D, j->q_scale[(i0 + i) * j->ld_scale], 1, 0);
    for (int64_t at = 0; at <= last; at += KN_KEYS) {
        if (j->codes && key_codes_held) {
            for (int64_t i = 0; i < n; i++)
                score_codes(s + i * ld + at, c, at / KN_KEYS, j->codes + (i0 + i) * j->ld_codes,
                            j->q_scale[(i0 + i) * j->ld_scale] * c1);
            continue;
        }
        const real *k = (const real *)c->k + at * D;
        if (key_codes_held) {
            decode_key_block(block, c, at / KN_KEYS);
            k = block;
        }
        if (j->codes)
            tile(s + at, ld, query, D, 1, k, KN_KEYS, n, KN_KEYS, D, false);
        else
            tile(s + at, ld, j->q + i0 * j->ldq, j->ldq, 1, k, KN_KEYS, n, KN_KEYS, D, false);
    }
    real inverse[KN_QUERIES];
    for (int64_t i = 0; i < n; i++) {
        real max;
        const real sum = exp_row(s + i * ld, first + i + 1, j->codes && key_codes_held ? 1 : c1, &max);
        inverse[i] = 1 / sum;
        if (j->lse)
            j->lse[(i0 + i) * j->ld_lse] = max + log(sum);
        if (j->quantize_probs)
            round_row(s + i * ld, first + i + 1, inverse[i]);
        for (int64_t d = 0; d < D; d++)
            j->o[(i0 + i) * j->ldo + d] = 0;
    }
    for (int64_t at = 0; at <= last; at += KN_KEYS) {
        const real *v = (const real *)c->v + at * D;
        if (value_codes_held) {
            decode_value_rows(block, c, at, kn_min(KN_KEYS, last + 1 - at));
            v = block;
        }
        add_values(j->o + i0 * j->ldo, j->ldo, s, ld, v, D, at, first, n);
    }
    if (j->quantize_probs)
        return;
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < D; d += 16) {
            real *o = j->o + (i0 + i) * j->ldo + d;
            v_put(o, v_mul(v_get(o, D - d), v_set1(inverse[i])), D - d);
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
    for (int64_t j = 0; j < n; j += 16) {
        const v16 e = v_exp(v_fma(v_get(p + j, n - j), c, l));
        const v16 g = v_mul(v_mul(e, v_add(v_get(ds + j, n - j), d)), c);
        v_put(p + j, v_keep(e, keys - j, v_zero()), n - j);
        v_put(ds + j, v_keep(g, keys - j, v_zero()), n - j);
    }
}
