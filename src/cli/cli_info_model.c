/* cli_info_model.c - nibble info of models and run folders. */
#include "cli/cli_info.h"
#include <stdlib.h>
#include <string.h>

static void shape(cl_facts *f, const md_config *c)
{
    nb_json_open(&f->json, "config", '{');
    md_config_to_json(c, &f->json);
    nb_json_close(&f->json, '}');
    cl_row(&f->table, "architecture\t%s, %lld layers, %lld channels, %lld hidden", c->architecture,
           (long long)c->layers, (long long)c->dim, (long long)c->hidden);
    cl_row(&f->table, "attention\t%lld heads of %lld, %lld for keys and values", (long long)c->heads,
           (long long)c->head_size, (long long)c->kv_heads);
    cl_row(&f->table, "vocabulary\t%lld, head %s", (long long)c->vocab,
           c->tied ? "tied to the embedding" : "of its own");
    cl_row(&f->table, "context\t%lld", (long long)c->ctx);
}

static void size(cl_facts *f, const md_model *m)
{
    md_size s;
    char text[64];
    md_measure(&s, m);
    const int64_t bytes = md_size_bytes(&s);
    cl_fact_int(f, "params", s.params);
    nb_json_put_int(&f->json, "code_bytes", s.code_bytes);
    nb_json_put_int(&f->json, "scale_bytes", s.scale_bytes);
    nb_json_put_int(&f->json, "zero_bytes", s.zero_bytes);
    nb_json_put_int(&f->json, "float_bytes", s.float_bytes);
    nb_json_put_int(&f->json, "bytes", bytes);
    cl_size(text, sizeof text, (double)bytes);
    cl_row(&f->table, "size\t%s: codes %lld, scales %lld, zero points %lld, floats %lld bytes", text,
           (long long)s.code_bytes, (long long)s.scale_bytes, (long long)s.zero_bytes, (long long)s.float_bytes);
    double bits = 8.0 * (double)bytes / (double)s.params;
    nb_json_put_number(&f->json, "bits_per_param", bits);
    cl_row(&f->table, "bits per parameter\t%.2f", bits);
}

static void tensor(cl_facts *f, const char *name, const char *dims, const char *spec)
{
    nb_json_open(&f->json, NULL, '{');
    nb_json_put_string(&f->json, "name", name);
    nb_json_put_string(&f->json, "shape", dims);
    nb_json_put_string(&f->json, "spec", spec);
    nb_json_close(&f->json, '}');
    cl_row(&f->table, "  %s\t%s\t%s", name, dims, spec);
}

/* Sites that quantize first, weights and activations in the order of the forward pass, then what stays float. */
static void tensors(cl_facts *f, const md_model *m)
{
    nb_json_open(&f->json, "tensors", '[');
    for (int64_t i = 0; i < m->sites.n; i++) {
        const fq_site *s = m->sites.s[i];
        char dims[48], spec[128];
        if (s->spec.grid.bits == 0)
            continue;
        fq_spec_print(spec, sizeof spec, &s->spec);
        if (s->is_weight)
            snprintf(dims, sizeof dims, "%lld x %lld", (long long)s->rows, (long long)s->cols);
        else
            snprintf(dims, sizeof dims, "tokens x %lld", (long long)s->cols);
        tensor(f, s->name, dims, spec);
    }
    for (int64_t i = 0; i < m->params.n; i++) {
        const ag_param *p = m->params.p[i];
        const fq_site *s = fq_site_find(&m->sites, p->name);
        char dims[96] = "";
        size_t used = 0;
        if (p->group == AG_SCALE || (s && s->spec.grid.bits))
            continue;
        for (int d = 0; d < p->n_dim; d++)
            used += (size_t)snprintf(dims + used, sizeof dims - used, "%s%lld", d ? " x " : "", (long long)p->dim[d]);
        tensor(f, p->name, dims, "float");
    }
    nb_json_close(&f->json, ']');
}

status cl_info_model(cl_facts *f, const md_model *m, bool list)
{
    shape(f, &m->config);
    size(f, m);
    cl_fact_text(f, "recipe", m->recipe.n ? m->recipe.name : "none (float)");
    cl_fact_tokenizer(f, &m->tokenizer);
    if (list)
        tensors(f, m);
    return NB_OK;
}

/* Where training stands, from the newest checkpoint. */
static status progress(cl_facts *f, fm_h5 *h)
{
    int64_t step;
    double kl, nll;
    const char *settings;
    TRY(fm_h5_get_int(h, "", "step", &step));
    TRY(fm_h5_get_number(h, "", "best_kl", &kl));
    TRY(fm_h5_get_number(h, "", "best_nll", &nll));
    TRY(fm_h5_get_string(h, "", "settings", &settings));
    nb_json *j = nb_json_parse(settings, strlen(settings));
    if (!j)
        return nb_fail_in(NB_FORMAT, "%s: settings", h->arrays.path);
    cl_fact_int(f, "step", step);
    cl_fact_int(f, "steps", nb_json_int(nb_json_get(j, "steps"), 0));
    cl_fact_number(f, "best_kl", kl);
    cl_fact_number(f, "best_nll", nll);
    nb_json_put_raw(&f->json, "settings", settings);
    nb_json_free(j);
    return NB_OK;
}

status cl_info_run(cl_facts *f, const char *path, const cl_common *c, bool list)
{
    fm_h5 h = {0};
    md_model m = {0};
    cl_fact_text(f, "kind", "run folder");
    char *last = nb_path_join(path, "last.h5");
    status s = last ? NB_OK : NB_NOMEM;
    if (s == NB_OK && nb_path_exists(last)) {
        s = fm_h5_open(&h, last, "checkpoint");
        if (s == NB_OK)
            s = progress(f, &h);
        fm_h5_close(&h);
    }
    free(last);
    if (s == NB_OK)
        s = cl_open_model(&m, path, c, NULL, false);
    if (s == NB_OK)
        s = cl_info_model(f, &m, list);
    md_free(&m);
    return s;
}
