/* rotate.c - the same function in other coordinates: R1 turns the residual stream, R2 each kv head's values. With x a row of the
 * residual stream, x' = x R1 everywhere:
 *   norm(x R1) = norm(x) R1 for a norm whose weights are one number        y = w n' = (w R1) (n R1)'        y R1 = (R1' w) a
 * and with v' = v R2, attention's output is o R2 for every query head of the group: wo (o)' = (wo R2) (o R2)'.
 * Online, what a matrix before it cannot take is multiplied in the forward: heads of q and k after their rotation by a Hadamard matrix H (R3), which leaves
 * scores as they are, and what down reads (R4): (w H) (x H)' = w x'.
 * (Ashkboos et al. 2024; Liu et al. 2024. SpinQuant's subtraction of the embedding's mean belongs to LayerNorm and would change the function here.)
 */
#include "ptq/orthogonal.h"
#include "ptq/ptq.h"
#include <math.h>
#include <stdlib.h>

/* What turns one side of a matrix: its vector in blocks of r->n, block i by the signs of i / group. A zeroed struct: nothing. */
typedef struct {
    const pt_orthogonal *r;
    const double *sign; /* [blocks / group, r->n] */
    int64_t group;
} side;

static void turn_vector(double *x, int64_t n, const side *s, double *scratch)
{
    for (int64_t i = 0; s->r && i < n / s->r->n; i++)
        pt_orthogonal_apply(s->r, x + i * s->r->n, s->sign + i / s->group * s->r->n, scratch);
}

/* Rows [row, row + n) of w [.., C] into x [n, C], times gamma by column (NULL: 1), the input side turned. */
static status turn_rows(double *x, const real *w, int64_t n, int64_t C, const real *gamma, const side *in)
{
    bool failed = false;
#pragma omp parallel
    {
        double *scratch = nb_alloc((size_t)C, sizeof *scratch);
#pragma omp for
        for (int64_t m = 0; m < n; m++) {
            for (int64_t c = 0; c < C; c++)
                x[m * C + c] = (double)w[m * C + c] * (gamma ? (double)gamma[c] : 1);
            if (scratch)
                turn_vector(x + m * C, C, in, scratch);
        }
        if (!scratch) {
#pragma omp atomic write
            failed = true;
        }
        free(scratch);
    }
    return failed ? NB_NOMEM : NB_OK;
}

/* The output side: every column of x [M, C]. */
static status turn_columns(double *x, int64_t M, int64_t C, const side *out)
{
    bool failed = false;
#pragma omp parallel
    {
        double *column = nb_alloc((size_t)M, 2 * sizeof *column);
#pragma omp for
        for (int64_t c = 0; c < C; c++) {
            for (int64_t m = 0; column && m < M; m++)
                column[m] = x[m * C + c];
            if (column)
                turn_vector(column, M, out, column + M);
            for (int64_t m = 0; column && m < M; m++)
                x[m * C + c] = column[m];
        }
        if (!column) {
#pragma omp atomic write
            failed = true;
        }
        free(column);
    }
    return failed ? NB_NOMEM : NB_OK;
}

/* w <- out' (w diag(gamma)) in, rounded to floats once. Rows by themselves go in parts, so that an embedding is never whole in doubles. */
static status turn(ag_param *w, const real *gamma, side in, side out)
{
    const int64_t C = w->dim[w->n_dim - 1], M = w->count / C, part = out.r ? M : M < 1024 ? M : 1024;
    double *x = nb_alloc((size_t)part, (size_t)C * sizeof *x);
    status s = x ? NB_OK : NB_NOMEM;
    for (int64_t m = 0; m < M && s == NB_OK; m += part) {
        const int64_t n = M - m < part ? M - m : part;
        s = turn_rows(x, w->x + m * C, n, C, gamma, &in);
        if (s == NB_OK && out.r)
            s = turn_columns(x, M, C, &out);
        for (int64_t i = 0; i < n * C && s == NB_OK; i++)
            w->x[m * C + i] = (real)x[i];
    }
    free(x);
    return s;
}

/* A bias is a vector on the output side. */
static status turn_bias(ag_param *b, side out)
{
    return b ? turn(b, NULL, out, (side){0}) : NB_OK;
}

/* Splits a norm's gamma into c, a number, which any turn lets pass, and gamma / c, which goes into the n linears behind it. With
 * c^2 = sum (w gamma)^2 / sum w^2 their weights keep their size: a learning rate means what it meant before. Leaves gamma / c. */
static real take_out(ag_param *gamma, ag_param *const w[], int n)
{
    const int64_t C = gamma->count;
    double before = 0, after = 0;
    for (int k = 0; k < n; k++)
        for (int64_t m = 0; m < w[k]->count; m += C)
            for (int64_t i = 0; i < C; i++) {
                const double x = (double)w[k]->x[m + i], y = x * (double)gamma->x[i];
                before += x * x;
                after += y * y;
            }
    const real c = before > 0 && after > 0 ? (real)sqrt(after / before) : 1;
    for (int64_t i = 0; i < C; i++)
        gamma->x[i] /= c;
    return c;
}

static void set_all(ag_param *gamma, real c)
{
    for (int64_t i = 0; i < gamma->count; i++)
        gamma->x[i] = c;
}

/* ---- the model ---------------------------------------------------------------------------- */

