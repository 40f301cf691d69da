/* export_gguf.c - GGUF files for llama.cpp (architectures llama, qwen2, gpt2). `gguf` writes the codes that the model has, tensor by tensor:
 *   operands -8..7 without zero point       Q4_0   value = d * (q - 8)
 *   operands -16..15 without zero point     Q5_0   value = d * (q - 16)
 *   operands -128..127 without zero point   Q8_0   value = d * q
 *   at most 4 bits with zero points         Q4_1   value = d * q + m, m = (lo - zero) * scale, where every m is exact in fp16; else Q8_0
 *   two-level scales, rows of whole 256     Q4_K   operands -8..7, SUPER6 groups of 32;  Q6_K  -32..31, SUPER8 groups of 16
 *   -1..1, a scale for each 256             TQ2_0
 *   levels of the table IQ4_NL              IQ4_NL value = d * level[q]
 *   floats                                  F32; F16 or BF16 where the spec says so
 * d is the scale, which must be exact in fp16 and constant over blocks of 32 along the row. K (the row) is whole blocks: hidden is padded with zeros,
 * which changes nothing; dim cannot be. GPT-2's q, k and v are one array and have one type, the widest where some are Q4_0, some Q5_0 or Q8_0. `gguf-f32`, `gguf-f16` and `gguf-bf16` write values; vectors are F32 in all. Rotated rows are put into interleaved order (qwen2: half).
 */
#include "models/export.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FITS "recipes that fit: q4_0, iq4_nl, q8_0, q4_k, q6_k, tq2_0, w4a16g32"
enum { BLOCK = 32 };

static bool is_half(real x)
{
    return nb_half_to(nb_half_from(x)) == x;
}

static real minimum_of(const kn_codes *c, int64_t i)
{
    return (real)(c->grid.lo - c->zero[i]) * c->scale[i];
}

static status check_scales(const kn_codes *c, const char *name)
{
    static const char *const stored[] = {"fp32", "fp16", "bf16", "power-of-two", "two-level", "two-level"};
    if (c->grid.bits > 8)
        return nb_fail(NB_UNSUPPORTED, "%s has %d bits, blocks of GGUF hold 8; %s; floats: --to gguf-f16", name,
                       c->grid.bits, FITS);
    if (!md_runs_share_scale(&c->grid, c->cols, BLOCK))
        return nb_fail(NB_UNSUPPORTED, "%s has groups of %d, blocks of GGUF want one scale for each %d; %s", name,
                       c->grid.group, BLOCK, FITS);
    for (int64_t i = 0; i < c->n_scales; i++)
        if (!is_half(c->scale[i]))
            return nb_fail(NB_UNSUPPORTED, "%s: its %s scale %.9g is not exact in GGUF's fp16; %s", name,
                           stored[c->grid.scale], (double)c->scale[i], FITS);
    return NB_OK;
}

/* The block of 256 that holds these codes exactly; F32: none does. */
static fm_dtype super_type_of(const kn_codes *c)
{
    const kn_grid *g = &c->grid;
    if (c->cols % KN_SUPER || c->zero || g->bits > 8)
        return FM_F32;
    if (g->scale == KN_SCALE_SUPER6 && g->group == 32 && md_operands_fit(g, -8, 7))
        return FM_Q4_K;
    if (g->scale == KN_SCALE_SUPER8 && g->group == 16 && md_operands_fit(g, -32, 31))
        return FM_Q6_K;
    if (!kn_has_super(g) && md_operands_fit(g, -1, 1) && md_runs_share_scale(g, c->cols, KN_SUPER))
        return FM_TQ2_0;
    return FM_F32;
}

