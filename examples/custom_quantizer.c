/* custom_quantizer.c - a quantizer of your own, outside the library: 4-bit powers of two.
 *
 *   code = sign, exponent e in 0..7         value = +-scale 2^-e, scale = max|w| of the row          (16 levels, no zero)
 *   encode: e = round(log2(scale / |x|)), clamped to 0..7; two codes to a byte
 *   straight through: dw = dy, as if nothing had been rounded; the scale follows max|w|, so nothing is clipped
 *
 * What it takes: an encoder and a decoder, an operator whose forward is exactly decode(encode(w)), so that what is trained
 * is what is stored, and a backward pass. The program fits a linear map in float and rounds it, then trains on through the
 * operator; that has to be better, at the same 4 bits.
 */
#include <math.h>
#include <nibble/autograd.h>
#include <stdio.h>
#include <string.h>

enum { OUT = 16, IN = 32, SAMPLES = 256, STEPS = 800, LARGEST = 7 };

/* ---- the codes ---- */

static uint8_t encode(real x, real scale)
{
    double e = x != 0 && scale > 0 ? rint(log2((double)scale / fabs((double)x))) : LARGEST;
    return (uint8_t)((x < 0 ? 8 : 0) | (int)fmin(fmax(e, 0), LARGEST));
}

static real decode(uint8_t code, real scale)
{
    return (real)ldexp((double)scale, -(code & 7)) * (code & 8 ? -1 : 1);
}

/* ---- the operator: w [N, K] -> decode(encode(w)) ---- */

static void pow2_forward(ag_tensor *out)
{
    const real *w = ag_value(out->src[0]);
    int64_t K = ag_cols(out);
    for (int64_t n = 0; w && n < ag_rows(out); n++) {
        real scale = kn_absmax(w + n * K, K);
        for (int64_t k = 0; k < K; k++)
            out->x[n * K + k] = decode(encode(w[n * K + k], scale), scale);
    }
}

static void pow2_backward(const ag_tensor *out)
{
    real *g = ag_grad(out->src[0]);
    for (int64_t i = 0; g && i < ag_count(out); i++)
        g[i] += out->g[i]; /* the scale follows the largest weight, so nothing is clipped */
}

static const ag_op op_pow2 = {"pow2", pow2_forward, pow2_backward, 0};

static ag_tensor *pow2(ag_tape *t, ag_tensor *w)
{
    return w ? ag_run(t, ag_node(t, &op_pow2, 1, &w, w->n_dim, w->dim, 0)) : NULL;
}

/* ---- a linear map through it ---- */

typedef struct {
    real x[SAMPLES * IN], y[SAMPLES * OUT]; /* inputs, and what a map of normal weights makes of them */
} data;

static double mean_square(const data *d, const real *w)
{
    double sum = 0;
    for (int m = 0; m < SAMPLES; m++)
        for (int n = 0; n < OUT; n++) {
            double y = 0;
            for (int k = 0; k < IN; k++)
                y += (double)d->x[m * IN + k] * (double)w[n * IN + k];
            sum += (y - (double)d->y[m * OUT + n]) * (y - (double)d->y[m * OUT + n]);
        }
    return sum / (SAMPLES * OUT);
}

/* Trains w from where it is, through the quantizer or not. */
static status train(ag_params *params, ag_param *w, data *d, bool quantized, double rate)
{
    ag_tape t = {0};
    ag_optimizer adamw = ag_adamw(rate);
    ag_schedule schedule = {.kind = AG_COSINE, .steps = STEPS};
    status s = NB_OK;
    for (int64_t step = 1; s == NB_OK && step <= STEPS; step++) {
        ag_reset(&t);
        ag_tensor *x = ag_leaf(&t, d->x, NULL, 2, (int64_t[]){SAMPLES, IN}), *leaf = ag_use(&t, w);
        ag_tensor *y = ag_linear(&t, x, quantized ? pow2(&t, leaf) : leaf, NULL);
        ag_tensor *loss = ag_mse(&t, y, ag_leaf(&t, d->y, NULL, 2, (int64_t[]){SAMPLES, OUT}));
        adamw.lr = rate * ag_schedule_at(&schedule, step);
        s = ag_backward(&t, loss);
        if (s == NB_OK)
            s = ag_optimizer_step(&adamw, params, step, NULL);
    }
    ag_tape_free(&t);
    return s;
}

/* The fold: two codes to a byte and a scale per row; back: what a reader makes of them. */
static void fold(uint8_t *packed, real *scale, real *back, const real *w)
{
    for (int i = 0; i < OUT * IN; i += 2) {
        real s = scale[i / IN] = i % IN ? scale[i / IN] : kn_absmax(w + i, IN);
        packed[i / 2] = (uint8_t)(encode(w[i], s) | encode(w[i + 1], s) << 4);
    }
    for (int i = 0; i < OUT * IN; i++)
        back[i] = decode(packed[i / 2] >> (i % 2 * 4) & 15, scale[i / IN]);
}

int main(void)
{
    static data d;
    static real back[OUT * IN], scale[OUT];
    static uint8_t packed[OUT * IN / 2];
    for (int n = 0; n < OUT; n++)
        for (int m = 0; m < SAMPLES; m++)
            for (int k = 0; k < IN; k++) {
                d.x[m * IN + k] = (real)(nb_random_normal(1, 1, (uint64_t)(m * IN + k)) +
                                         2 * nb_random_normal(1, 4, (uint64_t)m)); /* inputs that hang together */
                d.y[m * OUT + n] += d.x[m * IN + k] * (real)nb_random_normal(1, 2, (uint64_t)(n * IN + k));
            }
    ag_params params = {0};
    ag_param *w = ag_param_new(&params, "w", AG_WEIGHT, 2, (int64_t[]){OUT, IN});
    status s = w ? train(&params, w, &d, false, 0.05) : NB_NOMEM;
    double in_float = 0, rounded = 0, trained = 0;
    bool same = false;
    if (s == NB_OK) {
        in_float = mean_square(&d, w->x);
        fold(packed, scale, back, w->x);
        rounded = mean_square(&d, back);
        s = train(&params, w, &d, true, 0.003);
    }
    if (s == NB_OK) {
        fold(packed, scale, back, w->x);
        trained = mean_square(&d, back);
        ag_tape t = {0}; /* fake-quant == folded, bit for bit */
        ag_tensor *y = pow2(&t, ag_use(&t, w));
        same = y && !memcmp(y->x, back, sizeof back);
        ag_tape_free(&t);
    }
    printf("mean square error: float %.6f, rounded after training %.4f, trained through the quantizer %.4f\n", in_float,
           rounded, trained);
    printf("%zu bytes of codes instead of %zu; what was trained is what was stored: %s\n", sizeof packed, sizeof back,
           same ? "yes" : "no");
    ag_params_free(&params);
    bool good = s == NB_OK && same && trained < 0.75 * rounded;
    if (!good)
        fprintf(stderr, "wanted the trained error below 0.75 of the rounded one; %s\n", nb_fail_message());
    return good ? 0 : 1;
}
