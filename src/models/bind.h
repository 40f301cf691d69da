/* bind.h - the tensors of a model by name, shape and place, in every naming; and their values, whatever they are stored as. One
 * list that all readers and writers of this folder walk. Private to models/.
 */
#ifndef NIBBLE_MODELS_BIND_H
#define NIBBLE_MODELS_BIND_H
#include "models/models.h"

typedef enum { MD_NIBBLE, MD_LLAMA2C, MD_HF, MD_GGUF, MD_NAMINGS } md_naming;
typedef enum { MD_MATRIX, MD_NORM, MD_BIAS } md_kind;

enum { MD_NAME = 128 };
typedef struct {
    const char *const *name;   /* [MD_NAMINGS], without the layer's prefix; NULL: that format has none */
    const char *const *prefix; /* [MD_NAMINGS], of the layers */
    md_kind kind;
    int64_t layer;      /* -1: outside the layers */
    int64_t rows, cols; /* rows 1 for norms and biases */
    int64_t head_size;  /* rows (of a bias: elements) are rotated in pairs inside heads of this size; 0: they are not */
    int64_t part, parts; /* Hugging Face and GGUF have `parts` of these below each other in one array (q, k, v); this is number `part` */
    bool is_conv1d;      /* Hugging Face has it transposed, [cols, rows]; parts stand beside each other there */
} md_tensor;
/* All tensors of a config in the order of the model's parameters; the caller frees *t. Two configs that differ in sizes only give lists of the same
 * order. */
status md_tensors_new(md_tensor **t, int64_t *n, const md_config *c);
bool md_tensor_name(char text[MD_NAME], const md_tensor *t, md_naming naming); /* false: that format has none */
int64_t md_tensor_count(const md_tensor *t);                                   /* elements */
int md_tensor_dim(int64_t dim[2], const md_tensor *t);                         /* how many dimensions: 2, or 1 */
int64_t md_tensor_parts(const md_tensor *t, md_naming naming); /* how many tensors share its array in that format: 1, or t->parts */
bool md_is_transposed(const md_tensor *t, md_naming naming);
int md_array_dim(int64_t dim[2], const md_tensor *t, md_naming naming); /* the dimensions of that array */

/* Which row (element of a bias) of a tensor paired as `from` stands at `row` when it is paired as `to`: HALF 0 1 2 | 3 4 5 and INTERLEAVED 0 3 1 4 2 5 are the
 * same rotation. */
int64_t md_paired_row(int64_t row, int64_t head_size, kn_rope_pairing to, kn_rope_pairing from);

/* The values of one tensor of a model: codes where its site quantizes it (encoded now if they are stale), else floats. */
typedef struct {
    const kn_codes *codes; /* NULL: floats */
    const real *x;         /* [rows, cols], NULL with codes */
    const kn_grid *stored; /* the type that rounds x ("float f16"), or NULL */
} md_values;
status md_values_of(md_values *v, const md_model *m, const md_tensor *t);
void md_values_row(real *dst, const md_values *v, const md_tensor *t, int64_t row); /* dst [cols] */

/* NB_FORMAT unless every array that the config asks for is there with its shape, under prefix + its name. This precedes all allocations that a config's numbers
 * decide. */
status md_check_arrays(const fm_arrays *a, const md_config *c, md_naming naming, const char *prefix);
/* NB_FORMAT where the rotation tables of ctx positions would be out of proportion to the bytes of the file's arrays. */
status md_check_ctx(const md_config *c, const fm_arrays *a);
/* dst [n] <- all of an array as finite floats. NB_FORMAT names it and the first element that is not finite. */
status md_read_floats(real *dst, const fm_array *a);

/* Moves to m what a model has beside its numbers: tokenizer and GGUF metadata. */
void md_carry(md_model *to, md_model *from);

/* The readers behind md_open. Each leaves m as md_build makes it, or empty after a failure. recipe: what o->recipe
 * names, or NULL. o: never NULL. */
status md_open_llama2c(md_model *m, const char *path, const fq_recipe *recipe, const md_open_options *o);
status md_open_hf(md_model *m, const char *path, const fq_recipe *recipe, const md_open_options *o);
status md_open_gguf(md_model *m, const char *path, const fq_recipe *recipe, const md_open_options *o);
status md_open_h5(md_model *m, const char *path, const fq_recipe *recipe, const md_open_options *o);
status md_open_folded(md_model *m, fm_h5 *f, bool train); /* of an open file of kind "folded" */
/* The tokenizer at path (or in the folder) for a model, whose bos and eos become its own. It may have fewer pieces than the model has ids (padded
 * vocabularies): an eighth, at most 1024; never more. */
status md_attach_tokenizer(md_model *m, const char *path);
status md_take_tokenizer(md_model *m, fm_tokenizer *tk, const char *path); /* the same with one that was read: it is the model's now, or freed */
/* Fills the latent weights of a built model from arrays: /param of HDF5 (prefix "param/"), or a foreign naming. Learned scales stay at their start. */
status md_load_weights(md_model *m, const fm_arrays *a, md_naming naming, const char *prefix, const md_open_options *o);
/* The same from whatever reads a tensor's values: read(ctx, dst [rows, cols], t). Weights of a model without their floats (o->fold) become codes. */
status md_load_each(md_model *m, status (*read)(void *ctx, real *dst, const md_tensor *t), void *ctx, const md_open_options *o);

/* Parts of the HDF5 form (model_file.c). with_weights false: sites of activations only, as in a folded file without latent
 * floats. md_load_param: one dataset of exactly its shape, finite. */
status md_save_latent(const md_model *m, fm_h5 *f, fm_dtype as);
status md_save_site_states(const md_model *m, fm_h5 *f, bool with_weights);
status md_load_site_states(md_model *m, fm_h5 *f, bool with_weights);
status md_load_param(ag_param *p, fm_h5 *f, const char *name);

/* Bytes in a folded file (folded.c). md_is_float: a parameter that stands there as floats: neither the latent of codes nor the learned
 * scale of a weight. */
int64_t md_code_bytes(const kn_grid *g, int64_t rows, int64_t cols);
int64_t md_scale_bytes(const kn_grid *g, int64_t rows, int64_t cols);
int64_t md_zero_bytes(const kn_grid *g, int64_t n_scales);
bool md_is_float(const md_model *m, const ag_param *p);
fm_dtype md_scale_dtype(const kn_grid *g); /* what scales, or their codes, are stored as (folded_scales.c) */
status md_save_scales(fm_h5 *f, const char *tensor, const kn_codes *c);
status md_load_scales(kn_codes *c, fm_h5 *f, const char *tensor); /* finite, or NB_FORMAT */
fm_dtype md_stored_as(const md_model *m, const char *param); /* what such a one is stored as: F32, or as its spec says */

/* What divides llama3's rotary frequencies: factor [head_size / 2]. */
void md_rope_factors(real *factor, const md_config *c);

#endif