/* The block type that holds these codes exactly. */
static status type_of_codes(fm_dtype *t, const kn_codes *c, const char *name)
{
    *t = super_type_of(c);
    if (*t == FM_Q4_K || *t == FM_Q6_K)
        return NB_OK;
    if (kn_has_table(&c->grid) && c->grid.table != KN_TABLE_IQ4_NL)
        return nb_fail(NB_UNSUPPORTED, "%s: GGUF has no levels of %s; %s", name, kn_table_text((kn_table_name)c->grid.table), FITS);
    TRY(check_scales(c, name));
    if (*t == FM_TQ2_0)
        return NB_OK;
    if (kn_has_table(&c->grid)) {
        *t = FM_IQ4_NL;
        return NB_OK;
    }
    bool is_q4_1 = c->zero && c->grid.hi - c->grid.lo <= 15;
    for (int64_t i = 0; i < c->n_scales && is_q4_1; i++)
        is_q4_1 = is_half(minimum_of(c, i));
    if (is_q4_1)
        *t = FM_Q4_1;
    else if (!c->zero && md_operands_fit(&c->grid, -8, 7))
        *t = FM_Q4_0;
    else if (!c->zero && md_operands_fit(&c->grid, -16, 15))
        *t = FM_Q5_0;
    else if (md_operands_fit(&c->grid, -128, 127))
        *t = FM_Q8_0;
    else
        return nb_fail(NB_UNSUPPORTED, "%s: %d bits with zero points reach beyond Q8_0; %s", name, c->grid.bits, FITS);
    return NB_OK;
}

/* ---- the plan of a file ------------------------------------------------------------------- */

typedef struct {
    md_exporting e;
    fm_dtype *type;  /* [n] */
    fm_array *array; /* [n + 1] */
    int64_t n_arrays;
    real *factors;                    /* [head_size / 2]: rope_freqs.weight, or NULL */
    int64_t matrices[FM_DTYPE_COUNT]; /* by type, for the report */
} plan;

static void plan_free(plan *p)
{
    md_exporting_free(&p->e);
    free(p->type);
    free(p->array);
    free(p->factors);
}

/* floats: every matrix gets that type; else its codes decide. */
static status choose_types(plan *p, bool is_float, fm_dtype floats)
{
    for (int64_t i = 0; i < p->e.n; i++) {
        char name[MD_NAME];
        md_values v = {0};
        p->type[i] = FM_F32;
        if (p->e.own[i].kind != MD_MATRIX)
            continue;
        (void)md_tensor_name(name, &p->e.own[i], MD_NIBBLE);
        if (is_float)
            p->type[i] = floats;
        else
            TRY(md_values_of(&v, p->e.m, &p->e.own[i]));
        if (v.codes)
            TRY(type_of_codes(&p->type[i], v.codes, name));
        else if (!is_float)
            p->type[i] = md_stored_as(p->e.m, name);
    }
    return NB_OK;
}

/* Blocks of 32 without minima by what they hold: each the codes of those before it, as they are. 0: another type. */
static int width_of(fm_dtype t)
{
    return t == FM_Q4_0 ? 4 : t == FM_Q5_0 ? 5 : t == FM_Q8_0 ? 8 : 0;
}

/* Tensors of one array get one type, the widest. */
static status agree(plan *p)
{
    for (int64_t i = 0, end; i < p->e.n; i = end) {
        end = md_exporting_next(&p->e, i);
        for (int64_t k = i + 1; k < end; k++) {
            const fm_dtype a = p->type[i], b = p->type[k];
            if (a != b && (!width_of(a) || !width_of(b)))
                return nb_fail(NB_UNSUPPORTED, "%s: is one array in GGUF, of one type, but %s is %s and %s is %s; give both the same rule",
                               p->e.name[i], p->e.own[i].name[MD_NIBBLE], fm_dtype_name(a), p->e.own[k].name[MD_NIBBLE], fm_dtype_name(b));
            p->type[i] = width_of(b) > width_of(a) ? b : a;
        }
        for (int64_t k = i; k < end; k++)
            p->type[k] = p->type[i];
        if (p->e.own[i].kind == MD_MATRIX)
            p->matrices[p->type[i]]++;
    }
    return NB_OK;
}

