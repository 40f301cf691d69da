/* tape.c - the tape: nodes in creation order, one pool of memory, reused within a step.
 *
 * A value is released when its last forward reader has gone (ag_done) and no backward keeps it; during the backward pass a node's
 * value, gradient and saved memory are released as soon as its own backward has run, since only later nodes read them. Gradients of
 * parameters grow into that room where they are the step's own.
 */
#include "autograd/autograd.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { SMALL = 1 << 15 }; /* bytes: tensors themselves and their settings stay until the reset, apart from what is given back */

status ag_status(const ag_tape *t)
{
    return t->err;
}

void ag_reset(ag_tape *t)
{
    nb_arena_reset(&t->small);
    nb_pool_reset(&t->memory);
    t->n = 0;
    t->drawn = 0;
    t->err = NB_OK;
}

void ag_tape_free(ag_tape *t)
{
    if (t->scratch) {
        ag_tape_free(t->scratch);
        free(t->scratch);
    }
    kn_packed_free(&t->packed);
    nb_arena_free(&t->small);
    nb_pool_free(&t->memory);
    free(t->node);
    *t = (ag_tape){0};
}

size_t ag_tape_peak(const ag_tape *t)
{
    return t->small.peak + t->memory.peak + (t->scratch ? ag_tape_peak(t->scratch) : 0);
}

ag_tensor *ag_fail(ag_tape *t, status s, const char *fmt, ...)
{
    if (t->err)
        return NULL;
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    t->err = nb_fail(s, "%s", text);
    return NULL;
}

void *ag_take(ag_tape *t, size_t bytes)
{
    if (t->err)
        return NULL;
    void *p = bytes < SMALL ? nb_arena_alloc(&t->small, bytes) : nb_pool_take(&t->memory, bytes);
    if (!p)
        ag_fail(t, NB_NOMEM, "tape: out of memory, %zu bytes on top of %zu", bytes, t->small.used + t->memory.used);
    return p;
}

void ag_give_back(ag_tape *t, void *p, size_t bytes)
{
    if (bytes >= SMALL)
        nb_pool_give(&t->memory, p, bytes);
}

int64_t ag_count(const ag_tensor *a)
{
    int64_t n = 1;
    for (int i = 0; i < a->n_dim; i++)
        n *= a->dim[i];
    return n;
}

int64_t ag_cols(const ag_tensor *a)
{
    return a->n_dim ? a->dim[a->n_dim - 1] : 1;
}

int64_t ag_rows(const ag_tensor *a)
{
    int64_t n = 1;
    for (int i = 0; i + 1 < a->n_dim; i++)
        n *= a->dim[i];
    return n;
}

static size_t value_bytes(const ag_tensor *a)
{
    return (size_t)ag_count(a) * sizeof(real);
}

const real *ag_value(const ag_tensor *a)
{
    if (a->x || !a->codes)
        return a->x;
    /* Decoding on demand is a memo of what the codes already say: the tensor's meaning does not change. */
    union {
        const ag_tensor *in;
        ag_tensor *out;
    } u = {a};
    real *x = ag_take(a->tape, value_bytes(a));
    if (!x)
        return NULL;
    kn_decode(x, a->codes, 0, a->codes->rows);
    return u.out->x = x;
}

void ag_forget(ag_tensor *a)
{
    if (a->codes && a->x && !a->borrowed) {
        ag_give_back(a->tape, a->x, value_bytes(a));
        a->x = NULL;
    }
}

static bool push(ag_tape *t, ag_tensor *a)
{
    if (t->n == t->capacity) {
        int64_t capacity = t->capacity ? 2 * t->capacity : 256;
        ag_tensor **p = realloc(t->node, (size_t)capacity * sizeof *p);
        if (!p) {
            ag_fail(t, NB_NOMEM, "tape: %lld nodes", (long long)capacity);
            return false;
        }
        t->node = p;
        t->capacity = capacity;
    }
    t->node[t->n++] = a;
    return true;
}

static bool shape_ok(ag_tape *t, const char *what, int n_dim, const int64_t *dim)
{
    int64_t n = 1;
    if (n_dim < 0 || n_dim > AG_MAX_DIM)
        return ag_fail(t, NB_SHAPE, "%s: %d dimensions, at most %d", what, n_dim, AG_MAX_DIM);
    for (int i = 0; i < n_dim; i++) {
        if (dim[i] <= 0 || dim[i] > (INT64_MAX >> 4) / n)
            return ag_fail(t, NB_SHAPE, "%s: dimension %d is %lld", what, i, (long long)dim[i]);
        n *= dim[i];
    }
    return true;
}

