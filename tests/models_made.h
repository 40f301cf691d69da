/* models_made.h - for tests: small models of odd shapes under many recipes, as training would leave them, and their
 * values side by side with those of a file.
 */
#ifndef NIBBLE_TESTS_MODELS_MADE_H
#define NIBBLE_TESTS_MODELS_MADE_H
#include "models/bind.h"
#include <check.h>
#include <stdlib.h>
#include <string.h>

/* dim, hidden, layers, heads, kv_heads, head_size, vocab; eps 1e-5 and theta 10000 unless they are set. */
#define MADE(d, f, l, h, kv, hd, v, ...)                                                                               \
    {                                                                                                                  \
        .architecture = "llama", .dim = d, .hidden = f, .layers = l, .heads = h, .kv_heads = kv, .head_size = hd,      \
        .vocab = v, .ctx = 32, .bos = 1, .eos = 2, __VA_ARGS__                                                         \
    }
/* the same of GPT-2: dim, hidden, layers, heads, vocab */
#define MADE_GPT2(d, f, l, h, v, ...)                                                                                  \
    {                                                                                                                  \
        .architecture = "gpt2", .dim = d, .hidden = f, .layers = l, .heads = h, .kv_heads = h, .head_size = (d) / (h), \
        .vocab = v, .ctx = 32, .bos = 1, .eos = 2, .qkv_bias = true, .out_bias = true, __VA_ARGS__                     \
    }
static const md_config made_shapes[] = {
    MADE(24, 52, 2, 3, 1, 8, 37, .tied = true),
    MADE(32, 44, 1, 4, 2, 8, 64, .pairing = KN_ROPE_HALF, .tied = true),
    MADE(64, 172, 1, 8, 4, 8, 50, .tied = true),
    MADE(96, 33, 1, 3, 3, 32, 41, .pairing = KN_ROPE_HALF),
    MADE(40, 7, 2, 10, 5, 4, 9, .tied = false),
    MADE(64, 96, 1, 4, 2, 16, 33, .pairing = KN_ROPE_HALF, .qkv_bias = true),
    MADE(32, 64, 1, 4, 4, 8, 35, .tied = true, .qkv_bias = true, .out_bias = true, .norm_eps = 1e-6),
    MADE(256, 256, 1, 4, 1, 64, 39, .pairing = KN_ROPE_HALF), /* rows of whole blocks of 256 */
    MADE_GPT2(32, 52, 2, 4, 38, .tied = true),
    MADE_GPT2(64, 96, 1, 2, 35, .tied = false),
};
enum { N_MADE_SHAPES = sizeof made_shapes / sizeof *made_shapes, N_MADE_LLAMAS = N_MADE_SHAPES - 2 /* first */ };

/* Named recipes, then texts of recipe files: what no name covers. */
static const char *const made_recipes[] = {
    "float",
    "w8a8kv16",
    "w8a8kv8",
    "w4a8kv16",
    "w4a8kv8",
    "w4a8kv4",
    "w4all",
    "w8a16g128",
    "w4a16g128",
    "w4a16g32",
    "w3a16",
    "w2a16",
    "q8_0",
    "q4_0",
    "q4_0_all",
    "iq4_nl",
    "nf4",
    "fp4",
    "nf4dq",
    "*.weight int5 block:6 dynamic8 dynamic\n*.bias sign block:2 dynamic8\n",
    "llmqat-4-8-4",
    "llmqat-8-8-8",
    "q4_k",
    "q6_k",
    "tq2_0",
    "*.weight int4 asym group:32 f16 learned\n*.bias int8 row f32 learned\n",
    "*.weight int3 asym group:8 bf16 dynamic\n*.input int8 narrow token dynamic\n",
    "*.weight int8 asym row f32 learned:lsq\n",
    "*.weight int4 tensor pow2 learned\n",
    "*.weight int4 asym group:32 pow2 learned\n",
    "*.weight ternary group:16 f16 learned\n*.bias int4 row f16 dynamic\n",
    "*.weight sign row f16 dynamic\n",
    "*.weight seq3 group:32 f16 learned\n",
    "*.weight int16 row f32 learned\n",
    "*.weight int5 block:24 f32 learned\n",
    "*.weight int5 group:32 f16 learned\n",
    "*.weight int6 narrow group:4 f16 static\n",
    "*.wq.weight int4 group:32 f16 learned\n*.down.weight int7 row f32 dynamic\n",
    "base q4_0\nembed.weight float f16\n*.up.weight float bf16\n*.bias float bf16\n*.wo.weight float\n",
};
enum { N_MADE_RECIPES = sizeof made_recipes / sizeof *made_recipes };

