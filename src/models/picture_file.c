/* picture_file.c - networks for pictures in HDF5.
 *   kind "picture":         attributes format_version 1, stages (the text of models.h), recipe; /recipe, /param/NAME, /site/NAME as
 *                           in model_file.c; a checkpoint has the trainer's state beside them
 *   kind "picture-folded":  the same header, and codes as in folded.c, the latent floats with them
 */
#include "models/export.h"
#include <stdlib.h>
#include <string.h>

enum { FORMAT_VERSION = 1 };
#define FOLDED "picture-folded"

static status save_header(const md_picture_net *m, fm_h5 *f)
{
    char *text = md_stages_text(&m->stages);
    if (!text)
        return NB_NOMEM;
    status s = fm_h5_put_int(f, "", "format_version", FORMAT_VERSION);
    if (s == NB_OK)
        s = fm_h5_put_string(f, "", "stages", text);
    free(text);
    return s == NB_OK ? md_save_recipe(&m->base.recipe, f) : s;
}

static status load_header(md_stages *stages, fq_recipe *recipe, fm_h5 *f)
{
    int64_t version;
    const char *text;
    TRY(fm_h5_get_int(f, "", "format_version", &version));
    if (version != FORMAT_VERSION)
        return nb_fail(NB_UNSUPPORTED, "%s: format_version is %lld, wanted %d", f->arrays.path, (long long)version, FORMAT_VERSION);
    TRY(fm_h5_get_string(f, "", "stages", &text));
    TRY(md_stages_parse(stages, text, strlen(text), f->arrays.path));
    return md_load_recipe(recipe, f);
}

status md_net_save_state(md_picture_net *m, fm_h5 *f)
{
    TRY(save_header(m, f));
    return md_save_params(&m->base, f, FM_F32);
}

static status commit(fm_h5 *f, status s, const char *path)
{
    if (s == NB_OK)
        return fm_h5_commit(f);
    fm_h5_close(f);
    return s == NB_IO ? s : nb_fail_in(s, "%s", path);
}

status md_net_save(md_picture_net *m, const char *path)
{
    fm_h5 f;
    TRY(fm_h5_create(&f, path, "picture"));
    return commit(&f, md_net_save_state(m, &f), path);
}

status md_net_save_folded(md_picture_net *m, const char *path)
{
    char names[256];
    fm_h5 f;
    if (!m->base.recipe.n)
        return nb_fail(NB_USAGE, "%s: a network without a recipe has no codes", path);
    if (m->base.folded)
        return nb_fail(NB_USAGE, "%s: the network is folded already", path);
    if (fq_sites_need_calibration(&m->base.sites, names, sizeof names))
        return nb_fail(NB_USAGE, "%s: these sites have no ranges yet, calibrate them with data: %s", path, names);
    TRY(fm_h5_create(&f, path, FOLDED));
    status s = save_header(m, &f);
    if (s == NB_OK)
        s = md_save_codes(&m->base, &f, false);
    return commit(&f, s, path);
}

status md_net_load_state(md_picture_net *m, fm_h5 *f)
{
    return md_load_params(&m->base, f);
}

/* Memory is taken for no more than the file has: its weights, at a bit each at least. */
static status check_size(const md_stages *s, const fm_h5 *f)
{
    int64_t weights = 0, have = 0;
    for (int64_t i = 0; i < f->arrays.n; i++)
        have += (int64_t)f->arrays.array[i].bytes;
    for (int64_t i = 0; i < s->n; i++)
        if (s->stage[i].kind == MD_STAGE_CONV)
            weights += s->stage[i].c.N * kn_conv_depth(&s->stage[i].c);
    return weights / 8 <= have ? NB_OK
                               : nb_fail(NB_FORMAT, "%s: %lld bytes are too few for %lld weights", f->arrays.path, (long long)have,
                                         (long long)weights);
}

static status open_file(md_picture_net *m, fm_h5 *f)
{
    md_stages stages = {0};
    fq_recipe recipe = {0};
    const bool folded = !strcmp(f->kind, FOLDED);
    status s = load_header(&stages, &recipe, f);
    if (s == NB_OK)
        s = check_size(&stages, f);
    if (s == NB_OK)
        s = md_net_build(m, &stages, &recipe, LY_UNSET, folded);
    if (s == NB_OK) {
        s = folded ? md_load_codes(&m->base, f) : md_net_load_state(m, f);
        if (s != NB_OK)
            md_net_free(m);
    }
    md_stages_free(&stages);
    fq_recipe_free(&recipe);
    return s;
}

static char *file_of(const char *path)
{
    return nb_path_is_folder(path) ? nb_path_join(path, "last.h5") : nb_string(path);
}

static bool is_kind(const fm_h5 *f)
{
    return !strcmp(f->kind, "picture") || !strcmp(f->kind, FOLDED);
}

status md_net_open(md_picture_net *m, const char *path, const fq_recipe *recipe)
{
    fm_h5 f = {0};
    char *file = file_of(path);
    *m = (md_picture_net){0};
    status s = file ? fm_h5_open(&f, file, NULL) : NB_NOMEM;
    free(file);
    if (s != NB_OK)
        return s;
    if (!is_kind(&f))
        s = nb_fail(NB_FORMAT, "%s: is of kind \"%s\", no network for pictures", path, f.kind);
    else if (!recipe)
        s = open_file(m, &f);
    if (s == NB_OK && recipe) {
        md_picture_net from;
        s = open_file(&from, &f);
        if (s == NB_OK) {
            s = md_net_with_recipe(m, &from, recipe);
            if (s != NB_OK)
                nb_fail_in(s, "%s", path);
            md_net_free(&from);
        }
    }
    fm_h5_close(&f);
    return s;
}

bool md_is_net(const char *path)
{
    enum { KIND_AT = 16 };
    char head[KIND_AT + 24] = {0};
    char *file = file_of(path);
    FILE *f = file ? fopen(file, "rbe") : NULL;
    const size_t n = f ? fread(head, 1, sizeof head, f) : 0;
    if (f)
        (void)fclose(f);
    free(file);
    return n == sizeof head && !memcmp(head, "nibble\r\n", 8) && !strncmp(head + KIND_AT, "picture", 7);
}
