/* targets.c - what can be exported where: the targets, and the table recipe x target. Each check() decides for a model tensor by
 * tensor; the table says the same for the recipes that ship, and the tests compare the two.
 */
#include "models/export.h"
#include <string.h>

static const md_target targets[] = {
    {"llama2c",
     "llama2.c version 2: codes as int8 with one fp32 scale per group; exact for codes of at most 8 bits without zero "
     "points",
     md_check_llama2c, md_write_llama2c},
    {"llama2c-f32", "llama2.c version 1: decoded floats, exact", md_check_llama2c_f32, md_write_llama2c_f32},
    {"gguf", "GGUF with Q4_0, Q4_1, Q8_0 and F32 tensors; exact where scales are fp16 and groups whole blocks of 32",
     md_check_gguf, md_write_gguf},
    {"gguf-f32", "GGUF with decoded floats, exact", md_check_gguf_float, md_write_gguf_f32},
    {"gguf-f16", "GGUF with decoded floats rounded to F16", md_check_gguf_float, md_write_gguf_f16},
    {"safetensors", "a Hugging Face folder with decoded floats, exact", md_check_safetensors, md_write_safetensors},
};
enum { N_TARGETS = sizeof targets / sizeof *targets };

#define FLOATS(llama2c, gguf)                                                                                          \
    {                                                                                                                  \
        llama2c, MD_EXACT, gguf, MD_EXACT, MD_ROUNDED, MD_EXACT                                                        \
    }
static const md_recipe_fit table[] = {
    {"float", FLOATS(MD_NO, MD_EXACT)},          {"w8a8kv16", FLOATS(MD_PADDED, MD_NO)},
    {"w8a8kv8", FLOATS(MD_PADDED, MD_NO)},       {"w4a8kv16", FLOATS(MD_PADDED, MD_NO)},
    {"w4a8kv8", FLOATS(MD_PADDED, MD_NO)},       {"w4a8kv4", FLOATS(MD_PADDED, MD_NO)},
    {"w4all", FLOATS(MD_PADDED, MD_NO)},         {"w8a16g128", FLOATS(MD_PADDED, MD_PADDED)},
    {"w4a16g128", FLOATS(MD_PADDED, MD_PADDED)}, {"w4a16g32", FLOATS(MD_PADDED, MD_PADDED)},
    {"w3a16", FLOATS(MD_PADDED, MD_NO)},         {"w2a16", FLOATS(MD_PADDED, MD_NO)},
    {"q8_0", FLOATS(MD_PADDED, MD_PADDED)},      {"q4_0", FLOATS(MD_PADDED, MD_PADDED)},
    {"q4_0_all", FLOATS(MD_PADDED, MD_PADDED)},  {"llmqat-4-8-4", FLOATS(MD_NO, MD_NO)},
    {"llmqat-4-8-8", FLOATS(MD_NO, MD_NO)},      {"llmqat-4-8-16", FLOATS(MD_NO, MD_NO)},
    {"llmqat-4-6-16", FLOATS(MD_NO, MD_NO)},     {"llmqat-4-16-16", FLOATS(MD_NO, MD_NO)},
    {"llmqat-8-8-4", FLOATS(MD_NO, MD_NO)},      {"llmqat-8-8-8", FLOATS(MD_NO, MD_NO)},
    {"llmqat-8-8-16", FLOATS(MD_NO, MD_NO)},
};

const md_target *md_targets(int64_t *n)
{
    *n = N_TARGETS;
    return targets;
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
    for (int i = 0; i < N_TARGETS; i++)
        if (!strcmp(target, targets[i].name)) {
            status s = targets[i].write(m, path, report, report_bytes);
            return s == NB_OK ? NB_OK : nb_fail_in(s, "export to %s", target);
        }
    return nb_fail(
        NB_USAGE, "no target \"%.64s\"; there are llama2c, llama2c-f32, gguf, gguf-f32, gguf-f16, safetensors", target);
}
