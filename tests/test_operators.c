/* test_operators.c - what operators promise beside their gradients (test_gradient.c): codes, refusals, masks. */
#include "autograd/autograd.h"
#include "coded.h"
#include "suite.h"
#include <math.h>
#include <string.h>

enum { CM = 5, CN = 19, CK = 24 }; /* rows, outputs, inputs */

typedef struct {
    const char *name;
    kn_grid x, w;
    bool pack;
} coded_case;

static coded_case coded_cases[4];
static void coded_cases_fill(void)
{
    kn_grid token = kn_grid_int(8, true, false, KN_ROW, 0, KN_SCALE_F32);
    kn_grid asymmetric = kn_grid_int(8, false, true, KN_ROW, 0, KN_SCALE_F32);
    kn_grid row = kn_grid_int(4, false, false, KN_ROW, 0, KN_SCALE_F32);
    kn_grid group = kn_grid_int(4, false, false, KN_GROUP, 8, KN_SCALE_F16);
    coded_cases[0] = (coded_case){"rows x tokens", token, row, true};
    coded_cases[1] = (coded_case){"groups x tokens", token, group, true};
    coded_cases[2] = (coded_case){"rows x asymmetric tokens", asymmetric, row, true};
    coded_cases[3] = (coded_case){"weight codes not packed", token, group, false};
}

/* The forward on codes is the integer product; its backward is, bit for bit, that of the float operator on the decoded
 * values. */
START_TEST(linear_backward_on_codes_equals_decoded)
{
    coded_cases_fill();
    const coded_case *c = &coded_cases[_i];
    real x[CM * CK], w[CN * CK], b[CN], r[CM * CN], xd[CM * CK], wd[CN * CK], y[CM * CN], want[CM * CN];
    real gx[2][CM * CK] = {{0}}, gw[2][CN * CK] = {{0}}, gb[2][CN] = {{0}};
    kn_packed packed = {0};
    fill(x, CM * CK, 1, 2);
    fill(w, CN * CK, 2, 1);
    fill(b, CN, 3, 1);
    fill(r, CM * CN, 4, 1);
    ag_tape t = {0};
    ag_tensor *xs = coded(&t, ag_leaf(&t, x, gx[0], 2, (int64_t[]){CM, CK}), c->x);
    ag_tensor *ws = coded(&t, ag_leaf(&t, w, gw[0], 2, (int64_t[]){CN, CK}), c->w);
    if (c->pack) {
        ck_assert(kn_can_multiply(&c->x, &c->w, CK));
        ck_assert_int_eq(kn_pack(&packed, ws->codes), NB_OK);
        ws->packed = &packed;
    }
    kn_decode(xd, xs->codes, 0, CM);
    kn_decode(wd, ws->codes, 0, CN);
    if (c->pack)
        kn_linear_int(want, xs->codes, 0, CM, &packed, b);
    ag_tensor *out = ag_linear(&t, xs, ws, ag_leaf(&t, b, gb[0], 1, (int64_t[]){CN}));
    ck_assert_ptr_nonnull(out);
    memcpy(y, out->x, sizeof y);
    ck_assert_int_eq(ag_backward(&t, ag_dot(&t, out, r)), NB_OK);

    ag_reset(&t);
    out = ag_linear(&t, ag_leaf(&t, xd, gx[1], 2, (int64_t[]){CM, CK}), ag_leaf(&t, wd, gw[1], 2, (int64_t[]){CN, CK}),
                    ag_leaf(&t, b, gb[1], 1, (int64_t[]){CN}));
    for (int i = 0; i < CM * CN; i++)
        ck_assert_msg(fabs((double)(y[i] - out->x[i])) < 1e-4, "%s: %g, by value %g", c->name, (double)y[i],
                      (double)out->x[i]);
    if (c->pack)
        ck_assert_msg(same_bits(y, want, CM * CN), "%s: not the integer product", c->name);
    ck_assert_int_eq(ag_backward(&t, ag_dot(&t, out, r)), NB_OK);
    ck_assert_msg(same_bits(gx[0], gx[1], CM * CK), "%s: dx", c->name);
    ck_assert_msg(same_bits(gw[0], gw[1], CN * CK), "%s: dw", c->name);
    ck_assert_msg(same_bits(gb[0], gb[1], CN), "%s: db", c->name);
    kn_packed_free(&packed);
    ag_tape_free(&t);
}
END_TEST