/* Rows of coded matrices must be whole blocks; the file's hidden already is where that matters. */
static status check_rows(const plan *p)
{
    for (int64_t i = 0; i < p->e.n; i++)
        if (p->e.out[i].cols % fm_dtype_block(p->type[i]))
            return nb_fail(NB_UNSUPPORTED, "%s: rows of %lld are not whole blocks of %lld; export floats: --to gguf-f16",
                           p->e.name[i], (long long)p->e.out[i].cols, (long long)fm_dtype_block(p->type[i]));
    return NB_OK;
}

static status add_rope_factors(plan *p)
{
    const md_config *c = &p->e.shape;
    if (c->rope_factor == 0 || md_is_gpt2(c))
        return NB_OK;
    p->factors = nb_alloc((size_t)(c->head_size / 2), sizeof *p->factors);
    if (!p->factors)
        return NB_NOMEM;
    md_rope_factors(p->factors, c);
    fm_array *a = &p->array[p->n_arrays++];
    *a = (fm_array){.name = "rope_freqs.weight", .dtype = FM_F32, .n_dim = 1, .dim = {c->head_size / 2}};
    return fm_array_measure(a);
}

static status list_arrays(plan *p)
{
    TRY(add_rope_factors(p));
    for (int64_t i = 0; i < p->e.n; i = md_exporting_next(&p->e, i)) {
        fm_array *a = &p->array[p->n_arrays++];
        *a = (fm_array){.name = p->e.name[i], .dtype = p->type[i]};
        a->n_dim = md_array_dim(a->dim, &p->e.out[i], MD_GGUF);
        TRY(fm_array_measure(a));
    }
    return NB_OK;
}

static bool has_coded_rows_of_hidden(const md_model *m)
{
    for (int64_t i = 0; i < m->sites.n; i++) {
        const fq_site *s = m->sites.s[i];
        if (s->is_weight && s->spec.grid.bits && s->rows > 1 && strstr(s->name, ".mlp.down."))
            return true;
    }
    return false;
}

static status fill_plan(plan *p, bool is_float, fm_dtype floats)
{
    p->type = nb_alloc((size_t)p->e.n, sizeof *p->type);
    p->array = nb_alloc((size_t)p->e.n + 1, sizeof *p->array);
    if (!p->type || !p->array)
        return NB_NOMEM;
    TRY(choose_types(p, is_float, floats));
    TRY(agree(p));
    TRY(check_rows(p));
    return list_arrays(p);
}

static status plan_new(plan *p, const md_model *m, bool is_float, fm_dtype floats)
{
    const bool is_qwen2 = !strcmp(md_gguf_architecture(m), "qwen2");
    int64_t hidden = m->config.hidden;
    if (!is_float && has_coded_rows_of_hidden(m))
        hidden = (hidden + BLOCK - 1) / BLOCK * BLOCK;
    *p = (plan){0};
    TRY(md_exporting_new(&p->e, m, MD_GGUF, is_qwen2 ? KN_ROPE_HALF : KN_ROPE_INTERLEAVED, hidden));
    status s = fill_plan(p, is_float, floats);
    if (s != NB_OK)
        plan_free(p);
    return s;
}

/* ---- writing ------------------------------------------------------------------------------ */

/* Place of the level nearest 0 (it is 1): the table has no 0, and what multiplies a padded column is 0. */
enum { IQ4_NL_LEAST = 8 };

/* Blocks of one row of the file; from < 0: padding. */
typedef struct {
    int8_t *codes, *parts;
    uint16_t *scales, *mins;
    uint8_t *packed;
} row_buffers;

static bool is_k_type(fm_dtype t)
{
    return t == FM_Q4_K || t == FM_Q6_K;
}

