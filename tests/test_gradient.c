/* test_gradient.c - every operator's gradient against central differences, in double.
 *
 * With a random projection r of the operator's result, L(p) = sum r out(p): for a random direction d,
 *   <dL/dp, d>  against  (L(p + h d) - L(p - h d)) / 2h,
 * for each input alone and for all together, signs included, to 1e-6 relative. A plain sum as the loss would hide a
 * broken softmax. Beside it: a second backward pass adds the same again, and inputs that are other operators' results
 * (whose gradients are written, not added to, at the first contribution) give the same gradients as leaves.
 */
#include "autograd/autograd.h"
#include "suite.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_IN = 4, MAX_COUNT = 4096 };

typedef struct op_case op_case;
typedef struct {
    const op_case *c;
    real x[MAX_IN][MAX_COUNT], g[MAX_IN][MAX_COUNT];
} inputs;
struct op_case {
    const char *name;
    ag_tensor *(*build)(ag_tape *t, ag_tensor **p, inputs *in);
    int n;
    int n_dim[MAX_IN];
    int64_t dim[MAX_IN][AG_MAX_DIM];
};

#define BUILD(name, expression)                                                                                        \
    static ag_tensor *name(ag_tape *t, ag_tensor **p, inputs *in)                                                      \
    {                                                                                                                  \
        (void)in;                                                                                                      \
        (void)p;                                                                                                       \
        return expression;                                                                                             \
    }

static const int32_t ids[] = {2, 0, 2, 3, 1, 2}, classes[] = {1, -1, 4, 0, 2, -1, 3};
static const int32_t lengths[] = {3, 0, 5};

/* cos and sin of arbitrary angles: the rotation does not care. */
static real table_cos[64], table_sin[64];
static kn_hadamard *turn_24, *turn_6, *turn_8;
static void tables(void)
{
    for (int i = 0; i < 64; i++) {
        table_cos[i] = (real)cos(0.7 * i + 0.1);
        table_sin[i] = (real)sin(0.7 * i + 0.1);
    }
    ck_assert(kn_hadamard_new(&turn_24, 24) == NB_OK && kn_hadamard_new(&turn_6, 6) == NB_OK && kn_hadamard_new(&turn_8, 8) == NB_OK);
}

