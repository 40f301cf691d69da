/* test_recipes.c - specs and recipes: what a name means, that text and spec are one, what is refused and why. */
#include "random_spec.h"
#include "scratch.h"
#include "suite.h"
#include "world.h"

/* ---- specs -------------------------------------------------------------------------------- */

static const struct {
    const char *text, *printed;
} specs[] = {
    {"float", "float"},
    {"float f32", "float"},
    {"f16 float", "float f16"},
    {"float bf16", "float bf16"},
    {"int4", "int4 row f32 dynamic"},
    {"int4 row f32 learned", "int4 row f32 learned"},
    {"learned f32 row int4", "int4 row f32 learned"},
    {"int8 narrow token dynamic", "int8 narrow row f32 dynamic"},
    {"int4 group:32 f16 learned", "int4 group:32 f16 learned"},
    {"int8 narrow group:32 f16 q8_0", "int8 narrow group:32 f16 q8_0 dynamic"},
    {"int4 group:32 f16 q4_0 learned", "int4 group:32 f16 q4_0 learned"},
    {"int8 narrow tensor llama2c", "int8 narrow tensor f32 llama2c dynamic"},
    {"seq2 row learned", "seq2 row f32 learned"},
    {"ternary", "ternary row f32 dynamic"},
    {"int2 narrow", "ternary row f32 dynamic"},
    {"sign tensor", "sign tensor f32 dynamic"},
    {"int16 pow2", "int16 row pow2 dynamic"},
    {"int8 asym tensor static:mse", "int8 asym tensor f32 static:mse"},
    {"int8 asym tensor static", "int8 asym tensor f32 static"},
    {"int8 head static:percentile:99.9", "int8 head f32 static:percentile:99.9000015"},
    {"int8 tensor static:average:0.1 identity", "int8 tensor f32 static:average:0.100000001 identity"},
    {"int8 asym tensor learned:lsq from:kl", "int8 asym tensor f32 learned:lsq from:kl"},
    {"int8 asym tensor learned:pact llmqat", "int8 asym tensor f32 learned:pact llmqat"},
    {"int8 block:64 bf16 clipped", "int8 block:64 bf16 dynamic clipped"},
    {"int4 codes:-7..6", "int4 codes:-7..6 row f32 dynamic"},
    {"int4, narrow,\ttoken before-rotation", "int4 narrow row f32 dynamic before-rotation"},
    {"nf4 block:64 dynamic8", "nf4 block:64 dynamic8 dynamic"},
    {"offset int4 asym head f16", "int4 asym head f16 dynamic offset"},
};

START_TEST(spec_prints_what_it_says)
{
    fq_spec s, again;
    char text[192], twice[192];
    ck_assert_msg(fq_spec_parse(&s, specs[_i].text) == NB_OK, "%s: %s", specs[_i].text, nb_fail_message());
    fq_spec_print(text, sizeof text, &s);
    ck_assert_str_eq(text, specs[_i].printed);
    ck_assert(fq_spec_parse(&again, text) == NB_OK && fq_spec_equal(&s, &again));
    fq_spec_print(twice, sizeof twice, &again);
    ck_assert_str_eq(text, twice);
    for (size_t n = 1; n <= strlen(text); n++) { /* a short buffer cuts, ends in NUL and is not overrun */
        char cut[192];
        memset(cut, '#', sizeof cut);
        fq_spec_print(cut, n, &s);
        ck_assert(strlen(cut) < n && !strncmp(cut, text, strlen(cut)) && cut[n] == '#');
    }
}
END_TEST

