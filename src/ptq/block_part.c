/* block_part.c - finished blocks of a method that trains block by block, each in a file of its own, so that a run that was stopped goes on.
 *   FOLDER/METHOD-N.h5, kind "block": attribute key, /param/NAME F32, /site/NAME F64 (fq_site_state) of all that is "layers.N."
 */
#include "ptq/block_train.h"
#include <stdlib.h>
#include <string.h>

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

static status load_site(fq_site *site, fm_h5 *f)
{
    char name[192];
    const int64_t n = fq_site_state(site, NULL);
    if (n == 0)
        return NB_OK;
    (void)snprintf(name, sizeof name, "site/%s", site->name);
    double *x = nb_alloc((size_t)n, sizeof *x);
    status s = x ? fm_h5_read_all(f, name, FM_F64, x, 1, &n) : NB_NOMEM;
    if (s == NB_OK)
        s = fq_site_restore(site, x, n);
    free(x);
    return s;
}

static status save_site(const fq_site *site, fm_h5 *f)
{
    char name[192];
    const int64_t n = fq_site_state(site, NULL);
    if (n == 0)
        return NB_OK;
    (void)snprintf(name, sizeof name, "site/%s", site->name);
    double *x = nb_alloc((size_t)n, sizeof *x);
    if (!x)
        return NB_NOMEM;
    fq_site_state(site, x);
    status s = fm_h5_write(f, name, FM_F64, 1, &n, x);
    free(x);
    return s;
}

/* Reads where f is open, writes where it is being made. */
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
            TRY(save ? save_site(m->sites.s[i], f) : load_site(m->sites.s[i], f));
    m->params.version++;
    return NB_OK;
}

static status load(md_model *m, const char *path, const char *folder, const char *key, int64_t layer)
{
    fm_h5 f;
    const char *found;
    TRY(fm_h5_open(&f, path, "block"));
    status s = fm_h5_get_string(&f, "", "key", &found);
    if (s == NB_OK && strcmp(found, key) != 0)
        s = nb_fail(NB_USAGE, "%s: holds blocks of another run (--force begins anew).\n  there: %s\n  now:   %s", folder, found, key);
    if (s == NB_OK)
        s = each(m, &f, layer, false);
    fm_h5_close(&f);
    return s;
}

status pt_part_load(md_model *m, const char *folder, const char *method, const char *key, int64_t layer, bool *found)
{
    *found = false;
    if (!folder)
        return NB_OK;
    char *path = file_of(folder, method, layer);
    status s = path ? NB_OK : NB_NOMEM;
    if (s == NB_OK && nb_path_exists(path)) {
        s = load(m, path, folder, key, layer);
        *found = s == NB_OK;
    }
    free(path);
    return s;
}

status pt_part_save(md_model *m, const char *folder, const char *method, const char *key, int64_t layer)
{
    fm_h5 f = {0};
    if (!folder)
        return NB_OK;
    TRY(nb_make_folder(folder));
    char *path = file_of(folder, method, layer);
    status s = path ? fm_h5_create(&f, path, "block") : NB_NOMEM;
    if (s == NB_OK)
        s = fm_h5_put_string(&f, "", "key", key);
    if (s == NB_OK)
        s = each(m, &f, layer, true);
    if (s == NB_OK)
        s = fm_h5_commit(&f);
    fm_h5_close(&f);
    free(path);
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
