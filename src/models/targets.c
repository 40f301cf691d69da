/* targets.c - what can be exported where: the targets, and the table recipe x target. Each check() decides for a model tensor by
 * tensor; the table says the same for the recipes that ship, and the tests compare the two.
 */
#include "models/export.h"
#include <string.h>

/* nibble's own file of floats: every model has them. */
status md_check_h5(const md_model *m, const md_target *t, char *report, size_t bytes)
{
    (void)m;
    md_say_floats(report, bytes, t->floats, -1);
    return NB_OK;
}

status md_write_h5(md_model *m, const md_target *t, const char *path, char *report, size_t bytes)
{
    int64_t rounded;
    TRY(md_save_values(m, path, t->floats, &rounded));
    md_say_floats(report, bytes, t->floats, rounded);
    return NB_OK;
}

static const md_target targets[] = {
    {"llama2c",
     "llama2.c version 2: codes as int8 with one fp32 scale per group; exact for codes of at most 8 bits without zero "
     "points",
     true, false, FM_F32, md_check_llama2c, md_write_llama2c},
    {"llama2c-f32", "llama2.c version 1: decoded floats, exact", false, false, FM_F32, md_check_llama2c_floats,
     md_write_llama2c_floats},
    {"gguf",
     "GGUF with Q4_0, Q4_1, Q5_0, Q8_0, F16, BF16 and F32 tensors, each as its spec says; exact where scales are fp16 and groups whole "
     "blocks of 32",
     true, false, FM_F32, md_check_gguf, md_write_gguf},
    {"gguf-f32", "GGUF with decoded floats, exact", false, false, FM_F32, md_check_gguf, md_write_gguf},
    {"gguf-f16", "GGUF with decoded floats rounded to F16", false, false, FM_F16, md_check_gguf, md_write_gguf},
    {"gguf-bf16", "GGUF with decoded floats rounded to BF16", false, false, FM_BF16, md_check_gguf, md_write_gguf},
    {"safetensors", "a Hugging Face folder with decoded floats, exact, and the tokenizer", false, true, FM_F32,
     md_check_safetensors, md_write_safetensors},
    {"safetensors-f16", "the same, floats rounded to F16", false, true, FM_F16, md_check_safetensors,
     md_write_safetensors},
    {"safetensors-bf16", "the same, floats rounded to BF16", false, true, FM_BF16, md_check_safetensors,
     md_write_safetensors},
    {"h5", "nibble's own file with decoded floats, exact", false, false, FM_F32, md_check_h5, md_write_h5},
    {"h5-f16", "nibble's own file, floats rounded to F16", false, false, FM_F16, md_check_h5, md_write_h5},
    {"h5-bf16", "nibble's own file, floats rounded to BF16", false, false, FM_BF16, md_check_h5, md_write_h5},
};
enum { N_TARGETS = sizeof targets / sizeof *targets };

/* In the order of the targets; where values are written instead of codes, every recipe fits. */
#define FITS(llama2c, gguf)                                                                                            \
    {                                                                                                                  \
        llama2c, MD_EXACT, gguf, MD_EXACT, MD_ROUNDED, MD_ROUNDED, MD_EXACT, MD_ROUNDED, MD_ROUNDED, MD_EXACT,         \
            MD_ROUNDED, MD_ROUNDED                                                                                     \
    }
static const md_recipe_fit table[] = {
    {"float", FITS(MD_NO, MD_EXACT)},          {"f16", FITS(MD_NO, MD_EXACT)},
    {"w16a16", FITS(MD_NO, MD_NO)},            {"w8a8kv16", FITS(MD_PADDED, MD_NO)},
    {"w8a8kv8", FITS(MD_PADDED, MD_NO)},       {"w4a8kv16", FITS(MD_PADDED, MD_NO)},
    {"w4a8kv8", FITS(MD_PADDED, MD_NO)},       {"w4a8kv4", FITS(MD_PADDED, MD_NO)},
    {"w4a4kv4", FITS(MD_PADDED, MD_NO)},
    {"w4all", FITS(MD_PADDED, MD_NO)},         {"w8a16g128", FITS(MD_PADDED, MD_PADDED)},
    {"w4a16g128", FITS(MD_PADDED, MD_PADDED)}, {"w4a16g32", FITS(MD_PADDED, MD_PADDED)},
    {"w3a16", FITS(MD_PADDED, MD_NO)},         {"w2a16", FITS(MD_PADDED, MD_NO)},
    {"q8_0", FITS(MD_PADDED, MD_PADDED)},      {"q4_0", FITS(MD_PADDED, MD_PADDED)},
    {"iq4_nl", FITS(MD_NO, MD_PADDED)},        {"nf4", FITS(MD_NO, MD_NO)},
    {"fp4", FITS(MD_NO, MD_NO)},               {"q4_0_all", FITS(MD_PADDED, MD_PADDED)},
    {"nf4dq", FITS(MD_NO, MD_NO)},             {"fp4dq", FITS(MD_NO, MD_NO)},
    {"smooth-o1", FITS(MD_NO, MD_NO)},         {"smooth-o2", FITS(MD_NO, MD_NO)},
    {"smooth-o3", FITS(MD_NO, MD_NO)},
    {"int8", FITS(MD_NO, MD_NO)},              {"q4_k", FITS(MD_PADDED, MD_PADDED)},
    {"q6_k", FITS(MD_PADDED, MD_PADDED)},      {"tq2_0", FITS(MD_PADDED, MD_PADDED)},
    {"w8a8", FITS(MD_PADDED, MD_NO)},          {"w4a8", FITS(MD_PADDED, MD_NO)},
    {"w4a4", FITS(MD_PADDED, MD_NO)},          {"w2a4", FITS(MD_PADDED, MD_NO)},
    {"llmqat-4-8-4", FITS(MD_NO, MD_NO)},
    {"llmqat-4-8-8", FITS(MD_NO, MD_NO)},      {"llmqat-4-8-16", FITS(MD_NO, MD_NO)},
    {"llmqat-4-6-16", FITS(MD_NO, MD_NO)},     {"llmqat-4-16-16", FITS(MD_NO, MD_NO)},
    {"llmqat-8-8-4", FITS(MD_NO, MD_NO)},      {"llmqat-8-8-8", FITS(MD_NO, MD_NO)},
    {"llmqat-8-8-16", FITS(MD_NO, MD_NO)},
};

const md_target *md_targets(int64_t *n)
{
    *n = N_TARGETS;
    return targets;
}

const md_target *md_target_find(const char *name)
{
    char list[512] = "";
    for (int i = 0; i < N_TARGETS; i++) {
        if (!strcmp(name, targets[i].name))
            return &targets[i];
        (void)snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", targets[i].name);
    }
    (void)nb_fail(NB_USAGE, "no target \"%.64s\"; there are %s", name, list);
    return NULL;
}

const md_recipe_fit *md_recipe_fits(int64_t *n)
{
    _Static_assert((int)N_TARGETS == (int)MD_TARGETS, "a column per target");
    *n = sizeof table / sizeof *table;
    return table;
}

status md_export(md_model *m, const char *target, const char *path, char *report, size_t report_bytes)
{
    if (report && report_bytes)
        *report = 0;
    const md_target *t = md_target_find(target);
    if (!t)
        return NB_USAGE;
    status s = t->write(m, t, path, report, report_bytes);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "export to %s", target);
}
