/* regression.c - autograd from scratch: a small network learns a curve.
 *
 *   data:    y = sin(3 x) + 0.5 x, 256 points in [-1, 1]
 *   model:   x [256,1] -> linear -> gelu -> linear -> gelu -> linear -> [256,1], 1 - 32 - 32 - 1
 *   loss:    mean square error, AdamW with a cosine schedule, 500 steps
 *
 * What to see: parameters live in a registry (ag_params), a step lives on a tape (ag_tape). Operators run when they are
 * called; ag_backward walks the tape back; ag_optimizer_step changes the parameters; ag_reset forgets the step.
 */
#include <math.h>
#include <nibble/autograd.h>
#include <stdio.h>

enum { POINTS = 256, WIDTH = 32, STEPS = 500 };

typedef struct {
    ag_param *w, *b;
} layer;

/* A weight [out, in] with normal start values of deviation 1 / sqrt(in), and a bias of zeros. */
static status layer_new(layer *l, ag_params *params, const char *name, int64_t in, int64_t out, uint64_t stream)
{
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    l->w = ag_param_new(params, full, AG_WEIGHT, 2, (int64_t[]){out, in});
    snprintf(full, sizeof full, "%s.bias", name);
    l->b = ag_param_new(params, full, AG_BIAS, 1, (int64_t[]){out});
    if (!l->w || !l->b)
        return NB_NOMEM;
    for (int64_t i = 0; i < l->w->count; i++)
        l->w->x[i] = (real)(nb_random_normal(1, stream, (uint64_t)i) / sqrt((double)in));
    return NB_OK;
}

static ag_tensor *layer_forward(ag_tape *t, const layer *l, ag_tensor *x)
{
    return ag_linear(t, x, ag_use(t, l->w), ag_use(t, l->b));
}

static ag_tensor *model_forward(ag_tape *t, const layer l[3], ag_tensor *x)
{
    ag_tensor *h = ag_gelu(t, layer_forward(t, &l[0], x), true);
    h = ag_gelu(t, layer_forward(t, &l[1], h), true);
    return layer_forward(t, &l[2], h);
}

int main(void)
{
    static real x[POINTS], y[POINTS];
    for (int i = 0; i < POINTS; i++) {
        double at = 2.0 * i / (POINTS - 1) - 1;
        x[i] = (real)at;
        y[i] = (real)(sin(3 * at) + 0.5 * at);
    }

    ag_params params = {0};
    layer l[3];
    if (layer_new(&l[0], &params, "in", 1, WIDTH, 0) || layer_new(&l[1], &params, "middle", WIDTH, WIDTH, 1) ||
        layer_new(&l[2], &params, "out", WIDTH, 1, 2)) {
        fprintf(stderr, "%s\n", nb_fail_message());
        return 1;
    }
    printf("%lld parameters\n", (long long)ag_params_count(&params));

    ag_tape tape = {0}; /* a zeroed tape is a valid one */
    ag_optimizer adamw = ag_adamw(0.01);
    ag_schedule schedule = {.kind = AG_COSINE, .steps = STEPS, .warmup = 20};
    double loss = 0, rate = adamw.lr;
    for (int64_t step = 1; step <= STEPS; step++) {
        ag_reset(&tape);
        ag_tensor *in = ag_leaf(&tape, x, NULL, 2, (int64_t[]){POINTS, 1}); /* no gradient wanted */
        ag_tensor *want = ag_leaf(&tape, y, NULL, 2, (int64_t[]){POINTS, 1});
        ag_tensor *mse = ag_mse(&tape, model_forward(&tape, l, in), want);
        loss = mse ? (double)mse->x[0] : 0; /* NULL after a failure, which stays in the tape: one check per step */
        adamw.lr = rate * ag_schedule_at(&schedule, step);
        if (ag_backward(&tape, mse) || ag_optimizer_step(&adamw, &params, step, NULL)) {
            fprintf(stderr, "step %lld: %s\n", (long long)step, nb_fail_message());
            return 1;
        }
        if (step == 1 || step % 100 == 0)
            printf("step %3lld  mse %.6f\n", (long long)step, loss);
    }

    /* A run without gradients keeps nothing for a backward pass. */
    real probe[] = {(real)-0.8, 0, (real)0.5};
    ag_reset(&tape);
    tape.no_grad = true;
    ag_tensor *out = model_forward(&tape, l, ag_leaf(&tape, probe, NULL, 2, (int64_t[]){3, 1}));
    for (int i = 0; out && i < 3; i++)
        printf("f(%4.1f) = %7.4f, learned %7.4f\n", (double)probe[i],
               sin(3 * (double)probe[i]) + 0.5 * (double)probe[i], (double)out->x[i]);
    bool reached = out && loss < 1e-3;
    ag_tape_free(&tape);
    ag_params_free(&params);
    if (!reached)
        fprintf(stderr, "the mean square error is %g, wanted below 0.001\n", loss);
    return reached ? 0 : 1;
}