static void fill_row(row_buffers *b, const kn_codes *c, fm_dtype t, int64_t cols, int64_t from)
{
    const int64_t block = fm_dtype_block(t), n_blocks = cols / block;
    memset(b->codes, 0, (size_t)cols);
    memset(b->parts, 0, (size_t)cols);
    memset(b->scales, 0, (size_t)n_blocks * sizeof *b->scales);
    memset(b->mins, 0, (size_t)n_blocks * sizeof *b->mins);
    if (from < 0)
        return;
    if (t != FM_Q4_1)
        md_operands(b->codes, cols, c, from);
    for (int64_t j = c->cols; t == FM_IQ4_NL && j < cols; j++)
        b->codes[j] = IQ4_NL_LEAST;
    if (is_k_type(t)) {
        kn_split_scales(b->scales, b->parts, &c->grid, c->scale + from * c->spans, 1, c->spans);
        return;
    }
    for (int64_t k = 0; k < n_blocks && k * block < c->cols; k++) {
        const int64_t at = kn_scale_index(c, from, k * block);
        b->scales[k] = nb_half_from(c->scale[at]);
        if (t != FM_Q4_1)
            continue;
        b->mins[k] = nb_half_from(minimum_of(c, at));
        for (int64_t j = k * block; j < (k + 1) * block; j++) /* the code of 0 is the zero point */
            b->codes[j] = (int8_t)((j < c->cols ? c->q[from * c->ld + j] : c->zero[at]) - c->grid.lo);
    }
}

static status put_rows(fm_sink *sink, row_buffers *b, const plan *p, int64_t i, const kn_codes *c)
{
    const fm_dtype t = p->type[i];
    const int64_t cols = p->e.out[i].cols, n_blocks = cols / fm_dtype_block(t);
    for (int64_t r = 0; r < p->e.out[i].rows; r++) {
        fill_row(b, c, t, cols, md_source_row(&p->e, i, r));
        TRY(fm_blocks_pack(b->packed, t, b->codes, b->scales, b->mins, b->parts, n_blocks));
        TRY(fm_put(sink, b->packed, (size_t)n_blocks * fm_dtype_bytes(t)));
    }
    return NB_OK;
}

/* Of the array that begins with tensor i. */
static status put_codes(fm_sink *sink, const plan *p, int64_t i)
{
    const int64_t end = md_exporting_next(&p->e, i);
    const size_t cols = (size_t)p->e.out[i].cols, n_blocks = cols / (size_t)fm_dtype_block(p->type[i]);
    row_buffers b = {.codes = nb_alloc(cols, 1),
                     .parts = nb_alloc(cols, 1),
                     .scales = nb_alloc(n_blocks, sizeof *b.scales),
                     .mins = nb_alloc(n_blocks, sizeof *b.mins),
                     .packed = nb_alloc(n_blocks, fm_dtype_bytes(p->type[i]))};
    status s = b.codes && b.parts && b.scales && b.mins && b.packed ? NB_OK : NB_NOMEM;
    for (; i < end && s == NB_OK; i++) {
        md_values v;
        s = md_values_of(&v, p->e.m, &p->e.own[i]);
        if (s == NB_OK)
            s = put_rows(sink, &b, p, i, v.codes);
    }
    free(b.codes);
    free(b.parts);
    free(b.scales);
    free(b.mins);
    free(b.packed);
    return s;
}

static status put_array(void *ctx, fm_sink *sink, const fm_array *a)
{
    plan *p = ctx;
    int64_t i = md_exporting_find(&p->e, a->name);
    if (i < 0)
        return fm_put(sink, p->factors, (size_t)(p->e.shape.head_size / 2) * sizeof *p->factors);
    return fm_dtype_block(p->type[i]) > 1 ? put_codes(sink, p, i) : md_put_floats(sink, &p->e, i, p->type[i]);
}

