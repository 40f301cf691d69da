/* models.h - whole networks and their binding to files: open any model, save any export.
 *
 * A model is its config, one list of parameters, one list of sites, a recipe and a tokenizer. A float model is the same with an
 * empty recipe; a folded one has codes in its sites instead of latent floats.
 */
#ifndef NIBBLE_MODELS_H
#define NIBBLE_MODELS_H
#include "io/io.h"
#include "layers/layers.h"

/* "llama", the LLaMA family: RMSNorm, rotary positions, grouped heads, SwiGLU (Touvron et al. 2023).
 * "gpt2": LayerNorm, learned positions, GELU (tanh form), biases of every linear (Radford et al. 2019): kv_heads = heads,
 * heads * head_size = dim, qkv_bias and out_bias true; rope_* and pairing mean nothing. */
typedef struct {
    char architecture[16];
    int64_t dim, hidden, layers, heads, kv_heads, head_size, vocab, ctx;
    double norm_eps, rope_theta;
    kn_rope_pairing pairing;
    bool tied; /* the head is the embedding */
    bool qkv_bias, out_bias;
    bool hadamard; /* heads of q and k, and what down reads, are multiplied by Hadamard matrices (R3, R4 of SpinQuant) */
    /* llama3's scaling of rotary frequencies; factor 0: none */
    double rope_factor, rope_low, rope_high, rope_ctx;
    int64_t bos, eos;          /* ids; -1: none */
} md_config;
bool md_is_gpt2(const md_config *c);
status md_config_check(const md_config *c); /* NB_FORMAT and the field that makes no sense */
status md_config_from_json(md_config *c, const nb_json *j); /* nibble's own form, as md_config_to_json writes it */
void md_config_to_json(const md_config *c, nb_writer *w);   /* fields of the open object */
status md_config_from_text(md_config *c, const char *text, size_t bytes, const char *name); /* a JSON text: --config of train */
int64_t md_config_params(const md_config *c);

typedef struct {
    ly_norm attn_norm, mlp_norm;
    ly_attention attn;
    ly_mlp mlp;
    fq_site *attn_residual, *mlp_residual;
} md_block;

typedef struct {
    md_config config;
    fq_recipe recipe;
    ag_params params;
    fq_sites sites;
    fm_tokenizer tokenizer; /* kind NONE if there is none */
    uint8_t *gguf;          /* [gguf_bytes] metadata of the GGUF file it came from, itself one without arrays; NULL: from elsewhere */
    size_t gguf_bytes;
    ag_param *embed;        /* [V, C]; NULL: folded */
    fq_site *embed_site;
    ly_linear position;     /* GPT-2's, w [ctx, C]; empty: positions are rotary */
    md_block *block;        /* [layers] */
    ly_norm norm;
    ly_linear head;         /* of an untied model */
    fq_site *head_input;
    kn_hadamard *turn_head, *turn_hidden; /* NULL: not config.hadamard */
    real *cos, *sin;        /* [ctx, head_size/2]; NULL: positions are learned */
    bool folded;
} md_model;

#define MD_UNSET LY_UNSET
/* Builds the modules of a config with a recipe (copied) and normal start values (deviation 0.02, outputs into the residual stream / sqrt(2 layers)).
 * seed MD_UNSET: they stay 0,
 * for a caller who loads them. codes_only: weights with a spec get no latent floats. A zeroed md_model is a valid empty one. */
status md_build(md_model *m, const md_config *c, const fq_recipe *recipe, uint64_t seed, bool codes_only);
void md_free(md_model *m);
/* Gives a tied model a head of its own, a copy of the embedding, under the rules of head.weight; what is untied already stays.
 * The two matrices' ranges start anew (fq_start_weights). NB_USAGE where m is folded; m is unchanged on failure. */
status md_untie(md_model *m);
/* The same model with config.hadamard: down's weights are still those for inputs that are not turned, multiplying them by H (of kn_hadamard_new(hidden)) from the
 * right is the caller's (pt_rotate). */