static inline void made_recipe(fq_recipe *r, const char *recipe)
{
    status s = strchr(recipe, '\n') ? fq_recipe_parse(r, "made", recipe, strlen(recipe)) : fq_recipe_open(r, recipe);
    ck_assert_msg(s == NB_OK, "%s: %s", recipe, nb_fail_message());
}

/* Rows of zeros, of one number, with an outlier; tensors of different sizes. */
static inline void made_weights(md_model *m, uint64_t seed)
{
    for (int64_t k = 0; k < m->params.n; k++) {
        ag_param *p = m->params.p[k];
        const int64_t cols = p->dim[p->n_dim - 1];
        const double size = 0.02 + nb_random_unit(seed, 7, (uint64_t)k);
        for (int64_t i = 0; i < p->count && p->group != AG_SCALE; i++) {
            double x = size * nb_random_normal(seed, 8 + (uint64_t)k, (uint64_t)i);
            x = p->group == AG_NORM ? 1 + x : i / cols == 1 ? 0 : i / cols == 2 ? size : i % 97 == 5 ? 9 * x : x;
            p->x[i] = (real)x;
        }
    }
    m->params.version++;
}

/* A model after its start and a little training: scales moved off where they began. */
static inline void made_model(md_model *m, const md_config *c, const char *recipe, uint64_t seed)
{
    fq_recipe r;
    md_config full = *c;
    full.norm_eps = c->norm_eps != 0 ? c->norm_eps : 1e-5;
    full.rope_theta = md_is_gpt2(c) ? 0 : c->rope_theta != 0 ? c->rope_theta : 10000;
    made_recipe(&r, recipe);
    ck_assert_msg(md_build(m, &full, &r, seed, false) == NB_OK, "%s: %s", recipe, nb_fail_message());
    fq_recipe_free(&r);
    made_weights(m, seed);
    ck_assert_msg(fq_start_weights(&m->sites, seed & 1 ? FQ_START_MSE : FQ_START_ABSMAX, NULL, NULL) == NB_OK, "%s",
                  nb_fail_message());
    for (int64_t k = 0; k < m->params.n; k++)
        for (int64_t i = 0; m->params.p[k]->group == AG_SCALE && i < m->params.p[k]->count; i++)
            m->params.p[k]->x[i] += (real)(0.05 * nb_random_normal(seed, 5, (uint64_t)(k * 1000 + i)));
    m->params.version++;
}

/* The values of tensor t through its site, [rows, cols]; the caller frees them. */
static inline real *made_values(const md_model *m, const md_tensor *t)
{
    md_values v;
    real *x = malloc((size_t)md_tensor_count(t) * sizeof *x);
    ck_assert_msg(x && md_values_of(&v, m, t) == NB_OK, "%s", nb_fail_message());
    for (int64_t r = 0; r < t->rows; r++)
        md_values_row(x + r * t->cols, &v, t, r);
    return x;
}

/* Where row r, column c of a tensor of the file comes from in the model's own values; 0 for padding. */
static inline real made_value(const real *own, const md_tensor *t, int64_t r, int64_t c, kn_rope_pairing file,
                              kn_rope_pairing model)
{
    if (r >= t->rows || c >= t->cols)
        return 0;
    if (t->kind == MD_BIAS)
        c = md_paired_row(c, t->head_size, file, model);
    else
        r = md_paired_row(r, t->head_size, file, model);
    return own[r * t->cols + c];
}

/* x [rows, cols] of a file must be the model's tensor t bit for bit (-0 counts as 0 where codes are), padded with zeros; with the
 * level nearest 0 where the table has none: what such a column is multiplied with is padding as well. */
