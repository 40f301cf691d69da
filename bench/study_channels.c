/* study_channels.c - which channels matter: weights rounded to nearest, but a share of their input channels kept in floats, chosen by the norm of the
 * weights, by activation, or at random (the observation that AWQ begins with: Lin et al. 2024, table 1).
 *
 *   study_channels MODEL CALIBRATION HELDOUT [RECIPE [TOKENIZER]]
 *
 * Of each weight [N, K] of the layers the k = max(1, share K) columns with the largest sum_n w[n,j]^2, or E[x_j^2], or at random, stay as they were; the model is
 * otherwise in floats. Prints KL to the float model and perplexity on HELDOUT (at most 8192 tokens), as Markdown.
 */
#include "ptq/ptq.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 8192 };
typedef enum { NONE, BY_WEIGHT, BY_ACTIVATION, AT_RANDOM } choice;
static const char *const choice_name[] = {"none", "weight norm", "activation", "random"};

typedef struct {
    md_model teacher, m, q; /* m: floats that are changed; q: codes by the recipe, latents as they were */
    fm_tokens data, heldout;
    kd_importance importance;
    int64_t kept, columns;
} study;

typedef struct {
    double value;
    int64_t column;
} ranked;

static int falling(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    return x->value > y->value ? -1 : x->value < y->value ? 1 : x->column < y->column ? -1 : 1;
}

static void rank(ranked *r, study *s, const fq_site *w, choice how, uint64_t stream)
{
    const real *e = kd_importance_of(&s->importance, w);
    for (int64_t j = 0; j < w->cols; j++) {
        double v = how == BY_ACTIVATION && e ? (double)e[j] : nb_random_unit(1, stream, (uint64_t)j);
        if (how == BY_WEIGHT) {
            v = 0;
            for (int64_t n = 0; n < w->rows; n++)
                v += (double)w->w->x[n * w->cols + j] * (double)w->w->x[n * w->cols + j];
        }
        r[j] = (ranked){v, j};
    }
    qsort(r, (size_t)w->cols, sizeof *r, falling);
}

/* m's weights <- what the codes stand for, chosen columns as they were. */
static status build(study *s, choice how, double share)
{
    s->kept = s->columns = 0;
    for (int64_t i = 0; i < s->q.sites.n; i++) {
        fq_site *w = s->q.sites.s[i];
        ag_param *p = w->is_weight && w->rows > 1 && w->spec.grid.bits ? ag_param_find(&s->m.params, w->name) : NULL;
        if (!p || !w->w || strncmp(w->name, "layers.", 7) != 0)
            continue;
        const kn_codes *codes = fq_site_codes(w, &s->q.params);
        ranked *r = nb_alloc((size_t)w->cols, sizeof *r);
        const int64_t k = how == NONE ? 0 : (int64_t)fmax(1, round(share * (double)w->cols));
        if (!codes || !r) {
            free(r);
            return NB_NOMEM;
        }
        kn_decode(p->x, codes, 0, w->rows);
        rank(r, s, w, how, (uint64_t)i);
        for (int64_t c = 0; c < k; c++)
            for (int64_t n = 0; n < w->rows; n++)
                p->x[n * w->cols + r[c].column] = w->w->x[n * w->cols + r[c].column];
        free(r);
        s->kept += k;
        s->columns += w->cols;
    }
    s->m.params.version++;
    return s->columns ? NB_OK : nb_fail(NB_USAGE, "the recipe quantizes no layer");
}

static status row(study *s, choice how, double share)
{
    kd_eval e;
    TRY(build(s, how, share));
    TRY(kd_evaluate(&e, &s->m, &s->teacher, &s->heldout, &(kd_eval_options){.max_tokens = TOKENS}));
    printf("| %s | %.2f %% | %.4f | %.3f |\n", choice_name[how], 100 * (double)s->kept / (double)s->columns, e.kl, e.ppl);
    fflush(stdout);
    return NB_OK;
}

static status run(study *s, char **argv, const char *recipe, const char *tokenizer)
{
    static const double share[] = {0.001, 0.003, 0.01};
    const kd_calibration o = {.samples = 32, .seed = 1};
    md_open_options open = {.tokenizer = tokenizer, .train = true};
    TRY(md_open(&s->teacher, argv[1], &open));
    TRY(md_open(&s->m, argv[1], &open));
    open.recipe = recipe;
    TRY(md_open(&s->q, argv[1], &open));
    TRY(fm_tokens_open(&s->data, argv[2], &s->m.tokenizer, FM_SPLIT_NONE));
    TRY(fm_tokens_open(&s->heldout, argv[3], &s->m.tokenizer, FM_SPLIT_NONE));
    TRY(kd_find_ranges(&s->q, FQ_START_ABSMAX, &s->data, &o));
    TRY(kd_importance_new(&s->importance, &s->m));
    TRY(kd_watch(&s->m, &s->data, &o, (ag_tap){kd_gather_importance, &s->importance}));
    printf("%s, layers by %s, rounded to nearest\n\n| kept, chosen by | channels kept | KL | perplexity |\n|---|---:|---:|---:|\n", nb_path_name(argv[1]), recipe);
    TRY(row(s, NONE, 0));
    for (size_t i = 0; i < sizeof share / sizeof *share; i++)
        for (choice how = BY_WEIGHT; how <= AT_RANDOM; how++)
            TRY(row(s, how, share[i]));
    return NB_OK;
}

int main(int argc, char **argv)
{
    study s = {0};
    if (argc < 4) {
        fprintf(stderr, "usage: study_channels MODEL CALIBRATION HELDOUT [RECIPE [TOKENIZER]]\n");
        return 2;
    }
    const status st = run(&s, argv, argc > 4 ? argv[4] : "w3a16", argc > 5 ? argv[5] : NULL);
    if (st != NB_OK)
        fprintf(stderr, "study_channels: %s\n", nb_fail_message());
    kd_importance_free(&s.importance);
    fm_tokens_close(&s.data);
    fm_tokens_close(&s.heldout);
    md_free(&s.q);
    md_free(&s.m);
    md_free(&s.teacher);
    return st != NB_OK;
}
