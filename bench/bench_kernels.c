/* bench_kernels.c - every kernel at the sizes that matter: time (best, median, spread of the middle half), rate, and what the
 * machine gives: reading and copying memory, fp32 products by OpenBLAS, bf16 products by oneDNN.
 * Usage: bench_kernels [part of a name]. Run with OPENBLAS_CORETYPE unset unless it says otherwise; NIBBLE_ISA and OMP_NUM_THREADS are honoured.
 */
#include "kernels/kernels.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 41 };

typedef struct {
    const char *only;
    float *a, *b, *c, *d; /* SPACE numbers each */
} bench;
enum { SPACE = 16 << 20 };

typedef void body(const bench *k, void *ctx);

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One line: work in units per call (bytes, multiplications x 2). */
static void line(const bench *k, const char *name, const char *size, double work, const char *unit, body *f, void *ctx)
{
    if (k->only && !strstr(name, k->only))
        return;
    double t[RUNS];
    f(k, ctx);
    for (int i = 0; i < RUNS; i++) {
        const double start = nb_seconds();
        f(k, ctx);
        t[i] = nb_seconds() - start;
    }
    qsort(t, RUNS, sizeof *t, ascending);
    printf("%-22s %-26s best %9.1f us  median %9.1f us  +-%3.0f %%   %8.2f %s\n", name, size, t[0] * 1e6,
           t[RUNS / 2] * 1e6, 50 * (t[RUNS * 3 / 4] - t[RUNS / 4]) / t[RUNS / 2], work / t[0] / 1e9, unit);
}

/* ---- memory and products of the libraries ---- */

typedef struct {
    int64_t M, N, K;
    kn_precision precision;
    int form;
} product;

static void run_read(const bench *k, void *ctx)
{
    *(volatile float *)k->d = kn_absmax(k->a, *(int64_t *)ctx);
}
static void run_copy(const bench *k, void *ctx)
{
    memcpy(k->b, k->a, (size_t) * (int64_t *)ctx * sizeof(float));
}
static void run_product(const bench *k, void *ctx)
{
    const product *p = ctx;
    (p->form == 0   ? kn_product_nt
     : p->form == 1 ? kn_product_nn
                    : kn_product_tn)(p->precision, k->c, k->a, k->b, p->M, p->N, p->K, 0);
}

static void machine(const bench *k)
{
    static int64_t sizes[] = {4 << 10, 128 << 10, 4 << 20, 16 << 20};
    for (int i = 0; i < 4; i++) {
        char text[32];
        snprintf(text, sizeof text, "%lld KiB", (long long)sizes[i] / 256);
        line(k, "memory read (absmax)", text, 4.0 * (double)sizes[i], "GB/s", run_read, &sizes[i]);
        line(k, "memory copy", text, 8.0 * (double)sizes[i], "GB/s", run_copy, &sizes[i]);
    }
    static const int64_t shapes[][3] = {{2048, 64, 64},    {2048, 172, 64},   {2048, 64, 172}, {2048, 512, 64},
                                        {1024, 576, 1536}, {1024, 1536, 576}, {64, 172, 2048}, {1, 1536, 576}};
    static const char *const forms[] = {"nt", "nn", "tn"};
    for (int s = 0; s < 8; s++)
        for (int form = 0; form < 3; form++)
            for (int bf16 = 0; bf16 <= kn_has_bf16(); bf16++) {
                product p = {shapes[s][0], shapes[s][1], shapes[s][2], bf16 ? KN_BF16 : KN_FP32, form};
                char name[32], size[40];
                snprintf(name, sizeof name, "product %s %s", bf16 ? "bf16" : "fp32", forms[form]);
                snprintf(size, sizeof size, "%lld x %lld x %lld", (long long)p.M, (long long)p.N, (long long)p.K);
                line(k, name, size, 2.0 * (double)(p.M * p.N * p.K), "GFLOP/s", run_product, &p);
            }
}

