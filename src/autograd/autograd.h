/* autograd.h - tensors, the tape, parameters, operators, optimizers.
 *
 * Rules that hold everywhere:
 *   - tensors are dense and row-major; an operator runs when it is called; tape order is topological order
 *   - a gradient has the shape of its tensor, exists from its first contribution on, and backward always adds
 *   - everything a step makes belongs to the tape's arena and dies at ag_reset; parameters belong to an ag_params
 *   - failure is sticky: an operator given NULL returns NULL and the first cause stays in the tape; check once with ag_status
 */
#ifndef NIBBLE_AUTOGRAD_H
#define NIBBLE_AUTOGRAD_H
#include "base/base.h"
#include "kernels/kernels.h"

enum { AG_MAX_DIM = 4, AG_MAX_SRC = 6 };
typedef struct ag_tensor ag_tensor;
typedef struct ag_tape ag_tape;
typedef struct ag_param ag_param;

/* One operator, described in one place: a file op_<family>.c holds this table and its constructor. */
typedef struct {
    const char *name;
    void (*forward)(ag_tensor *out);        /* reads the sources' values, writes all of out->x (a site: its codes) */
    void (*backward)(const ag_tensor *out); /* reads out->g, adds into the sources' gradients */
    uint32_t keeps;                         /* whose values backward reads: AG_KEEP(i) of src[i], AG_KEEP_OUT its own */
} ag_op;
#define AG_KEEP(i) (1u << (i))
#define AG_KEEP_OUT (1u << 31)

/* The exact integers behind a value that was made of codes: x = act(sum * scale_x * scale_w[channel]), the bias in the sum. A site with a static or
 * learned range makes its codes of them, by fixed-point requantization (kernels.h), as an integer network does. */
typedef struct {
    int32_t *sum; /* [rows * points, channels] */
    int64_t points, channels;
    const kn_codes *w; /* its scales */
    real scale_x;
    kn_activation act;
} ag_sums;

struct ag_tensor {
    const ag_op *op; /* NULL for a leaf */
    ag_tape *tape;
    ag_tensor *src[AG_MAX_SRC];
    int n_src, n_dim;
    int64_t dim[AG_MAX_DIM];
    real *x;                /* value; NULL where only codes exist: read through ag_value */
    real *g;                /* gradient; NULL until the first contribution: get it with ag_grad */
    const kn_codes *codes;  /* what a quantization site made of it (rows = all but the last dimension), or NULL */
    const kn_packed *packed; /* the codes of a weight, packed for integer products, or NULL */
    const ag_sums *sums;    /* of an integer convolution, or NULL */
    ag_param *param;        /* a parameter's leaf, or NULL */
    bool needs_grad, done, kept; /* done: no more forward readers; kept: some backward reads the value */
    bool borrowed;               /* the value is a source's (reshape), which is then kept */
    void *codes_memory;          /* behind codes where they are the tape's (ag_take): given back like the value */
    size_t codes_bytes;
    void *save;             /* the operator's own: settings, and what its backward needs */
    size_t save_bytes;
};

/* What watches a run: called once per quantization site, after it ran, with the site's name, its input and its output; never in
 * recomputed segments. Everything that observes (observers, Hessians, statistics) is one. */
typedef struct {
    void (*fn)(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out);
    void *ctx;
} ag_tap;

struct ag_tape {
    nb_arena small; /* what is not worth giving back */
    nb_pool memory; /* the rest, reused within the step */
    ag_tensor **node;
    int64_t n, capacity;
    status err;
    ag_tape *scratch;       /* for recomputed segments */
    ag_tape *home;          /* of a scratch tape: the one it serves */
    /* settings, set by the caller before a run */
    bool no_grad;           /* nothing is kept for a backward pass */
    bool step_gradients;    /* gradients of parameters are the step's own, in memory that activations leave to them: ag_optimizer_step
                               or ag_params_clear_grad stands before the next ag_reset; else they are the parameters' and stay */
    bool quantize_off;      /* sites leave their input alone (fake-quant starts later: --quant-after) */
    bool weights_off, activations_off; /* the same of one kind of sites */
    kn_precision precision; /* of float products and of the backward pass */
    uint64_t int8_gradients; /* not 0: gradients of what integer weights with one scale a row multiply are made in 8 bits (kn_linear_back), rounded by this seed */
    uint32_t drawn;          /* how many such, since ag_reset */
    kn_packed packed;        /* their scratch */
    ag_tap tap;
    ag_tap backward_tap;    /* sees every linear map whose backward pass begins: the weight's name, the map's input and output, whose gradient is there */
};
status ag_status(const ag_tape *t); /* the first failure since ag_reset */
void ag_reset(ag_tape *t);          /* forgets the step; memory and settings stay. A zeroed tape is valid. */
void ag_tape_free(ag_tape *t);
size_t ag_tape_peak(const ag_tape *t); /* bytes, recompute scratch included */

