/* picture_body.h - loops of convolution, pooling and fixed-point requantization (included by table_body.h).
 * The integer loops are plain C: each instruction set's compiler makes its own vectors of them, and integers have one result. */

/* y [M, N] = act(y + b), b NULL: 0 */
static void finish_rows(real *restrict y, const real *restrict b, int64_t M, int64_t N, kn_activation act)
{
    const real top = act == KN_RELU6 ? 6 : (real)INFINITY;
    for (int64_t m = 0; m < M; m++, y += N) {
        for (int64_t n = 0; b && n < N; n++)
            y[n] += b[n];
        for (int64_t n = 0; act != KN_LINEAR && n < N; n++) {
            const real v = y[n] > 0 ? y[n] : 0;
            y[n] = v < top ? v : top;
        }
    }
}

/* d [M, N] = d where the activation with the result y passed it, else 0 (y NULL: d as it is); sum [N] = sum_m d (NULL: not wanted), in
 * floats over stretches of rows, those added in double */
static void gate_rows(real *restrict d, double *restrict sum, const real *restrict y, int64_t M, int64_t N, kn_activation act)
{
    enum { WIDE = 64, STRETCH = 64 };
    const real top = act == KN_RELU6 ? 6 : (real)INFINITY;
    for (int64_t from = 0; from < N; from += WIDE) {
        const int64_t wide = kn_min(WIDE, N - from);
        for (int64_t i = 0; sum && i < wide; i++)
            sum[from + i] = 0;
        for (int64_t m0 = 0; m0 < M; m0 += STRETCH) {
            real part[WIDE] = {0};
            for (int64_t m = m0; m < kn_min(M, m0 + STRETCH); m++) {
                real *restrict to = d + m * N + from;
                const real *restrict of = y ? y + m * N + from : NULL;
                for (int64_t i = 0; of && i < wide; i++) {
                    const real keep = to[i];
                    to[i] = ((of[i] > 0) & (of[i] < top)) ? keep : 0;
                }
                for (int64_t i = 0; i < wide; i++)
                    part[i] += to[i];
            }
            for (int64_t i = 0; sum && i < wide; i++)
                sum[from + i] += (double)part[i];
        }
    }
}

/* One window: y [C] the largest of its K x K points, rows of points `row` apart, at (NULL: not wanted) the first that is as large. */
static void largest_point(real *restrict y, uint8_t *restrict at, const real *restrict x, int64_t C, int64_t K, int64_t row)
{
    for (int64_t c = 0; c < C; c += 16) {
        const int64_t n = kn_min(16, C - c);
        v16 best = v_get(x + c, n), place = v_zero();
        for (int64_t k = 1; k < K * K; k++) {
            const v16 v = v_get(x + k / K * row + k % K * C + c, n);
            place = v_if_more(v, best, v_set1((real)k), place);
            best = v_if_more(v, best, v, best);
        }
        v_put(y + c, best, n);
        if (at)
            w_to_s8((int8_t *)at + c, w_from_v(place), n);
    }
}

/* dx at the chosen point of each window (+)= dy, at the others (+)= 0 */
static void largest_point_dx(real *restrict dx, const real *restrict dy, const uint8_t *restrict at, int64_t C, int64_t K, int64_t row,
                             bool add)
{
    for (int64_t c = 0; c < C; c += 16) {
        const int64_t n = kn_min(16, C - c);
        const v16 d = v_get(dy + c, n), place = v_from_w(w_from_u8(at + c, n));
        for (int64_t k = 0; k < K * K; k++) {
            real *to = dx + k / K * row + k % K * C + c;
            const v16 from = v_if_more(place, v_set1((real)k - (real)0.5), d, v_zero());
            const v16 v = v_if_more(v_set1((real)k + (real)0.5), place, from, v_zero());
            v_put(to, add ? v_add(v_get(to, n), v) : v, n);
        }
    }
}

/* y[i] (+)= x[i] * factor where the i-th number of 53 bits from `state` on is at least `least`, else 0 */
static void drop(real *restrict y, const real *restrict x, int64_t n, uint64_t state, uint64_t least, real factor, bool add)
{
    for (int64_t i = 0; !add && i < n; i++) {
        const uint64_t u = nb_random_mix(state + (uint64_t)i * NB_RANDOM_STEP) >> 11;
        y[i] = u >= least ? x[i] * factor : 0;
    }
    for (int64_t i = 0; add && i < n; i++) {
        const uint64_t u = nb_random_mix(state + (uint64_t)i * NB_RANDOM_STEP) >> 11;
        y[i] += u >= least ? x[i] * factor : 0;
    }
}

static void max8(int8_t *restrict y, const int8_t *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] > y[i] ? x[i] : y[i];
}

/* kn_requantize_one of M x N sums. */
static void requantize(int8_t *restrict q, const int32_t *restrict sum, int64_t M, const kn_requant *r)
{
    const int64_t N = r->n, zero = r->zero, lo = r->lo, hi = r->hi;
    int64_t at = 0;
    for (; at + 16 <= N; at += 16)
        requantize16(q, sum, M, r, at);
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = at; n < N; n++) {
            int64_t v = ((sum[m * N + n] * r->multiplier[n] + r->half[n]) >> r->shift[n]) + zero;
            v = v < lo ? lo : v;
            q[m * N + n] = (int8_t)(v > hi ? hi : v);
        }
}

