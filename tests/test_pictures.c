/* test_pictures.c - networks for pictures: integers alone against the tape and against the definition, IDX files, resuming. */
#include "distill/distill.h"
#include "suite.h"
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N = 40, SIDE = 9, POINTS = SIDE * SIDE };
static uint8_t pixel[N * POINTS], label[N];

static fm_pictures made(void)
{
    for (int i = 0; i < N; i++) {
        label[i] = (uint8_t)(i % 3);
        for (int k = 0; k < POINTS; k++) {
            const double u = nb_random_unit(3, (uint64_t)i, (uint64_t)k);
            pixel[i * POINTS + k] = u < 0.4 ? 0 : (uint8_t)(255 * u * (k % 3 == i % 3 ? 1 : 0.3));
        }
    }
    return (fm_pictures){.n = N, .height = SIDE, .width = SIDE, .classes = 3, .pixel = pixel, .label = label};
}

static const char *const networks[] = {
    "input 9 9 1\nconv 5 3 relu\nconv 7 3 pad 1 stride 2 relu6\nmaxpool 2\ndropout 0.2\nflatten\nlinear 6 relu\nlinear 3\n",
    ("input 9 9 1\nconv 6 3 pad 1 norm relu\nconv 6 3 pad 1 stride 2 depthwise norm relu\nconv 8 1 norm relu\n"
     "conv 6 3 groups 2 relu\navgpool all\nlinear 3\n"),
    "input 9 9 1\nconv 4 2 dilation 2 pad 1 relu\navgpool 2\nmaxpool 2 stride 1\nconv 5 1\nlinear 3\n",
};
static const char *const recipes[] = {"w8a8", "w4a8", "w4a4", "w2a4"};
enum { NETWORKS = sizeof networks / sizeof *networks, RECIPES = sizeof recipes / sizeof *recipes };

