/* test_bitsandbytes_client.c - bitsandbytes on the same numbers: codes of NF4 and FP4, the product of LLM.int8(). Skipped where NIBBLE_PYTHON has no
 * bitsandbytes; made with bitsandbytes 0.50.2 on torch 2.15.0, CPU.
 */
#include "clients.h"
#include "kernels/kernels.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>

enum { M = 24, N = 48, K = 192, COUNT = N * K };

typedef struct {
    int32_t nf4[COUNT], fp4[COUNT];
    float absmax[2][COUNT / 64], y[M * N];
} theirs;

/* Numbers that float16 holds, so that both sides see the same ones. */
static float half(double x)
{
    return nb_half_to(nb_half_from((float)x));
}

static float x[M * K], w[N * K];

static void draw(void)
{
    for (int i = 0; i < N * K; i++)
        w[i] = half(0.05 * nb_random_normal(3, 1, (uint64_t)i));
    for (int i = 0; i < M * K; i++)
        x[i] = half(nb_random_normal(3, 2, (uint64_t)i) * (i % K % 41 == 7 ? 9 : 1)); /* columns of outliers */
}

/* False: there is no bitsandbytes. */
static bool ask(theirs *t)
{
    const char *python = client("NIBBLE_PYTHON");
    if (!python)
        return false;
    if (run("'%s' -c 'import bitsandbytes' >/dev/null 2>&1", python)) {
        printf("left out: NIBBLE_PYTHON has no bitsandbytes\n");
        return false;
    }
    const int32_t size[3] = {M, N, K};
    FILE *f = fopen(scratch_path("in"), "wb");
    ck_assert(f && fwrite(size, sizeof size, 1, f) == 1 && fwrite(x, sizeof x, 1, f) == 1 && fwrite(w, sizeof w, 1, f) == 1 && !fclose(f));
    ck_assert_int_eq(run("'%s' tests/readers/bitsandbytes_codes.py '%s' '%s' 2>'%s' || { cat '%s'; false; }", python, scratch_path("in"), scratch_path("out"),
                         scratch_path("log"), scratch_path("log")), 0);
    f = fopen(scratch_path("out"), "rb");
    ck_assert(f && fread(t, sizeof *t, 1, f) == 1 && !fclose(f));
    return true;
}

/* bitsandbytes' code of FP4 for ours, an index of ascending levels. */
static bool is_same_fp4(int32_t code, float level)
{
    static const float magnitude[] = {0, 0.0625f / 12, 8.0f / 12, 1, 4.0f / 12, 0.5f, 2.0f / 12, 0.25f};
    const float v = magnitude[code & 7] * (code & 8 ? -1 : 1);
    return fabsf(v - level) < 1e-6f;
}

START_TEST(codes_are_theirs)
{
    static theirs t;
    scratch_begin();
    draw();
    for (int kind = 0; kind < 2 && ask(&t); kind++) {
        const kn_grid g = kn_grid_table(kind ? KN_TABLE_FP4 : KN_TABLE_NF4, KN_BLOCK, 64, KN_SCALE_F32);
        kn_codes c;
        ck_assert_int_eq(kn_codes_new(&c, &g, N, K), NB_OK);
        kn_encode(&c, w);
        for (int64_t i = 0; i < c.n_scales; i++)
            ck_assert(c.scale[i] == t.absmax[kind][i]);
        for (int i = 0; i < COUNT; i++) {
            const int q = c.q[i / K * c.ld + i % K];
            ck_assert_msg(kind ? is_same_fp4(t.fp4[i], (float)kn_table_levels(&g)[q]) : q == t.nf4[i], "code %d is %d, theirs %d", i, q,
                          kind ? t.fp4[i] : t.nf4[i]);
        }
        kn_codes_free(&c);
    }
    scratch_end();
}
END_TEST

/* A row is a call of its own: ours looks at no other. Theirs is rounded to float16 twice. */
START_TEST(the_product_of_llm_int8_is_theirs)
{
    static theirs t;
    scratch_begin();
    draw();
    if (ask(&t)) {
        kn_grid ga = kn_grid_int(8, true, false, KN_ROW, 0, KN_SCALE_F32);
        const kn_grid gw = ga;
        kn_codes a, q;
        kn_packed packed = {0};
        float y[M * N], size = 0;
        ga.outlier = 6;
        ck_assert(kn_codes_new(&a, &ga, M, K) == NB_OK && kn_codes_new(&q, &gw, N, K) == NB_OK);
        kn_encode(&a, x);
        kn_encode(&q, w);
        ck_assert(kn_pack(&packed, &q) == NB_OK);
        kn_linear_int(y, &a, 0, M, &packed, NULL);
        for (int i = 0; i < M * N; i++)
            size = fmaxf(size, fabsf(t.y[i]));
        for (int i = 0; i < M * N; i++)
            ck_assert_msg(fabsf(y[i] - t.y[i]) < 1.5e-3f * size, "[%d,%d]: %g, theirs %g", i / N, i % N, (double)y[i], (double)t.y[i]);
        ck_assert_float_gt(size, 1);
        kn_packed_free(&packed);
        kn_codes_free(&a);
        kn_codes_free(&q);
    }
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bitsandbytes");
    const TTest *const tests[] = {codes_are_theirs, the_product_of_llm_int8_is_theirs};
    TCase *c = add_case(s, "codes", tests[0], 1);
    tcase_set_tags(c, "client");
    c = add_case(s, "product", tests[1], 1);
    tcase_set_tags(c, "client");
    return run_suite(s);
}
