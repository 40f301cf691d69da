/* settings.c - everything that decides the result of a run, as JSON: written into checkpoints, compared on resume. */
#include "distill/trainer.h"
#include <stdlib.h>
#include <string.h>

/* One list: name in the file, kind, field. */
#define SETTINGS(X)                                      \
    X(int, "steps", steps)                               \
    X(int, "batch", batch)                               \
    X(int, "ctx", ctx)                                   \
    X(int, "accumulate", accumulate)                     \
    X(int, "seed", seed)                                 \
    X(number, "lr", lr)                                  \
    X(number, "scale_rate", scale_rate)                  \
    X(number, "beta1", beta1)                            \
    X(number, "beta2", beta2)                            \
    X(number, "eps", eps)                                \
    X(number, "decay", decay)                            \
    X(number, "clip", clip)                              \
    X(int, "schedule", schedule.kind)                    \
    X(int, "warmup", schedule.warmup)                    \
    X(number, "decay_share", schedule.decay_share)       \
    X(number, "floor", schedule.floor)                   \
    X(number, "ce", ce)                                  \
    X(number, "kl", kl)                                  \
    X(number, "reverse_kl", reverse_kl)                  \
    X(number, "temperature", temperature)                \
    X(number, "mse", mse)                                \
    X(number, "cosine", cosine)                          \
    X(number, "hidden", hidden)                          \
    X(bool, "sgd", sgd)                                  \
    X(int, "top_k", top_k)                               \
    X(int, "quant_after", quant_after)                   \
    X(int, "freeze_after", freeze_after)                 \
    X(number, "average", average)                        \
    X(number, "pin", pin)                                \
    X(int, "start", start)                               \
    X(int, "precision", precision)                       \
    X(int, "recompute", recompute)                       \
    X(int, "eval_every", eval_every)                     \
    X(int, "eval_tokens", eval_tokens)

static uint64_t fingerprint(const md_model *m)
{
    uint64_t h = NB_HASH_START;
    for (int64_t i = 0; m && i < m->params.n; i++)
        h = nb_hash(h, m->params.p[i]->x, (size_t)m->params.p[i]->count * sizeof(real));
    return h;
}

uint64_t kd_fingerprint(const kd_trainer *t)
{
    uint64_t h = fingerprint(t->teacher);
    h = nb_hash(h, t->data->settings, strlen(t->data->settings));
    h = nb_hash(h, t->train.start, (size_t)t->train.n * sizeof *t->train.start);
    if (!t->text)
        return h;
    h = nb_hash(h, t->text->settings, strlen(t->text->settings));
    return nb_hash(h, t->mixed.start, (size_t)t->mixed.n * sizeof *t->mixed.start);
}

static uint64_t source_hash(const fm_tokens *data)
{
    return nb_hash(nb_hash(NB_HASH_START, data->settings, strlen(data->settings)), &data->n, sizeof data->n);
}

static void put_hash(nb_writer *w, const char *key, uint64_t h)
{
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)h);
    nb_json_put_string(w, key, text);
}

char *kd_settings_text(const kd_trainer *t)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
#define put_int(name, field) nb_json_put_int(&w, name, (int64_t)t->o.field);
#define put_number(name, field) nb_json_put_number(&w, name, t->o.field);
#define put_bool(name, field) nb_json_put_bool(&w, name, t->o.field);
#define X(kind, name, field) put_##kind(name, field)
    SETTINGS(X)
#undef X
    nb_json_put_int(&w, "train_windows", t->train.n);
    nb_json_put_int(&w, "heldout_windows", t->held.n);
    put_hash(&w, "data", source_hash(t->data));
    if (t->text) {
        nb_json_put_number(&w, "text_share", t->o.text_share);
        nb_json_put_int(&w, "text_windows", t->mixed.n);
        put_hash(&w, "text", source_hash(t->text));
    }
    put_hash(&w, "teacher", fingerprint(t->teacher));
    if (t->teacher && t->teacher->config.tied && !t->student->config.tied)
        nb_json_put_bool(&w, "untie", true);
    char *recipe = fq_recipe_text(&t->student->recipe);
    put_hash(&w, "recipe", recipe ? nb_hash(NB_HASH_START, recipe, strlen(recipe)) : 0);
    free(recipe);
    nb_json_close(&w, '}');
    return nb_json_text(&w);
}

static void describe(char *text, size_t bytes, const nb_json *j)
{
    if (nb_json_is_number(j))
        snprintf(text, bytes, "%g", nb_json_number(j, 0));
    else
        snprintf(text, bytes, "%s", nb_json_string(j) ? nb_json_string(j) : nb_json_is_null(j) ? "nothing" : nb_json_bool(j, false) ? "true" : "false");
}

/* The first entry of `list` that differs between a and b, as a refusal. */
static status difference(const char *folder, const nb_json *list, const nb_json *a, const nb_json *b)
{
    for (const nb_json *i = nb_json_first(list); i; i = nb_json_next(i)) {
        char was[64], is[64];
        describe(was, sizeof was, nb_json_get(a, nb_json_key(i)));
        describe(is, sizeof is, nb_json_get(b, nb_json_key(i)));
        if (strcmp(was, is))
            return nb_fail(NB_USAGE, "%s holds a run with %s %s, this one has %s: say the same again to resume it, or --restart to discard it", folder, nb_json_key(i), was, is);
    }
    return NB_OK;
}

status kd_settings_compare(const char *folder, const char *old_text, const char *new_text)
{
    nb_json *a = nb_json_parse(old_text, strlen(old_text)), *b = nb_json_parse(new_text, strlen(new_text));
    status s = a && b ? difference(folder, b, a, b) : NB_FORMAT;
    if (s == NB_OK)
        s = difference(folder, a, a, b);
    nb_json_free(a);
    nb_json_free(b);
    return s;
}
