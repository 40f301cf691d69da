/* test_formats.c - what all formats share: types and sizes of arrays, conversion, block layouts, bit packing, metadata,
 * kinds of files.
 */
#include "format_files.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>

/* ---- types and sizes ---- */

START_TEST(every_type_is_found_by_its_names)
{
    fm_dtype found = FM_DTYPE_COUNT, t = (fm_dtype)_i;
    if (fm_dtype_ggml(t) >= 0)
        ck_assert(fm_dtype_of_ggml(&found, fm_dtype_ggml(t)) && found == t);
    if (t < FM_STRING)
        ck_assert(fm_dtype_of_name(&found, fm_dtype_name(t)) && found == t);
    else
        ck_assert(!fm_dtype_of_name(&found, fm_dtype_name(t)));
    ck_assert(fm_dtype_block(t) >= 1 && (fm_dtype_bytes(t) > 0 || t == FM_STRING));
}
END_TEST

static const struct {
    fm_array a;
    status wanted;
    size_t bytes;
} sizes[] = {
    {{.dtype = FM_F32, .n_dim = 0}, NB_OK, 4},
    {{.dtype = FM_BF16, .n_dim = 3, .dim = {3, 5, 7}}, NB_OK, 210},
    {{.dtype = FM_F64, .n_dim = 2, .dim = {0, 1000}}, NB_OK, 0},
    {{.dtype = FM_Q4_0, .n_dim = 2, .dim = {3, 64}}, NB_OK, 108},
    {{.dtype = FM_Q4_0, .n_dim = 2, .dim = {64, 3}}, NB_FORMAT, 0},
    {{.dtype = FM_Q6_K, .n_dim = 1, .dim = {512}}, NB_OK, 420},
    {{.dtype = FM_F6_E2M3, .n_dim = 1, .dim = {8}}, NB_OK, 6},
    {{.dtype = FM_F4, .n_dim = 1, .dim = {3}}, NB_FORMAT, 0},
    {{.dtype = FM_I8, .n_dim = 1, .dim = {-1}}, NB_FORMAT, 0},
    {{.dtype = FM_I8, .n_dim = 2, .dim = {1LL << 32, 1LL << 31}}, NB_FORMAT, 0},
    {{.dtype = FM_F32, .n_dim = 1, .dim = {INT64_MAX / 4 + 1}}, NB_FORMAT, 0},
    {{.dtype = FM_I8, .n_dim = 3, .dim = {INT64_MAX, INT64_MAX, 0}}, NB_FORMAT, 0},
    {{.dtype = FM_STRING, .n_dim = 1, .dim = {1}}, NB_FORMAT, 0},
    {{.dtype = FM_DTYPE_COUNT, .n_dim = 1, .dim = {1}}, NB_FORMAT, 0},
    {{.dtype = FM_F32, .n_dim = 5}, NB_FORMAT, 0},
};

START_TEST(sizes_are_exact_or_refused)
{
    fm_array a = sizes[_i].a;
    a.name = "w";
    ck_assert_int_eq(fm_array_measure(&a), sizes[_i].wanted);
    ck_assert(sizes[_i].wanted != NB_OK || a.bytes == sizes[_i].bytes);
}
END_TEST

/* ---- conversion ---- */

#define BYTES(...)                                                                                                     \
    (const uint8_t[])                                                                                                  \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }
