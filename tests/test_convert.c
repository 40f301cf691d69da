/* test_convert.c - floats go from any format into any other and come back bit for bit where the types hold them; what a type rounds is
 * the nearest value, and counted; tokenizers go along.
 */
#include "models_made.h"
#include "scratch.h"
#include "suite.h"

typedef struct {
    const char *target;
    fm_dtype as;
} format;
static const format formats[] = {
    {"gguf-f32", FM_F32},         {"safetensors", FM_F32},     {"h5", FM_F32},         {"llama2c-f32", FM_F32},
    {"gguf-f16", FM_F16},         {"safetensors-f16", FM_F16}, {"h5-f16", FM_F16},     {"gguf-bf16", FM_BF16},
    {"safetensors-bf16", FM_BF16}, {"h5-bf16", FM_BF16},
};
enum { N_FORMATS = sizeof formats / sizeof *formats };

static real rounded_to(real x, fm_dtype t)
{
    return t == FM_F16 ? nb_half_to(nb_half_from(x)) : t == FM_BF16 ? nb_bf16_to(nb_bf16_from(x)) : x;
}

/* All floats of the model as the type has them. */
static void round_model(md_model *m, fm_dtype t)
{
    for (int64_t k = 0; k < m->params.n; k++)
        for (int64_t i = 0; i < m->params.p[k]->count; i++)
            m->params.p[k]->x[i] = rounded_to(m->params.p[k]->x[i], t);
    m->params.version++;
}

static bool write_as(md_model *m, const format *f, const char *path, char report[1024])
{
    *report = 0;
    scratch_remove(path); /* a folder takes no file's place */
    status s = md_export(m, f->target, path, report, 1024);
    ck_assert_msg(s == NB_OK || s == NB_UNSUPPORTED, "%s: %s", f->target, nb_fail_message());
    return s == NB_OK;
}

static void same_model(const md_model *a, const md_model *b, const char *what)
{
    made_compare_models(a, b, what);
    ck_assert_msg(a->config.dim == b->config.dim && a->config.tied == b->config.tied, "%s", what);
    ck_assert_msg(a->config.norm_eps == b->config.norm_eps || (float)a->config.norm_eps == (float)b->config.norm_eps, "%s", what);
    ck_assert_msg((float)a->config.rope_theta == (float)b->config.rope_theta && a->config.ctx == b->config.ctx, "%s", what);
}

/* From each format into each other, values being of the narrower type: nothing is lost, and nothing is said to be rounded. */
START_TEST(every_pair_of_formats_holds_the_same_values)
{
    int pairs = 0;
    scratch_begin();
    const char *a = scratch_path("a"), *b = scratch_path("b");
    for (int i = 0; i < N_FORMATS; i++)
        for (int k = 0; k < N_FORMATS; k++) {
            char report[1024], what[64];
            md_model m, first, second;
            (void)snprintf(what, sizeof what, "%s to %s", formats[i].target, formats[k].target);
            made_model(&m, &made_shapes[_i], "float", 5);
            round_model(&m, formats[i].as);
            round_model(&m, formats[k].as);
            round_model(&m, formats[i].as);
            if (write_as(&m, &formats[i], a, report)) {
                ck_assert_msg(strstr(report, "exact") != NULL, "%s: %s", what, report);
                opened(&first, a, NULL);
                same_model(&m, &first, what);
                round_model(&first, formats[k].as);
                if (write_as(&first, &formats[k], b, report)) {
                    ck_assert_msg(strstr(report, "exact") != NULL, "%s: %s", what, report);
                    opened(&second, b, NULL);
                    same_model(&first, &second, what);
                    md_free(&second);
                    pairs++;
                }
                md_free(&first);
            }
            md_free(&m);
        }
    ck_assert_int_ge(pairs, _i == 6 ? 6 * 6 : 9 * 9); /* 6: safetensors has no place for a bias after attention alone */
    scratch_end();
}
END_TEST

START_TEST(what_is_rounded_is_nearest_and_counted)
{
    scratch_begin();
    const char *path = scratch_path("a");
    for (int i = 0; i < N_FORMATS; i++) {
        const bool keeps_norms = !strncmp(formats[i].target, "gguf", 4);
        char report[1024], wanted[64];
        long long count = 0;
        md_model m, back;
        made_model(&m, &made_shapes[2], "float", 6);
        ck_assert(write_as(&m, &formats[i], path, report));
        for (int64_t k = 0; k < m.params.n; k++) {
            ag_param *p = m.params.p[k];
            for (int64_t j = 0; j < p->count && !(keeps_norms && p->group == AG_NORM); j++) {
                count += rounded_to(p->x[j], formats[i].as) != p->x[j];
                p->x[j] = rounded_to(p->x[j], formats[i].as);
            }
        }
        m.params.version++;
        opened(&back, path, NULL);
        made_compare_models(&m, &back, formats[i].target);
        (void)snprintf(wanted, sizeof wanted, "%lld of them are rounded", count);
        ck_assert_msg(strstr(report, count ? wanted : "exact") != NULL, "%s: %s, wanted %s", formats[i].target, report, wanted);
        ck_assert((count > 0) == (formats[i].as != FM_F32));
        md_free(&back);
        md_free(&m);
    }
    scratch_end();
}
END_TEST

