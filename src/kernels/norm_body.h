/* norm_body.h - RMS and layer normalization (included by table_body.h). Formulas: kernels.h.
 * Gradients of the weights run over a strip of columns, down the rows in blocks of 64 that are added in order. */

static void rmsnorm(real *y, real *r, const real *x, const real *w, int64_t M, int64_t C, real eps)
{
    for (int64_t m = 0; m < M; m++, x += C, y += C) {
        const real inverse = 1 / sqrt(sum_squares(x, C) / (real)C + eps);
        const v16 factor = v_set1(inverse);
        for (int64_t i = 0; i < C; i += 16)
            v_put(y + i, v_mul(v_mul(v_get(x + i, C - i), factor), v_get(w + i, C - i)), C - i);
        if (r)
            r[m] = inverse;
    }
}

static void rmsnorm_dx(real *dx, const real *dy, const real *x, const real *w, const real *r, int64_t M, int64_t C)
{
    for (int64_t m = 0; m < M; m++, x += C, dy += C, dx += C) {
        v16 sum = v_zero();
        for (int64_t i = 0; i < C; i += 16)
            sum = v_fma(v_mul(v_get(dy + i, C - i), v_get(w + i, C - i)), v_get(x + i, C - i), sum);
        const real s = v_sum(sum) / (real)C;
        const v16 a = v_set1(r[m]), b = v_set1(-(r[m] * r[m] * r[m] * s));
        for (int64_t i = 0; i < C; i += 16) {
            const v16 u = v_mul(v_get(dy + i, C - i), v_get(w + i, C - i));
            const v16 t = v_fma(b, v_get(x + i, C - i), v_mul(a, u));
            v_put(dx + i, v_add(v_get(dx + i, C - i), t), C - i);
        }
    }
}

/* dw[0..16 * vectors), the last vector cut to `left` */
INLINE void rmsnorm_dw_fixed(const int vectors, real *dw, const real *dy, const real *x, const real *r, int64_t M,
                             int64_t C, int64_t left)
{
    v16 total[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    for (int64_t at = 0; at < M; at += 64) {
        v16 sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
        for (int64_t m = at; m < at + 64 && m < M; m++) {
            const v16 inverse = v_set1(r[m]);
            UNROLL
            for (int v = 0; v < vectors; v++) {
                const int64_t i = m * C + 16 * v;
                sum[v] = v_fma(v_mul(v_get(dy + i, left - 16 * v), v_get(x + i, left - 16 * v)), inverse, sum[v]);
            }
        }
        UNROLL
        for (int v = 0; v < vectors; v++)
            total[v] = v_add(total[v], sum[v]);
    }
    UNROLL
    for (int v = 0; v < vectors; v++)
        v_put(dw + 16 * v, v_add(v_get(dw + 16 * v, left - 16 * v), total[v]), left - 16 * v);
}
static void rmsnorm_dw(real *dw, const real *dy, const real *x, const real *r, int64_t M, int64_t C, int64_t n)
{
    int64_t c = 0;
    for (; c + 64 <= n; c += 64)
        rmsnorm_dw_fixed(4, dw + c, dy + c, x + c, r, M, C, 64);
    for (; c < n; c += 16)
        rmsnorm_dw_fixed(1, dw + c, dy + c, x + c, r, M, C, n - c);
}

static void layernorm(real *y, real *mean, real *r, const real *x, const real *w, const real *b, int64_t M, int64_t C,
                      real eps)
{
    for (int64_t m = 0; m < M; m++, x += C, y += C) {
        v16 sum = v_zero(), square = v_zero();
        for (int64_t i = 0; i < C; i += 16)
            sum = v_add(sum, v_get(x + i, C - i));
        const real mu = v_sum(sum) / (real)C;
        for (int64_t i = 0; i < C; i += 16) {
            const v16 d = v_keep(v_sub(v_get(x + i, C - i), v_set1(mu)), C - i, v_zero());
            square = v_fma(d, d, square);
        }
        const real inverse = 1 / sqrt(v_sum(square) / (real)C + eps);
        for (int64_t i = 0; i < C; i += 16) {
            const v16 t = v_mul(v_sub(v_get(x + i, C - i), v_set1(mu)), v_set1(inverse));
            v_put(y + i, v_fma(t, v_get(w + i, C - i), v_get(b + i, C - i)), C - i);
        }
        if (mean)
            mean[m] = mu;
        if (r)
            r[m] = inverse;
    }
}

static void layernorm_dx(real *dx, const real *dy, const real *x, const real *w, const real *mean, const real *r,
                         int64_t M, int64_t C)
{
    for (int64_t m = 0; m < M; m++, x += C, dy += C, dx += C) {
        const v16 mu = v_set1(mean[m]), rm = v_set1(r[m]);
        v16 sum = v_zero(), dot = v_zero();
        for (int64_t i = 0; i < C; i += 16) { /* u is 0 behind the row's end, whatever the normalized value there */
            const v16 u = v_mul(v_get(dy + i, C - i), v_get(w + i, C - i));
            sum = v_add(sum, u);
            dot = v_fma(u, v_mul(v_sub(v_get(x + i, C - i), mu), rm), dot);
        }
        const v16 mean_u = v_set1(v_sum(sum) / (real)C), mean_dot = v_set1(-(v_sum(dot) / (real)C));
        for (int64_t i = 0; i < C; i += 16) {
            const v16 u = v_mul(v_get(dy + i, C - i), v_get(w + i, C - i));
            const v16 z = v_mul(v_sub(v_get(x + i, C - i), mu), rm);
            const v16 t = v_fma(z, mean_dot, v_sub(u, mean_u));
            v_put(dx + i, v_fma(rm, t, v_get(dx + i, C - i)), C - i);
        }
    }
}

/* dw[0..n), db[0..n) (either may be NULL), n <= 16 */
static void layernorm_dw_strip(real *dw, real *db, const real *dy, const real *x, const real *mean, const real *r,
                               int64_t M, int64_t C, int64_t n)
{
    v16 total_w = v_zero(), total_b = v_zero();
    for (int64_t at = 0; at < M; at += 64) {
        v16 sum_w = v_zero(), sum_b = v_zero();
        for (int64_t m = at; m < at + 64 && m < M; m++) {
            const v16 g = v_get(dy + m * C, n);
            const v16 z = v_mul(v_sub(v_get(x + m * C, n), v_set1(mean[m])), v_set1(r[m]));
            sum_w = v_fma(g, z, sum_w);
            sum_b = v_add(sum_b, g);
        }
        total_w = v_add(total_w, sum_w);
        total_b = v_add(total_b, sum_b);
    }
    if (dw)
        v_put(dw, v_add(v_get(dw, n), total_w), n);
    if (db)
        v_put(db, v_add(v_get(db, n), total_b), n);
}

static void layernorm_dw(real *dw, real *db, const real *dy, const real *x, const real *mean, const real *r, int64_t M,
                         int64_t C, int64_t n)
{
    for (int64_t c = 0; c < n; c += 16)
        layernorm_dw_strip(dw ? dw + c : NULL, db ? db + c : NULL, dy + c, x + c, mean, r, M, C, kn_min(16, n - c));
}
