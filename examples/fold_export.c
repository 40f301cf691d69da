/* fold_export.c - from fake quantization to integers, and into other programs' files, without a number changing on the way.
 *
 * What to see: a site's codes are what the fold writes; the folded file read again has the same codes, and the runtime computes the same logits from it, bit
 * for bit; md_export writes those codes, or says why a format cannot hold them.
 */
#include <nibble/runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const md_config shape = {.architecture = "llama",
                                .dim = 64,
                                .hidden = 172,
                                .layers = 2,
                                .heads = 8,
                                .kv_heads = 4,
                                .head_size = 8,
                                .vocab = 128,
                                .ctx = 64,
                                .norm_eps = 1e-5,
                                .rope_theta = 10000,
                                .tied = true,
                                .bos = 1,
                                .eos = 2};
enum { T = 12 };

static status logits_of(md_model *m, real *logits)
{
    int32_t ids[T];
    real *hidden = nb_alloc((size_t)(T * m->config.dim), sizeof *hidden);
    rt_session *session = NULL;
    for (int i = 0; i < T; i++)
        ids[i] = (int32_t)(nb_random(1, 1, (uint64_t)i) % (uint64_t)m->config.vocab);
    status s = hidden ? rt_open(&session, m, &(rt_options){0}) : NB_NOMEM;
    if (s == NB_OK)
        s = rt_forward(session, T, NULL, ids, hidden);
    if (s == NB_OK)
        s = rt_head(session, logits, hidden, T);
    rt_close(session);
    free(hidden);
    return s;
}

/* Folds a model of this recipe, opens the file, compares; then tries every export. */
static status demonstrate(const char *name, md_model *m, md_model *folded, real *logits)
{
    fq_recipe recipe = {0};
    md_size size;
    const size_t n = (size_t)(T * shape.vocab);
    TRY(fq_recipe_open(&recipe, name));
    status s = md_build(m, &shape, &recipe, 3, false);
    fq_recipe_free(&recipe);
    TRY(s);
    TRY(fq_start_weights(&m->sites, FQ_START_MSE, NULL, NULL));
    TRY(md_save_folded(m, "folded.h5", false));
    TRY(md_open(folded, "folded.h5", &(md_open_options){0}));
    TRY(logits_of(m, logits));
    TRY(logits_of(folded, logits + n));
    md_measure(&size, folded);
    bool same = !memcmp(logits, logits + n, n * sizeof *logits);
    printf("%s: %lld parameters in %lld bytes of codes, %lld of scales, %lld of floats; logits of the folded file %s\n",
           name, (long long)size.params, (long long)size.code_bytes, (long long)size.scale_bytes,
           (long long)size.float_bytes, same ? "are the same, bit for bit" : "DIFFER");
    int64_t targets;
    const md_target *target = md_targets(&targets);
    for (int64_t i = 0; i < targets; i++) {
        char report[1024] = "", path[64];
        snprintf(path, sizeof path, "%s-%s", name, target[i].name);
        s = md_export(folded, target[i].name, path, report, sizeof report);
        report[strcspn(report, "\n")] = 0;
        printf("  %-14s %s\n", target[i].name, s == NB_OK ? report : nb_fail_message());
    }
    return same ? NB_OK : nb_fail(NB_FORMAT, "the folded model computes something else");
}

int main(void)
{
    static const char *const recipes[] = {"w4a8kv8", "q4_0"};
    real *logits = nb_alloc((size_t)(2 * T * shape.vocab), sizeof *logits);
    status s = logits ? NB_OK : NB_NOMEM;
    for (int i = 0; i < 2 && s == NB_OK; i++) {
        md_model m = {0}, folded = {0};
        s = demonstrate(recipes[i], &m, &folded, logits);
        md_free(&m);
        md_free(&folded);
    }
    if (s != NB_OK)
        fprintf(stderr, "fold_export: %s\n", nb_fail_message());
    free(logits);
    return s != NB_OK;
}