static status turn_block(md_block *b, const md_config *c, side r1, side r2, side r4)
{
    const side heads = {r2.r, r2.sign, c->heads / c->kv_heads}, none = {0};
    const real *attn = b->attn_norm.w->x, *mlp = b->mlp_norm.w->x;
    ly_attention *a = &b->attn;
    const real c_attn = take_out(b->attn_norm.w, (ag_param *const[]){a->wq.w, a->wk.w, a->wv.w}, 3);
    const real c_mlp = take_out(b->mlp_norm.w, (ag_param *const[]){b->mlp.gate.w, b->mlp.up.w}, 2);
    TRY(turn(a->wq.w, attn, r1, none));
    TRY(turn(a->wk.w, attn, r1, none));
    TRY(turn(a->wv.w, attn, r1, r2));
    TRY(turn_bias(a->wv.b, r2));
    TRY(turn(a->wo.w, NULL, heads, r1));
    TRY(turn_bias(a->wo.b, r1));
    TRY(turn(b->mlp.gate.w, mlp, r1, none));
    TRY(turn(b->mlp.up.w, mlp, r1, none));
    TRY(turn(b->mlp.down.w, NULL, r4, r1));
    set_all(b->attn_norm.w, c_attn);
    set_all(b->mlp_norm.w, c_mlp);
    return NB_OK;
}

static void random_signs(double *sign, int64_t n, uint64_t seed, uint64_t stream)
{
    for (int64_t i = 0; i < n; i++)
        sign[i] = nb_random(seed, stream, (uint64_t)i) & 1 ? -1 : 1;
}

/* What turns the residual stream, a head's values and, online, what down reads, the last without random signs; signs of the three. */
typedef struct {
    pt_orthogonal stream, head, hidden;
    double *sign[3]; /* [dim], [kv_heads head_size], [block of hidden] */
} turns;

static status turn_model(md_model *m, const turns *by, uint64_t seed)
{
    const md_config *c = &m->config;
    double *sign2 = by->sign[1];
    const side r1 = {&by->stream, by->sign[0], 1}, r2 = {&by->head, sign2, 1}, none = {0};
    const side r4 = by->hidden.core ? (side){&by->hidden, by->sign[2], c->hidden} : none; /* all blocks alike */
    random_signs(by->sign[0], c->dim, seed, 0);
    TRY(turn(m->embed, NULL, r1, none));
    for (int64_t i = 0; i < c->layers; i++) {
        random_signs(sign2, c->kv_heads * c->head_size, seed, 1 + (uint64_t)i);
        TRY(turn_block(&m->block[i], c, r1, r2, r4));
    }
    const real c_head = take_out(m->norm.w, (ag_param *const[]){m->head.w}, 1);
    TRY(turn(m->head.w, m->norm.w->x, r1, none));
    set_all(m->norm.w, c_head);
    return NB_OK;
}

/* Ranges that belonged to the weights as they were. */
static void forget_ranges(md_model *m)
{
    for (int64_t i = 0; i < m->sites.n; i++) {
        fq_site *s = m->sites.s[i];
        if (!s->is_weight || !s->started)
            continue;
        s->started = false;
        for (int64_t k = 0; k < s->n_scales; k++) {
            if (s->u)
                s->u->x[k] = 0;
            if (s->v)
                s->v->x[k] = 0;
        }
    }
    m->params.version++;
}

static status prepare(turns *by, const md_model *m, uint64_t seed)
{
    const md_config *c = &m->config;
    const int64_t block = m->turn_hidden ? kn_hadamard_order(m->turn_hidden) : 0;
    TRY(pt_orthogonal_new(&by->stream, c->dim, seed));
    TRY(pt_orthogonal_new(&by->head, c->head_size, nb_random(seed, 0, 0)));
    if (block)
        TRY(pt_orthogonal_new(&by->hidden, block, 0));
    const int64_t n[] = {c->dim, c->kv_heads * c->head_size, block};
    for (int k = 0; k < 3; k++) {
        if (!(by->sign[k] = nb_alloc((size_t)n[k] + 1, sizeof **by->sign)))
            return NB_NOMEM;
        for (int64_t i = 0; i < n[k]; i++)
            by->sign[k][i] = 1;
    }
    return NB_OK;
}

status pt_rotate(md_model *m, uint64_t seed, bool online)
{
    turns by = {0};
    if (m->folded)
        return nb_fail(NB_USAGE, "rotation needs the floats of a model, this one is folded");
    if (m->norm.b)
        return nb_fail(NB_UNSUPPORTED, "rotation needs RMSNorm: this model's LayerNorm takes the mean of channels, which a rotation mixes");
    if (m->config.hadamard)
        return nb_fail(NB_USAGE, "the model is rotated already, with Hadamard matrices in its forward");
    status s = md_untie(m);
    if (s == NB_OK && online)
        s = md_turn(m);
    if (s == NB_OK)
        s = prepare(&by, m, seed);
    if (s == NB_OK)
        s = turn_model(m, &by, seed);
    pt_orthogonal_free(&by.stream);
    pt_orthogonal_free(&by.head);
    pt_orthogonal_free(&by.hidden);
    for (int k = 0; k < 3; k++)
        free(by.sign[k]);
    if (s == NB_OK)
        forget_ranges(m);
    else
        md_free(m);
    return s;
}