static const struct {
    const char *text, *message;
} bad_specs[] = {
    {"", "wanted float"},
    {"row learned", "wanted float"},
    {"int9", "2 to 8 or 16"},
    {"int1", "2 to 8 or 16"},
    {"int", "2 to 8 or 16"},
    {"int44", "2 to 8 or 16"},
    {"seq8", "2 to 7"},
    {"intx", "2 to 8"},
    {"float row", "no further words"},
    {"float pow2", "no further words"},
    {"float f16 learned", "no further words"},
    {"int4 int8", "said before"},
    {"int4 row token", "said before"},
    {"int4 static:mse from:kl", "said before"},
    {"int4 group", "group:N"},
    {"int4 group:0", "at least 1"},
    {"int4 group:x", "integer"},
    {"int4 group:99999999999", "integer"},
    {"int4 row:3", "takes no size"},
    {"int4 codes:3..1", "LO < HI"},
    {"int4 codes:-9..7", "do not fit"},
    {"int4 codes:1..7", "around 0"},
    {"int4 codes:", "LO < HI"},
    {"ternary narrow", "belong to int"},
    {"seq2 asym", "belong to int"},
    {"sign codes:-1..1", "belong to int"},
    {"int4 static:best", "minmax"},
    {"int4 static:mse:3", "average takes"},
    {"int4 static:percentile:101", "percentile"},
    {"int4 static:average:nan", "average takes"},
    {"int4 from:mse", "takes no method"},
    {"int4 dynamic:mse", "takes nothing more"},
    {"int4 learned:adam", "log, lsq or pact"},
    {"int4 q8_0", "ggml's rule needs 8 bits"},
    {"int8 narrow group:32 q8_0", "fp16"},
    {"int4 fp8", "not a word"},
    {"int4 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "not a word"},
};

START_TEST(bad_spec_is_refused_with_its_reason)
{
    fq_spec s;
    ck_assert_msg(fq_spec_parse(&s, bad_specs[_i].text) == NB_USAGE, "%s", bad_specs[_i].text);
    ck_assert_msg(strstr(nb_fail_message(), bad_specs[_i].message) != NULL, "%s: %s", bad_specs[_i].text,
                  nb_fail_message());
    ck_assert(s.grid.bits == 0);
}
END_TEST

START_TEST(any_spec_survives_its_text)
{
    for (uint64_t seed = 0; seed < 3000; seed++) {
        fq_spec s = random_spec(seed), again;
        char text[192];
        if (s.grid.grain == KN_HEAD)
            s.grid.group = 0;
        fq_spec_print(text, sizeof text, &s);
        ck_assert_msg(fq_spec_parse(&again, text) == NB_OK, "%s: %s", text, nb_fail_message());
        ck_assert_msg(fq_spec_equal(&s, &again), "%s", text);
    }
}
END_TEST

/* ---- recipes ------------------------------------------------------------------------------ */

#define W4          "int4 row f32 learned"
#define W8          "int8 narrow row f32 learned"
#define A8          "int8 narrow row f32 dynamic"
#define Q8          "int8 narrow head f32 dynamic"
#define G8          "int8 narrow group:32 f16 learned"
#define GGML8       "int8 narrow group:32 f16 q8_0 learned"
#define GGML8_INPUT "int8 narrow group:32 f16 q8_0 dynamic"
#define GGML4       "int4 group:32 f16 q4_0 learned"
static const struct {
    const char *recipe, *weight, *embed, *head, *input, *head_input, *q, *k, *v;
} meanings[] = {
    {"float", "float", "float", "float", "float", "float", "float", "float", "float"},
    {"f16", "float f16", "float f16", "float f16", "float", "float", "float", "float", "float"},
    {"w16a16", "int16 narrow row f32 learned", "int16 narrow row f32 learned", "int16 narrow row f32 learned", "float", "float", "float", "float", "float"},
    {"w8a8kv16", W8, W8, W8, A8, A8, "float", "float", "float"},
    {"w8a8kv8", W8, W8, W8, A8, A8, Q8, "int8 asym head f16 dynamic", "int8 asym head f16 dynamic"},
    {"w4a8kv16", W4, W8, W8, A8, A8, "float", "float", "float"},
    {"w4a8kv8", W4, W8, W8, A8, A8, Q8, "int8 asym head f16 dynamic", "int8 asym head f16 dynamic"},
    {"w4a8kv4", W4, W8, W8, A8, A8, Q8, "int4 asym head f16 dynamic offset", "int4 asym head f16 dynamic"},
    {"w4a4kv4", W4, W8, W8, "int4 asym row f32 dynamic", A8, Q8, "int4 asym head f16 dynamic offset", "int4 asym head f16 dynamic"},
    {"w4all", W4, W4, W4, A8, A8, "float", "float", "float"},
    {"w8a16g128", "int8 narrow group:128 f16 learned", G8, G8, "float", "float", "float", "float", "float"},
    {"w4a16g128", "int4 group:128 f16 learned", G8, G8, "float", "float", "float", "float", "float"},
    {"w4a16g32", "int4 group:32 f16 learned", G8, G8, "float", "float", "float", "float", "float"},
    {"w3a16", "int3 row f32 learned", W8, W8, "float", "float", "float", "float", "float"},
    {"w2a16", "seq2 row f32 learned", W8, W8, "float", "float", "float", "float", "float"},
    {"q8_0", GGML8, GGML8, GGML8, GGML8_INPUT, GGML8_INPUT, "float", "float", "float"},
    {"q4_0", GGML4, GGML8, GGML8, GGML8_INPUT, GGML8_INPUT, "float", "float", "float"},
    {"q4_0_all", GGML4, GGML4, GGML4, GGML8_INPUT, GGML8_INPUT, "float", "float", "float"},
    {"iq4_nl", "iq4_nl group:32 f16 learned", GGML8, GGML8, GGML8_INPUT, GGML8_INPUT, "float", "float", "float"},
    {"nf4", "nf4 block:64 f32 dynamic", "float f16", "float f16", "float", "float", "float", "float", "float"},
    {"fp4", "fp4 block:64 f32 dynamic", "float f16", "float f16", "float", "float", "float", "float", "float"},
    {"nf4dq", "nf4 block:64 dynamic8 dynamic", "float f16", "float f16", "float", "float", "float", "float", "float"},
    {"fp4dq", "fp4 block:64 dynamic8 dynamic", "float f16", "float f16", "float", "float", "float", "float", "float"},
#define K6       "int6 group:16 super8 learned"
#define K8_INPUT "int8 narrow group:256 f32 dynamic"
    {"int8", "int8 narrow row f32 learned", "float f16", "float f16", "int8 narrow row f32 outliers:6 dynamic", "float", "float", "float", "float"},
#define SMOOTH(name, input, heads)                                                                                     \
    {name, "int8 narrow tensor f32 learned", "float f16", "float f16", "int8 narrow " input, "float", heads, heads, heads}
    SMOOTH("smooth-o1", "row f32 dynamic", "int8 narrow head f32 dynamic"),
    SMOOTH("smooth-o2", "tensor f32 dynamic", "int8 narrow head f32 dynamic"),
    SMOOTH("smooth-o3", "tensor f32 static", "int8 narrow head f32 static"),
    {"q4_k", "int4 group:32 super6 learned", K6, K6, K8_INPUT, K8_INPUT, "float", "float", "float"},
    {"q6_k", K6, K6, K6, K8_INPUT, K8_INPUT, "float", "float", "float"},
    {"tq2_0", "ternary group:256 f16 learned", K6, K6, K8_INPUT, K8_INPUT, "float", "float", "float"},
#define PICTURES(name, w) {name, w, w, w, "float", "float", "float", "float", "float"}
    PICTURES("w8a8", "int8 narrow row f32 dynamic"),
    PICTURES("w4a8", "int4 row f32 learned:lsq"),
    PICTURES("w4a4", "int4 row f32 learned:lsq"),
    PICTURES("w2a4", "seq2 row f32 learned:lsq"),
#define LLMQAT(name, w, a, k, v)                                                                                       \
    {                                                                                                                  \
        name, w, "float", "float", a, "float", "float", k, v                                                           \
    }
    LLMQAT("llmqat-4-8-4", "int4 narrow row f32 dynamic", A8, "int4 narrow row f32 dynamic before-rotation",
           "int4 narrow row f32 dynamic"),
    LLMQAT("llmqat-4-8-8", "int4 narrow row f32 dynamic", A8, "int8 narrow row f32 dynamic before-rotation", A8),
    LLMQAT("llmqat-4-8-16", "int4 narrow row f32 dynamic", A8, "float", "float"),
    LLMQAT("llmqat-4-6-16", "int4 narrow row f32 dynamic", "int6 narrow row f32 dynamic", "float", "float"),
    LLMQAT("llmqat-4-16-16", "int4 narrow row f32 dynamic", "float", "float", "float"),
    LLMQAT("llmqat-8-8-4", A8, A8, "int4 narrow row f32 dynamic before-rotation", "int4 narrow row f32 dynamic"),
    LLMQAT("llmqat-8-8-8", A8, A8, "int8 narrow row f32 dynamic before-rotation", A8),
    LLMQAT("llmqat-8-8-16", A8, A8, "float", "float"),
};
enum { N_MEANINGS = sizeof meanings / sizeof *meanings };

static void check_site(const fq_recipe *r, const char *site, const char *wanted)
{
    char text[192];
    fq_spec s = fq_recipe_find(r, site, NULL);
    fq_spec_print(text, sizeof text, &s);
    ck_assert_msg(!strcmp(text, wanted), "%s: %s is '%s', not '%s'", r->name, site, text, wanted);
}

START_TEST(named_recipe_means_what_it_says)
{
    fq_recipe r;
    ck_assert_msg(fq_recipe_open(&r, meanings[_i].recipe) == NB_OK, "%s", nb_fail_message());
    static const char *const linears[] = {"attn.wq", "attn.wk", "attn.wv", "attn.wo", "mlp.gate", "mlp.up", "mlp.down"};
    static const char *const inputs[] = {"attn.input", "attn.out.input", "mlp.input", "mlp.down.input"};
    static const char *const never[] = {"attn.probs",   "attn.residual", "mlp.act",
                                        "mlp.residual", "attn.wq.bias",  "mlp.down.bias"};
    char name[64];
    for (int layer = 0; layer < 12; layer += 11) {
        for (int i = 0; i < 7; i++) {
            snprintf(name, sizeof name, "layers.%d.%s.weight", layer, linears[i]);
            check_site(&r, name, meanings[_i].weight);
        }
        for (int i = 0; i < 4; i++) {
            snprintf(name, sizeof name, "layers.%d.%s", layer, inputs[i]);
            check_site(&r, name, meanings[_i].input);
        }
        for (int i = 0; i < 6; i++) {
            snprintf(name, sizeof name, "layers.%d.%s", layer, never[i]);
            check_site(&r, name, "float");
        }
    }
    check_site(&r, "layers.3.attn.q", meanings[_i].q);
    check_site(&r, "layers.3.attn.k", meanings[_i].k);
    check_site(&r, "layers.3.attn.v", meanings[_i].v);
    check_site(&r, "embed.weight", meanings[_i].embed);
    check_site(&r, "head.weight", meanings[_i].head);
    check_site(&r, "head.input", meanings[_i].head_input);
    check_site(&r, "head.bias", "float");
    fq_recipe_free(&r);
}
END_TEST

START_TEST(recipes_of_pictures_give_results_static_ranges)
{
    static const char *const rules[][2] = {{"w8a8", "int8 asym tensor f32 static:average"},
                                           {"w4a8", "int8 asym tensor f32 static:average"},
                                           {"w4a4", "int4 asym tensor f32 learned:lsq from:mse"},
                                           {"w2a4", "int4 asym tensor f32 learned:lsq from:mse"}};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        fq_recipe r;
        ck_assert_msg(fq_recipe_open(&r, rules[i][0]) == NB_OK, "%s", nb_fail_message());
        check_site(&r, "conv1.output", rules[i][1]);
        check_site(&r, "input", "int8 asym tensor f32 static");
        check_site(&r, "head.output", "int8 asym tensor f32 static:average");
        fq_recipe_free(&r);
    }
}
END_TEST

