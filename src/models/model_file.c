/* model_file.c - a model in HDF5: header, latent parameters, states of sites.
 *   attributes of the file: format_version 1, config (JSON), recipe (its name)
 *   /recipe U8 [bytes]       the recipe in its file form, absent for a float model
 *   /tokenizer U8 [bytes]    fm_tokenizer_to_bytes, absent if there is none
 *   /gguf U8 [bytes]         metadata of the GGUF file it came from, itself one without arrays; absent if it came from elsewhere
 *   /param/NAME              F32, F16 or BF16 of the parameter's shape; learned scales always F32
 *   /site/NAME F64 [n]       fq_site_state: starts of ranges, latent zero points, observers; absent where n is 0
 * A file of kind "model" holds these alone, of a float model; a checkpoint has more beside them, a folded file codes (folded.c).
 */
#include "models/export.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FORMAT_VERSION = 1 };

/* ---- header ------------------------------------------------------------------------------- */

static status save_config(const md_config *c, fm_h5 *f)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    md_config_to_json(c, &w);
    nb_json_close(&w, '}');
    char *text = nb_json_text(&w);
    if (!text)
        return nb_fail(NB_NOMEM, "no memory for the config");
    status s = fm_h5_put_string(f, "", "config", text);
    free(text);
    return s;
}

status md_save_recipe(const fq_recipe *r, fm_h5 *f)
{
    if (r->n == 0)
        return NB_OK;
    char *text = fq_recipe_text(r);
    if (!text)
        return NB_NOMEM;
    const int64_t bytes = (int64_t)strlen(text);
    status s = fm_h5_put_string(f, "", "recipe", r->name);
    if (s == NB_OK)
        s = fm_h5_write(f, "recipe", FM_U8, 1, &bytes, text);
    free(text);
    return s;
}

static status save_tokenizer(const fm_tokenizer *tk, fm_h5 *f)
{
    uint8_t *data;
    size_t bytes;
    if (tk->kind == FM_TOKENIZER_NONE)
        return NB_OK;
    TRY(fm_tokenizer_to_bytes(tk, &data, &bytes));
    const int64_t n = (int64_t)bytes;
    status s = fm_h5_write(f, "tokenizer", FM_U8, 1, &n, data);
    free(data);
    return s;
}

static status save_gguf(const md_model *m, fm_h5 *f)
{
    const int64_t n = (int64_t)m->gguf_bytes;
    return m->gguf ? fm_h5_write(f, "gguf", FM_U8, 1, &n, m->gguf) : NB_OK;
}

static status save_header(const md_model *m, const fq_recipe *r, fm_h5 *f)
{
    TRY(fm_h5_put_int(f, "", "format_version", FORMAT_VERSION));
    TRY(save_config(&m->config, f));
    TRY(md_save_recipe(r, f));
    TRY(save_tokenizer(&m->tokenizer, f));
    return save_gguf(m, f);
}

status md_save_header(const md_model *m, fm_h5 *f)
{
    return save_header(m, &m->recipe, f);
}

/* A dataset of bytes, NULL data where it is absent. */
static status read_bytes(const fm_array **a, const fm_h5 *f, const char *name)
{
    *a = fm_h5_find(f, name);
    if (*a && ((*a)->dtype != FM_U8 || (*a)->n_dim != 1 || !(*a)->data))
        return nb_fail(NB_FORMAT, "/%s: wanted bytes in one piece", name);
    return NB_OK;
}

status md_load_recipe(fq_recipe *r, fm_h5 *f)
{
    const fm_array *text;
    const char *name;
    TRY(read_bytes(&text, f, "recipe"));
    if (!text)
        return NB_OK;
    TRY(fm_h5_get_string(f, "", "recipe", &name));
    return fq_recipe_parse(r, name, text->data, text->bytes);
}