/* y [M, N] = act(sum * scale[n]) */
static void value_rows(real *restrict y, const int32_t *restrict sum, const real *restrict scale, int64_t M, int64_t N, kn_activation act)
{
    const real top = act == KN_RELU6 ? 6 : (real)3e38, bottom = act == KN_LINEAR ? (real)-3e38 : 0;
    for (int64_t m = 0; m < M; m++, y += N, sum += N)
        for (int64_t n = 0; n < N; n++) {
            const real v = (real)sum[n] * scale[n], low = v > bottom ? v : bottom;
            y[n] = low < top ? low : top;
        }
}

/* Channels [0, n) of a row of a depthwise convolution, n <= 16 and K constants where this is called. */
INLINE void depthwise_lanes(real *restrict y, const real *restrict x, const real *restrict w, int64_t OW, int64_t C, int64_t K, int64_t n,
                            int64_t step, int64_t row, int64_t apart, bool add)
{
    enum { MOST = 9 };
    v16 kept[MOST];
    if (K * K <= MOST) {
        UNROLL for (int64_t k = 0; k < K * K; k++) kept[k] = v_get(w + k * C, n);
    }
    for (int64_t o = 0; o < OW; o++, y += C, x += step) {
        v16 sum = add ? v_get(y, n) : v_zero();
        UNROLL for (int64_t k = 0; k < K * K; k++)
            sum = v_fma(v_get(x + k / K * row + k % K * apart, n), K * K <= MOST ? kept[k] : v_get(w + k * C, n), sum);
        v_put(y, sum, n);
    }
}

/* A row of a depthwise convolution: y [OW, C] = 0 (or y, where add) + sum_k x[o * step + at_k, c] w[k, c], k over K x K points whose rows are
 * `row` numbers apart, its columns `apart` */
static void depthwise_row(real *restrict y, const real *restrict x, const real *restrict w, int64_t OW, int64_t C, int64_t K, int64_t step,
                          int64_t row, int64_t apart, bool add)
{
    for (int64_t c = 0; c < C; c += 16) {
        if (K == 3 && C - c >= 16)
            depthwise_lanes(y + c, x + c, w + c, OW, C, 3, 16, step, row, apart, add);
        else
            depthwise_lanes(y + c, x + c, w + c, OW, C, K, kn_min(16, C - c), step, row, apart, add);
    }
}

/* dw [k, c] += sum_o x[o * step + at_k, c] dy[o, c] of such a row */
static void depthwise_row_dw(real *restrict dw, const real *restrict x, const real *restrict dy, int64_t OW, int64_t C, int64_t K, int64_t step,
                             int64_t row, int64_t apart)
{
    for (int64_t c = 0; c < C; c += 16)
        for (int64_t k = 0; k < K * K; k++) {
            const real *from = x + k / K * row + k % K * apart + c;
            v16 sum = v_get(dw + k * C + c, C - c);
            for (int64_t o = 0; o < OW; o++)
                sum = v_fma(v_get(from + o * step, C - c), v_get(dy + o * C + c, C - c), sum);
            v_put(dw + k * C + c, sum, C - c);
        }
}

/* first [C] += sum_m a[m, c]; second [C] (NULL: not wanted) += sum_m (a[m, c] - a_mean[c]) (b[m, c] - b_mean[c]), in reals over stretches of rows, those
 * added in double */
static void column_sums(double *restrict first, double *restrict second, const real *a, const real *a_mean, const real *b, const real *b_mean, int64_t M,
                        int64_t C)
{
    enum { WIDE = 64, STRETCH = 64 };
    for (int64_t from = 0; from < C; from += WIDE) {
        const int64_t wide = kn_min(WIDE, C - from);
        for (int64_t m0 = 0; m0 < M; m0 += STRETCH) {
            real part[WIDE] = {0}, product[WIDE] = {0};
            for (int64_t m = m0; m < kn_min(M, m0 + STRETCH); m++) {
                const real *restrict of_a = a + m * C + from, *restrict of_b = b + m * C + from;
                for (int64_t i = 0; i < wide; i++)
                    part[i] += of_a[i];
                for (int64_t i = 0; second && i < wide; i++)
                    product[i] += (of_a[i] - a_mean[from + i]) * (of_b[i] - b_mean[from + i]);
            }
            for (int64_t i = 0; i < wide; i++)
                first[from + i] += (double)part[i];
            for (int64_t i = 0; second && i < wide; i++)
                second[from + i] += (double)product[i];
        }
    }
}

