/* methods.c - the passes by name: what `nibble ptq` lists and runs. */
#include "ptq/gptq_model.h"
#include "ptq/blockwise.h"
#include "ptq/fisher.h"
#include "ptq/scaling.h"
#include "ptq/static.h"
#include <stdlib.h>
#include <string.h>

static status run_absmax(md_model *m, const pt_options *o)
{
    return kd_find_ranges(m, FQ_START_ABSMAX, o->data, &o->calibration);
}

static status run_mse(md_model *m, const pt_options *o)
{
    return kd_find_ranges(m, FQ_START_MSE, o->data, &o->calibration);
}

static status run_importance(md_model *m, const pt_options *o)
{
    kd_importance h;
    kd_calibration c = o->calibration;
    c.importance = &h;
    TRY(kd_importance_new(&h, m));
    status s = o->read_imatrix    ? kd_importance_read(&h, o->read_imatrix)
               : o->importance_by ? pt_fisher_importance(&h, m, o->data, &c)
                                  : kd_watch(m, o->data, &c, (ag_tap){kd_gather_importance, &h});
    if (s == NB_OK && h.failed)
        s = NB_NOMEM;
    if (s == NB_OK && o->write_imatrix)
        s = kd_importance_write(&h, o->write_imatrix, o->data ? o->data->path : o->read_imatrix, kd_calibration_length(&c, m));
    if (s == NB_OK && m->recipe.n)
        s = kd_find_ranges(m, FQ_START_IMPORTANCE, o->data, &c);
    kd_importance_free(&h);
    return s;
}

static status run_rotate(md_model *m, const pt_options *o)
{
    return pt_rotate(m, o->seed, o->online);
}

static status run_mixed(md_model *m, const pt_options *o)
{
    return pt_mixed(m, o->data, &o->calibration, o->budget, o->write_recipe);
}

static const pt_setting rotate_settings[] = {
    {"--online", NULL, PT_FLAG, offsetof(pt_options, online), NULL,
     "rotate: Hadamard matrices in the forward too, on heads of q and k (R3) and before down (R4); nibble alone runs such a model"},
    {0}};

static const pt_setting importance_settings[] = {
    {"--importance-by", "inputs|predictions", PT_CHOICE, offsetof(pt_options, importance_by), "inputs",
     "importance: tokens alike, or weighted by what errors there cost the predictions (a backward pass)"},
    {0}};

static const pt_setting mixed_settings[] = {
    {"--budget", "BITS", PT_NUMBER, offsetof(pt_options, budget), NULL, "mixed: bits per weight in all, everything counted (what the recipe takes)"},
    {"--write-recipe", "FILE", PT_TEXT, offsetof(pt_options, write_recipe), NULL,
     "mixed: keep the bits it chose as a recipe file, for every command"},
    {0}};

static const pt_setting block_settings[] = {
    {"--block-steps", "N", PT_COUNT, offsetof(pt_options, block_steps), NULL, "steps of each block, of 512 to 2048 tokens by its size (200)"},
    {"--block-lr", "RATE", PT_NUMBER, offsetof(pt_options, block_lr), NULL, "rate of what a block trains, in place of the method's"},
    {"--block-scale-lr", "RATE", PT_NUMBER, offsetof(pt_options, block_scale_lr), NULL, "the same of its ranges"},
    {0}};

static const pt_setting e2e_settings[] = {
    {"--e2e-steps", "N", PT_COUNT, offsetof(pt_options, e2e_steps), NULL, "e2eqp: steps of 2048 tokens (100)"},
    {"--e2e-lr", "RATE", PT_NUMBER, offsetof(pt_options, e2e_lr), NULL, "e2eqp: rate of the scales' logarithms (0.003)"},
    {0}};

