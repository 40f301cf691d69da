/* cli_bench_run.c - nibble bench run: prefill and decode of a model file, or of random weights at a shape, beside the rate at
 * which this machine reads memory. A decoded token reads every weight once, and the keys and values before it. */
#include "cli/cli_bench.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 4 }; /* the best one counts; the first packs the weights */

typedef struct {
    double load, first; /* seconds: to open the file, from then to the first token's logits */
    double prefill, decode;
    double prefill_cpu, decode_cpu; /* of the processor, all threads: with one thread it means something on a busy machine too */
    double bytes; /* read per decoded token: weights, and the cache half way */
    double bandwidth;
} figures;

/* Bytes/s of searching as many bytes as a token reads for one that is not there, best of six: from the caches where those hold them. */
static double read_bandwidth(double bytes)
{
    enum { PIECE = 1 << 16 };
    const int64_t pieces = (int64_t)(bytes / PIECE) + 1;
    char *x = nb_alloc_zeroed((size_t)pieces, PIECE);
    double best = INFINITY;
    int64_t found = 0;
    if (!x)
        return 0;
    memset(x, 1, (size_t)pieces * PIECE); /* pages of its own */
    for (int k = 0; k < 6; k++) {
        const double begin = nb_seconds();
#pragma omp parallel for schedule(static) reduction(+ : found)
        for (int64_t i = 0; i < pieces; i++)
            found += memchr(x + i * PIECE, 2, PIECE) != NULL;
        best = fmin(best, nb_seconds() - begin);
    }
    free(x);
    return found == 0 ? (double)pieces * PIECE / best : 0;
}

/* An untied embedding is looked up, not read. */
static double weight_bytes(const md_model *m)
{
    md_size size;
    md_measure(&size, m);
    double bytes = (double)(md_size_bytes(&size));
    const kn_grid *g = &m->embed_site->spec.grid;
    if (!m->config.tied)
        bytes -= (double)(m->config.dim * m->config.vocab) * (g->bits ? g->bits / 8.0 : sizeof(float));
    return bytes;
}

static double cpu_seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

static status one_round(figures *f, rt_session *s, const bench_options *o, const int32_t *ids, real *hidden, real *logits,
                        int64_t C)
{
    double begin = nb_seconds(), cpu = cpu_seconds();
    rt_clear(s, 0);
    TRY(rt_forward(s, o->prefill, NULL, ids, hidden));
    TRY(rt_head(s, logits, hidden + (o->prefill - 1) * C, 1));
    f->prefill = fmin(f->prefill, nb_seconds() - begin);
    f->prefill_cpu = fmin(f->prefill_cpu, cpu_seconds() - cpu);
    begin = nb_seconds();
    cpu = cpu_seconds();
    for (int64_t i = 0; i < o->decode; i++) {
        TRY(rt_forward(s, 1, NULL, ids + i, hidden));
        TRY(rt_head(s, logits, hidden, 1));
    }
    f->decode = fmin(f->decode, nb_seconds() - begin);
    f->decode_cpu = fmin(f->decode_cpu, cpu_seconds() - cpu);
    return NB_OK;
}

static status measure(figures *f, rt_session *s, const md_model *m, const bench_options *o)
{
    const int64_t C = m->config.dim, V = m->config.vocab, n = o->prefill > o->decode ? o->prefill : o->decode;
    real *hidden = nb_alloc_aligned((size_t)(n * C), sizeof(real)), *logits = nb_alloc_aligned((size_t)V, sizeof(real));
    int32_t *ids = nb_alloc((size_t)n, sizeof *ids);
    status st = hidden && logits && ids ? NB_OK : NB_NOMEM;
    for (int64_t i = 0; i < n && ids; i++)
        ids[i] = (int32_t)(nb_random(1, 2, (uint64_t)i) % (uint64_t)V);
    f->prefill = f->decode = f->prefill_cpu = f->decode_cpu = INFINITY;
    const double begin = nb_seconds();
    if (st == NB_OK)
        st = rt_forward(s, 1, NULL, ids, hidden);
    if (st == NB_OK)
        st = rt_head(s, logits, hidden, 1);
    f->first = nb_seconds() - begin;
    for (int k = 0; k < ROUNDS && st == NB_OK; k++)
        st = one_round(f, s, o, ids, hidden, logits, C);
    free(hidden);
    free(logits);
    free(ids);
    return st;
}