START_TEST(embedding_of_codes_equals_decoded_rows)
{
    enum { V = 6, C = 10 };
    const int32_t id[] = {5, 0, 5, 3};
    kn_grid grid = kn_grid_int(4, false, false, KN_GROUP, 8, KN_SCALE_F16);
    real w[V * C], all[V * C];
    fill(w, V * C, 1, 1);
    ag_tape t = {0};
    ag_tensor *ws = coded(&t, ag_leaf(&t, w, NULL, 2, (int64_t[]){V, C}), grid);
    ag_tensor *y = ag_embedding(&t, ws, id, 1, (int64_t[]){4});
    ck_assert_ptr_nonnull(y);
    ck_assert_ptr_null(ws->x); /* never decoded whole */
    kn_decode(all, ws->codes, 0, V);
    for (int i = 0; i < 4; i++)
        ck_assert(same_bits(y->x + i * C, all + id[i] * C, C));
    ag_tape_free(&t);
}
END_TEST

/* Codes per token and head go into the products; grains that do not fit go by value. Both agree with the float operator
 * on decoded values. */
START_TEST(attention_on_codes_equals_decoded)
{
    enum { B = 2, T = 70, H = 4, G = 2, D = 8, NQ = B * T * H * D, NK = B * T * G * D };
    kn_grid head = kn_grid_int(8, true, false, KN_HEAD, D, KN_SCALE_F32),
            kv = kn_grid_int(4, false, true, KN_HEAD, D, KN_SCALE_F16);
    kn_grid token = kn_grid_int(8, false, true, KN_ROW, 0, KN_SCALE_F16);
    static real x[3][NQ], v[3][NQ], y[NQ], r[NQ], g[2][3][NQ];
    const int32_t lengths[] = {T, 13};
    int64_t dim[3][3] = {{B, T, H * D}, {B, T, G * D}, {B, T, G * D}}, n[3] = {NQ, NK, NK};
    memset(g, 0, sizeof g);
    fill(r, NQ, 9, 1);
    ag_tape t = {0};
    ag_tensor *s[3];
    for (int i = 0; i < 3; i++) {
        fill(x[i], n[i], (uint64_t)i, 1.5);
        s[i] = coded(&t, ag_leaf(&t, x[i], g[0][i], 3, dim[i]), i == 0 ? head : _i ? token : kv);
        kn_decode(v[i], s[i]->codes, 0, B * T);
    }
    ag_tensor *out = ag_attention(&t, s[0], s[1], s[2], H, G, lengths, false);
    ck_assert_msg(out != NULL, "%s", nb_fail_message());
    memcpy(y, out->x, sizeof y);
    ck_assert_int_eq(ag_backward(&t, ag_dot(&t, out, r)), NB_OK);
    ag_reset(&t);
    for (int i = 0; i < 3; i++)
        s[i] = ag_leaf(&t, v[i], g[1][i], 3, dim[i]);
    out = ag_attention(&t, s[0], s[1], s[2], H, G, lengths, false);
    for (int i = 0; i < NQ; i++)
        ck_assert_msg(fabs((double)(y[i] - out->x[i])) < 2e-5, "%d: %g, by value %g", i, (double)y[i],
                      (double)out->x[i]);
    ck_assert_int_eq(ag_backward(&t, ag_dot(&t, out, r)), NB_OK);
    for (int i = 0; i < 3; i++)
        for (int64_t j = 0; j < n[i]; j++)
            ck_assert(fabs((double)(g[0][i][j] - g[1][i][j])) < 1e-4);
    ag_tape_free(&t);
}
END_TEST

START_TEST(reshape_keeps_codes_where_rows_stay_rows)
{
    real x[2 * 3 * 8], v[2 * 3 * 8];
    fill(x, 48, 1, 1);
    ag_tape t = {0};
    ag_tensor *s =
        coded(&t, ag_leaf(&t, x, NULL, 3, (int64_t[]){2, 3, 8}), kn_grid_int(8, true, false, KN_ROW, 0, KN_SCALE_F32));
    ag_tensor *rows = ag_reshape(&t, s, 2, (int64_t[]){6, 8}), *other = ag_reshape(&t, s, 1, (int64_t[]){48});
    kn_decode(v, s->codes, 0, 6);
    ck_assert_ptr_eq(rows->codes, s->codes);
    ck_assert_ptr_null(other->codes);
    ck_assert(same_bits(ag_value(rows), v, 48) && same_bits(ag_value(other), v, 48));
    ag_tape_free(&t);
}
END_TEST

