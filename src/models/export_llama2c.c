/* export_llama2c.c - llama2.c files. Version 2 (int8): each matrix as operands of at most 8 bits with one fp32 scale per GS of the
 * flattened matrix, GS the largest power of two <= 64 that divides dim and every group of the recipe; hidden is padded with zeros to
 * a multiple of GS. Nothing is rounded: operand * scale is the model's value bit for bit. Version 1: the values as floats.
 * The format fixes eps 1e-5, theta 10000, no biases, dim = heads * head_size, interleaved pairing (export.py, run.c, runq.c).
 */
#include "models/export.h"
#include <stdlib.h>
#include <string.h>

#define FITS "recipes that fit: w8a8kv8, w4a8kv8"
enum { LARGEST_GROUP = 64 };

static status check_shape(const md_config *c)
{
    const char *other = "export it to gguf or safetensors";
    if (md_is_gpt2(c))
        return nb_fail(NB_UNSUPPORTED, "llama2.c computes LLaMA models, this one is a GPT-2; %s", other);
    if (c->qkv_bias || c->out_bias)
        return nb_fail(NB_UNSUPPORTED, "llama2.c's format has no biases; %s", other);
    if ((float)c->norm_eps != 1e-5f || (float)c->rope_theta != 10000.0f || c->rope_factor != 0)
        return nb_fail(NB_UNSUPPORTED,
                       "llama2.c computes with eps 1e-05, theta 10000 and no scaling of the rotation, the model has "
                       "eps %g, theta %g, factor %g; %s",
                       c->norm_eps, c->rope_theta, c->rope_factor, other);
    if (c->heads * c->head_size != c->dim)
        return nb_fail(NB_UNSUPPORTED, "llama2.c wants heads * head_size = dim, the model has %lld * %lld and %lld; %s",
                       (long long)c->heads, (long long)c->head_size, (long long)c->dim, other);
    return NB_OK;
}

static status check_codes(const kn_codes *c, const char *name)
{
    if (!c)
        return nb_fail(NB_UNSUPPORTED,
                       "%s is float, --to llama2c holds codes of at most 8 bits; %s; floats: --to llama2c-f32", name,
                       FITS);
    if (c->grid.has_zero)
        return nb_fail(NB_UNSUPPORTED, "%s has zero points, llama2.c's int8 has none; %s", name, FITS);
    if (kn_has_table(&c->grid))
        return nb_fail(NB_UNSUPPORTED, "%s has levels of %s, llama2.c's int8 has steps; %s; floats: --to llama2c-f32", name,
                       kn_table_text((kn_table_name)c->grid.table), FITS);
    if (!md_operands_fit(&c->grid, -128, 127))
        return nb_fail(NB_UNSUPPORTED, "%s has %d bits, llama2.c's int8 has 8; %s; floats: --to llama2c-f32", name,
                       c->grid.bits, FITS);
    return NB_OK;
}

/* The group size that the matrices allow. */
static status choose_group(int64_t *group, const md_model *m)
{
    char name[MD_NAME];
    md_tensor *t;
    int64_t n;
    TRY(md_tensors_new(&t, &n, &m->config));
    status s = NB_OK;
    *group = LARGEST_GROUP;
    while (m->config.dim % *group)
        *group /= 2;
    for (int64_t i = 0; i < n && s == NB_OK; i++) {
        md_values v;
        if (t[i].kind != MD_MATRIX)
            continue;
        (void)md_tensor_name(name, &t[i], MD_NIBBLE);
        s = md_values_of(&v, m, &t[i]);
        if (s == NB_OK)
            s = check_codes(v.codes, name);
        while (s == NB_OK && !md_runs_share_scale(&v.codes->grid, t[i].cols, *group))
            *group /= 2;
    }
    free(t);
    return s;
}

static int64_t padded(int64_t hidden, int64_t group)
{
    return (hidden + group - 1) / group * group;
}

/* ---- version 2 ---------------------------------------------------------------------------- */

typedef struct {
    md_exporting e;
    int64_t group;
} writing;

static status put_operands(fm_sink *sink, const md_exporting *e, int64_t i, const kn_codes *c)
{
    const int64_t cols = e->out[i].cols;
    int8_t *row = nb_alloc((size_t)cols, 1);
    status s = row ? NB_OK : NB_NOMEM;
    for (int64_t r = 0; r < e->out[i].rows && s == NB_OK; r++) {
        int64_t from = md_source_row(e, i, r);
        if (from >= 0)
            md_operands(row, cols, c, from);
        else
            memset(row, 0, (size_t)cols);
        s = fm_put(sink, row, (size_t)cols);
    }
    free(row);
    return s;
}

