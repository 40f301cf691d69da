/* scores.c - what an evaluation has scored so far, and the file that it goes on from:
 *   /nll F64 [done], /tokens I64 [done], /kl F32 [n_kl]; attributes key (16 hex digits), windows, sum_kl, sum_teacher, same
 */
#include "distill/scores.h"
#include "io/io.h"
#include <stdlib.h>
#include <string.h>

static const char KIND[] = "scores";

status kd_scores_new(kd_scores *s, int64_t windows)
{
    *s = (kd_scores){.windows = windows};
    s->nll = nb_alloc_zeroed((size_t)windows, sizeof *s->nll);
    s->tokens = nb_alloc_zeroed((size_t)windows, sizeof *s->tokens);
    return s->nll && s->tokens ? NB_OK : NB_NOMEM;
}

void kd_scores_free(kd_scores *s)
{
    free(s->nll);
    free(s->tokens);
    free(s->kl);
    *s = (kd_scores){0};
}

static status reserve(kd_scores *s, int64_t n)
{
    if (n <= s->capacity)
        return NB_OK;
    const int64_t capacity = n > 2 * s->capacity ? n : 2 * s->capacity;
    float *p = nb_resize(s->kl, (size_t)capacity, sizeof *p);
    if (!p)
        return NB_NOMEM;
    s->kl = p;
    s->capacity = capacity;
    return NB_OK;
}

status kd_scores_keep(kd_scores *s, float kl)
{
    TRY(reserve(s, s->n_kl + 1 > 4096 ? s->n_kl + 1 : 4096));
    s->kl[s->n_kl++] = kl;
    return NB_OK;
}

static void print_key(char text[17], uint64_t key)
{
    snprintf(text, 17, "%016llx", (unsigned long long)key);
}

status kd_scores_save(const kd_scores *s, const char *path, uint64_t key)
{
    fm_h5 f;
    char text[17];
    print_key(text, key);
    TRY(fm_h5_create(&f, path, KIND));
    /* a failure is kept in f and comes with the commit */
    (void)fm_h5_put_string(&f, "", "key", text);
    (void)fm_h5_put_int(&f, "", "windows", s->windows);
    (void)fm_h5_put_int(&f, "", "same", s->same);
    (void)fm_h5_put_number(&f, "", "sum_kl", s->sum_kl);
    (void)fm_h5_put_number(&f, "", "sum_teacher", s->sum_teacher);
    (void)fm_h5_write(&f, "nll", FM_F64, 1, &s->done, s->nll);
    (void)fm_h5_write(&f, "tokens", FM_I64, 1, &s->done, s->tokens);
    (void)fm_h5_write(&f, "kl", FM_F32, 1, &s->n_kl, s->kl);
    status st = fm_h5_commit(&f);
    fm_h5_close(&f);
    return st;
}

static status read(kd_scores *s, fm_h5 *f, const char *path, uint64_t key)
{
    const fm_array *nll = fm_h5_find(f, "nll"), *kl = fm_h5_find(f, "kl");
    const char *found;
    char wanted[17];
    int64_t windows, scored = 0;
    print_key(wanted, key);
    TRY(fm_h5_get_string(f, "", "key", &found));
    if (strcmp(found, wanted) != 0)
        return nb_fail(
            NB_USAGE, "%s: is of another evaluation (model, teacher, data or options); name another file, or remove it",
            path);
    TRY(fm_h5_get_int(f, "", "windows", &windows));
    if (!nll || !kl || nll->n_dim != 1 || kl->n_dim != 1 || windows != s->windows || nll->dim[0] > windows)
        return nb_fail(NB_FORMAT, "%s: does not hold the scores of %lld windows", path, (long long)s->windows);
    const int64_t done = nll->dim[0], n_kl = kl->dim[0];
    TRY(reserve(s, n_kl));
    TRY(fm_h5_get_int(f, "", "same", &s->same));
    TRY(fm_h5_get_number(f, "", "sum_kl", &s->sum_kl));
    TRY(fm_h5_get_number(f, "", "sum_teacher", &s->sum_teacher));
    TRY(fm_h5_read_all(f, "nll", FM_F64, s->nll, 1, &done));
    TRY(fm_h5_read_all(f, "tokens", FM_I64, s->tokens, 1, &done));
    TRY(fm_h5_read_all(f, "kl", FM_F32, s->kl, 1, &n_kl));
    for (int64_t i = 0; i < done; i++) {
        if (s->tokens[i] < 0 || s->tokens[i] > INT32_MAX)
            return nb_fail(NB_FORMAT, "%s: %lld tokens in window %lld", path, (long long)s->tokens[i], (long long)i);
        scored += s->tokens[i];
    }
    if (n_kl != 0 && n_kl != scored)
        return nb_fail(NB_FORMAT, "%s: %lld tokens are scored, %lld distances kept", path, (long long)scored,
                       (long long)n_kl);
    s->done = done;
    s->n_kl = n_kl;
    return NB_OK;
}

status kd_scores_load(kd_scores *s, const char *path, uint64_t key)
{
    fm_h5 f;
    if (!nb_path_exists(path))
        return NB_OK;
    status st = fm_h5_open(&f, path, KIND);
    if (st == NB_OK)
        st = read(s, &f, path, key);
    fm_h5_close(&f);
    return st;
}
