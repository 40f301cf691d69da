/* checkpoint.c - the files of a run folder: last.h5 (all of the state), best.h5 (the parameters), metrics.jsonl.
 *
 * last.h5, kind "checkpoint": config, recipe, tokenizer, /param/NAME and /site/NAME as md_save_params writes them, /adam/{m,v}/NAME, /average/NAME, /pin/{flips,mean}/SITE,
 * attributes step, settings, key, best_kl, best_nll, averaged. Random numbers are counter based: the step is their state.
 */
#include "distill/trainer.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* What the bits depend on beside the settings (law 6). */
static void key_text(char *text, size_t bytes)
{
    char libraries[128];
    kn_libraries(libraries, sizeof libraries);
    snprintf(text, bytes, "threads %d, isa %s, %s", omp_get_max_threads(), kn_isa_name(), libraries);
}

static status save_moments(kd_trainer *t, fm_h5 *f)
{
    const ag_params *ps = &t->student->params;
    for (int64_t i = 0; i < ps->n; i++) {
        const ag_param *p = ps->p[i];
        char name[160];
        const struct {
            const char *folder;
            fm_dtype type;
            const void *data;
        } array[] = {{"adam/m", FM_F32, p->m},
                     {"adam/v", FM_F32, p->v},
                     {"adam/m", FM_BF16, p->m16},
                     {"adam/v", FM_BF16, p->v16},
                     {"average", FM_F32, t->average ? t->average[i] : NULL}};
        for (size_t a = 0; a < sizeof array / sizeof *array; a++) {
            snprintf(name, sizeof name, "%s/%s", array[a].folder, p->name);
            if (array[a].data)
                TRY(fm_h5_write(f, name, array[a].type, p->n_dim, p->dim, array[a].data));
        }
    }
    return NB_OK;
}

static status write_state(kd_trainer *t, fm_h5 *f, bool all)
{
    char key[160];
    key_text(key, sizeof key);
    TRY(md_save_header(t->student, f));
    TRY(md_save_params(t->student, f, FM_F32));
    TRY(fm_h5_put_int(f, "", "step", t->step));
    TRY(fm_h5_put_string(f, "", "settings", t->settings));
    TRY(fm_h5_put_string(f, "", "key", key));
    TRY(fm_h5_put_number(f, "", "best_kl", t->best_kl));
    TRY(fm_h5_put_number(f, "", "best_nll", t->best_nll));
    TRY(fm_h5_put_int(f, "", "averaged", t->averaged));
    if (!all)
        return NB_OK;
    TRY(save_moments(t, f));
    return kd_pins_save(t, f);
}

static status save_as(kd_trainer *t, const char *name, bool all)
{
    fm_h5 f = {0};
    char *path = nb_path_join(t->folder, name);
    status s = path ? fm_h5_create(&f, path, "checkpoint") : NB_NOMEM;
    if (s == NB_OK)
        s = write_state(t, &f, all);
    if (s == NB_OK)
        s = fm_h5_commit(&f);
    fm_h5_close(&f);
    free(path);
    return s;
}

status kd_best_save(kd_trainer *t)
{
    return save_as(t, "best.h5", false);
}

/* ---- the folder --------------------------------------------------------------------------- */