START_TEST(every_recipe_that_ships_is_in_that_table_and_in_the_docs)
{
    const char *const *name, *const *why;
    int64_t n = fq_recipe_named(&name, &why);
    ck_assert_int_eq(n, N_MEANINGS);
    nb_mapped docs;
    ck_assert_msg(nb_map(&docs, "docs/recipes.md") == NB_OK, "%s", nb_fail_message());
    char *text = nb_alloc(docs.bytes + 1, 1), row[512];
    memcpy(text, docs.data, docs.bytes);
    text[docs.bytes] = 0;
    for (int64_t i = 0; i < n; i++) {
        ck_assert_str_eq(name[i], meanings[i].recipe);
        snprintf(row, sizeof row, "| `%s` | %s |", name[i], why[i]);
        ck_assert_msg(strstr(text, row) != NULL, "docs/recipes.md lacks the row\n%s", row);
    }
    free(text);
    nb_unmap(&docs);
}
END_TEST

START_TEST(recipe_survives_its_text)
{
    fq_recipe r, again;
    ck_assert(fq_recipe_open(&r, meanings[_i].recipe) == NB_OK);
    char *text = fq_recipe_text(&r);
    ck_assert_msg(fq_recipe_parse(&again, r.name, text, strlen(text)) == NB_OK, "%s", nb_fail_message());
    ck_assert_int_eq(r.n, again.n);
    for (int64_t i = 0; i < r.n; i++)
        ck_assert(!strcmp(r.rule[i].pattern, again.rule[i].pattern) &&
                  fq_spec_equal(&r.rule[i].spec, &again.rule[i].spec));
    free(text);
    fq_recipe_free(&r);
    fq_recipe_free(&again);
}
END_TEST

