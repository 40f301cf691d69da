/* omniquant.c - learned clipping and learned equivalent transformations, block by block (OmniQuant, Shao et al. 2024).
 *   LWC: the ranges of weights are trained, rounding to nearest: s = s0 e^u (and the zero points that a recipe learns) in place of the
 *        paper's sigmoid of a share of max|w|; the gradient is the same but for that factor (op_fake.c)
 *   LET, where the recipe quantizes what goes into the block's linears: channels are scaled on the way out of one operation and back on the
 *        way into the next, which in floats changes nothing:
 *        norm w, b e^-a -> wq, wk, wv (gate, up) columns e^a        wv rows, bias e^-c -> columns e^c of wo that read them
 *        a, c begin at 0: smoothquant+omniquant begins at SmoothQuant's. Through SwiGLU and the rotation of q and k there is none, as in the paper.
 *   d/da_j = sum_i g_ij w_ij over the columns scaled up - sum over what is scaled down, w as it is now
 */
#include "ptq/block_train.h"
#include "ptq/blockwise.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 12 };

/* A parameter as a matrix [rows, cols] whose element (i, j) is scaled by e^(sign a[group of (i or j)]). */
typedef struct {
    ag_param *p, *a;
    int64_t rows, cols;
    bool by_row;      /* the factor's index is the row's; else the column's */
    int sign;
    int64_t head, share; /* index = j / (head * share) * head + j % head; 0: j */
    real *start; /* shared by those of one parameter */
} scaled;

typedef struct {
    scaled part[MOST];
    int n;
    bool failed;
} transform;

static transform *transform_of(const pt_block *b)
{
    return b->ctx;
}

/* The values when the block began: kept once for every parameter, however many factors it has. */
static real *start_of(transform *t, const ag_param *p)
{
    for (int i = 0; i < t->n; i++)
        if (t->part[i].p == p)
            return t->part[i].start;
    real *x = nb_alloc((size_t)p->count, sizeof *x);
    if (x)
        memcpy(x, p->x, (size_t)p->count * sizeof *x);
    t->failed = t->failed || !x;
    return x;
}

static void add(transform *t, ag_param *p, ag_param *a, bool by_row, int sign, int64_t head, int64_t share)
{
    if (!p || !a || t->failed || t->n == MOST)
        return;
    real *start = start_of(t, p);
    const int64_t last = p->dim[p->n_dim - 1];
    t->part[t->n++] = (scaled){.p = p, .a = a, .rows = p->n_dim == 2 ? p->dim[0] : 1, .cols = last, .by_row = by_row && p->n_dim == 2,
                               .sign = sign, .head = head, .share = share, .start = start};
}

static ag_param *factors(pt_block *b, const char *name, int64_t n)
{
    ag_param *a = ag_param_new(&b->own, name, AG_WEIGHT, 1, &n);
    if (!a || !(a->g = nb_alloc_aligned((size_t)n, sizeof(real))))
        return NULL;
    return pt_block_train(b, a) == NB_OK ? a : NULL;
}

static bool is_quantized(const fq_site *s)
{
    return s && s->spec.grid.bits;
}

static status equivalent(pt_block *b, transform *t)
{
    const md_block *k = &b->m->block[b->layer];
    const ly_attention *at = &k->attn;
    const int64_t C = b->m->config.dim, D = at->head_size, kv = at->kv_heads * D, share = at->heads / at->kv_heads;
    ag_param *a = NULL, *c = NULL, *e = NULL;
    if (is_quantized(at->input) && !(a = factors(b, "attn", C)))
        return NB_NOMEM;
    if (is_quantized(at->out_input) && !(c = factors(b, "out", kv)))
        return NB_NOMEM;
    if (is_quantized(k->mlp.input) && !(e = factors(b, "mlp", C)))
        return NB_NOMEM;
    add(t, k->attn_norm.w, a, false, -1, 0, 0);
    add(t, k->attn_norm.b, a, false, -1, 0, 0);
    add(t, at->wq.w, a, false, 1, 0, 0);
    add(t, at->wk.w, a, false, 1, 0, 0);
    add(t, at->wv.w, a, false, 1, 0, 0);
    add(t, at->wv.w, c, true, -1, 0, 0);
    add(t, at->wv.b, c, false, -1, 0, 0);
    add(t, at->wo.w, c, false, 1, D, share);
    add(t, k->mlp_norm.w, e, false, -1, 0, 0);
    add(t, k->mlp_norm.b, e, false, -1, 0, 0);
    add(t, k->mlp.gate.w, e, false, 1, 0, 0);
    add(t, k->mlp.up.w, e, false, 1, 0, 0);
    for (int i = 0; i < t->n && !t->failed; i++)
        TRY(pt_block_watch(b, t->part[i].p));
    return t->failed ? NB_NOMEM : NB_OK;
}