/* y [M, C] = a p[c] + b q[c] + r[c] (b NULL: a p[c] + r[c]); add: += */
static void column_maps(real *y, const real *a, const real *p, const real *b, const real *q, const real *r, int64_t M, int64_t C, bool add)
{
    for (int64_t m = 0; m < M; m++, y += C, a += C)
        for (int64_t c = 0; c < C; c += 16) {
            v16 v = v_fma(v_get(a + c, C - c), v_get(p + c, C - c), v_get(r + c, C - c));
            if (b)
                v = v_fma(v_get(b + m * C + c, C - c), v_get(q + c, C - c), v);
            v_put(y + c, add ? v_add(v_get(y + c, C - c), v) : v, C - c);
        }
}

static void depthwise_row8(int32_t *restrict y, const int8_t *restrict x, const int8_t *restrict w, const int32_t *restrict b, int64_t OW,
                           int64_t C, int64_t K, int64_t step, int64_t row, int64_t apart)
{
    for (int64_t c = 0; c < C; c += 16) {
        const int64_t n = kn_min(16, C - c);
        int32_t part[16] = {0};
        memcpy(part, b + c, (size_t)n * sizeof *part);
        const w16 start = w_load(part);
        for (int64_t o = 0; o < OW; o++) {
            w16 sum = start;
            for (int64_t ky = 0; ky < K; ky++)
                for (int64_t kx = 0; kx < K; kx++)
                    sum = w_add(sum, w_mul(w_from_s8(x + o * step + ky * row + kx * apart + c, n), w_from_s8(w + (ky * K + kx) * C + c, n)));
            if (n == 16) {
                w_store(y + o * C + c, sum);
            } else {
                w_store(part, sum);
                memcpy(y + o * C + c, part, (size_t)n * sizeof *part);
            }
        }
    }
}

/* fakequant/op_fake.c: sums[0] = sum dy (y - x inside), sums[1] = sum dy outside; inside: lo <= x inv <= hi (rounded: 1, or 0 where x takes no part) */
static void range_sums(real *sums, const real *dy, const real *x, const real *y, int64_t n, real inv, real lo, real hi, real rounded)
{
    v16 scale = v_zero(), outside = v_zero();
    for (int64_t i = 0; i < n; i += 16) {
        const v16 xv = v_get(x + i, n - i), d = v_get(dy + i, n - i), r = v_mul(xv, v_set1(inv));
        const v16 in = v_if_at_least(r, lo, v_if_at_least(v_sub(v_zero(), r), -hi, v_set1(1)));
        scale = v_add(scale, v_mul(d, v_sub(v_get(y + i, n - i), v_mul(xv, v_mul(in, v_set1(rounded))))));
        outside = v_add(outside, v_mul(d, v_sub(v_set1(1), in)));
    }
    sums[0] = v_sum(scale);
    sums[1] = v_sum(outside);
}

/* dx = dy (add: +=) where lo <= x inv <= hi */
static void range_pass(real *dx, const real *dy, const real *x, int64_t n, real inv, real lo, real hi, bool add)
{
    for (int64_t i = 0; i < n; i += 16) {
        const v16 r = v_mul(v_get(x + i, n - i), v_set1(inv));
        const v16 d = v_if_at_least(r, lo, v_if_at_least(v_sub(v_zero(), r), -hi, v_get(dy + i, n - i)));
        v_put(dx + i, add ? v_add(v_get(dx + i, n - i), d) : d, n - i);
    }
}

/* bits [n / 8, up]: 1 where lo <= x inv <= hi, zeros behind n */
static void range_bits(uint8_t *bits, const real *x, int64_t n, real inv, real lo, real hi)
{
    for (int64_t i = 0; i < n; i += 16) {
        const v16 r = v_mul(v_get(x + i, n - i), v_set1(inv));
        const v16 in = v_keep(v_if_at_least(r, lo, v_if_at_least(v_sub(v_zero(), r), -hi, v_set1(1))), n - i, v_zero());
        const uint32_t found = v_bits(in);
        bits[i / 8] = (uint8_t)found;
        if (n - i > 8)
            bits[i / 8 + 1] = (uint8_t)(found >> 8);
    }
}

/* dx = dy (add: +=) where its bit is 1 */
static void bits_pass(real *dx, const real *dy, const uint8_t *bits, int64_t n, bool add)
{
    for (int64_t i = 0; i < n; i += 16) {
        const uint32_t which = (uint32_t)bits[i / 8] | (n - i > 8 ? (uint32_t)bits[i / 8 + 1] << 8 : 0);
        const v16 d = v_by_bits(v_get(dy + i, n - i), which);
        v_put(dx + i, add ? v_add(v_get(dx + i, n - i), d) : d, n - i);
    }
}

/* Of what is finite; min > max where nothing is */
static void finite_min_max(real *min, real *max, const real *x, int64_t n)
{
    const v16 most = v_set1((real)INFINITY), least = v_set1(-(real)INFINITY);
    v16 low = most, high = least;
    for (int64_t i = 0; i < n; i += 16) {
        const v16 v = v_get(x + i, n - i), size = v_keep(v_abs(v), n - i, most);
        low = v_min(low, v_if_more(most, size, v, most));
        high = v_max(high, v_if_more(most, size, v, least));
    }
    *min = v_bottom(low);
    *max = v_top(high);
}
