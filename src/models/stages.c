/* stages.c - the text that describes a network for pictures, in and out; the networks that ship. Form: models.h. */
#include "models/models.h"
#include <stdlib.h>
#include <string.h>

/* X(name, text) */
#define NETWORKS(X)                                                                                                    \
    X(simplenet, "input 28 28 1\n"                                                                                    \
                 "flatten\n"                                                                                          \
                 "linear 128 relu\n"                                                                                  \
                 "dropout 0.2\n"                                                                                      \
                 "linear 10\n")                                                                                       \
    X(simplecnn, "input 28 28 1\n"                                                                                    \
                 "conv 32 3 relu\n"                                                                                   \
                 "conv 64 3 relu\n"                                                                                   \
                 "maxpool 2\n"                                                                                        \
                 "dropout 0.25\n"                                                                                     \
                 "flatten\n"                                                                                          \
                 "linear 128 relu\n"                                                                                  \
                 "dropout 0.5\n"                                                                                      \
                 "linear 10\n")                                                                                       \
    X(dscnn, "input 28 28 1\n"                                                                                        \
             "conv 16 3 stride 2 pad 1 norm relu\n"                                                                   \
             "conv 16 3 pad 1 depthwise norm relu\n"                                                                  \
             "conv 32 1 norm relu\n"                                                                                  \
             "conv 32 3 stride 2 pad 1 depthwise norm relu\n"                                                         \
             "conv 64 1 norm relu\n"                                                                                  \
             "conv 64 3 pad 1 depthwise norm relu\n"                                                                  \
             "conv 64 1 norm relu\n"                                                                                  \
             "avgpool all\n"                                                                                          \
             "linear 10\n")

