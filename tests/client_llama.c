/* client_llama.c - llama.cpp's own library on a GGUF file; built by test_logits_client.c against the headers of the same version.
 *   client_llama LIBRARIES logits MODEL IDS OUT     IDS: for each sequence int32 n and n ids; OUT: float logits [n, vocab] of each
 *   client_llama LIBRARIES f32 IN OUT               turns a quantized file back into F32 (llama_model_quantize)
 *   client_llama LIBRARIES tokenize MODEL TEXT OUT  ids of a text as int32, special tokens added as the file says
 *   client_llama LIBRARIES score FLOAT MODEL TEXT WINDOWS LENGTH
 *                                                   as llama-perplexity: windows side by side, second halves scored; perplexity of
 *                                                   both, KL(float || model) and share of equal likeliest tokens, as JSON
 *   client_llama LIBRARIES time MODEL PREFILL DECODE SEQUENCES THREADS
 *                                                   tokens/s as JSON, best of four; SEQUENCES > 1: decoded together, best of two
 * LIBRARIES is the folder of libllama and libggml. One thread, no flash attention, F32 cache; time and score: F16 cache (what
 * llama.cpp takes by itself), score on two threads, time with both ways of attention, of which the faster counts.
 */
#include <llama.h>

#include <dirent.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void *handle;

static void fail(const char *what, const char *name)
{
    (void)fprintf(stderr, "client_llama: %s %s\n", what, name);
    exit(1);
}

static void load(const char *folder, const char *prefix)
{
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[4096];
        if (strncmp(e->d_name, prefix, strlen(prefix)) != 0)
            continue;
        (void)snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        handle = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
        if (!handle)
            fail("cannot load", dlerror());
        (void)closedir(d);
        return;
    }
    fail("no library", prefix);
}

static void *symbol(const char *name)
{
    void *p = dlsym(RTLD_DEFAULT, name);
    if (!p)
        fail("no function", name);
    return p;
}

/* A function of the library under its own type. */
#define CALL(name) ((__typeof__(&name))symbol(#name))

static void quiet(enum ggml_log_level level, const char *text, void *ctx)
{
    (void)ctx;
    if (level == GGML_LOG_LEVEL_ERROR)
        (void)fputs(text, stderr);
}

static struct llama_model *open_model(const char *path, bool vocab_only)
{
    struct llama_model_params p = CALL(llama_model_default_params)();
    p.n_gpu_layers = 0;
    p.vocab_only = vocab_only;
    struct llama_model *m = CALL(llama_model_load_from_file)(path, p);
    if (!m)
        fail("cannot open", path);
    return m;
}

static struct llama_context *open_context(struct llama_model *m)
{
    struct llama_context_params p = CALL(llama_context_default_params)();
    p.n_ctx = (uint32_t)CALL(llama_model_n_ctx_train)(m);
    p.n_batch = p.n_ctx;
    p.n_ubatch = p.n_ctx;
    p.n_threads = p.n_threads_batch = 1;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    p.type_k = p.type_v = GGML_TYPE_F32;
    struct llama_context *c = CALL(llama_init_from_model)(m, p);
    if (!c)
        fail("no context", "");
    return c;
}

/* One sequence from its start, decoded; logits are asked for from position `first` on. The caller frees the batch. */
static struct llama_batch decode(struct llama_context *c, const int32_t *ids, int32_t n, int32_t first)
{
    struct llama_batch b = CALL(llama_batch_init)(n, 0, 1);
    b.n_tokens = n;
    for (int32_t i = 0; i < n; i++) {
        b.token[i] = ids[i];
        b.pos[i] = i;
        b.n_seq_id[i] = 1;
        b.seq_id[i][0] = 0;
        b.logits[i] = i >= first;
    }
    CALL(llama_memory_clear)(CALL(llama_get_memory)(c), true);
    if (CALL(llama_decode)(c, b) != 0)
        fail("cannot decode", "");
    return b;
}

