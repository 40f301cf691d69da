/* op_embedding.c - rows of a table by number.
 *   y[i,c] = w[id[i],c]        dw[id[i],c] += dy[i,c], i ascending
 * A table that carries codes only is decoded row by row, never whole.
 */
#include "op.h"
#include <string.h>

static void embedding_forward(ag_tensor *out)
{
    const ag_tensor *w = out->src[0];
    const int32_t *id = out->save;
    int64_t n = ag_rows(out), C = ag_cols(out);
    const real *x = w->codes && !w->x ? NULL : ag_in(out, 0);
    if (!x && out->tape->err)
        return;
#pragma omp parallel for if (n * C > AG_PARALLEL)
    for (int64_t i = 0; i < n; i++) {
        if (x)
            memcpy(out->x + i * C, x + id[i] * C, (size_t)C * sizeof *x);
        else
            kn_decode(out->x + i * C, w->codes, id[i], 1);
    }
}

/* Threads share out the columns: each adds its own for all rows, in order. */
static void embedding_backward(const ag_tensor *out)
{
    enum { COLUMNS = 32 };
    const int32_t *id = out->save;
    int64_t n = ag_rows(out), C = ag_cols(out);
    real *g = ag_grad(out->src[0]);
    if (!g)
        return;
#pragma omp parallel for if (n * C > AG_PARALLEL)
    for (int64_t c = 0; c < C; c += COLUMNS) {
        int64_t end = C - c < COLUMNS ? C : c + COLUMNS;
        for (int64_t i = 0; i < n; i++) {
            const real *dy = out->g + i * C;
            real *d = g + id[i] * C;
            for (int64_t j = c; j < end; j++)
                d[j] += dy[j];
        }
    }
}

static const ag_op op_embedding = {"embedding", embedding_forward, embedding_backward, 0};

ag_tensor *ag_embedding(ag_tape *t, ag_tensor *w, const int32_t *id, int n_dim, const int64_t *dim)
{
    if (!w)
        return NULL;
    if (w->n_dim != 2 || n_dim < 0 || n_dim >= AG_MAX_DIM)
        return ag_fail(t, NB_SHAPE, "embedding: table %s, ids of %d dimensions", ag_words_of(w).text, n_dim);
    int64_t shape[AG_MAX_DIM], n = 1;
    for (int i = 0; i < n_dim; i++) {
        if (dim[i] <= 0 || dim[i] > (INT64_MAX >> 4) / n)
            return ag_fail(t, NB_SHAPE, "embedding: dimension %d of the ids is %lld", i, (long long)dim[i]);
        n *= shape[i] = dim[i];
    }
    shape[n_dim] = w->dim[1];
    for (int64_t i = 0; i < n; i++)
        if (id[i] < 0 || id[i] >= w->dim[0])
            return ag_fail(t, NB_USAGE, "embedding: id %d at place %lld, the table has %lld rows", (int)id[i],
                           (long long)i, (long long)w->dim[0]);
    ag_tensor *out = ag_node(t, &op_embedding, 1, &w, n_dim + 1, shape, (size_t)n * sizeof *id);
    if (!out)
        return NULL;
    memcpy(out->save, id, (size_t)n * sizeof *id);
    return ag_run(t, out);
}