static status begin(pt_block *b)
{
    bool learned = false;
    transform *t = nb_alloc_zeroed(1, sizeof *t);
    b->ctx = t;
    if (!t)
        return NB_NOMEM;
    TRY(equivalent(b, t));
    for (int64_t i = 0; i < b->n; i++) {
        ag_param *const range[] = {b->weight[i].site->u, b->weight[i].site->v};
        for (int k = 0; k < 2; k++)
            if (range[k]) {
                TRY(pt_block_train(b, range[k]));
                learned = true;
            }
    }
    return learned || t->n ? NB_OK
                           : nb_fail(NB_USAGE, "recipe %s: omniquant learns ranges of weights, or scales what it quantizes the inputs of; here is neither (learned)",
                                     b->m->recipe.name);
}

static void end(pt_block *b)
{
    transform *t = transform_of(b);
    for (int i = 0; t && i < t->n; i++) {
        bool again = false;
        for (int k = 0; k < i; k++)
            again = again || t->part[k].start == t->part[i].start;
        if (!again)
            free(t->part[i].start);
    }
    free(t);
    b->ctx = NULL;
}

static inline int64_t index_of(const scaled *s, int64_t i, int64_t j)
{
    const int64_t k = s->by_row ? i : j;
    return s->head ? k / (s->head * s->share) * s->head + k % s->head : k;
}

static void compose(pt_block *b)
{
    const transform *t = transform_of(b);
    for (int n = 0; n < t->n; n++) {
        const scaled *s = &t->part[n];
        bool again = false;
        for (int k = 0; k < n; k++)
            again = again || t->part[k].p == s->p;
        real *x = s->p->x;
        if (!again)
            memcpy(x, s->start, (size_t)s->p->count * sizeof *x);
        for (int64_t i = 0; i < s->rows; i++)
            for (int64_t j = 0; j < s->cols; j++)
                x[i * s->cols + j] *= (real)exp(s->sign * (double)s->a->x[index_of(s, i, j)]);
    }
}

static void pull(pt_block *b)
{
    const transform *t = transform_of(b);
    for (int64_t i = 0; i < b->own.n; i++) {
        memset(b->own.p[i]->g, 0, (size_t)b->own.p[i]->count * sizeof(real));
        b->own.p[i]->has_grad = true;
    }
    for (int n = 0; n < t->n; n++) {
        const scaled *s = &t->part[n];
        for (int64_t i = 0; i < s->rows && s->p->has_grad; i++)
            for (int64_t j = 0; j < s->cols; j++)
                s->a->g[index_of(s, i, j)] += (real)s->sign * s->p->g[i * s->cols + j] * s->p->x[i * s->cols + j];
    }
}

status pt_omniquant(md_model *m, const pt_options *o)
{
    static const pt_block_method how = {.name = "omniquant",
                                        .lr = 5e-3,
                                        .scale_rate = 2e-2,
                                        .schedule = {.kind = AG_COSINE, .floor = 0.05},
                                        .begin = begin,
                                        .compose = compose,
                                        .pull = pull,
                                        .end = end};
    return pt_train_blocks(m, o, &how);
}