static void new_net(md_picture_net *m, const char *text, const char *recipe, const fm_pictures *data)
{
    md_stages s;
    md_picture_net from;
    fq_recipe r = {0};
    ck_assert_msg(md_stages_parse(&s, text, strlen(text), "test") == NB_OK, "%s", nb_fail_message());
    ck_assert_int_eq(md_net_build(&from, &s, NULL, 5, false), NB_OK);
    for (int64_t i = 0; i < from.layers; i++)
        for (int64_t c = 0; from.layer[i].b && c < from.layer[i].c.N; c++)
            from.layer[i].b->x[c] = (real)(0.2 * nb_random_normal(8, (uint64_t)i, (uint64_t)c));
    for (int64_t i = 0; i < from.layers; i++)
        for (int64_t c = 0; from.layer[i].mean && c < from.layer[i].c.N; c++)
            from.layer[i].mean->x[c] = (real)(0.1 * nb_random_normal(9, (uint64_t)i, (uint64_t)c));
    ck_assert_int_eq(fq_recipe_open(&r, recipe), NB_OK);
    ck_assert_msg(md_net_with_recipe(m, &from, &r) == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(kd_picture_calibrate(m, data, FQ_START_MSE, 30, 1) == NB_OK, "%s", nb_fail_message());
    fq_recipe_free(&r);
    md_net_free(&from);
    md_stages_free(&s);
}

/* Codes of every result, in order. */
typedef struct {
    int8_t *q[16];
    int64_t cols[16], n;
    const rt_net *integers;
} seen;

static void keep(seen *s, const int8_t *q, int64_t ld, int64_t cols)
{
    ck_assert(s->n < 16);
    int8_t *own = s->q[s->n] = malloc((size_t)(N * cols));
    for (int64_t b = 0; b < N; b++)
        memcpy(own + b * cols, q + b * ld, (size_t)cols);
    s->cols[s->n++] = cols;
}

static void of_tape(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    (void)in;
    if (strstr(site, ".output") || !strcmp(site, "input")) {
        ck_assert_msg(out->codes != NULL, "%s has no codes", site);
        keep(ctx, out->codes->q, out->codes->ld, out->codes->cols);
    }
}

static void of_integers(void *ctx, int64_t step, const int8_t *q, int64_t ld)
{
    seen *s = ctx;
    const rt_net *r = s->integers;
    if (step < 0 || r->step[step].kind == MD_STAGE_CONV)
        keep(s, q, ld, step < 0 ? r->inputs : r->step[step].c.OH * r->step[step].c.OW * r->step[step].c.N);
}

START_TEST(integers_equal_fake_quant_in_every_code)
{
    const fm_pictures data = made();
    md_picture_net m;
    rt_net r;
    static real x[N * POINTS];
    int8_t logits[N * 3];
    seen tape = {0}, integers = {.integers = &r};
    new_net(&m, networks[_i / RECIPES], recipes[_i % RECIPES], &data);
    for (int i = 0; i < N * POINTS; i++)
        x[i] = (real)pixel[i] / 255;
    ag_tape t = {.no_grad = true, .tap = {of_tape, &tape}};
    const md_net_run run = {0};
    const int64_t dim[] = {N, POINTS};
    ck_assert_msg(md_net_forward(&t, &m, ag_leaf(&t, x, NULL, 2, dim), &run) != NULL, "%s", nb_fail_message());
    ck_assert_msg(rt_net_new(&r, &m) == NB_OK, "%s", nb_fail_message());
    ck_assert_int_eq(rt_net_run(&r, logits, pixel, N, of_integers, &integers), NB_OK);
    ck_assert_int_eq(tape.n, integers.n);
    ck_assert_int_eq(tape.n, m.layers + 1);
    for (int64_t i = 0; i < tape.n; i++) {
        bool varies = false;
        ck_assert_int_eq(tape.cols[i], integers.cols[i]);
        ck_assert_msg(!memcmp(tape.q[i], integers.q[i], (size_t)(N * tape.cols[i])), "result %d differs", (int)i);
        for (int64_t k = 1; k < N * tape.cols[i]; k++)
            varies = varies || tape.q[i][k] != tape.q[i][0];
        ck_assert_msg(varies, "result %d has one code only", (int)i);
        free(tape.q[i]);
        free(integers.q[i]);
    }
    rt_net_free(&r);
    ag_tape_free(&t);
    md_net_free(&m);
}
END_TEST

/* H, W, C, N, K, stride, pad, dilation, groups */
static const kn_conv shapes[] = {
    {7, 6, 3, 5, 3, 1, 1, 1, 1, 0, 0},   {7, 6, 4, 17, 3, 2, 0, 1, 1, 0, 0}, {5, 5, 1, 33, 3, 1, 0, 1, 1, 0, 0},
    {7, 8, 2, 3, 2, 1, 2, 2, 1, 0, 0},   {6, 6, 8, 8, 3, 1, 1, 1, 8, 0, 0},  {6, 6, 6, 4, 3, 2, 1, 1, 2, 0, 0},
    {5, 4, 8, 20, 1, 1, 0, 1, 1, 0, 0},  {5, 4, 7, 20, 1, 1, 0, 1, 1, 0, 0}, {1, 1, 130, 10, 1, 1, 0, 1, 1, 0, 0},
    {1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0},   {9, 12, 5, 33, 3, 1, 1, 1, 1, 0, 0}, {4, 36, 20, 18, 3, 1, 0, 1, 1, 0, 0},
    {6, 19, 7, 40, 2, 2, 0, 1, 1, 0, 0}, {6, 6, 21, 21, 3, 2, 1, 1, 21, 0, 0}, {6, 9, 16, 16, 2, 1, 1, 2, 16, 0, 0},
};

/* By the formulas of kernels.h, a number at a time. */
static int64_t sum_at(const kn_conv *c, const kn_codes *w, const int8_t *x, int32_t zero, int64_t o, int64_t n)
{
    const int64_t C = c->C / c->groups, g = n / (c->N / c->groups);
    int64_t sum = 0;
    for (int64_t k = 0; k < c->K * c->K; k++) {
        const int64_t y = o / c->OW * c->stride + k / c->K * c->dilation - c->pad,
                      at = o % c->OW * c->stride + k % c->K * c->dilation - c->pad;
        for (int64_t i = 0; i < C && y >= 0 && y < c->H && at >= 0 && at < c->W; i++)
            sum += (int64_t)(x[(y * c->W + at) * c->C + g * C + i] - zero) *
                   (kn_mul(&w->grid) * w->q[n * w->ld + k * C + i] + kn_add(&w->grid));
    }
    return sum;
}

START_TEST(integer_convolution_is_its_definition)
{
    enum { B = 5, MOST = 4096 };
    kn_conv c = shapes[_i / 3];
    const kn_grid grids[] = {kn_grid_int(8, true, false, KN_ROW, 0, KN_SCALE_F32), kn_grid_int(4, false, false, KN_ROW, 0, KN_SCALE_F32),
                             {.levels = KN_LEVELS_HALF_STEP, .bits = 2, .grain = KN_ROW, .lo = -2, .hi = 1}};
    ck_assert_int_eq(kn_conv_fit(&c), NB_OK);
    const int64_t depth = kn_conv_depth(&c), in = c.H * c.W * c.C, points = c.OH * c.OW, out = points * c.N, ld = (in + 3) / 4 * 4;
    static real weights[MOST], bias[64];
    static int8_t x[MOST * 4], y[MOST * 8];
    static int32_t sums[MOST * 8];
    for (int64_t i = 0; i < c.N * depth; i++)
        weights[i] = (real)nb_random_normal(1, 2, (uint64_t)i);
    for (int64_t i = 0; i < B * ld; i++)
        x[i] = (int8_t)(nb_random(4, 5, (uint64_t)i) & 255);
    for (int64_t i = 0; i < c.N; i++)
        bias[i] = (real)nb_random_normal(1, 3, (uint64_t)i);
    kn_codes w;
    kn_packed packed = {0};
    kn_conv_codes codes;
    kn_requant r;
    const kn_grid result = kn_grid_int(8, false, true, KN_TENSOR, 0, KN_SCALE_F32);
    const real scale_x = (real)0.013, scale_y = (real)0.031;
    const int32_t zero_x = -17, zero_y = -100;
    ck_assert_int_eq(kn_codes_new(&w, &grids[_i % 3], c.N, depth), NB_OK);
    kn_encode(&w, weights);
    if (c.groups == 1)
        ck_assert_int_eq(kn_pack(&packed, &w), NB_OK);
    ck_assert_int_eq(kn_conv_codes_new(&codes, &c, &w, &packed, bias, scale_x, zero_x), NB_OK);
    ck_assert_int_eq(kn_requant_new(&r, c.N), NB_OK);
    kn_requant_set(&r, &w, scale_x, &result, scale_y, zero_y, KN_RELU);
    ck_assert_int_eq(kn_conv_integer(sums, y, out, &c, x, ld, &codes, &r, B), NB_OK);
    for (int64_t i = 0; i < B * out; i++) {
        const int64_t b = i / out, o = i % out / c.N, n = i % c.N;
        const double unit = (double)scale_x * (double)w.scale[n], b32 = rint((double)bias[n] / unit);
        const int64_t wanted = sum_at(&c, &w, x + b * ld, zero_x, o, n) + (int64_t)b32;
        ck_assert_int_eq(sums[i], wanted);
        const double exact = (double)wanted * unit / (double)scale_y, code = fmin(fmax(floor(exact + 0.5) + zero_y, zero_y), 127);
        ck_assert_msg(fabs(y[i] - code) <= (fabs(exact + 0.5 - rint(exact + 0.5)) < 1e-5 ? 1 : 0), "code %d, wanted %g of %g", y[i], code, exact);
        ck_assert_int_eq(y[i], kn_requantize_one(&r, sums[i], n));
    }
    ck_assert_int_eq(kn_conv_integer(NULL, y, out, &c, x, ld, &codes, &r, B), NB_OK);
    for (int64_t i = 0; i < B * out; i++)
        ck_assert_int_eq(y[i], kn_requantize_one(&r, sums[i], i % c.N));
    kn_requant_free(&r);
    kn_conv_codes_free(&codes);
    kn_packed_free(&packed);
    kn_codes_free(&w);
}
END_TEST

static void write_bytes(const char *folder, const char *name, const void *data, size_t bytes)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    ck_assert(f && fwrite(data, 1, bytes, f) == bytes && fclose(f) == 0);
}