START_TEST(what_f16_cannot_hold_is_refused)
{
    static const char *const targets[] = {"gguf-f16", "safetensors-f16", "h5-f16"};
    scratch_begin();
    const char *path = scratch_path("a");
    for (int i = 0; i < 3; i++) {
        md_model m;
        made_model(&m, &made_shapes[1], "float", 6);
        m.block[0].attn.wq.w->x[5] = 70000;
        ck_assert_int_eq(md_export(&m, targets[i], path, NULL, 0), NB_UNSUPPORTED);
        ck_assert_msg(strstr(nb_fail_message(), "70000 is beyond the range of F16") != NULL, "%s", nb_fail_message());
        md_free(&m);
        scratch_remove(path);
    }
    scratch_end();
}
END_TEST

/* What codes decode to, out of every format of exact floats. */
START_TEST(codes_are_decoded_into_the_same_floats)
{
    scratch_begin();
    const char *coded = scratch_path("coded.gguf"), *path = scratch_path("a");
    for (int i = 0; i < 3; i++) {
        char report[1024];
        md_model m, file, back;
        made_model(&m, &made_shapes[3], "q4_0", 6);
        ck_assert_msg(md_export(&m, "gguf", coded, NULL, 0) == NB_OK, "%s", nb_fail_message());
        opened(&file, coded, NULL);
        ck_assert(write_as(&file, &formats[i], path, report));
        opened(&back, path, NULL);
        made_compare_models(&m, &back, formats[i].target);
        md_free(&back);
        md_free(&file);
        md_free(&m);
    }
    scratch_end();
}
END_TEST

/* Folded while it is read, from every format: the codes, scales and floats of what is read first and folded then. */
START_TEST(folding_while_reading_gives_the_same_codes)
{
    const format coded = {"llama2c", FM_F32}, *f = _i < N_FORMATS ? &formats[_i] : &coded;
    int compared = 0;
    scratch_begin();
    for (int k = 0; k < 4; k++) {
        const char *recipe = made_recipes[(5 * _i + 7 * k) % N_MADE_RECIPES], *path = scratch_path("m");
        const fq_start start = k % 2 ? FQ_START_MSE : FQ_START_ABSMAX;
        char report[1024];
        md_model m, later, folded;
        made_model(&m, &made_shapes[(_i + k) % N_MADE_SHAPES], f == &coded ? "q8_0" : "float", (uint64_t)k);
        const bool written = write_as(&m, f, path, report);
        md_free(&m);
        if (!written)
            continue;
        if (strchr(recipe, '\n'))
            recipe = scratch_write("recipe", recipe, strlen(recipe));
        opened(&later, path, &(md_open_options){.recipe = recipe});
        ck_assert_int_eq(fq_start_weights(&later.sites, start, NULL, NULL), NB_OK);
        opened(&folded, path, &(md_open_options){.recipe = recipe, .fold = true, .start = start});
        ck_assert(folded.folded && !later.folded);
        same_model(&later, &folded, f->target);
        for (int64_t i = 0; i < later.sites.n; i++) {
            const kn_codes *a = fq_site_codes(later.sites.s[i], &later.params), *b = fq_site_codes(folded.sites.s[i], &folded.params);
            ck_assert(!a == !b);
            if (!a)
                continue;
            ck_assert(!folded.sites.s[i]->w);
            ck_assert_mem_eq(a->scale, b->scale, (size_t)a->n_scales * sizeof *a->scale);
            ck_assert(a->q ? !memcmp(a->q, b->q, (size_t)(a->rows * a->ld)) : !memcmp(a->q16, b->q16, (size_t)(a->rows * a->ld) * 2));
            compared++;
        }
        md_free(&later);
        md_free(&folded);
    }
    ck_assert_int_gt(compared, 5);
    refused("/nonexistent", &(md_open_options){.fold = true}, NB_USAGE, "by a recipe");
    scratch_end();
}
END_TEST

START_TEST(tokenizers_go_along)
{
    scratch_begin();
    const char *path = scratch_path("a");
    const md_config c = MADE(32, 44, 1, 4, 2, 8, 260, .tied = true);
    for (int i = 0; i < 3; i++) {
        char report[1024], text[] = "any bytes \xff\x01";
        fm_ids x = {0}, y = {0};
        md_model m, back;
        made_model(&m, &c, "float", 6);
        ck_assert(md_attach_tokenizer(&m, "bytes") == NB_OK);
        ck_assert(write_as(&m, &formats[i], path, report));
        opened(&back, path, NULL);
        ck_assert_msg(back.tokenizer.kind != FM_TOKENIZER_NONE, "%s", formats[i].target);
        ck_assert(back.config.bos == 256 && back.config.eos == 257);
        ck_assert(fm_tokenizer_encode(&m.tokenizer, &x, text, sizeof text - 1, FM_ADD_BOS) == NB_OK);
        ck_assert(fm_tokenizer_encode(&back.tokenizer, &y, text, sizeof text - 1, FM_ADD_BOS) == NB_OK);
        ck_assert(x.n == y.n && memcmp(x.id, y.id, (size_t)x.n * sizeof *x.id) == 0);
        fm_ids_free(&x);
        fm_ids_free(&y);
        md_free(&back);
        md_free(&m);
    }
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("convert");
    TCase *c = tcase_create("convert");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, every_pair_of_formats_holds_the_same_values, 0, N_MADE_SHAPES);
    tcase_add_test(c, what_is_rounded_is_nearest_and_counted);
    tcase_add_test(c, what_f16_cannot_hold_is_refused);
    tcase_add_test(c, codes_are_decoded_into_the_same_floats);
    tcase_add_loop_test(c, folding_while_reading_gives_the_same_codes, 0, N_FORMATS + 1);
    tcase_add_test(c, tokenizers_go_along);
    suite_add_tcase(s, c);
    return run_suite(s);
}
