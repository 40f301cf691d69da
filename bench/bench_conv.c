/* bench_conv.c - convolutions of pictures in training, ours beside oneDNN's, in turns: forward with bias and ReLU, gradient of the input, of the weights,
 * at the layers of simplecnn and dscnn. Times of the processor (both are told the same threads), medians of ROUNDS, in us a batch of 64.
 *   ours      kn_conv_forward, kn_conv_backward: floats [B, H, W, C] in and out, rounded to bf16 inside where the precision is bf16
 *   as laid   oneDNN on pictures laid out as ours (nhwc), with the reorders that are left: weights, floats to bf16
 *   any       oneDNN in the layouts that it chooses, with the reorders from and to ours
 *   alone     the same without reorders: what a network kept in its layouts would pay
 * Usage: bench_conv [part of a name]. OMP_NUM_THREADS and NIBBLE_ISA (ours alone) are honoured. Results are compared: off by more than rounding, exit 1.
 */
#include "kernels/kernels.h"
#include <math.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { B = 64, ROUNDS = 15, PEERS = 3, ARRAYS = 4, SPACE = 4 << 20 };
typedef enum { FORWARD, TO_INPUT, TO_WEIGHTS, PASSES } pass;
static const char *const pass_name[] = {"forward", "dx", "dw"};

typedef struct {
    const char *name;
    kn_conv c;
} layer;
static const layer layers[] = {
    {"simplecnn 1-32 3x3 28", {.H = 28, .W = 28, .C = 1, .N = 32, .K = 3}},
    {"simplecnn 32-64 3x3 26", {.H = 26, .W = 26, .C = 32, .N = 64, .K = 3}},
    {"dscnn 1-16 3x3 28 /2", {.H = 28, .W = 28, .C = 1, .N = 16, .K = 3, .stride = 2, .pad = 1}},
    {"dscnn each 16 3x3 14", {.H = 14, .W = 14, .C = 16, .N = 16, .K = 3, .pad = 1, .groups = 16}},
    {"dscnn 16-32 1x1 14", {.H = 14, .W = 14, .C = 16, .N = 32, .K = 1}},
    {"dscnn each 32 3x3 14 /2", {.H = 14, .W = 14, .C = 32, .N = 32, .K = 3, .stride = 2, .pad = 1, .groups = 32}},
    {"dscnn 32-64 1x1 7", {.H = 7, .W = 7, .C = 32, .N = 64, .K = 1}},
    {"dscnn each 64 3x3 7", {.H = 7, .W = 7, .C = 64, .N = 64, .K = 3, .pad = 1, .groups = 64}},
    {"dscnn 64-64 1x1 7", {.H = 7, .W = 7, .C = 64, .N = 64, .K = 1}},
};

