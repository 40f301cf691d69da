/* test_fakequant.c - sites and their operators: fake-quant is the fold, what passes a gradient, memory. */
#include "random_spec.h"
#include "suite.h"
#include "world.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#define W4 "int4 row f32 learned"

/* ---- sites -------------------------------------------------------------------------------- */

/* The value of weight (row, col) by the definition, from the site's ranges alone. */
static real by_definition(const fq_site *s, const real *scale, const int32_t *zero, int64_t row, int64_t col)
{
    const kn_grid *g = &s->spec.grid;
    kn_codes shape = {
        .grid = *g, .rows = s->rows, .cols = s->cols, .spans = g->group ? (s->cols + g->group - 1) / g->group : 1};
    int64_t i = kn_scale_index(&shape, row, col);
    int32_t z = zero ? zero[i] : 0, q = kn_encode_one(g, s->w->x[row * s->cols + col], kn_inverse(scale[i]), z);
    return (kn_has_table(g) ? kn_table_levels(g)[q] : (real)(kn_mul(g) * q + kn_add(g) - z)) * scale[i];
}

/* A spec of weights for this seed: a named recipe's, or a random one. */
static fq_spec weight_spec(uint64_t seed)
{
    if (seed % 2) {
        const char *const *name, *const *why;
        fq_recipe r;
        int64_t n = fq_recipe_named(&name, &why);
        ck_assert(fq_recipe_open(&r, name[seed / 2 % (uint64_t)n]) == NB_OK);
        fq_spec s = fq_recipe_find(&r, seed % 3 ? "layers.0.mlp.up.weight" : "embed.weight", NULL);
        fq_recipe_free(&r);
        return s;
    }
    fq_spec s = random_spec(seed);
    if (s.grid.grain == KN_HEAD)
        s.grid.grain = KN_GROUP;
    return s;
}

START_TEST(fold_equals_fake_quant)
{
    enum { SEEDS = 1200, SHARES = 4 };
    real *y = nb_alloc(16384, sizeof *y), *scale = nb_alloc(16384, sizeof *scale);
    int32_t *zero = nb_alloc(16384, sizeof *zero);
    for (uint64_t seed = SEEDS / SHARES * (uint64_t)_i; seed < SEEDS / SHARES * (uint64_t)(_i + 1); seed++) {
        world m;
        char text[192];
        fq_spec spec = weight_spec(seed);
        if (!spec.grid.bits)
            continue;
        fq_spec_print(text, sizeof text, &spec);
        world_new(&m, text);
        const int64_t rows = 1 + (int64_t)dice(seed, 20, 12),
                      cols = 1 + (int64_t)dice(seed, 21, dice(seed, 22, 4) ? 80 : 400);
        fq_site *s = weight_site(&m, "layers.0.mlp.up", rows, cols, seed);
        if (dice(seed, 23, 5) == 0) /* constants, zeros, outliers */
            for (int64_t i = 0; i < s->w->count / 2; i++)
                s->w->x[i] = dice(seed, 24, 3) ? 0 : dice(seed, 24, 2) ? (real)0.25 : (real)(i == 3 ? 1e4 : 1e-3);
        ck_assert(fq_start_weights(&m.sites, dice(seed, 25, 4) ? FQ_START_ABSMAX : FQ_START_MSE, NULL, NULL) == NB_OK);
        for (int64_t i = 0; s->u && i < s->n_scales; i++) {
            s->u->x[i] = (real)(nb_random_unit(seed, 2, (uint64_t)i) - 0.5);
            if (s->v)
                s->v->x[i] = (real)(0.2 * nb_random_unit(seed, 3, (uint64_t)i) - 0.1);
        }
        m.params.version++;
        ag_tensor *t = fq_weight(&m.tape, s, s->w);
        ck_assert_msg(t != NULL, "%s", nb_fail_message());
        const real *v = ag_value(t);
        const kn_codes *c = fq_site_codes(s, &m.params);
        kn_decode(y, c, 0, rows);
        if (s->start) {
            fq_site_ranges(s, scale, zero);
        } else {
            memcpy(scale, c->scale, (size_t)s->n_scales * sizeof *scale);
            if (c->zero)
                memcpy(zero, c->zero, (size_t)s->n_scales * sizeof *zero);
        }
        /* double quantization rounds scales behind the codes, as bitsandbytes does: these are of the scales as found */
        bool own_rule = (spec.grid.rule != KN_RULE_NIBBLE || spec.grid.scale == KN_SCALE_DYNAMIC8) && spec.range == FQ_DYNAMIC;
        for (int64_t i = 0; i < rows * cols; i++) {
            int64_t row = i / cols, col = i % cols;
            ck_assert_msg(v[i] == y[i] && y[i] == kn_decode_one(c, row, col), "%s: [%d,%d]", text, (int)row, (int)col);
            ck_assert_msg(own_rule || v[i] == by_definition(s, scale, c->zero ? zero : NULL, row, col),
                          "%s: [%d,%d] is %.9g, defined as %.9g", text, (int)row, (int)col, (double)v[i],
                          (double)by_definition(s, scale, c->zero ? zero : NULL, row, col));
        }
        world_free(&m);
    }
    free(y);
    free(scale);
    free(zero);
}
END_TEST

