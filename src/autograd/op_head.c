/* op_head.c - the head and its losses in one operator: z = x w' + b is made in chunks of rows and never kept whole.
 *   L = mean over scored rows (target >= 0) of the row losses of head_row.c;  dz = dL/dz in the same pass
 *   dx = dL dz w,  dw = dL dz' x,  db = dL * column sums of dz
 * Where a gradient is wanted, dz w [M,C], dz' x [V,C] and the column sums [V] are kept, for dL = 1, and the backward
 * pass scales them: no source is read there. Rows are independent; their results are added in row order.
 */
#include "head_row.h"
#include "op.h"
#include <omp.h>
#include <string.h>

enum { CHUNK = 512, CHUNK_BYTES = 64 << 20 };

typedef struct {
    ag_head_loss loss;
    ag_head_report *report; /* the caller's, or NULL */
    int32_t *target;        /* [M] */
    int64_t scored;
    real *dx, *dw, *db; /* gradients for dL = 1, or NULL */
} save_head;

/* Buffers of one run, given back when it ends. */
typedef struct {
    real *z, *zt, *x, *scratch;
    size_t chunk_bytes, x_bytes, scratch_bytes;
    bool bf16;           /* gradients by bf16 products: */
    kn_bf16_right right; /* w, for all chunks */
    void *right_memory;
} head_memory;

/* Rows of a chunk: fewer pass dw through memory more often, more hold more logits. */
static int64_t chunk_rows(int64_t V)
{
    return V * CHUNK * (int64_t)sizeof(float) <= CHUNK_BYTES ? CHUNK : CHUNK / 2;
}

static bool take_memory(head_memory *m, const ag_tensor *out)
{
    const save_head *s = out->save;
    const ag_tensor *x = out->src[0];
    ag_tape *t = out->tape;
    const int64_t V = out->src[1]->dim[0], most = chunk_rows(V), rows = ag_rows(x) < most ? ag_rows(x) : most;
    *m = (head_memory){.chunk_bytes = (size_t)(rows * V) * sizeof(real),
                       .x_bytes = (size_t)(rows * ag_cols(x)) * sizeof(real),
                       .scratch_bytes = (size_t)(3 * V * omp_get_max_threads()) * sizeof(real)};
    m->z = ag_take(t, m->chunk_bytes);
    m->scratch = ag_take(t, m->scratch_bytes);
    if (s->loss.teacher)
        m->zt = ag_take(t, m->chunk_bytes);
    m->bf16 = kn_takes_bf16(t->precision, rows, ag_cols(x), V);
    if (m->bf16 && s->dx)
        return ag_right_rows(&m->right, out->src[1], 0, V, &m->right_memory);
    if (!m->bf16 && s->dw && !x->x)
        m->x = ag_take(t, m->x_bytes);
    return !t->err;
}

static void give_memory(const head_memory *m, ag_tape *t)
{
    if (m->right_memory)
        ag_give_back(t, m->right_memory, kn_bf16_right_bytes(m->right.K, m->right.N));
    ag_give_back(t, m->z, m->chunk_bytes);
    ag_give_back(t, m->zt, m->chunk_bytes);
    ag_give_back(t, m->x, m->x_bytes);
    ag_give_back(t, m->scratch, m->scratch_bytes);
}

/* dz [n,V] of rows from `row` on into the gradients kept for the backward pass. */
static void keep_gradients(const ag_tensor *out, const head_memory *m, int64_t row, int64_t n)
{
    const save_head *s = out->save;
    const ag_tensor *x = out->src[0], *w = out->src[1];
    kn_precision precision = out->tape->precision;
    int64_t V = w->dim[0], C = w->dim[1];
    real beta = row > 0;
    if (s->dx && m->bf16) {
        ag_product_right(out->tape, s->dx + row * C, m->z, &m->right, n, 0, false);
    } else if (s->dx) {
        const real *wv = ag_in(out, 1);
        if (wv)
            kn_product_nn(precision, s->dx + row * C, m->z, wv, n, C, V, 0);
    }
    if (s->dw && m->bf16) {
        kn_bf16_right right;
        void *memory;
        if (ag_right_rows(&right, x, row, n, &memory)) {
            ag_product_right(out->tape, s->dw, m->z, &right, V, beta, true);
            ag_give_back(out->tape, memory, kn_bf16_right_bytes(n, C));
        }
    } else if (s->dw) {
        if (!x->x)
            kn_decode(m->x, x->codes, row, n);
        kn_product_tn(precision, s->dw, m->z, x->x ? x->x + row * C : m->x, V, C, n, beta);
    }
    if (s->db)
        ag_add_columns(s->db, 1, m->z, NULL, n, V);
}

