/* ptq.h - quantization without training: passes over a model, a file each. A pass takes a model built with its recipe (or in floats)
 * and changes latent floats and ranges of weights; it has no quantizer, no observer and no file format of its own.
 */
#ifndef NIBBLE_PTQ_H
#define NIBBLE_PTQ_H
#include "distill/distill.h"

/* Rotates a LLaMA model's weights so that it computes the same function, in double precision (QuaRot, Ashkboos et al. 2024; SpinQuant, Liu et al.
 * 2024: R1 and R2). Norm weights are folded into the linears behind them but for one number a norm, which keeps those weights' size; a tied head is untied; then with orthogonal
 * R1 [C,C] and R2 [D,D], another for each layer and kv head:
 *   embed R1;  wq, wk, wv, gate, up, head: w R1;  wo, down: R1' w;  wv: R2' on a head's rows;  wo: R2 on the columns of the heads that read it
 * R = diag(random signs) (H of order 2^m (x) a core of order K), K the least order for which the core is a Hadamard matrix of Paley's; where there
 * is none, a random orthogonal one of the odd part's order. online: R3 and R4 too, Hadamard matrices that the forward multiplies by (kn_hadamard_rows): heads of q and k
 * after their rotation, and what down reads, its weights being w H; the model has config.hadamard then, which no client of its exports knows. What stood out in single channels is spread over all: rows quantize better.
 * The model is built anew: pointers into it are void, ranges of weights begin anew. NB_USAGE for a folded model, NB_UNSUPPORTED for one
 * with LayerNorm (GPT-2), both left as they are, as is one that is turned online already; after any other failure m is empty. */
status pt_rotate(md_model *m, uint64_t seed, bool online);

/* ---- sensitivity -------------------------------------------------------------------------- */

/* What a model in floats predicts for the first tokens of `windows` windows of `length` tokens of data, evenly spread; kept, so that a change of its weights
 * can be told by what it moves. m outlives it. */
typedef struct pt_sensitivity pt_sensitivity;
status pt_sensitivity_new(pt_sensitivity **s, md_model *m, fm_tokens *data, int64_t windows, int64_t length);
void pt_sensitivity_free(pt_sensitivity *s); /* NULL is fine */
/* Mean KL(before || now) in nats per token where weights of block `layer` and behind it have changed in place (latent floats, nothing is quantized);
 * layers: only the head; -1: the embedding too. */
status pt_sensitivity_kl(double *kl, pt_sensitivity *s, int64_t layer);

/* Mixed bits: every weight gets bits of its own so that the whole takes no more than the budget. Choices per weight: blocks of 32 with fp16 scales (ggml's)
 * 4, 5, 8 bits (Q4_0, Q5_0, Q8_0); Q4_K, Q6_K, Q8_0 where the recipe has such; else 2, 3, 4, 5, 6, 8 bits in the recipe's own grain.
 *   cost(weight, choice)  = KL(float || model with that weight alone rounded so), to second order: pt_fisher_cost (fisher.h), on calibration data
 * and the sum of costs is minimized by pt_knapsack (knapsack.h), whose bound is stated. m gets the recipe with a rule for each weight, and ranges by importance.
 * budget: bits per weight in all, everything counted; 0: what m's recipe takes. write_recipe: a recipe file, or NULL. NB_USAGE: a recipe without weights,
 * a budget below the smallest choices. */
status pt_mixed(md_model *m, fm_tokens *data, const kd_calibration *o, double budget, const char *write_recipe);

/* ---- passes by name ----------------------------------------------------------------------- */

/* Values of all parameters, from before a pass whose latent floats are values of codes (gptq). */
typedef struct {
    real **x; /* [n], by their places in md_model.params */
    int64_t n;
} pt_floats;
status pt_floats_copy(pt_floats *f, const md_model *m); /* *f is empty after a failure */
void pt_floats_free(pt_floats *f);