static void sequence(struct llama_context *c, const int32_t *ids, int32_t n, int32_t vocab, FILE *out)
{
    struct llama_batch b = decode(c, ids, n, 0);
    for (int32_t i = 0; i < n; i++)
        if (fwrite(CALL(llama_get_logits_ith)(c, i), sizeof(float), (size_t)vocab, out) != (size_t)vocab)
            fail("cannot write", "");
    CALL(llama_batch_free)(b);
}

static void logits(const char *model, const char *ids_path, const char *out_path)
{
    struct llama_model *m = open_model(model, false);
    struct llama_context *c = open_context(m);
    const int32_t vocab = CALL(llama_vocab_n_tokens)(CALL(llama_model_get_vocab)(m));
    FILE *in = fopen(ids_path, "rb"), *out = fopen(out_path, "wb");
    if (!in || !out)
        fail("cannot open", ids_path);
    for (int32_t n; fread(&n, sizeof n, 1, in) == 1;) {
        int32_t *ids = malloc((size_t)n * sizeof *ids);
        if (!ids || fread(ids, sizeof *ids, (size_t)n, in) != (size_t)n)
            fail("cannot read", ids_path);
        sequence(c, ids, n, vocab, out);
        free(ids);
    }
    (void)fclose(in);
    if (fclose(out) != 0)
        fail("cannot write", out_path);
    CALL(llama_free)(c);
    CALL(llama_model_free)(m);
}

/* Logits [length, vocab] of one window; the first half of them is not asked for. */
static void window(float *out, struct llama_context *c, const int32_t *ids, int32_t length, int32_t vocab)
{
    struct llama_batch b = decode(c, ids, length, length / 2);
    for (int32_t i = length / 2; i < length; i++)
        memcpy(out + (size_t)i * (size_t)vocab, CALL(llama_get_logits_ith)(c, i), (size_t)vocab * sizeof *out);
    CALL(llama_batch_free)(b);
}

/* log softmax = x - result; *top: the index of the largest. */
static double log_sum(const float *x, int32_t n, int32_t *top)
{
    double sum = 0;
    *top = 0;
    for (int32_t i = 1; i < n; i++)
        *top = x[i] > x[*top] ? i : *top;
    for (int32_t i = 0; i < n; i++)
        sum += exp((double)(x[i] - x[*top]));
    return (double)x[*top] + log(sum);
}

static int32_t *read_ids(const struct llama_vocab *v, const char *path, int32_t *n)
{
    FILE *in = fopen(path, "rb");
    char *text = malloc(1 << 24);
    int32_t *ids = malloc(sizeof *ids << 24);
    if (!in || !text || !ids)
        fail("cannot read", path);
    const size_t bytes = fread(text, 1, 1 << 24, in);
    (void)fclose(in);
    *n = CALL(llama_tokenize)(v, text, (int32_t)bytes, ids, 1 << 24, true, false);
    if (*n < 0)
        fail("cannot tokenize", path);
    free(text);
    return ids;
}

