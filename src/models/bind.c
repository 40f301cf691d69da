/* bind.c - a model's tensors: their values, and how they are read from a file's arrays. What a file keeps in one array (GPT-2's q, k
 * and v) or transposed (its Conv1D) comes apart and into our order here.
 */
#include "models/bind.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- values ------------------------------------------------------------------------------- */

status md_values_of(md_values *v, const md_model *m, const md_tensor *t)
{
    char name[MD_NAME];
    *v = (md_values){0};
    (void)md_tensor_name(name, t, MD_NIBBLE);
    fq_site *site = fq_site_find(&m->sites, name);
    if (site && site->spec.grid.bits) {
        v->codes = fq_site_codes(site, &m->params);
        return v->codes ? NB_OK : nb_fail_in(NB_NOMEM, "%s", name);
    }
    const ag_param *p = ag_param_find(&m->params, name);
    if (!p || p->count != md_tensor_count(t))
        return nb_fail(NB_USAGE, "%s: the model has no such tensor of %lld x %lld", name, (long long)t->rows,
                       (long long)t->cols);
    v->x = p->x;
    v->stored = site && fq_is_stored_float(&site->spec) ? &site->spec.grid : NULL;
    return NB_OK;
}

void md_values_row(real *dst, const md_values *v, const md_tensor *t, int64_t row)
{
    if (v->codes)
        kn_decode(dst, v->codes, row, 1);
    else
        memcpy(dst, v->x + row * t->cols, (size_t)t->cols * sizeof *dst);
    for (int64_t j = 0; v->stored && j < t->cols; j++)
        dst[j] = kn_store(v->stored, dst[j]);
}

/* ---- reading ------------------------------------------------------------------------------ */

enum { FULL_NAME = 2 * MD_NAME };

/* text <- the name of t's array: where it has none, the one that is wanted. A Hugging Face model saved without its head lacks the
 * first word of GPT-2's names. False: the format has no place for it. */
static bool full_name(char text[FULL_NAME], const fm_arrays *a, const md_tensor *t, md_naming naming, const char *prefix)
{
    static const char base[] = "transformer.";
    char name[MD_NAME];
    if (!md_tensor_name(name, t, naming))
        return false;
    (void)snprintf(text, FULL_NAME, "%s%s", prefix, name);
    if (naming == MD_HF && !strncmp(name, base, strlen(base)) && !fm_find(a, text) && fm_find(a, name + strlen(base)))
        (void)snprintf(text, FULL_NAME, "%s", name + strlen(base));
    return true;
}

status md_check_arrays(const fm_arrays *a, const md_config *c, md_naming naming, const char *prefix)
{
    const int64_t per_layer = 9; /* at least: a list of tensors never is much longer than the file's */
    char name[FULL_NAME];
    md_tensor *t;
    int64_t n, dim[2];
    if (c->layers > a->n / per_layer)
        return nb_fail(NB_FORMAT, "%s: %lld arrays are too few for %lld layers", a->path, (long long)a->n,
                       (long long)c->layers);
    TRY(md_tensors_new(&t, &n, c));
    status s = NB_OK;
    for (int64_t i = 0; i < n && s == NB_OK; i++) {
        const fm_array *found;
        int n_dim = md_array_dim(dim, &t[i], naming);
        if (full_name(name, a, &t[i], naming, prefix))
            s = fm_need(&found, a, name, n_dim, dim);
        else
            s = nb_fail(NB_UNSUPPORTED, "%s: the format has no place for %s", a->path, t[i].name[MD_NIBBLE]);
    }
    free(t);
    return s;
}

status md_check_ctx(const md_config *c, const fm_arrays *a)
{
    const int64_t always = 1 << 22; /* elements: tables of 16 MiB; beyond that 16 bytes of table per byte of file */
    size_t bytes = 0;
    for (int64_t i = 0; i < a->n; i++)
        bytes += a->array[i].bytes;
    if (!md_is_gpt2(c) && c->ctx * c->head_size > always && (uint64_t)(c->ctx * c->head_size / 4) > bytes)
        return nb_fail(NB_FORMAT, "%s: a context of %lld is out of proportion to %zu bytes of weights", a->path,
                       (long long)c->ctx, bytes);
    return NB_OK;
}

static status check_finite(const fm_array *a, const real *x, int64_t n, int64_t at)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return nb_fail(NB_FORMAT, "%s: element %lld is %g", a->name, (long long)(at + i), (double)x[i]);
    return NB_OK;
}

/* dst [n] <- elements [first, first + n) */
static status read_part(real *dst, const fm_array *a, int64_t first, int64_t n)
{
    _Static_assert(sizeof(real) == sizeof(float), "models are built in single precision");
    enum { PIECE = 1 << 15 }; /* whole blocks of any type */
    status s = fm_to_float(dst, a, 0, 0);
    int64_t bad = n;
#pragma omp parallel for schedule(static) reduction(min : bad) if (n > 4 * PIECE)
    for (int64_t from = 0; from < (s == NB_OK ? n : 0); from += PIECE) {
        const int64_t end = from + PIECE < n ? from + PIECE : n;
        bad = fm_to_float(dst + from, a, first + from, end - from) == NB_OK ? bad : -1;
        for (int64_t i = from; i < end && i < bad; i++)
            if (!isfinite(dst[i]))
                bad = i;
    }
    if (s == NB_OK && bad < 0)
        s = fm_to_float(dst, a, first, n); /* says why, in this thread */
    return s == NB_OK && bad < n ? check_finite(a, dst + bad, 1, first + bad) : s;
}