/* Codes that a search left keep standing when their floats come back: those that the codes are nearest to as they were, others inside the cell. */
START_TEST(loosened_floats_keep_their_codes)
{
    int64_t moved = 0, own = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        world m;
        char text[192];
        const fq_spec spec = weight_spec(seed);
        if (!spec.grid.bits)
            continue;
        fq_spec_print(text, sizeof text, &spec);
        world_new(&m, text);
        const int64_t rows = 5, cols = 70;
        fq_site *s = weight_site(&m, "layers.0.mlp.up", rows, cols, seed);
        ck_assert(fq_start_weights(&m.sites, FQ_START_MSE, NULL, NULL) == NB_OK);
        if (!s->started) { /* dynamic: ranges come from the floats, there are no codes to keep */
            world_free(&m);
            continue;
        }
        ck_assert(fq_weights_started(&m.sites));
        real w[5 * 70], v[5 * 70];
        memcpy(w, s->w->x, sizeof w);
        for (int64_t i = 0; i < rows * cols; i++) /* as a pass that rounds some to the other side */
            s->w->x[i] *= dice(seed + 31, (uint64_t)i, 4) ? 1 : (real)1.2;
        m.params.version++;
        kn_decode(v, fq_site_codes(s, &m.params), 0, rows);
        memcpy(s->w->x, v, sizeof v);
        m.params.version++;
        ck_assert(fq_site_loosen(s, &m.params, w) == NB_OK);
        m.params.version++;
        const kn_codes *c = fq_site_codes(s, &m.params);
        for (int64_t i = 0; i < rows * cols; i++) {
            ck_assert_msg(kn_decode_one(c, i / cols, i % cols) == v[i], "%s: [%d] of %.9g now means %.9g, was %.9g", text, (int)i, (double)w[i],
                          (double)kn_decode_one(c, i / cols, i % cols), (double)v[i]);
            own += s->w->x[i] == w[i];
            moved += s->w->x[i] != w[i] && s->w->x[i] != v[i];
        }
        world_free(&m);
    }
    ck_assert_msg(own > 10000 && moved > 100, "%d stayed, %d moved", (int)own, (int)moved);
}
END_TEST

static int first_operand(const kn_packed *p)
{
    return p->half ? (p->w[0] & 15) - 8 : p->w[0] - 128;
}

START_TEST(weights_are_encoded_once_a_version)
{
    world m;
    world_new(&m, W4);
    fq_site *s = weight_site(&m, "a", 3, 40, 1);
    const kn_codes *c = fq_site_codes(s, &m.params);
    const int8_t *memory = c->q;
    const int8_t first = c->q[0];
    ck_assert(s->started);
    s->w->x[0] = -s->w->x[0];
    ck_assert(fq_site_codes(s, &m.params)->q[0] == first);
    m.params.version++;
    c = fq_site_codes(s, &m.params);
    ck_assert(c->q == memory && c->q[0] == -first && first != 0);
    const kn_packed *p = fq_site_packed(s, &m.params);
    ck_assert(p && first_operand(p) == -first);
    const uint8_t *packed = p->w;
    s->w->x[0] = -s->w->x[0];
    m.params.version++;
    p = fq_site_packed(s, &m.params);
    ck_assert(p->w == packed && first_operand(p) == first);
    world_free(&m);
}
END_TEST