static status load_tokenizer(fm_tokenizer *tk, const md_config *c, const fm_h5 *f)
{
    const fm_array *data;
    TRY(read_bytes(&data, f, "tokenizer"));
    if (!data)
        return NB_OK;
    TRY(fm_tokenizer_from_bytes(tk, data->data, data->bytes));
    if (tk->vocab_size > c->vocab)
        return nb_fail(NB_FORMAT, "/tokenizer: %lld pieces for a model of %lld ids", (long long)tk->vocab_size,
                       (long long)c->vocab);
    return NB_OK;
}

/* As hostile as a GGUF file: its reader looks at all of it. */
static status load_gguf(md_model *m, const fm_h5 *f)
{
    const fm_array *data;
    fm_arrays a;
    TRY(read_bytes(&data, f, "gguf"));
    if (!data)
        return NB_OK;
    TRY(fm_gguf_parse(&a, data->data, data->bytes, "/gguf"));
    status s = a.n == 0 ? NB_OK : nb_fail(NB_FORMAT, "/gguf: has %lld arrays, wanted metadata alone", (long long)a.n);
    fm_arrays_free(&a);
    TRY(s);
    m->gguf = nb_alloc(data->bytes, 1);
    if (!m->gguf)
        return NB_NOMEM;
    memcpy(m->gguf, data->data, data->bytes);
    m->gguf_bytes = data->bytes;
    return NB_OK;
}

static status load_header(md_model *m, fm_h5 *f)
{
    int64_t version;
    const char *text;
    TRY(fm_h5_get_int(f, "", "format_version", &version));
    if (version != FORMAT_VERSION)
        return nb_fail(NB_UNSUPPORTED, "format_version is %lld, wanted %d", (long long)version, FORMAT_VERSION);
    TRY(fm_h5_get_string(f, "", "config", &text));
    TRY(md_config_from_text(&m->config, text, strlen(text), "config"));
    TRY(md_load_recipe(&m->recipe, f));
    TRY(load_tokenizer(&m->tokenizer, &m->config, f));
    return load_gguf(m, f);
}

status md_load_header(md_model *m, fm_h5 *f)
{
    *m = (md_model){0};
    status s = load_header(m, f);
    if (s == NB_OK)
        return NB_OK;
    md_free(m);
    return nb_fail_in(s, "%s", f->arrays.path);
}

/* ---- parameters --------------------------------------------------------------------------- */

/* x [dim]: of a parameter, as F32, or rounded to F16 or BF16; *rounded += how many are not exact. */
static status save_floats(fm_h5 *f, const char *param, const real *x, int n_dim, const int64_t *dim, fm_dtype as, int64_t *rounded)
{
    char name[MD_NAME + 16];
    const int64_t n = dim[0] * (n_dim > 1 ? dim[1] : 1);
    (void)snprintf(name, sizeof name, "param/%s", param);
    if (as == FM_F32)
        return fm_h5_write(f, name, FM_F32, n_dim, dim, x);
    uint16_t *small = nb_alloc((size_t)n, sizeof *small);
    if (!small)
        return NB_NOMEM;
    status s = md_narrow(small, x, n, as, param, rounded);
    if (s == NB_OK)
        s = fm_h5_write(f, name, as, n_dim, dim, small);
    free(small);
    return s;
}

static status save_param(const ag_param *p, fm_h5 *f, fm_dtype as, int64_t *rounded)
{
    if (as != FM_F32 && as != FM_F16 && as != FM_BF16)
        return nb_fail(NB_USAGE, "parameters are stored as F32, F16 or BF16, not as %s", fm_dtype_name(as));
    return save_floats(f, p->name, p->x, p->n_dim, p->dim, p->group == AG_SCALE ? FM_F32 : as, rounded);
}

status md_save_site_states(const md_model *m, fm_h5 *f, bool with_weights)
{
    for (int64_t i = 0; i < m->sites.n; i++) {
        const fq_site *site = m->sites.s[i];
        char name[MD_NAME + 16];
        const int64_t n = site->is_weight && !with_weights ? 0 : fq_site_state(site, NULL);
        if (n == 0)
            continue;
        double *state = nb_alloc((size_t)n, sizeof *state);
        if (!state)
            return NB_NOMEM;
        (void)fq_site_state(site, state);
        (void)snprintf(name, sizeof name, "site/%s", site->name);
        status s = fm_h5_write(f, name, FM_F64, 1, &n, state);
        free(state);
        TRY(s);
    }
    return NB_OK;
}

