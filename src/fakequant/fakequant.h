/* fakequant.h - specs and recipes, quantization sites, observers, folding.
 *
 * A spec says how one tensor is quantized, a recipe gives every site of a model its spec by name, a site is the place where a
 * tensor is quantized: it belongs to the tensor, not to its users. Fake-quant is exactly decode(encode(x)) (kernels.h).
 */
#ifndef NIBBLE_FAKEQUANT_H
#define NIBBLE_FAKEQUANT_H
#include "autograd/autograd.h"

/* ---- specs -------------------------------------------------------------------------------- */

typedef enum { FQ_DYNAMIC, FQ_STATIC, FQ_LEARNED } fq_range;
/* How static ranges (and the start of learned ones) come from data: running min-max | moving average | percentile of |x| | least squared error | least KL
 * of the histogram (TensorRT's search over 2048 bins) | codes and least-squares scale in turn (MNN's "ADMM"). */
typedef enum { FQ_MINMAX, FQ_MOVING_AVERAGE, FQ_PERCENTILE, FQ_MSE, FQ_KL, FQ_ADMM } fq_method;
/* Gradient of what was clipped: let through | zero outside the codes' range | LLM-QAT's: zero where |x| >= 2 (Liu et al. 2023). */
typedef enum { FQ_STE_IDENTITY, FQ_STE_CLIPPED, FQ_STE_LLMQAT } fq_ste;
/* Learned ranges: s = s0 e^u with the gradient of u as it is | times LSQ's 1/sqrt(n hi) (Esser et al. 2020) | both ends of the range learned (PACT, Choi et al. 2018). LSQ with a
 * zero point learns that too (LSQ+, Bhalgat et al. 2020). */
typedef enum { FQ_LOG, FQ_LSQ, FQ_PACT } fq_learning;

typedef struct {
    kn_grid grid; /* bits 0: the tensor is left alone */
    uint8_t range, method, ste, learning;
    bool before_rotation; /* K only: quantized per token before the rotary embedding (LLM-QAT's scheme) */
    bool offset;          /* K only: k - b is quantized, b the mean over calibration: q.b is the same for all keys, so softmax does not change */
    float parameter;      /* percentile (99.99), moving average's rate (0.01); 0: the method's default */
} fq_spec;
/* "float f16", "float bf16": a weight left in floating point, but computed with as that type stores it; no codes. */
static inline bool fq_is_stored_float(const fq_spec *s)
{
    return s->grid.bits == 0 && s->grid.scale != KN_SCALE_F32;
}
bool fq_spec_equal(const fq_spec *a, const fq_spec *b);
/* Text form, words in any order: "int4 row f32 learned", "int8 narrow token dynamic", "int4 group:32 f16 learned", "int8 narrow group:32 f16 q8_0", "seq2 row learned",
 * "ternary", "sign", "int8 asym tensor static:mse", "float", "float f16". docs/recipes.md has the list. */
status fq_spec_parse(fq_spec *s, const char *text);
void fq_spec_print(char *text, size_t bytes, const fq_spec *s); /* parses back to the same spec */

/* ---- recipes ------------------------------------------------------------------------------ */

typedef struct {
    char pattern[64]; /* of site names; * matches anything, ? one character, [abc] a set */
    fq_spec spec;
} fq_rule;
typedef struct {
    char name[64];
    fq_rule *rule; /* in order, later wins */
    int64_t n;
} fq_recipe;
/* A named recipe (nibble recipes lists them) or, where no such name exists, a recipe file: lines "pattern  spec", # comments, "base NAME" starts from a named one. */
status fq_recipe_open(fq_recipe *r, const char *name_or_path);
status fq_recipe_parse(fq_recipe *r, const char *name, const char *text, size_t bytes); /* the file's form */
char *fq_recipe_text(const fq_recipe *r); /* the file's form, caller frees; NULL: message set */
void fq_recipe_free(fq_recipe *r);
/* Spec of a site; alias (or NULL) is a second name whose rules apply too (a tied head). No rule: bits 0. */
fq_spec fq_recipe_find(const fq_recipe *r, const char *site, const char *alias);
int64_t fq_recipe_named(const char *const **names, const char *const **explanations); /* how many ship; lists in order */

/* ---- sites -------------------------------------------------------------------------------- */

typedef struct fq_observer fq_observer; /* what a static range gathers; observer.c */
typedef struct fq_site {
    char *name;
    fq_spec spec;
    bool is_weight;
    int64_t rows, cols; /* weights: their shape; activations: rows 0, cols the channels */
    int64_t n_scales;   /* of a weight, or of a static or learned activation range (tensor 1, head H, ...); 0: dynamic */
    ag_param *w;        /* a weight's latent floats; NULL in a folded model */
    /* learned: scale = store(start * e^u); static: scale = store(start). NULL where dynamic. */
    real *start;        /* [n_scales], sign included */
    real *start_zero;   /* [n_scales] latent zero points, NULL without */
    ag_param *u, *v;    /* learned: log scale; zero = rne(start_zero + (hi - lo) v) (PACT: log of the upper and the lower end) */
    bool started;       /* start holds ranges */
    fq_observer *observer;
    /* memo of an encoded weight */
    kn_codes codes;
    kn_packed packed;
    kn_bf16_right right;          /* a float weight as operand of bf16 products, in right_memory */
    void *right_memory;
    uint64_t version; /* of the parameters when encoded (0: never); folded: fixed codes, UINT64_MAX */
    uint64_t packed_version;      /* of the codes that were packed, or of the parameters in `right` */
    const ag_params *params;      /* whose version counts; NULL: encoded anew each time */
    bool multiplied;              /* some linear's input site makes integer products with this weight */
} fq_site;

