/* picture_c.c - a network of integers as one C file: constants, and the loops of picture_run.c written out plainly.
 *   weights  codes less their least one, 8, 4 or 2 bits each, the first in the lowest bits; a weight is mul * code + add
 *   sums     bias + sum over the window of code * weight, a point outside the picture has the zero's code (its share is in the bias)
 *   result   clamp(zero + floor((sum * multiplier + 2^(shift - 1)) / 2^shift), lo, hi)
 * Freestanding C11: <stdint.h> alone, no allocation, no float, room for results is the caller's.
 */
#include "runtime/runtime.h"
#include <stdlib.h>
#include <string.h>

static const char functions[] =
    "typedef struct {\n"
    "    int kind, H, W, C, N, K, stride, pad, dilation, groups, OH, OW; /* kind 0: convolution, 1: maximum, 2: mean */\n"
    "    int bits, mul, add, zero_in, zero, lo, hi;\n"
    "    const uint8_t *weight;\n"
    "    const int32_t *bias, *multiplier;\n"
    "    const uint8_t *shift;\n"
    "} step;\n"
    "\n"
    "static int floor_shift(int64_t v, int n)\n"
    "{\n"
    "    return (int)(v >= 0 ? v >> n : -((-v + ((int64_t)1 << n) - 1) >> n));\n"
    "}\n"
    "\n"
    "static int weight_of(const step *s, long i)\n"
    "{\n"
    "    const int each = 8 / s->bits;\n"
    "    return s->mul * (s->weight[i / each] >> (int)(i % each) * s->bits & ((1 << s->bits) - 1)) + s->add;\n"
    "}\n"
    "\n"
    "/* q [OH, OW, N] of x [H, W, C] */\n"
    "static void convolve(const step *s, int8_t *q, const int8_t *x)\n"
    "{\n"
    "    const int C = s->C / s->groups, N = s->N / s->groups;\n"
    "    for (int o = 0; o < s->OH * s->OW; o++)\n"
    "        for (int n = 0; n < s->N; n++) {\n"
    "            int32_t sum = s->bias[n];\n"
    "            for (int k = 0; k < s->K * s->K; k++) {\n"
    "                const int y = o / s->OW * s->stride + k / s->K * s->dilation - s->pad;\n"
    "                const int at = o % s->OW * s->stride + k % s->K * s->dilation - s->pad;\n"
    "                const int inside = y >= 0 && y < s->H && at >= 0 && at < s->W;\n"
    "                for (int c = 0; c < C; c++)\n"
    "                    sum += (inside ? x[(y * s->W + at) * s->C + n / N * C + c] : s->zero_in) *\n"
    "                           weight_of(s, ((long)n * s->K * s->K + k) * C + c);\n"
    "            }\n"
    "            const int v = s->zero + floor_shift((int64_t)sum * s->multiplier[n] + ((int64_t)1 << (s->shift[n] - 1)), s->shift[n]);\n"
    "            q[o * s->N + n] = (int8_t)(v < s->lo ? s->lo : v > s->hi ? s->hi : v);\n"
    "        }\n"
    "}\n"
    "\n"
    "static void pool(const step *s, int8_t *q, const int8_t *x)\n"
    "{\n"
    "    const int n = s->K * s->K;\n"
    "    for (int o = 0; o < s->OH * s->OW; o++)\n"
    "        for (int c = 0; c < s->C; c++) {\n"
    "            int32_t most = -128, sum = -n * s->zero_in;\n"
    "            for (int k = 0; k < n; k++) {\n"
    "                const int v = x[((o / s->OW * s->stride + k / s->K) * s->W + o % s->OW * s->stride + k % s->K) * s->C + c];\n"
    "                most = v > most ? v : most;\n"
    "                sum += v;\n"
    "            }\n"
    "            sum = 2 * sum + n;\n"
    "            q[o * s->C + c] = (int8_t)(s->kind == 1 ? most : s->zero_in + (sum >= 0 ? sum / (2 * n) : -((-sum + 2 * n - 1) / (2 * n))));\n"
    "        }\n"
    "}\n\n";

static const char main_function[] =
    "/* Codes of the logits [NIBBLE_CLASSES] of a picture [NIBBLE_INPUTS], bytes, rows from the top, channels last; room: NIBBLE_ROOM\n"
    " * bytes. Returns the class: the first of the largest logits. */\n"
    "int nibble_classify(const uint8_t *pixel, int8_t *logits, int8_t *room)\n"
    "{\n"
    "    int8_t *x = room, *q = room + NIBBLE_ROOM / 2;\n"
    "    int best = 0;\n"
    "    for (int i = 0; i < NIBBLE_INPUTS; i++)\n"
    "        x[i] = code_of[pixel[i]];\n"
    "    for (unsigned i = 0; i < sizeof steps / sizeof *steps; i++) {\n"
    "        int8_t *swap = x;\n"
    "        if (steps[i].kind)\n"
    "            pool(&steps[i], q, x);\n"
    "        else\n"
    "            convolve(&steps[i], q, x);\n"
    "        x = q;\n"
    "        q = swap;\n"
    "    }\n"
    "    for (int i = 0; i < NIBBLE_CLASSES; i++) {\n"
    "        logits[i] = x[i];\n"
    "        best = x[i] > x[best] ? i : best;\n"
    "    }\n"
    "    return best;\n"
    "}\n";