static void score(const char *reference, const char *model, const char *text, int32_t windows, int32_t length)
{
    struct llama_model *m[2] = {open_model(reference, false), open_model(model, false)};
    struct llama_context *c[2];
    const struct llama_vocab *v = CALL(llama_model_get_vocab)(m[0]);
    const int32_t vocab = CALL(llama_vocab_n_tokens)(v);
    struct llama_context_params p = CALL(llama_context_default_params)();
    p.n_ctx = p.n_batch = p.n_ubatch = (uint32_t)length;
    p.n_threads = p.n_threads_batch = 2;
    float *x[2];
    for (int k = 0; k < 2; k++) {
        c[k] = CALL(llama_init_from_model)(m[k], p);
        x[k] = malloc((size_t)length * (size_t)vocab * sizeof *x[k]);
        if (!c[k] || !x[k])
            fail("no context", "");
    }
    int32_t n, scored = 0, same = 0;
    int32_t *ids = read_ids(v, text, &n);
    double nll[2] = {0, 0}, kl = 0;
    windows = windows < n / length ? windows : n / length;
    for (int32_t w = 0; w < windows; w++) {
        for (int k = 0; k < 2; k++)
            window(x[k], c[k], ids + w * length, length, vocab);
        for (int32_t i = length / 2; i + 1 < length; i++, scored++) {
            const float *t = x[0] + (size_t)i * (size_t)vocab, *s = x[1] + (size_t)i * (size_t)vocab;
            const int32_t next = ids[w * length + i + 1];
            int32_t top[2];
            const double lt = log_sum(t, vocab, &top[0]), ls = log_sum(s, vocab, &top[1]);
            nll[0] += lt - (double)t[next];
            nll[1] += ls - (double)s[next];
            same += top[0] == top[1];
            for (int32_t j = 0; j < vocab; j++) {
                const double a = (double)t[j] - lt;
                kl += exp(a) * (a - (double)s[j] + ls);
            }
        }
    }
    printf("{\"windows\":%d,\"scored\":%d,\"ppl_float\":%.4f,\"ppl\":%.4f,\"kl\":%.5f,\"same_top\":%.4f}\n", windows, scored,
           exp(nll[0] / scored), exp(nll[1] / scored), kl / scored, (double)same / scored);
}

