/* picture_qat.c - a convolutional network from pictures to a C file that needs nothing but integers: trained, rounded, trained on the grid, folded.
 *
 * Usage: picture_qat [SOURCE [EPOCHS]]     "fashion" (Debian's dataset-fashion-mnist), mnist:FOLDER or fashion:FOLDER; without one, stripes of
 * three directions are drawn here, which takes a second. Fashion-MNIST takes about a minute on two cores.
 *
 * What to see: a text describes the network; w4a4 gives it 4-bit weights and results. The same weights are rounded to that grid, calibrated better, and
 * trained on it; what was trained is a file of integers, which the runtime computes without a float, as net.c does.
 */
#include <math.h>
#include <nibble/ptq.h>
#include <stdio.h>
#include <stdlib.h>

static const char stages[] = "input 28 28 1\n"
                             "conv 16 3 pad 1 relu\n"
                             "maxpool 2\n"
                             "conv 32 3 pad 1 relu\n"
                             "maxpool 2\n"
                             "flatten\n"
                             "dropout 0.2\n"
                             "linear 64 relu\n"
                             "linear 10\n";
enum { SIDE = 28, CLASSES = 3 };

/* n pictures of noisy stripes: lying, standing, diagonal. */
static status stripes(fm_pictures *p, int64_t n, uint64_t seed)
{
    *p = (fm_pictures){.n = n,
                       .height = SIDE,
                       .width = SIDE,
                       .classes = CLASSES,
                       .pixel = malloc((size_t)n * SIDE * SIDE),
                       .label = malloc((size_t)n)};
    if (!p->pixel || !p->label)
        return NB_NOMEM;
    for (int64_t i = 0; i < n; i++) {
        const double phase = 6.3 * nb_random_unit(seed, 1, (uint64_t)i),
                     wave = 0.7 + 0.3 * nb_random_unit(seed, 2, (uint64_t)i);
        p->label[i] = (uint8_t)(i % CLASSES);
        for (int k = 0; k < SIDE * SIDE; k++) {
            const double at[CLASSES] = {k / SIDE, k % SIDE, 0.7 * (k / SIDE + k % SIDE)};
            const double v = 0.5 + 0.3 * sin(wave * at[i % CLASSES] + phase) +
                             0.15 * nb_random_normal(seed, 3 + (uint64_t)i, (uint64_t)k);
            p->pixel[i * SIDE * SIDE + k] = (uint8_t)(255 * fmin(fmax(v, 0), 1));
        }
    }
    return NB_OK;
}

static bool show(void *ctx, int64_t done, int64_t total, const char *text)
{
    int64_t *shown = ctx; /* in hundredths: a line for each */
    if (100 * done / total != *shown) {
        *shown = 100 * done / total;
        fprintf(stderr, "\r%3lld %%  %s   %s", (long long)*shown, text, done == total ? "\n" : "");
    }
    return true;
}

static status train(const char *folder, md_picture_net *m, const fm_pictures *data, int64_t epochs)
{
    int64_t shown = -1;
    kd_picture_report report;
    kd_picture_options o = kd_picture_defaults(m, data);
    o.epochs = epochs;
    o.precision = kn_has_bf16() ? KN_BF16 : KN_FP32; /* of float products; codes are multiplied exactly */
    return kd_picture_train(folder, m, data, &o, true, &(nb_progress){show, &shown}, &report);
}

static status score(const char *name, md_picture_net *m, const fm_pictures *test, double *accuracy)
{
    kd_picture_eval e;
    TRY(kd_picture_evaluate(&e, m, test, NULL, NULL));
    printf("%-36s %6.2f %% right, %.0f pictures/s in %s\n", name, 100 * e.accuracy, (double)e.n / e.seconds,
           e.integer ? "integers alone" : "floats");
    *accuracy = e.accuracy;
    return NB_OK;
}

/* The float network under the recipe, by methods of `nibble ptq`. */
static status without_training(const char *methods, const md_picture_net *net, const fq_recipe *r,
                               const fm_pictures *data, const fm_pictures *test, double *accuracy)
{
    md_picture_net m;
    TRY(pt_picture_quantize(
        &m, net, r, methods,
        &(pt_picture_options){.data = data, .samples = 500, .seed = 1, .calibration = PT_CALIBRATION_RECIPE}));
    const status s = score(methods, &m, test, accuracy);
    md_net_free(&m);
    return s;
}

static status run(const fm_pictures *data, const fm_pictures *test, int64_t epochs, md_picture_net *net,
                  md_picture_net *student)
{
    double accuracy, rounded, trained;
    int64_t bytes;
    md_stages text;
    fq_recipe recipe;
    rt_net integers;
    TRY(md_stages_parse(&text, stages, sizeof stages - 1, "stages"));
    TRY(md_net_build(net, &text, NULL, 1, false));
    TRY(train("float", net, data, epochs));
    TRY(score("float", net, test, &accuracy));

    TRY(fq_recipe_open(&recipe, "w4a4"));
    TRY(without_training("rtn", net, &recipe, data, test, &rounded));
    TRY(without_training("equalize+mse+biascorrect", net, &recipe, data, test, &rounded));
    TRY(md_net_with_recipe(student, net, &recipe));
    TRY(train("qat", student, data, (epochs + 1) / 2));
    TRY(score("trained on the grid", student, test, &trained));

    TRY(md_net_save_folded(student, "folded.h5"));
    TRY(rt_net_new(&integers, student));
    TRY(rt_net_write_c(&integers, "net.c", &bytes));
    printf("folded.h5 and net.c: %lld bytes of constants\n", (long long)bytes);
    rt_net_free(&integers);
    fq_recipe_free(&recipe);
    md_stages_free(&text);
    return trained > accuracy - 0.02
               ? NB_OK
               : nb_fail(NB_USAGE, "training on the grid lost %.2f points", 100 * (accuracy - trained));
}

int main(int argc, char **argv)
{
    fm_pictures data = {0}, test = {0};
    md_picture_net net = {0}, student = {0};
    status s = argc > 1 ? fm_pictures_open(&data, argv[1], true) : stripes(&data, 768, 1);
    if (s == NB_OK)
        s = argc > 1 ? fm_pictures_open(&test, argv[1], false) : stripes(&test, 300, 2);
    if (s == NB_OK)
        s = run(&data, &test, argc > 2 ? atoi(argv[2]) : argc > 1 ? 5 : 3, &net, &student);
    if (s != NB_OK)
        fprintf(stderr, "picture_qat: %s\n", nb_fail_message());
    md_net_free(&net);
    md_net_free(&student);
    fm_pictures_free(&data);
    fm_pictures_free(&test);
    return s != NB_OK;
}