/* Random weights, and -o: the file they are folded into. */
static status random_model(md_model *m, const bench_options *o)
{
    md_config c;
    fq_recipe r = {0};
    TRY(bench_shape(&c, o->shape, o->common.ctx ? o->common.ctx : o->prefill + o->decode));
    TRY(fq_recipe_open(&r, o->recipe));
    status s = md_build(m, &c, &r, 1, false);
    fq_recipe_free(&r);
    TRY(s);
    TRY(fq_start_weights(&m->sites, FQ_START_ABSMAX, NULL, NULL));
    return o->common.output ? md_save_folded(m, o->common.output, false) : NB_OK;
}

static status print(const figures *f, const bench_options *o)
{
    const double prefill = (double)o->prefill / f->prefill, decode = (double)o->decode / f->decode;
    const double share = f->bytes * decode / f->bandwidth;
    if (o->common.json) {
        nb_writer j = {0};
        nb_json_open(&j, NULL, '{');
        nb_json_put_number(&j, "prefill_tok_s", prefill);
        nb_json_put_number(&j, "decode_tok_s", decode);
        nb_json_put_number(&j, "prefill_cpu_tok_s", (double)o->prefill / f->prefill_cpu);
        nb_json_put_number(&j, "decode_cpu_tok_s", (double)o->decode / f->decode_cpu);
        nb_json_put_number(&j, "bytes_per_token", f->bytes);
        nb_json_put_number(&j, "bandwidth_gb_s", f->bandwidth * 1e-9);
        nb_json_put_number(&j, "decode_bandwidth_share", share);
        nb_json_put_number(&j, "load_seconds", f->load);
        nb_json_put_number(&j, "first_token_seconds", f->first);
        nb_json_put_int(&j, "peak_bytes", (int64_t)nb_peak_memory());
        nb_json_close(&j, '}');
        return cl_print_json(&j);
    }
    printf("prefill %lld: %.0f tokens/s\ndecode %lld: %.0f tokens/s, %.1f MB read per token, %.0f %% of the %.0f GB/s read here\n"
           "opened in %.3f s, first token after %.3f s more\n",
           (long long)o->prefill, prefill, (long long)o->decode, decode, f->bytes * 1e-6, 100 * share, f->bandwidth * 1e-9, f->load,
           f->first);
    return NB_OK;
}

status bench_run(const bench_options *o, const char *path)
{
    md_model m = {0};
    rt_session *s = NULL;
    rt_options ro = {0};
    figures f = {0};
    const double begin = nb_seconds();
    if (path && o->common.output)
        return nb_fail(NB_USAGE, "-o writes a model with random weights: name no file then");
    if (o->common.output)
        TRY(cl_check_output(&o->common, false));
    status st = path ? cl_open_model(&m, path, &o->common, NULL, false) : random_model(&m, o);
    f.load = nb_seconds() - begin;
    if (st == NB_OK)
        st = cl_precision(&ro.precision, &o->common, &m.config);
    if (st == NB_OK && o->prefill + o->decode > m.config.ctx)
        st = nb_fail(NB_USAGE, "--prefill and --decode: %lld tokens, the model's context is %lld",
                     (long long)(o->prefill + o->decode), (long long)m.config.ctx);
    ro.ctx = o->prefill + o->decode;
    if (st == NB_OK)
        st = rt_open(&s, &m, &ro);
    if (st == NB_OK)
        st = measure(&f, s, &m, o);
    if (st == NB_OK)
        f.bytes = weight_bytes(&m) + (double)rt_cache_bytes(s) * (double)(o->prefill + o->decode / 2) / (double)((ro.ctx + 63) / 64 * 64);
    rt_close(s);
    md_free(&m);
    TRY(st);
    f.bandwidth = read_bandwidth(f.bytes);
    return print(&f, o);
}