static const struct {
    const char *pattern, *name;
    bool matches;
} patterns[] = {
    {"*", "", true},
    {"*", "layers.0.attn.k", true},
    {"", "", true},
    {"", "a", false},
    {"layers.*.weight", "layers.0.attn.wq.weight", true},
    {"layers.*.weight", "head.weight", false},
    {"layers.*.weight", "layers.0.attn.wq.weight2", false},
    {"layers.?.attn.k", "layers.7.attn.k", true},
    {"layers.?.attn.k", "layers.11.attn.k", false},
    {"*.attn.[kv]", "layers.0.attn.v", true},
    {"*.attn.[kv]", "layers.0.attn.q", false},
    {"layers.[0-3].*", "layers.2.mlp.act", true},
    {"layers.[0-3].*", "layers.4.mlp.act", false},
    {"layers.1[0-9].*", "layers.12.mlp.act", true},
    {"a[", "a[", true},
    {"a[b", "a[b", true},
    {"*a*b*c", "xxaxxbxxbxxc", true},
    {"*a*b*c", "xxaxxcxxbxx", false},
    {"**", "x", true},
    {"*.input", "layers.0.mlp.down.input", true},
    {"*.input", "input", false},
};

START_TEST(pattern_matches_as_documented)
{
    fq_spec spec;
    ck_assert(fq_spec_parse(&spec, "int5") == NB_OK);
    fq_rule rule = {.spec = spec};
    snprintf(rule.pattern, sizeof rule.pattern, "%s", patterns[_i].pattern);
    const fq_recipe r = {.name = "test", .rule = &rule, .n = 1};
    ck_assert_msg((fq_recipe_find(&r, patterns[_i].name, NULL).grid.bits == 5) == patterns[_i].matches, "%s %s",
                  patterns[_i].pattern, patterns[_i].name);
}
END_TEST

