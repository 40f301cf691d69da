/* generate.c - the teacher writes its own training data, many rows at once (LLM-QAT, Liu et al. 2023, section 3.1). */
#include "distill/distill.h"
#include "distill/windows.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
    md_model *teacher;
    const kd_data_options *o;
    int64_t ctx, slots, V;
    rt_session *session;
    real *hidden, *logits;
    char *scratch; /* [slots] of rt_sample_scratch */
    int32_t *rows; /* [slots, ctx] */
    int32_t *slot, *token;
    int64_t *permutation, permutation_of, ways; /* of the ways to begin a row (tokens, prompts), for rows permutation_of * ways .. */
    int32_t separator; /* of documents, where rows begin mixed or with prompts; -1: none */
    kd_windows prompts;
    int64_t *index;             /* [slots] of prompts, */
    int32_t *prompt, *prompted; /* [slots, prompt_length], and how many tokens they have */
} generator;

static void generator_free(generator *g)
{
    rt_close(g->session);
    free(g->hidden);
    free(g->logits);
    free(g->scratch);
    free(g->rows);
    free(g->slot);
    free(g->token);
    free(g->permutation);
    free(g->index);
    free(g->prompt);
    free(g->prompted);
    kd_windows_free(&g->prompts);
}

/* More rows read the weights less often, but their caches are read with every token. */
static int64_t default_slots(const generator *g)
{
    enum { FEW = 64, MANY = 128, LARGE = 1 << 30 /* bytes of their caches */ };
    const md_config *c = &g->teacher->config;
    const int64_t each = c->layers * c->kv_heads * c->head_size * 2 * (g->o->precision == KN_BF16 ? 2 : 4) * g->ctx;
    return each * MANY <= LARGE ? MANY : FEW;
}

static status generator_open(generator *g)
{
    /* Where products round to bf16 the cache does, too: at a few hundred tokens reading it is most of what attention takes. */
    rt_options o = {.slots = g->slots, .ctx = g->ctx, .precision = g->o->precision, .cache_floats = g->o->precision};
    const size_t n = (size_t)g->slots, prompt = g->o->prompts ? (size_t)g->o->prompt_length : 1;
    if (g->o->prompts)
        TRY(kd_windows_new(&g->prompts, g->o->prompts, g->o->prompt_length, false));
    g->ways = g->o->prompts ? g->prompts.n : g->V;
    TRY(rt_open(&g->session, g->teacher, &o));
    g->hidden = nb_alloc_aligned(n * (size_t)g->teacher->config.dim, sizeof(real));
    g->logits = nb_alloc_aligned(n * (size_t)g->V, sizeof(real));
    g->scratch = nb_alloc(n, rt_sample_scratch(g->V));
    g->rows = nb_alloc(n * (size_t)g->ctx, sizeof *g->rows);
    g->slot = nb_alloc(n, sizeof *g->slot);
    g->token = nb_alloc(n, sizeof *g->token);
    g->permutation = nb_alloc((size_t)g->ways, sizeof *g->permutation);
    g->permutation_of = -1;
    g->index = nb_alloc(n, sizeof *g->index);
    g->prompt = nb_alloc(n, prompt * sizeof *g->prompt);
    g->prompted = nb_alloc_zeroed(n, sizeof *g->prompted);
    return g->hidden && g->logits && g->scratch && g->rows && g->slot && g->token && g->permutation && g->index && g->prompt && g->prompted
               ? NB_OK
               : NB_NOMEM;
}

/* How row i begins, and what begins a document in it. */
typedef enum { WITH_BOS, WITH_SEPARATOR, AT_RANDOM, WITH_PROMPT } beginning;

static beginning beginning_of(const generator *g, int64_t i)
{
    static const beginning mixed[] = {WITH_SEPARATOR, AT_RANDOM, WITH_SEPARATOR, WITH_BOS};
    if (g->o->prompts)
        return WITH_PROMPT;
    if (g->o->start != KD_START_MIXED)
        return g->o->start == KD_START_BOS ? WITH_BOS : AT_RANDOM;
    return g->separator < 0 && mixed[i % 4] == WITH_SEPARATOR ? WITH_BOS : mixed[i % 4];
}

/* The k-th of all ways to begin at random: each once before any comes again. */
static int64_t way(generator *g, int64_t k)
{
    if (g->permutation_of != k / g->ways) {
        g->permutation_of = k / g->ways;
        nb_random_permutation(g->permutation, g->ways, g->o->seed, (1ull << 62) + (uint64_t)g->permutation_of);
    }
    return g->permutation[k % g->ways];
}

