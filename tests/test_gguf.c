/* test_gguf.c - GGUF files: what is written is read; a real file comes back byte for byte; every check of the reader
 * refuses what it is for.
 */
#include "format_files.h"
#include "scratch.h"
#include "suite.h"

#define VOCAB DATA "tokenizers/ggml-vocab-"

static const uint8_t bytes[256] = {0x00, 0x3C, 0x21, 0x43, 0x65};
static const fm_array arrays[] = {
    {"token_embd.weight", FM_Q8_0, 2, {2, 32}, bytes, 68},
    {"norm.weight", FM_F32, 1, {5}, bytes, 20},
    {"w", FM_Q4_0, 2, {3, 32}, bytes, 54},
    {"v", FM_Q4_1, 2, {1, 64}, bytes, 40},
    {"h", FM_F16, 3, {2, 1, 3}, bytes, 12},
    {"k", FM_Q6_K, 1, {0}, NULL, 0},
    {"b", FM_BF16, 4, {1, 2, 3, 4}, bytes, 48},
    {"i", FM_I32, 0, {0}, bytes, 4},
};

static status read_file(const char *path)
{
    fm_arrays a;
    TRY(fm_gguf_open(&a, path));
    fm_arrays_free(&a);
    return NB_OK;
}

static void put_metadata(fm_meta *m, uint32_t alignment)
{
    const fm_text words[] = {{"<s>", 3}, {"", 0}, {"a\0b", 3}};
    const int64_t big[] = {INT64_MIN, -1, INT64_MAX};
    fm_meta_put_string(m, "general.architecture", "llama");
    if (alignment)
        fm_meta_put_u32(m, "general.alignment", alignment);
    fm_meta_put_f32(m, "llama.attention.layer_norm_rms_epsilon", 1e-5F);
    fm_meta_put_bool(m, "flag", true);
    fm_meta_put_strings(m, "tokenizer.ggml.tokens", words, 3);
    fm_meta_put_array(m, "tokenizer.ggml.scores", FM_F32, bytes, 3);
    fm_meta_put_array(m, "tokenizer.ggml.token_type", FM_I32, bytes, 0);
    fm_meta_put(m, "u8", FM_U8, bytes + 1);
    fm_meta_put(m, "i8", FM_I8, bytes + 1);
    fm_meta_put(m, "u16", FM_U16, bytes + 1);
    fm_meta_put(m, "i16", FM_I16, bytes + 1);
    fm_meta_put(m, "u64", FM_U64, big + 2);
    fm_meta_put(m, "f64", FM_F64, bytes);
    fm_meta_put_array(m, "i64", FM_I64, big, 3);
    fm_meta_put_array(m, "bools", FM_BOOL, bytes + 10, 3);
}

static const char *write_arrays(const char *name, uint32_t alignment)
{
    const char *path = scratch_path(name);
    fm_meta m = {0};
    put_metadata(&m, alignment);
    must(fm_gguf_write(path, arrays, COUNT(arrays), &m, (fm_source){0}));
    fm_meta_free(&m);
    return path;
}

static void same_values(const fm_value *a, const fm_value *b)
{
    ck_assert_str_eq(a->key, b->key);
    ck_assert_msg(a->dtype == b->dtype && a->is_array == b->is_array && a->n == b->n, "%s differs", a->key);
    for (int64_t i = 0; i < a->n && a->dtype == FM_STRING; i++) {
        fm_text x = fm_value_text(a, i), y = fm_value_text(b, i);
        ck_assert(x.bytes == y.bytes && (x.bytes == 0 || !memcmp(x.text, y.text, x.bytes)));
    }
    ck_assert(a->dtype == FM_STRING || a->n == 0 || !memcmp(a->data, b->data, (size_t)a->n * fm_dtype_bytes(a->dtype)));
}