static void must(dnnl_status_t s, const char *what)
{
    if (s != dnnl_success) {
        fprintf(stderr, "oneDNN: %s: status %d\n", what, (int)s);
        exit(1);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- a pass by oneDNN ---------------------------------------------------------------------- */

typedef struct {
    int argument;           /* DNNL_ARG_* */
    bool output;
    dnnl_memory_t ours, inner; /* the same where no reorder is needed */
    dnnl_primitive_t reorder;
} operand;

typedef struct {
    dnnl_primitive_t primitive;
    operand o[ARRAYS];
    int n;
} peer;

typedef struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
} machine;

/* Floats in our layout; for_pass: as the pass takes them, type and layout (chosen: its own). */
static dnnl_memory_desc_t described(int n, const int64_t *dim, const int64_t *stride, dnnl_data_type_t type, bool chosen)
{
    dnnl_memory_desc_t d;
    dnnl_dims_t dims, strides;
    memcpy(dims, dim, (size_t)n * sizeof *dim);
    memcpy(strides, stride, (size_t)n * sizeof *stride);
    must(chosen ? dnnl_memory_desc_init_by_tag(&d, n, dims, type, dnnl_format_tag_any)
                : dnnl_memory_desc_init_by_strides(&d, n, dims, type, strides), "layout");
    return d;
}

static dnnl_memory_desc_t of_picture(int64_t H, int64_t W, int64_t C, dnnl_data_type_t type, bool chosen)
{
    return described(4, (int64_t[]){B, C, H, W}, (int64_t[]){H * W * C, 1, W * C, C}, type, chosen);
}

static dnnl_memory_desc_t of_weights(const kn_conv *c, dnnl_data_type_t type, bool chosen)
{
    const int64_t G = c->groups, C = c->C / G, N = c->N / G, K = c->K, D = kn_conv_depth(c);
    if (G > 1)
        return described(5, (int64_t[]){G, N, C, K, K}, (int64_t[]){N * D, D, 1, K * C, C}, type, chosen);
    return described(4, (int64_t[]){N, C, K, K}, (int64_t[]){D, 1, K * C, C}, type, chosen);
}

static void add_operand(const machine *m, peer *p, const_dnnl_primitive_desc_t pd, int argument, bool output, const dnnl_memory_desc_t *ours, void *data)
{
    operand *o = &p->o[p->n++];
    const dnnl_memory_desc_t *inner = dnnl_primitive_desc_query_md(pd, dnnl_query_exec_arg_md, argument);
    *o = (operand){.argument = argument, .output = output};
    must(dnnl_memory_create(&o->ours, ours, m->engine, data), "memory");
    o->inner = o->ours;
    if (dnnl_memory_desc_equal(ours, inner))
        return;
    dnnl_primitive_desc_t rd;
    must(dnnl_memory_create(&o->inner, inner, m->engine, DNNL_MEMORY_ALLOCATE), "memory");
    must(dnnl_reorder_primitive_desc_create(&rd, output ? inner : ours, m->engine, output ? ours : inner, m->engine, NULL), "reorder");
    must(dnnl_primitive_create(&o->reorder, rd), "reorder");
    dnnl_primitive_desc_destroy(rd);
}

static dnnl_primitive_desc_t described_pass(const machine *m, const kn_conv *c, pass what, dnnl_data_type_t type, bool chosen)
{
    const dnnl_data_type_t f = dnnl_f32;
    const dnnl_memory_desc_t in = of_picture(c->H, c->W, c->C, what == TO_INPUT ? f : type, chosen),
                             out = of_picture(c->OH, c->OW, c->N, what == FORWARD ? f : type, chosen),
                             w = of_weights(c, what == TO_WEIGHTS ? f : type, true), b = described(1, (int64_t[]){c->N}, (int64_t[]){1}, f, false);
    const dnnl_dims_t strides = {c->stride, c->stride}, left = {c->pad, c->pad},
                      right = {(c->OH - 1) * c->stride + c->K - c->H - c->pad, (c->OW - 1) * c->stride + c->K - c->W - c->pad};
    dnnl_convolution_desc_t d;
    dnnl_primitive_desc_t pd, hint;
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t relu;
    if (what == FORWARD) {
        must(dnnl_convolution_forward_desc_init(&d, dnnl_forward_training, dnnl_convolution_direct, &in, &w, &b, &out, strides, left, right), "forward");
        must(dnnl_post_ops_create(&relu), "relu");
        must(dnnl_post_ops_append_eltwise(relu, 1, dnnl_eltwise_relu, 0, 0), "relu");
        must(dnnl_primitive_attr_create(&attr), "relu");
        must(dnnl_primitive_attr_set_post_ops(attr, relu), "relu");
        must(dnnl_primitive_desc_create(&pd, &d, attr, m->engine, NULL), "forward");
        dnnl_primitive_attr_destroy(attr);
        dnnl_post_ops_destroy(relu);
        return pd;
    }
    const dnnl_memory_desc_t hint_in = of_picture(c->H, c->W, c->C, type, chosen), hint_w = of_weights(c, type, true);
    must(dnnl_convolution_forward_desc_init(&d, dnnl_forward_training, dnnl_convolution_direct, &hint_in, &hint_w, NULL, &out, strides, left, right), "hint");
    must(dnnl_primitive_desc_create(&hint, &d, NULL, m->engine, NULL), "hint");
    must(what == TO_INPUT ? dnnl_convolution_backward_data_desc_init(&d, dnnl_convolution_direct, &in, &w, &out, strides, left, right)
                          : dnnl_convolution_backward_weights_desc_init(&d, dnnl_convolution_direct, &in, &w, NULL, &out, strides, left, right), "backward");
    must(dnnl_primitive_desc_create(&pd, &d, NULL, m->engine, hint), "backward");
    dnnl_primitive_desc_destroy(hint);
    return pd;
}

/* arrays: x, w, y, b, of which the pass writes y, x or w. */
static peer peer_new(const machine *m, const kn_conv *c, pass what, bool bf16, bool chosen, float *const *array)
{
    peer p = {0};
    const dnnl_memory_desc_t x = of_picture(c->H, c->W, c->C, dnnl_f32, false), y = of_picture(c->OH, c->OW, c->N, dnnl_f32, false),
                             w = of_weights(c, dnnl_f32, false), b = described(1, (int64_t[]){c->N}, (int64_t[]){1}, dnnl_f32, false);
    const dnnl_primitive_desc_t pd = described_pass(m, c, what, bf16 ? dnnl_bf16 : dnnl_f32, chosen);
    must(dnnl_primitive_create(&p.primitive, pd), "primitive");
    add_operand(m, &p, pd, what == TO_INPUT ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, what == TO_INPUT, &x, array[0]);
    add_operand(m, &p, pd, what == TO_WEIGHTS ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, what == TO_WEIGHTS, &w, array[1]);
    add_operand(m, &p, pd, what == FORWARD ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, what == FORWARD, &y, array[2]);
    if (what == FORWARD)
        add_operand(m, &p, pd, DNNL_ARG_BIAS, false, &b, array[3]);
    dnnl_primitive_desc_destroy(pd);
    return p;
}

static void reorders(const machine *m, const peer *p, bool output)
{
    for (int i = 0; i < p->n; i++) {
        const operand *o = &p->o[i];
        const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, output ? o->inner : o->ours}, {DNNL_ARG_TO, output ? o->ours : o->inner}};
        if (o->reorder && o->output == output)
            must(dnnl_primitive_execute(o->reorder, m->stream, 2, arguments), "reorder");
    }
}