START_TEST(later_rule_wins_and_an_alias_is_heard)
{
    static const char text[] =
        "# mixed\nbase w4a8kv8\r\n\n  layers.0.*.weight\tint8 narrow row f32 learned # the first\n"
        "head.weight int6 row f32 learned";
    fq_recipe r;
    ck_assert_msg(fq_recipe_parse(&r, "mixed", text, sizeof text - 1) == NB_OK, "%s", nb_fail_message());
    check_site(&r, "layers.0.attn.wq.weight", W8);
    check_site(&r, "layers.1.attn.wq.weight", W4);
    check_site(&r, "embed.weight", W8);
    ck_assert_int_eq(fq_recipe_find(&r, "embed.weight", "head.weight").grid.bits, 6);
    ck_assert_int_eq(fq_recipe_find(&r, "norm.weight", NULL).grid.bits, 0);
    ck_assert_int_eq(fq_recipe_find(NULL, "embed.weight", NULL).grid.bits, 0);
    fq_recipe_free(&r);
}
END_TEST

static const struct {
    const char *text, *message;
} bad_recipes[] = {
    {"* int4\n\n* int99\n", "recipe bad: line 3: 'int99'"},
    {"# a\nbase nothing\n", "line 2: no recipe is named 'nothing'"},
    {"* int4\nbase w4a8kv8\n", "line 2: base w4a8kv8 must stand first"},
    {"layers.*.weight", "line 1: wanted float"},
    {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa int4",
     "line 1: the pattern has 69 characters"},
};

