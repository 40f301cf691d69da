/* picture_body.h - loops of convolution, pooling and fixed-point requantization (included by table_body.h).
 * The integer loops are plain C: each instruction set's compiler makes its own vectors of them, and integers have one result. */

/* y += a * b, fused */
static void multiply_add(real *y, const real *a, const real *b, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16)
        v_put(y + i, v_fma(v_get(a + i, n - i), v_get(b + i, n - i), v_get(y + i, n - i)), n - i);
}

static void multiply_add8(int32_t *restrict y, const int8_t *restrict a, const int8_t *restrict b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += a[i] * b[i];
}

/* y = max(y, x) */
static void max8(int8_t *restrict y, const int8_t *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] > y[i] ? x[i] : y[i];
}

/* kn_requantize_one of M x N sums. */
static void requantize(int8_t *restrict q, const int32_t *restrict sum, int64_t M, const kn_requant *r)
{
    const int64_t N = r->n, zero = r->zero, lo = r->lo, hi = r->hi;
    const int64_t *restrict multiplier = r->multiplier, *restrict shift = r->shift, *restrict half = r->half;
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            int64_t v = ((sum[m * N + n] * multiplier[n] + half[n]) >> shift[n]) + zero;
            v = v < lo ? lo : v;
            q[m * N + n] = (int8_t)(v > hi ? hi : v);
        }
}
