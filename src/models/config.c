/* config.c - a model's shape: checks, counting, and its form in JSON.
 *   {"architecture": "llama", "dim": 64, "hidden": 172, "layers": 5, "heads": 8, "kv_heads": 4, "head_size": 8, "vocab": 512,
 *    "ctx": 512, "norm_eps": 1e-05, "rope_theta": 10000, "pairing": "interleaved", "tied": true, ...}
 * Wanted: dim, hidden, layers, heads, vocab. Otherwise architecture llama, kv_heads = heads, head_size = dim / heads, ctx 256, norm_eps
 * 1e-5, rope_theta 10000, pairing interleaved, tied true, no biases, no Hadamard matrices, no scaling of the rotation, no special ids. Architecture gpt2
 * has all biases, and neither rope_* nor pairing.
 */
#include "models/models.h"
#include <math.h>
#include <string.h>

typedef enum { INTEGER, NUMBER, YES_NO } kind;

static const struct {
    const char *key;
    kind kind;
    size_t offset;
    bool is_wanted;
    int64_t lo, hi; /* of integers; products of all these fit into int64 */
} fields[] = {
    {"dim", INTEGER, offsetof(md_config, dim), true, 1, 1 << 20},
    {"hidden", INTEGER, offsetof(md_config, hidden), true, 1, 1 << 22},
    {"layers", INTEGER, offsetof(md_config, layers), true, 1, 1 << 12},
    {"heads", INTEGER, offsetof(md_config, heads), true, 1, 1 << 12},
    {"kv_heads", INTEGER, offsetof(md_config, kv_heads), false, 1, 1 << 12},
    {"head_size", INTEGER, offsetof(md_config, head_size), false, 2, 1 << 12},
    {"vocab", INTEGER, offsetof(md_config, vocab), true, 1, 1 << 24},
    {"ctx", INTEGER, offsetof(md_config, ctx), false, 1, 1 << 22},
    {"norm_eps", NUMBER, offsetof(md_config, norm_eps), false, 0, 0},
    {"rope_theta", NUMBER, offsetof(md_config, rope_theta), false, 0, 0},
    {"tied", YES_NO, offsetof(md_config, tied), false, 0, 0},
    {"qkv_bias", YES_NO, offsetof(md_config, qkv_bias), false, 0, 0},
    {"out_bias", YES_NO, offsetof(md_config, out_bias), false, 0, 0},
    {"hadamard", YES_NO, offsetof(md_config, hadamard), false, 0, 0},
    {"rope_factor", NUMBER, offsetof(md_config, rope_factor), false, 0, 0},
    {"rope_low", NUMBER, offsetof(md_config, rope_low), false, 0, 0},
    {"rope_high", NUMBER, offsetof(md_config, rope_high), false, 0, 0},
    {"rope_ctx", NUMBER, offsetof(md_config, rope_ctx), false, 0, 0},
    {"bos", INTEGER, offsetof(md_config, bos), false, -1, (1 << 24) - 1},
    {"eos", INTEGER, offsetof(md_config, eos), false, -1, (1 << 24) - 1},
};
enum { N_FIELDS = sizeof fields / sizeof *fields };
enum { MAX_ROTATION = 1 << 28 }; /* ctx * head_size: elements of the two rotation tables */
static const char *const pairings[] = {[KN_ROPE_INTERLEAVED] = "interleaved", [KN_ROPE_HALF] = "half"};

static int64_t integer_of(const md_config *c, int field)
{
    int64_t x;
    memcpy(&x, (const char *)c + fields[field].offset, sizeof x);
    return x;
}

static status check_rotation(const md_config *c)
{
    if (c->head_size % 2)
        return nb_fail(NB_FORMAT, "head_size is %lld, rotation needs an even one", (long long)c->head_size);
    if (c->ctx * c->head_size > MAX_ROTATION)
        return nb_fail(NB_FORMAT, "ctx %lld times head_size %lld is over %d", (long long)c->ctx,
                       (long long)c->head_size, MAX_ROTATION);
    if (!(c->rope_theta >= 1) || !isfinite(c->rope_theta))
        return nb_fail(NB_FORMAT, "rope_theta is %g, wanted at least 1", c->rope_theta);
    if (c->pairing != KN_ROPE_INTERLEAVED && c->pairing != KN_ROPE_HALF)
        return nb_fail(NB_FORMAT, "pairing is %d", (int)c->pairing);
    if (c->rope_factor == 0)
        return NB_OK;
    if (!(c->rope_factor >= 1 && c->rope_factor <= 1e6 && c->rope_low > 0 && c->rope_high > c->rope_low &&
          c->rope_high <= 1e6 && c->rope_ctx >= 1 && c->rope_ctx <= 1e9))
        return nb_fail(
            NB_FORMAT,
            "rope_factor %g, rope_low %g, rope_high %g, rope_ctx %g: wanted factor >= 1, 0 < low < high, ctx >= 1",
            c->rope_factor, c->rope_low, c->rope_high, c->rope_ctx);
    return NB_OK;
}