static inline void made_compare(const md_model *m, const md_tensor *t, const real *x, int64_t rows, int64_t cols,
                                kn_rope_pairing pairing, const char *what)
{
    real *own = made_values(m, t);
    char name[MD_NAME];
    (void)md_tensor_name(name, t, MD_NIBBLE);
    ck_assert_msg(rows >= t->rows && cols >= t->cols, "%s: %s is smaller", what, name);
    const fq_site *site = fq_site_find(&m->sites, name);
    const bool no_zero = site && site->spec.grid.table == KN_TABLE_IQ4_NL;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < (no_zero && r < t->rows ? t->cols : cols); c++) {
            real wanted = made_value(own, t, r, c, pairing, m->config.pairing);
            if (x[r * cols + c] != wanted)
                ck_abort_msg("%s: %s[%lld,%lld] is %.9g, wanted %.9g (recipe %s)", what, name, (long long)r,
                             (long long)c, (double)x[r * cols + c], (double)wanted, m->recipe.name);
        }
    free(own);
}

/* The same of an array x [rows, cols] that holds t in the file's naming, perhaps beside others, perhaps transposed. */
static inline void made_compare_array(const md_model *m, const md_tensor *t, md_naming naming, const real *x, int64_t rows,
                                      int64_t cols, kn_rope_pairing pairing, const char *what)
{
    const bool across = md_is_transposed(t, naming), vector = t->kind != MD_MATRIX;
    const int64_t parts = md_tensor_parts(t, naming), part = parts > 1 ? t->part : 0;
    const int64_t R = vector ? 1 : (across ? cols : rows) / parts, C = vector ? cols / parts : across ? rows : cols;
    real *y = malloc((size_t)(R * C) * sizeof *y);
    ck_assert(y && R * C * parts == rows * cols);
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c++)
            y[r * C + c] = x[across ? c * cols + part * R + r : (part * R + r) * C + c];
    made_compare(m, t, y, R, C, pairing, what);
    free(y);
}

static inline int64_t made_arrays(const md_tensor *t, int64_t n, md_naming naming)
{
    int64_t arrays = 0;
    for (int64_t i = 0; i < n; i += md_tensor_parts(&t[i], naming))
        arrays++;
    return arrays;
}

/* All tensors of another model. */
static inline void made_compare_models(const md_model *m, const md_model *file, const char *what)
{
    md_tensor *t, *u;
    int64_t n, k;
    ck_assert(md_tensors_new(&t, &n, &m->config) == NB_OK && md_tensors_new(&u, &k, &file->config) == NB_OK);
    ck_assert_int_eq(n, k);
    for (int64_t i = 0; i < n; i++) {
        real *x = made_values(file, &u[i]);
        made_compare(m, &t[i], x, u[i].rows, u[i].cols, file->config.pairing, what);
        free(x);
    }
    free(t);
    free(u);
}

/* A checkpoint as the trainer writes it, its latent parameters in `as`. */
static inline const char *made_checkpoint(const char *path, md_model *m, fm_dtype as)
{
    fm_h5 f;
    ck_assert_msg(fm_h5_create(&f, path, "checkpoint") == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(md_save_header(m, &f) == NB_OK && md_save_params(m, &f, as) == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(fm_h5_commit(&f) == NB_OK, "%s", nb_fail_message());
    return path;
}

static inline void opened(md_model *m, const char *path, const md_open_options *o)
{
    ck_assert_msg(md_open(m, path, o) == NB_OK, "%s", nb_fail_message());
}

static inline void refused(const char *path, const md_open_options *o, status wanted, const char *says)
{
    md_model m;
    status s = md_open(&m, path, o);
    ck_assert_msg(s == wanted, "%s: status %d (%s), wanted %d", says, (int)s, s == NB_OK ? "" : nb_fail_message(),
                  (int)wanted);
    ck_assert_msg(strstr(nb_fail_message(), says) != NULL, "\"%s\" lacks \"%s\"", nb_fail_message(), says);
    ck_assert(m.block == NULL && m.params.n == 0 && m.sites.n == 0);
}

#endif
