/* picture_onnx.c - a network of static ranges as ONNX with QuantizeLinear and DequantizeLinear, opset 21, channels first.
 *   results   uint8, code - least code, clipped where they have fewer levels (onnxruntime 1.32 fails on pools and clips of uint4)
 *   weights   int8, or int4 where they fit, a scale per channel
 *   biases    int32, rne(b / (scale_x scale_w)), as the integers have them
 * What differs from nibble's integers: floats between a DequantizeLinear and the next QuantizeLinear (a client may fuse them into
 * integers of its own), and halves, which go up here and to even there. So a code may differ by one.
 */
#include "models/models.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    fm_onnx g;
    char now[48];        /* the tensor that was made last */
    int n;               /* names given out */
    int64_t H, W, C;     /* of it; flat: [batch, C] */
    bool flat;
    real scale;          /* of its codes */
} writing;

static const char *name_next(writing *w, char *name, const char *what)
{
    snprintf(name, 48, "%s_%d", what, ++w->n);
    return name;
}

static void node(writing *w, const char *op, const char *const *in, int n_in, const fm_onnx_attribute *a)
{
    char out[48];
    fm_onnx_node(&w->g, op, in, n_in, name_next(w, out, op), a);
    snprintf(w->now, sizeof w->now, "%s", out);
}

/* A Clip of what was made last. */
static void clip(writing *w, float low, float high)
{
    char lower[48], upper[48], before[48];
    fm_onnx_tensor(&w->g, name_next(w, lower, "least"), FM_ONNX_FLOAT, 0, NULL, &low, sizeof low);
    fm_onnx_tensor(&w->g, name_next(w, upper, "most"), FM_ONNX_FLOAT, 0, NULL, &high, sizeof high);
    snprintf(before, sizeof before, "%s", w->now);
    node(w, "Clip", (const char *[]){before, lower, upper}, 3, NULL);
}

/* Codes of what was made last by the site, and their values: now <- DequantizeLinear(QuantizeLinear(now)). */
static status quantize(writing *w, const fq_site *site)
{
    const kn_grid *g = &site->spec.grid;
    char scale[48], zero[48], before[48];
    int32_t z = 0;
    if (!g->bits || g->bits > 8 || site->spec.range == FQ_DYNAMIC || g->grain != KN_TENSOR || g->levels != KN_LEVELS_INT)
        return nb_fail(NB_UNSUPPORTED, "%s: ONNX has static codes of at most 8 bits (recipes that fit: w8a8, w4a8, w4a4, w2a4)", site->name);
    if (!site->started)
        return nb_fail(NB_USAGE, "%s has no range yet (calibrate it with data)", site->name);
    fq_site_ranges(site, &w->scale, g->has_zero ? &z : NULL);
    const float s = (float)w->scale;
    const uint8_t code = (uint8_t)(z - g->lo);
    if (g->hi - g->lo < 255)
        clip(w, (float)(g->lo - z) * s, (float)(g->hi - z) * s);
    fm_onnx_tensor(&w->g, name_next(w, scale, "scale"), FM_ONNX_FLOAT, 0, NULL, &s, sizeof s);
    fm_onnx_tensor(&w->g, name_next(w, zero, "zero"), FM_ONNX_UINT8, 0, NULL, &code, 1);
    snprintf(before, sizeof before, "%s", w->now);
    node(w, "QuantizeLinear", (const char *[]){before, scale, zero}, 3, NULL);
    snprintf(before, sizeof before, "%s", w->now);
    node(w, "DequantizeLinear", (const char *[]){before, scale, zero}, 3, NULL);
    return NB_OK;
}

/* Where weight d of a row, (y, x, channel), stands with channels first. */
static int64_t first(int64_t d, int64_t C, int64_t points)
{
    return d % C * points + d / C;
}

static int32_t operand(const kn_codes *c, int64_t n, int64_t d)
{
    return kn_mul(&c->grid) * c->q[n * c->ld + d] + kn_add(&c->grid);
}