bool md_is_gpt2(const md_config *c)
{
    return strncmp(c->architecture, "gpt2", sizeof c->architecture) == 0;
}

static status check_gpt2(const md_config *c)
{
    if (c->kv_heads != c->heads || c->heads * c->head_size != c->dim)
        return nb_fail(NB_FORMAT, "gpt2 has kv_heads = heads and heads * head_size = dim, not %lld, %lld and %lld * %lld, %lld",
                       (long long)c->kv_heads, (long long)c->heads, (long long)c->heads, (long long)c->head_size, (long long)c->dim);
    if (!c->qkv_bias || !c->out_bias)
        return nb_fail(NB_FORMAT, "gpt2 has all its biases: qkv_bias and out_bias are true");
    return NB_OK;
}

status md_config_check(const md_config *c)
{
    if (strncmp(c->architecture, "llama", sizeof c->architecture) != 0 && !md_is_gpt2(c))
        return nb_fail(NB_UNSUPPORTED, "architecture is \"%.16s\", wanted \"llama\" or \"gpt2\"", c->architecture);
    for (int i = 0; i < N_FIELDS; i++) {
        int64_t x = fields[i].kind == INTEGER ? integer_of(c, i) : 0;
        if (fields[i].kind == INTEGER && (x < fields[i].lo || x > fields[i].hi))
            return nb_fail(NB_FORMAT, "%s is %lld, wanted %lld to %lld", fields[i].key, (long long)x,
                           (long long)fields[i].lo, (long long)fields[i].hi);
    }
    if (c->heads % c->kv_heads)
        return nb_fail(NB_FORMAT, "kv_heads %lld does not divide heads %lld", (long long)c->kv_heads,
                       (long long)c->heads);
    if (!(c->norm_eps >= 0 && c->norm_eps <= 1))
        return nb_fail(NB_FORMAT, "norm_eps is %g, wanted 0 to 1", c->norm_eps);
    if (c->bos >= c->vocab || c->eos >= c->vocab)
        return nb_fail(NB_FORMAT, "bos %lld or eos %lld is outside the vocabulary of %lld", (long long)c->bos,
                       (long long)c->eos, (long long)c->vocab);
    return md_is_gpt2(c) ? check_gpt2(c) : check_rotation(c);
}

int64_t md_config_params(const md_config *c)
{
    const int64_t q = c->heads * c->head_size, kv = c->kv_heads * c->head_size;
    const int64_t norm = md_is_gpt2(c) ? 2 * c->dim : c->dim, positions = md_is_gpt2(c) ? c->ctx * c->dim : 0;
    int64_t layer = 2 * norm + 2 * q * c->dim + 2 * kv * c->dim;
    layer += (c->qkv_bias ? q + 2 * kv : 0) + (c->out_bias ? c->dim : 0);
    layer += md_is_gpt2(c) ? 2 * c->hidden * c->dim + c->hidden + c->dim : 3 * c->hidden * c->dim;
    return c->layers * layer + norm + positions + (c->tied ? 1 : 2) * c->vocab * c->dim;
}

/* ---- JSON --------------------------------------------------------------------------------- */

static status read_text(md_config *c, const char *key, const nb_json *j)
{
    const char *text = nb_json_string(j);
    if (!text)
        return nb_fail(NB_FORMAT, "%s: wanted a text", key);
    if (!strcmp(key, "architecture")) {
        if (strlen(text) >= sizeof c->architecture)
            return nb_fail(NB_FORMAT, "architecture \"%.32s...\" is too long", text);
        memset(c->architecture, 0, sizeof c->architecture);
        memcpy(c->architecture, text, strlen(text));
        return NB_OK;
    }
    for (int i = 0; i < 2; i++)
        if (!strcmp(text, pairings[i])) {
            c->pairing = (kn_rope_pairing)i;
            return NB_OK;
        }
    return nb_fail(NB_FORMAT, "pairing is \"%.32s\", wanted \"interleaved\" or \"half\"", text);
}