static void peer_run(const machine *m, const peer *p, bool with_reorders)
{
    dnnl_exec_arg_t arguments[ARRAYS];
    for (int i = 0; i < p->n; i++)
        arguments[i] = (dnnl_exec_arg_t){p->o[i].argument, p->o[i].inner};
    if (with_reorders)
        reorders(m, p, false);
    must(dnnl_primitive_execute(p->primitive, m->stream, p->n, arguments), "pass");
    if (with_reorders)
        reorders(m, p, true);
    must(dnnl_stream_wait(m->stream), "pass");
}

static void peer_free(peer *p)
{
    for (int i = 0; i < p->n; i++) {
        operand *o = &p->o[i];
        if (o->inner != o->ours)
            dnnl_memory_destroy(o->inner);
        dnnl_memory_destroy(o->ours);
        dnnl_primitive_destroy(o->reorder);
    }
    dnnl_primitive_destroy(p->primitive);
}

/* ---- both ----------------------------------------------------------------------------------- */

static void ours(const kn_conv *c, pass what, bool bf16, float *const *array)
{
    const kn_precision p = bf16 ? KN_BF16 : KN_FP32;
    const kn_conv_gradients to = {.dx = what == TO_INPUT ? array[0] : NULL, .dw = what == TO_WEIGHTS ? array[1] : NULL};
    if ((what == FORWARD ? kn_conv_forward(p, array[2], c, array[0], array[1], array[3], KN_RELU, B)
                         : kn_conv_backward(p, &to, c, array[2], NULL, KN_LINEAR, array[0], array[1], B)) != NB_OK)
        exit(1);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* |a - b| / |b| over n numbers */
static double apart(const float *a, const float *b, int64_t n)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += pow((double)a[i] - (double)b[i], 2);
        size += pow((double)b[i], 2);
    }
    return sqrt(difference / size);
}

