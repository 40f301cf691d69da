/* pass_part.c - finished work of a pass in files; pass_part.h has their format. */
#include "ptq/pass_part.h"
#include <stdlib.h>
#include <string.h>

void pt_part_key(nb_writer *w, const md_model *m, const pt_options *o, const char *method, const int32_t *ids, int64_t windows, int64_t length)
{
    uint32_t crc = nb_crc32c(0, ids, (size_t)(windows * length) * sizeof *ids);
    for (int64_t i = 0; i < m->params.n; i++)
        crc = nb_crc32c(crc, m->params.p[i]->x, (size_t)m->params.p[i]->count * sizeof(real));
    for (int64_t i = 0; i < m->sites.n; i++)
        if (m->sites.s[i]->start)
            crc = nb_crc32c(crc, m->sites.s[i]->start, (size_t)m->sites.s[i]->n_scales * sizeof(real));
    nb_json_open(w, NULL, '{');
    nb_json_put_string(w, "method", method);
    nb_json_put_string(w, "recipe", m->recipe.name);
    nb_json_put_int(w, "windows", windows);
    nb_json_put_int(w, "length", length);
    nb_json_put_int(w, "seed", (int64_t)o->seed);
    nb_json_put_int(w, "precision", o->calibration.precision);
    nb_json_put_int(w, "model_and_data", crc);
}

bool pt_is_of_block(const char *name, int64_t layer)
{
    char prefix[40];
    const int n = snprintf(prefix, sizeof prefix, "layers.%lld.", (long long)layer);
    return strncmp(name, prefix, (size_t)n) == 0;
}

static char *file_of(const char *folder, const char *method, int64_t layer)
{
    char name[64];
    (void)snprintf(name, sizeof name, "%s-%lld.h5", method, (long long)layer);
    return nb_path_join(folder, name);
}

/* Reads where f is open, writes where it is being made; so does each. */
static status each_site(fq_site *site, fm_h5 *f, bool save)
{
    char name[192];
    const int64_t n = fq_site_state(site, NULL);
    if (n == 0)
        return NB_OK;
    (void)snprintf(name, sizeof name, "site/%s", site->name);
    double *x = nb_alloc((size_t)n, sizeof *x);
    if (!x)
        return NB_NOMEM;
    if (save)
        fq_site_state(site, x);
    status s = save ? fm_h5_write(f, name, FM_F64, 1, &n, x) : fm_h5_read_all(f, name, FM_F64, x, 1, &n);
    if (s == NB_OK && !save)
        s = fq_site_restore(site, x, n);
    free(x);
    return s;
}

static status each(md_model *m, fm_h5 *f, int64_t layer, bool save)
{
    for (int64_t i = 0; i < m->params.n; i++) {
        ag_param *p = m->params.p[i];
        char name[192];
        if (!pt_is_of_block(p->name, layer))
            continue;
        (void)snprintf(name, sizeof name, "param/%s", p->name);
        TRY(save ? fm_h5_write(f, name, FM_F32, p->n_dim, p->dim, p->x) : fm_h5_read_all(f, name, FM_F32, p->x, p->n_dim, p->dim));
    }
    for (int64_t i = 0; i < m->sites.n; i++)
        if (pt_is_of_block(m->sites.s[i]->name, layer))
            TRY(each_site(m->sites.s[i], f, save));
    m->params.version++;
    return NB_OK;
}

status pt_part_open(fm_h5 *f, const pt_part *p, int64_t n, bool *found)
{
    const char *key;
    *found = false;
    char *path = p->folder ? file_of(p->folder, p->method, n) : NULL;
    if (p->folder && !path)
        return NB_NOMEM;
    if (!path || !nb_path_exists(path)) {
        free(path);
        return NB_OK;
    }
    status s = fm_h5_open(f, path, "part");
    free(path);
    TRY(s);
    s = fm_h5_get_string(f, "", "key", &key);
    if (s == NB_OK && strcmp(key, p->key) != 0)
        s = nb_fail(NB_USAGE, "%s: holds what another run left (--force begins anew).\n  there: %s\n  now:   %s", p->folder, key, p->key);
    *found = s == NB_OK;
    if (s != NB_OK)
        fm_h5_close(f);
    return s;
}

status pt_part_create(fm_h5 *f, const pt_part *p, int64_t n)
{
    TRY(nb_make_folder(p->folder));
    char *path = file_of(p->folder, p->method, n);
    status s = path ? fm_h5_create(f, path, "part") : NB_NOMEM;
    free(path);
    return s == NB_OK ? fm_h5_put_string(f, "", "key", p->key) : s;
}

status pt_part_load(md_model *m, const pt_part *p, int64_t layer, bool *found)
{
    fm_h5 f;
    TRY(pt_part_open(&f, p, layer, found));
    if (!*found)
        return NB_OK;
    status s = each(m, &f, layer, false);
    fm_h5_close(&f);
    return s;
}

status pt_part_save(md_model *m, const pt_part *p, int64_t layer)
{
    fm_h5 f = {0};
    if (!p->folder)
        return NB_OK;
    status s = pt_part_create(&f, p, layer);
    if (s == NB_OK)
        s = each(m, &f, layer, true);
    if (s == NB_OK)
        s = fm_h5_commit(&f);
    fm_h5_close(&f);
    return s;
}

void pt_part_discard(const char *folder, const md_model *m)
{
    int64_t n;
    const pt_method *method = pt_methods(&n);
    if (!nb_path_is_folder(folder))
        return;
    for (int64_t i = 0; i < n; i++)
        for (int64_t layer = 0; layer < m->config.layers; layer++) {
            char *path = file_of(folder, method[i].name, layer);
            if (path)
                (void)remove(path);
            free(path);
        }
    (void)remove(folder); /* stays where something else lies in it */
}
