/* resume.c - a training run that is interrupted twice and said again ends in the same bytes as one that never stopped.
 *
 * What to see: a run is a folder; kd_train with the same settings goes on from its last.h5; the progress callback stops it by returning false, and
 * what it returns then is NB_INTERRUPTED, with everything saved. Optimizer, learned scales, the place in the data: all of it is in the
 * checkpoint, and random numbers are counted, so the step is their state.
 */
#include <nibble/distill.h>
#include <stdio.h>
#include <string.h>

static const md_config shape = {.architecture = "llama",
                                .dim = 24,
                                .hidden = 64,
                                .layers = 2,
                                .heads = 3,
                                .kv_heads = 3,
                                .head_size = 8,
                                .vocab = 64,
                                .ctx = 32,
                                .norm_eps = 1e-5,
                                .rope_theta = 10000,
                                .tied = true,
                                .bos = 1,
                                .eos = 2};
enum { STEPS = 24 };

static bool stop_at(void *ctx, int64_t done, int64_t total, const char *text)
{
    const int64_t *limit = ctx;
    (void)text;
    if (done == *limit && done < total)
        printf("  interrupted before step %lld of %lld\n", (long long)done + 1, (long long)total);
    return done < *limit || done == total;
}

/* Untrained weights say next to nothing: made larger, they are worth imitating. */
static void sharpen(md_model *m)
{
    for (int64_t i = 0; i < m->params.n; i++)
        for (int64_t j = 0; m->params.p[i]->group == AG_WEIGHT && j < m->params.p[i]->count; j++)
            m->params.p[i]->x[j] *= 12;
}

/* One call of the program that trains: models are built anew each time, as a new process would. */
static status train(const char *folder, int64_t limit, kd_train_report *report)
{
    md_model teacher = {0}, student = {0};
    fm_tokens data = {0};
    fq_recipe recipe = {0};
    status s = fq_recipe_open(&recipe, "w4a8kv8");
    if (s == NB_OK)
        s = md_build(&teacher, &shape, NULL, 1, false);
    if (s == NB_OK)
        s = md_build(&student, &shape, &recipe, 1, false);
    sharpen(&teacher);
    sharpen(&student);
    if (s == NB_OK && !nb_path_exists("tokens.h5"))
        s = kd_generate(&teacher,
                        &(kd_data_options){.sampling = {.temperature = 1}, .tokens = 4000, .ctx = 32, .seed = 1},
                        "tokens.h5", false, NULL, NULL);
    if (s == NB_OK)
        s = fm_tokens_open(&data, "tokens.h5", NULL, FM_SPLIT_NONE);
    if (s == NB_OK) {
        kd_train_options o = kd_train_defaults(true, false, &shape);
        kd_run_options how = {.save_every = 5, .progress = {stop_at, &limit}};
        o.steps = STEPS;
        o.batch = 4;
        s = kd_train(folder, &student, &teacher, &(kd_train_data){.data = &data}, &o, &how, report);
    }
    fm_tokens_close(&data);
    fq_recipe_free(&recipe);
    md_free(&teacher);
    md_free(&student);
    return s;
}

static bool same_bytes(const char *a, const char *b)
{
    nb_mapped x = {0}, y = {0};
    bool same =
        nb_map(&x, a) == NB_OK && nb_map(&y, b) == NB_OK && x.bytes == y.bytes && !memcmp(x.data, y.data, x.bytes);
    nb_unmap(&x);
    nb_unmap(&y);
    return same;
}

int main(void)
{
    const int64_t limits[] = {9, 17, STEPS};
    kd_train_report report;
    status s = NB_OK;
    remove("whole/last.h5");
    remove("pieces/last.h5");
    printf("in one go\n");
    s = train("whole", STEPS, &report);
    printf("in pieces\n");
    for (int i = 0; i < 3 && (s == NB_OK || s == NB_INTERRUPTED); i++)
        s = train("pieces", limits[i], &report);
    if (s != NB_OK) {
        fprintf(stderr, "resume: %s\n", nb_fail_message());
        return 1;
    }
    bool same = same_bytes("whole/last.h5", "pieces/last.h5") && same_bytes("whole/best.h5", "pieces/best.h5");
    printf("after %lld steps, held-out KL %.5f: last.h5 and best.h5 are %s\n", (long long)report.step, report.best_kl,
           same ? "the same, byte for byte" : "DIFFERENT");
    return !same;
}