START_TEST(what_was_written_is_read)
{
    static const uint32_t alignments[] = {0, 1, 8, 32, 64, 4096};
    const char *path = write_arrays("x.gguf", alignments[_i]);
    uint64_t alignment = alignments[_i] ? alignments[_i] : 32;
    fm_arrays a;
    fm_meta m = {0};
    put_metadata(&m, alignments[_i]);
    must(fm_gguf_open(&a, path));
    ck_assert_int_eq(a.n, COUNT(arrays));
    for (int64_t i = 0; i < a.n; i++) {
        same_arrays(&a.array[i], &arrays[i]);
        ck_assert_uint_eq((uint64_t)((const uint8_t *)a.array[i].data - a.file->data) % alignment, 0);
        ck_assert_ptr_eq(fm_find(&a, arrays[i].name), &a.array[i]);
    }
    ck_assert_int_eq(a.meta.n, m.n);
    for (int64_t i = 0; i < m.n; i++)
        same_values(&a.meta.value[i], &m.value[i]);
    ck_assert_str_eq(fm_value_string(fm_meta_get(&a.meta, "general.architecture")), "llama");
    const char *again = scratch_path("again.gguf");
    must(fm_gguf_write(again, a.array, a.n, &a.meta, (fm_source){give_from, &a}));
    same_files(path, again);
    ck_assert_uint_eq(a.file->bytes % alignment, 0);
    fm_arrays_free(&a);
    fm_meta_free(&m);
}
END_TEST

START_TEST(dimensions_are_written_fastest_first)
{
    const char *path = write_arrays("x.gguf", 0);
    static const uint8_t info[] = {17,  0,   0,   0,   0,   0,   0,   0,   't', 'o', 'k', 'e', 'n', '_', 'e',
                                   'm', 'b', 'd', '.', 'w', 'e', 'i', 'g', 'h', 't', 2,   0,   0,   0,   32,
                                   0,   0,   0,   0,   0,   0,   0,   2,   0,   0,   0,   0,   0,   0,   0,
                                   8,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0,   0};
    size_t n;
    uint8_t *data = load(path, &n);
    bool found = false;
    for (size_t i = 0; i + sizeof info <= n; i++)
        found = found || !memcmp(data + i, info, sizeof info);
    ck_assert(found);
    free(data);
}
END_TEST

static const struct {
    const char *path, *model;
    int64_t tokens;
} real[] = {{VOCAB "llama-spm.gguf", "llama", 32000}, {VOCAB "gpt-2.gguf", "gpt2", 50257}};

START_TEST(real_files_come_back_byte_for_byte)
{
    if (!have(real[_i].path))
        return;
    fm_arrays a;
    must(fm_gguf_open(&a, real[_i].path));
    ck_assert_int_eq(a.n, 0);
    ck_assert_str_eq(fm_value_string(fm_meta_get(&a.meta, "tokenizer.ggml.model")), real[_i].model);
    const fm_value *tokens = fm_meta_get(&a.meta, "tokenizer.ggml.tokens");
    ck_assert(tokens && tokens->is_array && tokens->n == real[_i].tokens);
    must(fm_gguf_write(scratch_path("again.gguf"), a.array, a.n, &a.meta, (fm_source){0}));
    fm_arrays_free(&a);
    same_files(scratch_path("again.gguf"), real[_i].path);
}
END_TEST

START_TEST(cut_files_and_missing_memory_are_survived)
{
    const fm_array last = {"w", FM_F32, 1, {8}, bytes, 32}; /* no padding behind it */
    fm_meta m = {0};
    put_metadata(&m, 0);
    const char *path = scratch_path("x.gguf");
    must(fm_gguf_write(path, &last, 1, &m, (fm_source){0}));
    fm_meta_free(&m);
    refuse_every_cut(path, read_file, 600);
    survive_without_memory(path, read_file);
}
END_TEST

/* ---- files by hand ---- */

static struct {
    uint8_t data[1024];
    size_t n;
} hand;

static void number(uint64_t x, size_t size)
{
    memcpy(hand.data + hand.n, &x, size);
    hand.n += size;
}

static void text(const char *t)
{
    number(strlen(t), 8);
    memcpy(hand.data + hand.n, t, strlen(t));
    hand.n += strlen(t);
}

static void header(uint64_t version, uint64_t n_tensors, uint64_t n_kv)
{
    hand.n = 0;
    memset(hand.data, 0, sizeof hand.data);
    number(0x46554747, 4);
    number(version, 4);
    number(n_tensors, 8);
    number(n_kv, 8);
}

static void info(const char *name, uint64_t n_dim, uint64_t ne, uint64_t type, uint64_t offset)
{
    text(name);
    number(n_dim, 4);
    for (uint64_t i = 0; i < n_dim && i < 5; i++)
        number(ne, 8);
    number(type, 4);
    number(offset, 8);
}

static void key(const char *name, uint64_t type)
{
    text(name);
    number(type, 4);
}