/* Numbers of an array, their type and name before them. */
static void put_array(FILE *f, const char *type, const char *name, int64_t step, const int64_t *v, int64_t n)
{
    fprintf(f, "static const %s %s", type, name);
    if (step >= 0)
        fprintf(f, "%lld", (long long)step);
    fprintf(f, "[%lld] = {", (long long)n);
    for (int64_t i = 0; i < n; i++)
        fprintf(f, "%s%lld,", i % 20 ? " " : "\n    ", (long long)v[i]);
    fputs("\n};\n", f);
}

static int stored_bits(const kn_grid *g)
{
    const int codes = g->hi - g->lo + 1;
    return codes <= 4 ? 2 : codes <= 16 ? 4 : 8;
}

static status put_constants(FILE *f, const rt_net_step *s, int64_t at, int64_t *bytes)
{
    const kn_codes *w = s->w;
    const int bits = stored_bits(&w->grid), each = 8 / bits;
    const int64_t n = w->rows * w->cols, packed = (n + each - 1) / each;
    int64_t *v = nb_alloc_zeroed((size_t)(packed + w->rows), sizeof *v);
    if (!v)
        return NB_NOMEM;
    for (int64_t i = 0; i < n; i++)
        v[i / each] |= (int64_t)(w->q[i / w->cols * w->ld + i % w->cols] - w->grid.lo) << i % each * bits;
    put_array(f, "uint8_t", "weight", at, v, packed);
    for (int64_t i = 0; i < w->rows; i++)
        v[i] = s->codes.bias[i];
    put_array(f, "int32_t", "bias", at, v, w->rows);
    put_array(f, "int32_t", "multiplier", at, s->requant.multiplier, w->rows);
    put_array(f, "uint8_t", "shift", at, s->requant.shift, w->rows);
    free(v);
    *bytes += packed + 9 * w->rows;
    return NB_OK;
}

static void put_step(FILE *f, const rt_net_step *s, int64_t at)
{
    const kn_conv *c = &s->c;
    const int kind = s->kind == MD_STAGE_CONV ? 0 : s->kind == MD_STAGE_MAX_POOL ? 1 : 2;
    const int64_t shape[] = {kind, c->H, c->W, c->C, c->N, c->K, c->stride, c->pad, c->dilation, c->groups, c->OH, c->OW};
    fputs("    {", f);
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        fprintf(f, "%lld, ", (long long)shape[i]);
    if (kind) {
        fprintf(f, "0, 0, 0, %d, 0, 0, 0, 0, 0, 0, 0},\n", s->zero);
        return;
    }
    const kn_grid *g = &s->w->grid;
    fprintf(f, "%d, %d, %d, %d, %d, %d, %d, ", stored_bits(g), kn_mul(g), kn_mul(g) * g->lo + kn_add(g), s->zero, s->requant.zero,
            s->requant.lo, s->requant.hi);
    fprintf(f, "weight%lld, bias%lld, multiplier%lld, shift%lld},\n", (long long)at, (long long)at, (long long)at, (long long)at);
}

static status put_file(FILE *f, const rt_net *r, int64_t *bytes)
{
    int64_t code[256];
    for (int i = 0; i < 256; i++)
        code[i] = kn_encode_one(&r->grid, (real)i / 255, kn_inverse(r->scale), r->zero);
    fprintf(f, "/* A network for pictures in integers alone, written by nibble. logit = (code - %d) * %.9g */\n", r->out_zero,
            (double)r->out_scale);
    fprintf(f, "#include <stdint.h>\n#define NIBBLE_INPUTS %lld\n#define NIBBLE_CLASSES %lld\n#define NIBBLE_ROOM %lld\n"
               "int nibble_classify(const uint8_t *pixel, int8_t *logits, int8_t *room);\n\n",
            (long long)r->inputs, (long long)r->classes, (long long)(2 * r->largest));
    put_array(f, "int8_t", "code_of", -1, code, 256);
    *bytes = 256;
    for (int64_t i = 0; i < r->n; i++)
        if (r->step[i].kind == MD_STAGE_CONV)
            TRY(put_constants(f, &r->step[i], i, bytes));
    fputs("\n", f);
    fputs(functions, f);
    fputs("static const step steps[] = {\n", f);
    for (int64_t i = 0; i < r->n; i++)
        put_step(f, &r->step[i], i);
    fputs("};\n\n", f);
    fputs(main_function, f);
    return ferror(f) ? nb_fail(NB_IO, "cannot be written") : NB_OK;
}

status rt_net_write_c(const rt_net *r, const char *path, int64_t *bytes)
{
    nb_atomic out;
    TRY(nb_atomic_begin(&out, path));
    const status s = put_file(out.file, r, bytes);
    if (s == NB_OK)
        return nb_atomic_commit(&out);
    nb_atomic_abort(&out);
    return nb_fail_in(s, "%s", path);
}
