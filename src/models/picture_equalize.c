/* picture_equalize.c - cross-layer equalization of a network for pictures (Nagel et al. 2019, "Data-Free Quantization").
 *   s_c = sqrt(r1_c / r2_c)     r1: largest |w| of the row that makes channel c, r2: of all weights that read it
 *   row c and its bias / s_c, what reads it * s_c; pair by pair, until ranges stand still
 * Exact between layers with ReLU or nothing between them: both, pools, dropout and flatten pass a positive factor through. ReLU6
 * does not, and such a pair is left alone.
 */
#include "models/models.h"
#include <math.h>
#include <stdlib.h>

enum { SWEEPS = 20 };
#define STILL 1e-3 /* of log s below which a sweep changes nothing */

/* Which channel of the layer before weight d of row n reads; channels: of that layer. */
static int64_t channel_of(const kn_conv *c, int64_t n, int64_t d, int64_t channels)
{
    const int64_t C = c->C / c->groups;
    return (n / (c->N / c->groups) * C + d % C) % channels;
}

/* The largest |log s| of the pair; -1: no memory. */
static double pair(const ly_conv *a, const ly_conv *b)
{
    const int64_t N = a->c.N, depth = kn_conv_depth(&a->c), readers = kn_conv_depth(&b->c);
    double *r = nb_alloc_zeroed((size_t)(2 * N), sizeof *r), most = 0;
    if (!r)
        return -1;
    for (int64_t i = 0; i < N * depth; i++)
        r[i / depth] = fmax(r[i / depth], fabs((double)a->w->x[i]));
    for (int64_t i = 0; i < b->c.N * readers; i++) {
        double *of = &r[N + channel_of(&b->c, i / readers, i % readers, N)];
        *of = fmax(*of, fabs((double)b->w->x[i]));
    }
    for (int64_t n = 0; n < N; n++) {
        const double s = r[n] > 0 && r[N + n] > 0 ? sqrt(r[n] / r[N + n]) : 1;
        most = fmax(most, fabs(log(s)));
        r[n] = s;
    }
    for (int64_t i = 0; i < N * depth; i++)
        a->w->x[i] = (real)((double)a->w->x[i] / r[i / depth]);
    for (int64_t n = 0; a->b && n < N; n++)
        a->b->x[n] = (real)((double)a->b->x[n] / r[n]);
    for (int64_t i = 0; i < b->c.N * readers; i++)
        b->w->x[i] = (real)((double)b->w->x[i] * r[channel_of(&b->c, i / readers, i % readers, N)]);
    free(r);
    return most;
}

status md_net_equalize(md_picture_net *m)
{
    for (int64_t i = 0; i < m->layers; i++)
        if (!m->layer[i].w || m->layer[i].norm_w)
            return nb_fail(NB_USAGE, "%s: equalization is of float weights without a batch norm behind them", m->layer[i].name);
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        double most = 0;
        for (int64_t i = 0; i + 1 < m->layers; i++) {
            const double moved = m->layer[i].act == KN_RELU6 ? 0 : pair(&m->layer[i], &m->layer[i + 1]);
            if (moved < 0)
                return NB_NOMEM;
            most = fmax(most, moved);
        }
        if (most < STILL)
            break;
    }
    m->base.params.version++;
    return NB_OK;
}