START_TEST(idx_files_are_read_and_damage_is_named)
{
    static const uint8_t pictures[] = {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255};
    static const uint8_t labels[] = {0, 0, 8, 1, 0, 0, 0, 2, 7, 4}, three[] = {0, 0, 8, 1, 0, 0, 0, 3, 7, 4, 1};
    char folder[] = "/tmp/nibble-idx-XXXXXX", source[64];
    fm_pictures p;
    ck_assert(mkdtemp(folder) != NULL);
    snprintf(source, sizeof source, "mnist:%s", folder);
    ck_assert_int_eq(fm_pictures_open(&p, source, false), NB_IO);
    write_bytes(folder, "t10k-images-idx3-ubyte", pictures, sizeof pictures);
    write_bytes(folder, "t10k-labels-idx1-ubyte", labels, sizeof labels);
    ck_assert_msg(fm_pictures_open(&p, source, false) == NB_OK, "%s", nb_fail_message());
    ck_assert(p.n == 2 && p.height == 1 && p.width == 3 && p.classes == 8 && p.pixel[5] == 255 && p.label[1] == 4);
    fm_pictures_free(&p);
    write_bytes(folder, "t10k-labels-idx1-ubyte", three, sizeof three);
    ck_assert_int_eq(fm_pictures_open(&p, source, false), NB_FORMAT);
    ck_assert(strstr(nb_fail_message(), "2 pictures, 3 labels"));
    for (size_t n = 0; n < sizeof pictures; n++) {
        write_bytes(folder, "t10k-images-idx3-ubyte", pictures, n);
        ck_assert_int_eq(fm_pictures_open(&p, source, false), NB_FORMAT);
    }
    ck_assert_int_eq(fm_pictures_open(&p, "elsewhere:x", true), NB_USAGE);
    char path[96];
    snprintf(path, sizeof path, "%s/t10k-images-idx3-ubyte", folder);
    unlink(path);
    snprintf(path, sizeof path, "%s/t10k-labels-idx1-ubyte", folder);
    unlink(path);
    rmdir(folder);
}
END_TEST