/* Prompts of rows [first, first + n). */
static status read_prompts(generator *g, int64_t first, int64_t n)
{
    for (int64_t r = 0; r < n; r++)
        g->index[r] = way(g, first + r);
    return kd_windows_read(&g->prompts, g->o->prompts, g->index, n, g->o->prompt_length, g->prompt, g->prompted);
}

/* The first token of row i in slot r: of its prompt, BOS, the separator, or one of the vocabulary. */
static int32_t first_token(generator *g, int64_t i, int64_t r)
{
    switch (beginning_of(g, i)) {
    case WITH_PROMPT: return g->prompt[r * g->o->prompt_length];
    case WITH_BOS: return (int32_t)g->teacher->config.bos;
    case WITH_SEPARATOR: return g->separator;
    case AT_RANDOM: break;
    }
    return (int32_t)way(g, g->o->start == KD_START_MIXED ? i / 4 : i);
}

/* Positions up to which row i is greedy: hybrid rows take 3 to 5 likely tokens after the first. */
static int64_t greedy_until(const generator *g, int64_t i)
{
    return beginning_of(g, i) != AT_RANDOM ? 0 : 3 + (int64_t)(nb_random(g->o->seed, (1ull << 61), (uint64_t)i) % 3);
}

/* What stands behind an end token of row i; -1: what the model says. */
static int32_t after_end(const generator *g, int64_t i)
{
    if (g->separator < 0)
        return (int32_t)g->teacher->config.bos;
    return beginning_of(g, i) == WITH_BOS ? -1 : g->separator;
}

static int32_t next_token(const generator *g, int64_t i, int64_t r, int64_t t)
{
    const int32_t *row = g->rows + r * g->ctx;
    const md_config *c = &g->teacher->config;
    if (t + 1 < g->prompted[r])
        return g->prompt[r * g->o->prompt_length + t + 1];
    const bool ended = c->eos >= 0 && c->eos != c->bos && row[t] == c->eos && row[t] != g->separator;
    const int32_t forced = ended ? after_end(g, i) : -1;
    if (forced >= 0)
        return forced;
    rt_sampling how = g->o->sampling;
    if (t < greedy_until(g, i))
        how.temperature = 0;
    return rt_sample(g->logits + r * g->V, g->V, &how, nb_random_unit(g->o->seed, (uint64_t)i, (uint64_t)t),
                     g->scratch + (size_t)r * rt_sample_scratch(g->V));
}

/* Rows [first, first + n) of the whole file, token by token in step. */
static status make_batch(generator *g, int64_t first, int64_t n)
{
    if (g->o->prompts)
        TRY(read_prompts(g, first, n));
    for (int64_t r = 0; r < n; r++) {
        g->rows[r * g->ctx] = first_token(g, first + r, r);
        g->slot[r] = (int32_t)r;
        rt_clear(g->session, r);
    }
    for (int64_t t = 0; t + 1 < g->ctx; t++) {
        for (int64_t r = 0; r < n; r++)
            g->token[r] = g->rows[r * g->ctx + t];
        TRY(rt_forward(g->session, n, g->slot, g->token, g->hidden));
        TRY(rt_head(g->session, g->logits, g->hidden, n));
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < n; r++)
            g->rows[r * g->ctx + t + 1] = next_token(g, first + r, r, t);
    }
    return NB_OK;
}

/* Of all parameters: of their hashes, which threads find side by side. 0: no memory. */
static uint64_t hash_of(const ag_params *ps)
{
    uint64_t *each = nb_alloc((size_t)ps->n, sizeof *each), h = NB_HASH_START;
    if (!each)
        return 0;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < ps->n; i++)
        each[i] = nb_hash(NB_HASH_START, ps->p[i]->x, (size_t)ps->p[i]->count * sizeof(real));
    h = nb_hash(h, each, (size_t)ps->n * sizeof *each);
    free(each);
    return h;
}

