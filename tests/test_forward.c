/* test_forward.c - the model on the tape: padding is seen by nobody, recomputed blocks change no bit, whatever is frozen. */
#include "models_made.h"
#include "suite.h"

enum { B = 3, T = 11 };
static const int32_t lengths[B] = {11, 4, 7};

/* Ids of real tokens, and `pad` behind them. */
static void draw(int32_t ids[B * T], int32_t target[B * T], int64_t vocab, int32_t pad)
{
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < T; i++)
            ids[b * T + i] = i < lengths[b] ? (int32_t)(nb_random(3, (uint64_t)b, (uint64_t)i) % (uint64_t)vocab) : pad;
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < T; i++)
            target[b * T + i] = i + 1 < lengths[b] ? ids[b * T + i + 1] : -1;
}

typedef struct {
    real loss;
    real *g[256];    /* of the parameters, NULL where there is none */
    int64_t n, taps; /* calls of the tap, with */
    double seen;     /* the sum of what it saw */
} result;

static void watch(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    result *r = ctx;
    const real *x = ag_value(in);
    (void)site;
    (void)out;
    for (int64_t i = 0; x && i < ag_count(in); i++)
        r->seen += (double)x[i];
    r->taps++;
}

/* own: gradients in the tape's memory */
static void step(result *r, md_model *m, int32_t pad, bool recompute, bool own)
{
    int32_t ids[B * T], target[B * T];
    ag_tape t = {.tap = {watch, r}, .step_gradients = own};
    *r = (result){.n = m->params.n};
    draw(ids, target, m->config.vocab, pad);
    ag_params_clear_grad(&m->params);
    md_output out =
        md_forward(&t, m, &(md_input){.B = B, .T = T, .ids = ids, .lengths = lengths, .recompute = recompute});
    ag_tensor *loss = ag_head(&t, out.x, out.w, out.b, target, &(ag_head_loss){.ce = 1}, NULL);
    ck_assert_msg(loss != NULL && r->n <= 256, "%s", nb_fail_message());
    r->loss = *ag_value(loss);
    ck_assert_msg(ag_backward(&t, loss) == NB_OK, "%s", nb_fail_message());
    for (int64_t i = 0; i < r->n; i++) {
        const ag_param *p = m->params.p[i];
        if (!p->has_grad)
            continue;
        r->g[i] = malloc((size_t)p->count * sizeof(real));
        memcpy(r->g[i], p->g, (size_t)p->count * sizeof(real));
    }
    ag_tape_free(&t);
}

static void same(const result *a, const result *b, const md_model *m, const char *recipe)
{
    ck_assert_msg(a->loss == b->loss, "%s: loss %.9g, %.9g", recipe, (double)a->loss, (double)b->loss);
    for (int64_t i = 0; i < a->n; i++) {
        const ag_param *p = m->params.p[i];
        ck_assert_msg(!a->g[i] == !b->g[i] && (!a->g[i] || !memcmp(a->g[i], b->g[i], (size_t)p->count * sizeof(real))),
                      "%s: the gradient of %s differs", recipe, p->name);
    }
}

static void result_free(result *r)
{
    for (int64_t i = 0; i < r->n; i++)
        free(r->g[i]);
}

/* Named, or the text of a recipe file. */
static const char *const recipes[] = {
    "float",
    "w4a8kv8",
    "w4a8kv4",
    "w2a16",
    "llmqat-4-8-4",
    "q4_0",
    "base w8a8kv8\n*.input int8 tensor f32 learned:lsq\n*.residual int8 token\nlayers.*.mlp.act int8 token\n",
    "base w8a8kv8\n*.input int8 tensor f32 static:average\nlayers.*.attn.v int8 asym head f16 static:kl\n"};
enum { N_RECIPES = sizeof recipes / sizeof *recipes };

/* Number i of 2 N_RECIPES: every recipe on some LLaMA model, then on some GPT-2. */
static void open_model(md_model *m, int i)
{
    const int recipe = i % N_RECIPES;
    const md_config *shape = &made_shapes[i < N_RECIPES ? i % N_MADE_LLAMAS : N_MADE_LLAMAS + i % (N_MADE_SHAPES - N_MADE_LLAMAS)];
    int32_t ids[B * T], target[B * T];
    ag_tape t = {.no_grad = true, .quantize_off = true, .tap = {fq_observe, &m->sites}};
    made_model(m, shape, recipes[recipe], (uint64_t)recipe + 70);
    draw(ids, target, m->config.vocab, 1);
    md_forward(&t, m, &(md_input){.B = B, .T = T, .ids = ids});
    ck_assert(ag_status(&t) == NB_OK && fq_observe_end(&m->sites) == NB_OK);
    ag_tape_free(&t);
}