/* ---- integer products ---- */

typedef struct {
    kn_codes a, w;
    kn_packed packed;
    int64_t M;
} integers;

static void run_linear(const bench *k, void *ctx)
{
    const integers *i = ctx;
    kn_linear_int(k->c, &i->a, 0, i->M, &i->packed, NULL);
}
static void run_pack(const bench *k, void *ctx)
{
    integers *i = ctx;
    (void)k;
    kn_pack(&i->packed, &i->w);
}
static void run_linear_decode(const bench *k, void *ctx)
{
    const integers *i = ctx;
    kn_linear_decode(KN_FP32, k->c, k->b, i->M, &i->w, NULL);
}

static void linears(const bench *k)
{
    static const int64_t shapes[][4] = {
        {1024, 576, 1536, 0}, {1024, 1536, 576, 0}, {1024, 1536, 576, 32}, {2048, 64, 64, 0},  {2048, 128, 64, 0},
        {2048, 172, 64, 0},   {2048, 64, 172, 0},   {2048, 512, 64, 0},    {2048, 64, 64, 32}, {1, 576, 1536, 0},
        {1, 1536, 576, 0},    {1, 1536, 576, 32},   {4, 1536, 576, 0},     {64, 64, 64, 0},    {1, 64, 172, 0}};
    for (int s = 0; s < 15; s++) {
        const int64_t M = shapes[s][0], N = shapes[s][1], K = shapes[s][2], group = shapes[s][3];
        const kn_grid ga = kn_grid_int(8, true, false, KN_ROW, 0, KN_SCALE_F32);
        const kn_grid gw = kn_grid_int(8, true, false, group ? KN_GROUP : KN_ROW, (int)group, KN_SCALE_F32);
        integers i = {.M = M};
        if (kn_codes_new(&i.a, &ga, M, K) || kn_codes_new(&i.w, &gw, N, K))
            exit(1);
        kn_encode(&i.a, k->a);
        kn_encode(&i.w, k->b);
        if (kn_pack(&i.packed, &i.w))
            exit(1);
        char size[48];
        snprintf(size, sizeof size, "%lld x %lld x %lld%s", (long long)M, (long long)N, (long long)K,
                 group ? " groups 32" : "");
        line(k, "linear_int", size, 2.0 * (double)(M * N * K), "GOP/s", run_linear, &i);
        if (M <= 4)
            line(k, "linear_int bytes", size, (double)(N * K), "GB/s", run_linear, &i);
        if (M != 2048)
            line(k, "linear_decode", size, 2.0 * (double)(M * N * K), "GFLOP/s", run_linear_decode, &i);
        line(k, "pack", size, 2.0 * (double)(N * K), "GB/s", run_pack, &i);
        kn_codes_free(&i.a);
        kn_codes_free(&i.w);
        kn_packed_free(&i.packed);
    }
}

/* ---- rows ---- */

typedef struct {
    int64_t M, C;
    kn_codes codes;
} rows;

static void run_rmsnorm(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_rmsnorm(k->c, k->d, k->a, k->b, r->M, r->C, 1e-5f);
}
static void run_rmsnorm_backward(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_rmsnorm_backward(k->c, k->d + (8 << 20), k->a, k->b, k->a, k->d, r->M, r->C);
}
static void run_layernorm(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_layernorm(k->c, k->d, k->d + (1 << 20), k->a, k->b, k->b, r->M, r->C, 1e-5f);
}
static void run_swiglu(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_swiglu(k->c, k->a, k->b, r->M * r->C);
}
static void run_swiglu_backward(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_swiglu_backward(k->c, k->d, k->a, k->a, k->b, r->M * r->C);
}
static void run_gelu(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_gelu(k->c, k->a, r->M * r->C, true);
}
static void run_add(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_sum2(k->c, k->a, k->b, r->M * r->C);
}
static void run_squares(const bench *k, void *ctx)
{
    const rows *r = ctx;
    *(volatile double *)(void *)k->d = kn_sum_squares(k->a, r->M * r->C);
}
static void run_softmax(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_softmax(k->c, k->a, r->M, r->C);
}
static void run_logsumexp(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_logsumexp((double *)(void *)k->c, k->a, r->M, r->C);
}
static void run_rope(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_rope(k->c, k->a, k->b, k->b + (1 << 20), NULL, r->M, r->C / 8, 8, 256, KN_ROPE_INTERLEAVED, false);
}
static void run_rope_half(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_rope(k->c, k->a, k->b, k->b + (1 << 20), NULL, r->M, r->C / 64, 64, 256, KN_ROPE_HALF, false);
}
static void run_encode(const bench *k, void *ctx)
{
    rows *r = ctx;
    kn_encode(&r->codes, k->a);
}
static void run_decode(const bench *k, void *ctx)
{
    const rows *r = ctx;
    kn_decode(k->c, &r->codes, 0, r->M);
}