static void good(void)
{
    header(3, 1, 1);
    key("k", 4), number(7, 4);
    info("w", 1, 8, 0, 0);
}
static void version_2(void)
{
    header(2, 0, 0);
}
static void version_1(void)
{
    header(1, 0, 0);
}
static void big_endian(void)
{
    header(0x03000000, 0, 0);
}
static void too_many_tensors(void)
{
    header(3, UINT64_MAX, 0);
}
static void too_many_keys(void)
{
    header(3, 0, 1ULL << 40);
}
static void long_key(void)
{
    header(3, 0, 1), number(UINT64_MAX, 8), number(0, 8);
}
static void key_with_nul(void)
{
    header(3, 0, 1), number(3, 8), number(0x610061, 3), number(4, 4), number(7, 4);
}
static void unknown_type(void)
{
    header(3, 0, 1), key("k", 13), number(7, 8);
}
static void array_of_arrays(void)
{
    header(3, 0, 1), key("k", 9), number(9, 4), number(1, 8), number(0, 8);
}
static void long_array(void)
{
    header(3, 0, 1), key("k", 9), number(12, 4), number(1ULL << 61, 8), number(0, 8);
}
static void long_array_of_texts(void)
{
    header(3, 0, 1), key("k", 9), number(8, 4), number(1000, 8), number(0, 8);
}
static void key_twice(void)
{
    header(3, 0, 2), key("k", 4), number(7, 4), key("k", 4), number(7, 4);
}
static void alignment_0(void)
{
    header(3, 0, 1), key("general.alignment", 4), number(0, 4);
}
static void alignment_48(void)
{
    header(3, 0, 1), key("general.alignment", 4), number(48, 4);
}
static void alignment_of_another_type(void)
{
    header(3, 0, 1), key("general.alignment", 10), number(32, 8);
}
static void tensor_twice(void)
{
    header(3, 2, 0), info("w", 1, 8, 0, 0), info("w", 1, 8, 0, 32);
}
static void tensor_with_a_hole(void)
{
    header(3, 2, 0), info("w", 1, 8, 0, 0), info("v", 1, 8, 0, 64);
}
static void tensor_over_another(void)
{
    header(3, 2, 0), info("w", 1, 9, 0, 0), info("v", 1, 8, 0, 32);
}
static void five_dimensions(void)
{
    header(3, 1, 0), info("w", 5, 1, 0, 0);
}
static void dimension_overflows(void)
{
    header(3, 1, 0), info("w", 2, 1ULL << 32, 0, 0);
}
static void dimension_is_negative(void)
{
    header(3, 1, 0), info("w", 1, UINT64_MAX, 0, 0);
}
static void too_large(void)
{
    header(3, 1, 0), info("w", 1, 1000, 0, 0);
}
static void ends_overflow(void)
{
    header(3, 2, 0), info("w", 1, INT64_MAX / 4, 0, 0), info("v", 1, INT64_MAX / 4, 0, INT64_MAX / 32 * 32ULL);
}
static void unknown_ggml_type(void)
{
    header(3, 1, 0), info("w", 1, 32, 4, 0);
}
static void half_a_block(void)
{
    header(3, 1, 0), info("w", 1, 31, 2, 0);
}
static void long_name(void)
{
    header(3, 1, 0), info("0123456789012345678901234567890123456789012345678901234567890123", 1, 8, 0, 0);
}

static const struct {
    void (*make)(void);
    const char *message; /* NULL: accepted */
    status wanted;
} by_hand[] = {
    {good, NULL, NB_OK},
    {version_2, NULL, NB_OK},
    {version_1, "version 2 or 3", NB_UNSUPPORTED},
    {big_endian, "version 2 or 3", NB_UNSUPPORTED},
    {too_many_tensors, "tensors do not fit", NB_FORMAT},
    {too_many_keys, "keys do not fit", NB_FORMAT},
    {long_key, "name of key 0 does not fit", NB_FORMAT},
    {key_with_nul, "NUL", NB_FORMAT},
    {unknown_type, "unknown type 13", NB_FORMAT},
    {array_of_arrays, "unknown type 9", NB_FORMAT},
    {long_array, "elements do not fit", NB_FORMAT},
    {long_array_of_texts, "do not fit", NB_FORMAT},
    {key_twice, "the key k occurs twice", NB_FORMAT},
    {alignment_0, "power of two", NB_FORMAT},
    {alignment_48, "power of two", NB_FORMAT},
    {alignment_of_another_type, "power of two", NB_FORMAT},
    {tensor_twice, "w occurs twice", NB_FORMAT},
    {tensor_with_a_hole, "offset 64, wanted 32", NB_FORMAT},
    {tensor_over_another, "offset 32, wanted 64", NB_FORMAT},
    {five_dimensions, "too many dimensions", NB_FORMAT},
    {dimension_overflows, "too large", NB_FORMAT},
    {dimension_is_negative, "too large", NB_FORMAT},
    {too_large, "needs 4000 bytes", NB_FORMAT},
    {ends_overflow, "overflow", NB_FORMAT},
    {unknown_ggml_type, "unknown ggml type 4", NB_UNSUPPORTED},
    {half_a_block, "not whole blocks", NB_FORMAT},
    {long_name, "longer than 63", NB_FORMAT},
};

