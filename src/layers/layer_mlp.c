/* layer_mlp.c - SwiGLU: y = down(silu(gate(x)) * up(x))  (Shazeer 2020). Where silu's own output has a spec it is made apart and quantized, else
 * both steps are one. */
#include "layers/layers.h"
#include <stdio.h>

status ly_mlp_init(ly_mlp *l, ly_build *build, const char *name, int64_t channels, int64_t hidden, double deviation,
                   double out_deviation)
{
    static const char *const what[] = {"input", "act", "down.input"};
    fq_site **const site[] = {&l->input, &l->act, &l->down_input};
    const int64_t cols[] = {channels, hidden, hidden};
    char full[128];
    for (int i = 0; i < 3; i++) {
        snprintf(full, sizeof full, "%s.%s", name, what[i]);
        *site[i] = fq_site_new(build->sites, build->recipe, full, NULL, NULL, 0, cols[i], 0);
        if (!*site[i])
            return NB_USAGE;
    }
    snprintf(full, sizeof full, "%s.gate", name);
    TRY(ly_linear_init(&l->gate, build, full, NULL, channels, hidden, false, deviation));
    snprintf(full, sizeof full, "%s.up", name);
    TRY(ly_linear_init(&l->up, build, full, NULL, channels, hidden, false, deviation));
    snprintf(full, sizeof full, "%s.down", name);
    return ly_linear_init(&l->down, build, full, NULL, hidden, channels, false, out_deviation);
}

ag_tensor *ly_mlp_forward(ag_tape *t, const ly_mlp *l, ag_tensor *x)
{
    ag_tensor *a = fq_apply(t, l->input, x);
    if (a != x)
        ag_done(x);
    ag_tensor *gate = ly_linear_forward(t, &l->gate, a), *up = ly_linear_forward(t, &l->up, a), *y;
    ag_done(a);
    if (l->act->spec.grid.bits) {
        ag_tensor *s = ag_silu(t, gate), *q = fq_apply(t, l->act, s);
        if (q != s)
            ag_done(s);
        y = ag_mul(t, q, up);
        ag_done(q);
    } else {
        y = ag_swiglu(t, gate, up);
    }
    ag_done(gate);
    ag_done(up);
    ag_tensor *d = fq_apply(t, l->down_input, y);
    if (d != y)
        ag_done(y);
    y = ly_linear_forward(t, &l->down, d);
    ag_done(d);
    return y;
}
