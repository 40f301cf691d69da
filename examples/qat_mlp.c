/* qat_mlp.c - quantization-aware training of a small network: float, rounded after training, trained on the grid.
 *
 *   data:   three spiral arms in the plane, 600 noisy points to train on, 600 others to test
 *   model:  2 -> 24 -> 24 -> 3, SiLU, cross-entropy
 *   recipe: 2-bit weights per row on learned scales (levels -3, -1, 1, 3), 8-bit inputs per token
 *
 * What to see: a recipe is data; a model is written once, and what its sites do is decided when it is built. The student
 * starts from the float weights and trains on with the rounding in its forward pass, straight through in the backward.
 */
#include <math.h>
#include <nibble/layers.h>
#include <stdio.h>
#include <string.h>

enum { POINTS = 600, WIDTH = 24, CLASSES = 3, FLOAT_STEPS = 500, QAT_STEPS = 400 };

static const char recipe_text[] = "*.weight   seq2 row f32 learned\n"
                                  "*.input    int8 narrow token f32 dynamic\n";

typedef struct {
    real x[POINTS * 2];
    int32_t arm[POINTS];
} points;

typedef struct {
    ag_params params;
    fq_sites sites;
    ly_linear layer[3];
    fq_site *input[3];
} model;

static void spirals(points *p, uint64_t seed)
{
    for (int i = 0; i < POINTS; i++) {
        double r = 0.1 + 0.9 * nb_random_unit(seed, 1, (uint64_t)i), arm = i % CLASSES;
        double angle = 7 * r + arm * 2 * 3.141592653589793 / CLASSES + 0.12 * nb_random_normal(seed, 2, (uint64_t)i);
        p->x[2 * i] = (real)(r * cos(angle));
        p->x[2 * i + 1] = (real)(r * sin(angle));
        p->arm[i] = i % CLASSES;
    }
}

static status build(model *m, const fq_recipe *recipe)
{
    static const int64_t width[] = {2, WIDTH, WIDTH, CLASSES};
    ly_build b = {&m->params, &m->sites, recipe, 1, false};
    m->sites.params = &m->params;
    for (int i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "layers.%d.input", i);
        m->input[i] = fq_site_new(&m->sites, recipe, name, NULL, NULL, 0, width[i], 0);
        if (!m->input[i])
            return NB_USAGE;
        snprintf(name, sizeof name, "layers.%d", i);
        TRY(ly_linear_init(&m->layer[i], &b, name, NULL, width[i], width[i + 1], true, 1 / sqrt((double)width[i])));
    }
    return NB_OK;
}

static ag_tensor *forward(ag_tape *t, model *m, points *p)
{
    ag_tensor *h = ag_leaf(t, p->x, NULL, 2, (int64_t[]){POINTS, 2});
    for (int i = 0; i < 3; i++) {
        h = ly_linear_forward(t, &m->layer[i], fq_apply(t, m->input[i], h));
        h = i < 2 ? ag_silu(t, h) : h;
    }
    return h;
}

static status train(model *m, points *p, int64_t steps, double rate)
{
    ag_tape t = {0};
    ag_optimizer adamw = ag_adamw(rate);
    ag_schedule schedule = {.kind = AG_COSINE, .steps = steps, .warmup = steps / 20};
    status s = NB_OK;
    for (int64_t step = 1; s == NB_OK && step <= steps; step++) {
        ag_reset(&t);
        adamw.lr = rate * ag_schedule_at(&schedule, step);
        s = ag_backward(&t, ag_cross_entropy(&t, forward(&t, m, p), p->arm, 0));
        if (s == NB_OK)
            s = ag_optimizer_step(&adamw, &m->params, step, NULL);
    }
    ag_tape_free(&t);
    return s;
}

/* Share of points whose arm is found, in percent. */
static double accuracy(model *m, points *p)
{
    ag_tape t = {.no_grad = true};
    ag_tensor *y = forward(&t, m, p);
    const real *z = y ? ag_value(y) : NULL;
    int right = 0;
    for (int i = 0; z && i < POINTS; i++) {
        int best = 0;
        for (int k = 1; k < CLASSES; k++)
            best = z[i * CLASSES + k] > z[i * CLASSES + best] ? k : best;
        right += best == p->arm[i];
    }
    ag_tape_free(&t);
    return 100.0 * right / POINTS;
}

/* Bytes of weights (codes and scales where there are codes) and biases. */
static double size(const model *m)
{
    double bytes = 0;
    for (int i = 0; i < 3; i++) {
        const fq_site *s = m->layer[i].w_site;
        bytes += (double)m->layer[i].b->count * 4;
        bytes += s->spec.grid.bits ? (double)s->w->count * s->spec.grid.bits / 8 + (double)s->n_scales * 4
                                   : (double)s->w->count * 4;
    }
    return bytes;
}

/* Parameters of the same name; the student has scales beside them. */
static void copy_weights(model *to, const model *from)
{
    for (int64_t i = 0; i < from->params.n; i++) {
        const ag_param *p = from->params.p[i];
        memcpy(ag_param_find(&to->params, p->name)->x, p->x, (size_t)p->count * sizeof(real));
    }
    to->params.version++; /* encoded weights are remembered per version */
}

int main(void)
{
    static points training, test;
    static model teacher, student;
    fq_recipe plain = {0}, recipe = {0};
    double a_float = 0, a_rounded = 0, a_trained = 0;
    spirals(&training, 1);
    spirals(&test, 2);
    status s = fq_recipe_parse(&recipe, "two bits", recipe_text, sizeof recipe_text - 1);
    if (s == NB_OK && (s = build(&teacher, &plain)) == NB_OK &&
        (s = train(&teacher, &training, FLOAT_STEPS, 0.01)) == NB_OK) {
        a_float = accuracy(&teacher, &test);
        s = build(&student, &recipe);
    }
    if (s == NB_OK) {
        copy_weights(&student, &teacher);
        s = fq_start_weights(&student.sites, FQ_START_MSE, NULL, NULL);
        a_rounded = accuracy(&student, &test);
    }
    if (s == NB_OK && (s = train(&student, &training, QAT_STEPS, 0.01)) == NB_OK) {
        a_trained = accuracy(&student, &test);
        printf("%-34s %10s %10s\n", "", "accuracy", "bytes");
        printf("%-34s %9.1f%% %10.0f\n", "float", a_float, size(&teacher));
        printf("%-34s %9.1f%% %10.0f\n", "2 bits, rounded after training", a_rounded, size(&student));
        printf("%-34s %9.1f%% %10.0f\n", "2 bits, trained on the grid", a_trained, size(&student));
    }
    fq_sites_free(&teacher.sites);
    fq_sites_free(&student.sites);
    ag_params_free(&teacher.params);
    ag_params_free(&student.params);
    fq_recipe_free(&recipe);
    bool good = s == NB_OK && a_float > 90 && a_trained > a_rounded + 5 && a_trained > a_float - 5;
    if (!good)
        fprintf(stderr, "wanted above 90 in float, and training to win back all but 5 points; %s\n", nb_fail_message());
    return good ? 0 : 1;
}
