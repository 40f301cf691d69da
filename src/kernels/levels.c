/* levels.c - grids whose levels stand in a table: value = level[q] * scale, q the nearest level of x / scale. Formulas: kernels.h.
 * Sources: bitsandbytes functional.py (create_normal_map) and csrc/kernels.cu (dQuantizeNF4, dQuantizeFP4: middles between levels);
 * ggml-common.h (kvalues_iq4nl).
 */
#include "kernels/kernels_isa.h"

enum { CHUNK = 256, MOST = 16 };

typedef struct {
    const char *name;
    int32_t n;
    bool integers;
    real level[MOST];
} level_table;

#define THIRD ((real)1 / 3)
#define LEAST ((real)1 / 192)
static const level_table tables[KN_TABLE_COUNT] = {
    [KN_TABLE_NF4] = {"nf4", 16, false,
                      {(real)-1.0, (real)-0.6961928009986877, (real)-0.5250730514526367, (real)-0.39491748809814453,
                       (real)-0.28444138169288635, (real)-0.18477343022823334, (real)-0.09105003625154495, (real)0.0,
                       (real)0.07958029955625534, (real)0.16093020141124725, (real)0.24611230194568634,
                       (real)0.33791524171829224, (real)0.44070982933044434, (real)0.5626170039176941,
                       (real)0.7229568362236023, (real)1.0}},
    [KN_TABLE_FP4] = {"fp4", 15, false,
                      {-1, -2 * THIRD, -(real)0.5, -THIRD, -(real)0.25, -THIRD / 2, -LEAST, 0, LEAST, THIRD / 2, (real)0.25, THIRD,
                       (real)0.5, 2 * THIRD, 1}},
    [KN_TABLE_OWN] = {"levels", KN_OWN_LEVELS, false, {0}}, /* the grid has them */
    [KN_TABLE_IQ4_NL] = {"iq4_nl", 16, true,
                         {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}},
};

kn_grid kn_grid_table(kn_table_name table, kn_grain grain, int group, kn_scale_type scale)
{
    return (kn_grid){.levels = KN_LEVELS_TABLE,
                     .bits = 4,
                     .grain = (uint8_t)grain,
                     .scale = (uint8_t)scale,
                     .table = (uint8_t)table,
                     .lo = 0,
                     .hi = tables[table].n - 1,
                     .group = grain == KN_TENSOR || grain == KN_ROW ? 0 : group};
}

const real *kn_table_levels(const kn_grid *g)
{
    return g->table == KN_TABLE_OWN ? g->level : tables[g->table].level;
}

const char *kn_table_text(kn_table_name table)
{
    return tables[table].name;
}

bool kn_table_has_integers(const kn_grid *g)
{
    return tables[g->table].integers;
}

static void middles(real middle[MOST], const kn_grid *g)
{
    const real *level = kn_table_levels(g);
    for (int i = 0; i < g->hi; i++)
        middle[i] = (level[i] + level[i + 1]) / 2;
}

/* NaN is above no middle: code 0. */
void kn_encode_levels(int8_t *q, const real *x, int64_t n, const kn_grid *g, real inv)
{
    real middle[MOST];
    middles(middle, g);
    for (int64_t at = 0; at < n; at += CHUNK) {
        const int64_t count = kn_min(CHUNK, n - at);
        real t[CHUNK];
        for (int64_t i = 0; i < count; i++) {
            t[i] = x[at + i] * inv;
            q[at + i] = 0;
        }
        for (int k = 0; k < g->hi; k++)
            for (int64_t i = 0; i < count; i++)
                q[at + i] = (int8_t)(q[at + i] + (t[i] > middle[k]));
    }
}

void kn_decode_levels(real *x, const int8_t *q, int64_t n, const kn_grid *g, real scale)
{
    real value[MOST];
    const real *level = kn_table_levels(g);
    for (int i = 0; i <= g->hi; i++)
        value[i] = level[i] * scale;
    for (int64_t i = 0; i < n; i++)
        x[i] = value[q[i]];
}

double kn_levels_error(const real *x, const real *h, int64_t n, const kn_grid *g, real scale)
{
    double sum = 0;
    const real inv = kn_inverse(scale);
    for (int64_t at = 0; at < n; at += CHUNK) {
        const int64_t count = kn_min(CHUNK, n - at);
        int8_t q[CHUNK];
        real y[CHUNK];
        kn_encode_levels(q, x + at, count, g, inv);
        kn_decode_levels(y, q, count, g, scale);
        for (int64_t i = 0; i < count; i++) {
            const double e = (double)x[at + i] - (double)y[i];
            sum += (h ? (double)h[at + i] : 1) * e * e;
        }
    }
    return sum;
}