START_TEST(a_folded_site_gives_its_codes_without_a_latent)
{
    world m, f;
    world_new(&m, W4);
    world_new(&f, W4);
    fq_site *s = weight_site(&m, "a", 3, 17, 1),
            *folded = fq_site_new(&f.sites, &f.recipe, "a.weight", NULL, NULL, 3, 17, 0);
    ck_assert(folded && !folded->u && !fq_site_codes(folded, &f.params));
    ck_assert(strstr(nb_fail_message(), "no codes were folded in") != NULL);
    const kn_codes *c = fq_site_codes(s, &m.params);
    ck_assert(kn_codes_new(&folded->codes, &c->grid, 3, 17) == NB_OK);
    memcpy(folded->codes.q, c->q, (size_t)(3 * c->ld));
    memcpy(folded->codes.scale, c->scale, 3 * sizeof(real));
    folded->version = UINT64_MAX;
    const real *a = ag_value(fq_weight(&m.tape, s, s->w)), *b = ag_value(fq_weight(&f.tape, folded, NULL));
    ck_assert(!memcmp(a, b, 51 * sizeof(real)));
    ck_assert(fq_site_packed(folded, &f.params) != NULL);
    world_free(&m);
    world_free(&f);
}
END_TEST

START_TEST(only_weights_of_integer_products_are_packed)
{
    static const char text[] =
        "*.weight int4 row f32 learned\nb.input int8 narrow token\nc.weight int4 asym row f32 learned\nc.input int8 "
        "token\n"
        "d.weight int4 group:6 f32 learned\nd.input int8 token\ne.weight sign row learned\ne.input int4 asym token\n";
    static const struct {
        const char *name;
        bool packed, packable;
    } cases[] = {{"a", false, true}, {"b", true, true}, {"c", false, false}, {"d", false, false}, {"e", true, true}};
    for (int i = 0; i < 5; i++) {
        world m = {0};
        char name[32];
        ck_assert_msg(fq_recipe_parse(&m.recipe, "test", text, sizeof text - 1) == NB_OK, "%s", nb_fail_message());
        m.sites.params = &m.params;
        snprintf(name, sizeof name, "%s.input", cases[i].name);
        ck_assert(fq_site_new(&m.sites, &m.recipe, name, NULL, NULL, 0, 24, 0) != NULL);
        fq_site *s = weight_site(&m, cases[i].name, 5, 24, 1);
        ag_tensor *w = fq_weight(&m.tape, s, s->w);
        ck_assert_msg(w && (w->packed != NULL) == cases[i].packed, "%s", cases[i].name);
        ck_assert_msg((fq_site_packed(s, &m.params) != NULL) == cases[i].packable, "%s", cases[i].name);
        world_free(&m);
    }
}
END_TEST

static const struct {
    const char *spec, *name, *message;
    int64_t rows, cols, head;
} bad_sites[] = {
    {"int8 head", "attn.q", "are not heads", 0, 12, 0},
    {"int8 head", "attn.q", "are not heads", 0, 12, 5},
    {"int8 token static", "a.input", "covers a tensor", 0, 12, 0},
    {"int8 block:4 learned", "a.input", "covers a tensor", 0, 12, 0},
    {"int8 group:4 static", "a.input", "channels is not known", 0, 0, 0},
    {"sign tensor static", "a.input", "dynamic range", 0, 12, 0},
    {"int4 before-rotation", "layers.0.attn.v", "belongs to keys", 0, 12, 0},
    {"int4 offset", "layers.0.attn.v", "offset belongs to keys", 0, 12, 0},
    {"int4 tensor", "layers.0.attn.probs", "8 bits or are float", 0, 1, 0},
    {"int4", "taken", "exists already", 0, 4, 0},
    {"float f16", "a.input", "are for weights", 0, 4, 0},
};