static void row_kernels(const bench *k)
{
    static const int64_t shapes[][2] = {{2048, 64}, {2048, 172}, {1024, 576}, {8192, 576}};
    static const struct {
        const char *name;
        double bytes; /* read and written, per element */
        body *f;
    } kernels[] = {{"rmsnorm", 8, run_rmsnorm},
                   {"rmsnorm backward", 16, run_rmsnorm_backward},
                   {"layernorm", 8, run_layernorm},
                   {"swiglu", 12, run_swiglu},
                   {"swiglu backward", 28, run_swiglu_backward},
                   {"gelu tanh", 8, run_gelu},
                   {"sum2", 12, run_add},
                   {"sum of squares", 4, run_squares},
                   {"softmax", 8, run_softmax},
                   {"logsumexp", 4, run_logsumexp},
                   {"rope 8 interleaved", 8, run_rope},
                   {"rope 64 half", 8, run_rope_half}};
    for (int s = 0; s < 4; s++) {
        rows r = {.M = shapes[s][0], .C = shapes[s][1]};
        const double n = (double)(r.M * r.C);
        char size[48];
        snprintf(size, sizeof size, "%lld x %lld", (long long)r.M, (long long)r.C);
        for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
            line(k, kernels[i].name, size, kernels[i].bytes * n, "GB/s", kernels[i].f, &r);
        static const struct {
            const char *name;
            int bits, group;
            bool zero;
        } codes[] = {{"8 bits by row", 8, 0, false},
                     {"4 bits by 32", 4, 32, false},
                     {"4 bits by 8, zero", 4, 8, true},
                     {"8 bits by 8", 8, 8, false}};
        for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
            const kn_grid g = kn_grid_int(codes[i].bits, false, codes[i].zero, codes[i].group ? KN_GROUP : KN_ROW,
                                          codes[i].group, KN_SCALE_F16);
            char name[40];
            if (kn_codes_new(&r.codes, &g, r.M, r.C))
                exit(1);
            snprintf(name, sizeof name, "encode %s", codes[i].name);
            line(k, name, size, 5 * n, "GB/s", run_encode, &r);
            snprintf(name, sizeof name, "decode %s", codes[i].name);
            line(k, name, size, 5 * n, "GB/s", run_decode, &r);
            kn_codes_free(&r.codes);
        }
    }
}

/* ---- attention ---- */

typedef struct {
    int64_t B, T, H, G, D;
    kn_operand q, k, v;
    kn_cache *caches; /* one a sequence and kv head, full but for one */
    float *scratch;
    kn_precision precision;
} heads;

static void run_attention(const bench *k, void *ctx)
{
    const heads *h = ctx;
    if (kn_attention(k->c, k->d, h->q, h->k, h->v, NULL, h->B, h->T, h->H, h->G, h->D, false))
        exit(1);
}
static void run_attention_backward(const bench *k, void *ctx)
{
    const heads *h = ctx;
    float *g = k->d + (4 << 20);
    if (kn_attention_backward(h->precision, g, g + (4 << 20), g + (8 << 20), k->a, k->c, k->d, k->a, k->b, k->b, NULL, h->B, h->T,
                              h->H, h->G, h->D))
        exit(1);
}