/* Leaf over the caller's memory: value x, gradient g (NULL: none wanted; else accumulated into, the caller zeroes). */
ag_tensor *ag_leaf(ag_tape *t, real *x, real *g, int n_dim, const int64_t *dim);
status ag_backward(ag_tape *t, ag_tensor *loss); /* loss has one element; afterwards only leaf gradients are valid */

/* Nothing will read x in the forward pass any more: its memory is reused at once unless a backward pass needs the value. */
void ag_done(ag_tensor *x);
int64_t ag_count(const ag_tensor *a); /* elements */
int64_t ag_rows(const ag_tensor *a);  /* elements / last dimension */
int64_t ag_cols(const ag_tensor *a);  /* last dimension (1 for a scalar) */
const real *ag_value(const ag_tensor *a); /* x, decoded from the codes on first demand; NULL after a failure */
void ag_forget(ag_tensor *a);             /* gives back what ag_value decoded: the codes say it again */

/* For operators, here and in other folders. ag_node: shape, sources, `save_bytes` zeroed bytes at ->save; no value yet. ag_run: allocates ->x (unless
 * the operator set codes), runs forward, puts it on the tape. ag_take: memory of this step. */
ag_tensor *ag_node(ag_tape *t, const ag_op *op, int n_src, ag_tensor *const *src, int n_dim, const int64_t *dim, size_t save_bytes);
ag_tensor *ag_run(ag_tape *t, ag_tensor *out);
ag_tensor *ag_run_codes(ag_tape *t, ag_tensor *out); /* as ag_run for an operator that makes codes: no ->x is allocated */
void *ag_take(ag_tape *t, size_t bytes);              /* NULL: the tape has failed */
void ag_give_back(ag_tape *t, void *p, size_t bytes); /* of ag_take, same size: reused within the step */
ag_tensor *ag_fail(ag_tape *t, status s, const char *fmt, ...) __attribute__((format(printf, 3, 4))); /* returns NULL */
real *ag_grad(const ag_tensor *a);              /* to add into; zeroed at the first contribution. NULL: not wanted */
real *ag_grad_write(const ag_tensor *a, real *beta); /* beta 0: first contribution, every element must be written; else 1 */
/* The buffer of out's gradient becomes that of src, of the same shape, where src has none yet: to be changed in place. NULL, and nothing happened, where it cannot. */
real *ag_grad_handed_over(const ag_tensor *out, const ag_tensor *src);

/* Recompute (gradient checkpointing; Chen et al. 2016): only the result of segment(x, arg) is kept, the segment runs again in
 * the backward pass. A segment is a pure function of x, arg and parameters; gradients equal those without bit for bit. */
typedef ag_tensor *(*ag_segment)(ag_tape *t, ag_tensor *x, void *arg);
ag_tensor *ag_recompute(ag_tape *t, ag_segment f, ag_tensor *x, void *arg);

/* ---- parameters --------------------------------------------------------------------------- */

typedef enum { AG_WEIGHT, AG_NORM, AG_BIAS, AG_SCALE, AG_GROUP_COUNT } ag_group; /* what the optimizer treats alike */

struct ag_param {
    char *name; /* "layers.0.attn.wq.weight" */
    ag_group group;
    int n_dim;
    int64_t dim[AG_MAX_DIM];
    int64_t count;
    real *x, *g; /* g: NULL until it is first wanted */
    bool borrowed; /* g is a tape's (step_gradients) */
    real *m, *v;           /* the optimizer's moments: NULL until its first step, */
    uint16_t *m16, *v16;   /* or these, in bf16 */
    bool has_grad; /* g holds this step's gradient */
    bool frozen;   /* no gradient, no moments */
};
typedef struct {
    ag_param **p;
    int64_t n, capacity;
    uint64_t version; /* raised whenever values change: what caches of encoded weights compare */
} ag_params;
/* A new zeroed parameter; NULL with a message when out of memory or the name is taken. */
ag_param *ag_param_new(ag_params *ps, const char *name, ag_group group, int n_dim, const int64_t *dim);
ag_param *ag_param_find(const ag_params *ps, const char *name); /* NULL if absent */
int64_t ag_params_count(const ag_params *ps);                   /* elements, learned scales excluded */
ag_tensor *ag_use(ag_tape *t, ag_param *p);                     /* p as a leaf of this step */
void ag_params_clear_grad(ag_params *ps);
void ag_params_free(ag_params *ps);

