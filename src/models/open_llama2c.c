/* open_llama2c.c - a model from llama2.c's files (versions 0, 1, 2). The format fixes eps 1e-5, theta 10000, interleaved pairing and
 * dim = heads * head_size; int8 codes of version 2 become floats: value = code * scale of its group.
 */
#include "models/bind.h"
#include <math.h>
#include <stdlib.h>

static md_config config_of(const fm_llama2c *h)
{
    return (md_config){.architecture = "llama",
                       .dim = h->dim,
                       .hidden = h->hidden_dim,
                       .layers = h->n_layers,
                       .heads = h->n_heads,
                       .kv_heads = h->n_kv_heads,
                       .head_size = h->dim / h->n_heads,
                       .vocab = h->vocab_size,
                       .ctx = h->seq_len,
                       .norm_eps = 1e-5,
                       .rope_theta = 10000,
                       .pairing = KN_ROPE_INTERLEAVED,
                       .tied = h->shared_classifier,
                       .bos = h->vocab_size > 2 ? 1 : -1, /* as run.c has them */
                       .eos = h->vocab_size > 2 ? 2 : -1};
}

/* Groups run over the flattened matrix and may straddle rows. */
static status decode_groups(real *x, const fm_array *codes, const fm_array *scales, int64_t group)
{
    const int8_t *q = codes->data;
    const int64_t n = fm_count(scales);
    for (int64_t g = 0; g < n; g++) {
        float scale;
        TRY(fm_to_float(&scale, scales, g, 1));
        if (!isfinite(scale))
            return nb_fail(NB_FORMAT, "%s: scale %lld is %g", codes->name, (long long)g, (double)scale);
        for (int64_t i = g * group; i < (g + 1) * group; i++)
            x[i] = (real)q[i] * (real)scale;
    }
    return NB_OK;
}

typedef struct {
    const fm_arrays *a;
    int64_t group;
} coded_file;

static status read_codes(void *ctx, real *dst, const md_tensor *t)
{
    const coded_file *f = ctx;
    const fm_arrays *a = f->a;
    const int64_t group = f->group, count = md_tensor_count(t);
    char name[MD_NAME], scales[MD_NAME + 8];
    (void)md_tensor_name(name, t, MD_LLAMA2C);
    (void)snprintf(scales, sizeof scales, "%s.scales", name);
    const fm_array *q = fm_find(a, name), *s = fm_find(a, scales);
    if (!q)
        return nb_fail(NB_FORMAT, "%s is missing", name);
    if (q->dtype != FM_I8)
        return md_read_floats(dst, q);
    if (!s || fm_count(q) != count || fm_count(s) * group != count)
        return nb_fail(NB_FORMAT, "%s: its scales do not fit", name);
    return decode_groups(dst, q, s, group);
}

static status load(md_model *m, const fm_arrays *a, const fm_llama2c *h, const md_open_options *o)
{
    if (h->version != 2)
        return md_load_weights(m, a, MD_LLAMA2C, "", o);
    const status s = md_load_each(m, read_codes, &(coded_file){a, h->group_size}, o);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", a->path);
}

status md_open_llama2c(md_model *m, const char *path, const fq_recipe *recipe, const md_open_options *o)
{
    fm_arrays a;
    fm_llama2c h;
    TRY(fm_llama2c_open(&a, &h, path));
    md_config c = config_of(&h);
    status s = md_config_check(&c);
    if (s != NB_OK)
        s = nb_fail_in(s, "%s", path);
    if (s == NB_OK)
        s = md_check_ctx(&c, &a);
    if (s == NB_OK)
        s = md_check_arrays(&a, &c, MD_LLAMA2C, "");
    if (s == NB_OK)
        s = md_build(m, &c, recipe, MD_UNSET, o->fold);
    if (s == NB_OK && (s = load(m, &a, &h, o)) != NB_OK)
        md_free(m);
    fm_arrays_free(&a);
    return s;
}
