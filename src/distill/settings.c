/* settings.c - everything that decides the result of a run, as JSON: written into checkpoints, compared on resume. */
#include "distill/trainer.h"
#include <stdlib.h>
#include <string.h>

/* One list: name in the file, kind, field. */
#define SETTINGS(X)                                                                                                    \
    X(int, "steps", steps)                                                                                             \
    X(int, "batch", batch)                                                                                             \
    X(int, "ctx", ctx)                                                                                                 \
    X(int, "accumulate", accumulate)                                                                                   \
    X(int, "seed", seed)                                                                                               \
    X(number, "lr", lr)                                                                                                \
    X(number, "scale_rate", scale_rate)                                                                                \
    X(number, "beta1", beta1)                                                                                          \
    X(number, "beta2", beta2)                                                                                          \
    X(number, "eps", eps)                                                                                              \
    X(number, "decay", decay)                                                                                          \
    X(number, "clip", clip)                                                                                            \
    X(int, "schedule", schedule.kind)                                                                                  \
    X(int, "warmup", schedule.warmup)                                                                                  \
    X(number, "decay_share", schedule.decay_share)                                                                     \
    X(number, "floor", schedule.floor)                                                                                 \
    X(number, "ce", ce)                                                                                                \
    X(number, "kl", kl)                                                                                                \
    X(number, "reverse_kl", reverse_kl)                                                                                \
    X(number, "temperature", temperature)                                                                              \
    X(number, "mse", mse)                                                                                              \
    X(number, "cosine", cosine)                                                                                        \
    X(number, "hidden", hidden)                                                                                        \
    X(bool, "sgd", sgd)                                                                                                \
    X(bool, "bf16_moments", bf16_moments)                                                                              \
    X(bool, "int8_gradients", int8_gradients)                                                                          \
    X(int, "top_k", top_k)                                                                                             \
    X(int, "quant_after", quant_after)                                                                                 \
    X(int, "freeze_after", freeze_after)                                                                               \
    X(bool, "freeze_ends", freeze_ends)                                                                                \
    X(number, "average", average)                                                                                      \
    X(number, "pin", pin)                                                                                              \
    X(int, "start", start)                                                                                             \
    X(int, "precision", precision)                                                                                     \
    X(int, "recompute", recompute)                                                                                     \
    X(int, "eval_every", eval_every)                                                                                   \
    X(int, "eval_tokens", eval_tokens)

/* What makes sense of the numbers, by the options that set them. */
typedef enum { NOT_NEGATIVE, SHARE /* 0 to 1 */, MEMORY /* 0 to below 1 */, POSITIVE } sense;
static const char *const wanted[] = {"0 or more", "0 to 1", "0 to below 1", "more than 0"};
static const struct {
    const char *option;
    size_t offset;
    sense sense;
} numbers[] = {
    {"--epochs", offsetof(kd_train_options, epochs), NOT_NEGATIVE},
    {"--lr", offsetof(kd_train_options, lr), NOT_NEGATIVE},
    {"--scale-lr", offsetof(kd_train_options, scale_rate), NOT_NEGATIVE},
    {"--beta1", offsetof(kd_train_options, beta1), MEMORY},
    {"--beta2", offsetof(kd_train_options, beta2), MEMORY},
    {"--eps", offsetof(kd_train_options, eps), NOT_NEGATIVE},
    {"--weight-decay", offsetof(kd_train_options, decay), NOT_NEGATIVE},
    {"--clip", offsetof(kd_train_options, clip), NOT_NEGATIVE},
    {"--decay-share", offsetof(kd_train_options, schedule.decay_share), SHARE},
    {"--ce", offsetof(kd_train_options, ce), NOT_NEGATIVE},
    {"--kl", offsetof(kd_train_options, kl), NOT_NEGATIVE},
    {"--reverse-kl", offsetof(kd_train_options, reverse_kl), NOT_NEGATIVE},
    {"--mse", offsetof(kd_train_options, mse), NOT_NEGATIVE},
    {"--cosine", offsetof(kd_train_options, cosine), NOT_NEGATIVE},
    {"--hidden", offsetof(kd_train_options, hidden), NOT_NEGATIVE},
    {"--temperature", offsetof(kd_train_options, temperature), POSITIVE},
    {"--pin", offsetof(kd_train_options, pin), SHARE},
    {"--average", offsetof(kd_train_options, average), MEMORY},
};