static const pt_method methods[] = {
    {.name = "rtn",
     .alias = "round",
     .explanation = "round to nearest: scale = largest magnitude / largest code, ggml's own formula in ggml's recipes;\n"
                    "the baseline of every other method",
     .needs_recipe = true,
     .by_weight = true,
     .run = run_absmax},
    {.name = "dynamic",
     .explanation = "weights to nearest, 8-bit activations whose range is found at run time, token by token; no data. Inputs that the\n"
                    "recipe leaves in floats get 8 bits too; weights of 16 bits: --recipe w16a16, f16",
     .needs_recipe = true,
     .run = pt_run_dynamic,
     .settings = pt_static_settings},
    {.name = "static",
     .explanation = "the same with ranges of activations found beforehand on data, by --calib-method, kept in the file and used by the integer\n"
                    "runtime; behind a method for weights: smoothquant+static, gptq+static",
     .needs_recipe = true,
     .needs_data = true,
     .run = pt_run_static,
     .settings = pt_static_settings},
    {.name = "easyquant",
     .explanation = "static, then scales of weights (a factor for each row) and of activations searched in turn for the cosine of each layer's\n"
                    "output with the float one; inputs come from the quantized layers before (50 samples)",
     .needs_recipe = true,
     .needs_data = true,
     .run = pt_run_easyquant,
     .unit = "blocks",
     .settings = pt_static_settings},
    {.name = "int8",
     .explanation = "LLM.int8(): weights by rows and inputs by tokens in 8 bits, input entries of 6 and more as 16-bit floats beside the integer\n"
                    "product; embedding and head in F16. A format of its own (recipe int8): --recipe is not looked at",
     .needs_recipe = true,
     .by_weight = true,
     .run = run_absmax,
     .recipe = "int8"},
    {.name = "nf4",
     .explanation = "4 bits on the quantiles of a normal distribution, the largest of each block of 64 its scale (QLoRA); codes are bitsandbytes'.\n"
                    "A format of its own (recipe nf4): --recipe is not looked at; float inputs, embedding and head in F16",
     .needs_recipe = true,
     .by_weight = true,
     .run = run_absmax,
     .recipe = "nf4"},
    {.name = "fp4",
     .explanation = "the same on the levels of a 4-bit float: sign, two bits of exponent, one of mantissa; codes are bitsandbytes'.\n"
                    "A format of its own (recipe fp4): --recipe is not looked at",
     .needs_recipe = true,
     .by_weight = true,
     .run = run_absmax,
     .recipe = "fp4"},
    {.name = "nf4dq",
     .explanation = "nf4 with double quantization: scales of blocks less their mean in 8 bits, 4.13 bits a weight where nf4 has 4.5; bitsandbytes'\n"
                    "compress_statistics, its codes. A format of its own (recipe nf4dq): --recipe is not looked at",
     .needs_recipe = true,
     .by_weight = true,
     .run = run_absmax,
     .recipe = "nf4dq"},
    {.name = "fp4dq",
     .explanation = "fp4 with double quantization, as nf4dq.\n"
                    "A format of its own (recipe fp4dq): --recipe is not looked at",
     .needs_recipe = true,
     .by_weight = true,
     .run = run_absmax,
     .recipe = "fp4dq"},
    {.name = "quantile",
     .explanation = "the same on 16 levels from the quantiles of each weight itself, so that codes are used about equally often; the levels stand in\n"
                    "the file's recipe. A format of its own: --recipe is not looked at",
     .needs_recipe = true,
     .run = pt_run_quantile,
     .recipe = "nf4"},
    {.name = "mse",
     .explanation = "scales by search for the least squared error of the weights, then least squares for the codes found;\n"
                    "better than rtn for rows and few bits, hardly for groups of 32",
     .needs_recipe = true,
     .by_weight = true,
     .start = FQ_START_MSE,
     .run = run_mse},
    {.name = "importance",
     .alias = "imatrix",
     .explanation = "the same search, each square weighted by E[x_j^2] sqrt(mean w^2 + w_j^2), x from calibration data: llama.cpp's\n"
                    "rule with an importance matrix; the best start for QAT on groups",
     .needs_recipe = true,
     .needs_data = true,
     .run = run_importance,
     .settings = importance_settings},
    {.name = "rotate",
     .explanation = "the same function in rotated coordinates (R1, R2 of SpinQuant): outliers are spread, rows quantize better;\n"
                    "exact, unties the head; --online for inputs and keys of few bits; goes before another method: rotate+importance",
     .run = run_rotate,
     .settings = rotate_settings},
    {.name = "mixed",
     .explanation = "bits of its own for every weight under a size (the recipe's, or --budget), by the KL it costs alone (a backward pass), solved\n"
                    "exactly; then scales as importance finds them, or what follows: mixed+fisher",
     .needs_recipe = true,
     .needs_data = true,
     .run = run_mixed,
     .unit = "weights",
     .settings = mixed_settings},
    {.name = "awq",
     .explanation = "channels with large inputs get larger weights by a searched power of their mean magnitude, folded into what makes them;\n"
                    "then scales as importance finds them; before another method: awq+gptq",
     .needs_recipe = true,
     .needs_data = true,
     .run = pt_run_awq,
     .unit = "blocks"},
    {.name = "smoothquant",
     .explanation = "outliers of activations moved into weights channel by channel, by an alpha searched per site; the function stays;\n"
                    "for 8-bit inputs, before another method: smoothquant+rtn, smoothquant+gptq",
     .needs_data = true,
     .run = pt_run_smoothquant,
     .unit = "blocks",
     .settings = pt_smoothquant_settings},
    {.name = "equalize",
     .explanation = "cross-layer equalization: rows of one linear and columns of the next get one magnitude (q k, v o, up down);\n"
                    "exact, without data; for scales per tensor or wide groups: equalize+rtn",
     .run = pt_run_equalize},
    {.name = "biascorrect",
     .explanation = "biases take back by how much rounded weights move the mean of their outputs; behind a method: rtn+biascorrect;\n"
                    "for models with biases (GPT-2, Qwen); gptq leaves nothing to correct",
     .needs_recipe = true,
     .needs_data = true,
     .needs_biases = true,
     .run = pt_run_biascorrect,
     .unit = "blocks"},
    {.name = "gptq",
     .explanation = "codes column by column, each error paid by the columns to come along the inverse Hessian of what goes in; then scales by\n"
                    "least squares on the layer's output and codes again; block by block behind the quantized ones",
     .needs_recipe = true,
     .needs_data = true,
     .spends_floats = true,
     .run = pt_run_gptq,
     .unit = "blocks",
     .settings = pt_gptq_settings},
    {.name = "fisher",
     .alias = "yaqa",
     .explanation = "gptq that weighs tokens and outputs by what errors there cost the model's predictions (Fisher information, a backward pass\n"
                    "of the floats), embedding and tied head, too: least KL of what does not train, twice gptq's time",
     .needs_recipe = true,
     .needs_data = true,
     .spends_floats = true,
     .run = pt_run_fisher,
     .unit = "blocks",
     .settings = pt_gptq_settings},
    {.name = "obq",
     .explanation = "gptq's ancestor: every row takes next the column that costs least; rows x columns^3 steps,\n"
                    "a slow baseline for small layers",
     .needs_recipe = true,
     .needs_data = true,
     .spends_floats = true,
     .run = pt_run_obq,
     .unit = "blocks",
     .settings = pt_gptq_settings},
    {.name = "autoround",
     .explanation = "each block's rounding, up or down, and its ranges by signs of gradients of the block's error; starts from the ranges that\n"
                    "are there, else importance's. Trains block by block: calibrates on 256 windows of 512 tokens, goes on when stopped",
     .needs_recipe = true,
     .needs_data = true,
     .spends_floats = true,
     .wants_floats = true,
     .run = pt_autoround,
     .unit = "steps",
     .settings = block_settings},
    {.name = "blockap",
     .explanation = "all parameters of a block, weights, ranges and norms, trained on the block's error (EfficientQAT's Block-AP); the most that\n"
                    "training block by block gives. Calibrates on 256 windows of 512 tokens, goes on when stopped",
     .needs_recipe = true,
     .needs_data = true,
     .spends_floats = true,
     .wants_floats = true,
     .run = pt_blockap,
     .unit = "steps",
     .settings = block_settings},
    {.name = "omniquant",
     .explanation = "each block's clipping of weights (LWC) and, where inputs are quantized, scales that move between an operation and the next\n"
                    "(LET), by gradients of the block's error. Trains block by block: calibrates as autoround, goes on when stopped",
     .needs_recipe = true,
     .needs_data = true,
     .spends_floats = true,
     .wants_floats = true,
     .run = pt_omniquant,
     .unit = "steps",
     .settings = block_settings},
    {.name = "adaround",
     .explanation = "each block's rounding, up or down, as a continuous choice that is pressed to one side (AdaRound); scales stay, wants more\n"
                    "steps than autoround (--block-steps 1000). Trains block by block, calibrates alike, goes on when stopped",
     .needs_recipe = true,
     .needs_data = true,
     .spends_floats = true,
     .wants_floats = true,
     .run = pt_adaround,
     .unit = "steps",
     .settings = block_settings},
    {.name = "e2eqp",
     .explanation = "scales alone trained end to end on KL to the float model, the codes stay (EfficientQAT's second phase); behind a method\n"
                    "that finds codes: blockap+e2eqp, gptq+e2eqp; alone behind importance. 1024 windows of 256 tokens",
     .needs_recipe = true,
     .needs_data = true,
     .needs_teacher = true,
     .spends_floats = true,
     .run = pt_e2eqp,
     .unit = "steps",
     .settings = e2e_settings},
};
enum { N_METHODS = sizeof methods / sizeof *methods };

