/* picture_equalize.c - pairs of neighbouring layers of a network for pictures, scaled against each other, and cross-layer equalization (Nagel et
 * al. 2019, "Data-Free Quantization").
 *   s_c = sqrt(r1_c / r2_c)     r1: largest |w| of the row that makes channel c, r2: of all weights that read it
 *   row c and its bias / s_c, what reads it * s_c; pair by pair, until ranges stand still
 * Exact between layers with ReLU or nothing between them: both, pools, dropout and flatten pass a positive factor through. ReLU6
 * does not, and such a pair is left alone.
 */
#include "models/models.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SWEEPS = 20 };
#define STILL 1e-3 /* of log s below which a sweep changes nothing */

/* Which channel of the layer before weight d of row n reads; channels: of that layer. */
static int64_t channel_of(const kn_conv *c, int64_t n, int64_t d, int64_t channels)
{
    const int64_t C = c->C / c->groups;
    return (n / (c->N / c->groups) * C + d % C) % channels;
}

bool md_net_is_pair(const md_picture_net *m, int64_t i)
{
    return i >= 0 && i + 1 < m->layers && m->layer[i].act != KN_RELU6;
}

void md_net_extremes(real *rows, real *readers, const md_picture_net *m, int64_t i)
{
    const ly_conv *a = &m->layer[i], *b = &m->layer[i + 1];
    const int64_t N = a->c.N, depth = kn_conv_depth(&a->c), reads = kn_conv_depth(&b->c);
    memset(rows, 0, (size_t)N * sizeof *rows);
    memset(readers, 0, (size_t)N * sizeof *readers);
    for (int64_t k = 0; k < N * depth; k++)
        rows[k / depth] = (real)fmax((double)rows[k / depth], fabs((double)a->w->x[k]));
    for (int64_t k = 0; k < b->c.N * reads; k++) {
        real *of = &readers[channel_of(&b->c, k / reads, k % reads, N)];
        *of = (real)fmax((double)*of, fabs((double)b->w->x[k]));
    }
}

void md_net_scale_pair(md_picture_net *m, int64_t i, const real *s)
{
    const ly_conv *a = &m->layer[i], *b = &m->layer[i + 1];
    const int64_t N = a->c.N, depth = kn_conv_depth(&a->c), reads = kn_conv_depth(&b->c);
    for (int64_t k = 0; k < N * depth; k++)
        a->w->x[k] /= s[k / depth];
    for (int64_t n = 0; a->b && n < N; n++)
        a->b->x[n] /= s[n];
    for (int64_t k = 0; k < b->c.N * reads; k++)
        b->w->x[k] *= s[channel_of(&b->c, k / reads, k % reads, N)];
    m->base.params.version++;
}

/* The largest |log s| of the pair; -1: no memory. */
static double even(md_picture_net *m, int64_t i)
{
    const int64_t N = m->layer[i].c.N;
    real *r = nb_alloc((size_t)(2 * N), sizeof *r);
    double most = 0;
    if (!r)
        return -1;
    md_net_extremes(r, r + N, m, i);
    for (int64_t n = 0; n < N; n++) {
        const double s = r[n] > 0 && r[N + n] > 0 ? sqrt((double)r[n] / (double)r[N + n]) : 1;
        most = fmax(most, fabs(log(s)));
        r[n] = (real)s;
    }
    md_net_scale_pair(m, i, r);
    free(r);
    return most;
}

status md_net_equalize(md_picture_net *m)
{
    for (int64_t i = 0; i < m->layers; i++)
        if (!m->layer[i].w || m->layer[i].norm_w)
            return nb_fail(NB_USAGE, "%s: equalization is of float weights without a batch norm behind them",
                           m->layer[i].name);
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        double most = 0;
        for (int64_t i = 0; i + 1 < m->layers; i++) {
            const double moved = md_net_is_pair(m, i) ? even(m, i) : 0;
            if (moved < 0)
                return NB_NOMEM;
            most = fmax(most, moved);
        }
        if (most < STILL)
            break;
    }
    return NB_OK;
}