ag_tensor *ag_leaf(ag_tape *t, real *x, real *g, int n_dim, const int64_t *dim)
{
    if (t->err || !shape_ok(t, "leaf", n_dim, dim))
        return NULL;
    ag_tensor *a = ag_take(t, sizeof *a);
    if (!a)
        return NULL;
    *a = (ag_tensor){.tape = t, .n_dim = n_dim, .x = x, .g = t->no_grad ? NULL : g, .needs_grad = g && !t->no_grad, .kept = true};
    for (int i = 0; i < n_dim; i++)
        a->dim[i] = dim[i];
    return a;
}

ag_tensor *ag_node(ag_tape *t, const ag_op *op, int n_src, ag_tensor *const *src, int n_dim, const int64_t *dim,
                   size_t save_bytes)
{
    for (int i = 0; i < n_src; i++)
        if (!src[i])
            return NULL;
    if (t->err || !shape_ok(t, op->name, n_dim, dim))
        return NULL;
    ag_tensor *a = ag_take(t, sizeof *a);
    if (!a)
        return NULL;
    *a = (ag_tensor){.op = op, .tape = t, .n_src = n_src, .n_dim = n_dim, .save_bytes = save_bytes};
    for (int i = 0; i < n_dim; i++)
        a->dim[i] = dim[i];
    for (int i = 0; i < n_src; i++) {
        a->src[i] = src[i];
        a->needs_grad |= src[i]->needs_grad && !t->no_grad;
    }
    if (a->needs_grad) {
        for (int i = 0; i < n_src; i++)
            src[i]->kept |= (op->keeps & AG_KEEP(i)) != 0;
        a->kept = (op->keeps & AG_KEEP_OUT) != 0;
    }
    if (save_bytes) {
        a->save = ag_take(t, save_bytes);
        if (!a->save)
            return NULL;
        memset(a->save, 0, save_bytes);
    }
    return a;
}

ag_tensor *ag_run_codes(ag_tape *t, ag_tensor *out)
{
    if (!out || t->err)
        return NULL;
    out->op->forward(out);
    return push(t, out) && !t->err ? out : NULL;
}

ag_tensor *ag_run(ag_tape *t, ag_tensor *out)
{
    if (!out || t->err)
        return NULL;
    if (!out->x && !(out->x = ag_take(t, value_bytes(out))))
        return NULL;
    return ag_run_codes(t, out);
}

void ag_done(ag_tensor *a)
{
    if (!a || a->done)
        return;
    a->done = true;
    if (a->op && a->x && !a->kept && !a->borrowed) {
        ag_give_back(a->tape, a->x, value_bytes(a));
        a->x = NULL;
    }
    if (a->codes_memory && !a->kept && !a->needs_grad) {
        ag_give_back(a->tape, a->codes_memory, a->codes_bytes);
        a->codes_memory = NULL;
        a->codes = NULL;
    }
}

/* The step's own gradient is taken from the tape that is not reset between segments. */
static real *param_grad(const ag_tensor *a, real *beta)
{
    ag_param *p = a->param;
    ag_tape *t = a->tape->home ? a->tape->home : a->tape;
    if (p->has_grad)
        return p->g;
    if (t->step_gradients) {
        if (!p->borrowed)
            free(p->g); /* of a step that kept its gradients */
        p->g = ag_take(t, value_bytes(a));
        p->borrowed = true;
    }
    p->has_grad = p->g != NULL;
    *beta = 0;
    return p->g;
}

real *ag_grad_write(const ag_tensor *a, real *beta)
{
    union {
        const ag_tensor *in;
        ag_tensor *out;
    } u = {a};
    *beta = 1;
    if (!a->needs_grad)
        return NULL;
    if (a->param)
        return param_grad(a, beta);
    if (!a->g) {
        u.out->g = ag_take(a->tape, value_bytes(a));
        *beta = 0;
    }
    return a->g;
}

real *ag_grad_handed_over(const ag_tensor *out, const ag_tensor *src)
{
    union {
        const ag_tensor *in;
        ag_tensor *out;
    } from = {out}, to = {src};
    real *g = out->g;
    ag_param *p = src->param;
    const bool into_param = p && !p->has_grad && out->tape->step_gradients && !out->tape->home;
    if (!src->needs_grad || !g || !(into_param || (src->op && !p && !src->g)))
        return NULL;
    from.out->g = NULL;
    if (!into_param)
        return to.out->g = g;
    if (!p->borrowed)
        free(p->g);
    p->borrowed = p->has_grad = true;
    return p->g = g;
}

real *ag_grad(const ag_tensor *a)
{
    real beta, *g = ag_grad_write(a, &beta);
    if (g && beta == 0)
        memset(g, 0, value_bytes(a));
    return g;
}