static status settings_text(char **text, const generator *g)
{
    const kd_data_options *o = g->o;
    uint64_t prompts = 0;
    if (o->prompts)
        TRY(kd_windows_hash(&prompts, &g->prompts, o->prompts, o->prompt_length));
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_string(&w, "start", o->prompts ? "prompts" : (const char *const[]){"bos", "hybrid", "mixed"}[o->start]);
    if (o->prompts) {
        nb_json_put_hash(&w, "prompts", prompts);
        nb_json_put_int(&w, "prompt_length", o->prompt_length);
    }
    nb_json_put_number(&w, "temperature", o->sampling.temperature);
    nb_json_put_int(&w, "top_k", o->sampling.top_k);
    nb_json_put_number(&w, "top_p", o->sampling.top_p);
    nb_json_put_int(&w, "ctx", g->ctx);
    nb_json_put_int(&w, "slots", g->slots);
    nb_json_put_int(&w, "tokens", o->tokens);
    nb_json_put_string(&w, "precision", o->precision == KN_BF16 ? "bf16" : "fp32");
    nb_json_put_string(&w, "cache", o->precision == KN_BF16 ? "bf16" : "fp32");
    nb_json_put_hash(&w, "teacher", hash_of(&g->teacher->params));
    nb_json_close(&w, '}');
    *text = nb_json_text(&w);
    return *text ? NB_OK : NB_NOMEM;
}

static status run(generator *g, fm_tokens_writer *w, const nb_progress *progress, kd_data_report *report)
{
    const int64_t rows = (g->o->tokens + g->ctx - 1) / g->ctx, total = rows * g->ctx;
    report->resumed_tokens = w->n_tokens;
    for (int64_t first = w->n_batches * g->slots; first < rows; first += g->slots) {
        int64_t n = rows - first < g->slots ? rows - first : g->slots;
        if (!nb_progress_report(progress, w->n_tokens, total, "generating"))
            return nb_fail(NB_INTERRUPTED, "stopped at %lld of %lld tokens; the same command goes on from there",
                           (long long)w->n_tokens, (long long)total);
        TRY(make_batch(g, first, n));
        TRY(fm_tokens_writer_append(w, g->rows, n * g->ctx, NULL, 0));
    }
    report->tokens = w->n_tokens;
    report->documents = w->n_documents;
    nb_progress_report(progress, total, total, "generating");
    return fm_tokens_writer_finish(w);
}

status kd_generate(md_model *teacher, const kd_data_options *o, const char *path, bool restart,
                   const nb_progress *progress, kd_data_report *report)
{
    int64_t limit = teacher->config.ctx;
    generator g = {.teacher = teacher,
                   .o = o,
                   .ctx = o->ctx        ? o->ctx
                          : limit < 256 ? limit
                                        : 256,
                   .V = teacher->config.vocab,
                   .separator = -1};
    static const char separator[] = "<|endoftext|>";
    kd_data_report unused;
    report = report ? report : &unused;
    *report = (kd_data_report){0};
    if (o->tokens < 1 || g.ctx < 2 || g.ctx > limit)
        return nb_fail(NB_USAGE, "%lld tokens in rows of %lld: a row has 2 to %lld tokens (the model's context)",
                       (long long)o->tokens, (long long)g.ctx, (long long)limit);
    if (o->prompts && (o->prompt_length < 2 || o->prompt_length >= g.ctx))
        return nb_fail(NB_USAGE, "prompts of %lld tokens: 2 to %lld begin a row of %lld", (long long)o->prompt_length, (long long)g.ctx - 1, (long long)g.ctx);
    if (o->prompts && o->prompts->vocab_size > g.V)
        return nb_fail(NB_USAGE, "%s: ids of a vocabulary of %lld, the model has %lld", o->prompts->path, (long long)o->prompts->vocab_size, (long long)g.V);
    TRY(rt_sampling_check(&o->sampling));
    if (o->start == KD_START_MIXED || o->prompts)
        g.separator = fm_tokenizer_find(&teacher->tokenizer, separator, strlen(separator));
    if (g.separator >= g.V)
        g.separator = -1;
    if (o->start != KD_START_HYBRID && !o->prompts && (teacher->config.bos < 0 || teacher->config.bos >= g.V))
        return nb_fail(NB_USAGE, "the model has no BOS to start from: use the hybrid start");
    double start = nb_seconds();
    fm_tokens_writer w = {0};
    char *text = NULL;
    g.slots = o->slots ? o->slots : default_slots(&g);
    status s = generator_open(&g);
    if (s == NB_OK)
        s = settings_text(&text, &g);
    if (s == NB_OK) {
        fm_tokens_settings settings = {g.V, g.ctx, (int64_t)o->seed, text,
                                       teacher->tokenizer.kind ? &teacher->tokenizer : NULL};
        s = fm_tokens_writer_open(&w, path, &settings, restart);
    }
    if (s == NB_OK)
        s = run(&g, &w, progress, report);
    fm_tokens_writer_close(&w);
    generator_free(&g);
    free(text);
    report->seconds = nb_seconds() - start;
    return s;
}