status kd_lock(kd_trainer *t)
{
    t->lock = open(t->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (t->lock >= 0 && flock(t->lock, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        return nb_fail(NB_USAGE, "%s: another process is training in it", t->folder);
    return NB_OK; /* file systems without locks are fine, too */
}

void kd_unlock(kd_trainer *t)
{
    if (t->lock >= 0)
        close(t->lock);
    t->lock = -1;
}

/* N of "step-N.h5", else -1. */
static int64_t step_of(const char *name)
{
    char again[64];
    long long n = strncmp(name, "step-", 5) == 0 ? strtoll(name + 5, NULL, 10) : -1;
    snprintf(again, sizeof again, "step-%lld.h5", n);
    return n >= 0 && !strcmp(again, name) ? n : -1;
}

static void remove_file(const kd_trainer *t, const char *name)
{
    char *path = nb_path_join(t->folder, name);
    if (path)
        unlink(path);
    free(path);
}

/* Removes step-N.h5 with N > newest, and the oldest of the rest while there are more than `keep`. */
static void remove_steps(const kd_trainer *t, int64_t newest, int64_t keep)
{
    for (bool again = true; again;) {
        DIR *d = opendir(t->folder);
        int64_t n = 0, oldest = INT64_MAX, beyond = -1;
        for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
            int64_t step = step_of(e->d_name);
            n += step >= 0;
            oldest = step >= 0 && step < oldest ? step : oldest;
            beyond = step > newest ? step : beyond;
        }
        if (d)
            closedir(d);
        again = beyond >= 0 || n > keep;
        char name[64];
        snprintf(name, sizeof name, "step-%lld.h5", (long long)(beyond >= 0 ? beyond : oldest));
        char *path = again ? nb_path_join(t->folder, name) : NULL;
        again = path && unlink(path) == 0;
        free(path);
    }
}

status kd_discard(const kd_trainer *t)
{
    static const char *const files[] = {"last.h5", "best.h5", "metrics.jsonl", "logits.h5", "logits.h5.part"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        remove_file(t, files[i]);
    remove_steps(t, -1, 0);
    char *last = nb_path_join(t->folder, "last.h5");
    status s = last ? NB_OK : NB_NOMEM;
    if (s == NB_OK && nb_path_exists(last))
        s = nb_fail(NB_IO, "%s: cannot be removed", last);
    free(last);
    return s;
}

/* With keep > 1 the checkpoint stays as step-N.h5 too (a second name of the same file), the newest `keep` of them. */
static void keep_older(kd_trainer *t)
{
    char name[64];
    if (t->run->keep < 2)
        return;
    char *last = nb_path_join(t->folder, "last.h5");
    snprintf(name, sizeof name, "step-%lld.h5", (long long)t->step);
    char *now = nb_path_join(t->folder, name);
    if (last && now) {
        unlink(now);
        if (link(last, now) == 0)
            remove_steps(t, t->step, t->run->keep);
    }
    free(last);
    free(now);
}

status kd_checkpoint_save(kd_trainer *t)
{
    TRY(save_as(t, "last.h5", true));
    keep_older(t);
    return NB_OK;
}

/* Into array, or where it is stored in bf16 and may be kept so, into array16. */
static status load_array(fm_h5 *f, const char *folder, const ag_param *p, real **array, uint16_t **array16)
{
    char name[160];
    snprintf(name, sizeof name, "%s/%s", folder, p->name);
    const fm_array *found = fm_h5_find(f, name);
    if (!found)
        return NB_OK;
    if (array16 && found->dtype == FM_BF16) {
        if (!*array16 && !(*array16 = nb_alloc_aligned((size_t)p->count, sizeof(uint16_t))))
            return NB_NOMEM;
        return fm_h5_read_all(f, name, FM_BF16, *array16, p->n_dim, p->dim);
    }
    if (!*array && !(*array = nb_alloc_aligned((size_t)p->count, sizeof(real))))
        return NB_NOMEM;
    return fm_h5_read_all(f, name, FM_F32, *array, p->n_dim, p->dim);
}

static status load_state(kd_trainer *t, fm_h5 *f)
{
    ag_params *ps = &t->student->params;
    const char *settings, *was;
    char is[160];
    TRY(fm_h5_get_string(f, "", "key", &was));
    key_text(is, sizeof is);
    if (strcmp(was, is) != 0)
        snprintf(t->other_key, sizeof t->other_key, "%.150s; now %s", was, is);
    TRY(fm_h5_get_string(f, "", "settings", &settings));
    TRY(kd_settings_compare(t->folder, settings, t->settings));
    TRY(md_load_params(t->student, f));
    TRY(fm_h5_get_int(f, "", "step", &t->step));
    TRY(fm_h5_get_number(f, "", "best_kl", &t->best_kl));
    TRY(fm_h5_get_number(f, "", "best_nll", &t->best_nll));
    TRY(fm_h5_get_int(f, "", "averaged", &t->averaged));
    if (t->step < 0 || t->step > t->o.steps)
        return nb_fail(NB_FORMAT, "%s/last.h5: step %lld of %lld", t->folder, (long long)t->step, (long long)t->o.steps);
    if (t->averaged > 0 && !t->average && !(t->average = nb_alloc_zeroed((size_t)ps->n, sizeof *t->average)))
        return NB_NOMEM;
    for (int64_t i = 0; i < ps->n; i++) {
        ag_param *p = ps->p[i];
        TRY(load_array(f, "adam/m", p, &p->m, &p->m16));
        TRY(load_array(f, "adam/v", p, &p->v, &p->v16));
        if (t->average) {
            TRY(load_array(f, "average", p, &t->average[i], NULL));
            if (!t->average[i])
                return nb_fail(NB_FORMAT, "%s/last.h5: /average/%s is missing", t->folder, p->name);
        }
    }
    ps->version++;
    return kd_pins_load(t, f);
}

status kd_checkpoint_load(kd_trainer *t, bool *found)
{
    fm_h5 f = {0};
    char *path = nb_path_join(t->folder, "last.h5");
    status s = path ? NB_OK : NB_NOMEM;
    *found = path && nb_path_exists(path);
    if (*found) {
        s = fm_h5_open(&f, path, "checkpoint");
        if (s == NB_OK)
            s = load_state(t, &f);
        fm_h5_close(&f);
    }
    free(path);
    return s;
}

/* Lines whose step is beyond the checkpoint's are cut off: they will be written again. */
status kd_metrics_cut(const kd_trainer *t)
{
    char *path = nb_path_join(t->folder, "metrics.jsonl");
    nb_mapped m = {0};
    size_t end = 0;
    if (!path)
        return NB_NOMEM;
    if (!nb_path_exists(path)) {
        free(path);
        return NB_OK;
    }
    status s = nb_map(&m, path);
    for (size_t at = 0; s == NB_OK && at < m.bytes;) {
        const uint8_t *newline = memchr(m.data + at, '\n', m.bytes - at);
        if (!newline)
            break;
        size_t length = (size_t)(newline - m.data) - at;
        nb_json *j = nb_json_parse((const char *)m.data + at, length);
        bool keep = j && nb_json_int(nb_json_get(j, "step"), INT64_MAX) <= t->step;
        nb_json_free(j);
        if (!keep)
            break;
        at += length + 1;
        end = at;
    }
    nb_unmap(&m);
    if (s == NB_OK && truncate(path, (off_t)end))
        s = nb_fail(NB_IO, "%s: %s", path, strerror(errno));
    free(path);
    return s;
}

status kd_metrics_append(const kd_trainer *t, char *line)
{
    char *path = nb_path_join(t->folder, "metrics.jsonl");
    FILE *file = path ? fopen(path, "a") : NULL;
    status s = line && path ? NB_OK : NB_NOMEM;
    if (s == NB_OK && (!file || fprintf(file, "%s\n", line) < 0 || fflush(file)))
        s = nb_fail(NB_IO, "%s: %s", path, strerror(errno));
    if (file && fclose(file) && s == NB_OK)
        s = nb_fail(NB_IO, "%s: %s", path, strerror(errno));
    free(path);
    free(line);
    return s;
}
