/* table_body.h - all loops and the table of them, for the vector that the including isa_*.c defines. */

/* `left` elements from p, at most 16; what lies behind them reads as 0 and is not written. */
static inline v16 v_get(const real *p, int64_t left)
{
    return left >= 16 ? v_load(p) : v_load_n(p, left);
}
static inline void v_put(real *p, v16 x, int64_t left)
{
    if (left >= 16)
        v_store(p, x);
    else
        v_store_n(p, x, left);
}

/* In this order: each uses functions of those before it. */
#include "kernels/rows_body.h"

#include "kernels/optimizer_body.h"

#include "kernels/norm_body.h"

#include "kernels/grid_body.h"

#include "kernels/tile_body.h"

#include "kernels/linear_body.h"

#include "kernels/picture_body.h"

#include "kernels/attend_body.h"

const kn_table TABLE = {.name = TABLE_NAME,
                        .bf16 = TABLE_BF16,
#define X(result, function, arguments) .function = function,
                        KN_FUNCTIONS(X)
#undef X
};