START_TEST(stages_that_make_no_sense_are_refused)
{
    static const char *const bad[] = {"", "conv 3 3\n", "input 9 9 1\n", "input 9 9 1\nconv 3\nlinear 3\n", "input 9 9 1\nconv 3 10\nlinear 3\n",
                                      "input 9 9 1\nlinear 3 relu\n", "input 9 9 1\nflatten\nconv 3 3\nlinear 3\n",
                                      "input 9 9 1\ndropout 1\nlinear 3\n", "input 9 9 1\nlinear 3 4\n", "input 9 9 4\nconv 6 3 groups 4\nlinear 2\n",
                                      "input 9 9 1\nmaxpool 10\nlinear 2\n", "input 9 9 1\nwhat 3\nlinear 2\n"};
    md_stages s;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ck_assert_msg(md_stages_parse(&s, bad[i], strlen(bad[i]), "test") == NB_FORMAT, "%s", bad[i]);
    for (int i = 0; i < NETWORKS; i++) {
        md_stages again;
        ck_assert_int_eq(md_stages_parse(&s, networks[i], strlen(networks[i]), "test"), NB_OK);
        char *text = md_stages_text(&s);
        ck_assert_msg(md_stages_parse(&again, text, strlen(text), "test") == NB_OK, "%s", text);
        ck_assert(again.n == s.n && !memcmp(again.stage, s.stage, (size_t)s.n * sizeof *s.stage));
        free(text);
        md_stages_free(&again);
        md_stages_free(&s);
    }
}
END_TEST

static bool stop_at(void *ctx, int64_t done, int64_t total, const char *text)
{
    (void)total;
    (void)text;
    return done < *(const int64_t *)ctx;
}

static void discard(const char *folder)
{
    static const char *const names[] = {"last.h5", "metrics.jsonl", "folded.h5"};
    for (int i = 0; i < 3; i++) {
        char *path = nb_path_join(folder, names[i]);
        unlink(path);
        free(path);
    }
    rmdir(folder);
}

