/* recipes_named.c - the recipes that ship, as text in the form of a recipe file. One list: name, explanation, text.
 *
 * Names: w = bits of weights, a = of the inputs of linears, kv = of cached keys and values, g = weights in groups (else rows).
 * Rows have one fp32 scale, groups an fp16 one. Weights of 8 bits and inputs use codes -127..127. Embedding and head have 8 bits
 * in the recipe's own grain. What GELU makes is one-sided and has a zero point. Where KV is coded, Q has 8 bits, so that scores are
 * integer products; keys of 4 bits are coded less their mean.
 */
#include "fakequant/fakequant.h"
#include "fakequant/recipes.h"

#define ROWS_ENDS8                                                                                                     \
    "embed.weight        int8 narrow row f32 learned\n"                                                                \
    "head.weight         int8 narrow row f32 learned\n"
#define GROUPS_ENDS8                                                                                                   \
    "embed.weight        int8 narrow group:32 f16 learned\n"                                                           \
    "head.weight         int8 narrow group:32 f16 learned\n"
#define A8                                                                                                             \
    "*.input             int8 narrow token f32 dynamic\n"                                                              \
    "*.gelu              int8 asym token f32 dynamic\n"
#define Q8  "layers.*.attn.q     int8 narrow head f32 dynamic\n"
#define KV8 Q8 "layers.*.attn.[kv]  int8 asym head f16 dynamic\n"
#define KV4                                                                                                            \
    Q8 "layers.*.attn.k     int4 asym head f16 dynamic offset\n"                                                       \
       "layers.*.attn.v     int4 asym head f16 dynamic\n"
#define WEIGHTS(spec)  "layers.*.weight     " spec "\n"
#define LLMQAT_W(spec) WEIGHTS(spec " narrow row f32 dynamic")
#define LLMQAT_A(spec) "layers.*.input      " spec " narrow token f32 dynamic\n"
#define LLMQAT_KV(spec)                                                                                                \
    "layers.*.attn.k     " spec " narrow token f32 dynamic before-rotation\n"                                          \
    "layers.*.attn.v     " spec " narrow token f32 dynamic\n"
#define HALF_ENDS                                                                                                      \
    "embed.weight        float f16\n"                                                                                  \
    "head.weight         float f16\n"
#define SMOOTH(inputs, heads)                                                                                          \
    WEIGHTS("int8 narrow tensor f32 learned") HALF_ENDS "layers.*.input      int8 narrow " inputs "\n"                  \
                                                        "layers.*.attn.[qkv] int8 narrow head f32 " heads "\n"
#define K_INPUTS    "*.input             int8 narrow group:256 f32 dynamic\n"
#define K_ENDS                                                                                                         \
    "embed.weight        int6 group:16 super8 learned\n"                                                              \
    "head.weight         int6 group:16 super8 learned\n"
#define GGML_INPUTS "*.input             int8 narrow group:32 f16 q8_0 dynamic\n"
#define GGML_ENDS8                                                                                                     \
    "embed.weight        int8 narrow group:32 f16 q8_0 learned\n"                                                      \
    "head.weight         int8 narrow group:32 f16 q8_0 learned\n"

#define PICTURE_W(spec) "*.weight            " spec "\n"
#define PICTURE_A(spec)                                                                                                \
    "*.output            " spec "\n"                                                                                   \
    "input               int8 asym tensor f32 static:minmax\n"                                                         \
    "head.output         int8 asym tensor f32 static:average\n"