/* name <- DequantizeLinear of the weights, C channels of each of their points. */
static status put_weights(writing *w, char *name, const kn_codes *c, int n_dim, const int64_t *dim, int64_t C)
{
    const int64_t n = c->rows * c->cols;
    bool small = true;
    char codes[48], scale[48];
    uint8_t *raw = nb_alloc_zeroed((size_t)n, 1);
    float *s = nb_alloc((size_t)c->rows, sizeof *s);
    if (!raw || !s) {
        free(raw);
        free(s);
        return NB_NOMEM;
    }
    for (int64_t i = 0; i < n; i++) {
        const int32_t v = operand(c, i / c->cols, i % c->cols);
        small = small && v >= -8 && v <= 7;
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = i / c->cols * c->cols + first(i % c->cols, C, c->cols / C);
        const int32_t v = operand(c, i / c->cols, i % c->cols);
        if (small)
            raw[at / 2] |= (uint8_t)((v & 15) << at % 2 * 4);
        else
            raw[at] = (uint8_t)(v & 255);
    }
    for (int64_t i = 0; i < c->rows; i++)
        s[i] = (float)c->scale[c->grid.grain == KN_TENSOR ? 0 : i];
    fm_onnx_tensor(&w->g, name_next(w, codes, "weight"), small ? FM_ONNX_INT4 : FM_ONNX_INT8, n_dim, dim, raw, (size_t)(small ? (n + 1) / 2 : n));
    fm_onnx_tensor(&w->g, name_next(w, scale, "weight_scale"), FM_ONNX_FLOAT, 1, &c->rows, s, (size_t)c->rows * sizeof *s);
    fm_onnx_node(&w->g, "DequantizeLinear", (const char *[]){codes, scale}, 2, name_next(w, name, "weight_value"),
                 (const fm_onnx_attribute[]){{"axis", 0, {0}}, {0}});
    free(raw);
    free(s);
    return NB_OK;
}

static status put_bias(writing *w, char *name, const ly_conv *l, const kn_codes *c)
{
    char codes[48], scale[48];
    int32_t *b = nb_alloc((size_t)c->rows, sizeof *b);
    float *s = nb_alloc((size_t)c->rows, sizeof *s);
    if (b && s) {
        for (int64_t i = 0; i < c->rows; i++) {
            const double unit = (double)w->scale * (double)c->scale[c->grid.grain == KN_TENSOR ? 0 : i];
            const double exact = l->b && unit != 0 ? rint((double)l->b->x[i] / unit) : 0;
            b[i] = (int32_t)fmin(fmax(exact, -1073741824.0), 1073741824.0); /* as kn_conv_codes_new */
            s[i] = (float)unit;
        }
        fm_onnx_tensor(&w->g, name_next(w, codes, "bias"), FM_ONNX_INT32, 1, &c->rows, b, (size_t)c->rows * sizeof *b);
        fm_onnx_tensor(&w->g, name_next(w, scale, "bias_scale"), FM_ONNX_FLOAT, 1, &c->rows, s, (size_t)c->rows * sizeof *s);
        fm_onnx_node(&w->g, "DequantizeLinear", (const char *[]){codes, scale}, 2, name_next(w, name, "bias_value"),
                     (const fm_onnx_attribute[]){{"axis", 0, {0}}, {0}});
    }
    const status e = b && s ? NB_OK : NB_NOMEM;
    free(b);
    free(s);
    return e;
}

static void flatten(writing *w)
{
    char before[48];
    if (w->flat)
        return;
    snprintf(before, sizeof before, "%s", w->now);
    node(w, "Flatten", (const char *[]){before}, 1, NULL);
    w->flat = true;
}

static void activate(writing *w, kn_activation act)
{
    char before[48];
    snprintf(before, sizeof before, "%s", w->now);
    if (act == KN_RELU)
        node(w, "Relu", (const char *[]){before}, 1, NULL);
    if (act == KN_RELU6)
        clip(w, 0, 6);
}