/* What a pass may need beside the model: first what all may, then settings of single ones, whose 0 means the default. */
typedef struct {
    fm_tokens *data; /* calibration: samples of the model's own, or any text; NULL: none */
    kd_calibration calibration;
    uint64_t seed;
    const char *read_imatrix, *write_imatrix; /* llama.cpp's files of importance; NULL: none */
    int importance_by;        /* of importance: 0 inputs, 1 the predictions too (fisher.h) */
    bool online;              /* of rotate: R3, R4 */
    double budget;            /* of mixed: bits per weight, 0: what the recipe takes */
    const char *write_recipe; /* of mixed; NULL: not written */
    double percdamp, first_weight;            /* gptq_model.c tells these */
    bool act_order, static_groups, one_forward, coded_inputs;
    int gptq_ranges;
    int64_t gptq_rounds;
    const char *part;     /* folder where gptq, obq and methods that train keep what is finished; NULL: nowhere */
    int64_t block_steps;  /* of each block */
    double block_lr, block_scale_lr;
    md_model *teacher; /* the model in floats, for e2eqp; NULL: it learns from the text alone */
    const pt_floats *floats; /* what methods that train block by block aim at; NULL: the model's latent floats as they begin */
    int64_t e2e_steps; /* of 2048 tokens */
    double e2e_lr;     /* of the scales' logarithms */
    double alpha; /* smoothquant.c */
    bool smooth_all, smooth_keys;
    int calib_method; /* static.c; calib_parameter of the method, 0: its default */
    double calib_parameter;
    bool calib_groups, calib_channels, calib_asym;
} pt_options;

/* A setting of a pass: a field of pt_options, by its place in the struct. Types as an option of the command line has them: bool |
 * double | int64_t >= 0 | const char * | int, the place of a word of `argument` ("absmax|mse"). */
typedef enum { PT_FLAG, PT_NUMBER, PT_COUNT, PT_TEXT, PT_CHOICE } pt_setting_type;
typedef struct {
    const char *name, *argument; /* "--percdamp", "SHARE"; argument NULL for a flag */
    pt_setting_type type;
    size_t field; /* offsetof(pt_options, ...) */
    const char *standard, *help; /* standard: told and taken where nothing is given; NULL: 0 */
} pt_setting;

/* A pass by name. Several run in order on one model; afterwards md_save_folded (a model with a recipe; its latent floats beside the codes) or
 * md_save_model keeps what they made. */
typedef struct {
    const char *name, *alias; /* alias: another name, or NULL */
    const char *explanation;  /* two lines */
    bool needs_recipe, needs_data, needs_teacher; /* teacher: pt_options.teacher is read */
    bool spends_floats, wants_floats; /* leaves latent floats that are values of codes; reads pt_options.floats */
    bool needs_biases; /* has nothing to do in a model whose linears have none */
    bool by_weight;     /* finds each weight's codes from that weight alone, as md_open_options.fold does with `start` */
    fq_start start;
    const char *recipe; /* the format that it brings, a recipe by name, in place of the user's; NULL: none */
    status (*run)(md_model *m, const pt_options *o);
    const char *unit;           /* of its progress; NULL: samples */
    const pt_setting *settings; /* its own, up to one without a name; NULL: none. Methods may share them */
} pt_method;
const pt_method *pt_methods(int64_t *n);
pt_options pt_defaults(void); /* every setting of every method at its standard, the rest 0 */
const pt_method *pt_method_find(const char *name); /* NULL if there is none */

void pt_part_discard(const char *folder, const md_model *m); /* removes pt_options.part, when its result is kept or not wanted */

/* ---- networks for pictures ------------------------------------------------------------------ */

/* Where ranges of results come from: as the recipe says, one of fq_method for all of them, or EasyQuant's search. */
enum { PT_CALIBRATION_RECIPE = -1, PT_CALIBRATION_EASYQUANT = FQ_ADMM + 1 };
typedef struct {
    const fm_pictures *data; /* to calibrate on; NULL: none */
    int64_t samples;         /* how many of them, in a random order by seed */
    uint64_t seed;
    int calibration;
    double alpha;            /* of smoothquant, 0: searched */
} pt_picture_options;
/* Methods, joined by + in this order: what changes the float network (equalize, smoothquant), then one that gives ranges (rtn, static, mse, dynamic, easyquant;
 * rtn where none is named), then biascorrect. */
typedef enum { PT_BEFORE, PT_RANGES, PT_AFTER } pt_picture_place;
typedef struct {
    const char *name;
    pt_picture_place place;
    bool needs_data;
    const char *explanation; /* two lines */
} pt_picture_method;
const pt_picture_method *pt_picture_methods(int64_t *n);
/* m <- the float network `from` under the recipe, by the methods; empty after a failure. NB_USAGE: an unknown method (the message names those that there are, and
 * whether it is one of language models), a wrong order, no data where one needs them, a network that has a recipe already. */
status pt_picture_quantize(md_picture_net *m, const md_picture_net *from, const fq_recipe *recipe, const char *methods, const pt_picture_options *o);

#endif
