/* op_shape.c - the same numbers in another arrangement: reshape, transpose, slice, concatenate.
 * Each is a permutation or selection y[i] = x[s(i)]; the gradient goes back the way the value came: dx[s(i)] += dy[i].
 * Arrays are seen as [outer, axis, inner], all dimensions before and after an axis taken together.
 */
#include "op.h"
#include <string.h>

static int64_t product(const int64_t *dim, int from, int to)
{
    int64_t n = 1;
    for (int i = from; i < to; i++)
        n *= dim[i];
    return n;
}

/* The value is the source's own, so there is nothing to do. */
static void reshape_forward(ag_tensor *out)
{
    (void)out;
}

static void reshape_backward(const ag_tensor *out)
{
    ag_add_grad(out->src[0], 1, out->g);
}

static const ag_op op_reshape = {"reshape", reshape_forward, reshape_backward, 0};

ag_tensor *ag_reshape(ag_tape *t, ag_tensor *x, int n_dim, const int64_t *dim)
{
    ag_tensor *out = x ? ag_node(t, &op_reshape, 1, &x, n_dim, dim, 0) : NULL;
    if (!out)
        return NULL;
    if (ag_count(out) != ag_count(x))
        return ag_fail(t, NB_SHAPE, "reshape: %s does not hold the elements of %s", ag_words_of(out).text,
                       ag_words_of(x).text);
    /* Codes keep their meaning where rows stay rows; a value that is not there yet is then decoded by whoever asks. */
    if (x->codes && ag_cols(out) == ag_cols(x))
        out->codes = x->codes;
    else if (!ag_in(out, 0))
        return NULL;
    out->x = x->x;
    out->borrowed = x->x != NULL;
    x->kept = true;
    return ag_run_codes(t, out);
}

/* x as [outer, A, middle, B, inner] -> [outer, B, middle, A, inner] */
typedef struct {
    int64_t outer, A, middle, B, inner;
} save_transpose;

/* dst (+)= src with the two dimensions swapped; src is [outer, A, middle, B, inner]. */
static void swap_dims(real *dst, const real *src, save_transpose s, bool add)
{
    int64_t rows = s.outer * s.B * s.middle;
#pragma omp parallel for if (rows * s.A * s.inner > AG_PARALLEL)
    for (int64_t r = 0; r < rows; r++) {
        int64_t m = r % s.middle, b = r / s.middle % s.B, o = r / s.middle / s.B;
        real *d = dst + r * s.A * s.inner;
        const real *x = src + ((o * s.A * s.middle + m) * s.B + b) * s.inner;
        int64_t step = s.middle * s.B * s.inner;
        for (int64_t a = 0; a < s.A; a++, x += step)
            for (int64_t i = 0; i < s.inner; i++, d++)
                *d = add ? *d + x[i] : x[i];
    }
}

static void transpose_forward(ag_tensor *out)
{
    const save_transpose *s = out->save;
    const real *x = ag_in(out, 0);
    if (x)
        swap_dims(out->x, x, *s, false);
}

static void transpose_backward(const ag_tensor *out)
{
    const save_transpose *s = out->save;
    save_transpose back = {s->outer, s->B, s->middle, s->A, s->inner};
    real beta, *g = ag_grad_write(out->src[0], &beta);
    if (g)
        swap_dims(g, out->g, back, beta != 0);
}

static const ag_op op_transpose = {"transpose", transpose_forward, transpose_backward, 0};

ag_tensor *ag_transpose(ag_tape *t, ag_tensor *x, int a, int b)
{
    if (!x)
        return NULL;
    if (a < 0 || b < 0 || a >= x->n_dim || b >= x->n_dim)
        return ag_fail(t, NB_SHAPE, "transpose: no dimensions %d and %d in %s", a, b, ag_words_of(x).text);
    int64_t dim[AG_MAX_DIM] = {0};
    memcpy(dim, x->dim, sizeof dim);
    dim[a] = x->dim[b];
    dim[b] = x->dim[a];
    ag_tensor *out = ag_node(t, &op_transpose, 1, &x, x->n_dim, dim, sizeof(save_transpose));
    if (!out)
        return NULL;
    int lo = a < b ? a : b, hi = a < b ? b : a;
    save_transpose s = {product(x->dim, 0, lo), x->dim[lo], 1, 1, product(x->dim, hi + 1, x->n_dim)};
    if (lo < hi) {
        s.middle = product(x->dim, lo + 1, hi);
        s.B = x->dim[hi];
    }
    *(save_transpose *)out->save = s;
    return ag_run(t, out);
}