START_TEST(a_site_that_makes_no_sense_is_refused)
{
    world m;
    world_new(&m, bad_sites[_i].spec);
    fq_recipe none = {0};
    ck_assert(fq_site_new(&m.sites, &none, "taken", NULL, NULL, 0, 4, 0) != NULL);
    int64_t before = m.sites.n;
    ck_assert(!fq_site_new(&m.sites, &m.recipe, bad_sites[_i].name, NULL, NULL, bad_sites[_i].rows, bad_sites[_i].cols,
                           bad_sites[_i].head));
    ck_assert_msg(strstr(nb_fail_message(), bad_sites[_i].message) && strstr(nb_fail_message(), bad_sites[_i].name),
                  "%s", nb_fail_message());
    ck_assert_int_eq(m.sites.n, before);
    world_free(&m);
}
END_TEST

START_TEST(a_weight_of_another_shape_is_refused)
{
    world m;
    world_new(&m, W4);
    ag_param *w = ag_param_new(&m.params, "w", AG_WEIGHT, 2, (int64_t[]){3, 4});
    ck_assert(!fq_site_new(&m.sites, &m.recipe, "w", NULL, w, 4, 4, 0));
    ck_assert(strstr(nb_fail_message(), "12 elements, not 4 x 4") != NULL);
    m.sites.params = NULL;
    ck_assert(!fq_site_new(&m.sites, &m.recipe, "w", NULL, w, 3, 4, 0));
    ck_assert(strstr(nb_fail_message(), "list of parameters") != NULL);
    world_free(&m);
}
END_TEST

/* ---- the operators ------------------------------------------------------------------------ */

static void count_tap(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    int *calls = ctx;
    ck_assert(site && in && out);
    ++*calls;
}

START_TEST(a_site_left_alone_gives_its_input_and_is_watched)
{
    static const char *const spec[] = {"float", "int8 narrow token", "int8 tensor static", "int8 tensor learned"};
    world m;
    int calls = 0;
    real x[6] = {1, 2, 3, 4, 5, 6};
    world_new(&m, spec[_i]);
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 3, 0);
    m.tape.tap = (ag_tap){count_tap, &calls};
    m.tape.quantize_off = _i == 1;
    ag_tensor *in = leaf(&m, x, NULL, 2, 3);
    ck_assert(fq_apply(&m.tape, s, in) == in && calls == 1);
    ck_assert(fq_apply(&m.tape, NULL, in) == in && calls == 1);
    ck_assert(fq_apply(&m.tape, s, NULL) == NULL);
    world_free(&m);
}
END_TEST

START_TEST(a_stored_float_is_rounded_and_passes_its_gradient)
{
    world m;
    world_new(&m, _i ? "float bf16" : "float f16");
    fq_site *s = weight_site(&m, "a", 5, 7, 3);
    ag_param *w = s->w;
    ag_tensor *y = fq_weight(&m.tape, s, w);
    ck_assert(y && y->n_dim == 2 && fq_site_codes(s, &m.params) == NULL);
    int moved = 0;
    for (int64_t i = 0; i < w->count; i++) {
        const float x = (float)w->x[i], wanted = _i ? nb_bf16_to(nb_bf16_from(x)) : nb_half_to(nb_half_from(x));
        ck_assert(ag_value(y)[i] == (real)wanted);
        moved += wanted != x;
    }
    ck_assert_int_gt(moved, 20);
    ck_assert(ag_backward(&m.tape, ag_sum(&m.tape, y)) == NB_OK);
    for (int64_t i = 0; i < w->count; i++)
        ck_assert(w->g[i] == 1);
    ag_reset(&m.tape);
    m.tape.quantize_off = true;
    y = fq_weight(&m.tape, s, w);
    ck_assert(y && memcmp(ag_value(y), w->x, (size_t)w->count * sizeof *w->x) == 0);
    world_free(&m);
}
END_TEST