/* X(name, explanation, text) */
#define RECIPES(X)                                                                                                     \
    X("float", "nothing is quantized", "* float\n")                                                                    \
    X("f16", "weights as fp16 stores them, nothing else", "*.weight            float f16\n")                           \
    X("w16a16", "16-bit rows, embedding and head too, float inputs", "*.weight            int16 narrow row f32 learned\n") \
    X("w8a8kv16", "8-bit rows, 8-bit inputs per token, float cache",                                                   \
      WEIGHTS("int8 narrow row f32 learned") ROWS_ENDS8 A8)                                                            \
    X("w8a8kv8", "8-bit rows, 8-bit inputs per token, 8-bit cache per head",                                           \
      WEIGHTS("int8 narrow row f32 learned") ROWS_ENDS8 A8 KV8)                                                        \
    X("w4a8kv16", "4-bit rows, 8-bit inputs per token, float cache", WEIGHTS("int4 row f32 learned") ROWS_ENDS8 A8)    \
    X("w4a8kv8", "4-bit rows, 8-bit inputs per token, 8-bit cache per head",                                           \
      WEIGHTS("int4 row f32 learned") ROWS_ENDS8 A8 KV8)                                                               \
    X("w4a8kv4", "4-bit rows, 8-bit inputs per token, 4-bit cache per head, keys less their mean",                     \
      WEIGHTS("int4 row f32 learned") ROWS_ENDS8 A8 KV4)                                                               \
    X("w4a4kv4", "4-bit rows, 4-bit inputs per token (the head's 8), 4-bit cache per head, keys less their mean; for `rotate --online`",      \
      WEIGHTS("int4 row f32 learned") ROWS_ENDS8 "*.input             int4 asym token f32 dynamic\n"                   \
                                                 "head.input          int8 narrow token f32 dynamic\n" KV4)           \
    X("w4all", "w4a8kv16 with embedding and head in 4-bit rows too",                                                   \
      "base w4a8kv16\n"                                                                                                \
      "embed.weight        int4 row f32 learned\n"                                                                     \
      "head.weight         int4 row f32 learned\n")                                                                    \
    X("w8a16g128", "8-bit groups of 128, float inputs", WEIGHTS("int8 narrow group:128 f16 learned") GROUPS_ENDS8)     \
    X("w4a16g128", "4-bit groups of 128, float inputs", WEIGHTS("int4 group:128 f16 learned") GROUPS_ENDS8)            \
    X("w4a16g32", "4-bit groups of 32, float inputs", WEIGHTS("int4 group:32 f16 learned") GROUPS_ENDS8)               \
    X("w3a16", "3-bit rows, float inputs", WEIGHTS("int3 row f32 learned") ROWS_ENDS8)                                 \
    X("w2a16", "2-bit rows on half-step levels (SEQ, ParetoQ), float inputs",                                          \
      WEIGHTS("seq2 row f32 learned") ROWS_ENDS8)                                                                      \
    X("q8_0", "llama.cpp's Q8_0 throughout, inputs by its own activation rule",                                        \
      WEIGHTS("int8 narrow group:32 f16 q8_0 learned") GGML_ENDS8 GGML_INPUTS)                                         \
    X("q4_0", "llama.cpp's Q4_0 layers, embedding and head in Q8_0, inputs by its activation rule",                    \
      WEIGHTS("int4 group:32 f16 q4_0 learned") GGML_ENDS8 GGML_INPUTS)                                                \
    X("q4_0_all", "q4_0 with embedding and head in Q4_0 too",                                                          \
      "base q4_0\n"                                                                                                    \
      "embed.weight        int4 group:32 f16 q4_0 learned\n"                                                           \
      "head.weight         int4 group:32 f16 q4_0 learned\n")                                                          \
    X("iq4_nl", "llama.cpp's IQ4_NL layers (16 levels of a table), embedding and head in Q8_0, inputs by its activation rule",  \
      WEIGHTS("iq4_nl group:32 f16 learned") GGML_ENDS8 GGML_INPUTS)                                                   \
    X("nf4", "bitsandbytes' NF4 layers: normal quantiles in blocks of 64, float inputs, embedding and head in F16",    \
      WEIGHTS("nf4 block:64 f32 dynamic") HALF_ENDS)                                                                   \
    X("fp4", "the same with bitsandbytes' FP4 levels", WEIGHTS("fp4 block:64 f32 dynamic") HALF_ENDS)                  \
    X("nf4dq", "nf4 with double quantization: scales of blocks in 8 bits, 4.13 bits a weight",                         \
      WEIGHTS("nf4 block:64 dynamic8 dynamic") HALF_ENDS)                                                              \
    X("fp4dq", "the same with bitsandbytes' FP4 levels", WEIGHTS("fp4 block:64 dynamic8 dynamic") HALF_ENDS)           \
    X("int8", "LLM.int8(): 8-bit rows, 8-bit inputs per token but for entries of 6 and more in F16; embedding and head in F16", \
      WEIGHTS("int8 narrow row f32 learned") HALF_ENDS "layers.*.input      int8 narrow token f32 outliers:6 dynamic\n")    \
    X("smooth-o1", "SmoothQuant's O1: 8 bits, weights per tensor, inputs per token; embedding and head in F16; for ptq smoothquant+rtn",  \
      SMOOTH("token f32 dynamic", "dynamic"))                                                                          \
    X("smooth-o2", "SmoothQuant's O2: the same, one range of inputs for all tokens of a call",                         \
      SMOOTH("tensor f32 dynamic", "dynamic"))                                                                         \
    X("smooth-o3", "SmoothQuant's O3: the same, ranges from calibration data",                                         \
      SMOOTH("tensor f32 static:minmax", "static:minmax"))                                                             \
    X("q4_k", "llama.cpp's Q4_K layers without minima, embedding and head in Q6_K, 8-bit inputs in groups of 256",        \
      WEIGHTS("int4 group:32 super6 learned") K_ENDS K_INPUTS)                                                         \
    X("q6_k", "llama.cpp's Q6_K throughout, 8-bit inputs in groups of 256",                                            \
      WEIGHTS("int6 group:16 super8 learned") K_ENDS K_INPUTS)                                                         \
    X("tq2_0", "llama.cpp's TQ2_0 (ternary) layers, embedding and head in Q6_K, 8-bit inputs in groups of 256",        \
      WEIGHTS("ternary group:256 f16 learned") K_ENDS K_INPUTS)                                                        \
    X("w8a8", "pictures: 8-bit rows, 8-bit results with static ranges, integers alone",                               \
      PICTURE_W("int8 narrow row f32 dynamic") PICTURE_A("int8 asym tensor f32 static:average"))                       \
    X("w4a8", "pictures: 4-bit rows, 8-bit results with static ranges, integers alone",                               \
      PICTURE_W("int4 row f32 learned:lsq") PICTURE_A("int8 asym tensor f32 static:average"))                          \
    X("w4a4", "pictures: 4-bit rows, 4-bit results with learned ranges (8-bit pictures and logits), integers alone",   \
      PICTURE_W("int4 row f32 learned:lsq") PICTURE_A("int4 asym tensor f32 learned:lsq from:mse"))                    \
    X("w2a4", "pictures: 2-bit rows on half-step levels, 4-bit results (8-bit pictures and logits), integers alone",   \
      PICTURE_W("seq2 row f32 learned:lsq") PICTURE_A("int4 asym tensor f32 learned:lsq from:mse"))                    \
    X("llmqat-4-8-4",                                                                                                \
      "LLM-QAT's grids (Liu et al. 2023): min-max rows -7..7, inputs and cache per token, K before "                   \
      "the rotation, float embedding and head",                                                                        \
      LLMQAT_W("int4") LLMQAT_A("int8") LLMQAT_KV("int4"))                                                             \
    X("llmqat-4-8-8", "the same, 8-bit cache", LLMQAT_W("int4") LLMQAT_A("int8") LLMQAT_KV("int8"))                    \
    X("llmqat-4-8-16", "the same, float cache", LLMQAT_W("int4") LLMQAT_A("int8"))                                     \
    X("llmqat-4-6-16", "the same, 6-bit inputs, float cache", LLMQAT_W("int4") LLMQAT_A("int6"))                       \
    X("llmqat-4-16-16", "the same, weights only", LLMQAT_W("int4"))                                                    \
    X("llmqat-8-8-4", "the same, 8-bit weights, 4-bit cache", LLMQAT_W("int8") LLMQAT_A("int8") LLMQAT_KV("int4"))     \
    X("llmqat-8-8-8", "the same, 8-bit weights and cache", LLMQAT_W("int8") LLMQAT_A("int8") LLMQAT_KV("int8"))        \
    X("llmqat-8-8-16", "the same, 8-bit weights, float cache", LLMQAT_W("int8") LLMQAT_A("int8"))

static const fq_named named[] = {
#define X(name, explanation, text) {name, explanation, text},
    RECIPES(X)
#undef X
};
enum { N_NAMED = sizeof named / sizeof *named };

const fq_named *fq_named_recipes(int64_t *n)
{
    *n = N_NAMED;
    return named;
}

int64_t fq_recipe_named(const char *const **names, const char *const **explanations)
{
    static const char *const name[] = {
#define X(n, explanation, text) n,
        RECIPES(X)
#undef X
    };
    static const char *const why[] = {
#define X(n, explanation, text) explanation,
        RECIPES(X)
#undef X
    };
    if (names)
        *names = name;
    if (explanations)
        *explanations = why;
    return N_NAMED;
}
