/* runtime.h - running a model, float or folded: prefill, decode, KV cache, sampling. Integers where its specs are integers.
 *
 * The runtime calls the same kernels as the tape. Where every linear has integer weights and inputs (an integer scheme) its results equal the
 * fake-quant forward's bit for bit, whatever the batch, the number of threads, and whether tokens came together or one by one.
 */
#ifndef NIBBLE_RUNTIME_H
#define NIBBLE_RUNTIME_H
#include "models/models.h"

typedef struct rt_session rt_session;
typedef struct {
    int64_t slots; /* sequences held at once; 0: 1 */
    int64_t ctx;   /* tokens per sequence; 0: the model's; never more than the model's */
    kn_precision precision;    /* of float products */
    kn_precision cache_floats; /* what keys and values without a grid are kept in */
} rt_options;

/* A float model that will only be run, in bf16 (the teacher of a training run): what products read is rounded to bf16 now, 2 bytes a weight instead of
 * 4 and 2 more, and its floats are freed. Sessions use it at any precision; nothing else may read the parameters. Does nothing where
 * this CPU has no bf16 products, or a matrix is too small for them. */
status rt_keep_bf16(md_model *m);
/* A session over a model that outlives it. Weights are encoded and packed on first use, again when ps->version moved. */
status rt_open(rt_session **s, md_model *m, const rt_options *o);
void rt_close(rt_session *s); /* NULL is fine */
int64_t rt_length(const rt_session *s, int64_t slot); /* tokens its cache holds */
int64_t rt_ctx(const rt_session *s);
void rt_clear(rt_session *s, int64_t slot);           /* forgets a sequence */
size_t rt_cache_bytes(const rt_session *s);           /* of all slots' keys and values */

/* Appends n tokens: token[i] to sequence slot[i] at its next position; tokens of one slot stand together, in order. hidden [n, C] <- the
 * last norm's output. slot NULL: all go to slot 0. NB_USAGE: a slot or token out of range, a sequence longer than ctx. */
status rt_forward(rt_session *s, int64_t n, const int32_t *slot, const int32_t *token, real *hidden);
/* logits [n, V] <- hidden [n, C] through head.input and the head. */
status rt_head(rt_session *s, real *logits, const real *hidden, int64_t n);

/* ---- sampling ----------------------------------------------------------------------------- */

typedef struct {
    double temperature; /* 0: the most likely token (the lowest id among equals) */
    int64_t top_k;      /* 0: all */
    double top_p;       /* 0 or 1: all; else the smallest set of tokens of at least this probability (Holtzman et al. 2020) */
} rt_sampling;
status rt_sampling_check(const rt_sampling *how); /* NB_USAGE where a number is outside its range */
/* The id that the uniform number u in [0,1) picks from softmax(logits / T). scratch: V * (sizeof(real) + sizeof(int32_t)) bytes. */
int32_t rt_sample(const real *logits, int64_t V, const rt_sampling *how, double u, void *scratch);
size_t rt_sample_scratch(int64_t V);

/* ---- networks for pictures, in integers alone --------------------------------------------- */

/* What is computed of a network whose weights, inputs and results are all codes of at most 8 bits with static or learned ranges of one scale a tensor: no float after
 * the input's codes. Steps of convolutions (linear maps among them) with their requantization, and pools; the same functions that the tape calls. */
typedef struct {
    md_stage_kind kind;
    kn_conv c;
    const kn_codes *w; /* of a convolution: the site's */
    kn_conv_codes codes;
    kn_requant requant;
    int32_t zero; /* of what goes in */
} rt_net_step;
typedef struct {
    rt_net_step *step;
    int64_t n, inputs, classes, largest; /* largest: numbers of a picture between steps */
    kn_grid grid, out_grid;
    real scale, out_scale;               /* of the input's codes, of the logits' */
    int32_t zero, out_zero;
} rt_net;
/* NB_UNSUPPORTED and the site that is not in integers. net must outlive it. */
status rt_net_new(rt_net *r, md_picture_net *net);
void rt_net_free(rt_net *r);
/* logits' codes [B, classes] from pixels [B, H*W*C], value = pixel / 255. after(ctx, i, q, ld): codes [B] rows ld apart after step i (i = -1: the input's); NULL: none. */
typedef void rt_net_watch(void *ctx, int64_t step, const int8_t *q, int64_t ld);
status rt_net_run(const rt_net *r, int8_t *logits, const uint8_t *pixel, int64_t B, rt_net_watch *after, void *ctx);
/* The network as one file of freestanding C11 (`nibble_classify`; picture_c.c tells its form) that makes the same codes. bytes: of its constants. */
status rt_net_write_c(const rt_net *r, const char *path, int64_t *bytes);

#endif