static const struct {
    const char *spec;
    real pass[8]; /* of x below */
} masks[] = {
    {"int8 narrow token dynamic", {1, 1, 1, 1, 1, 1, 1, 1}},
    {"int8 narrow token dynamic clipped", {1, 1, 1, 1, 1, 1, 1, 1}},
    {"int8 narrow token dynamic llmqat", {0, 1, 1, 1, 1, 1, 0, 0}},
    {"int8 narrow tensor static", {0, 1, 1, 1, 1, 1, 0, 0}},
    {"int8 narrow tensor static identity", {1, 1, 1, 1, 1, 1, 1, 1}},
    {"int8 narrow tensor static llmqat", {0, 1, 1, 1, 1, 1, 0, 0}},
    {"int8 asym tensor static", {0, 1, 1, 1, 1, 1, 0, 0}},
    {"sign token clipped", {0, 1, 1, 1, 1, 1, 0, 0}},
};

START_TEST(gradient_passes_where_the_variant_lets_it)
{
    world m;
    real x[16] = {-3, (real)-1.25, -1, 0, (real)0.5, 1, 2, 5}, g[16] = {0}, r[16], twice[16];
    memcpy(x + 8, x, 8 * sizeof *x);
    for (int i = 0; i < 16; i++)
        r[i] = (real)(i + 1);
    world_new(&m, masks[_i].spec);
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 8, 0);
    if (s->start) { /* reaches from -1.27 to 1.27 */
        s->start[0] = (real)0.01;
        s->started = true;
    }
    for (int deep = 0; deep < 2;
         deep++) { /* the input a leaf, or another operator's result, whose gradient is handed over */
        ag_reset(&m.tape);
        memset(g, 0, sizeof g);
        ag_tensor *in = leaf(&m, x, g, 2, 8);
        ag_tensor *y = fq_apply(&m.tape, s, deep ? ag_scale(&m.tape, in, 1) : in);
        ck_assert_msg(y && y->codes && ag_backward(&m.tape, ag_dot(&m.tape, y, r)) == NB_OK, "%s", nb_fail_message());
        for (int i = 0; i < 16; i++)
            ck_assert_msg(g[i] == masks[_i].pass[i % 8] * r[i], "%s: x = %g", masks[_i].spec, (double)x[i]);
    }
    /* two readers of one input: both contributions arrive */
    ag_reset(&m.tape);
    memcpy(twice, g, sizeof g);
    memset(g, 0, sizeof g);
    ag_tensor *h = ag_scale(&m.tape, leaf(&m, x, g, 2, 8), 1);
    ag_tensor *sum = ag_add(&m.tape, fq_apply(&m.tape, s, h), fq_apply(&m.tape, s, h));
    ck_assert(ag_backward(&m.tape, ag_dot(&m.tape, sum, r)) == NB_OK);
    for (int i = 0; i < 16; i++)
        ck_assert(g[i] == 2 * twice[i]);
    world_free(&m);
}
END_TEST

START_TEST(learned_scale_stays_within_a_factor_of_two)
{
    world m;
    world_new(&m, W4);
    fq_site *s = weight_site(&m, "a", 1, 64, 3);
    real r[64], scale;
    ck_assert(fq_start_weights(&m.sites, FQ_START_ABSMAX, NULL, NULL) == NB_OK);
    for (int sign = -1; sign <= 1; sign += 2)
        for (int outward = 0; outward < 2; outward++) {
            s->u->x[0] = (real)sign * 5;
            m.params.version++;
            ag_params_clear_grad(&m.params);
            ag_reset(&m.tape);
            fq_site_ranges(s, &scale, NULL);
            ck_assert_double_eq_tol((double)(scale / s->start[0]), sign > 0 ? 2 : 0.5, 1e-6);
            ag_tensor *y = fq_weight(&m.tape, s, s->w);
            const real *v = ag_value(y);
            /* a loss that falls (outward) or rises along u */
            for (int i = 0; i < 64; i++)
                r[i] = (real)(sign * (outward ? -1 : 1)) *
                       (v[i] - (fabsf((float)s->w->x[i]) < 7 * (float)scale ? s->w->x[i] : 0));
            ck_assert(ag_backward(&m.tape, ag_dot(&m.tape, y, r)) == NB_OK);
            ck_assert_msg((s->u->g[0] == 0) == (outward == 1), "sign %d outward %d: %g", sign, outward,
                          (double)s->u->g[0]);
        }
    world_free(&m);
}
END_TEST