const char *md_stages_named(const char *name)
{
#define X(id, text)                                                                                                    \
    if (!strcmp(name, #id))                                                                                            \
        return text;
    NETWORKS(X)
#undef X
    return NULL;
}

/* ---- reading ------------------------------------------------------------------------------ */

enum { MAX_STAGES = 256, MAX_WORDS = 16, MAX_LINE = 256 };

typedef struct {
    char *word[MAX_WORDS];
    int n, at;
} words;

static bool take(words *w, const char *word)
{
    if (w->at >= w->n || strcmp(w->word[w->at], word) != 0)
        return false;
    w->at++;
    return true;
}

static status number(words *w, const char *what, int64_t *to)
{
    if (w->at >= w->n || nb_parse_count(to, w->word[w->at]) != NB_OK || *to > 1 << 20)
        return nb_fail(NB_FORMAT, "%s: wanted %s, a number", w->word[0], what);
    w->at++;
    return NB_OK;
}

/* What lies before a stage. */
typedef struct {
    int64_t H, W, C;
    bool flat;
} shape;

static void read_activation(words *w, md_stage *s)
{
    s->act = take(w, "relu") ? KN_RELU : take(w, "relu6") ? KN_RELU6 : KN_LINEAR;
}

static status read_conv(words *w, md_stage *s, shape *now)
{
    kn_conv *c = &s->c;
    *c = (kn_conv){.H = now->H, .W = now->W, .C = now->C};
    if (now->flat)
        return nb_fail(NB_FORMAT, "conv: after flatten or linear there is no picture");
    TRY(number(w, "the number of channels", &c->N));
    TRY(number(w, "the size of the window", &c->K));
    for (bool again = true; again;) {
        again = true;
        if (take(w, "stride"))
            TRY(number(w, "the stride", &c->stride));
        else if (take(w, "pad"))
            TRY(number(w, "the margin", &c->pad));
        else if (take(w, "dilation"))
            TRY(number(w, "the dilation", &c->dilation));
        else if (take(w, "groups"))
            TRY(number(w, "the number of groups", &c->groups));
        else if (take(w, "depthwise"))
            c->groups = c->C;
        else if (take(w, "norm"))
            s->norm = true;
        else
            again = false;
    }
    read_activation(w, s);
    TRY(kn_conv_fit(c));
    *now = (shape){c->OH, c->OW, c->N, false};
    return NB_OK;
}

static status read_linear(words *w, md_stage *s, shape *now)
{
    s->c = (kn_conv){.H = 1, .W = 1, .C = now->H * now->W * now->C, .K = 1};
    TRY(number(w, "the number of outputs", &s->c.N));
    read_activation(w, s);
    TRY(kn_conv_fit(&s->c));
    *now = (shape){1, 1, s->c.N, true};
    return NB_OK;
}

static status read_pool(words *w, md_stage *s, shape *now, bool average)
{
    s->kind = average ? MD_STAGE_AVERAGE_POOL : MD_STAGE_MAX_POOL;
    s->c = (kn_conv){.H = now->H, .W = now->W, .C = now->C};
    if (now->flat)
        return nb_fail(NB_FORMAT, "%s: after flatten or linear there is no picture", w->word[0]);
    if (average && take(w, "all")) {
        if (now->H != now->W)
            return nb_fail(NB_FORMAT, "avgpool all: the picture is %lldx%lld, wanted a square", (long long)now->H, (long long)now->W);
        s->c.K = now->H;
    } else {
        TRY(number(w, "the size of the window", &s->c.K));
    }
    if (!average && s->c.K > 15)
        return nb_fail(NB_FORMAT, "maxpool: windows of at most 15 points a side");
    if (take(w, "stride"))
        TRY(number(w, "the stride", &s->c.stride));
    TRY(kn_pool_fit(&s->c));
    *now = (shape){s->c.OH, s->c.OW, s->c.C, false};
    return NB_OK;
}

static status read_stage(words *w, md_stage *s, shape *now)
{
    status e = NB_OK;
    w->at = 1;
    if (!strcmp(w->word[0], "conv")) {
        e = read_conv(w, s, now);
    } else if (!strcmp(w->word[0], "linear")) {
        e = read_linear(w, s, now);
    } else if (!strcmp(w->word[0], "maxpool") || !strcmp(w->word[0], "avgpool")) {
        e = read_pool(w, s, now, w->word[0][0] == 'a');
    } else if (!strcmp(w->word[0], "dropout")) {
        s->kind = MD_STAGE_DROPOUT;
        if (w->n < 2 || nb_parse_number(&s->p, w->word[1]) != NB_OK || !(s->p >= 0 && s->p < 1))
            return nb_fail(NB_FORMAT, "dropout: wanted a share in [0, 1)");
        w->at = 2;
    } else if (!strcmp(w->word[0], "flatten")) {
        s->kind = MD_STAGE_FLATTEN;
        now->flat = true;
    } else {
        return nb_fail(NB_FORMAT, "'%s': wanted conv, linear, maxpool, avgpool, dropout or flatten", w->word[0]);
    }
    if (e == NB_OK && w->at < w->n)
        return nb_fail(NB_FORMAT, "%s: '%s' is not understood here", w->word[0], w->word[w->at]);
    return e;
}

static words split(char *line)
{
    words w = {0};
    char *comment = strchr(line, '#'), *rest = NULL;
    if (comment)
        *comment = 0;
    for (char *p = strtok_r(line, " \t\r", &rest); p && w.n < MAX_WORDS; p = strtok_r(NULL, " \t\r", &rest))
        w.word[w.n++] = p;
    return w;
}

static status read_line(md_stages *s, words *w, shape *now)
{
    if (!w->n)
        return NB_OK;
    if (!now->H) {
        if (strcmp(w->word[0], "input") != 0)
            return nb_fail(NB_FORMAT, "wanted \"input HEIGHT WIDTH CHANNELS\" first");
        w->at = 1;
        TRY(number(w, "the height", &now->H));
        TRY(number(w, "the width", &now->W));
        TRY(number(w, "the number of channels", &now->C));
        if (w->at < w->n || now->H < 1 || now->W < 1 || now->C < 1 || now->H > 4096 || now->W > 4096 || now->C > 4096)
            return nb_fail(NB_FORMAT, "input: wanted three numbers of 1 to 4096");
        s->height = now->H;
        s->width = now->W;
        s->channels = now->C;
        return NB_OK;
    }
    if (s->n == MAX_STAGES)
        return nb_fail(NB_FORMAT, "more than %d stages", MAX_STAGES);
    return read_stage(w, &s->stage[s->n++], now);
}

static status read_text(md_stages *s, const char *text, size_t bytes, const char *name)
{
    shape now = {0};
    s->stage = nb_alloc_zeroed(MAX_STAGES, sizeof *s->stage);
    if (!s->stage)
        return NB_NOMEM;
    for (size_t at = 0, row = 1; at < bytes; row++) {
        char line[MAX_LINE];
        const char *end = memchr(text + at, '\n', bytes - at);
        const size_t length = end ? (size_t)(end - text) - at : bytes - at;
        if (length >= sizeof line)
            return nb_fail(NB_FORMAT, "%s, line %zu: longer than %d bytes", name, row, MAX_LINE);
        memcpy(line, text + at, length);
        line[length] = 0;
        words w = split(line);
        if (read_line(s, &w, &now) != NB_OK)
            return nb_fail_in(NB_FORMAT, "%s, line %zu", name, row);
        at += length + 1;
    }
    const md_stage *last = s->n ? &s->stage[s->n - 1] : NULL;
    if (!last || last->kind != MD_STAGE_CONV || last->c.H * last->c.W != 1 || last->act != KN_LINEAR || last->norm)
        return nb_fail(NB_FORMAT, "%s: wanted \"linear CLASSES\" as the last stage", name);
    s->classes = last->c.N;
    return NB_OK;
}

status md_stages_parse(md_stages *s, const char *text, size_t bytes, const char *name)
{
    *s = (md_stages){0};
    const status e = read_text(s, text, bytes, name);
    if (e != NB_OK)
        md_stages_free(s);
    return e;
}

void md_stages_free(md_stages *s)
{
    free(s->stage);
    *s = (md_stages){0};
}

/* ---- writing ------------------------------------------------------------------------------ */

static int print_stage(char *text, size_t bytes, const md_stage *s)
{
    static const char *const act[] = {[KN_LINEAR] = "", [KN_RELU] = " relu", [KN_RELU6] = " relu6"};
    const kn_conv *c = &s->c;
    char groups[48] = "";
    switch (s->kind) {
    case MD_STAGE_CONV:
        if (c->H * c->W == 1 && c->K == 1 && c->groups == 1 && !s->norm)
            return snprintf(text, bytes, "linear %lld%s\n", (long long)c->N, act[s->act]);
        if (c->groups > 1)
            snprintf(groups, sizeof groups, " groups %lld", (long long)c->groups);
        return snprintf(text, bytes, "conv %lld %lld stride %lld pad %lld dilation %lld%s%s%s\n", (long long)c->N, (long long)c->K,
                        (long long)c->stride, (long long)c->pad, (long long)c->dilation, groups, s->norm ? " norm" : "",
                        act[s->act]);
    case MD_STAGE_MAX_POOL:
    case MD_STAGE_AVERAGE_POOL:
        return snprintf(text, bytes, "%s %lld stride %lld\n", s->kind == MD_STAGE_MAX_POOL ? "maxpool" : "avgpool",
                        (long long)c->K, (long long)c->stride);
    case MD_STAGE_DROPOUT:
        return snprintf(text, bytes, "dropout %.9g\n", s->p);
    default:
        return snprintf(text, bytes, "flatten\n");
    }
}

char *md_stages_text(const md_stages *s)
{
    const size_t bytes = (size_t)(s->n + 1) * 160;
    char *text = nb_alloc(bytes, 1);
    if (!text)
        return NULL;
    int at = snprintf(text, bytes, "input %lld %lld %lld\n", (long long)s->height, (long long)s->width, (long long)s->channels);
    for (int64_t i = 0; i < s->n; i++)
        at += print_stage(text + at, bytes - (size_t)at, &s->stage[i]);
    return text;
}