START_TEST(padding_changes_no_bit)
{
    md_model m;
    result a, b;
    open_model(&m, _i);
    step(&a, &m, 0, false, false);
    step(&b, &m, 5, false, true);
    same(&a, &b, &m, recipes[_i % N_RECIPES]);
    result_free(&a);
    result_free(&b);
    md_free(&m);
}
END_TEST

START_TEST(recomputed_blocks_change_no_bit)
{
    const int recipe = _i / 2 % N_RECIPES;
    md_model m;
    result a, b;
    open_model(&m, _i / 2);
    m.embed->frozen = _i % 2 != 0;
    step(&a, &m, 0, false, true);
    step(&b, &m, 0, true, _i / 4 % 2 == 0);
    ck_assert(m.params.p[0] == m.embed && !a.g[0] == m.embed->frozen);
    same(&a, &b, &m, recipes[recipe]);
    ck_assert_msg(a.taps == b.taps && a.seen == b.seen, "%s: %d taps, %d with recompute", recipes[recipe], (int)a.taps,
                  (int)b.taps);
    result_free(&a);
    result_free(&b);
    md_free(&m);
}
END_TEST

/* Each part on a tape of its own, on a copy of what the part before it made. */
static real *part(ag_tape *t, ag_tensor *y, const char *what)
{
    ck_assert_msg(y && ag_status(t) == NB_OK, "%s: %s", what, nb_fail_message());
    real *x = malloc((size_t)ag_count(y) * sizeof *x);
    memcpy(x, ag_value(y), (size_t)ag_count(y) * sizeof *x);
    return x;
}

static void equal(const real *x, const ag_tensor *y, const char *what)
{
    ck_assert_msg(!memcmp(x, ag_value(y), (size_t)ag_count(y) * sizeof *x), "%s differs", what);
}

START_TEST(parts_one_by_one_are_the_whole)
{
    md_model m;
    int32_t ids[B * T], target[B * T];
    ag_tensor *hidden[4];
    ag_tape whole = {.no_grad = true}, t = {.no_grad = true};
    open_model(&m, _i);
    draw(ids, target, m.config.vocab, 1);
    const md_input in = {.B = B, .T = T, .ids = ids, .lengths = lengths, .hidden = hidden};
    const int64_t dim[3] = {B, T, m.config.dim};
    const md_output out = md_forward(&whole, &m, &in);
    real *x = part(&t, md_embed(&t, &m, &in), recipes[_i % N_RECIPES]), *last = x;
    for (int64_t i = 0; i < m.config.layers; i++, last = x) {
        ag_reset(&t);
        x = part(&t, md_block_forward(&t, &m, i, ag_leaf(&t, last, NULL, 3, dim), lengths), recipes[_i % N_RECIPES]);
        equal(x, hidden[i], recipes[_i % N_RECIPES]);
        free(last);
    }
    ag_reset(&t);
    const md_output end = md_finish(&t, &m, ag_leaf(&t, x, NULL, 3, dim));
    real *y = part(&t, end.x, recipes[_i % N_RECIPES]);
    equal(y, out.x, recipes[_i % N_RECIPES]);
    ck_assert(end.w != NULL && ag_cols(end.w) == m.config.dim && ag_rows(end.w) == m.config.vocab);
    free(x);
    free(y);
    ag_tape_free(&t);
    ag_tape_free(&whole);
    md_free(&m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("forward");
    TCase *c = tcase_create("forward");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, padding_changes_no_bit, 0, 2 * N_RECIPES);
    tcase_add_loop_test(c, recomputed_blocks_change_no_bit, 0, 4 * N_RECIPES);
    tcase_add_loop_test(c, parts_one_by_one_are_the_whole, 0, 2 * N_RECIPES);
    suite_add_tcase(s, c);
    return run_suite(s);
}
