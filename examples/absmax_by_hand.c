/* absmax_by_hand.c - the two textbook quantizers, by hand and by the library.
 *
 *   absmax (symmetric):      scale = max|x| / 127             q = round(x / scale)          x^ = q scale
 *   zero point (asymmetric): scale = (max - min) / 255        zero = round(-128 - min / scale)
 *                            q = round(x / scale) + zero      x^ = (q - zero) scale
 *
 * Round means: to the nearest integer, halves to the even one. The scale is the step between two levels (some texts call
 * its inverse the scale). What to see: both agree with kn_encode code by code; the error is at most half a step; a
 * one-sided tensor wastes half the codes of a symmetric grid; one outlier costs everybody precision, so that scales are
 * shared by rows or groups, not by whole matrices.
 */
#include <math.h>
#include <nibble/kernels.h>
#include <stdio.h>

enum { N = 8, ROWS = 64, COLS = 256 };

/* Codes and the scale of x [n]; returns the largest error of what comes back. */
static double absmax_by_hand(int *q, double *scale, const real *x, int n)
{
    double most = 0, worst = 0;
    for (int i = 0; i < n; i++)
        most = fmax(most, fabs((double)x[i]));
    *scale = most / 127;
    for (int i = 0; i < n; i++) {
        q[i] = *scale > 0 ? (int)rint((double)x[i] / *scale) : 0; /* all zeros: nothing to divide by */
        worst = fmax(worst, fabs((double)x[i] - q[i] * *scale));
    }
    return worst;
}

static double zero_point_by_hand(int *q, double *scale, int *zero, const real *x, int n)
{
    double min = 0, max = 0, worst = 0; /* the range holds 0, so that 0 has a code */
    for (int i = 0; i < n; i++) {
        min = fmin(min, (double)x[i]);
        max = fmax(max, (double)x[i]);
    }
    *scale = (max - min) / 255;
    *zero = *scale > 0 ? (int)rint(-128 - min / *scale) : 0;
    for (int i = 0; i < n; i++) {
        double code = *scale > 0 ? rint((double)x[i] / *scale) + *zero : 0;
        q[i] = (int)fmin(fmax(code, -128), 127);
        worst = fmax(worst, fabs((double)x[i] - (q[i] - *zero) * *scale));
    }
    return worst;
}

static void print_codes(const char *what, const int *q, double scale, int zero, double error)
{
    printf("%-10s", what);
    for (int i = 0; i < N; i++)
        printf(" %5d", q[i]);
    printf("   scale %.6f  zero %d  largest error %.6f\n", scale, zero, error);
}

/* The library's codes of x [1, N]; false where one differs from q. */
static bool library_agrees(const kn_grid *g, const real *x, const int *q)
{
    kn_codes c;
    if (kn_codes_new(&c, g, 1, N) != NB_OK)
        return false;
    kn_encode(&c, x);
    bool same = true;
    for (int i = 0; i < N; i++)
        same = same && c.q[i] == q[i];
    kn_codes_free(&c);
    return same;
}

/* Root mean square error of w [ROWS, COLS] on a grid, and its bytes, printed as a row of the table. */
static double coded(const char *what, const kn_grid *g, const real *w)
{
    static real back[ROWS * COLS];
    kn_codes c;
    if (kn_codes_new(&c, g, ROWS, COLS) != NB_OK)
        return INFINITY;
    kn_encode(&c, w);
    kn_decode(back, &c, 0, ROWS);
    double sum = 0;
    for (int i = 0; i < ROWS * COLS; i++)
        sum += ((double)w[i] - (double)back[i]) * ((double)w[i] - (double)back[i]);
    double scale_bytes = g->scale == KN_SCALE_F32 ? 4 : 2,
           bytes = ROWS * COLS * g->bits / 8.0 + (double)c.n_scales * scale_bytes;
    printf("%-34s %8.0f bytes  %5.2f bits a weight  error %.6f\n", what, bytes, 8 * bytes / (ROWS * COLS),
           sqrt(sum / (ROWS * COLS)));
    kn_codes_free(&c);
    return sqrt(sum / (ROWS * COLS));
}

int main(void)
{
    const real x[N] = {(real)1.2, (real)-0.5, (real)-4.3, (real)1.2, (real)-3.1, (real)0.8, (real)2.4, (real)5.4};
    const real positive[N] = {(real)0.1, (real)0.7, (real)1.9, 0, (real)3.2, (real)2.5, (real)0.4, (real)1.1};
    const kn_grid symmetric = kn_grid_int(8, true, false, KN_TENSOR, 0, KN_SCALE_F32);
    const kn_grid asymmetric = kn_grid_int(8, false, true, KN_TENSOR, 0, KN_SCALE_F32);
    int q[N], zero;
    double scale, error, half;

    error = absmax_by_hand(q, &scale, x, N);
    print_codes("absmax", q, scale, 0, error);
    bool good = library_agrees(&symmetric, x, q) && q[7] == 127 && error <= scale / 2;
    error = zero_point_by_hand(q, &scale, &zero, x, N);
    print_codes("zero point", q, scale, zero, error);
    good = good && library_agrees(&asymmetric, x, q) && error <= scale / 2;

    puts("\none-sided values, as after a ReLU:");
    half = absmax_by_hand(q, &scale, positive, N);
    print_codes("absmax", q, scale, 0, half); /* half of the codes is never used */
    good = good && library_agrees(&symmetric, positive, q);
    error = zero_point_by_hand(q, &scale, &zero, positive, N);
    print_codes("zero point", q, scale, zero, error); /* steps of half the size */
    good = good && library_agrees(&asymmetric, positive, q) && error < half;

    puts("\na matrix of 64 x 256, deviation 0.05, with one outlier of 1:");
    static real w[ROWS * COLS];
    for (int i = 0; i < ROWS * COLS; i++)
        w[i] = (real)(0.05 * nb_random_normal(1, 0, (uint64_t)i));
    w[1000] = 1;
    const kn_grid row = kn_grid_int(4, false, false, KN_ROW, 0, KN_SCALE_F32);
    const kn_grid group = kn_grid_int(4, false, false, KN_GROUP, 32, KN_SCALE_F16),
                  tensor = kn_grid_int(4, false, false, KN_TENSOR, 0, KN_SCALE_F32);
    printf("%-34s %8d bytes  32.00 bits a weight\n", "fp32", ROWS * COLS * 4);
    double e8 = coded("int8, one scale", &symmetric, w), e4 = coded("int4, one scale", &tensor, w);
    double er = coded("int4, a scale per row", &row, w), eg = coded("int4, a scale per 32, fp16", &group, w);
    good = good && e8 < e4 && er < e4 && eg < er;
    if (!good)
        fprintf(stderr, "the library's codes or errors are not what the formulas say; %s\n", nb_fail_message());
    return good ? 0 : 1;
}