status kd_settings_check(const kd_train_options *o)
{
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const sense k = numbers[i].sense;
        double x;
        memcpy(&x, (const char *)o + numbers[i].offset, sizeof x);
        if (!(k == POSITIVE ? x > 0 : x >= 0) || (k == SHARE && x > 1) || (k == MEMORY && x >= 1))
            return nb_fail(NB_USAGE, "%s %g: wanted %s", numbers[i].option, x, wanted[k]);
    }
    if (o->ce == 0 && !kd_distils(o))
        return nb_fail(NB_USAGE, "nothing to learn: the weights of all losses are 0");
    return NB_OK;
}

static uint64_t fingerprint(const md_model *m)
{
    uint64_t h = NB_HASH_START;
    for (int64_t i = 0; m && i < m->params.n; i++)
        h = nb_hash(h, m->params.p[i]->x, (size_t)m->params.p[i]->count * sizeof(real));
    return h;
}

uint64_t kd_fingerprint(const kd_trainer *t)
{
    uint64_t h = nb_hash(fingerprint(t->teacher), &t->train_hash, sizeof t->train_hash);
    return t->text ? nb_hash(h, &t->mixed_hash, sizeof t->mixed_hash) : h;
}

static void put_shape(nb_writer *w, const md_config *c)
{
    char text[64];
    snprintf(text, sizeof text, "%lld x %lld, hidden %lld, vocabulary %lld", (long long)c->layers, (long long)c->dim,
             (long long)c->hidden, (long long)c->vocab);
    nb_json_put_string(w, "shape", text);
    nb_json_put_bool(w, "untied", !c->tied);
}

char *kd_settings_text(const kd_trainer *t)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
#define put_int(name, field)    nb_json_put_int(&w, name, (int64_t)t->o.field);
#define put_number(name, field) nb_json_put_number(&w, name, t->o.field);
#define put_bool(name, field)   nb_json_put_bool(&w, name, t->o.field);
#define X(kind, name, field)    put_##kind(name, field)
    SETTINGS(X)
#undef X
    nb_json_put_int(&w, "train_windows", t->train.n);
    nb_json_put_int(&w, "heldout_windows", t->held.n);
    put_shape(&w, &t->student->config);
    nb_json_put_hash(&w, "data", t->train_hash);
    if (t->text) {
        nb_json_put_number(&w, "text_share", t->o.text_share);
        nb_json_put_int(&w, "text_windows", t->mixed.n);
        nb_json_put_hash(&w, "text", t->mixed_hash);
    }
    nb_json_put_hash(&w, "heldout", t->held_hash);
    nb_json_put_hash(&w, "teacher", fingerprint(t->teacher));
    nb_json_put_hash(&w, "model", fingerprint(t->student));
    char *recipe = fq_recipe_text(&t->student->recipe);
    nb_json_put_hash(&w, "recipe", recipe ? nb_hash(NB_HASH_START, recipe, strlen(recipe)) : 0);
    free(recipe);
    nb_json_close(&w, '}');
    return nb_json_text(&w);
}

static void describe(char *text, size_t bytes, const nb_json *j)
{
    if (nb_json_is_number(j))
        snprintf(text, bytes, "%g", nb_json_number(j, 0));
    else
        snprintf(text, bytes, "%s",
                 nb_json_string(j)        ? nb_json_string(j)
                 : nb_json_is_null(j)     ? "nothing"
                 : nb_json_bool(j, false) ? "true"
                                          : "false");
}

/* The first entry of `list` that differs between a and b, as a refusal. */
static status difference(const char *folder, const nb_json *list, const nb_json *a, const nb_json *b)
{
    for (const nb_json *i = nb_json_first(list); i; i = nb_json_next(i)) {
        char was[64], is[64];
        describe(was, sizeof was, nb_json_get(a, nb_json_key(i)));
        describe(is, sizeof is, nb_json_get(b, nb_json_key(i)));
        if (strcmp(was, is))
            return nb_fail(NB_USAGE,
                           "%s holds a run with %s %s, this one has %s: say the same again to resume it, or --restart "
                           "to discard it",
                           folder, nb_json_key(i), was, is);
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