START_TEST(no_gradient_keeps_nothing_and_forgets_nothing)
{
    world m;
    world_new(&m, "int8 narrow tensor static");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 8, 0);
    real x[8] = {-3, -1, 0, 1, 2, 3, 4, 5}, g[8] = {0};
    s->start[0] = (real)0.01;
    s->started = true;
    ag_tensor *y = fq_apply(&m.tape, s, leaf(&m, x, g, 1, 8));
    real with[8];
    memcpy(with, ag_value(y), sizeof with);
    ag_reset(&m.tape);
    m.tape.no_grad = true;
    y = fq_apply(&m.tape, s, leaf(&m, x, g, 1, 8));
    ck_assert(!memcmp(with, ag_value(y), sizeof with) && !y->needs_grad);
    world_free(&m);
}
END_TEST

START_TEST(codes_nobody_reads_again_are_given_back)
{
    world m;
    real x[8 * 64] = {1, 2, 3};
    world_new(&m, "int8 narrow token");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 64, 0);
    m.tape.no_grad = true;
    ag_tensor *h = leaf(&m, x, NULL, 8, 64);
    size_t used = 0;
    for (int i = 0; i < 6; i++) {
        ag_tensor *q = fq_apply(&m.tape, s, h), *y = ag_scale(&m.tape, q, 1);
        ag_done(h);
        ag_done(q);
        h = y;
        ck_assert(!q->codes);
        if (i == 2)
            used = m.tape.memory.used;
    }
    ck_assert_msg(ag_value(h)[2] == 3, "%g", (double)ag_value(h)[2]);
    ck_assert_uint_le(m.tape.memory.used,
                      used + 3 * 2 * 1024); /* nodes alone: codes and value of a turn are over 2,500 */
    world_free(&m);
}
END_TEST

START_TEST(channels_that_do_not_fit_fail_with_both_numbers)
{
    world m;
    real x[6] = {0};
    world_new(&m, "int8 token");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "layers.0.mlp.input", NULL, NULL, 0, 4, 0);
    ck_assert(fq_apply(&m.tape, s, leaf(&m, x, NULL, 2, 3)) == NULL);
    ck_assert(ag_status(&m.tape) == NB_SHAPE);
    ck_assert(strstr(nb_fail_message(), "layers.0.mlp.input: 3 channels, not 4") != NULL);
    world_free(&m);
}
END_TEST

START_TEST(textbook_values_come_out)
{
    static const int8_t absmax[] = {28, -12, -101, 28, -73, 19, 56, 127};
    real x[8] = {(real)1.2, (real)-0.5, (real)-4.3, (real)1.2, (real)-3.1, (real)0.8, (real)2.4, (real)5.4};
    real r[5] = {-3, -1, 0, 1, (real)3.2};
    world m;
    world_new(&m, "int8 narrow tensor");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 8, 0);
    ck_assert(!memcmp(fq_apply(&m.tape, s, leaf(&m, x, NULL, 1, 8))->codes->q, absmax, 8));
    world_free(&m);
    world_new(&m, "int8 asym tensor");
    s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 5, 0);
    const kn_codes *c = fq_apply(&m.tape, s, leaf(&m, r, NULL, 1, 5))->codes;
    ck_assert_double_eq_tol((double)c->scale[0], 6.2 / 255, 1e-8);
    ck_assert_double_eq_tol(1 / (double)c->scale[0], 41.13, 5e-3);
    ck_assert_int_eq(c->zero[0], -5);
    ck_assert(c->q[0] == -128 && c->q[2] == -5 && c->q[4] == 127);
    world_free(&m);
}
END_TEST

