/* layer_mlp.c - the two layers between attentions.
 *   SwiGLU: y = down(silu(gate(x)) * up(x))  (Shazeer 2020). Where silu's own output has a spec it is made apart and quantized, else
 *           both steps are one.
 *   GELU:   y = down(gelu(up(x)))            (Hendrycks & Gimpel 2016; GPT-2, Radford et al. 2019)
 * With a Hadamard matrix H down reads x H in place of x, its weights being those of the model times H (R4, Liu et al. 2024).
 */
#include "layers/layers.h"
#include <stdio.h>

static status site(fq_site **s, ly_build *build, const char *name, const char *what, const char *alias, int64_t cols)
{
    char full[128], other[128];
    snprintf(full, sizeof full, "%s.%s", name, what);
    snprintf(other, sizeof other, "%s.%s", name, alias ? alias : "");
    *s = fq_site_new(build->sites, build->recipe, full, alias ? other : NULL, NULL, 0, cols, 0);
    return *s ? NB_OK : NB_USAGE;
}

static status linear(ly_linear *l, ly_build *build, const char *name, const char *what, int64_t in, int64_t out, bool bias,
                     double deviation)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", name, what);
    return ly_linear_init(l, build, full, NULL, in, out, bias, deviation);
}

status ly_mlp_init(ly_mlp *l, ly_build *build, const char *name, ly_activation activation, int64_t channels, int64_t hidden,
                   double deviation, double out_deviation)
{
    const bool gelu = activation == LY_GELU;
    *l = (ly_mlp){.activation = activation};
    TRY(site(&l->input, build, name, "input", NULL, channels));
    if (!gelu)
        TRY(site(&l->act, build, name, "act", NULL, hidden));
    TRY(site(&l->down_input, build, name, "down.input", gelu ? "gelu" : NULL, hidden));
    if (!gelu)
        TRY(linear(&l->gate, build, name, "gate", channels, hidden, false, deviation));
    TRY(linear(&l->up, build, name, "up", channels, hidden, gelu, deviation));
    return linear(&l->down, build, name, "down", hidden, channels, gelu, out_deviation);
}

/* silu(gate) * up */
static ag_tensor *gated(ag_tape *t, const ly_mlp *l, ag_tensor *gate, ag_tensor *up)
{
    if (!l->act->spec.grid.bits)
        return ag_swiglu(t, gate, up);
    ag_tensor *s = ag_silu(t, gate), *q = fq_apply(t, l->act, s);
    if (q != s)
        ag_done(s);
    ag_tensor *y = ag_mul(t, q, up);
    ag_done(q);
    return y;
}

ag_tensor *ly_mlp_forward(ag_tape *t, const ly_mlp *l, ag_tensor *x)
{
    const bool gelu = l->activation == LY_GELU;
    ag_tensor *a = fq_apply(t, l->input, x);
    if (a != x)
        ag_done(x);
    ag_tensor *gate = gelu ? NULL : ly_linear_forward(t, &l->gate, a), *up = ly_linear_forward(t, &l->up, a);
    ag_done(a);
    ag_tensor *y = gelu ? ag_gelu(t, up, true) : gated(t, l, gate, up);
    ag_done(gate);
    ag_done(up);
    if (l->turn) {
        ag_tensor *h = ag_hadamard(t, y, l->turn);
        ag_done(y);
        y = h;
    }
    ag_tensor *d = fq_apply(t, l->down_input, y);
    if (d != y)
        ag_done(y);
    y = ly_linear_forward(t, &l->down, d);
    ag_done(d);
    return y;
}