/* general.file_type (llama.h): of the matrices' commonest type. */
static int file_type(const plan *p)
{
    static const struct {
        fm_dtype type;
        int number;
    } list[] = {{FM_F32, 0},   {FM_Q4_0, 2},  {FM_Q4_1, 3},  {FM_Q5_0, 8},    {FM_Q8_0, 7},  {FM_F16, 1},
                {FM_BF16, 32}, {FM_Q4_K, 14}, {FM_Q6_K, 18}, {FM_IQ4_NL, 25}, {FM_TQ2_0, 37}};
    int best = 0;
    for (size_t i = 1; i < sizeof list / sizeof *list; i++)
        if (p->matrices[list[i].type] > p->matrices[list[best].type])
            best = (int)i;
    return list[best].number;
}

static status write_plan(plan *p, const char *path)
{
    fm_meta meta = {0};
    bool coded = false;
    for (int t = 0; t < FM_DTYPE_COUNT; t++)
        coded = coded || (p->matrices[t] && fm_dtype_block((fm_dtype)t) > 1);
    status s = md_gguf_keys(&meta, &p->e, file_type(p), coded);
    if (s == NB_OK)
        s = fm_gguf_write(path, p->array, p->n_arrays, &meta, (fm_source){put_array, p});
    fm_meta_free(&meta);
    return s;
}

static void describe(const plan *p, char *report, size_t bytes)
{
    const md_model *m = p->e.m;
    char types[128] = "";
    for (int t = 0; t < FM_DTYPE_COUNT; t++)
        if (p->matrices[t])
            (void)snprintf(types + strlen(types), sizeof types - strlen(types), "%s%lld %s", *types ? ", " : "",
                           (long long)p->matrices[t], fm_dtype_name((fm_dtype)t));
    md_say(report, bytes, "matrices, all exact: %s", types);
    if (p->e.shape.hidden != m->config.hidden)
        md_say(report, bytes, "hidden is padded with zeros from %lld to %lld, which changes nothing",
               (long long)m->config.hidden, (long long)p->e.shape.hidden);
    if (p->matrices[FM_Q4_K] + p->matrices[FM_Q6_K] + p->matrices[FM_TQ2_0])
        md_say_inputs(report, bytes, m, "llama.cpp quantizes inputs of coded matrices to 8 bits in groups of 256 with fp32 scales");
    else if (p->matrices[FM_Q4_0] + p->matrices[FM_Q4_1] + p->matrices[FM_Q5_0] + p->matrices[FM_Q8_0] + p->matrices[FM_IQ4_NL])
        md_say_inputs(
            report, bytes, m,
            "llama.cpp quantizes inputs of coded matrices to 8 bits in groups of 32 with fp16 scales (rule q8_0)");
    else
        md_say_inputs(report, bytes, m, "llama.cpp computes with float inputs");
    if (m->tokenizer.kind == FM_TOKENIZER_NONE)
        md_say(report, bytes, "no tokenizer: clients that read text refuse the file");
    else if (m->tokenizer.remove_extra_spaces)
        md_say(report, bytes, "the tokenizer removes extra spaces from texts, llama.cpp leaves them in");
}

/* path NULL: nothing is written. */
static status run(const md_model *m, const md_target *t, const char *path, char *report, size_t bytes)
{
    plan p;
    TRY(plan_new(&p, m, !t->has_codes, t->floats));
    status s = path ? write_plan(&p, path) : NB_OK;
    if (s == NB_OK && t->has_codes)
        describe(&p, report, bytes);
    else if (s == NB_OK) {
        md_say_floats(report, bytes, t->floats, path ? p.e.rounded : -1);
        md_say_inputs(report, bytes, m, "llama.cpp computes with float inputs");
    }
    plan_free(&p);
    return s;
}

status md_check_gguf(const md_model *m, const md_target *t, char *report, size_t bytes)
{
    return run(m, t, NULL, report, bytes);
}

status md_write_gguf(md_model *m, const md_target *t, const char *path, char *report, size_t bytes)
{
    return run(m, t, path, report, bytes);
}
