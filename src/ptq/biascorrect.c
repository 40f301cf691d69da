/* biascorrect.c - bias correction (Nagel et al. 2019): rounding of weights moves the mean of an output by E[x] (v - w)', which the bias takes
 * back,  b += (w - v) E[x],  v the values of the codes as ranges are now, x as the quantized blocks before give it. Linears without a bias
 * stay. After a pass that makes latent floats the values of codes (gptq) there is nothing to correct.
 */
#include "ptq/scaling.h"
#include "ptq/walk.h"
#include <stdlib.h>
#include <string.h>

enum { LINEARS = 7 };

static int linears_of(ly_linear *l[LINEARS], md_block *b)
{
    ly_linear *const all[LINEARS] = {&b->attn.wq, &b->attn.wk, &b->attn.wv, &b->attn.wo, &b->mlp.gate, &b->mlp.up, &b->mlp.down};
    int n = 0;
    for (int i = 0; i < LINEARS; i++)
        if (all[i]->w && all[i]->b && all[i]->w_site->spec.grid.bits)
            l[n++] = all[i];
    return n;
}

static fq_site *input_of(const md_model *m, const ly_linear *l)
{
    char name[160];
    return kd_input_site(name, sizeof name, l->w_site->name) ? fq_site_find(&m->sites, name) : NULL;
}

static status correct(ly_linear *l, const pt_input *g, const ag_params *ps)
{
    const kn_codes *c = fq_site_codes(l->w_site, ps);
    real *v = nb_alloc((size_t)l->in, sizeof *v);
    for (int64_t r = 0; c && v && r < l->out; r++) {
        double moved = 0;
        kn_decode(v, c, r, 1);
        for (int64_t j = 0; j < l->in; j++)
            moved += ((double)l->w->x[r * l->in + j] - (double)v[j]) * g->sum[j] / g->rows;
        l->b->x[r] += (real)moved;
    }
    const status s = c && v ? fq_start_site(l->b_site, FQ_START_ABSMAX, NULL) : NB_NOMEM;
    free(v);
    return s;
}

static status do_block(pt_walk *w)
{
    ly_linear *l[LINEARS];
    pt_input input[LINEARS] = {0};
    const int n = linears_of(l, &w->m->block[w->layer]);
    status s = NB_OK;
    for (int i = 0; i < n && s == NB_OK; i++) {
        const fq_site *site = input_of(w->m, l[i]);
        s = site ? pt_input_new(&input[i], site, false, 0, 0, w->tape.precision) : nb_fail(NB_UNSUPPORTED, "%s: its input is not known", l[i]->w_site->name);
    }
    if (s == NB_OK)
        s = pt_walk_watch(w, (ag_tap){pt_gather, &(pt_inputs){input, n}}, NULL);
    for (int i = 0; i < n && s == NB_OK; i++)
        s = correct(l[i], &input[i], &w->m->params);
    w->m->params.version++;
    for (int i = 0; i < n; i++)
        pt_input_free(&input[i]);
    return s;
}

static bool has_biases(md_model *m)
{
    ly_linear *l[LINEARS];
    for (int64_t i = 0; i < m->config.layers; i++)
        if (linears_of(l, &m->block[i]))
            return true;
    return false;
}

status pt_run_biascorrect(md_model *m, const pt_options *o)
{
    pt_walk w;
    if (!m->folded && !has_biases(m))
        return nb_fail(NB_USAGE, "biascorrect: no linear with codes has a bias in this model, there is nothing to correct");
    TRY(pt_walk_new(&w, m, o->data, &o->calibration));
    w.weights = true;
    status s = NB_OK;
    while (w.layer < m->config.layers && s == NB_OK) {
        s = do_block(&w);
        if (s == NB_OK)
            s = pt_walk_next(&w);
    }
    pt_walk_free(&w);
    return s;
}