/* Copies (or adds) `outer` runs of n elements, from runs that lie `ldsrc` apart to runs that lie `lddst` apart. */
static void move_runs(real *dst, int64_t lddst, const real *src, int64_t ldsrc, int64_t outer, int64_t n, bool add)
{
#pragma omp parallel for if (outer * n > AG_PARALLEL)
    for (int64_t o = 0; o < outer; o++) {
        if (!add)
            memcpy(dst + o * lddst, src + o * ldsrc, (size_t)n * sizeof *dst);
        for (int64_t i = 0; add && i < n; i++)
            dst[o * lddst + i] += src[o * ldsrc + i];
    }
}

typedef struct {
    int64_t outer, run, from; /* elements: run of this slice inside a run of the source, beginning at from */
    int64_t whole;            /* the source's run */
} save_slice;

static void slice_forward(ag_tensor *out)
{
    const save_slice *s = out->save;
    const real *x = ag_in(out, 0);
    if (x)
        move_runs(out->x, s->run, x + s->from, s->whole, s->outer, s->run, false);
}

static void slice_backward(const ag_tensor *out)
{
    const save_slice *s = out->save;
    real *g = ag_grad(out->src[0]);
    if (g)
        move_runs(g + s->from, s->whole, out->g, s->run, s->outer, s->run, true);
}

static const ag_op op_slice = {"slice", slice_forward, slice_backward, 0};

ag_tensor *ag_slice(ag_tape *t, ag_tensor *x, int axis, int64_t from, int64_t n)
{
    if (!x)
        return NULL;
    if (axis < 0 || axis >= x->n_dim || from < 0 || n <= 0 || from > x->dim[axis] - n)
        return ag_fail(t, NB_SHAPE, "slice: [%lld, %lld) of dimension %d does not lie in %s", (long long)from,
                       (long long)(from + n), axis, ag_words_of(x).text);
    int64_t dim[AG_MAX_DIM], inner = product(x->dim, axis + 1, x->n_dim);
    memcpy(dim, x->dim, sizeof dim);
    dim[axis] = n;
    ag_tensor *out = ag_node(t, &op_slice, 1, &x, x->n_dim, dim, sizeof(save_slice));
    if (!out)
        return NULL;
    *(save_slice *)out->save = (save_slice){product(x->dim, 0, axis), n * inner, from * inner, x->dim[axis] * inner};
    return ag_run(t, out);
}

typedef struct {
    int64_t outer, run[2]; /* elements of x and of y in one run of the result */
} save_concat;

static void concat_forward(ag_tensor *out)
{
    const save_concat *s = out->save;
    const real *x = ag_in(out, 0), *y = ag_in(out, 1);
    if (!x || !y)
        return;
    move_runs(out->x, s->run[0] + s->run[1], x, s->run[0], s->outer, s->run[0], false);
    move_runs(out->x + s->run[0], s->run[0] + s->run[1], y, s->run[1], s->outer, s->run[1], false);
}

static void concat_backward(const ag_tensor *out)
{
    const save_concat *s = out->save;
    for (int i = 0; i < 2; i++) {
        real beta, *g = ag_grad_write(out->src[i], &beta);
        if (g)
            move_runs(g, s->run[i], out->g + (i ? s->run[0] : 0), s->run[0] + s->run[1], s->outer, s->run[i],
                      beta != 0);
    }
}

static const ag_op op_concat = {"concat", concat_forward, concat_backward, 0};

ag_tensor *ag_concat(ag_tape *t, ag_tensor *x, ag_tensor *y, int axis)
{
    if (!x || !y)
        return NULL;
    bool fits = x->n_dim == y->n_dim && axis >= 0 && axis < x->n_dim;
    for (int i = 0; fits && i < x->n_dim; i++)
        fits = i == axis || x->dim[i] == y->dim[i];
    if (!fits)
        return ag_fail(t, NB_SHAPE, "concat: %s and %s do not fit along dimension %d", ag_words_of(x).text,
                       ag_words_of(y).text, axis);
    int64_t dim[AG_MAX_DIM], inner = product(x->dim, axis + 1, x->n_dim);
    memcpy(dim, x->dim, sizeof dim);
    dim[axis] += y->dim[axis];
    ag_tensor *out = ag_node(t, &op_concat, 2, (ag_tensor *[]){x, y}, x->n_dim, dim, sizeof(save_concat));
    if (!out)
        return NULL;
    *(save_concat *)out->save = (save_concat){product(x->dim, 0, axis), {x->dim[axis] * inner, y->dim[axis] * inner}};
    return ag_run(t, out);
}