/* ---- operators: x is [.., C]; leading dimensions are rows ---------------------------------- */
/* Each returns NULL (and the tape fails with the shapes in the message) if shapes do not fit. */

/* x [.., K], w [N, K], b [N] or NULL -> [.., N]; x w' + b. Integer product where both carry codes that allow it (kn_can_multiply), else by value at the
 * tape's precision. dx += dy w; dw += dy' x; db += column sums of dy. */
ag_tensor *ag_linear(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b);
ag_tensor *ag_matmul(ag_tape *t, ag_tensor *a, ag_tensor *b); /* a [M,K], b [K,N] -> [M,N] */
ag_tensor *ag_embedding(ag_tape *t, ag_tensor *w, const int32_t *id, int n_dim, const int64_t *dim); /* w [V,C], ids of shape dim -> [dim.., C]; ids are copied */
ag_tensor *ag_rmsnorm(ag_tape *t, ag_tensor *x, ag_tensor *w, real eps);               /* x/rms(x) * w */
ag_tensor *ag_layernorm(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b, real eps);
/* x [B, T, H*D] rotated by position; cos, sin [>= T, D/2] live as long as the tape. */
ag_tensor *ag_rope(ag_tape *t, ag_tensor *x, const real *cos, const real *sin, int64_t H, kn_rope_pairing pairing);
/* x [.., C] times H, every run of n = kn_hadamard_length(h) channels; C whole runs. h lives as long as the tape. */
ag_tensor *ag_hadamard(ag_tape *t, ag_tensor *x, const kn_hadamard *h);
/* q [B,T,H*D], k, v [B,T,G*D] -> [B,T,H*D]; causal, H/G query heads share a kv head; lengths [B] or NULL (right padding). q, k, v may carry codes. */
ag_tensor *ag_attention(ag_tape *t, ag_tensor *q, ag_tensor *k, ag_tensor *v, int64_t H, int64_t G, const int32_t *lengths, bool quantize_probs);
ag_tensor *ag_silu(ag_tape *t, ag_tensor *x);
ag_tensor *ag_gelu(ag_tape *t, ag_tensor *x, bool tanh_form);
ag_tensor *ag_relu(ag_tape *t, ag_tensor *x);
ag_tensor *ag_relu6(ag_tape *t, ag_tensor *x); /* min(max(x, 0), 6) */
ag_tensor *ag_swiglu(ag_tape *t, ag_tensor *gate, ag_tensor *up); /* silu(gate) * up */
ag_tensor *ag_softmax(ag_tape *t, ag_tensor *x);
ag_tensor *ag_add(ag_tape *t, ag_tensor *x, ag_tensor *y);        /* same shape, or y has x's last dimensions and is repeated: [C], [T,C] */
ag_tensor *ag_sub(ag_tape *t, ag_tensor *x, ag_tensor *y);        /* shapes as ag_add */
ag_tensor *ag_mul(ag_tape *t, ag_tensor *x, ag_tensor *y);        /* shapes as ag_add */
ag_tensor *ag_scale(ag_tape *t, ag_tensor *x, real a);
ag_tensor *ag_reshape(ag_tape *t, ag_tensor *x, int n_dim, const int64_t *dim); /* shares the value */
ag_tensor *ag_transpose(ag_tape *t, ag_tensor *x, int a, int b);  /* swaps two dimensions */
ag_tensor *ag_slice(ag_tape *t, ag_tensor *x, int axis, int64_t from, int64_t n);
ag_tensor *ag_concat(ag_tape *t, ag_tensor *x, ag_tensor *y, int axis);
ag_tensor *ag_dropout(ag_tape *t, ag_tensor *x, real p, uint64_t seed, uint64_t stream); /* x / (1-p) where kept; same (seed, stream): same mask */
ag_tensor *ag_sum(ag_tape *t, ag_tensor *x);                      /* scalar; sums in double */
ag_tensor *ag_mean(ag_tape *t, ag_tensor *x);
ag_tensor *ag_dot(ag_tape *t, ag_tensor *x, const real *r);       /* sum x*r, r of x's size and the tape's life -> scalar */
ag_tensor *ag_mse(ag_tape *t, ag_tensor *x, ag_tensor *y);        /* mean (x-y)^2 -> scalar */
ag_tensor *ag_relative_mse(ag_tape *t, ag_tensor *x, const real *y); /* mean (x-y)^2 / mean y^2, y constant, living as long as the tape -> scalar */
/* Rows of logits x [.., V] against targets [rows]; target < 0 is ignored; mean over the rest. label smoothing s: (1-s) on the target, s/V everywhere. */
ag_tensor *ag_cross_entropy(ag_tape *t, ag_tensor *x, const int32_t *target, real smoothing);