status md_load_site_states(md_model *m, fm_h5 *f, bool with_weights)
{
    for (int64_t i = 0; i < m->sites.n; i++) {
        fq_site *site = m->sites.s[i];
        char name[MD_NAME + 16];
        const int64_t n = site->is_weight && !with_weights ? 0 : fq_site_state(site, NULL);
        if (n == 0)
            continue;
        (void)snprintf(name, sizeof name, "site/%s", site->name);
        double *state = nb_alloc((size_t)n, sizeof *state);
        status s = state ? fm_h5_read_all(f, name, FM_F64, state, 1, &n) : NB_NOMEM;
        if (s == NB_OK && (s = fq_site_restore(site, state, n)) != NB_OK)
            s = nb_fail_in(s, "%s: /%s", f->arrays.path, name);
        free(state);
        TRY(s);
    }
    return NB_OK;
}

status md_save_latent(const md_model *m, fm_h5 *f, fm_dtype as)
{
    int64_t rounded = 0;
    for (int64_t i = 0; i < m->params.n; i++)
        TRY(save_param(m->params.p[i], f, as, &rounded));
    return NB_OK;
}

status md_save_params(md_model *m, fm_h5 *f, fm_dtype as)
{
    TRY(md_save_latent(m, f, as));
    return md_save_site_states(m, f, true);
}

status md_load_param(ag_param *p, fm_h5 *f, const char *name)
{
    TRY(fm_h5_read_all(f, name, FM_F32, p->x, p->n_dim, p->dim));
    for (int64_t i = 0; i < p->count; i++)
        if (!isfinite(p->x[i]))
            return nb_fail(NB_FORMAT, "%s: /%s: element %lld is %g", f->arrays.path, name, (long long)i,
                           (double)p->x[i]);
    return NB_OK;
}

/* Every dataset of /param must be a parameter: else the file is of another model. */
static status check_strangers(const md_model *m, const fm_h5 *f)
{
    int64_t n = 0;
    for (int64_t i = 0; i < f->arrays.n; i++)
        n += !strncmp(f->arrays.array[i].name, "param/", 6);
    if (n == m->params.n)
        return NB_OK;
    return nb_fail(NB_FORMAT, "%s: /param has %lld parameters, the model %lld", f->arrays.path, (long long)n,
                   (long long)m->params.n);
}

status md_load_params(md_model *m, fm_h5 *f)
{
    for (int64_t i = 0; i < m->params.n; i++) {
        char name[MD_NAME + 16];
        (void)snprintf(name, sizeof name, "param/%s", m->params.p[i]->name);
        TRY(md_load_param(m->params.p[i], f, name));
    }
    m->params.version++;
    TRY(check_strangers(m, f));
    return md_load_site_states(m, f, true);
}

/* ---- whole files -------------------------------------------------------------------------- */

/* What a tensor with codes, or a rounded one, stands for. */
static status save_decoded(const md_tensor *t, const md_values *v, fm_h5 *f, fm_dtype as, int64_t *rounded)
{
    char name[MD_NAME];
    int64_t dim[2];
    const int n_dim = md_tensor_dim(dim, t);
    real *x = nb_alloc((size_t)md_tensor_count(t), sizeof *x);
    if (!x)
        return NB_NOMEM;
    for (int64_t row = 0; row < t->rows; row++)
        md_values_row(x + row * t->cols, v, t, row);
    (void)md_tensor_name(name, t, MD_NIBBLE);
    status s = save_floats(f, name, x, n_dim, dim, as, rounded);
    free(x);
    return s;
}

