/* layers.h - modules: a struct of parameters and sites, an init that registers them, a forward on the tape.
 *
 * The structs are open: the runtime walks the same modules without a tape. A module owns nothing: parameters belong to the
 * ag_params, sites to the fq_sites of the ly_build that made it.
 */
#ifndef NIBBLE_LAYERS_H
#define NIBBLE_LAYERS_H
#include "fakequant/fakequant.h"

#define LY_UNSET UINT64_MAX /* as the seed: values stay 0 */
/* What every init needs: where to register, which recipe, how to start. */
typedef struct {
    ag_params *params;
    fq_sites *sites;
    const fq_recipe *recipe;
    uint64_t seed;  /* of the start values */
    bool codes_only; /* a folded model: weights that the recipe quantizes have no latent floats */
} ly_build;

/* y [.., out] = x [.., in] w[out, in]' + b. Parameters NAME.weight, NAME.bias; sites of the same names. */
typedef struct {
    int64_t in, out;
    ag_param *w, *b;        /* w NULL: folded; b NULL: none */
    fq_site *w_site, *b_site;
} ly_linear;
/* deviation: of the normal start values. alias: a second site name whose rules apply to the weight, or NULL. */
status ly_linear_init(ly_linear *l, ly_build *build, const char *name, const char *alias, int64_t in, int64_t out, bool bias, double deviation);
ag_tensor *ly_linear_forward(ag_tape *t, const ly_linear *l, ag_tensor *x);
ag_tensor *ly_weight(ag_tape *t, const ly_linear *l); /* the weight through its site */
ag_tensor *ly_bias(ag_tape *t, const ly_linear *l);   /* the bias through its site; NULL where there is none */

/* RMSNorm (b NULL) or LayerNorm over the last dimension. Parameters NAME.weight, NAME.bias. */
typedef struct {
    ag_param *w, *b;
    real eps;
} ly_norm;
status ly_norm_init(ly_norm *l, ly_build *build, const char *name, int64_t channels, bool layernorm, double eps);
ag_tensor *ly_norm_forward(ag_tape *t, const ly_norm *l, ag_tensor *x);
void ly_norm_rows(real *y, const ly_norm *l, const real *x, int64_t M); /* the same without a tape, bit for bit: x, y [M, C] */

/* Causal attention with grouped heads, rotary positions where there are tables of them: x [B,T,C] (normalized) -> [B,T,C].
 * Sites: NAME.input (one encoding for q, k and v), NAME.{q,k,v}, NAME.probs, NAME.out.input. Where the spec of k says offset,
 * the frozen parameter NAME.k.offset [kv heads * head size] is taken from the keys; calibration sets it, until then it is 0. */
typedef struct {
    int64_t heads, kv_heads, head_size;
    ly_linear wq, wk, wv, wo;
    fq_site *input, *q, *k, *v, *probs, *out_input;
    ag_param *k_offset;    /* NULL: none */
    const kn_hadamard *turn; /* [head_size], the model's: heads of q and k after their rotation are multiplied by it, scores stay (R3); NULL: not */
    kn_rope_pairing pairing;
    const real *cos, *sin; /* [ctx, head_size/2], the model's; NULL: no rotation */
} ly_attention;
typedef struct {
    int64_t channels, heads, kv_heads, head_size;
    bool qkv_bias, out_bias;
    kn_rope_pairing pairing;
    const real *cos, *sin;
    double deviation, out_deviation;
} ly_attention_config;
status ly_attention_init(ly_attention *l, ly_build *build, const char *name, const ly_attention_config *c);
/* lengths [B] or NULL: right padding */
ag_tensor *ly_attention_forward(ag_tape *t, const ly_attention *l, ag_tensor *x, const int32_t *lengths);

/* LY_SWIGLU: down(silu(gate(x)) * up(x)), no biases. Sites NAME.input, NAME.act (silu's output), NAME.down.input.
 * LY_GELU: down(gelu(up(x))), GELU in its tanh form, with biases; gate, act are empty. What down reads is one-sided: rules for
 * NAME.gelu apply to NAME.down.input too, so that a recipe can give it a zero point. */
typedef enum { LY_SWIGLU, LY_GELU } ly_activation;
typedef struct {
    ly_activation activation;
    ly_linear gate, up, down;
    fq_site *input, *act, *down_input;
    const kn_hadamard *turn; /* [hidden], the model's: what down reads is multiplied by it (R4); NULL: not */
} ly_mlp;
status ly_mlp_init(ly_mlp *l, ly_build *build, const char *name, ly_activation activation, int64_t channels, int64_t hidden,
                   double deviation, double out_deviation);
ag_tensor *ly_mlp_forward(ag_tape *t, const ly_mlp *l, ag_tensor *x);

/* Convolution of pictures [B, H*W*C], or a linear map (pictures of one point), with batch norm and activation: act(norm(conv(x) + b)). Parameters NAME.weight
 * [N, K*K*C/groups], NAME.bias (none beside a norm), NAME.norm.{weight,bias}, and frozen NAME.norm.{mean,variance}, the running moments. Sites NAME.weight,
 * NAME.output (after the activation). */
typedef struct {
    kn_conv c;
    kn_activation act;
    char name[64];
    ag_param *w, *b, *norm_w, *norm_b, *mean, *variance; /* w NULL: folded; norms NULL: none */
    fq_site *w_site, *output;
} ly_conv;
#define LY_NORM_EPS 1e-5
status ly_conv_init(ly_conv *l, ly_build *build, const char *name, const kn_conv *c, kn_activation act, bool norm);
/* training: the batch's own moments, which a tap is shown as site "NAME.norm" (ag_batch_norm_moments of its out). */
ag_tensor *ly_conv_forward(ag_tape *t, const ly_conv *l, ag_tensor *x, bool training);

#endif
