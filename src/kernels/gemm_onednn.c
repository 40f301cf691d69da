/* gemm_onednn.c - the door to oneDNN: products of bfloat16 operands, summed in fp32.
 * Operands come rounded and laid out as oneDNN's fastest kernels read them (products_bf16.c). Primitives are kept by shape,
 * the oldest makes room. One lock guards all of it: oneDNN uses every thread for one product, so nothing is lost by waiting. */
#include "kernels/kernels_isa.h"
#include "kernels/products.h"

#ifdef NIBBLE_HAVE_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>

enum { KEPT = 64 /* primitives */ };

typedef struct {
    int64_t M, N, K, lda;
    bool add;
} shape;

typedef struct {
    shape key;
    dnnl_primitive_t primitive; /* NULL: free */
    dnnl_memory_t a, b, c;
} kept;

typedef struct {
    pthread_mutex_t lock;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    bool failed; /* to set up, for good */
    kept table[KEPT];
    int next;
} context;

static bool same(const shape *a, const shape *b)
{
    return a->M == b->M && a->N == b->N && a->K == b->K && a->lda == b->lda && a->add == b->add;
}

static bool ready(context *c)
{
    if (c->failed || c->stream)
        return !c->failed;
    c->failed = dnnl_engine_create(&c->engine, dnnl_cpu, 0) != dnnl_success ||
                dnnl_stream_create(&c->stream, c->engine, dnnl_stream_default_flags) != dnnl_success;
    return !c->failed;
}

static bool describe(dnnl_memory_desc_t *d, dnnl_data_type_t type, int64_t rows, int64_t cols, int64_t ld)
{
    const dnnl_dims_t dims = {rows, cols}, strides = {ld, 1};
    return dnnl_memory_desc_init_by_strides(d, 2, dims, type, strides) == dnnl_success;
}

static void drop(kept *k)
{
    if (!k->primitive)
        return;
    dnnl_primitive_destroy(k->primitive);
    dnnl_memory_destroy(k->a);
    dnnl_memory_destroy(k->b);
    dnnl_memory_destroy(k->c);
    *k = (kept){0};
}

static bool make_primitive(const context *c, kept *k, const dnnl_memory_desc_t *a, const dnnl_memory_desc_t *b,
                           const dnnl_memory_desc_t *out)
{
    dnnl_matmul_desc_t d;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_primitive_desc_t pd = NULL;
    bool ok = dnnl_matmul_desc_init(&d, a, b, NULL, out) == dnnl_success &&
              dnnl_primitive_attr_create(&attr) == dnnl_success && dnnl_post_ops_create(&ops) == dnnl_success;
    if (ok && k->key.add)
        ok = dnnl_post_ops_append_sum(ops, 1) == dnnl_success &&
             dnnl_primitive_attr_set_post_ops(attr, ops) == dnnl_success;
    ok = ok && dnnl_primitive_desc_create(&pd, &d, attr, c->engine, NULL) == dnnl_success &&
         dnnl_primitive_create(&k->primitive, pd) == dnnl_success;
    dnnl_primitive_desc_destroy(pd);
    dnnl_post_ops_destroy(ops);
    dnnl_primitive_attr_destroy(attr);
    return ok;
}

static bool make(const context *c, kept *k)
{
    const shape *s = &k->key;
    dnnl_memory_desc_t a, b, out;
    const dnnl_dims_t right = {s->K, s->N};
    return describe(&a, dnnl_bf16, s->M, s->K, s->lda) && describe(&out, dnnl_f32, s->M, s->N, s->N) &&
           dnnl_memory_desc_init_by_tag(&b, 2, right, dnnl_bf16, dnnl_BA16a64b2a) == dnnl_success &&
           make_primitive(c, k, &a, &b, &out) &&
           dnnl_memory_create(&k->a, &a, c->engine, DNNL_MEMORY_NONE) == dnnl_success &&
           dnnl_memory_create(&k->b, &b, c->engine, DNNL_MEMORY_NONE) == dnnl_success &&
           dnnl_memory_create(&k->c, &out, c->engine, DNNL_MEMORY_NONE) == dnnl_success;
}

static kept *find(context *c, const shape *s)
{
    for (int i = 0; i < KEPT; i++)
        if (c->table[i].primitive && same(&c->table[i].key, s))
            return &c->table[i];
    kept *k = &c->table[c->next];
    drop(k);
    k->key = *s;
    if (!make(c, k)) {
        drop(k);
        return NULL;
    }
    c->next = (c->next + 1) % KEPT;
    return k;
}

static bool run(context *c, const shape *s, real *out, void *a, void *b)
{
    kept *k = ready(c) ? find(c, s) : NULL;
    if (!k || dnnl_memory_set_data_handle(k->a, a) != dnnl_success ||
        dnnl_memory_set_data_handle(k->b, b) != dnnl_success || dnnl_memory_set_data_handle(k->c, out) != dnnl_success)
        return false;
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, k->a}, {DNNL_ARG_WEIGHTS, k->b}, {DNNL_ARG_DST, k->c}};
    return dnnl_primitive_execute(k->primitive, c->stream, 3, arguments) == dnnl_success &&
           dnnl_stream_wait(c->stream) == dnnl_success;
}

bool kn_bf16_multiply(real *c, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t M, int64_t N, int64_t K, bool add)
{
    static context shared = {.lock = PTHREAD_MUTEX_INITIALIZER};
    const shape s = {.M = M, .N = N, .K = K, .lda = lda, .add = add};
    union { /* oneDNN's handles of what it only reads have no const */
        const uint16_t *in;
        void *out;
    } left = {a}, right = {b};
    pthread_mutex_lock(&shared.lock);
    const bool done = run(&shared, &s, c, left.out, right.out);
    pthread_mutex_unlock(&shared.lock);
    return done;
}

bool kn_bf16_library(void)
{
    return kn_isa()->bf16 && __builtin_cpu_supports("avx512bf16");
}

/* Intel's vdpbf16ps: 86 GFLOP/s a core of an Emerald Rapids whose AMX is masked, less than fp32 reaches there; a step at SmolLM2's shape 139 : 226 tokens/s. */
bool kn_bf16_library_pays(void)
{
    return kn_bf16_library() && !__builtin_cpu_is("intel");
}

const char *kn_bf16_name(char *text, size_t bytes)
{
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, bytes, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
    return text;
}
#endif