static void head_forward(ag_tensor *out)
{
    const save_head *s = out->save;
    const ag_tensor *x = out->src[0], *w = out->src[1], *b = out->n_src > 2 ? out->src[2] : NULL;
    const int64_t M = ag_rows(x), V = w->dim[0], most = chunk_rows(V);
    const ag_row_wish wish = {.report = s->report != NULL,
                              .gradient = s->dx || s->dw || s->db,
                              .factor = s->scored ? (real)(1 / (double)s->scored) : 0};
    ag_head_report sum = {.rows = s->scored};
    ag_row_result result[CHUNK];
    const bool had_value = w->x != NULL;
    head_memory m;
    double loss = 0;
    if (!x->x && !x->codes && !ag_in(out, 0))
        return;
    if (!take_memory(&m, out))
        return;
    for (int64_t row = 0; row < M; row += most) {
        int64_t n = M - row < most ? M - row : most;
        status e = s->loss.teacher ? s->loss.teacher(s->loss.ctx, m.zt, row, n) : NB_OK;
        if (e)
            ag_fail(out->tape, e, "head: the teacher's logits of rows from %lld: %s", (long long)row,
                    nb_fail_message());
        if (e || !ag_linear_rows(m.z, x, w, b, row, n))
            return;
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            real *z = m.z + i * V;
            if (s->target[row + i] >= 0)
                result[i] = ag_head_row(z, m.zt ? m.zt + i * V : NULL, V, s->target[row + i], &s->loss, &wish,
                                        m.scratch + 3 * V * omp_get_thread_num());
            else if (wish.gradient)
                memset(z, 0, (size_t)V * sizeof *z);
        }
        for (int64_t i = 0; i < n; i++) {
            if (s->target[row + i] < 0)
                continue;
            loss += result[i].loss;
            sum.ce += result[i].ce;
            sum.kl += result[i].kl;
            sum.same_top += result[i].same_top;
        }
        if (wish.gradient)
            keep_gradients(out, &m, row, n);
    }
    out->x[0] = (real)(s->scored ? loss / (double)s->scored : 0);
    if (s->report)
        *s->report = sum;
    give_memory(&m, out->tape);
    if (!had_value)
        ag_forget(out->src[1]);
}

/* The buffer itself becomes the gradient where there is none yet, so that none of size V x C is copied. */
static void give_grad(ag_tensor *src, real a, real **g)
{
    const int64_t n = ag_count(src);
    if (!*g)
        return;
    if (src->op && !src->g) {
        real *to = src->g = *g;
#pragma omp parallel for if (n > AG_PARALLEL && a != 1)
        for (int64_t i = 0; i < (a != 1 ? n : 0); i++)
            to[i] *= a;
    } else {
        ag_add_grad(src, a, *g);
        ag_give_back(src->tape, *g, (size_t)n * sizeof(real));
    }
    *g = NULL;
}

static void head_backward(const ag_tensor *out)
{
    save_head *s = out->save;
    give_grad(out->src[0], out->g[0], &s->dx);
    give_grad(out->src[1], out->g[0], &s->dw);
    if (out->n_src > 2)
        give_grad(out->src[2], out->g[0], &s->db);
}

/* The gradients are made in the forward pass, so no source is read in the backward pass. */
static const ag_op op_head = {"head", head_forward, head_backward, 0};

static real *gradient_of(const ag_tensor *out, int i)
{
    size_t bytes = (size_t)ag_count(out->src[i]) * sizeof(real);
    return out->needs_grad && out->src[i]->needs_grad ? ag_take(out->tape, bytes) : NULL;
}

ag_tensor *ag_head(ag_tape *t, ag_tensor *x, ag_tensor *w, ag_tensor *b, const int32_t *target,
                   const ag_head_loss *loss, ag_head_report *report)
{
    if (!x || !w)
        return NULL;
    if (x->n_dim < 1 || w->n_dim != 2 || ag_cols(x) != w->dim[1])
        return ag_fail(t, NB_SHAPE, "head: x %s does not fit w %s", ag_words_of(x).text, ag_words_of(w).text);
    if (b && (b->n_dim != 1 || b->dim[0] != w->dim[0]))
        return ag_fail(t, NB_SHAPE, "head: bias %s does not fit w %s", ag_words_of(b).text, ag_words_of(w).text);
    if (!loss->teacher && (loss->kl != 0 || loss->reverse_kl != 0 || loss->mse != 0 || loss->cosine != 0))
        return ag_fail(t, NB_USAGE, "head: the loss compares with a teacher, and there is none");
    if (!(loss->temperature >= 0))
        return ag_fail(t, NB_USAGE, "head: temperature %g", (double)loss->temperature);
    ag_tensor *out = ag_node(t, &op_head, b ? 3 : 2, (ag_tensor *[]){x, w, b}, 0, NULL, sizeof(save_head));
    if (!out)
        return NULL;
    save_head *s = out->save;
    int64_t M = ag_rows(x);
    s->loss = *loss;
    s->loss.temperature = loss->temperature == 0 ? 1 : loss->temperature;
    s->report = report;
    s->dx = gradient_of(out, 0);
    s->dw = gradient_of(out, 1);
    s->db = b ? gradient_of(out, 2) : NULL;
    s->target = ag_copy(t, target, (size_t)M * sizeof *target);
    if (!s->target)
        return NULL;
    if (s->db)
        memset(s->db, 0, (size_t)w->dim[0] * sizeof(real));
    for (int64_t m = 0; m < M; m++) {
        if (target[m] >= w->dim[0])
            return ag_fail(t, NB_USAGE, "head: target %d in row %lld, the vocabulary has %lld tokens", (int)target[m],
                           (long long)m, (long long)w->dim[0]);
        s->scored += target[m] >= 0;
    }
    return ag_run(t, out);
}