static double seconds(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu_seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static void keep_best(double *rate, double tokens, double taken)
{
    *rate = tokens / taken > *rate ? tokens / taken : *rate;
}

/* n tokens of each of `sequences`, from position `at`; the logits of the last of each. */
static void step(struct llama_context *c, struct llama_batch *b, int32_t n, int32_t sequences, int32_t at, int32_t vocab)
{
    b->n_tokens = n * sequences;
    for (int32_t i = 0; i < b->n_tokens; i++) {
        b->token[i] = (int32_t)((i * 7919LL + at * 104729LL) % vocab);
        b->pos[i] = at + i % n;
        b->n_seq_id[i] = 1;
        b->seq_id[i][0] = i / n;
        b->logits[i] = i % n == n - 1;
    }
    if (CALL(llama_decode)(c, *b) != 0)
        fail("cannot decode", "");
    if (CALL(llama_get_logits_ith)(c, b->n_tokens - 1) == NULL)
        fail("no logits", "");
}

typedef struct {
    int32_t prefill, decode, sequences, threads;
    double prefill_rate, decode_rate; /* tokens/s */
    double prefill_cpu_rate, decode_cpu_rate; /* by time of the processor */
} timing;

static void time_context(timing *t, struct llama_model *m, enum llama_flash_attn_type flash)
{
    struct llama_context_params p = CALL(llama_context_default_params)();
    const int32_t vocab = CALL(llama_vocab_n_tokens)(CALL(llama_model_get_vocab)(m));
    p.n_ctx = (uint32_t)((t->prefill + t->decode + 255) / 256 * 256 * t->sequences);
    p.n_batch = p.n_ubatch = (uint32_t)(t->prefill > t->sequences ? t->prefill : t->sequences);
    p.n_seq_max = (uint32_t)t->sequences;
    p.n_threads = p.n_threads_batch = t->threads;
    p.flash_attn_type = flash;
    struct llama_context *c = CALL(llama_init_from_model)(m, p);
    if (!c)
        fail("no context", "");
    struct llama_batch b = CALL(llama_batch_init)((int32_t)p.n_batch, 0, 1);
    for (int round = 0; round < (t->sequences > 1 ? 2 : 4); round++) {
        CALL(llama_memory_clear)(CALL(llama_get_memory)(c), true);
        double begin = seconds(), cpu = cpu_seconds();
        if (t->sequences == 1)
            step(c, &b, t->prefill, 1, 0, vocab);
        keep_best(&t->prefill_rate, t->prefill, seconds() - begin);
        keep_best(&t->prefill_cpu_rate, t->prefill, cpu_seconds() - cpu);
        begin = seconds();
        cpu = cpu_seconds();
        for (int32_t i = 0; i < t->decode; i++)
            step(c, &b, 1, t->sequences, (t->sequences == 1 ? t->prefill : 0) + i, vocab);
        keep_best(&t->decode_rate, (double)t->decode * t->sequences, seconds() - begin);
        keep_best(&t->decode_cpu_rate, (double)t->decode * t->sequences, cpu_seconds() - cpu);
    }
    CALL(llama_batch_free)(b);
    CALL(llama_free)(c);
}

static void time_model(const char *model, timing *t)
{
    struct llama_model *m = open_model(model, false);
    time_context(t, m, LLAMA_FLASH_ATTN_TYPE_DISABLED);
    time_context(t, m, LLAMA_FLASH_ATTN_TYPE_ENABLED);
    const double one = t->sequences == 1;
    (void)printf("{\"prefill_tok_s\": %.1f, \"decode_tok_s\": %.1f, \"prefill_cpu_tok_s\": %.1f, \"decode_cpu_tok_s\": %.1f}\n",
                 one * t->prefill_rate, t->decode_rate, one * t->prefill_cpu_rate, t->decode_cpu_rate);
    CALL(llama_model_free)(m);
}

static void turn_to_f32(const char *in, const char *out)
{
    llama_model_quantize_params p = CALL(llama_model_quantize_default_params)();
    p.nthread = 1;
    p.ftype = LLAMA_FTYPE_ALL_F32;
    p.allow_requantize = true;
    if (CALL(llama_model_quantize)(in, out, &p) != 0)
        fail("cannot convert", in);
}

static void tokenize(const char *model, const char *text_path, const char *out_path)
{
    struct llama_model *m = open_model(model, true);
    FILE *in = fopen(text_path, "rb"), *out = fopen(out_path, "wb");
    enum { MOST = 1 << 20 };
    char *text = malloc(MOST);
    int32_t *ids = malloc(MOST * sizeof *ids);
    if (!in || !out || !text || !ids)
        fail("cannot open", text_path);
    const int32_t bytes = (int32_t)fread(text, 1, MOST, in);
    const int32_t n = CALL(llama_tokenize)(CALL(llama_model_get_vocab)(m), text, bytes, ids, MOST, true, false);
    if (n < 0 || fwrite(ids, sizeof *ids, (size_t)n, out) != (size_t)n || fclose(out) != 0)
        fail("cannot tokenize", text_path);
    (void)fclose(in);
    free(text);
    free(ids);
    CALL(llama_model_free)(m);
}

int main(int argc, char **argv)
{
    if (argc < 5)
        fail("wants", "LIBRARIES logits|f32|tokenize|time ...");
    load(argv[1], "libggml-base.");
    load(argv[1], "libggml.");
    load(argv[1], "libllama.");
    CALL(llama_log_set)(quiet, NULL);
    CALL(ggml_backend_load_all_from_path)(argv[1]);
    CALL(llama_backend_init)();
    if (!strcmp(argv[2], "logits") && argc == 6)
        logits(argv[3], argv[4], argv[5]);
    else if (!strcmp(argv[2], "f32") && argc == 5)
        turn_to_f32(argv[3], argv[4]);
    else if (!strcmp(argv[2], "tokenize") && argc == 6)
        tokenize(argv[3], argv[4], argv[5]);
    else if (!strcmp(argv[2], "score") && argc == 8)
        score(argv[3], argv[4], argv[5], atoi(argv[6]), atoi(argv[7]));
    else if (!strcmp(argv[2], "time") && argc == 8)
        time_model(argv[3], &(timing){.prefill = atoi(argv[4]), .decode = atoi(argv[5]), .sequences = atoi(argv[6]), .threads = atoi(argv[7])});
    else
        fail("unknown mode", argv[2]);
    return 0;
}