/* ---- pictures: rows [B, H*W*C], channels last (kernels.h) ---- */

/* x [B, H*W*C], w [N, K*K*C/groups], b [N] or NULL -> act(conv(x, w) + b) [B, OH*OW*N]; a linear map is a convolution of pictures of one point. Where x and w
 * carry codes that kn_conv_can_multiply allows: exact sums, the bias rounded to their unit, and the value made of them (ag_sums). */
ag_tensor *ag_conv(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b, const kn_conv *c, kn_activation act);
/* [B, H*W*C] -> [B, OH*OW*C]; codes where x carries codes of one scale, in the same scale. */
ag_tensor *ag_max_pool(ag_tape *t, ag_tensor *x, const kn_conv *c);
ag_tensor *ag_average_pool(ag_tape *t, ag_tensor *x, const kn_conv *c);
/* x [B, P*C], w, b [C] -> (x - mean[c]) / sqrt(variance[c] + eps) * w[c] + b[c], of the batch's own mean and variance (of N, not N - 1; Ioffe & Szegedy 2015), or
 * where mean and variance [C] are given, of those, as constants that live as long as the tape. */
ag_tensor *ag_batch_norm(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b, const real *mean, const real *variance, real eps);
/* What a batch norm has computed with: mean and variance [C] of its x. */
void ag_batch_norm_moments(const ag_tensor *out, const double **mean, const double **variance);

/* The head and its losses in one operator: logits = x w' + b are made in chunks of 256 or 512 rows and never kept whole; the gradient of the logits is made in
 * the same pass. L = mean over scored rows of
 *   ce * CE(target)  +  kl * tau^2 KL(P || Q)  +  reverse_kl * tau^2 KL(Q || P)  +  mse * mean_v (z - z_T)^2  +  cosine * (1 - cos(z, z_T))
 * with P, Q the softmaxes of the teacher's and the student's logits / tau. A row is scored where target >= 0. (Hinton et al. 2015; LLM-QAT, Liu et al. 2023) */
typedef struct {
    real ce, kl, reverse_kl, mse, cosine;
    real temperature; /* 0 means 1 */
    /* The teacher's logits for rows [row, row+n): writes dst [n, V]; NULL where no teacher term has weight. */
    status (*teacher)(void *ctx, real *dst, int64_t row, int64_t n);
    void *ctx;
} ag_head_loss;
typedef struct { /* sums over scored rows, for reports */
    double ce, kl;
    int64_t rows, same_top;
} ag_head_report;
/* x [.., C], w [V, C], b [V] or NULL, target [rows] (copied) -> scalar; report is written, may be NULL; its ce and kl are at temperature 1. */
ag_tensor *ag_head(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b, const int32_t *target, const ag_head_loss *loss, ag_head_report *report);

/* ---- optimizers --------------------------------------------------------------------------- */

typedef struct {
    bool sgd;                       /* SGD with momentum beta1 instead of AdamW (Loshchilov & Hutter 2019) */
    double lr, beta1, beta2, eps;
    double decay;                   /* decoupled, on AG_WEIGHT only */
    double rate[AG_GROUP_COUNT];    /* factor on lr per group; 0 means 1 */
    bool bf16_moments;              /* AdamW's moments of AG_WEIGHT in bf16 (kn_adamw_bf16): half the memory */
    double clip;                    /* largest norm of the gradient, learned scales excluded (they are clipped apart, to the same norm); 0: none */
} ag_optimizer;
ag_optimizer ag_adamw(double lr); /* beta .9, .999, eps 1e-8, no decay, clip 1.0 */
/* One step, the step-th (from 1). Parameters without a gradient or frozen stay. Raises ps->version; clears the gradients. AG_SCALE parameters hold
 * logarithms (fakequant.h), so one absolute rate is relative to their size; their eps is 1e-12. norm: the norm before clipping (may be NULL). NB_FORMAT if it is not finite (nothing changes). */
status ag_optimizer_step(const ag_optimizer *o, ag_params *ps, int64_t step, double *norm);

typedef enum { AG_CONSTANT, AG_LINEAR, AG_COSINE, AG_WSD } ag_schedule_kind;
typedef struct {
    ag_schedule_kind kind;
    int64_t steps, warmup;
    double decay_share; /* WSD: the last share of steps falls as 1 - sqrt(t) (default 0.4) */
    double floor;       /* lowest factor */
} ag_schedule;
/* Factor on lr for step 1..steps: (step/warmup) during warm-up, then constant 1 | linear to floor | half cosine to floor | constant, then 1 - sqrt. */
double ag_schedule_at(const ag_schedule *s, int64_t step);

#endif