static const struct {
    fm_dtype t;
    const uint8_t *data; /* little-endian */
    float x[2];
} conversions[] = {
    {FM_F32, BYTES(0, 0, 128, 63, 0, 0, 32, 192), {1, -2.5F}},
    {FM_F16, BYTES(0, 60, 1, 0), {1, 5.9604645e-8F}},
    {FM_BF16, BYTES(128, 63, 32, 192), {1, -2.5F}},
    {FM_F64, BYTES(0, 0, 0, 0, 0, 0, 240, 63, 0, 0, 0, 0, 0, 0, 4, 192), {1, -2.5F}},
    {FM_I8, BYTES(255, 127), {-1, 127}},
    {FM_U8, BYTES(255, 127), {255, 127}},
    {FM_BOOL, BYTES(0, 1), {0, 1}},
    {FM_I16, BYTES(0, 128, 1, 0), {-32768, 1}},
    {FM_U16, BYTES(0, 128, 1, 0), {32768, 1}},
    {FM_I32, BYTES(255, 255, 255, 255, 1, 0, 0, 1), {-1, 16777216}},
    {FM_U32, BYTES(255, 255, 255, 255, 1, 0, 0, 0), {4294967296.0F, 1}},
    {FM_I64, BYTES(255, 255, 255, 255, 255, 255, 255, 255, 3, 0, 0, 0, 0, 0, 0, 0), {-1, 3}},
    {FM_U64, BYTES(255, 255, 255, 255, 255, 255, 255, 255, 3, 0, 0, 0, 0, 0, 0, 0), {18446744073709551616.0F, 3}},
};

START_TEST(numbers_of_every_type_become_floats)
{
    uint8_t shifted[17];
    fm_dtype t = conversions[_i].t;
    fm_array a = {.name = "w", .dtype = t, .n_dim = 1, .dim = {2}, .data = shifted + 1};
    float x[2] = {0};
    int64_t n;
    must(fm_array_measure(&a));
    memcpy(shifted + 1, conversions[_i].data, a.bytes); /* unaligned, as in a file */
    must(fm_to_float(x, &a, 0, 2));
    ck_assert(x[0] == conversions[_i].x[0] && x[1] == conversions[_i].x[1]);
    must(fm_to_float(x, &a, 1, 1));
    ck_assert(x[0] == conversions[_i].x[1]);
    bool is_integer = t != FM_F32 && t != FM_F16 && t != FM_BF16 && t != FM_F64;
    ck_assert_int_eq(fm_to_int(&n, &a, 1, 1), is_integer ? NB_OK : NB_FORMAT);
    ck_assert(!is_integer || (float)n == x[0]);
    ck_assert_int_eq(fm_to_int(&n, &a, 0, 1), is_integer && t != FM_U64 ? NB_OK : NB_FORMAT);
}
END_TEST

START_TEST(elements_outside_an_array_are_refused)
{
    static const int64_t ranges[][2] = {{-1, 1}, {0, 65}, {64, 1}, {1, INT64_MAX}, {0, -1}, {16, 16}, {0, 33}};
    uint8_t data[72] = {0};
    float x[64];
    fm_array a = {.name = "w", .dtype = FM_Q8_0, .n_dim = 2, .dim = {2, 32}, .data = data, .bytes = 68};
    must(fm_to_float(x, &a, 32, 32));
    must(fm_to_float(x, &a, 64, 0));
    must_fail(fm_to_float(x, &a, ranges[_i][0], ranges[_i][1]), NB_SHAPE, "w: asked for");
    a.dtype = FM_F4;
    must_fail(fm_to_float(x, &a, 0, 64), NB_UNSUPPORTED, "F4");
    a.data = NULL;
    must_fail(fm_to_float(x, &a, 0, 64), NB_USAGE, "not in memory");
}
END_TEST

/* ---- blocks ---- */

START_TEST(blocks_have_ggml_s_layout)
{
    int8_t q[32];
    uint16_t d = 0x3800, m = 0xBC00; /* 0.5, -1 */
    uint8_t block[34], wanted[34] = {0x00, 0x38};
    for (int i = 0; i < 32; i++)
        q[i] = (int8_t)(i - 16);
    must(fm_blocks_pack(block, FM_Q8_0, q, &d, NULL, NULL, 1));
    memcpy(wanted + 2, q, 32);
    ck_assert_mem_eq(block, wanted, 34);
    for (int i = 0; i < 32; i++)
        q[i] = (int8_t)((i * 7 + 3) % 16 - 8);
    must(fm_blocks_pack(block, FM_Q4_0, q, &d, NULL, NULL, 1));
    for (int j = 0; j < 16; j++)
        wanted[2 + j] = (uint8_t)((q[j] + 8) | (q[j + 16] + 8) << 4);
    ck_assert_mem_eq(block, wanted, 18);
    for (int i = 0; i < 32; i++)
        q[i] = (int8_t)(q[i] + 8);
    must(fm_blocks_pack(block, FM_Q4_1, q, &d, &m, NULL, 1));
    ck_assert(!memcmp(block, BYTES(0x00, 0x38, 0x00, 0xBC), 4));
    ck_assert_mem_eq(block + 4, wanted + 2, 16);
}
END_TEST