const pt_method *pt_methods(int64_t *n)
{
    *n = N_METHODS;
    return methods;
}

const pt_method *pt_method_find(const char *name)
{
    for (int i = 0; i < N_METHODS; i++)
        if (!strcmp(methods[i].name, name) || (methods[i].alias && !strcmp(methods[i].alias, name)))
            return &methods[i];
    return NULL;
}

/* The place of `word` among the words of "hessian|mse|absmax". */
static int choice_of(const char *words, const char *word)
{
    const size_t n = strlen(word);
    for (int i = 0;; i++) {
        const size_t length = strcspn(words, "|");
        if ((length == n && !memcmp(words, word, n)) || !words[length])
            return i;
        words += length + 1;
    }
}

pt_options pt_defaults(void)
{
    pt_options o = {0};
    for (int i = 0; i < N_METHODS; i++)
        for (const pt_setting *s = methods[i].settings; s && s->name; s++) {
            void *const field = (char *)&o + s->field;
            if (!s->standard)
                continue;
            switch (s->type) {
            case PT_FLAG:
                break; /* off */
            case PT_NUMBER:
                *(double *)field = strtod(s->standard, NULL);
                break;
            case PT_COUNT:
                *(int64_t *)field = strtoll(s->standard, NULL, 10);
                break;
            case PT_TEXT:
                *(const char **)field = s->standard;
                break;
            case PT_CHOICE:
                *(int *)field = choice_of(s->argument, s->standard);
            }
        }
    return o;
}
