/* custom_operator.c - an operator of your own, outside the library, on its public headers alone.
 *
 * Snake (Ziyin et al. 2020), an activation that can extrapolate what repeats, with a learned frequency a per channel:
 *   y[m,c] = x + sin^2(a[c] x) / a[c]
 *   dx[m,c] = dy (1 + sin(2 a x))
 *   da[c] = sum_m dy (x sin(2 a x) / a - sin^2(a x) / a^2)
 *
 * An operator is a table (name, forward, backward, which values backward reads) and a constructor that checks shapes.
 * The program compares its gradient with central differences, then trains it: a [1] has to find a wave's frequency.
 */
#include <math.h>
#include <nibble/autograd.h>
#include <stdio.h>

/* Sources: 0 is x [.., C], 1 is a [C]. Writes every element of out->x. */
static void snake_forward(ag_tensor *out)
{
    const real *x = ag_value(out->src[0]), *a = ag_value(out->src[1]);
    int64_t C = ag_cols(out);
    for (int64_t i = 0; x && a && i < ag_count(out); i++) {
        double f = (double)a[i % C], s = sin(f * (double)x[i]);
        out->x[i] = (real)((double)x[i] + s * s / f);
    }
}

/* Adds into the gradients that are wanted: ag_grad is NULL where nobody asks. */
static void snake_backward(const ag_tensor *out)
{
    const real *x = ag_value(out->src[0]), *a = ag_value(out->src[1]);
    real *dx = ag_grad(out->src[0]), *da = ag_grad(out->src[1]);
    int64_t C = ag_cols(out);
    for (int64_t c = 0; x && a && c < C; c++) {
        double f = (double)a[c], sum = 0; /* long sums in double */
        for (int64_t i = c; i < ag_count(out); i += C) {
            double s = sin(f * (double)x[i]), s2 = sin(2 * f * (double)x[i]), dy = (double)out->g[i];
            if (dx)
                dx[i] += (real)(dy * (1 + s2));
            sum += dy * ((double)x[i] * s2 / f - s * s / (f * f));
        }
        if (da)
            da[c] += (real)sum;
    }
}

/* backward reads the values of both sources, so the tape keeps them; it does not read its own result. */
static const ag_op op_snake = {"snake", snake_forward, snake_backward, AG_KEEP(0) | AG_KEEP(1)};

static ag_tensor *snake(ag_tape *t, ag_tensor *x, ag_tensor *a)
{
    if (!x || !a) /* NULL flows through: the first failure stays in the tape */
        return NULL;
    if (a->n_dim != 1 || a->dim[0] != ag_cols(x))
        return ag_fail(t, NB_SHAPE, "snake: a has %lld elements, x has %lld channels", (long long)ag_count(a),
                       (long long)ag_cols(x));
    return ag_run(t, ag_node(t, &op_snake, 2, (ag_tensor *[]){x, a}, x->n_dim, x->dim, 0));
}

enum { ROWS = 5, CHANNELS = 3, COUNT = ROWS * CHANNELS };

/* L = sum r * snake(x, a) for fixed random r (a plain sum would hide errors that cancel); gradients where asked for. */
static double projected(real *x, real *a, real *gx, real *ga, const real *r)
{
    ag_tape t = {0};
    ag_tensor *y =
        snake(&t, ag_leaf(&t, x, gx, 2, (int64_t[]){ROWS, CHANNELS}), ag_leaf(&t, a, ga, 1, (int64_t[]){CHANNELS}));
    double L = 0;
    for (int i = 0; y && i < COUNT; i++)
        L += (double)r[i] * (double)y->x[i];
    if (gx && ag_backward(&t, ag_dot(&t, y, r)))
        fprintf(stderr, "%s\n", nb_fail_message());
    ag_tape_free(&t);
    return L;
}

/* The largest difference between a derivative and its central difference, over all inputs. */
static double check_gradient(void)
{
    const real h = (real)1e-2;
    real x[COUNT], a[CHANNELS], r[COUNT], gx[COUNT] = {0}, ga[CHANNELS] = {0};
    double worst = 0;
    for (int i = 0; i < COUNT; i++) {
        x[i] = (real)(2 * nb_random_unit(1, 1, (uint64_t)i) - 1);
        r[i] = (real)(2 * nb_random_unit(1, 2, (uint64_t)i) - 1);
    }
    for (int c = 0; c < CHANNELS; c++)
        a[c] = (real)(0.5 + nb_random_unit(1, 3, (uint64_t)c));
    projected(x, a, gx, ga, r);
    for (int i = 0; i < COUNT + CHANNELS; i++) {
        real *at = i < COUNT ? &x[i] : &a[i - COUNT], was = *at;
        double got = i < COUNT ? (double)gx[i] : (double)ga[i - COUNT];
        *at = was + h;
        double up = projected(x, a, NULL, NULL, r);
        *at = was - h;
        double difference = (up - projected(x, a, NULL, NULL, r)) / (2 * (double)h);
        *at = was;
        worst = fmax(worst, fabs(got - difference));
    }
    return worst;
}

/* Finds a in y = snake(x, 2.5) from points, starting at 1.5. */
static double find_frequency(void)
{
    enum { POINTS = 128, STEPS = 300 };
    real x[POINTS], y[POINTS];
    for (int i = 0; i < POINTS; i++) {
        double at = 3.0 * i / POINTS - 1.5, s = sin(2.5 * at);
        x[i] = (real)at;
        y[i] = (real)(at + s * s / 2.5);
    }
    ag_params params = {0};
    ag_param *a = ag_param_new(&params, "frequency", AG_WEIGHT, 1, (int64_t[]){1});
    ag_tape t = {0};
    ag_optimizer adamw = ag_adamw(0.02);
    if (a)
        a->x[0] = (real)1.5;
    for (int64_t step = 1; a && step <= STEPS; step++) {
        ag_reset(&t);
        ag_tensor *points = ag_leaf(&t, x, NULL, 2, (int64_t[]){POINTS, 1}),
                  *want = ag_leaf(&t, y, NULL, 2, (int64_t[]){POINTS, 1});
        if (ag_backward(&t, ag_mse(&t, snake(&t, points, ag_use(&t, a)), want)) ||
            ag_optimizer_step(&adamw, &params, step, NULL))
            break;
    }
    double found = a ? (double)a->x[0] : 0;
    ag_tape_free(&t);
    ag_params_free(&params);
    return found;
}

int main(void)
{
    double error = check_gradient(), found = find_frequency();
    printf("gradient against differences: largest error %.1e\n", error);
    printf("frequency: 2.5, found %.4f\n", found);
    if (!(error < 2e-3) || !(fabs(found - 2.5) < 1e-3)) {
        fprintf(stderr, "wanted an error below 2e-3 and the frequency to 1e-3; %s\n", nb_fail_message());
        return 1;
    }
    return 0;
}