/* After a node's backward nothing reads what is its own: nodes before it cannot have it as a source. */
static void release(ag_tape *t, ag_tensor *a)
{
    if (a->g)
        ag_give_back(t, a->g, value_bytes(a));
    if (a->x && !a->borrowed)
        ag_give_back(t, a->x, value_bytes(a));
    ag_give_back(t, a->codes_memory, a->codes_bytes);
    a->g = a->x = NULL;
    a->codes_memory = NULL;
}

static status backward(ag_tape *t, ag_tensor *out, const real *seed)
{
    if (t->err)
        return t->err;
    if (!out->needs_grad)
        return NB_OK;
    real *g = ag_grad(out);
    if (!g)
        return t->err;
    memcpy(g, seed, value_bytes(out));
    for (int64_t i = t->n; i-- > 0;) {
        ag_tensor *a = t->node[i];
        if (a->needs_grad && a->g)
            a->op->backward(a);
        release(t, a);
        if (t->err)
            return t->err;
    }
    return t->err;
}

status ag_backward(ag_tape *t, ag_tensor *loss)
{
    const real one = 1;
    if (t->err)
        return t->err;
    if (!loss)
        return t->err = nb_fail(NB_USAGE, "backward: no loss");
    if (ag_count(loss) != 1) {
        ag_fail(t, NB_SHAPE, "backward: the loss has %lld elements, not 1", (long long)ag_count(loss));
        return t->err;
    }
    return backward(t, loss, &one);
}

typedef struct {
    ag_segment f;
    void *arg;
} save_segment;

/* The scratch tape runs the segment with the settings of the tape it serves, without its tap. */
static ag_tape *scratch_of(ag_tape *t)
{
    if (!t->scratch && !(t->scratch = calloc(1, sizeof *t->scratch))) {
        ag_fail(t, NB_NOMEM, "recompute: out of memory");
        return NULL;
    }
    ag_reset(t->scratch);
    t->scratch->quantize_off = t->quantize_off;
    t->scratch->weights_off = t->weights_off;
    t->scratch->activations_off = t->activations_off;
    t->scratch->precision = t->precision;
    t->scratch->int8_gradients = t->int8_gradients;
    t->scratch->home = t;
    t->scratch->tap = (ag_tap){0};
    t->scratch->no_grad = false;
    return t->scratch;
}

static void segment_forward(ag_tensor *out)
{
    const save_segment *s = out->save;
    ag_tape *home = out->tape, *t = scratch_of(home);
    if (!t)
        return;
    t->no_grad = true;
    t->tap = home->tap; /* the first run is the one that is watched */
    const ag_tensor *src = out->src[0];
    union {
        const real *in;
        real *out;
    } x = {ag_value(src)};
    ag_tensor *y = s->f(t, ag_leaf(t, x.out, NULL, src->n_dim, src->dim), s->arg);
    const real *v = y ? ag_value(y) : NULL;
    if (!v)
        home->err = t->err ? t->err : nb_fail(NB_USAGE, "recompute: the segment gave no result");
    else if (ag_count(y) != ag_count(out))
        ag_fail(home, NB_SHAPE, "recompute: the segment changes the shape");
    else
        memcpy(out->x, v, value_bytes(out));
}

static void segment_backward(const ag_tensor *out)
{
    const save_segment *s = out->save;
    ag_tape *home = out->tape, *t = scratch_of(home);
    if (!t)
        return;
    const ag_tensor *src = out->src[0];
    real *g = src->needs_grad ? ag_grad(src) : NULL;
    union {
        const real *in;
        real *out;
    } x = {ag_value(src)};
    ag_tensor *y = s->f(t, ag_leaf(t, x.out, g, src->n_dim, src->dim), s->arg);
    if (!y || backward(t, y, out->g))
        home->err = t->err ? t->err : nb_fail(NB_USAGE, "recompute: the segment gave no result");
}

static const ag_op op_segment = {"recompute", segment_forward, segment_backward, AG_KEEP(0)};

ag_tensor *ag_recompute(ag_tape *t, ag_segment f, ag_tensor *x, void *arg)
{
    if (!x)
        return NULL;
    ag_tensor *out = ag_node(t, &op_segment, 1, &x, x->n_dim, x->dim, sizeof(save_segment));
    if (!out)
        return NULL;
    *(save_segment *)out->save = (save_segment){f, arg};
    if (!t->no_grad) { /* a segment holds parameters of its own even where x (a frozen embedding) wants no gradient */
        out->needs_grad = true;
        x->kept = true;
    }
    return ag_run(t, out);
}