/* Every operator refuses what does not fit, with its name in the message, and lets NULL flow through: a is [2,3,4],
 * b is [5]. */
static ag_tensor *no_linear(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_linear(t, a, b, NULL);
}

static ag_tensor *no_matmul(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_matmul(t, a, b);
}

static ag_tensor *no_embedding(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    (void)b;
    return ag_embedding(t, a, (int32_t[]){0}, 1, (int64_t[]){1});
}

static ag_tensor *no_rmsnorm(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_rmsnorm(t, a, b, 0);
}

static ag_tensor *no_layernorm(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_layernorm(t, a, b, b, 0);
}

static ag_tensor *no_rope(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    (void)b;
    return ag_rope(t, a, NULL, NULL, 3, KN_ROPE_HALF);
}

static ag_tensor *no_attention(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_attention(t, a, b, b, 2, 2, NULL, false);
}

static ag_tensor *no_lengths(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    (void)b;
    return ag_attention(t, a, a, a, 2, 2, (int32_t[]){1, 4}, false);
}

static ag_tensor *no_swiglu(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_swiglu(t, a, b);
}

static ag_tensor *no_add(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_add(t, a, b);
}

static ag_tensor *no_sub(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_sub(t, b, a);
}

static ag_tensor *no_mul(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_mul(t, a, b);
}

static ag_tensor *no_reshape(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    (void)b;
    return ag_reshape(t, a, 1, (int64_t[]){23});
}

static ag_tensor *no_transpose(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    (void)b;
    return ag_transpose(t, a, 0, 3);
}

static ag_tensor *no_slice(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    (void)b;
    return ag_slice(t, a, 1, 2, 2);
}

static ag_tensor *no_concat(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_concat(t, a, b, 0);
}

static ag_tensor *no_dropout(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    (void)b;
    return ag_dropout(t, a, 1, 0, 0);
}

static ag_tensor *no_mse(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_mse(t, a, b);
}

static ag_tensor *no_class(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    (void)b;
    return ag_cross_entropy(t, a, (int32_t[]){0, 1, 2, 3, 4, -1}, 0);
}

static ag_tensor *no_head(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    return ag_head(t, a, b, NULL, (int32_t[6]){0}, &(ag_head_loss){.ce = 1}, NULL);
}

static ag_tensor *no_teacher(ag_tape *t, ag_tensor *a, ag_tensor *b)
{
    (void)b;
    ag_tensor *w = a ? ag_reshape(t, a, 2, (int64_t[]){6, 4}) : NULL;
    return ag_head(t, a, w, NULL, (int32_t[6]){0}, &(ag_head_loss){.kl = 1}, NULL);
}

static const struct {
    const char *name;
    ag_tensor *(*build)(ag_tape *t, ag_tensor *a, ag_tensor *b);
} refusals[] = {
    {"linear", no_linear},
    {"matmul", no_matmul},
    {"embedding", no_embedding},
    {"rmsnorm", no_rmsnorm},
    {"layernorm", no_layernorm},
    {"rope", no_rope},
    {"attention", no_attention},
    {"attention", no_lengths},
    {"swiglu", no_swiglu},
    {"add", no_add},
    {"sub", no_sub},
    {"mul", no_mul},
    {"reshape", no_reshape},
    {"transpose", no_transpose},
    {"slice", no_slice},
    {"concat", no_concat},
    {"dropout", no_dropout},
    {"mse", no_mse},
    {"cross_entropy", no_class},
    {"head", no_head},
    {"head", no_teacher},
};

START_TEST(misfits_are_refused_by_name_and_null_flows)
{
    real x[24] = {0};
    ag_tape t = {0};
    ag_tensor *a = ag_leaf(&t, x, NULL, 3, (int64_t[]){2, 3, 4}), *b = ag_leaf(&t, x, NULL, 1, (int64_t[]){5});
    ck_assert_ptr_null(refusals[_i].build(&t, NULL, NULL));
    ck_assert_int_eq(ag_status(&t), NB_OK); /* NULL is somebody else's failure */
    ck_assert_ptr_null(refusals[_i].build(&t, a, b));
    ck_assert_int_ne(ag_status(&t), NB_OK);
    ck_assert_msg(!strncmp(nb_fail_message(), refusals[_i].name, strlen(refusals[_i].name)), "%s: %s",
                  refusals[_i].name, nb_fail_message());
    ck_assert_ptr_null(ag_silu(&t, a)); /* the first cause sticks */
    ag_tape_free(&t);
}
END_TEST

