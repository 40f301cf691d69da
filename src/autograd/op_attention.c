/* op_attention.c - causal attention with grouped heads: H query heads, G kv heads, H / G queries share one of those.
 *   s[i,j] = q_i . k_j / sqrt(D), j <= i;  p = softmax_j(s);  o_i = sum_j p[i,j] v_j
 *   dv_j = sum_i p[i,j] do_i;  dp[i,j] = do_i . v_j;  ds[i,j] = p[i,j] (dp[i,j] - do_i . o_i) / sqrt(D)
 *   dq_i = sum_j ds[i,j] k_j;  dk_j = sum_i ds[i,j] q_i
 * Kept: q, k, v, o and the log-sum-exp of every row of scores; probabilities are made again, tile by tile. Operands
 * that carry codes per token and head enter as codes; the backward pass is the straight-through one, on their values.
 */
#include "op.h"
#include <string.h>

typedef struct {
    int64_t H, G, D;
    int32_t *lengths; /* [B], or NULL */
    real *lse;        /* [B*T*H]; NULL without a backward pass */
    bool quantize_probs;
} save_attention;

/* Codes enter where they are per token and head; anything else by value. */
static bool operand(kn_operand *o, const ag_tensor *out, int i, int64_t heads, int64_t D)
{
    const kn_codes *c = out->src[i]->codes;
    bool per_head =
        c && c->q && ((c->grid.grain == KN_HEAD && c->grid.group == D) || (c->grid.grain == KN_ROW && heads == 1));
    *o = per_head ? (kn_operand){NULL, c} : (kn_operand){ag_in(out, i), NULL};
    return per_head || o->x;
}

static void attention_forward(ag_tensor *out)
{
    const save_attention *s = out->save;
    kn_operand q, k, v;
    if (!operand(&q, out, 0, s->H, s->D) || !operand(&k, out, 1, s->G, s->D) || !operand(&v, out, 2, s->G, s->D))
        return;
    status e = kn_attention(out->x, s->lse, q, k, v, s->lengths, out->dim[0], out->dim[1], s->H, s->G, s->D,
                            s->quantize_probs);
    if (e)
        ag_fail(out->tape, e, "attention: %s", nb_fail_message());
}

/* Where one tensor stands in two places, the later place gathers into memory of its own: the kernel's threads own their
 * outputs. */
static void attention_backward(const ag_tensor *out)
{
    const save_attention *s = out->save;
    const real *x[3];
    real *g[3], *own[3] = {0};
    for (int i = 0; i < 3; i++) {
        const ag_tensor *a = out->src[i];
        size_t bytes = (size_t)ag_count(a) * sizeof(real);
        if (!(x[i] = ag_in(out, i)))
            return;
        g[i] = ag_grad(a);
        if (!g[i] || !((i > 0 && a == out->src[0]) || (i > 1 && a == out->src[1])))
            continue;
        if (!(g[i] = own[i] = ag_take(out->tape, bytes)))
            return;
        memset(own[i], 0, bytes);
    }
    status e = kn_attention_backward(out->tape->precision, g[0], g[1], g[2], out->g, out->x, s->lse, x[0], x[1], x[2], s->lengths,
                                     out->dim[0], out->dim[1], s->H, s->G, s->D);
    if (e)
        ag_fail(out->tape, e, "attention: %s", nb_fail_message());
    for (int i = 0; i < 3; i++) {
        if (!own[i])
            continue;
        ag_add_grad(out->src[i], 1, own[i]);
        ag_give_back(out->tape, own[i], (size_t)ag_count(out->src[i]) * sizeof(real));
    }
}

static const ag_op op_attention = {"attention", attention_forward, attention_backward,
                                   AG_KEEP(0) | AG_KEEP(1) | AG_KEEP(2) | AG_KEEP_OUT};

ag_tensor *ag_attention(ag_tape *t, ag_tensor *q, ag_tensor *k, ag_tensor *v, int64_t H, int64_t G,
                        const int32_t *lengths, bool quantize_probs)
{
    if (!q || !k || !v)
        return NULL;
    if (q->n_dim != 3 || k->n_dim != 3 || !ag_same_shape(k, v) || q->dim[0] != k->dim[0] || q->dim[1] != k->dim[1] ||
        H <= 0 || G <= 0 || H % G || q->dim[2] % H || k->dim[2] % G || q->dim[2] / H != k->dim[2] / G)
        return ag_fail(t, NB_SHAPE, "attention: q %s, k %s, v %s do not fit %lld query and %lld kv heads",
                       ag_words_of(q).text, ag_words_of(k).text, ag_words_of(v).text, (long long)H, (long long)G);
    for (int64_t i = 0; lengths && i < q->dim[0]; i++)
        if (lengths[i] < 0 || lengths[i] > q->dim[1])
            return ag_fail(t, NB_SHAPE, "attention: row %lld has length %d of at most %lld", (long long)i,
                           (int)lengths[i], (long long)q->dim[1]);
    ag_tensor *out = ag_node(t, &op_attention, 3, (ag_tensor *[]){q, k, v}, 3, q->dim, sizeof(save_attention));
    if (!out)
        return NULL;
    save_attention *s = out->save;
    *s = (save_attention){.H = H, .G = G, .D = q->dim[2] / H, .quantize_probs = quantize_probs};
    if (lengths && !(s->lengths = ag_copy(t, lengths, (size_t)q->dim[0] * sizeof *lengths)))
        return NULL;
    if (out->needs_grad && !(s->lse = ag_take(t, (size_t)(ag_rows(q) * H) * sizeof(real))))
        return NULL;
    return ag_run(t, out);
}
