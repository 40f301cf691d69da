/* adaround.c - rounding up or down as a continuous choice (AdaRound, Nagel et al. 2020), for all weights of a block at once.
 *   w^ = s clip(floor(w / s) + h(V)),  h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1), V such that h is the fraction at the start
 *   L + L_0 mean over weights of (1 - |2 h - 1|^beta), L_0 the error of rounding to nearest; without the second term in the first fifth of
 *   the steps, then beta falls from 20 to 2 and h goes to 0 or 1; then it is rounded
 * Scales stay as they are. (The paper's weight of 0.01 belongs to an error summed over channels; L here is relative.)
 */
#include "ptq/block_train.h"
#include "ptq/blockwise.h"
#include <math.h>

static const double warm = 0.2, beta_from = 20, beta_to = 2;

typedef struct {
    double inv, scale, floor, h, slope; /* slope: dh/dV */
    double lo, hi;                      /* of floor + h */
} rounding;

static rounding rounding_of(const pt_block_weight *w, int64_t index, int64_t i)
{
    const kn_codes *c = &w->site->codes;
    const int32_t zero = c->zero ? c->zero[index] : 0;
    const double sigmoid = 1 / (1 + exp(-(double)w->own->x[i])), h = 1.2 * sigmoid - 0.1;
    rounding r = {.scale = (double)w->scale[index], .inv = (double)kn_inverse(w->scale[index]), .lo = c->grid.lo - zero, .hi = c->grid.hi - zero};
    r.floor = floor((double)w->start[i] * r.inv);
    r.h = h < 0 ? 0 : h > 1 ? 1 : h;
    r.slope = h > 0 && h < 1 ? 1.2 * sigmoid * (1 - sigmoid) : 0;
    return r;
}

/* V of the fraction of w / s; held off 0 and 1, where h has no slope. */
static void start(pt_block_weight *w)
{
    const kn_codes *c = &w->site->codes;
    for (int64_t row = 0; row < c->rows; row++)
        for (int64_t col = 0; col < c->cols; col++) {
            const int64_t i = row * c->cols + col;
            const double x = (double)w->start[i] * (double)kn_inverse(w->scale[kn_scale_index(c, row, col)]);
            const double fraction = fmin(fmax(x - floor(x), 0.001), 0.999), p = (fraction + 0.1) / 1.2;
            w->own->x[i] = (real)log(p / (1 - p));
        }
}

static status begin(pt_block *b)
{
    for (int64_t i = 0; i < b->n; i++) {
        pt_block_weight *w = &b->weight[i];
        fq_site *s = w->site;
        if (s->spec.grid.levels != KN_LEVELS_INT || !s->start)
            return nb_fail(NB_UNSUPPORTED, "%s: adaround rounds to whole codes of a range that stands (a recipe with int and learned or static)", s->name);
        if (!fq_site_codes(s, &b->m->params))
            return NB_NOMEM;
        w->own = ag_param_new(&b->own, s->name, AG_WEIGHT, s->w->n_dim, s->w->dim);
        w->own->g = w->own ? nb_alloc_aligned((size_t)w->own->count, sizeof(real)) : NULL;
        if (!w->own || !w->own->g)
            return NB_NOMEM;
        start(w);
        TRY(pt_block_train(b, w->own));
        TRY(pt_block_watch(b, s->w));
    }
    return NB_OK;
}

static void compose(pt_block *b)
{
    for (int64_t k = 0; k < b->n; k++) {
        const pt_block_weight *w = &b->weight[k];
        const kn_codes *c = &w->site->codes;
        const int64_t rows = c->rows, cols = c->cols;
#pragma omp parallel for
        for (int64_t row = 0; row < rows; row++)
            for (int64_t col = 0; col < cols; col++) {
                const int64_t i = row * cols + col;
                const rounding r = rounding_of(w, kn_scale_index(c, row, col), i);
                const double q = r.floor + (b->hard ? (double)(r.h >= 0.5) : r.h);
                w->site->w->x[i] = (real)((q < r.lo ? r.lo : q > r.hi ? r.hi : q) * r.scale);
            }
    }
}

static void pull(pt_block *b)
{
    const double done = (double)b->step / (double)b->steps, left = done < warm ? 1 : (1 - done) / (1 - warm);
    const double beta = beta_to + (beta_from - beta_to) * left;
    double n = 0;
    for (int64_t k = 0; k < b->n; k++)
        n += (double)b->weight[k].site->w->count;
    const double pressure = done < warm ? 0 : b->first / n;
    for (int64_t k = 0; k < b->n; k++) {
        const pt_block_weight *w = &b->weight[k];
        const kn_codes *c = &w->site->codes;
        const int64_t rows = c->rows, cols = c->cols;
        const real *g = w->site->w->g;
        w->own->has_grad = true;
#pragma omp parallel for
        for (int64_t row = 0; row < rows; row++)
            for (int64_t col = 0; col < cols; col++) {
                const int64_t i = row * cols + col;
                const rounding r = rounding_of(w, kn_scale_index(c, row, col), i);
                const double q = r.floor + r.h, side = 2 * r.h - 1;
                const double d = q >= r.lo && q <= r.hi ? (double)g[i] * r.scale : 0;
                const double regular = -2 * beta * pow(fabs(side), beta - 1) * (side > 0 ? 1 : -1);
                w->own->g[i] = (real)((d + pressure * regular) * r.slope);
            }
    }
}

status pt_adaround(md_model *m, const pt_options *o)
{
    static const pt_block_method how = {.name = "adaround",
                                        .soft = true,
                                        .lr = 2e-1,
                                        .scale_rate = 1e-3,
                                        .schedule = {.kind = AG_LINEAR, .floor = 0.1},
                                        .begin = begin,
                                        .compose = compose,
                                        .pull = pull};
    return pt_train_blocks(m, o, &how);
}