status md_turn(md_model *m);
/* to <- the config and latent floats of `from` under another recipe, ranges not started. md_replace: m becomes what `by` is, with m's tokenizer and metadata;
 * by is empty afterwards. */
status md_with_recipe(md_model *to, const md_model *from, const fq_recipe *recipe);
/* fq_site_loosen of every weight with codes of m, by the weights of the float model that they were found for. NB_USAGE: a model of another shape. */
status md_loosen(md_model *m, const md_model *floats);
void md_replace(md_model *m, md_model *by);
/* Rounds weights that a recipe leaves as stored floats ("float f16") in place to what they are stored as: for a model that is not
 * trained on. The tape, folding and exports do so by themselves; the runtime takes a weight as it finds it. */
void md_store_floats(md_model *m);

/* Sizes for tables: bytes of codes (packed to their bits), scales, zeros and float tensors as a folded file holds them; bits per parameter = 8 bytes / params. */
typedef struct {
    int64_t params;
    int64_t code_bytes, scale_bytes, zero_bytes, float_bytes;
} md_size;
void md_measure(md_size *size, const md_model *m);
/* Bytes of one weight [rows, cols] by its spec, codes, scales and zeros; as floats where it has no codes. */
int64_t md_weight_bytes(const fq_spec *spec, int64_t rows, int64_t cols);
static inline int64_t md_size_bytes(const md_size *s)
{
    return s->code_bytes + s->scale_bytes + s->zero_bytes + s->float_bytes;
}

/* ---- forward on the tape ------------------------------------------------------------------ */

typedef struct {
    int64_t B, T;
    const int32_t *ids;      /* [B, T] */
    const int32_t *lengths;  /* [B] or NULL: right padding from there on */
    bool recompute;          /* blocks are gradient-checkpointed */
    ag_tensor **hidden;      /* [layers] or NULL: takes each block's output */
} md_input;
typedef struct {
    ag_tensor *x;    /* [B, T, C]: normalized and through head.input: ready for ag_head or ag_linear */
    ag_tensor *w, *b; /* the head's weight through its site [V, C]; b NULL */
} md_output;
/* Fails on the tape (ag_status). ids outside the vocabulary: NB_USAGE. */
md_output md_forward(ag_tape *t, md_model *m, const md_input *in);
/* Its parts, for whoever walks a model layer by layer: forward = finish(blocks(embed)), bit for bit. x that goes in has no readers
 * afterwards (ag_done); NULL in, NULL out, and the tape has failed.
 * md_embed: ids -> x [B, T, C], what the first block reads. md_block_forward: block `layer` (0 to layers - 1), x [B, T, C] -> [B, T, C];
 * lengths as in md_input. md_finish: x [B, T, C] of the last block -> norm, head.input, the head's weight. */
ag_tensor *md_embed(ag_tape *t, md_model *m, const md_input *in);
ag_tensor *md_block_forward(ag_tape *t, md_model *m, int64_t layer, ag_tensor *x, const int32_t *lengths);
md_output md_finish(ag_tape *t, md_model *m, ag_tensor *x);

/* ---- files -------------------------------------------------------------------------------- */

typedef struct {
    const char *recipe;    /* name or file; NULL: float (a folded file keeps its own) */
    const char *tokenizer; /* path, or NULL: what the file carries, else none */
    bool train;            /* latent floats are wanted: a folded file must carry /param */
    bool untie;            /* md_untie */
    bool fold;             /* weights with a spec become codes as they are read, one at a time in floats: the model is folded, and never stood in memory
                              as floats. Of a float model under `recipe`; not with untie */
    fq_start start;        /* of fold: FQ_START_ABSMAX or FQ_START_MSE */
} md_open_options;
/* Opens a GGUF file, a llama2.c file (v0, v1, v2), a safetensors file or Hugging Face folder, a nibble HDF5 file (checkpoint's or folded model), seen from its content. Quantized files are
 * decoded to floats. Names the file and the tensor in every refusal. */
