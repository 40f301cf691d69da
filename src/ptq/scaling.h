/* scaling.h - channels of a tensor made smaller where it is made and weights larger where it is read, or the reverse: the same function
 * (private to ptq/). */
#ifndef NIBBLE_PTQ_SCALING_H
#define NIBBLE_PTQ_SCALING_H
#include "ptq/ptq.h"

/* A tensor that a norm's weights or a linear's rows scale and linears read: n(x) w' = (n(x) / s) (w diag(s))'. */
typedef struct {
    fq_site *input;       /* the site of what is read */
    int64_t channels;     /* of the source: how many s there are */
    ly_norm *norm;        /* the source is a norm, or */
    ly_linear *source;    /* a linear's rows */
    ly_linear *reader[3];
    int n;
    int64_t head, repeat; /* values of a kv head are read `repeat` times, once per query head; else repeat 1 */
} pt_pair;
enum { PT_PAIRS = 4 };
/* The inputs of a block's linears in the order of its forward, each with the linears that read it, whether or not a source scales it (norm and
 * source NULL): attn.input, attn.out.input, mlp.input, mlp.down.input. Always PT_PAIRS of them. */
void pt_readers(pt_pair pair[PT_PAIRS], md_model *m, int64_t layer);
/* The exact pairs of a block, in the order of its forward: attn.input (norm -> q, k, v), attn.out.input (v -> o), mlp.input (norm -> gate, up), and
 * where up is linear in what down reads (SwiGLU) and no Hadamard matrix mixes its channels mlp.down.input (up -> down). */
int pt_pairs(pt_pair pair[PT_PAIRS], md_model *m, int64_t layer);
int64_t pt_pair_channel(const pt_pair *p, int64_t column); /* which s a column of the readers takes */
/* Source / s (its bias too), columns of readers * s; s [channels], > 0. Their ranges begin anew; the caller raises the
 * parameters' version. */
void pt_scale_pair(const pt_pair *p, const real *s);

/* Rows of keys / s, of the queries that read them * s: scores stay, s [kv_heads, head_size / 2] being the same for both halves of a rotated pair. Ranges of
 * both weights begin anew; the caller raises the parameters' version. */
void pt_scale_keys(const ly_attention *a, const real *s);
void pt_pair_halves(int64_t half[2], const ly_attention *a, int64_t i); /* the channels of a head that pair i turns into each other */

/* What goes into a site, by channel. A zeroed struct is empty. */
typedef struct {
    const char *site;
    int64_t C;
    double rows;
    double *sum, *magnitude; /* [C] of x, of |x| */
    real *largest;           /* [C] |x| */
    real *gram;              /* [C, C] sums of x x', or NULL: not wanted */
    real *sample;            /* [sampled, C] rows, one drawn of every `stride` */
    int64_t sampled, most, stride;
    kn_precision precision;
} pt_input;
/* most: rows that are kept of `expected`; 0: none. */
status pt_input_new(pt_input *g, const fq_site *site, bool gram, int64_t most, int64_t expected, kn_precision p);
void pt_input_free(pt_input *g);
typedef struct {
    pt_input *input;
    int n;
} pt_inputs;
void pt_gather(void *inputs, const char *site, const ag_tensor *in, const ag_tensor *out); /* a tap's fn, pt_inputs as ctx */

status pt_run_awq(md_model *m, const pt_options *o);
status pt_run_smoothquant(md_model *m, const pt_options *o);
/* Every channel of inputs, keys and values gets the same largest magnitude on o->data (alpha 1 everywhere). */
status pt_level_channels(md_model *m, const pt_options *o);
status pt_run_equalize(md_model *m, const pt_options *o);
status pt_run_biascorrect(md_model *m, const pt_options *o);
extern const pt_setting pt_smoothquant_settings[];

#endif
