/* blockap.c - all parameters of a block trained on its error: weights, their ranges, norms, biases (Block-AP of EfficientQAT, Chen et al. 2024).
 *   AdamW without decay, half a cosine down to a twentieth; the straight-through estimator and ranges as in training (op_fake.c)
 */
#include "ptq/block_train.h"
#include "ptq/blockwise.h"

static status begin(pt_block *b)
{
    const ag_params *ps = &b->m->params;
    for (int64_t i = 0; i < ps->n; i++)
        if (pt_is_of_block(ps->p[i]->name, b->layer) && !ps->p[i]->frozen)
            TRY(pt_block_train(b, ps->p[i]));
    return NB_OK;
}

status pt_blockap(md_model *m, const pt_options *o)
{
    static const pt_block_method how = {
        .name = "blockap", .lr = 1e-4, .scale_rate = 1e-3, .schedule = {.kind = AG_COSINE, .warmup = 5, .floor = 0.05}, .begin = begin};
    return pt_train_blocks(m, o, &how);
}
