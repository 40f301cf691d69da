/* test_bitsandbytes_client.c - bitsandbytes on the same numbers: codes of NF4 and FP4, double quantization, the product of LLM.int8(). Skipped where NIBBLE_PYTHON has no
 * bitsandbytes; made with bitsandbytes 0.50.2 on torch 2.15.0, CPU.
 */
#include "clients.h"
#include "kernels/kernels.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>

enum { M = 24, N = 400, K = 192, COUNT = N * K, BLOCKS = COUNT / 64, SUPERS = (BLOCKS + 255) / 256 };

typedef struct {
    int32_t nf4[COUNT], fp4[COUNT];
    float absmax[2][BLOCKS], y[M * N];
    struct {
        uint8_t code[BLOCKS];
        float absmax[SUPERS], offset, scale[BLOCKS], w[COUNT];
    } twice[2];
    float map[KN_DYNAMIC_LEVELS];
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
        w[i] = half(0.05 * nb_random_normal(3, 1, (uint64_t)i) * (i / K % 50 == 3 ? 4 : 1));
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

/* Whether no level of the map is nearer to t than level q. */
static bool is_nearest(const float *map, int q, float t)
{
    const float d = fabsf(map[q] - t);
    return (q == 0 || d <= fabsf(map[q - 1] - t)) && (q == KN_DYNAMIC_LEVELS - 1 || d <= fabsf(map[q + 1] - t));
}

/* Their encoder on the CPU does not always find the nearest level, their mean is a sum of floats in another order: where it is the nearest, codes
 * are the same; what codes mean is the same always. */
START_TEST(double_quantization_is_theirs)
{
    static theirs t;
    static float back[COUNT];
    real map[KN_DYNAMIC_LEVELS];
    scratch_begin();
    draw();
    for (int kind = 0; kind < 2 && ask(&t); kind++) {
        const kn_grid g = kn_grid_table(kind ? KN_TABLE_FP4 : KN_TABLE_NF4, KN_BLOCK, 64, KN_SCALE_DYNAMIC8);
        kn_codes c;
        int far = 0;
        kn_dynamic_map(map);
        ck_assert_mem_eq(map, t.map, sizeof map);
        ck_assert_int_eq(kn_codes_new(&c, &g, N, K), NB_OK);
        kn_encode(&c, w);
        ck_assert_float_eq_tol(*c.mean, t.twice[kind].offset, 4e-7f * *c.mean);
        for (int i = 0; i < SUPERS; i++)
            ck_assert_float_eq_tol(c.super[i], t.twice[kind].absmax[i], 4e-7f * (c.super[i] + *c.mean));
        for (int i = 0; i < COUNT; i++) { /* found with the scales as they were */
            const int q = c.q[i / K * c.ld + i % K];
            ck_assert(kind ? is_same_fp4(t.fp4[i], (float)kn_table_levels(&g)[q]) : q == t.nf4[i]);
        }
        for (int i = 0; i < BLOCKS; i++) {
            const float d = (t.absmax[kind][i] - *c.mean) / c.super[i / 256];
            ck_assert(is_nearest(map, c.scale_code[i], d));
            if (is_nearest(map, t.twice[kind].code[i], d))
                ck_assert_int_eq(c.scale_code[i], t.twice[kind].code[i]);
            else
                far++;
        }
        printf("%s: %d of %d scales are not at their nearest level\n", kind ? "fp4" : "nf4", far, (int)BLOCKS);
        ck_assert_int_le(100 * far, BLOCKS);
        *c.mean = t.twice[kind].offset;
        memcpy(c.super, t.twice[kind].absmax, sizeof t.twice[kind].absmax);
        memcpy(c.scale_code, t.twice[kind].code, sizeof t.twice[kind].code);
        kn_join_dynamic(&c);
        ck_assert_mem_eq(c.scale, t.twice[kind].scale, sizeof t.twice[kind].scale);
        kn_decode(back, &c, 0, N);
        for (int i = 0; i < COUNT; i++)
            ck_assert_msg(back[i] == t.twice[kind].w[i], "%d: %.9g, theirs %.9g", i, (double)back[i], (double)t.twice[kind].w[i]);
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

/* Scales that differ by a factor of 50, some 0, 2.3 runs of them. Each is kept to half of what lies between two levels, and what is read back is kept. */
START_TEST(scales_in_8_bits_err_by_half_a_gap)
{
    enum { SCALES = 600, SIZE = 8 };
    static float v[SCALES * SIZE], found[SCALES], kept[SCALES];
    real map[KN_DYNAMIC_LEVELS];
    const kn_grid g = kn_grid_table(KN_TABLE_NF4, KN_BLOCK, SIZE, KN_SCALE_DYNAMIC8), plain = kn_grid_table(KN_TABLE_NF4, KN_BLOCK, SIZE, KN_SCALE_F32);
    kn_codes c, p;
    for (int i = 0; i < SCALES * SIZE; i++)
        v[i] = (float)(nb_random_normal(4, 1, (uint64_t)i) * exp(2 * nb_random_unit(4, 2, (uint64_t)(i / SIZE)))) * (i / SIZE % 90 != 17);
    ck_assert(kn_codes_new(&c, &g, SCALES, SIZE) == NB_OK && kn_codes_new(&p, &plain, SCALES, SIZE) == NB_OK);
    kn_encode(&p, v);
    memcpy(found, p.scale, sizeof found);
    kn_encode(&c, v);
    ck_assert_mem_eq(c.q, p.q, SCALES * SIZE); /* found with the scales as they were */
    kn_dynamic_map(map);
    for (int k = 1; k < KN_DYNAMIC_LEVELS; k++)
        ck_assert(map[k] > map[k - 1]);
    ck_assert(map[0] > -1 && map[KN_DYNAMIC_LEVELS - 1] == 1 && map[127] == 0);
    double sum = 0;
    for (int i = 0; i < SCALES; i++)
        sum += (double)found[i] / SCALES;
    ck_assert_double_eq_tol((double)*c.mean, sum, 1e-6 * sum);
    for (int i = 0; i < SCALES; i++) {
        const int k = c.scale_code[i];
        const float below = map[k ? k - 1 : 0], above = map[k < 255 ? k + 1 : k], gap = fmaxf(map[k] - below, above - map[k]);
        const float limit = (k == 0 ? 1 + map[0] : 0.5001f * gap) * c.super[i / KN_SUPER] + 1e-6f * *c.mean;
        ck_assert_msg(fabsf(c.scale[i] - found[i]) <= limit, "scale %d: %g, kept as %g", i, (double)found[i], (double)c.scale[i]);
    }
    memcpy(kept, c.scale, sizeof kept);
    memset(c.scale, 0, sizeof kept);
    kn_join_dynamic(&c);
    ck_assert_mem_eq(c.scale, kept, sizeof kept);
    for (int i = 0; i < SCALES * SIZE; i++)
        v[i] = i % SIZE ? 0 : 0.5f; /* all scales alike: the mean says it all */
    kn_encode(&c, v);
    for (int i = 0; i < SCALES; i++)
        ck_assert_float_eq(c.scale[i], 0.5f);
    kn_codes_free(&p);
    kn_codes_free(&c);
    kn_grid bad = g;
    bad.grain = KN_GROUP;
    ck_assert_int_eq(kn_grid_check(&bad), NB_USAGE);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bitsandbytes");
    const TTest *const tests[] = {codes_are_theirs, the_product_of_llm_int8_is_theirs, double_quantization_is_theirs};
    TCase *c = add_case(s, "codes", tests[0], 1);
    tcase_set_tags(c, "client");
    c = add_case(s, "product", tests[1], 1);
    tcase_set_tags(c, "client");
    c = add_case(s, "twice", tests[2], 1);
    tcase_set_tags(c, "client");
    (void)add_case(s, "scales", scales_in_8_bits_err_by_half_a_gap, 1);
    return run_suite(s);
}