static const struct {
    fm_dtype t;
    int lowest, highest, parts; /* scales of a block in units of d */
} coded[] = {{FM_Q8_0, -128, 127, 0}, {FM_Q4_0, -8, 7, 0},    {FM_Q4_1, 0, 15, 0}, {FM_Q5_0, -16, 15, 0},
             {FM_Q4_K, -8, 7, 8},     {FM_Q6_K, -32, 31, 16}, {FM_TQ2_0, -1, 1, 0}};

START_TEST(blocks_give_back_codes_and_their_values)
{
    enum { BLOCKS = 5, WIDEST = 256, PARTS = 16 };
    fm_dtype t = coded[_i].t;
    const int block = (int)fm_dtype_block(t), n = BLOCKS * block, parts = coded[_i].parts, group = parts ? block / parts : block;
    int span = coded[_i].highest - coded[_i].lowest + 1;
    int8_t q[BLOCKS * WIDEST], part[BLOCKS * PARTS];
    uint16_t d[BLOCKS], m[BLOCKS] = {0};
    uint8_t packed[BLOCKS * 210];
    float x[BLOCKS * WIDEST];
    for (uint64_t i = 0; i < (uint64_t)n; i++)
        q[i] = (int8_t)(coded[_i].lowest + (int)(nb_random(1, 0, i) % (uint64_t)span));
    for (uint64_t i = 0; i < BLOCKS * PARTS; i++)
        part[i] = (int8_t)(t == FM_Q4_K ? nb_random(1, 3, i) % 64 : nb_random(1, 3, i) % 256);
    for (uint64_t b = 0; b < BLOCKS; b++) {
        d[b] = nb_half_from((float)nb_random_normal(1, 1, b));
        m[b] = t == FM_Q4_1 ? nb_half_from((float)nb_random_normal(1, 2, b)) : 0;
    }
    must(fm_blocks_pack(packed, t, q, d, m, part, BLOCKS));
    fm_array a = {.name = "w", .dtype = t, .n_dim = 1, .dim = {n}, .data = packed};
    must(fm_array_measure(&a));
    must(fm_to_float(x, &a, 0, n));
    for (int i = 0; i < n; i++) {
        float value = nb_half_to(d[i / block]) * (float)(parts ? part[i / group] : 1) * (float)q[i];
        ck_assert(x[i] == (t == FM_Q4_1 ? value + nb_half_to(m[i / block]) : value));
    }
    float second[WIDEST];
    must(fm_to_float(second, &a, block, block));
    ck_assert_mem_eq(second, x + block, (size_t)block * sizeof *second);
    if (coded[_i].highest < 127) {
        q[n - 1] = (int8_t)(coded[_i].highest + 1);
        must_fail(fm_blocks_pack(packed, t, q, d, m, part, BLOCKS), NB_USAGE, "outside");
    }
    must_fail(fm_blocks_pack(packed, FM_Q5_K, q, d, m, part, 1), NB_UNSUPPORTED, "Q5_K");
}
END_TEST

