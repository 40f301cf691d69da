/* linear_body.h - the integer product (included by table_body.h).
 *   acc[m,n] = sum_k (a[m,k] - zero[m]) w[n,k] = sum_k (a[m,k] + 128) w[n,k] - (128 + zero[m]) sum_k w[n,k]
 * a + 128 is unsigned, as byte products want; everything is exact modulo 2^32, and the result fits in 32 bits.
 * Epilogue: kn_linear_int. */

/* rows x panels is the register tile, all three constants where this is called. */
INLINE void linear_fixed(const int rows, const int panels, const bool grouped, const kn_linear_job *j, int64_t m,
                         int64_t panel)
{
    const kn_packed *w = j->w;
    const int64_t stride = w->panels * 16, column = panel * 16, left = w->n - column;
    const int64_t group4 = grouped ? w->group / 4 : w->k4;
    const int8_t *a = j->a + m * j->lda, *b = w->w + panel * w->k4 * 64;
    v16 y[8][4];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++)
            y[r][p] = v_zero();
    for (int64_t g = 0; g < w->groups; g++) {
        w16 acc[8][4];
        for (int r = 0; r < rows; r++) {
            const w16 lift = w_set1(-128 - (j->a_zero ? j->a_zero[(m + r) * j->zero_row] : 0));
            for (int p = 0; p < panels; p++)
                acc[r][p] = w_mul(lift, w_load(w->sum + g * stride + column + 16 * p));
        }
        const int64_t end = kn_min((g + 1) * group4, w->k4);
        for (int64_t k = g * group4; k < end; k++) {
            b64 bv[4];
            for (int p = 0; p < panels; p++)
                bv[p] = b_load(b + (p * w->k4 + k) * 64);
            for (int r = 0; r < rows; r++) {
                const b64 av = b_flip(b_load4(a + r * j->lda + 4 * k));
                for (int p = 0; p < panels; p++)
                    acc[r][p] = w_dot(acc[r][p], av, bv[p]);
            }
        }
        for (int r = 0; r < rows; r++) {
            const v16 sa = v_set1(j->a_scale[(m + r) * j->scale_row + g * j->scale_group]);
            for (int p = 0; p < panels; p++) {
                const v16 sw = v_load(w->scale + g * stride + column + 16 * p), f = v_from_w(acc[r][p]);
                if (grouped)
                    y[r][p] = v_fma(f, v_mul(sw, sa), y[r][p]);
                else
                    y[r][p] = v_mul(v_mul(f, sw), sa);
            }
        }
    }
    for (int p = 0; p < panels; p++) {
        const v16 bias = j->b ? v_get(j->b + column + 16 * p, left - 16 * p) : v_zero();
        for (int r = 0; r < rows; r++) {
            const v16 out = j->b ? v_add(y[r][p], bias) : y[r][p];
            v_put(j->y + (m + r) * w->n + column + 16 * p, out, left - 16 * p);
        }
    }
}

INLINE void linear_rows(const int panels, const int most, const bool grouped, const kn_linear_job *j, int64_t panel)
{
    int64_t m = 0;
    for (; m + most <= j->M; m += most)
        linear_fixed(most, panels, grouped, j, m, panel);
    if (most > 4 && j->M - m >= 4) {
        linear_fixed(4, panels, grouped, j, m, panel);
        m += 4;
    }
    switch (j->M - m) {
    case 3:
        linear_fixed(3, panels, grouped, j, m, panel);
        break;
    case 2:
        linear_fixed(2, panels, grouped, j, m, panel);
        break;
    case 1:
        linear_fixed(1, panels, grouped, j, m, panel);
        break;
    default:
        break;
    }
}

static void linear_plain(const kn_linear_job *j)
{
    int64_t p = j->panel;
    for (; p + LINEAR_PANELS <= j->panel + j->panels; p += LINEAR_PANELS)
        linear_rows(LINEAR_PANELS, LINEAR_ROWS, false, j, p);
    for (; p < j->panel + j->panels; p++)
        linear_rows(1, LINEAR_ROWS, false, j, p);
}

static void linear_grouped(const kn_linear_job *j)
{
    int64_t p = j->panel;
    for (; p + LINEAR_PANELS <= j->panel + j->panels; p += LINEAR_PANELS)
        linear_rows(LINEAR_PANELS, LINEAR_GROUP_ROWS, true, j, p);
    for (; p < j->panel + j->panels; p++)
        linear_rows(1, LINEAR_GROUP_ROWS, true, j, p);
}

static void linear(const kn_linear_job *j)
{
    if (j->w->groups > 1 || j->w->group < j->w->k)
        linear_grouped(j);
    else
        linear_plain(j);
}