BUILD(linear, ag_linear(t, p[0], p[1], NULL))
BUILD(linear_bias, ag_linear(t, p[0], p[1], p[2]))
BUILD(linear_self, ag_linear(t, p[0], p[0], NULL))
BUILD(linear_shared, ag_linear(t, ag_linear(t, p[0], p[1], p[2]), p[1], p[2]))
BUILD(matmul, ag_matmul(t, p[0], p[1]))
BUILD(matmul_self, ag_matmul(t, p[0], p[0]))
BUILD(embedding, ag_embedding(t, p[0], ids, 2, (int64_t[]){2, 3}))
BUILD(embedding_tied, ag_linear(t, ag_embedding(t, p[0], ids, 1, (int64_t[]){6}), p[0], NULL))
BUILD(rmsnorm, ag_rmsnorm(t, p[0], p[1], (real)1e-2))
BUILD(rmsnorm_self, ag_rmsnorm(t, p[0], p[0], (real)1e-2))
BUILD(layernorm, ag_layernorm(t, p[0], p[1], p[2], (real)1e-2))
BUILD(rope_interleaved, ag_rope(t, p[0], table_cos, table_sin, 2, KN_ROPE_INTERLEAVED))
BUILD(rope_half, ag_rope(t, p[0], table_cos, table_sin, 2, KN_ROPE_HALF))
BUILD(hadamard_24, ag_hadamard(t, p[0], turn_24))
BUILD(hadamard_6, ag_hadamard(t, p[0], turn_6))
BUILD(hadamard_twice, ag_add(t, p[0], ag_hadamard(t, p[0], turn_8)))
BUILD(rope_twice, ag_add(t, p[0], ag_rope(t, p[0], table_cos, table_sin, 1, KN_ROPE_HALF)))
BUILD(attention, ag_attention(t, p[0], p[1], p[2], 4, 2, NULL, false))
BUILD(attention_one, ag_attention(t, p[0], p[1], p[2], 1, 1, NULL, false))
BUILD(attention_padded, ag_attention(t, p[0], p[1], p[2], 2, 1, lengths, false))
BUILD(attention_self, ag_attention(t, p[0], p[0], p[0], 2, 2, NULL, false))
BUILD(attention_shared_kv, ag_attention(t, p[0], p[1], p[1], 2, 1, NULL, false))
BUILD(silu, ag_silu(t, p[0]))
BUILD(gelu_tanh, ag_gelu(t, p[0], true))
BUILD(gelu_erf, ag_gelu(t, p[0], false))
BUILD(relu, ag_relu(t, p[0]))
BUILD(swiglu, ag_swiglu(t, p[0], p[1]))
BUILD(swiglu_self, ag_swiglu(t, p[0], p[0]))
BUILD(softmax, ag_softmax(t, p[0]))
BUILD(add, ag_add(t, p[0], p[1]))
BUILD(add_self, ag_add(t, p[0], p[0]))
BUILD(sub, ag_sub(t, p[0], p[1]))
BUILD(sub_self, ag_sub(t, ag_silu(t, p[0]), p[0]))
BUILD(mul, ag_mul(t, p[0], p[1]))
BUILD(mul_self, ag_mul(t, p[0], p[0]))
BUILD(scale, ag_scale(t, p[0], (real)-1.7))
BUILD(reshape, ag_mul(t, ag_reshape(t, p[0], 2, (int64_t[]){5, 6}), ag_reshape(t, p[0], 2, (int64_t[]){5, 6})))
BUILD(reshape_softmax, ag_reshape(t, ag_softmax(t, p[0]), 1, (int64_t[]){30}))
BUILD(transpose_01, ag_transpose(t, p[0], 0, 1))
BUILD(transpose_12, ag_transpose(t, p[0], 2, 1))
BUILD(transpose_13, ag_transpose(t, p[0], 1, 3))
BUILD(transpose_02, ag_mul(t, p[0], ag_transpose(t, p[0], 0, 2)))
BUILD(slice_0, ag_slice(t, p[0], 0, 1, 2))
BUILD(slice_1, ag_slice(t, p[0], 1, 0, 1))
BUILD(slice_2, ag_add(t, ag_slice(t, p[0], 2, 1, 3), ag_slice(t, p[0], 2, 2, 3)))
BUILD(concat_0, ag_concat(t, p[0], p[1], 0))
BUILD(concat_1, ag_concat(t, p[0], p[1], 1))
BUILD(concat_2, ag_concat(t, p[0], p[1], 2))
BUILD(concat_self, ag_concat(t, p[0], p[0], 1))
BUILD(dropout, ag_dropout(t, p[0], (real)0.4, 5, 6))
BUILD(sum, ag_sum(t, ag_silu(t, p[0])))
BUILD(mean, ag_mean(t, ag_silu(t, p[0])))
BUILD(dot, ag_dot(t, p[0], table_cos))
BUILD(mse, ag_mse(t, p[0], p[1]))
BUILD(mse_self, ag_mse(t, p[0], ag_scale(t, p[0], (real)0.3)))
BUILD(relative_mse, ag_relative_mse(t, p[0], table_cos))
BUILD(cross_entropy, ag_cross_entropy(t, p[0], classes, 0))
BUILD(cross_entropy_smooth, ag_cross_entropy(t, p[0], classes, (real)0.2))