START_TEST(blocks_of_q4_k_have_bounds)
{
    int8_t q[256] = {0}, part[8] = {0};
    uint8_t packed[144];
    uint16_t d = 0x7000; /* 8192: eight times that is infinite */
    must_fail(fm_blocks_pack(packed, FM_Q4_K, q, &d, NULL, part, 1), NB_UNSUPPORTED, "not exact");
    d = 0x3C00;
    part[5] = 64;
    must_fail(fm_blocks_pack(packed, FM_Q4_K, q, &d, NULL, part, 1), NB_USAGE, "0 to 63");
}
END_TEST

/* ---- bits ---- */

START_TEST(bits_lie_where_the_definition_says)
{
    int bits = _i;
    uint8_t codes[40], back[40], packed[42];
    for (int64_t n = 0; n <= 40; n++) {
        memset(packed, 0xAA, sizeof packed);
        for (int64_t i = 0; i < n; i++)
            codes[i] = (uint8_t)(nb_random(2, (uint64_t)bits, (uint64_t)i) & ((1u << bits) - 1));
        fm_pack_bits(packed, codes, n, bits);
        size_t bytes = fm_packed_bytes(n, bits);
        ck_assert_uint_eq(bytes, ((size_t)n * (size_t)bits + 7) / 8);
        for (int64_t b = 0; b < (int64_t)bytes * 8; b++) {
            int bit = packed[b / 8] >> b % 8 & 1;
            ck_assert_int_eq(bit, b / bits < n ? codes[b / bits] >> b % bits & 1 : 0);
        }
        ck_assert_int_eq(packed[bytes], 0xAA);
        fm_unpack_bits(back, packed, n, bits);
        ck_assert(n == 0 || !memcmp(back, codes, (size_t)n));
    }
}
END_TEST

/* ---- metadata ---- */

START_TEST(metadata_keeps_what_was_put)
{
    fm_meta m = {0};
    char key[16], text[] = "changes";
    const fm_text words[] = {{"a", 1}, {"b\0c", 3}};
    for (int i = 0; i < 100; i++) {
        (void)snprintf(key, sizeof key, "key.%d", i);
        fm_meta_put_u32(&m, key, (uint32_t)i);
    }
    fm_meta_put_string(&m, "text", text);
    text[0] = 'X';
    fm_meta_put_strings(&m, "words", words, 2);
    fm_meta_put_f32(&m, "float", 0.1F);
    fm_meta_put_bool(&m, "bool", true);
    fm_meta_put_array(&m, "i64", FM_I64, (const int64_t[]){-1, 1LL << 60}, 2);
    fm_meta_put(&m, "u64", FM_U64, &(uint64_t){UINT64_MAX});
    ck_assert(!m.failed);
    ck_assert_int_eq(fm_value_int(fm_meta_get(&m, "key.77"), 0, -1), 77);
    ck_assert_str_eq(fm_value_string(fm_meta_get(&m, "text")), "changes");
    ck_assert(fm_value_text(fm_meta_get(&m, "words"), 1).bytes == 3 && !fm_value_string(fm_meta_get(&m, "words")));
    ck_assert(fm_value_number(fm_meta_get(&m, "float"), 0, 0) == (double)0.1F);
    ck_assert_int_eq(fm_value_int(fm_meta_get(&m, "float"), 0, -5), -5);
    ck_assert_int_eq(fm_value_int(fm_meta_get(&m, "bool"), 0, -5), 1);
    ck_assert(fm_value_int(fm_meta_get(&m, "i64"), 1, 0) == 1LL << 60);
    ck_assert_int_eq(fm_value_int(fm_meta_get(&m, "i64"), 2, -5), -5);
    ck_assert_int_eq(fm_value_int(fm_meta_get(&m, "u64"), 0, -5), -5);
    ck_assert(fm_value_number(fm_meta_get(&m, "u64"), 0, 0) == 0x1p64);
    ck_assert(!fm_meta_get(&m, "absent") && fm_value_int(NULL, 0, 3) == 3 && !fm_value_string(NULL));
    fm_meta_free(&m);
    fm_meta_free(&m);
}
END_TEST

