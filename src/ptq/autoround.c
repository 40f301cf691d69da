/* autoround.c - rounding and ranges by signs of gradients (AutoRound, SignRound; Cheng et al. 2023).
 *   w^ = s clip(rne(w / s + V)),  |V| <= 1/2,  s = s0 e^u;   V -= lr sign(dL/dV),  u -= rate sign(dL/du),  both rates falling to 0, from 1 / steps and 0.002
 * The latent itself is what is trained: w + s V is its value, so dL/dV = s dL/dlatent, V's box is the latent's, half a step to each side of
 * w, and folding encodes what training did. Ranges that are not learned stay as they are.
 */
#include "ptq/block_train.h"
#include "ptq/blockwise.h"
#include <math.h>

static status begin(pt_block *b)
{
    for (int64_t i = 0; i < b->n; i++) {
        fq_site *s = b->weight[i].site;
        TRY(pt_block_train(b, s->w));
        if (s->u)
            TRY(pt_block_train(b, s->u));
        if (s->v)
            TRY(pt_block_train(b, s->v));
    }
    return NB_OK;
}

static inline real sign(real x)
{
    return (real)((x > 0) - (x < 0));
}

static void step_rows(const pt_block_weight *w, real lr, int64_t from, int64_t to)
{
    const kn_codes *c = &w->site->codes;
    const ag_param *p = w->site->w;
    for (int64_t row = from; row < to; row++)
        for (int64_t col = 0, n; col < c->cols; col += n) {
            n = pt_run_of_scale(c, row, col);
            const real s = (real)fabs((double)w->scale[kn_scale_index(c, row, col)]), half = s / 2;
            for (int64_t i = row * c->cols + col, end = i + n; i < end; i++) {
                const real x = p->x[i] - lr * s * sign(p->g[i]), low = w->start[i] - half, high = w->start[i] + half;
                p->x[i] = x < low ? low : x > high ? high : x;
            }
        }
}

static void step_range(ag_param *p, real rate)
{
    for (int64_t i = 0; p && i < p->count && p->has_grad; i++)
        p->x[i] -= rate * sign(p->g[i]);
}

static void update(pt_block *b, double lr, double scale_rate)
{
    for (int64_t i = 0; i < b->n; i++) {
        pt_block_weight *w = &b->weight[i];
        const int64_t rows = w->site->rows;
        step_range(w->site->u, (real)scale_rate);
        step_range(w->site->v, (real)scale_rate);
        if (!w->site->w->has_grad)
            continue;
        if (w->site->start)
            fq_site_ranges(w->site, w->scale, NULL);
#pragma omp parallel for
        for (int64_t row = 0; row < rows; row++)
            step_rows(w, (real)lr, row, row + 1);
    }
}

status pt_autoround(md_model *m, const pt_options *o)
{
    static const pt_block_method how = {
        .name = "autoround", .scale_rate = 2e-3, .schedule = {.kind = AG_LINEAR}, .begin = begin, .update = update};
    return pt_train_blocks(m, o, &how);
}