static status put_scales(fm_sink *sink, const md_exporting *e, int64_t i, const kn_codes *c, int64_t group)
{
    const int64_t n = e->out[i].cols / group;
    float *row = nb_alloc((size_t)n, sizeof *row);
    status s = row ? NB_OK : NB_NOMEM;
    for (int64_t r = 0; r < e->out[i].rows && s == NB_OK; r++) {
        int64_t from = md_source_row(e, i, r);
        for (int64_t g = 0; g < n; g++) /* a run may begin in the padding */
            row[g] = from >= 0 && g * group < c->cols ? c->scale[kn_scale_index(c, from, g * group)] : 0;
        s = fm_put(sink, row, (size_t)n * sizeof *row);
    }
    free(row);
    return s;
}

static status put_array(void *ctx, fm_sink *sink, const fm_array *a)
{
    writing *w = ctx;
    static const char suffix[] = ".scales";
    char name[MD_NAME + sizeof suffix];
    size_t n = strlen(a->name), k = sizeof suffix - 1;
    bool is_scales = n > k && !strcmp(a->name + n - k, suffix);
    (void)snprintf(name, sizeof name, "%.*s", (int)(is_scales ? n - k : n), a->name);
    int64_t i = md_exporting_find(&w->e, name);
    if (i < 0)
        return nb_fail(NB_UNSUPPORTED, "the model has no %s", name);
    if (w->group == 0 || w->e.own[i].kind != MD_MATRIX)
        return md_put_floats(sink, &w->e, i, FM_F32);
    md_values v;
    TRY(md_values_of(&v, w->e.m, &w->e.own[i]));
    return is_scales ? put_scales(sink, &w->e, i, v.codes, w->group) : put_operands(sink, &w->e, i, v.codes);
}

/* group 0: version 1. */
static status write_file(md_model *m, const char *path, int64_t group)
{
    const md_config *c = &m->config;
    writing w = {.group = group};
    const int64_t hidden = group ? padded(c->hidden, group) : c->hidden;
    fm_llama2c h = {.dim = (int32_t)c->dim,
                    .hidden_dim = (int32_t)hidden,
                    .n_layers = (int32_t)c->layers,
                    .n_heads = (int32_t)c->heads,
                    .n_kv_heads = (int32_t)c->kv_heads,
                    .vocab_size = (int32_t)c->vocab,
                    .seq_len = (int32_t)c->ctx,
                    .shared_classifier = c->tied,
                    .version = group ? 2 : 1,
                    .group_size = (int32_t)group};
    TRY(md_exporting_new(&w.e, m, MD_LLAMA2C, KN_ROPE_INTERLEAVED, hidden));
    status s = fm_llama2c_write(path, &h, (fm_source){put_array, &w});
    md_exporting_free(&w.e);
    return s;
}

static status check_and_choose(int64_t *group, const md_model *m, char *report, size_t bytes)
{
    TRY(check_shape(&m->config));
    TRY(choose_group(group, m));
    const int64_t hidden = padded(m->config.hidden, *group);
    md_say(report, bytes, "llama2.c version 2, groups of %lld: weights exact", (long long)*group);
    if (hidden != m->config.hidden)
        md_say(report, bytes, "hidden is padded with zeros from %lld to %lld, which changes nothing",
               (long long)m->config.hidden, (long long)hidden);
    md_say_inputs(
        report, bytes, m,
        "runq.c quantizes the inputs of products to 8 bits per group, halves away from zero: logits differ slightly");
    return NB_OK;
}

status md_check_llama2c(const md_model *m, const md_target *t, char *report, size_t bytes)
{
    int64_t group;
    (void)t;
    return check_and_choose(&group, m, report, bytes);
}

status md_write_llama2c(md_model *m, const md_target *t, const char *path, char *report, size_t bytes)
{
    int64_t group;
    (void)t;
    TRY(check_and_choose(&group, m, report, bytes));
    return write_file(m, path, group);
}

/* ---- version 1 ---------------------------------------------------------------------------- */

status md_check_llama2c_floats(const md_model *m, const md_target *t, char *report, size_t bytes)
{
    (void)t;
    TRY(check_shape(&m->config));
    md_say(report, bytes, "llama2.c version 1: floats, decoded weights exact");
    md_say_inputs(report, bytes, m, "the client computes with float inputs");
    return NB_OK;
}

status md_write_llama2c_floats(md_model *m, const md_target *t, const char *path, char *report, size_t bytes)
{
    TRY(md_check_llama2c_floats(m, t, report, bytes));
    return write_file(m, path, 0);
}