START_TEST(files_that_break_a_rule_are_refused)
{
    by_hand[_i].make();
    hand.n = (hand.n + 31) / 32 * 32 + 64;
    ck_assert_uint_le(hand.n, sizeof hand.data);
    const char *path = scratch_write("hand.gguf", hand.data, hand.n);
    if (!by_hand[_i].message)
        must(read_file(path));
    else
        must_fail(read_file(path), by_hand[_i].wanted, by_hand[_i].message);
}
END_TEST

START_TEST(failed_writing_keeps_the_old_file)
{
    const char *path = write_arrays("x.gguf", 0), *same = write_arrays("same.gguf", 0);
    fm_source none = {0}, few = {give_too_few, (void *)(uintptr_t) "w"}, many = {give_too_many, few.ctx};
    const fm_array twice[] = {arrays[1], arrays[1]}, u8 = {"u", FM_U8, 1, {4}, bytes, 4},
                   short_one = {"s", FM_F32, 1, {4}, bytes, 4};
    fm_array long_named = arrays[1];
    long_named.name = "0123456789012345678901234567890123456789012345678901234567890123";
    fm_meta wrong = {0}, doubled = {0}, odd = {0};
    fm_meta_put(&wrong, "half", FM_F16, bytes);
    put_metadata(&doubled, 0), put_metadata(&doubled, 0);
    fm_meta_put_u32(&odd, "general.alignment", 48);
    must_fail(fm_gguf_write(path, twice, 2, NULL, none), NB_USAGE, "norm.weight occurs twice");
    must_fail(fm_gguf_write(path, &u8, 1, NULL, none), NB_USAGE, "cannot hold type U8");
    must_fail(fm_gguf_write(path, &short_one, 1, NULL, none), NB_USAGE, "says 4 bytes, needs 16");
    must_fail(fm_gguf_write(path, &long_named, 1, NULL, none), NB_USAGE, "at most 63 bytes");
    must_fail(fm_gguf_write(path, arrays, 3, NULL, few), NB_USAGE, "w: 1 of its 54 bytes");
    must_fail(fm_gguf_write(path, arrays, 3, NULL, many), NB_USAGE, "w: 1 bytes are put");
    must_fail(fm_gguf_write(path, arrays, 3, &wrong, none), NB_USAGE, "half");
    must_fail(fm_gguf_write(path, arrays, 3, &doubled, none), NB_FORMAT, "twice");
    must_fail(fm_gguf_write(path, arrays, 3, &odd, none), NB_FORMAT, "power of two");
    fm_meta_free(&wrong), fm_meta_free(&doubled), fm_meta_free(&odd);
    same_files(path, same);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gguf");
    TCase *c = tcase_create("gguf");
    tcase_add_checked_fixture(c, scratch_begin, scratch_end);
    tcase_set_timeout(c, 30); /* hundreds of small files under sanitizers */
    tcase_add_loop_test(c, what_was_written_is_read, 0, 6);
    tcase_add_test(c, dimensions_are_written_fastest_first);
    tcase_add_loop_test(c, real_files_come_back_byte_for_byte, 0, COUNT(real));
    tcase_add_test(c, cut_files_and_missing_memory_are_survived);
    tcase_add_loop_test(c, files_that_break_a_rule_are_refused, 0, COUNT(by_hand));
    tcase_add_test(c, failed_writing_keeps_the_old_file);
    suite_add_tcase(s, c);
    return run_suite(s);
}