START_TEST(writers_refuse_metadata_that_found_no_memory)
{
    fm_meta m = {0};
    allocations_left = 1;
    fm_meta_put_u32(&m, "key", 1);
    allocations_left = -1;
    ck_assert(m.failed);
    must_fail(fm_gguf_write(scratch_path("x.gguf"), NULL, 0, &m, (fm_source){0}), NB_NOMEM, "metadata");
    ck_assert(!nb_path_exists(scratch_path("x.gguf")));
    fm_meta_free(&m);
}
END_TEST

/* ---- kinds of files ---- */

static const struct {
    const char *path;
    fm_file_kind kind;
} kinds[] = {
    {DATA "stories260k/stories260K.bin", FM_FILE_LLAMA2C},
    {DATA "stories260k/stories260K_v1.bin", FM_FILE_LLAMA2C},
    {DATA "stories260k/stories260K-q8.bin", FM_FILE_LLAMA2C},
    {DATA "tokenizers/ggml-vocab-gpt-2.gguf", FM_FILE_GGUF},
    {DATA "stories260k/tok512.bin", FM_FILE_UNKNOWN},
    {DATA "text/tinystories.txt", FM_FILE_UNKNOWN},
    {DATA "mnist", FM_FILE_UNKNOWN},
};

START_TEST(real_files_are_recognized)
{
    fm_file_kind kind;
    if (!have(kinds[_i].path))
        return;
    must(fm_file_kind_of(&kind, kinds[_i].path));
    ck_assert_int_eq(kind, kinds[_i].kind);
}
END_TEST

START_TEST(written_files_are_recognized)
{
    const fm_array a = {"w", FM_F32, 1, {1}, (const float[]){1}, 4};
    fm_file_kind kind;
    fm_h5 f;
    must(nb_make_folder(scratch_path("model")));
    must(fm_safetensors_write(scratch_path("model/model.safetensors"), &a, 1, NULL, (fm_source){0}));
    must(fm_file_kind_of(&kind, scratch_path("model")));
    ck_assert_int_eq(kind, FM_FILE_SAFETENSORS);
    must(fm_file_kind_of(&kind, scratch_path("model/model.safetensors")));
    ck_assert_int_eq(kind, FM_FILE_SAFETENSORS);
    must(fm_h5_create(&f, scratch_path("f.h5"), "folded"));
    must(fm_h5_commit(&f));
    must(fm_file_kind_of(&kind, scratch_path("f.h5")));
    ck_assert_int_eq(kind, FM_FILE_HDF5);
    must(fm_file_kind_of(&kind, scratch_write("empty", "", 0)));
    ck_assert_int_eq(kind, FM_FILE_UNKNOWN);
    must_fail(fm_file_kind_of(&kind, scratch_path("absent")), NB_IO, "absent");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("formats");
    TCase *c = tcase_create("formats");
    tcase_add_checked_fixture(c, scratch_begin, scratch_end);
    tcase_add_loop_test(c, every_type_is_found_by_its_names, 0, FM_DTYPE_COUNT);
    tcase_add_loop_test(c, sizes_are_exact_or_refused, 0, COUNT(sizes));
    tcase_add_loop_test(c, numbers_of_every_type_become_floats, 0, COUNT(conversions));
    tcase_add_loop_test(c, elements_outside_an_array_are_refused, 0, 7);
    tcase_add_test(c, blocks_have_ggml_s_layout);
    tcase_add_loop_test(c, blocks_give_back_codes_and_their_values, 0, COUNT(coded));
    tcase_add_test(c, blocks_of_q4_k_have_bounds);
    tcase_add_loop_test(c, bits_lie_where_the_definition_says, 1, 9);
    tcase_add_test(c, metadata_keeps_what_was_put);
    tcase_add_test(c, writers_refuse_metadata_that_found_no_memory);
    tcase_add_loop_test(c, real_files_are_recognized, 0, COUNT(kinds));
    tcase_add_test(c, written_files_are_recognized);
    suite_add_tcase(s, c);
    return run_suite(s);
}
