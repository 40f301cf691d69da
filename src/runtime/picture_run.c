/* picture_run.c - a network for pictures in integers alone: codes in, codes out.
 *   input   q = the grid's code of pixel / 255, from a table of 256
 *   conv    32-bit sums with the bias, requantized; ReLU is a clamp      pools on codes      the class is the largest logit's code
 */
#include "runtime/runtime.h"
#include <stdlib.h>
#include <string.h>

enum { SLACK = 64 };

/* Scale and zero of a site of activations as integers need them. */
static status range_of(const fq_site *s, real *scale, int32_t *zero)
{
    const kn_grid *g = &s->spec.grid;
    if (!g->bits || g->bits > 8 || g->levels != KN_LEVELS_INT || g->grain != KN_TENSOR || s->spec.range == FQ_DYNAMIC)
        return nb_fail(NB_UNSUPPORTED, "%s is not in codes of at most 8 bits with one static range", s->name);
    if (!s->started)
        return nb_fail(NB_USAGE, "%s has no range yet (calibrate it with data)", s->name);
    *zero = 0;
    fq_site_ranges(s, scale, g->has_zero ? zero : NULL);
    return NB_OK;
}

static status conv_step(rt_net_step *to, const ly_conv *l, md_picture_net *net, kn_grid *grid, real *scale, int32_t *zero)
{
    const kn_grid *out = &l->output->spec.grid;
    real scale_y;
    int32_t zero_y;
    if (l->norm_w)
        return nb_fail(NB_UNSUPPORTED, "%s has a batch norm", l->name);
    if (!l->w_site->spec.grid.bits || !kn_conv_can_multiply(&l->c, grid, &l->w_site->spec.grid))
        return nb_fail(NB_UNSUPPORTED, "%s.weight is not in codes that integers multiply", l->name);
    TRY(range_of(l->output, &scale_y, &zero_y));
    const kn_codes *w = fq_site_codes(l->w_site, &net->base.params);
    const kn_packed *packed = w && l->c.groups == 1 ? fq_site_packed(l->w_site, &net->base.params) : NULL;
    if (!w)
        return NB_NOMEM;
    to->c = l->c;
    to->w = w;
    TRY(kn_conv_codes_new(&to->codes, &l->c, w, packed, l->b ? l->b->x : NULL, *scale, *zero));
    TRY(kn_requant_new(&to->requant, l->c.N));
    kn_requant_set(&to->requant, w, *scale, out, scale_y, zero_y, l->act);
    *grid = *out;
    *scale = scale_y;
    *zero = zero_y;
    return NB_OK;
}

static status make(rt_net *r, md_picture_net *net)
{
    const md_stages *s = &net->stages;
    int64_t layer = 0;
    r->inputs = r->largest = s->height * s->width * s->channels;
    r->classes = s->classes;
    r->grid = net->input->spec.grid;
    TRY(range_of(net->input, &r->scale, &r->zero));
    kn_grid grid = r->grid;
    real scale = r->scale;
    int32_t zero = r->zero;
    if (!(r->step = nb_alloc_zeroed((size_t)s->n, sizeof *r->step)))
        return NB_NOMEM;
    for (int64_t i = 0; i < s->n; i++) {
        const md_stage *g = &s->stage[i];
        if (g->kind == MD_STAGE_DROPOUT || g->kind == MD_STAGE_FLATTEN)
            continue;
        rt_net_step *to = &r->step[r->n++];
        *to = (rt_net_step){.kind = g->kind, .c = g->c, .zero = zero};
        if (g->kind == MD_STAGE_CONV)
            TRY(conv_step(to, &net->layer[layer++], net, &grid, &scale, &zero));
        const int64_t out = to->c.OH * to->c.OW * to->c.N;
        r->largest = out > r->largest ? out : r->largest;
    }
    r->out_grid = grid;
    r->out_scale = scale;
    r->out_zero = zero;
    return NB_OK;
}

status rt_net_new(rt_net *r, md_picture_net *net)
{
    *r = (rt_net){0};
    const status s = make(r, net);
    if (s != NB_OK)
        rt_net_free(r);
    return s;
}

void rt_net_free(rt_net *r)
{
    for (int64_t i = 0; i < r->n; i++) {
        kn_conv_codes_free(&r->step[i].codes);
        kn_requant_free(&r->step[i].requant);
    }
    free(r->step);
    *r = (rt_net){0};
}

static void encode_pixels(int8_t *q, int64_t ld, const rt_net *r, const uint8_t *pixel, int64_t B)
{
    int8_t code[256];
    for (int i = 0; i < 256; i++)
        code[i] = (int8_t)kn_encode_one(&r->grid, (real)i / 255, kn_inverse(r->scale), r->zero);
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < r->inputs; i++)
            q[b * ld + i] = code[pixel[b * r->inputs + i]];
}

static status run_step(const rt_net_step *s, int8_t *y, const int8_t *x, int64_t ld, int64_t B)
{
    if (s->kind == MD_STAGE_CONV)
        return kn_conv_integer(NULL, y, ld, &s->c, x, ld, &s->codes, &s->requant, B);
    if (s->kind == MD_STAGE_MAX_POOL)
        kn_max_pool_codes(y, ld, NULL, &s->c, x, ld, B);
    else
        kn_average_pool_codes(y, ld, &s->c, x, ld, s->zero, B);
    return NB_OK;
}

status rt_net_run(const rt_net *r, int8_t *logits, const uint8_t *pixel, int64_t B, rt_net_watch *after, void *ctx)
{
    const int64_t ld = (r->largest + 63) / 64 * 64;
    int8_t *memory = nb_alloc_aligned((size_t)(2 * B * ld) + SLACK, 1);
    if (!memory)
        return NB_NOMEM;
    int8_t *x = memory, *y = memory + B * ld;
    status s = NB_OK;
    encode_pixels(x, ld, r, pixel, B);
    if (after)
        after(ctx, -1, x, ld);
    for (int64_t i = 0; i < r->n && s == NB_OK; i++) {
        s = run_step(&r->step[i], y, x, ld, B);
        if (after && s == NB_OK)
            after(ctx, i, y, ld);
        int8_t *swap = x;
        x = y;
        y = swap;
    }
    for (int64_t b = 0; b < (s == NB_OK ? B : 0); b++)
        memcpy(logits + b * r->classes, x + b * ld, (size_t)r->classes);
    free(memory);
    return s;
}
