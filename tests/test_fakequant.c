/* test_fakequant.c - sites: fake-quant is the fold, codes are kept and packed once. Their operators are in test_fake.c. */
#include "random_spec.h"
#include "suite.h"
#include "world.h"
#include <stdlib.h>

#define W4 "int4 row f32 learned"

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
    return run_suite(s);
}