START_TEST(a_run_goes_on_where_it_stopped)
{
    const fm_pictures data = made();
    md_picture_net m[3];
    kd_picture_report report;
    char folder[2][32] = {"/tmp/nibble-run-XXXXXX", "/tmp/nibble-run-XXXXXX"};
    int64_t limit = 60;
    const nb_progress stop = {stop_at, &limit};
    for (int i = 0; i < 2; i++)
        ck_assert(mkdtemp(folder[i]) != NULL);
    for (int i = 0; i < 3; i++)
        new_net(&m[i], networks[_i], "w4a4", &data);
    kd_picture_options o = kd_picture_defaults(&m[0], &data);
    o.epochs = 6;
    o.batch = 10;
    o.flip = true;
    ck_assert_msg(kd_picture_train(folder[0], &m[0], &data, &o, false, NULL, &report) == NB_OK, "%s", nb_fail_message());
    ck_assert_int_eq(kd_picture_train(folder[1], &m[1], &data, &o, false, &stop, &report), NB_INTERRUPTED);
    o.lr *= 2;
    ck_assert_int_eq(kd_picture_train(folder[1], &m[2], &data, &o, false, NULL, &report), NB_USAGE);
    o.lr /= 2;
    ck_assert_int_eq(kd_picture_train(folder[1], &m[2], &data, &o, false, NULL, &report), NB_OK);
    ck_assert(report.resumed && report.step == 24);
    for (int64_t i = 0; i < m[0].base.params.n; i++)
        ck_assert_msg(!memcmp(m[0].base.params.p[i]->x, m[2].base.params.p[i]->x, (size_t)m[0].base.params.p[i]->count * sizeof(real)),
                      "%s differs", m[0].base.params.p[i]->name);
    kd_picture_eval trained, folded;
    md_picture_net f;
    char *path = nb_path_join(folder[0], "folded.h5");
    ck_assert_int_eq(md_net_save_folded(&m[0], path), NB_OK);
    ck_assert_msg(md_net_open(&f, path, NULL) == NB_OK, "%s", nb_fail_message());
    ck_assert_int_eq(kd_picture_evaluate(&trained, &m[0], &data, NULL, NULL), NB_OK);
    ck_assert_int_eq(kd_picture_evaluate(&folded, &f, &data, NULL, NULL), NB_OK);
    ck_assert(folded.integer && trained.integer && folded.nll == trained.nll && folded.accuracy == trained.accuracy);
    free(path);
    md_net_free(&f);
    for (int i = 0; i < 3; i++)
        md_net_free(&m[i]);
    discard(folder[0]);
    discard(folder[1]);
}
END_TEST