/* Pictures of 5 x 4 points unless said otherwise. */
static ag_tensor *conv_of(ag_tape *t, ag_tensor **p, kn_conv c, kn_activation act, bool bias)
{
    ck_assert(kn_conv_fit(&c) == NB_OK);
    return ag_conv(t, p[0], p[1], bias ? p[2] : NULL, &c, act);
}
static ag_tensor *pool_of(ag_tape *t, ag_tensor *x, kn_conv c, bool max)
{
    ck_assert(kn_pool_fit(&c) == NB_OK);
    return max ? ag_max_pool(t, x, &c) : ag_average_pool(t, x, &c);
}
static const real moments[] = {(real)0.3, (real)-0.2, (real)0.1}, spreads[] = {(real)0.5, 2, 1};
BUILD(relu6, ag_relu6(t, ag_scale(t, p[0], 6)))
BUILD(conv, conv_of(t, p, (kn_conv){.H = 5, .W = 4, .C = 3, .N = 2, .K = 3}, KN_LINEAR, true))
BUILD(conv_relu, conv_of(t, p, (kn_conv){.H = 5, .W = 4, .C = 3, .N = 2, .K = 3, .pad = 1}, KN_RELU, true))
BUILD(conv_relu6, ag_scale(t, conv_of(t, p, (kn_conv){.H = 5, .W = 4, .C = 3, .N = 2, .K = 2, .stride = 2}, KN_RELU6, false), 2))
BUILD(conv_wide, conv_of(t, p, (kn_conv){.H = 5, .W = 4, .C = 9, .N = 17, .K = 3, .pad = 1, .stride = 2}, KN_LINEAR, true))
BUILD(conv_dilated, conv_of(t, p, (kn_conv){.H = 5, .W = 6, .C = 9, .N = 2, .K = 2, .pad = 2, .stride = 3, .dilation = 2}, KN_LINEAR, true))
BUILD(conv_grouped, conv_of(t, p, (kn_conv){.H = 5, .W = 4, .C = 4, .N = 6, .K = 3, .pad = 1, .groups = 2}, KN_LINEAR, true))
BUILD(conv_depthwise, conv_of(t, p, (kn_conv){.H = 5, .W = 4, .C = 5, .N = 5, .K = 3, .pad = 1, .stride = 2, .groups = 5}, KN_LINEAR, true))
BUILD(conv_point, conv_of(t, p, (kn_conv){.H = 5, .W = 4, .C = 3, .N = 7, .K = 1}, KN_RELU, true))
BUILD(conv_of_one, conv_of(t, p, (kn_conv){.H = 1, .W = 1, .C = 1, .N = 1, .K = 1}, KN_LINEAR, false))
BUILD(conv_shared, conv_of(t, (ag_tensor *[]){conv_of(t, p, (kn_conv){.H = 5, .W = 4, .C = 3, .N = 3, .K = 3, .pad = 1}, KN_LINEAR, true), p[1], p[2]},
                           (kn_conv){.H = 5, .W = 4, .C = 3, .N = 3, .K = 3, .pad = 1}, KN_LINEAR, true))
BUILD(max_pool, pool_of(t, p[0], (kn_conv){.H = 5, .W = 4, .C = 3, .K = 2}, true))
BUILD(max_pool_overlapping, pool_of(t, p[0], (kn_conv){.H = 5, .W = 4, .C = 3, .K = 3, .stride = 1}, true))
BUILD(average_pool, pool_of(t, p[0], (kn_conv){.H = 5, .W = 4, .C = 3, .K = 2, .stride = 1}, false))
BUILD(batch_norm, ag_batch_norm(t, p[0], p[1], p[2], NULL, NULL, (real)1e-2))
BUILD(batch_norm_given, ag_batch_norm(t, p[0], p[1], p[2], moments, spreads, (real)1e-2))

/* A teacher without parameters: some logits that depend on row and token. */
static status teacher(void *ctx, real *dst, int64_t row, int64_t n)
{
    const int64_t V = *(const int64_t *)ctx;
    for (int64_t i = 0; i < n * V; i++)
        dst[i] = (real)(3 * nb_random_unit(11, 12, (uint64_t)(row * V + i)) - 1);
    return NB_OK;
}

