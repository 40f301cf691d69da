/* test_autograd.c - the tape: what recompute and giving values up may change, and what not. */
#include "autograd/autograd.h"
#include "coded.h"
#include "suite.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    ag_params params;
    ag_param *norm, *gate, *up, *down;
} block;

enum { BC = 12, BH = 20, BM = 7 };

static void block_new(block *b)
{
    *b = (block){0};
    b->norm = ag_param_new(&b->params, "norm", AG_NORM, 1, (int64_t[]){BC});
    b->gate = ag_param_new(&b->params, "gate", AG_WEIGHT, 2, (int64_t[]){BH, BC});
    b->up = ag_param_new(&b->params, "up", AG_WEIGHT, 2, (int64_t[]){BH, BC});
    b->down = ag_param_new(&b->params, "down", AG_WEIGHT, 2, (int64_t[]){BC, BH});
    for (int64_t i = 0; i < b->params.n; i++)
        fill(b->params.p[i]->x, b->params.p[i]->count, 20 + (uint64_t)i, 1);
}

/* x + down(swiglu(gate(h), up(h))), h = rmsnorm(x), giving values up as soon as they are read. */
static ag_tensor *block_forward(ag_tape *t, ag_tensor *x, void *arg)
{
    const block *b = arg;
    ag_tensor *h = ag_rmsnorm(t, x, ag_use(t, b->norm), (real)1e-5);
    ag_tensor *gate = ag_linear(t, h, ag_use(t, b->gate), NULL), *up = ag_linear(t, h, ag_use(t, b->up), NULL);
    ag_done(h);
    ag_tensor *act = ag_swiglu(t, gate, up);
    ag_done(gate);
    ag_done(up);
    ag_tensor *down = ag_linear(t, act, ag_use(t, b->down), NULL);
    ag_done(act);
    ag_tensor *y = ag_add(t, x, down);
    ag_done(down);
    return y;
}

typedef enum { PLAIN, RECOMPUTE, NO_DONE, NO_GRAD } way;

/* Two blocks with shared parameters; gradients of x into gx, of the parameters into theirs. Returns the loss. */
static real two_blocks(block *b, real *x, real *gx, const real *r, way how)
{
    ag_tape t = {.no_grad = how == NO_GRAD};
    ag_params_clear_grad(&b->params);
    ag_tensor *y = ag_scale(&t, ag_leaf(&t, x, gx, 2, (int64_t[]){BM, BC}), 1);
    for (int i = 0; i < 2; i++) {
        ag_tensor *z = how == RECOMPUTE ? ag_recompute(&t, block_forward, y, b) : block_forward(&t, y, b);
        if (how != NO_DONE)
            ag_done(y);
        y = z;
    }
    ag_tensor *loss = ag_dot(&t, y, r);
    ck_assert_msg(loss != NULL, "%s", nb_fail_message());
    real L = loss->x[0];
    if (how != NO_GRAD)
        ck_assert_int_eq(ag_backward(&t, loss), NB_OK);
    ag_tape_free(&t);
    return L;
}

/* Recompute, and giving values up, change no bit of loss or gradients. */
START_TEST(memory_settings_change_no_bit)
{
    real x[BM * BC], gx[BM * BC] = {0}, gx2[BM * BC] = {0}, r[BM * BC], *g[4];
    block b;
    block_new(&b);
    fill(x, BM * BC, 1, 1);
    fill(r, BM * BC, 2, 1);
    real L = two_blocks(&b, x, gx, r, PLAIN);
    for (int i = 0; i < 4; i++) {
        g[i] = malloc((size_t)b.params.p[i]->count * sizeof(real));
        memcpy(g[i], b.params.p[i]->g, (size_t)b.params.p[i]->count * sizeof(real));
    }
    ck_assert(two_blocks(&b, x, gx2, r, (way)_i) == L);
    for (int i = 0; i < 4 && _i != NO_GRAD; i++)
        ck_assert_msg(same_bits(g[i], b.params.p[i]->g, b.params.p[i]->count), "%s", b.params.p[i]->name);
    ck_assert(_i == NO_GRAD || same_bits(gx, gx2, BM * BC));
    for (int i = 0; i < 4; i++)
        free(g[i]);
    ag_params_free(&b.params);
}
END_TEST

START_TEST(a_value_given_up_is_named)
{
    real x[6] = {0};
    ag_tape t = {.no_grad = true};
    ag_tensor *y = ag_scale(&t, ag_leaf(&t, x, NULL, 1, (int64_t[]){6}), 2);
    ag_done(y);
    ck_assert_ptr_null(ag_silu(&t, y));
    ck_assert_int_eq(ag_status(&t), NB_USAGE);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "silu"));
    ag_tape_free(&t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("autograd");
    TCase *tc = tcase_create("tape");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, memory_settings_change_no_bit, RECOMPUTE, NO_GRAD + 1);
    tcase_add_test(tc, a_value_given_up_is_named);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