static status read_field(md_config *c, int field, const nb_json *j)
{
    char *at = (char *)c + fields[field].offset;
    if (fields[field].kind == INTEGER) {
        int64_t x = nb_json_int(j, INT64_MIN);
        if (x == INT64_MIN)
            return nb_fail(NB_FORMAT, "%s: wanted an integer", fields[field].key);
        memcpy(at, &x, sizeof x);
    } else if (fields[field].kind == NUMBER) {
        if (!nb_json_is_number(j))
            return nb_fail(NB_FORMAT, "%s: wanted a number", fields[field].key);
        double x = nb_json_number(j, 0);
        memcpy(at, &x, sizeof x);
    } else {
        bool yes = nb_json_bool(j, false);
        if (yes != nb_json_bool(j, true))
            return nb_fail(NB_FORMAT, "%s: wanted true or false", fields[field].key);
        memcpy(at, &yes, sizeof yes);
    }
    return NB_OK;
}

static bool is_of_rotation(const char *key)
{
    return !strncmp(key, "rope_", 5) || !strcmp(key, "pairing");
}

/* What was not said follows from the rest. */
static void fill_in(md_config *c, const bool *seen)
{
    if (md_is_gpt2(c))
        c->rope_theta = 0;
    for (int i = 0; i < N_FIELDS; i++) {
        const char *key = fields[i].key;
        if (seen[i])
            continue;
        if (!strcmp(key, "kv_heads"))
            c->kv_heads = c->heads;
        if (!strcmp(key, "head_size"))
            c->head_size = c->heads > 0 ? c->dim / c->heads : 0;
        if (!strcmp(key, "qkv_bias"))
            c->qkv_bias = md_is_gpt2(c);
        if (!strcmp(key, "out_bias"))
            c->out_bias = md_is_gpt2(c);
    }
}

status md_config_from_json(md_config *c, const nb_json *j)
{
    bool seen[N_FIELDS] = {false};
    *c = (md_config){
        .architecture = "llama", .ctx = 256, .norm_eps = 1e-5, .rope_theta = 10000, .tied = true, .bos = -1, .eos = -1};
    if (!nb_json_first(j))
        return nb_fail(NB_FORMAT, "the config has no fields");
    if (!nb_json_is_null(nb_json_get(j, "architecture")))
        TRY(read_text(c, "architecture", nb_json_get(j, "architecture")));
    for (const nb_json *item = nb_json_first(j); item; item = nb_json_next(item)) {
        const char *key = nb_json_key(item);
        int i = 0;
        if (!key)
            return nb_fail(NB_FORMAT, "the config is no JSON object");
        if (md_is_gpt2(c) && is_of_rotation(key))
            return nb_fail(NB_FORMAT, "%s: positions of gpt2 are learned, not rotary", key);
        if (!strcmp(key, "architecture") || !strcmp(key, "pairing")) {
            TRY(read_text(c, key, item));
            continue;
        }
        while (i < N_FIELDS && strcmp(fields[i].key, key) != 0)
            i++;
        if (i == N_FIELDS)
            return nb_fail(NB_FORMAT, "the config has an unknown field \"%.64s\"", key);
        TRY(read_field(c, i, item));
        seen[i] = true;
    }
    for (int i = 0; i < N_FIELDS; i++)
        if (fields[i].is_wanted && !seen[i])
            return nb_fail(NB_FORMAT, "the config lacks \"%s\"", fields[i].key);
    fill_in(c, seen);
    return md_config_check(c);
}

void md_config_to_json(const md_config *c, nb_writer *w)
{
    nb_json_put_string(w, "architecture", c->architecture);
    for (int i = 0; i < N_FIELDS; i++) {
        const char *at = (const char *)c + fields[i].offset;
        double x;
        bool yes;
        if (md_is_gpt2(c) && is_of_rotation(fields[i].key))
            continue;
        if (fields[i].kind == INTEGER) {
            nb_json_put_int(w, fields[i].key, integer_of(c, i));
        } else if (fields[i].kind == NUMBER) {
            memcpy(&x, at, sizeof x);
            nb_json_put_number(w, fields[i].key, x);
        } else {
            memcpy(&yes, at, sizeof yes);
            if (yes || strcmp(fields[i].key, "hadamard") != 0)
                nb_json_put_bool(w, fields[i].key, yes);
        }
    }
    if (!md_is_gpt2(c))
        nb_json_put_string(w, "pairing", pairings[c->pairing]);
}

status md_config_from_text(md_config *c, const char *text, size_t bytes, const char *name)
{
    nb_json *j = nb_json_parse(text, bytes);
    status s = j ? md_config_from_json(c, j) : NB_FORMAT;
    nb_json_free(j);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", name);
}