static ag_tensor *head_of(ag_tape *t, ag_tensor **p, ag_head_loss loss)
{
    int32_t target[300];
    for (int32_t i = 0; i < 300; i++)
        target[i] = i % 3 == 1 ? -1 : i % (int32_t)p[1]->dim[0];
    if (loss.teacher)
        loss.ctx = &p[1]->dim[0];
    return ag_head(t, p[0], p[1], p[2], target, &loss, NULL);
}
BUILD(head_ce, head_of(t, p, (ag_head_loss){.ce = (real)1.3}))
BUILD(head_kl, head_of(t, p, (ag_head_loss){.kl = 1, .teacher = teacher}))
BUILD(head_kl_warm, head_of(t, p, (ag_head_loss){.kl = 1, .ce = (real)0.5, .temperature = 2, .teacher = teacher}))
BUILD(head_reverse, head_of(t, p, (ag_head_loss){.reverse_kl = 1, .temperature = (real)0.7, .teacher = teacher}))
BUILD(head_mse, head_of(t, p, (ag_head_loss){.mse = 1, .teacher = teacher}))
BUILD(head_cosine, head_of(t, p, (ag_head_loss){.cosine = 1, .teacher = teacher}))
BUILD(head_all,
      head_of(t, p, (ag_head_loss){(real)0.1, (real)0.2, (real)0.3, (real)0.4, (real)0.5, (real)1.5, teacher, NULL}))

/* A block with parameters of its own, run twice by recompute. */
static ag_tensor *segment(ag_tape *t, ag_tensor *x, void *arg)
{
    inputs *in = arg;
    ag_tensor *w = ag_leaf(t, in->x[1], in->g[1], in->c->n_dim[1], in->c->dim[1]);
    ag_tensor *h = ag_rmsnorm(t, x, ag_leaf(t, in->x[2], in->g[2], in->c->n_dim[2], in->c->dim[2]), (real)1e-2);
    return ag_add(t, x, ag_silu(t, ag_linear(t, h, w, NULL)));
}
BUILD(recompute, ag_scale(t, ag_recompute(t, segment, ag_recompute(t, segment, ag_scale(t, p[0], 1), in), in), 2))
BUILD(block, ag_softmax(t, segment(t, p[0], in)))