status md_read_floats(real *dst, const fm_array *a)
{
    return read_part(dst, a, 0, fm_count(a));
}

/* dst [rows, cols] <- columns [at, at + rows) of an array [cols, width], a few of its rows at a time. */
static status read_transposed(real *dst, const fm_array *a, int64_t at, int64_t rows, int64_t cols)
{
    enum { FEW = 16 };
    const int64_t width = a->dim[1];
    real *few = nb_alloc((size_t)(FEW * rows), sizeof *few);
    status s = few ? NB_OK : NB_NOMEM;
    for (int64_t i = 0, n; i < cols && s == NB_OK; i += n) {
        n = cols - i < FEW ? cols - i : FEW;
        for (int64_t k = 0; k < n && s == NB_OK; k++) {
            s = fm_to_float(few + k * rows, a, (i + k) * width + at, rows);
            if (s == NB_OK)
                s = check_finite(a, few + k * rows, rows, (i + k) * width + at);
        }
        for (int64_t r = 0; r < rows && s == NB_OK; r++)
            for (int64_t k = 0; k < n; k++)
                dst[r * cols + i + k] = few[k * rows + r];
    }
    free(few);
    return s;
}

typedef struct {
    const fm_arrays *a;
    md_naming naming;
    const char *prefix;
} named_file;

static status read_tensor(void *ctx, real *dst, const md_tensor *t)
{
    const named_file *f = ctx;
    char full[FULL_NAME];
    const fm_array *x = full_name(full, f->a, t, f->naming, f->prefix) ? fm_find(f->a, full) : NULL;
    const int64_t count = md_tensor_count(t), parts = md_tensor_parts(t, f->naming), part = parts > 1 ? t->part : 0;
    if (!x || fm_count(x) != parts * count)
        return nb_fail(NB_FORMAT, "is missing, or not of %lld elements", (long long)count);
    TRY(md_is_transposed(t, f->naming) ? read_transposed(dst, x, part * t->rows, t->rows, t->cols)
                                       : read_part(dst, x, part * count, count));
    if (part == parts - 1)
        fm_forget(f->a, x);
    return NB_OK;
}

/* ---- folding while reading ---------------------------------------------------------------- */

/* The codes of a weight that the model has no floats of: those of a site like it, which has them for as long as this takes. */
static status fold_tensor(fq_site *site, status (*read)(void *ctx, real *dst, const md_tensor *t), void *ctx, const md_tensor *t, fq_start how)
{
    const int64_t dim[] = {t->rows, t->cols};
    fq_rule all = {"*", site->spec};
    const fq_recipe recipe = {.rule = &all, .n = 1};
    ag_params params = {0};
    fq_sites sites = {.params = &params};
    ag_param *w = ag_param_new(&params, site->name, AG_WEIGHT, 2, dim);
    fq_site *own = w ? fq_site_new(&sites, &recipe, site->name, NULL, w, t->rows, t->cols, site->spec.grid.group) : NULL;
    status s = own ? read(ctx, w->x, t) : NB_NOMEM;
    if (s == NB_OK)
        s = fq_start_site(own, how, NULL);
    if (s == NB_OK && !fq_site_codes(own, &params))
        s = NB_NOMEM;
    if (s == NB_OK) {
        kn_codes_free(&site->codes);
        site->codes = own->codes;
        site->version = UINT64_MAX;
        own->codes = (kn_codes){0};
    }
    fq_sites_free(&sites);
    ag_params_free(&params);
    return s;
}

status md_load_each(md_model *m, status (*read)(void *ctx, real *dst, const md_tensor *t), void *ctx, const md_open_options *o)
{
    char name[MD_NAME];
    md_tensor *t;
    int64_t n;
    TRY(md_tensors_new(&t, &n, &m->config));
    status s = NB_OK;
    for (int64_t i = 0; i < n && s == NB_OK; i++) {
        (void)md_tensor_name(name, &t[i], MD_NIBBLE);
        const ag_param *p = ag_param_find(&m->params, name);
        fq_site *site = p ? NULL : fq_site_find(&m->sites, name);
        if (p && p->count == md_tensor_count(&t[i]))
            s = read(ctx, p->x, &t[i]);
        else
            s = site && o->fold ? fold_tensor(site, read, ctx, &t[i], o->start) : nb_fail(NB_FORMAT, "the model has no such tensor");
        if (s != NB_OK)
            s = nb_fail_in(s, "%s", name);
    }
    free(t);
    m->params.version++;
    return s;
}

status md_load_weights(md_model *m, const fm_arrays *a, md_naming naming, const char *prefix, const md_open_options *o)
{
    const status s = md_load_each(m, read_tensor, &(named_file){a, naming, prefix}, o);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", a->path);
}
