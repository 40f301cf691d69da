/* equalize.c - cross-layer equalization (Nagel et al. 2019): rows of one linear and columns of the next get the same largest magnitude,
 *   s_i = sqrt(max |row i| / max |column i|),  row i / s_i,  column i * s_i
 * for v -> o (columns of all query heads that read a value), up -> down (SwiGLU), and q, k: rows of q / s, of k * s, scores stay where s is the
 * same for both halves of a rotated pair and all heads that share a key.
 */
#include "ptq/scaling.h"
#include <math.h>
#include <stdlib.h>

static void raise_to(real *most, const real *x, int64_t n)
{
    const real a = kn_absmax(x, n);
    *most = a > *most ? a : *most;
}

static real share(real made, real read)
{
    const double s = made > 0 && read > 0 ? sqrt((double)made / (double)read) : 1;
    return (real)(s < 1e-4 ? 1e-4 : s > 1e4 ? 1e4 : s);
}

static status equalize_pair(const pt_pair *p)
{
    const ag_param *w = p->source->w, *r = p->reader[0]->w;
    const int64_t n = p->channels, in = p->source->in, K = p->reader[0]->in;
    real *s = nb_alloc((size_t)n, 2 * sizeof *s), *read = s ? s + n : NULL;
    if (!s)
        return NB_NOMEM;
    for (int64_t i = 0; i < n; i++)
        read[i] = 0;
    for (int64_t i = 0; i < r->count; i++)
        raise_to(&read[pt_pair_channel(p, i % K)], r->x + i, 1);
    for (int64_t i = 0; i < n; i++)
        s[i] = share(kn_absmax(w->x + i * in, in), read[i]);
    pt_scale_pair(p, s);
    free(s);
    return NB_OK;
}

static status equalize_keys(const ly_attention *a)
{
    const int64_t D = a->head_size, repeat = a->heads / a->kv_heads, in = a->wq.in;
    real *s = nb_alloc((size_t)a->kv_heads, (size_t)(D / 2) * sizeof *s);
    if (!s)
        return NB_NOMEM;
    for (int64_t g = 0; g < a->kv_heads; g++)
        for (int64_t i = 0; i < D / 2; i++) {
            int64_t half[2];
            real q = 0, k = 0;
            pt_pair_halves(half, a, i);
            for (int e = 0; e < 2; e++) {
                raise_to(&k, a->wk.w->x + (g * D + half[e]) * in, in);
                for (int64_t h = g * repeat; h < (g + 1) * repeat; h++)
                    raise_to(&q, a->wq.w->x + (h * D + half[e]) * in, in);
            }
            s[g * (D / 2) + i] = share(k, q);
        }
    pt_scale_keys(a, s);
    free(s);
    return NB_OK;
}

status pt_run_equalize(md_model *m, const pt_options *o)
{
    (void)o;
    if (m->folded)
        return nb_fail(NB_USAGE, "equalization needs the floats of a model, this one is folded");
    for (int64_t l = 0; l < m->config.layers; l++) {
        pt_pair pair[PT_PAIRS];
        const int n = pt_pairs(pair, m, l);
        for (int i = 0; i < n; i++)
            if (pair[i].source)
                TRY(equalize_pair(&pair[i]));
        TRY(equalize_keys(&m->block[l].attn));
    }
    m->params.version++;
    return NB_OK;
}