static const op_case cases[] = {
    {"linear", linear, 2, {3, 2}, {{2, 3, 7}, {5, 7}}},
    {"linear of size 1", linear, 2, {1, 2}, {{1}, {1, 1}}},
    {"linear with bias", linear_bias, 3, {2, 2, 1}, {{3, 7}, {5, 7}, {5}}},
    {"linear(x, x)", linear_self, 1, {2}, {{5, 3}}},
    {"linear, one weight twice", linear_shared, 3, {2, 2, 1}, {{3, 5}, {5, 5}, {5}}},
    {"matmul", matmul, 2, {2, 2}, {{3, 7}, {7, 5}}},
    {"matmul of size 1", matmul, 2, {2, 2}, {{1, 1}, {1, 1}}},
    {"matmul(x, x)", matmul_self, 1, {2}, {{5, 5}}},
    {"embedding", embedding, 1, {2}, {{4, 37}}},
    {"embedding, tied", embedding_tied, 1, {2}, {{4, 3}}},
    {"rmsnorm", rmsnorm, 2, {3, 1}, {{2, 3, 7}, {7}}},
    {"rmsnorm of size 1", rmsnorm, 2, {1, 1}, {{1}, {1}}},
    {"rmsnorm, wide", rmsnorm, 2, {2, 1}, {{3, 67}, {67}}},
    {"rmsnorm(x, x)", rmsnorm_self, 1, {1}, {{7}}},
    {"layernorm", layernorm, 3, {3, 1, 1}, {{2, 3, 7}, {7}, {7}}},
    {"layernorm, wide", layernorm, 3, {2, 1, 1}, {{3, 67}, {67}, {67}}},
    {"hadamard, a core of 12", hadamard_24, 1, {3}, {{2, 3, 48}}},
    {"hadamard in blocks", hadamard_6, 1, {3}, {{1, 3, 6}}},
    {"hadamard added to its input", hadamard_twice, 1, {2}, {{3, 8}}},
    {"rope, interleaved", rope_interleaved, 1, {3}, {{2, 5, 12}}},
    {"rope, half", rope_half, 1, {3}, {{2, 5, 12}}},
    {"rope of one pair", rope_half, 1, {3}, {{1, 1, 4}}},
    {"rope added to its input", rope_twice, 1, {3}, {{2, 3, 6}}},
    {"attention", attention, 3, {3, 3, 3}, {{2, 5, 12}, {2, 5, 6}, {2, 5, 6}}},
    {"attention of size 1", attention_one, 3, {3, 3, 3}, {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}}},
    {"attention over 70 keys", attention_one, 3, {3, 3, 3}, {{1, 70, 5}, {1, 70, 5}, {1, 70, 5}}},
    {"attention, padded", attention_padded, 3, {3, 3, 3}, {{3, 5, 6}, {3, 5, 3}, {3, 5, 3}}},
    {"attention(x, x, x)", attention_self, 1, {3}, {{2, 4, 6}}},
    {"attention(q, x, x)", attention_shared_kv, 2, {3, 3}, {{2, 4, 6}, {2, 4, 3}}},
    {"silu", silu, 1, {2}, {{3, 7}}},
    {"silu of size 1", silu, 1, {0}, {{0}}},
    {"gelu, tanh", gelu_tanh, 1, {2}, {{3, 7}}},
    {"gelu, erf", gelu_erf, 1, {2}, {{3, 7}}},
    {"relu", relu, 1, {2}, {{3, 7}}},
    {"swiglu", swiglu, 2, {2, 2}, {{3, 7}, {3, 7}}},
    {"swiglu(x, x)", swiglu_self, 1, {2}, {{3, 7}}},
    {"softmax", softmax, 1, {2}, {{4, 9}}},
    {"softmax of size 1", softmax, 1, {1}, {{1}}},
    {"add", add, 2, {2, 2}, {{3, 5}, {3, 5}}},
    {"add of a row", add, 2, {3, 1}, {{2, 3, 67}, {67}}},
    {"add of positions", add, 2, {3, 2}, {{2, 3, 5}, {3, 5}}},
    {"add(x, x)", add_self, 1, {2}, {{3, 5}}},
    {"sub", sub, 2, {2, 2}, {{3, 5}, {3, 5}}},
    {"sub of a row", sub, 2, {3, 1}, {{2, 3, 5}, {5}}},
    {"sub(silu x, x)", sub_self, 1, {2}, {{3, 5}}},
    {"mul", mul, 2, {2, 2}, {{3, 5}, {3, 5}}},
    {"mul by a row", mul, 2, {3, 1}, {{2, 3, 5}, {5}}},
    {"mul by a scalar", mul, 2, {2, 0}, {{3, 5}, {0}}},
    {"mul(x, x)", mul_self, 1, {2}, {{3, 5}}},
    {"scale", scale, 1, {2}, {{3, 5}}},
    {"reshape", reshape, 1, {3}, {{2, 3, 5}}},
    {"reshape of a kept value", reshape_softmax, 1, {3}, {{2, 3, 5}}},
    {"transpose 0 1", transpose_01, 1, {2}, {{3, 5}}},
    {"transpose 2 1", transpose_12, 1, {3}, {{2, 3, 5}}},
    {"transpose 1 3", transpose_13, 1, {4}, {{2, 3, 4, 5}}},
    {"transpose 0 2", transpose_02, 1, {3}, {{3, 2, 3}}},
    {"slice 0", slice_0, 1, {2}, {{3, 5}}},
    {"slice 1", slice_1, 1, {3}, {{2, 3, 5}}},
    {"slice 2, twice", slice_2, 1, {3}, {{2, 3, 5}}},
    {"concat 0", concat_0, 2, {2, 2}, {{1, 5}, {3, 5}}},
    {"concat 1", concat_1, 2, {3, 3}, {{2, 1, 5}, {2, 3, 5}}},
    {"concat 2", concat_2, 2, {3, 3}, {{2, 3, 1}, {2, 3, 4}}},
    {"concat(x, x)", concat_self, 1, {2}, {{3, 5}}},
    {"dropout", dropout, 1, {2}, {{5, 7}}},
    {"sum", sum, 1, {2}, {{3, 5}}},
    {"mean", mean, 1, {2}, {{3, 5}}},
    {"dot", dot, 1, {2}, {{3, 5}}},
    {"mse", mse, 2, {2, 2}, {{3, 5}, {3, 5}}},
    {"mse(x, 0.3 x)", mse_self, 1, {2}, {{3, 5}}},
    {"relative mse", relative_mse, 1, {2}, {{3, 5}}},
    {"cross entropy", cross_entropy, 1, {2}, {{7, 5}}},
    {"cross entropy, smoothed", cross_entropy_smooth, 1, {2}, {{7, 5}}},
    {"relu6", relu6, 1, {2}, {{3, 7}}},
    {"conv", conv, 3, {2, 2, 1}, {{3, 60}, {2, 27}, {2}}},
    {"conv, margin, relu", conv_relu, 3, {2, 2, 1}, {{3, 60}, {2, 27}, {2}}},
    {"conv, stride, relu6", conv_relu6, 2, {2, 2}, {{3, 60}, {2, 12}}},
    {"conv, wide", conv_wide, 3, {2, 2, 1}, {{2, 180}, {17, 81}, {17}}},
    {"conv, dilated", conv_dilated, 3, {2, 2, 1}, {{2, 270}, {2, 36}, {2}}},
    {"conv, grouped", conv_grouped, 3, {2, 2, 1}, {{3, 80}, {6, 18}, {6}}},
    {"conv, depthwise", conv_depthwise, 3, {2, 2, 1}, {{3, 100}, {5, 9}, {5}}},
    {"conv, windows of one point", conv_point, 3, {2, 2, 1}, {{3, 60}, {7, 3}, {7}}},
    {"conv of size 1", conv_of_one, 2, {2, 2}, {{1, 1}, {1, 1}}},
    {"conv, one weight twice", conv_shared, 3, {2, 2, 1}, {{2, 60}, {3, 27}, {3}}},
    {"max pool", max_pool, 1, {2}, {{3, 60}}},
    {"max pool, overlapping", max_pool_overlapping, 1, {2}, {{3, 60}}},
    {"average pool", average_pool, 1, {2}, {{3, 60}}},
    {"batch norm", batch_norm, 3, {2, 1, 1}, {{4, 15}, {3}, {3}}},
    {"batch norm, given moments", batch_norm_given, 3, {2, 1, 1}, {{4, 15}, {3}, {3}}},
    {"head: cross entropy", head_ce, 3, {2, 2, 1}, {{7, 3}, {5, 3}, {5}}},
    {"head of one token", head_ce, 2, {1, 2}, {{1}, {1, 1}}},
    {"head: KL, two chunks", head_kl, 3, {2, 2, 1}, {{300, 3}, {5, 3}, {5}}},
    {"head: KL and cross entropy, temperature 2", head_kl_warm, 3, {2, 2, 1}, {{7, 3}, {5, 3}, {5}}},
    {"head: reverse KL, temperature 0.7", head_reverse, 3, {2, 2, 1}, {{7, 3}, {5, 3}, {5}}},
    {"head: mean square", head_mse, 3, {2, 2, 1}, {{7, 3}, {5, 3}, {5}}},
    {"head: cosine", head_cosine, 3, {2, 2, 1}, {{7, 3}, {5, 3}, {5}}},
    {"head: all terms, no bias", head_all, 2, {2, 2}, {{7, 3}, {19, 3}}},
    {"recompute", recompute, 3, {2, 2, 1}, {{3, 5}, {5, 5}, {5}}},
    {"block", block, 3, {2, 2, 1}, {{3, 5}, {5, 5}, {5}}},
};