static void attentions(const bench *k)
{
    static const int64_t shapes[][5] = {
        {8, 256, 8, 4, 8}, {32, 256, 8, 4, 8}, {4, 256, 9, 3, 64}, {4, 256, 6, 6, 48}, {1, 2048, 9, 3, 64}};
    for (int s = 0; s < 5; s++) {
        heads h = {shapes[s][0], shapes[s][1], shapes[s][2], shapes[s][3], shapes[s][4], {0}, {0}, {0}, NULL, NULL, KN_FP32};
        const int64_t M = h.B * h.T;
        const double pairs = (double)(h.B * h.H) * (double)(h.T * (h.T + 1) / 2), flops = 2 * (double)h.D * pairs;
        char size[48];
        snprintf(size, sizeof size, "%lldx%lld, %lld/%lld of %lld", (long long)h.B, (long long)h.T, (long long)h.H,
                 (long long)h.G, (long long)h.D);
        h.q.x = k->a;
        h.k.x = h.v.x = k->b;
        line(k, "attention fp32", size, 2 * flops, "GFLOP/s", run_attention, &h);
        line(k, "attention fp32 pairs", size, pairs, "Gpair/s", run_attention, &h);
        line(k, "attention backward", size, 5 * flops, "GFLOP/s", run_attention_backward, &h);
        h.precision = KN_BF16;
        line(k, "attention backward bf16", size, 5 * flops, "GFLOP/s", run_attention_backward, &h);
        for (int bits = 8; bits >= 4; bits -= 4) {
            const kn_grid gq = kn_grid_int(8, true, false, KN_HEAD, (int)h.D, KN_SCALE_F32);
            const kn_grid gk = kn_grid_int(bits, false, true, KN_HEAD, (int)h.D, KN_SCALE_F16);
            kn_codes q, kv;
            if (kn_codes_new(&q, &gq, M, h.H * h.D) || kn_codes_new(&kv, &gk, M, h.G * h.D))
                exit(1);
            kn_encode(&q, k->a);
            kn_encode(&kv, k->b);
            heads coded = h;
            coded.q = (kn_operand){.codes = &q};
            coded.k = coded.v = (kn_operand){.codes = &kv};
            line(k, bits == 8 ? "attention kv8" : "attention kv4", size, 2 * flops, "GOP/s", run_attention, &coded);
            kn_codes_free(&q);
            kn_codes_free(&kv);
        }
    }
}

int main(int argc, char **argv)
{
    bench k = {.only = argc > 1 ? argv[1] : NULL};
    float **arrays[] = {&k.a, &k.b, &k.c, &k.d};
    for (int i = 0; i < 4; i++) {
        *arrays[i] = nb_alloc_aligned(SPACE, sizeof(float));
        if (!*arrays[i])
            return 1;
        for (int64_t j = 0; j < SPACE; j++)
            (*arrays[i])[j] = (float)(nb_random_unit(1, (uint64_t)i, (uint64_t)j) - 0.5);
    }
    char libraries[256];
    kn_libraries(libraries, sizeof libraries);
    printf("instruction set %s; %s; OPENBLAS_CORETYPE %s; %d threads\n", kn_isa_name(), libraries,
           getenv("OPENBLAS_CORETYPE") ? getenv("OPENBLAS_CORETYPE") : "unset", omp_get_max_threads());
    if (kn_blas_core(NULL))
        printf("OpenBLAS has taken a core below this CPU: run with OPENBLAS_CORETYPE=%s\n", kn_blas_core(NULL));
    machine(&k);
    linears(&k);
    row_kernels(&k);
    attentions(&k);
    for (int i = 0; i < 4; i++)
        free(*arrays[i]);
    return 0;
}