START_TEST(activation_of_a_row_depends_on_that_row_alone)
{
    static const char *const spec[] = {"int8 narrow token", "int8 asym head f16", "int8 narrow group:32 f16 q8_0",
                                       "int8 head static"};
    real x[3 * 64], y[3 * 64], one[64];
    world m;
    world_new(&m, spec[_i]);
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "attn.k", NULL, NULL, 0, 64, 16);
    for (int i = 0; i < 3 * 64; i++)
        x[i] = (real)nb_random_normal(1, 1, (uint64_t)i);
    for (int i = 0; s->start && i < 4; i++)
        s->start[i] = (real)(0.01 * (i + 1));
    s->started = s->start != NULL;
    memcpy(y, ag_value(fq_apply(&m.tape, s, leaf(&m, x, NULL, 3, 64))), sizeof y);
    kn_codes c;
    ck_assert(kn_codes_new(&c, &s->spec.grid, 3, 64) == NB_OK);
    for (int row = 2; row >= 0; row--) {
        fq_encode_activation(s, &c, x + row * 64, row, 1);
        kn_decode(one, &c, row, 1);
        ck_assert(!memcmp(one, y + row * 64, sizeof one));
    }
    kn_codes_free(&c);
    world_free(&m);
}
END_TEST

static const char *const threaded[] = {"int4 row f32 learned", "int4 tensor f32 learned:lsq",
                                       "int4 group:32 f16 learned", "int4 block:100 learned",
                                       "int8 asym row f32 learned:pact"};

START_TEST(gradients_do_not_depend_on_threads)
{
    enum { ROWS = 150, COLS = 200 };
    real *r = nb_alloc(ROWS * COLS, sizeof *r), *g = NULL, *u = NULL;
    world m;
    world_new(&m, threaded[_i]);
    fq_site *s = weight_site(&m, "a", ROWS, COLS, 1);
    for (int i = 0; i < ROWS * COLS; i++)
        r[i] = (real)nb_random_normal(2, 1, (uint64_t)i);
    ck_assert(fq_start_weights(&m.sites, FQ_START_MSE, NULL, NULL) == NB_OK);
    const size_t bytes = ROWS * COLS * sizeof *r, scales = (size_t)s->n_scales * sizeof *r;
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        ag_reset(&m.tape);
        ag_params_clear_grad(&m.params);
        m.params.version++;
        ck_assert(ag_backward(&m.tape, ag_dot(&m.tape, fq_weight(&m.tape, s, s->w), r)) == NB_OK);
        if (threads == 1) {
            g = nb_alloc(1, bytes);
            u = nb_alloc(1, scales);
            memcpy(g, s->w->g, bytes);
            memcpy(u, s->u->g, scales);
        }
        ck_assert(!memcmp(g, s->w->g, bytes) && !memcmp(u, s->u->g, scales));
    }
    free(r);
    free(g);
    free(u);
    world_free(&m);
}
END_TEST

#define LOOP(tc, test, table) tcase_add_loop_test(tc, test, 0, (int)(sizeof(table) / sizeof *(table)))

int main(void)
{
    Suite *s = suite_create("fakequant");
    TCase *tc = tcase_create("sites");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, fold_equals_fake_quant, 0, 4);
    tcase_add_test(tc, loosened_floats_keep_their_codes);
    tcase_add_test(tc, weights_are_encoded_once_a_version);
    tcase_add_test(tc, a_folded_site_gives_its_codes_without_a_latent);
    tcase_add_test(tc, only_weights_of_integer_products_are_packed);
    LOOP(tc, a_site_that_makes_no_sense_is_refused, bad_sites);
    tcase_add_test(tc, a_weight_of_another_shape_is_refused);
    suite_add_tcase(s, tc);
    tc = tcase_create("operators");
    tcase_add_loop_test(tc, a_site_left_alone_gives_its_input_and_is_watched, 0, 4);
    tcase_add_loop_test(tc, a_stored_float_is_rounded_and_passes_its_gradient, 0, 2);
    LOOP(tc, gradient_passes_where_the_variant_lets_it, masks);
    LOOP(tc, gradients_do_not_depend_on_threads, threaded);
    tcase_add_test(tc, learned_scale_stays_within_a_factor_of_two);
    tcase_add_test(tc, no_gradient_keeps_nothing_and_forgets_nothing);
    tcase_add_test(tc, codes_nobody_reads_again_are_given_back);
    tcase_add_test(tc, channels_that_do_not_fit_fail_with_both_numbers);
    tcase_add_test(tc, textbook_values_come_out);
    tcase_add_loop_test(tc, activation_of_a_row_depends_on_that_row_alone, 0, 4);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