static int64_t count(const op_case *c, int i)
{
    int64_t n = 1;
    for (int k = 0; k < c->n_dim[i]; k++)
        n *= c->dim[i][k];
    ck_assert(n <= MAX_COUNT);
    return n;
}

typedef enum { LOSS_ONLY, FROM_LEAVES, FROM_OPERATORS } run_kind;

/* The projected result at in->x; gradients are added into in->g. */
static double evaluate(inputs *in, run_kind kind)
{
    static real r[MAX_COUNT];
    const op_case *c = in->c;
    ag_tape t = {.no_grad = kind == LOSS_ONLY};
    ag_tensor *p[MAX_IN] = {0};
    for (int i = 0; i < c->n; i++) {
        p[i] = ag_leaf(&t, in->x[i], in->g[i], c->n_dim[i], c->dim[i]);
        if (kind == FROM_OPERATORS)
            p[i] = ag_scale(&t, p[i], 1);
    }
    ag_tensor *out = c->build(&t, p, in);
    ck_assert_msg(out != NULL, "%s: %s", c->name, nb_fail_message());
    ck_assert(ag_count(out) <= MAX_COUNT);
    for (int64_t i = 0; i < ag_count(out); i++)
        r[i] = (real)(2 * nb_random_unit(7, 99, (uint64_t)i) - 1);
    ag_tensor *loss = ag_dot(&t, out, r);
    double L = (double)loss->x[0];
    if (kind != LOSS_ONLY)
        ck_assert_msg(ag_backward(&t, loss) == NB_OK, "%s: %s", c->name, nb_fail_message());
    ag_tape_free(&t);
    return L;
}

