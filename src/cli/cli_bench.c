/* cli_bench.c - nibble bench: the training step at a model's shape; bench run is in cli_bench_run.c. Weights are random: time
 * does not depend on them. */
#include "cli/cli_bench.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct {
    const char *name;
    md_config config;
} shapes[] = {
    {"stories260K", {.architecture = "llama", .dim = 64, .hidden = 172, .layers = 5, .heads = 8, .kv_heads = 4, .head_size = 8, .vocab = 512, .tied = true}},
    {"stories15M", {.architecture = "llama", .dim = 288, .hidden = 768, .layers = 6, .heads = 6, .kv_heads = 6, .head_size = 48, .vocab = 32000, .tied = true}},
    {"smollm2", {.architecture = "llama", .dim = 576, .hidden = 1536, .layers = 30, .heads = 9, .kv_heads = 3, .head_size = 64, .vocab = 49152, .tied = true}},
    {"gpt2", {.architecture = "gpt2", .dim = 768, .hidden = 3072, .layers = 12, .heads = 12, .kv_heads = 12, .head_size = 64, .vocab = 50257, .tied = true, .qkv_bias = true, .out_bias = true}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static int rising(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

status bench_shape(md_config *c, const char *name, int64_t ctx)
{
    int which = 0;
    while (which < N_SHAPES && strcmp(shapes[which].name, name) != 0)
        which++;
    if (which == N_SHAPES)
        return nb_fail(NB_USAGE, "--shape %s: stories260K, stories15M, smollm2 or gpt2", name);
    *c = shapes[which].config;
    c->ctx = ctx;
    c->norm_eps = 1e-5;
    c->rope_theta = 10000;
    c->bos = 1;
    c->eos = 2;
    return NB_OK;
}

/* ---- the training step -------------------------------------------------------------------- */

typedef struct {
    md_model teacher, student;
    rt_session *session;
    ag_tape tape;
    real *hidden;
    int32_t *ids, *target, *slot;
    int64_t B, T;
    kn_precision precision;
    bool recompute, int8_gradients;
} workbench;

static status teacher_rows(void *ctx, real *dst, int64_t row, int64_t n)
{
    workbench *w = ctx;
    return rt_head(w->session, dst, w->hidden + row * w->teacher.config.dim, n);
}

static status step(workbench *w, int64_t number)
{
    ag_optimizer o = ag_adamw(1e-5);
    o.bf16_moments = true; /* as qat has it */
    ag_head_loss loss = {.kl = 1, .teacher = teacher_rows, .ctx = w};
    md_input in = {.B = w->B, .T = w->T, .ids = w->ids, .recompute = w->recompute};
    for (int64_t b = 0; b < w->B; b++)
        rt_clear(w->session, b);
    TRY(rt_forward(w->session, w->B * w->T, w->slot, w->ids, w->hidden));
    ag_reset(&w->tape);
    w->tape.precision = w->precision;
    w->tape.int8_gradients = w->int8_gradients;
    w->tape.step_gradients = true;
    md_output out = md_forward(&w->tape, &w->student, &in);
    TRY(ag_backward(&w->tape, ag_head(&w->tape, out.x, out.w, out.b, w->target, &loss, NULL)));
    return ag_optimizer_step(&o, &w->student.params, number, NULL);
}

static status open_workbench(workbench *w, const md_config *c, const char *recipe)
{
    const size_t n = (size_t)(w->B * w->T);
    fq_recipe r = {0};
    rt_options o = {.slots = w->B, .ctx = w->T, .precision = w->precision};
    TRY(md_build(&w->teacher, c, NULL, 1, false));
    TRY(fq_recipe_open(&r, recipe));
    status s = md_build(&w->student, c, &r, 1, false);
    fq_recipe_free(&r);
    TRY(s);
    TRY(fq_start_weights(&w->student.sites, FQ_START_ABSMAX, NULL, NULL));
    if (w->precision == KN_BF16)
        TRY(rt_keep_bf16(&w->teacher));
    TRY(rt_open(&w->session, &w->teacher, &o));
    w->hidden = nb_alloc_aligned(n * (size_t)c->dim, sizeof(real));
    w->ids = nb_alloc(n, sizeof *w->ids);
    w->target = nb_alloc(n, sizeof *w->target);
    w->slot = nb_alloc(n, sizeof *w->slot);
    if (!w->hidden || !w->ids || !w->target || !w->slot)
        return NB_NOMEM;
    for (size_t i = 0; i < n; i++) {
        w->ids[i] = (int32_t)(nb_random(1, 1, i) % (uint64_t)c->vocab);
        w->slot[i] = (int32_t)(i / (size_t)w->T);
        w->target[i] = (i + 1) % (size_t)w->T ? (int32_t)(nb_random(1, 1, i + 1) % (uint64_t)c->vocab) : -1;
    }
    return NB_OK;
}

static void close_workbench(workbench *w)
{
    rt_close(w->session);
    ag_tape_free(&w->tape);
    md_free(&w->teacher);
    md_free(&w->student);
    free(w->hidden);
    free(w->ids);
    free(w->target);
    free(w->slot);
}

static status bench_train(const bench_options *o)
{
    double seconds[64], busy = 0;
    int64_t n = o->steps < 1 ? 1 : o->steps > 64 ? 64 : o->steps;
    md_config c;
    TRY(bench_shape(&c, o->shape, o->common.ctx ? o->common.ctx : 256));
    workbench w = {.B = o->batch, .T = c.ctx, .recompute = o->recompute, .int8_gradients = o->int8_gradients};
    status s = cl_precision(&w.precision, &o->common, &c);
    if (s == NB_OK)
        s = open_workbench(&w, &c, o->recipe);
    for (int64_t i = 0; i <= n && s == NB_OK; i++) { /* the first one touches the memory */
        double begin = nb_seconds();
        clock_t ticks = clock();
        s = step(&w, i + 1);
        if (i > 0) {
            seconds[i - 1] = nb_seconds() - begin;
            busy += (double)(clock() - ticks) / CLOCKS_PER_SEC;
        }
    }
    size_t tape = ag_tape_peak(&w.tape);
    close_workbench(&w);
    TRY(s);
    qsort(seconds, (size_t)n, sizeof *seconds, rising);
    double median = seconds[n / 2], tokens = (double)(o->batch * c.ctx);
    double work = 8.0 * (double)md_config_params(&c) * tokens / median;
    nb_writer j = {0};
    nb_json_open(&j, NULL, '{');
    nb_json_put_string(&j, "shape", o->shape);
    nb_json_put_string(&j, "recipe", o->recipe);
    nb_json_put_int(&j, "batch", o->batch);
    nb_json_put_int(&j, "ctx", c.ctx);
    nb_json_put_string(&j, "precision", w.precision == KN_BF16 ? "bf16" : "fp32");
    nb_json_put_number(&j, "tok_s", tokens / median);
    nb_json_put_number(&j, "seconds", median);
    nb_json_put_number(&j, "seconds_min", seconds[0]);
    nb_json_put_number(&j, "seconds_max", seconds[n - 1]);
    nb_json_put_number(&j, "cpu_seconds", busy / (double)n); /* of a step, all threads: means something on a busy machine too */
    nb_json_put_number(&j, "gflops", work * 1e-9);
    nb_json_put_int(&j, "tape_bytes", (int64_t)tape);
    nb_json_put_int(&j, "peak_bytes", (int64_t)nb_peak_memory());
    nb_json_close(&j, '}');
    if (o->common.json)
        return cl_print_json(&j);
    free(nb_json_text(&j));
    printf("%s %lld x %lld, recipe %s, %s products: %.0f tokens/s (step %.3f s, %.3f to %.3f over %lld), %.0f GFLOP/s at 8 operations per "
           "parameter and token, peak memory %.2f GB\n",
           o->shape, (long long)o->batch, (long long)c.ctx, o->recipe, w.precision == KN_BF16 ? "bf16" : "fp32", tokens / median, median, seconds[0],
           seconds[n - 1], (long long)n, work * 1e-9, (double)nb_peak_memory() * 1e-9);
    return NB_OK;
}

static void say_libraries(void)
{
    char libraries[256];
    const char *own = getenv(CL_BLAS_CORE);
    kn_libraries(libraries, sizeof libraries);
    cl_say("%s%s; instruction set %s\n", libraries, own ? " (core chosen by nibble)" : "", kn_isa_name());
}

int cl_bench(int argc, char **argv)
{
    bench_options o = {.batch = 4, .steps = 5, .prefill = 256, .decode = 128};
    const cl_option option[] = {
        {"--shape", "NAME", CL_TEXT, &o.shape, "stories15M", "stories260K, stories15M, smollm2 or gpt2, with random weights"},
        {"--recipe", "NAME|FILE", CL_TEXT, &o.recipe, "w4a8kv8", "the student's (float: the step without quantization); of random weights to run"},
        {"--batch", "N", CL_COUNT, &o.batch, NULL, "train: rows of a step (4)"},
        {"--steps", "N", CL_COUNT, &o.steps, NULL, "train: steps timed, after one that is not (5)"},
        {"--recompute", NULL, CL_FLAG, &o.recompute, NULL, "train: with recomputed blocks"},
        {"--int8-gradients", NULL, CL_FLAG, &o.int8_gradients, NULL, "train: gradients of activations in 8 bits"},
        {"--prefill", "N", CL_COUNT, &o.prefill, NULL, "run: tokens taken together (256)"},
        {"--decode", "N", CL_COUNT, &o.decode, NULL, "run: tokens one by one (128)"},
        {"--precision", "fp32|bf16|auto", CL_CHOICE, &o.common.precision, "auto",
         "of float products; auto: bf16 where this CPU is fast at it and the model large enough"},
    };
    const cl_command command = {
        .name = "bench",
        .arguments = "train|run [MODEL]",
        .summary = "how fast training and running are here",
        .explanation = "train: a whole step of distillation (teacher forward, student forward and backward,\n"
                       "optimizer) at a model's shape. run: prefill and decode of a model, or of\n"
                       "random weights at a shape (-o keeps these in a folded file), and which share of the memory's\n"
                       "measured read bandwidth decoding reaches. Medians (train) and best of four (run).",
        .examples = "  nibble bench train --shape stories15M --batch 4 --ctx 256 --recipe w4a8kv8\n"
                    "  nibble bench run student.h5 --prefill 256 --decode 128 --json\n"
                    "  nibble bench run --shape smollm2 --recipe q4_0 --prefill 512 --decode 128",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_JSON | CL_CTX | CL_TOKENIZER | CL_OUTPUT | CL_FORCE};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    if (!cl_parse(&command, argc, argv, argument, &code))
        return code;
    bool train = argument[0] && !strcmp(argument[0], "train");
    if (!train && (!argument[0] || strcmp(argument[0], "run") != 0))
        return cl_exit(nb_fail(NB_USAGE, "bench: train or run"));
    if (o.batch < 1 || o.prefill < 1 || o.decode < 1)
        return cl_exit(nb_fail(NB_USAGE, "bench: --batch, --prefill and --decode are at least 1"));
    status s = cl_begin(&o.common);
    if (s == NB_OK && !o.common.quiet)
        say_libraries();
    if (s == NB_OK)
        s = train ? bench_train(&o) : bench_run(&o, argument[1]);
    return cl_exit(s);
}