status md_open(md_model *m, const char *path, const md_open_options *o);

/* GGUF's name of a tensor of a model: "layers.3.attn.wq.weight" -> "blk.3.attn_q.weight" (gpt2: attn_qkv). False: it has none. */
bool md_gguf_name(char *text, size_t bytes, const md_config *c, const char *name);

/* Parameters (and site states) of m into / out of an open HDF5 file: /param/NAME, /site/NAME, attributes config, recipe; /tokenizer. as: FM_F32, FM_F16 or FM_BF16 storage. */
status md_save_params(md_model *m, fm_h5 *f, fm_dtype as);
status md_load_params(md_model *m, fm_h5 *f); /* every parameter must be there, of its shape */
status md_save_header(const md_model *m, fm_h5 *f); /* config, recipe, tokenizer, gguf */
status md_load_header(md_model *m, fm_h5 *f);       /* these alone, of a model that is not built; m is empty after a failure */

/* Folded model, HDF5 kind "folded": /tensor/NAME/{codes,scales,zeros} with the spec as an attribute, other parameters as floats beside them; latent: also
 * /param and site states, so that training can start from it. */
status md_save_folded(md_model *m, const char *path, bool latent);
/* Float model (no recipe, or latent values of one), HDF5 kind "model". md_save_values: of a model with codes, what they decode to;
 * rounded (or NULL) takes how many values are not exact in `as`. */
status md_save_model(md_model *m, const char *path, fm_dtype as);
status md_save_values(md_model *m, const char *path, fm_dtype as, int64_t *rounded);

/* Exports. Which target holds which recipe exactly is the table md_targets; "no" is refused with the reason and a recipe that fits. report (or NULL) takes what the
 * user should know ("codes exact; llama.cpp computes with Q8_0 activations"); */
typedef struct md_target {
    const char *name;        /* "llama2c", "gguf", "gguf-f16", "safetensors", "h5", ... */
    const char *explanation; /* what is written, when it is exact */
    bool has_codes;          /* codes as they are; else values, as `floats`: F32, F16 or BF16 */
    bool is_folder;
    fm_dtype floats;
    status (*check)(const md_model *m, const struct md_target *t, char *report, size_t bytes);
    status (*write)(md_model *m, const struct md_target *t, const char *path, char *report, size_t bytes);
} md_target;
const md_target *md_targets(int64_t *n);
const md_target *md_target_find(const char *name); /* NULL: there is none; the message lists them */
/* What holds which shipped recipe: exact | exact, hidden padded with zeros where it is not whole groups | decoded values rounded | refused. Columns as md_targets.
 * Custom recipes: check(). */
typedef enum { MD_NO, MD_EXACT, MD_PADDED, MD_ROUNDED } md_fit;
enum { MD_TARGETS = 12 };
typedef struct {
    const char *recipe;
    md_fit fit[MD_TARGETS];
} md_recipe_fit;
const md_recipe_fit *md_recipe_fits(int64_t *n);
status md_export(md_model *m, const char *target, const char *path, char *report, size_t report_bytes);

/* ---- networks for pictures ---------------------------------------------------------------- */

/* Described by a text, a stage a line, # comments:
 *   input H W C                                                          first; numbers 0..1, channels last
 *   conv N K [stride S] [pad P] [dilation D] [groups G | depthwise] [norm] [relu | relu6]
 *   linear N [relu | relu6]                                              of all that comes in
 *   maxpool K [stride S]  |  avgpool K | all [stride S]  |  dropout P  |  flatten
 * The last stage is linear and gives a number for each class. Weights and results are called layers.0, layers.1, ..., the last one head. */