static double shifted(inputs *in, real x0[][MAX_COUNT], real d[][MAX_COUNT], int only, double h)
{
    for (int i = 0; i < in->c->n; i++)
        for (int64_t j = 0; j < count(in->c, i); j++)
            in->x[i][j] = x0[i][j] + (only < 0 || only == i ? (real)(h * (double)d[i][j]) : 0);
    double L = evaluate(in, LOSS_ONLY);
    memcpy(in->x, x0, sizeof in->x);
    return L;
}

static inputs in;
static real x0[MAX_IN][MAX_COUNT], d[MAX_IN][MAX_COUNT], g0[MAX_IN][MAX_COUNT];

START_TEST(gradient_equals_differences)
{
    const op_case *c = &cases[_i];
    const double h = 1e-5, tolerance = 1e-6;
    memset(&in, 0, sizeof in);
    in.c = c;
    tables();
    for (int i = 0; i < c->n; i++)
        for (int64_t j = 0; j < count(c, i); j++) {
            in.x[i][j] = x0[i][j] = (real)(3 * nb_random_unit(1, (uint64_t)i, (uint64_t)j) - 1.5);
            d[i][j] = (real)(2 * nb_random_unit(2, (uint64_t)i, (uint64_t)j) - 1);
        }
    evaluate(&in, FROM_LEAVES);
    memcpy(g0, in.g, sizeof g0);
    for (int only = -1; only < c->n; only++) {
        double along = 0;
        for (int i = 0; i < c->n; i++)
            for (int64_t j = 0; (only < 0 || only == i) && j < count(c, i); j++)
                along += (double)g0[i][j] * (double)d[i][j];
        double difference = (shifted(&in, x0, d, only, h) - shifted(&in, x0, d, only, -h)) / (2 * h);
        double error = fabs(difference - along) / fmax(1e-2, fmax(fabs(difference), fabs(along)));
        ck_assert_msg(error < tolerance, "%s, input %d: gradient %.9g, differences %.9g", c->name, only, along,
                      difference);
    }
    evaluate(&in, FROM_LEAVES);
    for (int i = 0; i < c->n; i++)
        for (int64_t j = 0; j < count(c, i); j++)
            ck_assert_msg(fabs((double)(in.g[i][j] - 2 * g0[i][j])) <= 1e-12 * (1 + fabs((double)g0[i][j])),
                          "%s, input %d: backward does not add", c->name, i);
    memset(in.g, 0, sizeof in.g);
    evaluate(&in, FROM_OPERATORS);
    for (int i = 0; i < c->n; i++)
        for (int64_t j = 0; j < count(c, i); j++)
            ck_assert_msg(fabs((double)(in.g[i][j] - g0[i][j])) <= 1e-12 * (1 + fabs((double)g0[i][j])),
                          "%s, input %d: the gradient into an operator's result differs", c->name, i);
    kn_hadamard_free(turn_24);
    kn_hadamard_free(turn_6);
    kn_hadamard_free(turn_8);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gradient");
    TCase *tc = tcase_create("operators");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, gradient_equals_differences, 0, (int)(sizeof cases / sizeof *cases));
    suite_add_tcase(s, tc);
    return run_suite(s);
}