START_TEST(bad_recipe_names_its_line)
{
    fq_recipe r;
    ck_assert(fq_recipe_parse(&r, "bad", bad_recipes[_i].text, strlen(bad_recipes[_i].text)) != NB_OK);
    ck_assert_msg(strstr(nb_fail_message(), bad_recipes[_i].message) != NULL, "%s", nb_fail_message());
    ck_assert(r.rule == NULL && r.n == 0);
}
END_TEST

START_TEST(a_recipe_opens_by_name_and_by_path)
{
    static const char text[] = "* int4 row f32 learned\n", binary[] = "* int4\0int8\n";
    fq_recipe r;
    scratch_begin();
    ck_assert(fq_recipe_open(&r, "no such recipe") == NB_USAGE);
    ck_assert(strstr(nb_fail_message(), "no recipe is named 'no such recipe'") != NULL);
    ck_assert(fq_recipe_open(&r, scratch_write("mine.txt", text, sizeof text - 1)) == NB_OK);
    ck_assert_str_eq(r.name, "mine.txt");
    check_site(&r, "embed.weight", W4);
    fq_recipe_free(&r);
    ck_assert(fq_recipe_open(&r, scratch_write("binary", binary, sizeof binary - 1)) == NB_FORMAT);
    ck_assert(fq_recipe_open(&r, scratch_write("empty", "", 0)) == NB_OK && r.n == 0);
    char *many = nb_alloc(5000, 20);
    size_t used = 0;
    for (int i = 0; i < 5000; i++)
        used += (size_t)sprintf(many + used, "* int4\n");
    ck_assert(fq_recipe_parse(&r, "many", many, used) == NB_USAGE && strstr(nb_fail_message(), "line 4097") != NULL);
    memset(many, 'a', 1000);
    ck_assert(fq_recipe_parse(&r, "long", many, 1000) == NB_FORMAT);
    free(many);
    scratch_end();
}
END_TEST

START_TEST(running_out_of_memory_is_a_message)
{
    int64_t reached = 0;
    for (int64_t n = 1; n < 60; n++) {
        world m = {0};
        allocations_left = -1;
        m.sites.params = &m.params;
        ag_param *w = ag_param_new(&m.params, "w", AG_WEIGHT, 2, (int64_t[]){3, 8});
        allocations_left = n;
        status s = fq_recipe_open(&m.recipe, "w4a8kv8");
        fq_site *a = s == NB_OK ? fq_site_new(&m.sites, &m.recipe, "layers.0.mlp.up.weight", NULL, w, 3, 8, 0) : NULL;
        fq_spec k;
        ck_assert(fq_spec_parse(&k, "int8 head static:kl") == NB_OK);
        if (a)
            m.recipe.rule[0].spec = k;
        if (a)
            memcpy(m.recipe.rule[0].pattern, "x*", 3);
        fq_site *b = a ? fq_site_new(&m.sites, &m.recipe, "x.input", NULL, NULL, 0, 8, 4) : NULL;
        char *text = b ? fq_recipe_text(&m.recipe) : NULL;
        ck_assert_msg(text || allocations_left == 0, "%s", nb_fail_message());
        if (!text)
            ck_assert(strstr(nb_fail_message(), "out of memory") != NULL);
        reached += text != NULL;
        allocations_left = -1;
        free(text);
        world_free(&m);
    }
    ck_assert_int_gt(reached, 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("recipes");
    TCase *tc = tcase_create("specs and recipes");
    LOOP(tc, spec_prints_what_it_says, specs);
    LOOP(tc, bad_spec_is_refused_with_its_reason, bad_specs);
    tcase_add_test(tc, any_spec_survives_its_text);
    LOOP(tc, named_recipe_means_what_it_says, meanings);
    LOOP(tc, recipe_survives_its_text, meanings);
    tcase_add_test(tc, every_recipe_that_ships_is_in_that_table_and_in_the_docs);
    tcase_add_test(tc, recipes_of_pictures_give_results_static_ranges);
    LOOP(tc, pattern_matches_as_documented, patterns);
    tcase_add_test(tc, later_rule_wins_and_an_alias_is_heard);
    LOOP(tc, bad_recipe_names_its_line, bad_recipes);
    tcase_add_test(tc, a_recipe_opens_by_name_and_by_path);
    tcase_add_test(tc, running_out_of_memory_is_a_message);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