static status put_layer(writing *w, const ly_conv *l, ag_params *params)
{
    const kn_conv *k = &l->c;
    const bool linear = k->H * k->W == 1 && k->K == 1 && k->groups == 1;
    const kn_codes *c = l->w_site->spec.grid.bits ? fq_site_codes(l->w_site, params) : NULL;
    char weight[48], bias[48], before[48];
    if (!c || !c->q || c->zero || l->norm_w || (c->grid.grain != KN_TENSOR && c->grid.grain != KN_ROW) || kn_largest(&c->grid) > 128)
        return nb_fail(NB_UNSUPPORTED, "%s.weight: ONNX has codes of at most 8 bits, a scale per channel, without zero points", l->name);
    if (linear) {
        const int64_t points = w->flat ? 1 : w->H * w->W, dim[] = {c->rows, c->cols};
        flatten(w);
        TRY(put_weights(w, weight, c, 2, dim, c->cols / points));
    } else {
        const int64_t dim[] = {k->N, k->C / k->groups, k->K, k->K};
        TRY(put_weights(w, weight, c, 4, dim, dim[1]));
    }
    TRY(put_bias(w, bias, l, c));
    snprintf(before, sizeof before, "%s", w->now);
    const fm_onnx_attribute conv[] = {{"kernel_shape", 2, {k->K, k->K}},
                                      {"strides", 2, {k->stride, k->stride}},
                                      {"pads", 4, {k->pad, k->pad, k->pad, k->pad}},
                                      {"dilations", 2, {k->dilation, k->dilation}},
                                      {"group", 0, {k->groups}},
                                      {0}};
    const fm_onnx_attribute gemm[] = {{"transB", 0, {1}}, {0}};
    node(w, linear ? "Gemm" : "Conv", (const char *[]){before, weight, bias}, 3, linear ? gemm : conv);
    w->H = k->OH;
    w->W = k->OW;
    w->C = k->N;
    activate(w, l->act);
    return quantize(w, l->output);
}

static status put_pool(writing *w, const md_stage *s, const fq_site *site)
{
    const kn_conv *k = &s->c;
    char before[48];
    const fm_onnx_attribute a[] = {{"kernel_shape", 2, {k->K, k->K}}, {"strides", 2, {k->stride, k->stride}}, {0}};
    snprintf(before, sizeof before, "%s", w->now);
    node(w, s->kind == MD_STAGE_MAX_POOL ? "MaxPool" : "AveragePool", (const char *[]){before}, 1, a);
    w->H = k->OH;
    w->W = k->OW;
    return quantize(w, site);
}

static status put_graph(writing *w, md_picture_net *m)
{
    const md_stages *s = &m->stages;
    const fq_site *site = m->input;
    int64_t layer = 0;
    snprintf(w->now, sizeof w->now, "picture");
    w->H = s->height;
    w->W = s->width;
    w->C = s->channels;
    TRY(quantize(w, site));
    for (int64_t i = 0; i < s->n; i++) {
        if (s->stage[i].kind == MD_STAGE_CONV) {
            TRY(put_layer(w, &m->layer[layer], &m->base.params));
            site = m->layer[layer++].output;
        } else if (s->stage[i].kind != MD_STAGE_DROPOUT && s->stage[i].kind != MD_STAGE_FLATTEN) {
            TRY(put_pool(w, &s->stage[i], site));
        }
    }
    fm_onnx_node(&w->g, "Identity", (const char *[]){w->now}, 1, "logits", NULL);
    return NB_OK;
}

status md_net_write_onnx(md_picture_net *m, const char *path)
{
    writing w = {0};
    const int64_t in[] = {m->stages.channels, m->stages.height, m->stages.width}, out[] = {m->stages.classes};
    status s = put_graph(&w, m);
    if (s == NB_OK)
        s = fm_onnx_write(&w.g, path, "picture", 3, in, "logits", 1, out);
    fm_onnx_free(&w.g);
    return s == NB_OK || s == NB_IO ? s : nb_fail_in(s, "%s", path);
}
