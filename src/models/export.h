/* export.h - what the exports share: a model's tensors side by side with the file's (padded, renamed, in another pairing), rows as floats and
 * as integer operands, the report. Private to models/.
 */
#ifndef NIBBLE_MODELS_EXPORT_H
#define NIBBLE_MODELS_EXPORT_H
#include "models/bind.h"

typedef struct {
    const md_model *m;
    md_config shape;      /* as the file has it: hidden may be larger, pairing another */
    md_naming naming;
    md_tensor *own, *out; /* [n]: the model's tensors, and the same in the file; those of one array are neighbours */
    int64_t n;
    char (*name)[MD_NAME]; /* [n]: in the file's naming */
    int64_t rounded;       /* values put so far that their type does not hold exactly */
} md_exporting;
/* hidden: the file's; new gate and up rows and down columns are zeros, which changes no output of SwiGLU or GELU. */
status md_exporting_new(md_exporting *e, const md_model *m, md_naming naming, kn_rope_pairing pairing, int64_t hidden);
void md_exporting_free(md_exporting *e);
int64_t md_exporting_find(const md_exporting *e, const char *name); /* index of the array's first tensor, -1 if there is none */
int64_t md_exporting_next(const md_exporting *e, int64_t i);        /* behind all tensors of the array that begins with tensor i */

/* The model's row that stands at `row` of tensor i in the file; -1: a row of padding. */
int64_t md_source_row(const md_exporting *e, int64_t i, int64_t row);
/* Puts the array that begins with tensor i into the sink as F32, F16 or BF16. NB_UNSUPPORTED for a value beyond the range of F16. */
status md_put_floats(fm_sink *sink, md_exporting *e, int64_t i, fm_dtype t);
/* dst [n] <- x as F16 or BF16, *rounded += how many are not exact; name is for messages. */
status md_narrow(uint16_t *dst, const real *x, int64_t n, fm_dtype t, const char *name, int64_t *rounded);
/* dst [n] <- mul*q + add - zero of the columns [0, cols) of a row, zeros behind them: value = operand * scale. The grid's operands fit int8. */
void md_operands(int8_t *dst, int64_t n, const kn_codes *c, int64_t row);
bool md_operands_fit(const kn_grid *g, int lo, int hi); /* whether all operands the grid can make lie in lo..hi */
/* Whether each run of `run` columns, counted from the row's start, has one scale. */
bool md_runs_share_scale(const kn_grid *g, int64_t cols, int64_t run);

/* Appends a line to a report (NULL: nothing). md_say_inputs: what the model's linears were trained to take, against what the client gives them. */
void md_say(char *report, size_t bytes, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void md_say_inputs(char *report, size_t bytes, const md_model *m, const char *client);
void md_say_floats(char *report, size_t bytes, fm_dtype t, int64_t rounded); /* rounded -1: not written yet */

/* Parts of files that all kinds of networks share: the recipe; codes, floats and states of sites of a folded one, with its latent floats. */
status md_save_recipe(const fq_recipe *r, fm_h5 *f);
status md_load_recipe(fq_recipe *r, fm_h5 *f);
status md_save_codes(md_model *m, fm_h5 *f, bool latent);
status md_load_codes(md_model *m, fm_h5 *f);

/* The targets' functions (md_target). */
#define MD_TARGET_LIST(X) X(llama2c) X(llama2c_floats) X(gguf) X(safetensors) X(h5)
#define X(name)                                                                                                        \
    status md_check_##name(const md_model *m, const md_target *t, char *report, size_t bytes);                         \
    status md_write_##name(md_model *m, const md_target *t, const char *path, char *report, size_t bytes);
MD_TARGET_LIST(X)
#undef X

/* GGUF's metadata of a model (gguf_keys.c): its source's, with what changed. The architecture is "qwen2" where q, k and v alone have biases, the pairing is half
 * and heads * head_size = dim, "gpt2" where the model's is, else "llama". file_type: llama.cpp's number for the mix of types; coded: some are blocks. */
const char *md_gguf_architecture(const md_model *m);
status md_gguf_keys(fm_meta *meta, const md_exporting *e, int file_type, bool coded);

#endif