static bool compare(const machine *m, const layer *l, pass what, bool bf16, float *const *array, float *keep)
{
    kn_conv c = l->c;
    double t[PEERS + 1][ROUNDS], error = 0;
    if (kn_conv_fit(&c) != NB_OK)
        exit(1);
    const int64_t count[ARRAYS] = {B * c.H * c.W * c.C, c.N * kn_conv_depth(&c), B * c.OH * c.OW * c.N, c.N};
    for (int a = 0; a < ARRAYS; a++)
        for (int64_t i = 0; i < count[a]; i++)
            array[a][i] = (float)(nb_random_unit(1, (uint64_t)a, (uint64_t)i) - 0.5);
    const int written = what == FORWARD ? 2 : what == TO_INPUT ? 0 : 1;
    peer p[2] = {peer_new(m, &c, what, bf16, false, array), peer_new(m, &c, what, bf16, true, array)};
    for (int round = -1; round < ROUNDS; round++) /* the first is not counted */
        for (int i = 0; i <= PEERS; i++) {
            const double start = now();
            if (i == 0)
                ours(&c, what, bf16, array);
            else
                peer_run(m, &p[i > 1], i < PEERS);
            if (round >= 0)
                t[i][round] = now() - start;
            else if (i == 0)
                memcpy(keep, array[written], (size_t)count[written] * sizeof *keep);
            else if (i < PEERS)
                error = fmax(error, apart(array[written], keep, count[written]));
        }
    printf("%-24s %-8s %s ", l->name, pass_name[what], bf16 ? "bf16" : "fp32");
    for (int i = 0; i <= PEERS; i++) {
        qsort(t[i], ROUNDS, sizeof(double), ascending);
        printf(" %9.0f", t[i][ROUNDS / 2] * 1e6);
    }
    printf("   ours / oneDNN %.2f   apart %.0e\n", t[0][ROUNDS / 2] / fmin(t[1][ROUNDS / 2], t[2][ROUNDS / 2]), error);
    fflush(stdout);
    for (int i = 0; i < 2; i++)
        peer_free(&p[i]);
    return error < (bf16 ? 1e-2 : 1e-5);
}

int main(int argc, char **argv)
{
    machine m;
    float *array[ARRAYS + 1];
    bool close = true;
    const dnnl_version_t *v = dnnl_version();
    must(dnnl_engine_create(&m.engine, dnnl_cpu, 0), "engine");
    must(dnnl_stream_create(&m.stream, m.engine, dnnl_stream_default_flags), "stream");
    for (int i = 0; i <= ARRAYS; i++)
        if (!(array[i] = nb_alloc_aligned(SPACE, sizeof(float))))
            return 1;
    printf("instruction set %s; oneDNN %d.%d.%d; %d threads; us of the processor, batch %d\n%-24s %-8s      %9s %9s %9s %9s\n", kn_isa_name(), v->major,
           v->minor, v->patch, omp_get_max_threads(), B, "", "", "ours", "as laid", "any", "alone");
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++)
        for (int bf16 = 0; bf16 <= kn_has_bf16(); bf16++)
            for (int what = FORWARD; what < PASSES; what++)
                if (argc < 2 || strstr(layers[i].name, argv[1]))
                    close = compare(&m, &layers[i], (pass)what, bf16, array, array[ARRAYS]) && close;
    for (int i = 0; i <= ARRAYS; i++)
        free(array[i]);
    dnnl_stream_destroy(m.stream);
    dnnl_engine_destroy(m.engine);
    return close ? 0 : 1;
}