/* The exported C file, compiled freestanding, makes the runtime's codes. */
START_TEST(exported_c_equals_the_runtime)
{
    typedef int classify(const uint8_t *pixel, int8_t *logits, int8_t *room);
    const fm_pictures data = made();
    char folder[] = "/tmp/nibble-c-XXXXXX", path[64], line[256];
    md_picture_net m;
    rt_net r;
    int8_t wanted[N * 3], got[3];
    int64_t bytes;
    ck_assert(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/net.c", folder);
    new_net(&m, networks[_i % NETWORKS], recipes[_i], &data);
    ck_assert_msg(rt_net_new(&r, &m) == NB_OK, "%s", nb_fail_message());
    ck_assert_int_eq(rt_net_run(&r, wanted, pixel, N, NULL, NULL), NB_OK);
    ck_assert_msg(rt_net_write_c(&r, path, &bytes) == NB_OK, "%s", nb_fail_message());
    snprintf(line, sizeof line, "cc -std=c11 -ffreestanding -pedantic -Wall -Wextra -Werror -fPIC -shared -o %s/net.so %s", folder, path);
    ck_assert_msg(system(line) == 0, "%s", line);
    unlink(path);
    snprintf(path, sizeof path, "%s/net.so", folder);
    void *library = dlopen(path, RTLD_NOW);
    ck_assert_msg(library != NULL, "%s", dlerror());
    classify *run;
    void *symbol = dlsym(library, "nibble_classify");
    memcpy(&run, &symbol, sizeof run);
    int8_t *room = malloc((size_t)(2 * r.largest)); /* no byte more than the file asks for */
    ck_assert(run && room);
    for (int b = 0; b < N; b++) {
        const int class = run(pixel + b * POINTS, got, room);
        ck_assert_msg(!memcmp(got, wanted + 3 * b, 3), "picture %d", b);
        for (int k = 0; k < 3; k++)
            ck_assert(got[k] < got[class] || (got[k] == got[class] && k >= class));
    }
    dlclose(library);
    free(room);
    unlink(path);
    rmdir(folder);
    rt_net_free(&r);
    md_net_free(&m);
}
END_TEST

START_TEST(onnx_refuses_what_it_cannot_hold)
{
    const fm_pictures data = made();
    md_picture_net m, plain;
    md_stages s;
    char path[] = "/tmp/nibble-onnx-XXXXXX";
    const int fd = mkstemp(path);
    ck_assert(fd >= 0 && close(fd) == 0);
    new_net(&m, networks[0], "w2a4", &data);
    ck_assert_msg(md_net_write_onnx(&m, path) == NB_OK, "%s", nb_fail_message());
    ck_assert_int_eq(md_stages_parse(&s, networks[0], strlen(networks[0]), "test"), NB_OK);
    ck_assert_int_eq(md_net_build(&plain, &s, NULL, 5, false), NB_OK);
    ck_assert_int_eq(md_net_write_onnx(&plain, path), NB_UNSUPPORTED);
    ck_assert(strstr(nb_fail_message(), "input") && strstr(nb_fail_message(), "w8a8"));
    ck_assert_int_eq(md_net_write_onnx(&m, "/nowhere/net.onnx"), NB_IO);
    unlink(path);
    md_stages_free(&s);
    md_net_free(&m);
    md_net_free(&plain);
}
END_TEST

START_TEST(equalization_keeps_the_function_and_evens_the_ranges)
{
    const fm_pictures data = made();
    md_picture_net m;
    static real x[N * POINTS];
    real before[N * 3];
    const int64_t dim[] = {N, POINTS};
    const md_net_run run = {0};
    ag_tape t = {.no_grad = true, .quantize_off = true};
    new_net(&m, networks[_i], "w8a8", &data);
    for (int i = 0; i < N * POINTS; i++)
        x[i] = (real)pixel[i] / 255;
    for (int64_t c = 0; c < kn_conv_depth(&m.layer[0].c); c++)
        m.layer[0].w->x[c] *= 20; /* a channel that stands out */
    const ag_tensor *y = md_net_forward(&t, &m, ag_leaf(&t, x, NULL, 2, dim), &run);
    ck_assert(y != NULL);
    memcpy(before, ag_value(y), sizeof before);
    const real first = m.layer[0].w->x[0];
    ck_assert_int_eq(md_net_equalize(&m), NB_OK);
    ck_assert(m.layer[0].w->x[0] != first);
    ag_reset(&t);
    y = md_net_forward(&t, &m, ag_leaf(&t, x, NULL, 2, dim), &run);
    for (int i = 0; i < N * 3; i++) /* floats in another order of magnitude: rounding alone */
        ck_assert_msg(fabs((double)ag_value(y)[i] - (double)before[i]) <= 2e-5 * (1 + fabs((double)before[i])), "%d: %g %g", i,
                      (double)ag_value(y)[i], (double)before[i]);
    ag_tape_free(&t);
    md_net_free(&m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pictures");
    TCase *tc = tcase_create("networks");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, integers_equal_fake_quant_in_every_code, 0, NETWORKS * RECIPES);
    tcase_add_loop_test(tc, integer_convolution_is_its_definition, 0, 3 * (int)(sizeof shapes / sizeof *shapes));
    tcase_add_test(tc, idx_files_are_read_and_damage_is_named);
    tcase_add_test(tc, stages_that_make_no_sense_are_refused);
    tcase_add_loop_test(tc, a_run_goes_on_where_it_stopped, 0, 1);
    tcase_add_loop_test(tc, exported_c_equals_the_runtime, 0, RECIPES);
    tcase_add_test(tc, onnx_refuses_what_it_cannot_hold);
    tcase_add_loop_test(tc, equalization_keeps_the_function_and_evens_the_ranges, 0, NETWORKS);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