/* The weights alone: no learned scales, and nothing else that belongs to a recipe. */
static status save_tensors(const md_model *m, fm_h5 *f, fm_dtype as, bool latent, int64_t *rounded)
{
    char name[MD_NAME];
    md_tensor *t;
    int64_t n;
    TRY(md_tensors_new(&t, &n, &m->config));
    status s = NB_OK;
    for (int64_t i = 0; i < n && s == NB_OK; i++) {
        md_values v = {0};
        (void)md_tensor_name(name, &t[i], MD_NIBBLE);
        const ag_param *p = ag_param_find(&m->params, name);
        if (!latent)
            s = md_values_of(&v, m, &t[i]);
        if (s == NB_OK)
            s = v.codes || v.stored ? save_decoded(&t[i], &v, f, as, rounded)
                : p ? save_param(p, f, as, rounded)
                    : nb_fail(NB_USAGE, "the model has no latent floats of %s", name);
    }
    free(t);
    return s;
}

static status save_as_floats(md_model *m, const char *path, fm_dtype as, bool latent, int64_t *rounded)
{
    static const fq_recipe no_recipe = {0};
    fm_h5 f;
    TRY(fm_h5_create(&f, path, "model"));
    status s = save_header(m, &no_recipe, &f);
    if (s == NB_OK)
        s = save_tensors(m, &f, as, latent, rounded);
    if (s == NB_OK)
        return fm_h5_commit(&f);
    fm_h5_close(&f);
    return s == NB_IO ? s : nb_fail_in(s, "%s", path); /* what cannot be written names its file */
}

status md_save_model(md_model *m, const char *path, fm_dtype as)
{
    int64_t rounded = 0;
    if (m->folded)
        return nb_fail(NB_USAGE, "%s: a folded model has no latent floats to save", path);
    return save_as_floats(m, path, as, true, &rounded);
}

status md_save_values(md_model *m, const char *path, fm_dtype as, int64_t *rounded)
{
    int64_t count = 0;
    status s = save_as_floats(m, path, as, false, &count);
    if (rounded)
        *rounded = count;
    return s;
}

/* A float file, or the latent floats of a checkpoint under another recipe: weights only. A checkpoint under its own recipe: all. */
static status open_params(md_model *m, fm_h5 *f, const fq_recipe *recipe, const md_open_options *o)
{
    md_model header;
    TRY(md_load_header(&header, f));
    const md_config *c = &header.config;
    const fq_recipe *own = &header.recipe;
    status s = md_check_ctx(c, &f->arrays);
    if (s == NB_OK)
        s = md_check_arrays(&f->arrays, c, MD_NIBBLE, "param/");
    if (s == NB_OK)
        s = md_build(m, c, recipe ? recipe : own, MD_UNSET, o->fold);
    if (s == NB_OK)
        s = recipe || own->n == 0 ? md_load_weights(m, &f->arrays, MD_NIBBLE, "param/", o) : md_load_params(m, f);
    md_carry(m, &header);
    md_free(&header);
    return s;
}

/* A folded file keeps its own. */
static status refuse_recipe(fm_h5 *f)
{
    const char *own;
    TRY(fm_h5_get_string(f, "", "recipe", &own));
    return nb_fail(NB_USAGE, "%s: is folded by recipe %s already, and keeps it", f->arrays.path, own);
}

status md_open_h5(md_model *m, const char *path, const fq_recipe *recipe, const md_open_options *o)
{
    fm_h5 f;
    TRY(fm_h5_open(&f, path, NULL));
    bool is_folded = !strcmp(f.kind, "folded");
    status s;
    if (!is_folded && strcmp(f.kind, "model") != 0 && strcmp(f.kind, "checkpoint") != 0)
        s = nb_fail(NB_USAGE, "%s: a file of kind \"%s\" is no model", path, f.kind);
    else if (is_folded && recipe)
        s = refuse_recipe(&f);
    else
        s = is_folded ? md_open_folded(m, &f, o->train) : open_params(m, &f, recipe, o);
    if (s != NB_OK)
        md_free(m);
    fm_h5_close(&f);
    return s;
}