typedef enum { MD_STAGE_CONV, MD_STAGE_MAX_POOL, MD_STAGE_AVERAGE_POOL, MD_STAGE_DROPOUT, MD_STAGE_FLATTEN } md_stage_kind;
typedef struct {
    md_stage_kind kind;
    kn_conv c; /* of a conv, a linear (1 x 1 points) and a pool */
    kn_activation act;
    bool norm;
    double p; /* dropout's */
} md_stage;
typedef struct {
    int64_t height, width, channels, classes;
    md_stage *stage;
    int64_t n;
} md_stages;
/* The text of a shipped network ("simplenet", "simplecnn", "dscnn"); NULL: there is none of that name. */
const char *md_stages_named(const char *name);
status md_stages_parse(md_stages *s, const char *text, size_t bytes, const char *name); /* NB_FORMAT: name, line, what is wrong */
char *md_stages_text(const md_stages *s); /* parses back to the same; caller frees; NULL: out of memory */
void md_stages_free(md_stages *s);

typedef struct {
    md_model base; /* recipe, params, sites, folded; no config of a language model */
    md_stages stages;
    fq_site *input;  /* [H*W*C] */
    ly_conv *layer;  /* [layers] */
    int64_t layers;
} md_picture_net; /* does not move: sites point into it */
/* Builds the modules, the stages copied; seed and codes_only as md_build. Empty after a failure. */
status md_net_build(md_picture_net *m, const md_stages *s, const fq_recipe *recipe, uint64_t seed, bool codes_only);
/* The same function under a recipe (NULL: in floats): batch norms folded into the convolutions before them, w times norm / sqrt(variance + eps), the rest into the bias. */
status md_net_with_recipe(md_picture_net *dst, const md_picture_net *src, const fq_recipe *recipe);
/* Layers i and i + 1 that may be scaled against each other without changing the function: not behind ReLU6. Both have float weights, norms folded.
 * extremes: rows [N] largest |w| of the row that makes each of the N channels, readers [N] of all weights of layer i + 1 that read it.
 * scale_pair: row c of layer i and its bias / s[c], what reads it * s[c]; s [N] > 0. Their ranges begin anew. */
bool md_net_is_pair(const md_picture_net *m, int64_t i);
void md_net_extremes(real *rows, real *readers, const md_picture_net *m, int64_t i);
void md_net_scale_pair(md_picture_net *m, int64_t i, const real *s);
/* Cross-layer equalization (picture_equalize.c): the same function, neighbouring channels of one magnitude. Float weights, norms folded; ranges begin anew. */
status md_net_equalize(md_picture_net *m);
void md_net_free(md_picture_net *m);
typedef struct {
    bool training;         /* dropout, the batch's own moments */
    uint64_t seed, stream; /* of dropout; stream: the step */
} md_net_run;
/* x [B, H*W*C] -> logits [B, classes]. md_net_stage: one stage of it, x the result of the stage before (of the first: of the input's site). */
ag_tensor *md_net_stage(ag_tape *t, const md_picture_net *m, int64_t stage, ag_tensor *x, const md_net_run *run);
ag_tensor *md_net_forward(ag_tape *t, const md_picture_net *m, ag_tensor *x, const md_net_run *run);
/* Files of kind "picture" (attribute stages; recipe, /param, /site as of a language model) and "picture-folded" (as folded ones). save_state: into an open file.
 * open: a file, or a folder's last.h5; recipe (NULL: the file's own) turns a float network with md_net_with_recipe. */
status md_net_save_state(md_picture_net *m, fm_h5 *f);
status md_net_save_folded(md_picture_net *m, const char *path);
status md_net_save(md_picture_net *m, const char *path);
status md_net_open(md_picture_net *m, const char *path, const fq_recipe *recipe);
status md_net_load_state(md_picture_net *m, fm_h5 *f);
/* ONNX with QuantizeLinear and DequantizeLinear, opset 21 (picture_onnx.c): input "picture" [batch, C, H, W] of 0..1, output "logits" [batch, classes].
 * NB_UNSUPPORTED and the site where ranges are not static, or codes of more than 8 bits. */
status md_net_write_onnx(md_picture_net *m, const char *path);
bool md_is_net(const char *path); /* whether path is such a file, or a folder with one */

#endif