typedef struct {
    fq_site **s;
    int64_t n, capacity;
    ag_params *params;
    bool frozen; /* static ranges no longer move (--freeze-after) */
} fq_sites;
/* Registers a site under `name` with the recipe's spec; learned ones register "<name>.scale" (and ".zero"). w: the latent of a weight [rows, cols], or
 * NULL for an activation (rows 0; group of a HEAD grain is set to head_size, 0 if there are no heads) or a weight to be
 * folded in. Grids that make no sense for the shape: NULL and a message. "..attn.probs" is always 8 bits with the fixed
 * step 1/255 on 0..1 (kernels.h). A weight whose range nobody started takes FQ_START_ABSMAX at its first encoding; an
 * activation whose range nobody started is left alone. */
fq_site *fq_site_new(fq_sites *sites, const fq_recipe *r, const char *name, const char *alias, ag_param *w, int64_t rows, int64_t cols, int64_t head_size);
fq_site *fq_site_find(const fq_sites *sites, const char *name);
void fq_sites_free(fq_sites *sites);

/* The value as the site makes it: y = decode(encode(x)), y->codes set; x itself where the site's bits are 0 (site may be NULL) or the tape has quantize_off (weights_off, activations_off: of that kind).
 *   a stored float: y = x rounded to that type, dx += dy
 *   backward: dx += dy, under the spec's ste; learned: du += s * sum dy * (level - r inside, level outside), r = x / s
 * fq_apply: an activation; fq_weight: a weight's latent parameter, encoded once per ps->version; w NULL: a folded site, its codes without a gradient. */
ag_tensor *fq_apply(ag_tape *t, fq_site *site, ag_tensor *x);
ag_tensor *fq_weight(ag_tape *t, fq_site *site, ag_param *w);
/* Scales [n_scales] as stored, and zeros where the grid has them (zero may be NULL), of a static or learned range as they
 * are now. */
void fq_site_ranges(const fq_site *site, real *scale, int32_t *zero);
/* Codes of a weight site as they are now (encoding where stale), and packed ones; NULL: bits 0, or out of memory with a message. The runtime and the fold take them from here. */
const kn_codes *fq_site_codes(fq_site *site, const ag_params *ps);
const kn_packed *fq_site_packed(fq_site *site, const ag_params *ps);
/* A weight that is left alone (bits 0), as the right operand w' [cols, rows] of bf16 products, rounded once per version of the parameters. NULL: out of memory. */
const kn_bf16_right *fq_site_right(fq_site *site, const ag_params *ps);
/* The same, and the weight's own floats are freed: nothing but fq_site_right may read it from then on. */
status fq_site_keep_right(fq_site *site, const ag_params *ps);
/* Scale and zero of an activation site with static or learned range into c (laid out, rows x cols); then kn_encode_with. Dynamic: kn_encode. This is what the tape and the runtime call. */
void fq_encode_activation(const fq_site *site, kn_codes *c, const real *x, int64_t row, int64_t n);

/* Ranges of weights before training or folding without it. */
typedef enum {
    FQ_START_ABSMAX, /* absmax / hi per span; the ggml rules by their own formula; SEQ: max|w| */
    FQ_START_MSE,    /* search for the least squared error */
    FQ_START_IMPORTANCE /* the same, each square weighted by E[x_j^2] sqrt(mean of the row's w^2 + w_j^2), as llama.cpp's quantizer with an importance matrix */
} fq_start;
/* importance(ctx, site): E[x_j^2] [cols] of that weight's input, or NULL where none was seen; read by FQ_START_IMPORTANCE only. */
/* The parts of it, for passes that decide ranges themselves. fq_find_ranges: ranges of x [rows, cols] into c (laid out), then its codes;
 * h [rows, cols] weighs the squared errors (NULL: ones; not read by FQ_START_ABSMAX). fq_site_set: a weight site's ranges are these from now
 * on, stored scales and zeros [n_scales] (zero NULL without); what it learned is forgotten. The caller raises the parameters' version. */
status fq_find_ranges(kn_codes *c, const fq_spec *spec, const real *x, fq_start how, const real *h);
void fq_site_set(fq_site *site, const real *scale, const int32_t *zero);
status fq_start_site(fq_site *site, fq_start how, const real *importance); /* one weight site; importance [cols] or NULL */
bool fq_weights_started(const fq_sites *sites); /* every weight that has ranges of its own has them found */
/* Training from codes that a search left: the latent floats become w [rows, cols], those that the codes were found for; where one would be
 * coded otherwise, half of the way to the border of its code's cell, and the code's value where it lies more than one code off. The codes do not change. */
status fq_site_loosen(fq_site *site, const ag_params *ps, const real *w);
status fq_start_weights(fq_sites *sites, fq_start how, const real *(*importance)(void *ctx, const fq_site *site), void *ctx);

/* ---- observers ---------------------------------------------------------------------------- */

/* A tap's fn with an fq_sites as ctx: static and learned activation sites gather statistics. fq_observe_end, once per step or at the end of the calibration
 * phase, turns them into ranges (moving averages go on; others are recomputed from all that was seen) unless frozen. */
void fq_observe(void *sites, const char *site, const ag_tensor *in, const ag_tensor *out);
status fq_observe_end(fq_sites *sites);
bool fq_sites_need_calibration(const fq_sites *sites, char *names, size_t bytes); /* lists the first sites without ranges */
/* State of a site for checkpoints: a flat array of doubles of fixed size for given spec and shape (start, zeros, observer). NULL dst: only the count. */
int64_t fq_site_state(const fq_site *site, double *dst);
status fq_site_restore(fq_site *site, const double *src, int64_t n);

#endif