START_TEST(ids_outside_the_table_are_refused)
{
    real w[6] = {0};
    for (int32_t id = -1; id <= 3; id += 4) {
        ag_tape t = {0};
        ck_assert_ptr_null(ag_embedding(&t, ag_leaf(&t, w, NULL, 2, (int64_t[]){3, 2}), &id, 1, (int64_t[]){1}));
        ck_assert_int_eq(ag_status(&t), NB_USAGE);
        ag_tape_free(&t);
    }
}
END_TEST

START_TEST(dropout_repeats_its_mask_and_keeps_the_mean)
{
    enum { N = 20000 };
    static real x[N];
    for (int i = 0; i < N; i++)
        x[i] = 1;
    ag_tape t = {0};
    ag_tensor *leaf = ag_leaf(&t, x, NULL, 1, (int64_t[]){N});
    ag_tensor *a = ag_dropout(&t, leaf, (real)0.25, 1, 2), *b = ag_dropout(&t, leaf, (real)0.25, 1, 2);
    ag_tensor *other = ag_dropout(&t, leaf, (real)0.25, 1, 3), *mean = ag_mean(&t, a);
    ck_assert(same_bits(a->x, b->x, N) && !same_bits(a->x, other->x, N));
    ck_assert(fabs((double)mean->x[0] - 1) < 0.02); /* 5 standard deviations of sqrt(p / (1-p) / N) = 0.004 */
    ag_tape_free(&t);
}
END_TEST

/* Where products are bf16, gate and up are kept so: the value is the same, gradients differ by that rounding (2^-8 of each), and are added to
 * what is there, over more than one chunk. */
START_TEST(swiglu_kept_in_bf16_errs_by_rounding_alone)
{
    enum { N = 2500 };
    static real gate[N], up[N], r[N], y[2][N], g[2][2][N];
    ag_tape t[2] = {{.precision = KN_FP32}, {.precision = KN_BF16}};
    fill(gate, N, 1, 2);
    fill(up, N, 2, 2);
    fill(r, N, 3, 1);
    for (int p = 0; p < 2; p++) {
        for (int i = 0; i < N; i++)
            g[p][0][i] = 1, g[p][1][i] = -1;
        ag_tensor *a = ag_leaf(&t[p], gate, g[p][0], 1, (int64_t[]){N}), *b = ag_leaf(&t[p], up, g[p][1], 1, (int64_t[]){N});
        ag_tensor *first = ag_swiglu(&t[p], a, b), *again = ag_swiglu(&t[p], a, b);
        memcpy(y[p], first->x, sizeof y[p]);
        ck_assert_int_eq(ag_backward(&t[p], ag_dot(&t[p], ag_add(&t[p], first, again), r)), NB_OK);
    }
    ck_assert(same_bits(y[0], y[1], N));
    bool rounded = false;
    for (int i = 0; i < N; i++)
        for (int k = 0; k < 2; k++) {
            const real error = g[0][k][i] - g[1][k][i];
            ck_assert_msg(fabs((double)error) < 0.04, "%g, from floats %g", (double)g[1][k][i], (double)g[0][k][i]);
            rounded |= error != 0;
        }
    ck_assert(rounded);
    ag_tape_free(&t[0]);
    ag_tape_free(&t[1]);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

int main(void)
{
    Suite *s = suite_create("operators");
    TCase *tc = tcase_create("operators");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, linear_backward_on_codes_equals_decoded, 0, COUNT(coded_cases));
    tcase_add_test(tc, embedding_of_codes_equals_decoded_rows);
    tcase_add_loop_test(tc, attention_on_codes_equals_decoded, 0, 2);
    tcase_add_test(tc, reshape_keeps_codes_where_rows_stay_rows);
    tcase_add_loop_test(tc, misfits_are_refused_by_name_and_null_flows, 0, COUNT(refusals));
    tcase_add_test(tc, ids_outside_the_table_are_refused);
    tcase_add_test(tc, dropout_repeats_its_mask_and_keeps_the_mean);
    tcase_add_test(tc, swiglu_kept_in_bf16_errs_by_rounding_alone);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
